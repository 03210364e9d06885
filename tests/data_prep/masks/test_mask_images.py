"""Label maps written by other tools, in any orientation, give the voxels that were drawn."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from nibabel import orientations
from scipy.spatial.transform import Rotation

from data_prep import CTVolume, read_lidc_xml, read_series
from data_prep.errors import ImageError, MaskError
from data_prep.masks import nodules_from_masks, read_masks


def label_map(scan) -> np.ndarray:
    labels = np.zeros(scan.volume.shape, np.uint8)
    labels[scan.ball((10, 12, 4), 4.0)] = 3  # inferior
    labels[scan.ball((28, 20, 10), 5.5)] = 7  # superior
    return labels


def reason_of(path, volume: CTVolume) -> str:
    with pytest.raises(MaskError) as raised:
        nodules_from_masks(path, volume)
    assert str(raised.value).isprintable()
    return raised.value.reason


@pytest.mark.parametrize(
    ("codes", "ending"),
    [
        *((codes, "nii.gz") for codes in ("LPS", "RAS", "SAR", "PIR", "ASL")),
        *((codes, ending) for codes in ("RAS", "PIR") for ending in ("nrrd", "seg.nrrd", "mha")),
    ],
)
def test_same_voxels_in_any_orientation(scan, tmp_path, codes, ending):
    labels = label_map(scan)
    image = nib.Nifti1Image(labels, scan.volume.affine)
    turn = orientations.ornt_transform(
        orientations.io_orientation(scan.volume.affine), orientations.axcodes2ornt(codes)
    )
    image = image.as_reoriented(turn)
    path = tmp_path / "mask.nii.gz"
    nib.save(image, path)
    if ending != "nii.gz":
        path = tmp_path / f"mask.{ending}"
        sitk.WriteImage(sitk.ReadImage(tmp_path / "mask.nii.gz"), path, useCompression=True)
    masked = read_masks([path], scan.volume)
    assert [nodule.nodule_id for nodule in masked.nodules] == ["nodule_1", "nodule_2"]
    assert [source.label for source in masked.sources] == ["label 7", "label 3"]
    for nodule, value in zip(masked.nodules, (7, 3), strict=True):
        np.testing.assert_array_equal(nodule.mask, labels == value)
        center = nib.affines.apply_affine(
            scan.volume.affine, np.argwhere(labels == value).mean(axis=0)
        )
        np.testing.assert_allclose(nodule.center_xyz_mm, center)


def test_binary_mask_gives_components(scan, tmp_path):
    """Parts that touch at a corner are one nodule; several paths count together."""
    mask = scan.ball((28, 20, 10), 4.0)
    mask[5, 5, 5] = mask[6, 6, 6] = True  # 26 neighbours
    mask[5, 5, 8] = True
    nib.save(nib.Nifti1Image(mask.astype(np.float32), scan.volume.affine), tmp_path / "mask.nii")
    masked = read_masks([tmp_path / "mask.nii"], scan.volume)
    counts = [int(nodule.mask.sum()) for nodule in masked.nodules]
    assert sorted(counts) == [1, 2, int(mask.sum()) - 3]
    assert sum(nodule.mask for nodule in masked.nodules).max() == 1
    z = [nodule.center_xyz_mm[2] for nodule in masked.nodules]
    assert z == sorted(z, reverse=True)
    one = mask & ~scan.ball((28, 20, 10), 4.0)
    one[5, 5, 8] = False
    nib.save(nib.Nifti1Image(one.astype(np.uint8), scan.volume.affine), tmp_path / "one.nii")
    both = nodules_from_masks([tmp_path / "mask.nii", tmp_path / "one.nii"], scan.volume)
    assert len(both) == 4
    assert read_masks([tmp_path / "one.nii"], scan.volume).sources[0].label == "label 1"


def test_rotated_finer_grid(scan, tmp_path):
    """A ball drawn on a grid turned against the scan's keeps its place and its volume."""
    center = scan.volume.affine[:3] @ [20, 18, 7, 1]
    rotation = Rotation.from_euler("xyz", [20, -35, 50], degrees=True).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = rotation * 0.4
    affine[:3, 3] = center - affine[:3, :3] @ np.full(3, 25.3)
    index = np.moveaxis(np.indices((52, 52, 52)), 0, -1)
    ball = np.linalg.norm((index - 25.3) * 0.4, axis=-1) <= 7.0
    nib.save(nib.Nifti1Image(ball.astype(np.uint8), affine), tmp_path / "mask.nii.gz")
    (nodule,) = nodules_from_masks(tmp_path / "mask.nii.gz", scan.volume)
    # voxel by voxel: the centres within the radius, but for those at the ball's stepped surface
    distance = np.linalg.norm(
        np.moveaxis(np.indices(scan.volume.shape), 0, -1) @ scan.volume.affine[:3, :3].T
        + scan.volume.affine[:3, 3]
        - center,
        axis=-1,
    )
    step_mm = 0.2 * np.sqrt(3)  # from a point to the centre of its voxel, at most
    assert nodule.mask[distance < 7.0 - step_mm].all()
    assert not nodule.mask[distance > 7.0 + step_mm].any()
    assert np.linalg.norm(nodule.center_xyz_mm - center) < 0.1
    assert nodule.mask.sum() == pytest.approx((distance <= 7).sum(), rel=0.01)
    # SimpleITK resamples the mask to the same voxels
    reference = sitk.GetImageFromArray(np.zeros(scan.volume.shape[::-1], np.uint8))
    affine_lps = np.diag([-1.0, -1, 1, 1]) @ scan.volume.affine
    reference.SetSpacing(scan.volume.spacing_mm.tolist())
    reference.SetOrigin(affine_lps[:3, 3].tolist())
    reference.SetDirection((affine_lps[:3, :3] / scan.volume.spacing_mm).ravel().tolist())
    mask = sitk.ReadImage(tmp_path / "mask.nii.gz")
    by_itk = sitk.Resample(mask, reference, sitk.Transform(), sitk.sitkNearestNeighbor)
    itk_mask = sitk.GetArrayFromImage(by_itk).transpose(2, 1, 0).astype(bool)
    assert (itk_mask != nodule.mask).sum() <= 2  # centres half-way between two voxels


def test_coarser_and_cut_grid(scan, tmp_path):
    """A mask cropped to the nodule with voxels twice as large: each covers eight of the scan."""
    volume = scan.volume
    coarse_affine = volume.affine @ np.diag([2.0, 2, 2, 1])
    coarse_affine[:3, 3] = volume.affine[:3] @ [4.5, 6.5, 2.5, 1]  # covers voxels 4 and 5 ...
    coarse = np.ones((3, 2, 1), np.uint8)
    nib.save(nib.Nifti1Image(coarse, coarse_affine), tmp_path / "mask.nii")
    (nodule,) = nodules_from_masks(tmp_path / "mask.nii", volume)
    expected = np.zeros(volume.shape, bool)
    expected[4:10, 6:10, 2:4] = True
    np.testing.assert_array_equal(nodule.mask, expected)


def test_diameter(scan, tmp_path):
    """Between voxel centres, in one axial slice; none for a single voxel."""
    mask = np.zeros(scan.volume.shape, np.uint8)
    mask[5:9, 5, 5] = 1  # 3 steps of 1.1 mm
    mask[5, 5, 5:12] = 1  # through the slices: doesn't count
    mask[20, 20:24, 3] = 2
    mask[23, 20, 3] = 2
    mask[30, 30, 3] = 3
    nib.save(nib.Nifti1Image(mask, scan.volume.affine), tmp_path / "mask.nii")
    masked = read_masks([tmp_path / "mask.nii"], scan.volume)
    by_label = dict(zip([s.label for s in masked.sources], masked.nodules, strict=True))
    assert by_label["label 1"].ratings["diameter"] == pytest.approx(3.3)
    assert by_label["label 2"].ratings["diameter"] == pytest.approx(np.hypot(3 * 1.1, 3 * 0.9))
    assert dict(by_label["label 3"].ratings) == {}


def test_diameter_of_a_ball_in_sagittal_order(tmp_path):
    """The axial plane is the patient's, whatever the order of the array's axes."""
    affine = np.array([[0, 0, 1.0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])  # ASR
    volume = CTVolume(np.zeros((40, 40, 40), np.int16), affine, "x")
    index = np.moveaxis(np.indices(volume.shape), 0, -1) - 20.2
    ellipsoid = np.linalg.norm(index / [8, 16, 8], axis=-1) <= 1  # long from head to foot
    nib.save(nib.Nifti1Image(ellipsoid.astype(np.uint8), affine), tmp_path / "mask.nii")
    (nodule,) = nodules_from_masks(tmp_path / "mask.nii", volume)
    assert 15.4 <= nodule.ratings["diameter"] <= 16


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        ("empty_mask", lambda labels: labels * 0),
        ("not_labels", lambda labels: labels * np.float32(0.5)),
        ("not_labels", lambda labels: labels.astype(np.int16) - 1),
        ("not_labels", lambda labels: labels.astype(np.int32) * 100_000),
        ("not_labels", lambda labels: np.where(labels == 3, np.nan, labels)),
        (
            "too_many_labels",
            lambda labels: np.arange(labels.size, dtype=np.int32).reshape(labels.shape),
        ),
    ],
)
def test_refused_masks(scan, tmp_path, reason, change):
    changed = change(label_map(scan))
    nib.save(nib.Nifti1Image(changed, scan.volume.affine), tmp_path / "mask.nii")
    assert reason_of(tmp_path / "mask.nii", scan.volume) == reason


def test_noise_is_no_mask(scan, tmp_path):
    speckle = np.zeros(scan.volume.shape, np.uint8)
    speckle[::2, ::2, ::2] = 1
    nib.save(nib.Nifti1Image(speckle, scan.volume.affine), tmp_path / "mask.nii")
    assert reason_of(tmp_path / "mask.nii", scan.volume) == "too_many_labels"


def test_mask_of_another_place(scan, tmp_path):
    labels = label_map(scan)
    moved = scan.volume.affine.copy()
    moved[:3, 3] += moved[:3, 0] * 9  # nine columns: a part reaches beyond the edge
    nib.save(nib.Nifti1Image(labels, moved), tmp_path / "mask.nii")
    masked = read_masks([tmp_path / "mask.nii"], scan.volume, mask_grid="own")
    assert [nodule.region for nodule in masked.nodules] == ["label 3"]
    (left_out,) = masked.left_out
    assert left_out.reason == "outside_volume"
    assert "label 7 of mask.nii lies outside of the scan with" in left_out.message
    fine = np.diag([0.1, 0.1, 0.1, 1.0])
    fine[:3, 3] = scan.volume.affine[:3] @ [10.5, 10.5, 5, 1]  # a corner between voxel centres
    nib.save(nib.Nifti1Image(np.ones((2, 2, 2), np.uint8), fine), tmp_path / "tiny.nii")
    assert reason_of(tmp_path / "tiny.nii", scan.volume) == "no_voxel"


def test_files_that_are_no_masks(scan, tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    assert reason_of(tmp_path / "notes.txt", scan.volume) == "unsupported_mask"
    assert reason_of(tmp_path / "gone.dcm", scan.volume) == "unreadable_mask"
    assert reason_of(scan.paths[0], scan.volume) == "unsupported_mask"
    with pytest.raises(ImageError):
        nodules_from_masks(tmp_path / "gone.nii", scan.volume)


@pytest.mark.slow
@pytest.mark.shared_data
def test_consensus_of_a_real_series_comes_back(shared_data, tmp_path):
    """The readers' consensus, written as a label map, gives the same nodules."""
    (xml,) = (shared_data / "lidc" / "LIDC-IDRI-0003").rglob("*.xml")
    volume = read_series(xml.parent)
    consensus = read_lidc_xml(xml, volume)
    labels = sum(nodule.mask * np.uint8(n) for n, nodule in enumerate(consensus, start=1))
    image = nib.Nifti1Image(labels, volume.affine)
    image.set_qform(volume.affine, 1)
    image.set_sform(volume.affine, 1)
    nib.save(image, tmp_path / "mask.nii")
    masked = read_masks([tmp_path / "mask.nii"], volume)
    assert [source.label for source in masked.sources] == ["label 1", "label 2", "label 3"]
    for nodule, same in zip(masked.nodules, consensus, strict=True):
        np.testing.assert_array_equal(nodule.mask, same.mask)
        np.testing.assert_allclose(nodule.center_xyz_mm, same.center_xyz_mm)
        # the readers' contours run one pixel outside of their masks
        assert nodule.ratings["diameter"] == pytest.approx(same.ratings["diameter"], rel=0.3)
