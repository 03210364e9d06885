"""Regions stand for themselves: chosen by name, left out by name, one bad one harms no other."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from pydicom import Dataset
from pydicom.sr.coding import Code

from data_prep.errors import MaskError
from data_prep.masks import MaskWarning, nodules_from_masks, read_masks, regions_of_mask

TISSUE = Code("85756007", "SCT", "Tissue")
ANATOMY = Code("123037004", "SCT", "Anatomical Structure")
LESION = Code("49755003", "SCT", "Morphologically Abnormal Structure")
LUNG, NODULE = Code("39607008", "SCT", "Lung"), Code("27925004", "SCT", "Nodule")


def square(scan, k: int, first: tuple[float, float] = (10.5, 10.5), side: int = 6) -> np.ndarray:
    """Corners of a square of side x side voxels on slice k, in LPS mm."""
    i, j = first
    corners = [[i, j], [i + side, j], [i + side, j + side], [i, j + side]]
    return scan.lps(np.column_stack([corners, np.full(4, float(k))]))


def with_names(names: dict[int, str], kinds: dict[int, str] | None = None):
    def edit(dataset: Dataset) -> None:
        dataset.StructureSetROISequence, dataset.RTROIObservationsSequence = [], []
        for number, name in names.items():
            item, observation = Dataset(), Dataset()
            item.ROINumber, item.ROIName = number, name
            observation.ReferencedROINumber = number
            observation.RTROIInterpretedType = (kinds or {}).get(number, "")
            dataset.StructureSetROISequence.append(item)
            dataset.RTROIObservationsSequence.append(observation)

    return edit


@pytest.fixture
def clinical_set(scan, write_rtstruct):
    """A structure set with all that is usual beside a tumour, and all that goes wrong."""
    good = [square(scan, k) for k in (3, 4, 5)]
    regions = {
        1: good,
        2: [square(scan, k, (2.5, 2.5), 30) for k in range(14)],
        3: [square(scan, k, (10.5, 10.5), 200) for k in (3, 4)],  # beyond the field
        4: [square(scan, k) for k in range(8, 20)],  # beyond the last slice
        5: [good[0][:1]],
        6: [*good, good[0][:2]],
        7: [],
        8: [square(scan, k, (20.5, 20.5), 4) for k in (9, 10)],
    }
    names = {
        **{1: "GTV-1", 2: "Lung_L", 3: "Couch top X", 4: "long", 5: "spot", 6: "GTV-2"},
        **{7: "tumor bed", 8: "Rundherd Süd"},
    }
    return write_rtstruct(regions, edit=with_names(names))


def test_each_region_by_itself(scan, clinical_set):
    """The two good ones have exactly the voxels within their squares; the others are named."""
    masked = read_masks([clinical_set], scan.volume)
    assert [source.title for source in masked.sources] == ["ROI 8 'Rundherd Süd'", "ROI 1 'GTV-1'"]
    assert [nodule.region for nodule in masked.nodules] == ["Rundherd Süd", "GTV-1"]
    expected = np.zeros(scan.volume.shape, bool)
    expected[11:17, 11:17, 3:6] = True
    np.testing.assert_array_equal(masked.nodules[1].mask, expected)
    left_out = {each.region.label: each.reason for each in masked.left_out}
    assert left_out == {
        "ROI 2": "organ_name",
        "ROI 3": "too_large_for_nodule",
        "ROI 4": "not_on_slice",
        "ROI 5": "bad_contour",
        "ROI 6": "bad_contour",
        "ROI 7": "empty_mask",
    }
    for each in masked.left_out:
        assert each.region.place in each.message
        assert f"'{each.region.name}' of rt.dcm" in each.message


def test_warnings_name_what_is_left_out(scan, clinical_set):
    with pytest.warns(MaskWarning) as warned:
        assert len(nodules_from_masks(clinical_set, scan.volume)) == 2
    texts = [str(one.message) for one in warned]
    assert len(texts) == 5  # one for all that is no nodule, one for each that is wrong
    assert "ROI 2 'Lung_L' of rt.dcm (organ_name); ROI 3" in texts[0]


@pytest.mark.parametrize(
    ("patterns", "titles"),
    [
        ("gtv-1", ["ROI 1 'GTV-1'"]),
        (["GTV*"], ["ROI 1 'GTV-1'"]),  # the other GTV is bad, and named
        (["Lung_?"], ["ROI 2 'Lung_L'"]),  # what is asked for is taken
        (["roi 8", "*-1"], ["ROI 8 'Rundherd Süd'", "ROI 1 'GTV-1'"]),
        (["rundherd SÜD"], ["ROI 8 'Rundherd Süd'"]),
    ],
)
def test_chosen_by_name_or_number(scan, clinical_set, patterns, titles):
    masked = read_masks([clinical_set], scan.volume, regions=patterns)
    assert [source.title for source in masked.sources] == titles
    chosen = ["ROI 6"] if patterns == ["GTV*"] else []
    assert [each.region.label for each in masked.left_out] == chosen


def test_a_choice_of_nothing(scan, clinical_set):
    with pytest.raises(MaskError, match=r"'CTV\*'\. The regions are: 'GTV-1', 'Lung_L'") as raised:
        nodules_from_masks(clinical_set, scan.volume, regions="CTV*")
    assert raised.value.reason == "no_such_region"


def test_nothing_but_organs(scan, write_rtstruct):
    drawn = {1: [square(scan, 3)], 2: [square(scan, 5)]}
    path = write_rtstruct(drawn, edit=with_names({1: "Heart", 2: "A_Aorta"}))
    with pytest.raises(MaskError, match=r"ROI 1 'Heart' of rt\.dcm .*ROI 2 'A_Aorta'") as raised:
        nodules_from_masks(path, scan.volume)
    assert raised.value.reason == "organ_name"


def test_types_of_a_structure_set(scan, write_rtstruct):
    drawn = {number: [square(scan, number)] for number in range(1, 7)}
    names = {1: "a", 2: "b", 3: "c", 4: "d", 5: "GTV", 6: "e"}
    kinds = {1: "GTV", 2: "ORGAN", 3: "SUPPORT", 4: "CTV", 5: "ORGAN", 6: "A_NEW_TERM"}
    masked = read_masks([write_rtstruct(drawn, edit=with_names(names, kinds))], scan.volume)
    assert [source.label for source in masked.sources] == ["ROI 6", "ROI 5", "ROI 1"]
    assert [each.reason for each in masked.left_out] == [
        "region_type",
        "region_type",
        "target_with_margin",
    ]


def test_properties_of_segments(scan, write_seg):
    """By category; but 3D Slicer calls whatever isn't specified tissue of the type tissue."""
    codes = [(LESION, NODULE), (ANATOMY, LUNG), (TISSUE, NODULE), (TISSUE, TISSUE), (ANATOMY, LUNG)]
    labels = ["A", "B", "C", "D", "Nodule of left lung"]

    def describe(dataset: Dataset) -> None:
        for item, (category, kind), label in zip(
            dataset.SegmentSequence, codes, labels, strict=True
        ):
            item.SegmentLabel = label
            for keyword, code in (("Category", category), ("Type", kind)):
                meant = item[f"SegmentedProperty{keyword}CodeSequence"].value[0]
                meant.CodeValue, meant.CodingSchemeDesignator, meant.CodeMeaning = code[:3]

    masks = [scan.ball((8 + 6 * n, 18, 3 + 2 * n), 2.5) for n in range(5)]
    path = write_seg(masks, edit=describe)
    masked = read_masks([path], scan.volume)
    assert [source.name for source in masked.sources[::-1]] == ["A", "C", "D", labels[4]]
    (left_out,) = masked.left_out
    assert (left_out.region.title, left_out.reason) == ("segment 2 'B'", "region_type")
    assert left_out.region.kind == "Anatomical Structure, Lung"
    (chosen,) = nodules_from_masks(path, scan.volume, regions=["b"])
    np.testing.assert_array_equal(chosen.mask, masks[1])


def test_one_segment_beyond_the_scan(scan, write_seg):
    """A segmentation of a larger CT: the segment that lies within both is taken."""
    masks = [scan.ball((20, 18, 7), 4.0), scan.ball((10, 10, 13), 4.0)]
    path = write_seg(masks)
    volume = scan.volume
    part = type(volume)(
        volume.hu[:, :, :12], volume.affine, volume.series_uid, volume.sop_instance_uids[:12]
    )
    with pytest.warns(MaskWarning, match="segment 2 'nodule 2' of seg.dcm lies outside"):
        (nodule,) = nodules_from_masks(path, part)
    np.testing.assert_array_equal(nodule.mask, masks[0][:, :, :12])


def test_one_bad_file_of_several(scan, write_rtstruct, tmp_path):
    good = write_rtstruct({1: [square(scan, 3)]})
    other = write_rtstruct({1: [square(scan, 3)]}, series_uid="1.2.3", name="other.dcm")
    (tmp_path / "noise.nii").write_bytes(b"noise")
    masked = read_masks([other, good, tmp_path / "noise.nii"], scan.volume)
    assert len(masked.nodules) == 1
    reasons = [(each.region.place, each.reason) for each in masked.left_out]
    assert reasons == [("other.dcm", "other_series"), ("noise.nii", "unreadable_image")]
    with pytest.raises(MaskError, match="no file"):  # a typo is no bad file
        read_masks([good, tmp_path / "gone.dcm"], scan.volume)


def test_listing(scan, clinical_set, write_seg):
    """Planes and extents as drawn: squares of 6 voxels of 1.1 x 0.9 mm on turned axes."""
    regions = regions_of_mask(clinical_set)
    assert [region.label for region in regions] == [f"ROI {number}" for number in range(1, 9)]
    corners_mm = np.array([[0, 0], [6.6, 0], [6.6, 5.4], [0, 5.4]])
    turned = corners_mm @ np.array([[0.9, 0.43588989], [-0.43588989, 0.9]])
    expected = (*np.ptp(turned, axis=0), 2 * scan.volume.spacing_mm[2])
    assert regions[0].n_slices == 3
    assert regions[0].size_mm == pytest.approx(expected, abs=1e-3)
    assert regions[4].size_mm is None
    (segment,) = regions_of_mask(write_seg([scan.ball((20, 18, 7), 4.0)]))
    assert (segment.title, segment.kind) == (
        "segment 1 'nodule 1'",
        "Morphologically Abnormal Structure, Nodule",
    )
    assert segment.n_slices == 5  # 4 mm to either side of the middle, 1.5 mm apart
    assert segment.size_mm == pytest.approx((7 * 1.1, 9 * 0.9, 5 * 1.5))


def test_names_from_slicer(scan, tmp_path):
    """A label map as 3D Slicer saves it: names and terminology in the NRRD header."""
    labels = np.zeros(scan.volume.shape, np.uint8)
    labels[scan.ball((10, 12, 4), 4.0)] = 1
    labels[scan.ball((28, 20, 10), 5.5)] = 2
    nib.save(nib.Nifti1Image(labels, scan.volume.affine), tmp_path / "map.nii")
    image = sitk.ReadImage(tmp_path / "map.nii")
    tags = "TerminologyEntry:Category and type~SCT^{}^{}~SCT^{}^{}~^^~Anatomic codes~^^~^^|"
    for number, (name, category, kind) in enumerate(
        [("Segment_1", LESION, NODULE), ("second", ANATOMY, LUNG)]
    ):
        image.SetMetaData(f"Segment{number}_Name", name)
        image.SetMetaData(f"Segment{number}_LabelValue", str(number + 1))
        text = tags.format(category.value, category.meaning, kind.value, kind.meaning)
        image.SetMetaData(f"Segment{number}_Tags", text)
    sitk.WriteImage(image, tmp_path / "map.seg.nrrd")
    masked = read_masks([tmp_path / "map.seg.nrrd"], scan.volume)
    assert [source.title for source in masked.sources] == ["label 1 'Segment_1'"]
    (left_out,) = masked.left_out
    assert (left_out.region.title, left_out.reason) == ("label 2 'second'", "region_type")


def test_names_from_totalsegmentator(scan, tmp_path):
    """Its label table in the header of a NIfTI, and its files named after what they mark."""
    labels = np.zeros(scan.volume.shape, np.uint8)
    labels[scan.ball((10, 12, 4), 4.0)] = 13
    labels[scan.ball((28, 20, 10), 5.5)] = 51
    image = nib.Nifti1Image(labels, scan.volume.affine)
    table = (
        '<?xml version="1.0"?><CaretExtension><VolumeInformation><LabelTable>'
        '<Label Key="13" Red="1" Green="0" Blue="0" Alpha="1"><![CDATA[lung_nodules]]></Label>'
        '<Label Key="51" Red="1" Green="0" Blue="0" Alpha="1"><![CDATA[heart]]></Label>'
        "</LabelTable></VolumeInformation></CaretExtension>"
    )
    image.header.extensions.append(nib.nifti1.Nifti1Extension(0, table.encode()))
    nib.save(image, tmp_path / "all.nii.gz")
    masked = read_masks([tmp_path / "all.nii.gz"], scan.volume)
    assert [source.title for source in masked.sources] == ["label 13 'lung_nodules'"]
    assert masked.left_out[0].region.title == "label 51 'heart'"

    one = nib.Nifti1Image((labels == 13).astype(np.uint8), scan.volume.affine)
    for name, n_nodules in (("heart", 0), ("lung_nodules", 1), ("lung_001", 1), ("mask", 1)):
        nib.save(one, tmp_path / f"{name}.nii.gz")
        masked = read_masks([tmp_path / f"{name}.nii.gz"], scan.volume)
        assert len(masked.nodules) == n_nodules
    assert masked.nodules[0].region == "label 1"


def test_a_lung_mask_is_no_nodule(scan, tmp_path):
    mask = np.zeros(scan.volume.shape, np.uint8)
    mask[:, 2:-2, 3:10] = 1  # 44 mm along i
    volume = type(scan.volume)(
        np.repeat(scan.volume.hu, 2, axis=0), scan.volume.affine, scan.volume.series_uid
    )
    nib.save(nib.Nifti1Image(np.repeat(mask, 2, axis=0), volume.affine), tmp_path / "m.nii")
    with pytest.raises(MaskError, match="larger than 50 mm") as raised:
        nodules_from_masks(tmp_path / "m.nii", volume)
    assert raised.value.reason == "too_large_for_nodule"
    (nodule,) = nodules_from_masks(tmp_path / "m.nii", volume, regions="*")
    assert nodule.mask.sum() == 2 * mask.sum()
