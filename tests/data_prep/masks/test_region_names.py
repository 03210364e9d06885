"""Names of the standard lists, and as clinics write them, say what they say."""

import pytest

from data_prep.masks import MaskRegion

# AAPM TG-263, a few of each of its kinds, and as they are written elsewhere
TG_263 = """
A_Aorta A_LAD A_Pulmonary Atrium_L BileDuct_Common Bladder Body Bone_Mandible BrachialPlex_L
Bowel_Large Brainstem Breast_R Bronchus Carina Chestwall Colon_Sigmoid CouchSurface Duodenum
Esophagus External Eye_L Femur_Head_R GreatVes Glnd_Thyroid Heart Humerus_L Kidney_Cortex_L
Larynx Liver Liver-GTV LN_Ax_L1 LN_Mediastinals LN_Neck_IIA Lung_L Lung_RUL Lungs Lungs-GTV
Lungs-PTV Lung_L-ITV Mediastinum Musc_Digastric_L OpticChiasm OpticNrv_PRV03_L Pancreas
Parotid_L Pericardium Rib05_L Sacrum SeminalVes Skin SpinalCanal SpinalCord SpinalCord_PRV05
Spleen Stomach Trachea TumorBed V_Venacava_S Valve_Mitral VB_T05 Ventricle_R
""".split()  # noqa: SIM905  a list of names is read more easily like this
TOTAL_SEGMENTATOR = """
spleen adrenal_gland_left lung_upper_lobe_left lung_middle_lobe_right trachea thyroid_gland
small_bowel kidney_cyst_left vertebrae_T12 heart pulmonary_vein brachiocephalic_trunk
subclavian_artery_right atrial_appendage_left superior_vena_cava portal_vein_and_splenic_vein
iliac_vena_left clavicula_right hip_left spinal_cord gluteus_maximus_left autochthon_right
iliopsoas_left skull rib_left_1 rib_right_12 costal_cartilages lung_vessels pleural_effusion
subcutaneous_fat heart_myocardium
""".split()  # noqa: SIM905
CLINICS = [
    *("Lung-Left", "LUNG_LT", "left lung", "Lunge re", "Total Lung", "Spinal-Cord", "cord"),
    *("oesophagus", "HERZ", "heart", "BODY", "Trachea1", "Dose 50[%]", "Ring 1", "z_avoid"),
    *("lungs minus gtv", "Lymph node 4R", "Normal Lung"),
]
LESIONS = [
    *("GTV", "GTV-1", "gtv_p2", "GTVp", "IGTV", "nodule", "Nodule 3", "Lung nodule", "tumor"),
    *("Left lung mass", "RUL lesion", "Neoplasm, Primary", "Metastasis", "GTV_Lung_L"),
]
MARGINS = ["PTV", "PTV_60Gy", "ptv1", "CTV-p", "ITV", "PTV_Lung_R", "ICTV 2"]
UNKNOWN = ["", "ROI 3", "Segment_1", "RUL", "T", "left", "1", "mask", "Miller", "new contour"]


@pytest.mark.parametrize("name", [*TG_263, *TOTAL_SEGMENTATOR, *CLINICS])
def test_organs(name):
    assert MaskRegion("f", "ROI 1", name).why_no_nodule == "organ_name"


@pytest.mark.parametrize("name", MARGINS)
def test_targets_with_a_margin(name):
    assert MaskRegion("f", "ROI 1", name, "GTV").why_no_nodule == "target_with_margin"


@pytest.mark.parametrize("name", LESIONS)
def test_lesions_whatever_their_type_and_size(name):
    """Planning systems call every new region an organ; a tumour may be a mass."""
    region = MaskRegion("f", "ROI 1", name, "ORGAN", True, 9, (80.0, 40.0, 30.0))
    assert region.why_no_nodule == ""


@pytest.mark.parametrize("name", UNKNOWN)
def test_other_names_go_by_type_and_size(name):
    assert MaskRegion("f", "ROI 1", name, size_mm=(50.0, 20.0, 9.0)).why_no_nodule == ""
    large = MaskRegion("f", "ROI 1", name, size_mm=(20.0, 50.1, 9.0))
    assert large.why_no_nodule == "too_large_for_nodule"
    assert MaskRegion("f", "ROI 1", name, "AVOIDANCE", True).why_no_nodule == "region_type"
    assert MaskRegion("f", "ROI 1", name, "PTV").why_no_nodule == "target_with_margin"
