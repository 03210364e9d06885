"""One series of a cohort: which nodules are taken, where they are cut, what is said about them."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import synthetic_cohort as made

from data_prep.cohort.check import check_cohort
from data_prep.cohort.folder import read_cohort
from data_prep.cohort.schema import Exclusion
from data_prep.cohort.select import PAPER
from data_prep.nodules import Nodule
from data_prep.prepare.run import EmptyCohortError, prepare_cohort
from data_prep.prepare.series import LoadedSeries
from data_prep.problems import Action, Problem
from data_prep.volume import CTVolume


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@dataclass(frozen=True)
class Given:
    """A series as it is given."""

    loaded: LoadedSeries
    series_id: str = "s"
    patient_id: str = "p"

    def load(self) -> LoadedSeries:
        return self.loaded


def a_volume(**settings: object) -> CTVolume:
    hu = np.random.default_rng(0).integers(-1000, 400, made.SHAPE).astype(np.int16)
    return CTVolume(hu, made.AFFINE, "1.2.3", **settings)


def prepared(out: Path, nodules, protocol=None, **volume_settings):
    loaded = LoadedSeries(a_volume(**volume_settings), nodules)
    prepare_cohort([Given(loaded)], protocol or made.PROTOCOL, out)
    return read_cohort(out)


def test_nodule_names_that_collide_are_left_out(tmp_path: Path) -> None:
    def named(name: str) -> Nodule:
        return replace(made.nodule(1, [1, 1, 1]), nodule_id=name)

    volume = a_volume()
    tasks = [
        Given(LoadedSeries(volume, [named("b_c"), named("x"), named("X"), named("seg_label_1")])),
        Given(LoadedSeries(volume, [named("c"), named("y_readers"), named("n" * 150)]), "s_b"),
    ]
    prepare_cohort(tasks, made.PROTOCOL, tmp_path / "c")
    cohort = read_cohort(tmp_path / "c")
    assert [row.nodule_id for row in cohort.nodules] == ["s_s-eg_l-abel_1", "s_x", "s_b_c"]
    assert {(row.nodule_id, row.reason) for row in cohort.exclusions} == {
        ("s_b_c", "unsafe_id"),
        ("s_X", "duplicate_id"),
        ("s_b_y_readers", "unsafe_id"),
        ("", "unsafe_id"),
    }


def test_the_protocol_leaves_out_by_name(tmp_path: Path) -> None:
    protocol = replace(PAPER, size_mm=8.0)
    nodules = [
        made.nodule(1, [4, 4, 4]),
        replace(made.nodule(2, [1, 1]), nodule_id="pair"),
        replace(made.nodule(2, [3, 3, 3]), nodule_id="undecided"),
        replace(made.nodule(2, [1, 2, 1], at=(0, 8, 4)), nodule_id="at_the_rim"),
        replace(made.nodule(2, [1, 1, 1, 2, 2]), nodule_id="crowd"),
        Nodule("far", np.array([900.0, 0, 0])),
    ]
    exclusion = Exclusion("p", "s", "seen_before", "not_wanted", "Left out by its source.")
    loaded = LoadedSeries(a_volume(), nodules, [exclusion])
    before = Exclusion("p", "t", "t_nodule_4", "not_needed", "Of /mnt/DOE/ct.")
    prepare_cohort([Given(loaded)], protocol, tmp_path / "c", exclusions=[before])
    cohort = read_cohort(tmp_path / "c")
    assert [row.nodule_id for row in cohort.nodules] == ["s_nodule_1"]
    assert {row.nodule_id: row.reason for row in cohort.exclusions} == {
        "s_pair": "too_few_readers",
        "s_undecided": "indeterminate",
        "s_at_the_rim": "reaches_beyond_scan",
        "s_crowd": "too_many_readers",
        "s_far": "outside_scan",
        "s_seen_before": "not_wanted",
        "t_nodule_4": "not_needed",
    }
    text = (tmp_path / "c" / "exclusions.csv").read_text()
    assert "1.2.3" not in text
    assert "DOE" not in text


def test_rim_and_size_are_kept_and_flagged_where_the_protocol_says_so(tmp_path: Path) -> None:
    rim = made.nodule(1, [1, 1, 1], at=(0, 8, 4))
    cohort = prepared(tmp_path / "pad", [rim])
    (row,) = cohort.nodules
    assert row.flags == ("reaches_beyond_scan",)
    # the nodule's middle is 1.5 voxels of 0.8 mm from the first voxel's: of the cube's 8 planes
    # at +-0.5 ... 3.5 mm those at 2.5 and 3.5 mm lie beyond its edge at 1.6 mm
    assert row.padding_fraction == 2 / 8
    inside = made.nodule(1, [1, 1, 1])
    small = replace(made.PROTOCOL, size_mm=3.0, too_large="cut")
    (row,) = prepared(tmp_path / "cut", [inside], small).nodules
    assert row.flags == ("cut_by_crop",)
    with pytest.raises(EmptyCohortError) as raised:
        prepared(tmp_path / "drop", [inside], replace(small, too_large="drop"))
    (exclusion,) = raised.value.exclusions
    assert exclusion.reason == "larger_than_crop"
    assert "needs a cube of 4.5 mm" in exclusion.message


def test_the_middle_is_that_of_the_mass_or_of_the_box(tmp_path: Path) -> None:
    nodule = made.nodule(1, [1, 1, 1])
    off_centre = replace(nodule, center_xyz_mm=np.add(nodule.center_xyz_mm, [0.5, 0, 0]))
    (mass,) = prepared(tmp_path / "mass", [off_centre]).nodules
    np.testing.assert_allclose(mass.center_xyz_mm, off_centre.center_xyz_mm, atol=1e-6)
    protocol = replace(made.PROTOCOL, center="box")
    (box,) = prepared(tmp_path / "box", [off_centre], protocol).nodules
    np.testing.assert_allclose(box.center_xyz_mm, nodule.center_xyz_mm, atol=1e-6)


def test_a_bare_point_has_neither_mask_nor_label(tmp_path: Path) -> None:
    cohort = prepared(tmp_path / "c", [Nodule("at", np.array([0.0, 0.0, -52.0]))])
    (row,) = cohort.nodules
    assert (row.label, row.ratings, row.reader_ratings, row.n_readers) == ("", {}, {}, 0)
    assert list(row.files) == ["crops/s_at.nii.gz"]
    images = cohort.read_images(row)
    assert images.mask is None
    assert images.reader_count is None
    assert row.fold is None
    assert "No folds" in cohort.record.notes[0]
    assert check_cohort(tmp_path / "c") == ()


def test_what_was_repaired_or_filled_is_in_the_manifest(tmp_path: Path) -> None:
    problems = (
        Problem("missing_slices", "At 3 mm of DOE_JOHN.", Action.REPAIR),
        Problem("position_rounding", "A bit.", Action.NOTE),
    )
    at_slice_5 = made.nodule(1, [1, 1, 1])
    cohort = prepared(tmp_path / "c", [at_slice_5], problems=problems, interpolated_slices=(5, 11))
    (row,) = cohort.nodules
    assert (row.repairs, row.notes) == (("missing_slices",), ("position_rounding",))
    assert row.flags == ("interpolated_slices",)
    # the cube reaches over slices 3 to 7
    assert row.interpolated_slices == 1
    assert b"DOE" not in b"".join(content(tmp_path / "c").values())


def test_what_of_a_mask_nobody_drew_is_in_the_manifest(tmp_path: Path) -> None:
    drawn = made.nodule(1, [1, 1, 1])
    assert drawn.outline is not None
    k = drawn.outline.origin_ijk[2]
    filled = replace(
        drawn,
        nodule_id="nodule_2",
        outline=replace(drawn.outline, interpolated_slices=(k,)),
        flags=("combined_contours",),
    )
    cohort = prepared(tmp_path / "c", [drawn, filled], interpolated_slices=(k,))
    first, second = cohort.nodules
    assert first.flags == ("interpolated_slices",)
    assert second.flags == ("combined_contours", "interpolated_mask", "interpolated_slices")
    notes = [note for note in cohort.record.notes if second.nodule_id in note]
    assert len(notes) == 2
    assert not any(first.nodule_id in note for note in notes)


def test_a_series_without_nodules_is_named(tmp_path: Path) -> None:
    with pytest.raises(EmptyCohortError, match="left out: 1 no_nodules") as raised:
        prepared(tmp_path / "c", [])
    assert [row.reason for row in raised.value.exclusions] == ["no_nodules"]
    assert list(tmp_path.iterdir()) == []  # nor a hidden folder that a next run would stumble over


def test_values_that_cannot_be_written_are_left_out(tmp_path: Path) -> None:
    nodule = made.nodule(1, [1, 1, 1])
    odd = replace(nodule, ratings={**nodule.ratings, "margin": float("nan")})
    cohort = prepared(tmp_path / "c", [odd, made.nodule(2, [1, 1, 1])])
    assert [row.nodule_id for row in cohort.nodules] == ["s_nodule_2"]
    assert "margin holds 'nan'" in cohort.exclusions[0].message
