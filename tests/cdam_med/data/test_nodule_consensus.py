"""The readers' consensus beside labelled slices: half of the readers, on the pixels of an image."""

import csv

import numpy as np
import pytest

from cdam_med.data.nodule_slices import read_nodule_consensus
from data_prep.errors import InputError

EDGE, SPACING_MM = 40, 0.5
HEADER = ["nodule_id", "patient_id", "annotation_ids", "n_slices", "pixel_spacing_mm"]


def disc(radius_mm, centre_mm=(0.0, 0.0), edge=EDGE, spacing_mm=SPACING_MM):
    """Pixels whose middle lies in a disc about a point from the middle of the square."""
    axis = (np.arange(edge) - (edge - 1) / 2) * spacing_mm
    return np.hypot(axis[:, None] - centre_mm[0], axis - centre_mm[1]) <= radius_mm


def write(folder, readers, annotation_ids="2 6 10 13"):
    with (folder / "nodules.csv").open("w", newline="", encoding="utf-8") as file:
        rows = [["a", "LIDC-IDRI-0078", annotation_ids, "1", str(SPACING_MM)]]
        csv.writer(file).writerows([HEADER, *rows])
    np.savez(folder / "slices.npz", image=np.zeros((1, 1, EDGE, EDGE)), reader_count=readers)
    return folder


def test_half_of_the_readers_are_enough(tmp_path):
    counts = sum(disc(r).astype(np.uint8) for r in (3, 4, 5, 6))[None, None]
    found = read_nodule_consensus(write(tmp_path, counts))
    assert np.array_equal(found.masks[0, 0], disc(5))
    assert found.reach_mm(0) == EDGE * SPACING_MM / 2


@pytest.mark.parametrize(
    ("annotation_ids", "radius_mm"), [("2 6 10", 4), ("2", 6), ("1 2 3 4 5 6 7 8", 5)]
)
def test_of_three_two_and_never_more_than_four_readers(tmp_path, annotation_ids, radius_mm):
    counts = sum(disc(r).astype(np.uint8) for r in (3, 4, 5, 6))[None, None]
    counts = np.minimum(counts, len(annotation_ids.split()))
    if radius_mm == 4:
        counts = sum(disc(r).astype(np.uint8) for r in (3, 4, 5))[None, None]
    found = read_nodule_consensus(write(tmp_path, counts, annotation_ids))
    assert np.array_equal(found.masks[0, 0], disc(radius_mm))


@pytest.mark.parametrize("offset_mm", [(0.0, 0.0), (2.0, -3.0)])
@pytest.mark.parametrize("edge_mm", [0.25, 0.5, 0.8])
def test_on_the_pixels_of_an_image(tmp_path, offset_mm, edge_mm):
    counts = 4 * disc(5).astype(np.uint8)[None, None]
    found = read_nodule_consensus(write(tmp_path, counts))
    mask = found.on_grid(0, 0, offset_mm=offset_mm, edge_mm=edge_mm, n=48)
    # the image's middle lies at the offset, so the nodule at its opposite
    opposite = (-offset_mm[0], -offset_mm[1])
    expected = disc(5, opposite, edge=48, spacing_mm=edge_mm)
    certain = disc(4.4, opposite, 48, edge_mm) | ~disc(5.6, opposite, 48, edge_mm)
    assert np.array_equal(mask[certain], expected[certain])


@pytest.mark.parametrize(
    ("readers", "message"),
    [
        (np.zeros((2, 1, EDGE, EDGE), np.uint8), "1 nodules, slices, rows"),
        (np.zeros((1, EDGE, EDGE), np.uint8), "holds reader_count of shape"),
    ],
)
def test_outlines_that_do_not_match_are_refused(tmp_path, readers, message):
    with pytest.raises(InputError, match=message):
        read_nodule_consensus(write(tmp_path, readers))


def test_missing_or_damaged_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="can't be read"):
        read_nodule_consensus(tmp_path)
    write(tmp_path, np.zeros((1, 1, EDGE, EDGE), np.uint8))
    np.savez(tmp_path / "slices.npz", image=np.zeros((1, 1, EDGE, EDGE)))
    with pytest.raises(InputError, match="with an array 'reader_count'"):
        read_nodule_consensus(tmp_path)
    (tmp_path / "slices.npz").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(InputError, match="can't be read"):
        read_nodule_consensus(tmp_path)
