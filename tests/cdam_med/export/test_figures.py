"""The overview: colours, places and letters are what a radiologist reads them as."""

import dataclasses
import hashlib
import io
from itertools import combinations

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.image import imread
from matplotlib.text import Text
from scipy.spatial.transform import Rotation

from cdam_med.data.views import VIEWS, volume_to_slices
from cdam_med.explanation import chest_slices
from cdam_med.export.figures import overview_figure, overview_png
from cdam_med.targets import Target
from data_prep.crop import crop_nodule
from data_prep.drawing import DEAD_ZONE, signed_rgba
from data_prep.nodules import Nodule
from data_prep.volume import CTVolume

EDGE = 32
MM = 2.0
# radiological convention: (image column, image row) in mm of voxel (i, j, k), and the letters
# at the left, right, top and bottom edge
DISPLAY = {
    "axial": (lambda i, j, k: (EDGE - 1 - i, EDGE - 1 - j), "RLAP"),
    "coronal": (lambda i, j, k: (EDGE - 1 - i, EDGE - 1 - k), "RLSI"),
    "sagittal": (lambda i, j, k: (EDGE - 1 - j, EDGE - 1 - k), "APSI"),
}
CENTER = EDGE // 2
# each lies in the three central slices' own block of 4 voxels
POSITIVE = {"axial": (26, 6, 16), "coronal": (26, 16, 6), "sagittal": (16, 6, 26)}
NEGATIVE = {"axial": (10, 26, 16), "coronal": (10, 16, 26), "sagittal": (16, 26, 10)}


def pixels(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    buffer.seek(0)
    return np.round(imread(buffer, format="png")[..., :3] * 255)


def axes_named(figure, label):
    (axes,) = [axes for axes in figure.axes if axes.get_label() == label]
    return axes


def pixel_at(image, axes, column, row):
    """Pixel of the picture at the centre of a voxel of a slice."""
    x, y = axes.transData.transform(((column + 0.5) * MM, (row + 0.5) * MM))
    return image[int(image.shape[0] - y), int(x)]


@pytest.fixture(scope="module")
def simple_figure(make_case):
    return overview_figure(make_case(targets=1))


@pytest.fixture
def asymmetric_case(make_case):
    """Flat CT, a map of one positive and one negative block in each view, no outline."""
    content = make_case(targets=1, is_annotated=False)
    content.crop.hu[:] = -850.0
    scores = np.zeros(content.crop.hu.shape, np.float32)
    for view in VIEWS:
        for (i, j, k), value in ((POSITIVE[view], 0.5), (NEGATIVE[view], -0.5)):
            scores[i - 2 : i + 3, j - 2 : j + 3, k - 2 : k + 3] = value
    set_map(content, "axial", scores)
    return content


def set_map(content, view, scores):
    """Make an array the map of the first target from the slices of a view."""
    content.attribution.views[view].scores[:, 0] = volume_to_slices(scores, VIEWS[view])


@pytest.mark.parametrize("view", DISPLAY)
def test_positive_is_orange_and_negative_blue_where_they_belong(asymmetric_case, view):
    figure = overview_figure(asymmetric_case)
    image = pixels(figure)
    place, _ = DISPLAY[view]
    bare = axes_named(figure, f"{view} ct")
    mapped = axes_named(figure, f"{view} malignancy")
    red, green, blue = pixel_at(image, mapped, *place(*POSITIVE[view]))
    assert red > green > blue
    assert red - blue > 100
    red, green, blue = pixel_at(image, mapped, *place(*NEGATIVE[view]))
    assert blue > green > red
    assert blue - red > 70
    for voxel in (POSITIVE[view], NEGATIVE[view]):
        assert len(set(pixel_at(image, bare, *place(*voxel)))) == 1
    # the same places mirrored carry no colour, so no flip goes unnoticed
    for column, row in (place(*POSITIVE[view]), place(*NEGATIVE[view])):
        for mirrored in ((EDGE - 1 - column, row), (column, EDGE - 1 - row)):
            grey = pixel_at(image, mapped, *mirrored)
            assert len(set(grey)) == 1
            np.testing.assert_array_equal(grey, pixel_at(image, bare, *mirrored))


def test_the_patients_left_is_on_the_right_of_the_image(asymmetric_case):
    i, j, k = 4, 27, 16  # low i: far from R, so towards the patient's left; high j: in front
    asymmetric_case.crop.hu[i - 1 : i + 2, j - 1 : j + 2, k - 1 : k + 2] = 40.0
    figure = overview_figure(asymmetric_case)
    axes = axes_named(figure, "axial ct")
    image = pixels(figure)
    box = axes.get_window_extent()
    top = round(image.shape[0] - box.y1)
    panel = image[top : top + round(box.height), round(box.x0) : round(box.x1), 0]
    # the soft tissue of the marker alone, not the white of letters
    rows, columns = np.nonzero((panel > 200) & (panel < 250))
    assert np.median(columns) > 0.8 * panel.shape[1]
    assert np.median(rows) < 0.2 * panel.shape[0]


@pytest.mark.parametrize("view", DISPLAY)
@pytest.mark.parametrize("row", ["ct", "malignancy"])
def test_letters_stand_at_the_edges_they_name(simple_figure, view, row):
    axes = axes_named(simple_figure, f"{view} {row}")
    places = {}
    for text in axes.texts:
        if len(text.get_text()) == 1:
            x0, y0 = axes.transAxes.inverted().transform(text.get_window_extent().min)
            x1, y1 = axes.transAxes.inverted().transform(text.get_window_extent().max)
            assert min(x0, y0) >= 0
            assert max(x1, y1) <= 1
            places[text.get_text()] = ((x0 + x1) / 2, (y0 + y1) / 2)
    left, right, top, bottom = DISPLAY[view][1]
    assert set(places) == {left, right, top, bottom}
    assert places[left][0] < 0.1
    assert places[right][0] > 0.9
    assert places[top][1] > 0.9
    assert places[bottom][1] < 0.1


def test_the_scale_bar_is_as_long_as_it_says(simple_figure):
    axes = axes_named(simple_figure, "axial ct")
    (line,) = axes.lines
    (label,) = [text.get_text() for text in axes.texts if text.get_text().endswith(" mm")]
    x0, x1 = axes.transData.transform(line.get_xydata())[:, 0]
    millimetres = (x1 - x0) / axes.get_window_extent().width * EDGE * MM
    assert millimetres == pytest.approx(float(label.removesuffix(" mm")))


def test_the_outline_is_drawn_round_the_mask_and_nowhere_else(make_case):
    content = make_case(targets=1)
    without = dataclasses.replace(content, crop=dataclasses.replace(content.crop, mask=None))
    figure = overview_figure(content)
    axes = axes_named(figure, "axial malignancy")
    changed = np.any(pixels(figure) != pixels(overview_figure(without)), axis=-1)
    box = axes.get_window_extent()
    top = round(changed.shape[0] - box.y1)
    panel = changed[top : top + round(box.height), round(box.x0) : round(box.x1)]
    rows, columns = np.nonzero(panel)
    voxels = EDGE / panel.shape[0]
    radius = np.hypot((rows + 0.5) * voxels - CENTER, (columns + 0.5) * voxels - CENTER)
    assert radius.min() > 3.5
    assert radius.max() < 6.0
    angles = np.arctan2(rows - rows.mean(), columns - columns.mean())
    assert np.diff(np.sort(angles)).max() < 0.1  # closed all around


def test_the_bar_names_the_unit_and_the_limit(make_case):
    content = make_case()
    figure = overview_figure(content)
    units = {"malignancy": "logit", "margin": "rating points", "diameter": "mm"}
    for result in content.maps:
        axes = axes_named(figure, f"bar {result.target.name}")
        assert axes.get_ylim() == (-result.limit, result.limit)
        if result.target.name in units:
            (text,) = axes.texts
            assert text.get_text() == f"score of a patch, {units[result.target.name]}"


def test_the_page_says_what_must_be_said(make_case):
    text = "\n".join(text.get_text() for text in overview_figure(make_case()).findobj(Text))
    assert (
        "Research only, not for diagnosis. LIDC malignancy ratings are radiologists' opinions."
        in text
    )
    assert "CDAM of the malignancy logit" in text
    said = " ".join(text.split())
    assert (
        "Orange above zero, blue below. A number that this test made up. It means nothing." in said
    )
    assert "8 x 8 mm" in text
    assert "3.5 (3 to 4)" in text
    assert "left half as over dark lung, right half as over bright tissue" in said
    assert "mediastinal window W400 L40" in said
    for claim in ("raises", "lowers"):
        assert claim not in said


def test_the_title_tells_series_apart_and_names_none(make_case):
    content = make_case(targets=1)
    uid = content.source.series_uid
    digits = hashlib.sha256(uid.encode()).hexdigest()[:8]
    assert f"scan_n1, series {digits}" in words_of(content)
    assert uid not in words_of(content)
    other = dataclasses.replace(content.source, series_uid="1.2.3")
    assert digits not in words_of(dataclasses.replace(content, source=other))


def test_malignancy_is_a_logit_beside_its_probability(make_case):
    content = make_case(targets=2)
    predictions = {**content.predictions, "malignancy": -1.1, "malignancy_probability": 0.25}
    words = words_of(dataclasses.replace(content, predictions=predictions)).splitlines()
    assert words[words.index("Malignancy logit") + 1] == "\N{MINUS SIGN}1.10"
    assert words[words.index("Malignancy probability") + 1] == "25%"


def test_what_the_colours_do_not_reach_is_counted(make_case):
    content = make_case(targets=1)
    scores = np.zeros(content.crop.hu.shape, np.float32)
    scores[:16] = 0.1
    scores[0, 0, :7] = -1.17
    set_map(content, "axial", scores)
    assert "7 voxels beyond 0.1, largest \N{MINUS SIGN}1.2" in words_of(content)


@pytest.mark.parametrize("view", ["coronal", "sagittal"])
def test_all_planes_show_the_map_that_is_handed_over(asymmetric_case, view):
    # the third row alone has the map of the plane's own slices
    set_map(asymmetric_case, view, np.full((EDGE,) * 3, 0.5, np.float32))
    figure = overview_figure(asymmetric_case)
    image = pixels(figure)
    for row, is_coloured in ((f"{view} malignancy", False), (f"{view} malignancy view", True)):
        red, _, blue = pixel_at(image, axes_named(figure, row), 2, 2)
        assert (red > blue) == is_coloured


def test_the_mediastinal_window_tells_soft_tissues_apart(asymmetric_case):
    hu = asymmetric_case.crop.hu
    hu[:] = 0.0
    hu[12:20] = 100.0
    figure = overview_figure(asymmetric_case)
    image = pixels(figure)
    for row, window in (("ct", 1500), ("mediastinum", 400)):
        axes = axes_named(figure, f"axial {row}")
        steps = pixel_at(image, axes, 16, 26) - pixel_at(image, axes, 4, 26)
        np.testing.assert_allclose(steps, 100 / window * 255, atol=1.5)


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("angle", [0, 12])
def test_the_chest_shows_where_the_crop_lies(make_case, axis, angle):
    # a scan with reversed slices and columns to the left; a bright block is the crop
    cosines = Rotation.from_euler("z", angle, degrees=True).as_matrix() @ np.diag([-1, 1, -1])
    affine = np.eye(4)
    affine[:3, :3] = cosines * [2.0, 3.0, 4.0]
    shape, middle = (60, 50, 40), np.array([30.2, 30.3, 12.1])  # no edge on a voxel's centre
    middle[axis] += 8.0
    volume = CTVolume(np.full(shape, -1000, np.int16), affine, "1.2.3")
    center = affine[:3, :3] @ middle
    crop = crop_nodule(volume, Nodule("n", center), size_mm=24.0, spacing_mm=2.0)
    hu = np.full(shape, -1000, np.int16)
    mm = (np.moveaxis(np.indices(shape), 0, -1) - middle) * [2.0, 3.0, 4.0]
    hu[(np.abs(mm) < 12).all(axis=-1)] = 500
    chest = chest_slices(dataclasses.replace(volume, hu=hu), crop)
    figure = overview_figure(dataclasses.replace(make_case(targets=1), chest=chest))
    assert [each.view.name for each in chest] == ["axial", "coronal"]
    for each in chest:
        axes = axes_named(figure, f"chest {each.view.name}")
        (box,) = axes.patches
        (x, y), (height, width) = box.get_xy(), each.pixel_mm
        rows, columns = (np.arange(count) + 0.5 for count in each.hu.shape)
        in_rows = (y < rows * height) & (rows * height < y + box.get_height())
        in_columns = (x < columns * width) & (columns * width < x + box.get_width())
        inside = in_rows[:, None] & in_columns
        np.testing.assert_array_equal(inside, each.hu == 500)


def words_of(content):
    return "\n".join(text.get_text() for text in overview_figure(content).findobj(Text))


ATTENTION = {"is_signed": False, "path": "attention matrices"}
CONTROL = {"path": "no model"}


def test_an_unsigned_map_has_one_side(make_case):
    content = make_case(targets=2, **ATTENTION)
    figure = overview_figure(content)
    for result in content.maps:
        axes = axes_named(figure, f"bar {result.target.name}")
        assert axes.get_ylim() == (0, result.limit)
        assert axes.get_yticklabels()[0].get_text() == "0"
        (picture,) = axes.images
        colours = picture.get_array()
        assert (colours[..., 0] >= colours[..., 2]).all()  # no blue
    text = words_of(content)
    said = " ".join(text.split())
    assert "The stronger the colour, the larger the score." in said
    assert "score of a patch\n" in text
    for claim in ("score of a patch, ", "above zero", "blue"):
        assert claim not in said


@pytest.mark.parametrize("is_signed", [True, False])
def test_a_control_claims_nothing_of_the_model(make_case, is_signed):
    text = words_of(make_case(targets=2, is_signed=is_signed, **CONTROL))
    assert "CDAM (a control)" in text
    assert "must do better than this control" in text
    assert "score of a patch, " not in text
    for claim in ("raises", "lowers", "of the malignancy logit", "leans on"):
        assert claim not in text


def test_squares_of_a_pixel_method_are_pixels(make_case):
    content = make_case(targets=1)
    fine = make_case(targets=1, resolution="pixel", patch_size_mm=(MM, MM))
    text = words_of(fine)
    assert "Squares are the slice's pixels, 2 x 2 mm." in text
    assert "score of a pixel, logit" in text
    assert "CDAM of the malignancy logit" in text
    assert "the model's patches" not in text
    assert "Squares are the model's patches, 8 x 8 mm." in words_of(content)


@pytest.mark.parametrize(
    "options",
    [ATTENTION, {"targets": 1, "is_annotated": False, **CONTROL}],
    ids=["unsigned", "control at a bare point"],
)
def test_no_text_overlaps_of_other_methods(make_case, options):
    check_texts(overview_figure(make_case(**options)))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"views": ("axial",)},
        {"views": ("coronal", "sagittal"), "targets": 4},
        {"targets": 1, "is_annotated": False},
    ],
    ids=["all", "one view", "two views", "bare point"],
)
def test_no_text_overlaps_another_or_leaves_the_page(make_case, options):
    content = make_case(**options)
    model = dataclasses.replace(content.model, name="organisation/" + "a-very-long-name-" * 9)
    # an oblique scan has the longest titles
    affine = content.crop.affine.copy()
    affine[:3, :3] @= Rotation.from_euler("xyz", [14, -12, 13], degrees=True).as_matrix()
    crop = dataclasses.replace(content.crop, affine=affine)
    page = dataclasses.replace(content, crop=crop, model=model)
    check_texts(overview_figure(page))


def check_texts(figure):
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    texts = list(figure.texts)
    for axes in figure.axes:
        texts += [child for child in axes.get_children() if isinstance(child, Text)]
        texts += axes.get_yticklabels() if axes.axison else []
    boxes = [
        (text.get_text(), text.get_window_extent(renderer)) for text in texts if text.get_text()
    ]
    assert len(boxes) > 20
    width, height = figure.bbox.size
    for text, box in boxes:
        assert box.x0 >= 0, text
        assert box.x1 <= width, text
        assert box.y0 >= 0, text
        assert box.y1 <= height, text
    for (one, a), (other, b) in combinations(boxes, 2):
        assert not a.padded(-1).overlaps(b.padded(-1)), (one, other)


def test_the_users_own_settings_do_not_reach_the_page(make_case):
    content = make_case(targets=2)
    plain = overview_png(content)
    with mpl.rc_context({"image.origin": "lower", "font.size": 30, "savefig.dpi": 30}):
        before = dict(mpl.rcParams)
        odd = overview_png(content)
        assert dict(mpl.rcParams) == before
    assert plain == odd


def test_strings_are_printed_as_they_are(make_case):
    content = make_case(targets=1)
    model = dataclasses.replace(content.model, name="$\\frac{1}$ 模型")
    text = "\n".join(
        text.get_text()
        for text in overview_figure(dataclasses.replace(content, model=model)).findobj(Text)
    )
    assert "$\\frac{1}$ \\u6a21\\u578b" in text


def test_a_map_of_zeros_is_drawn_without_colour(asymmetric_case):
    set_map(asymmetric_case, "axial", np.zeros((EDGE,) * 3, np.float32))
    figure = overview_figure(asymmetric_case)
    image = pixels(figure)
    box = axes_named(figure, "axial malignancy").get_window_extent()
    top = round(image.shape[0] - box.y1)
    panel = image[top : top + round(box.height), round(box.x0) : round(box.x1)]
    assert np.ptp(panel, axis=-1).max() == 0


def test_colours_are_symmetric_graded_and_clear_at_zero():
    strengths = np.array([0.0, 0.9 * DEAD_ZONE, 1.1 * DEAD_ZONE, 0.5, 1.0, 3.0])
    raises = signed_rgba(strengths * 2.0, 2.0)
    lowers = signed_rgba(-strengths * 2.0, 2.0)
    np.testing.assert_array_equal(raises[:, 3], lowers[:, 3])
    assert raises[:2, 3].tolist() == [0.0, 0.0]
    assert np.all(np.diff(raises[1:5, 3]) > 0)
    np.testing.assert_array_equal(raises[4], raises[5])
    assert np.all(raises[2:, 0] > raises[2:, 2])
    assert np.all(lowers[2:, 0] < lowers[2:, 2])


def test_names_of_any_text_are_the_same_everywhere_on_the_page(make_case):
    content = make_case(targets=2)
    names = ["CT of L\u00e4sion", "\u7ed3\u8282 \x1b[31m"]
    case = dataclasses.replace(
        content,
        targets=tuple(Target(name, "output", "an output of the model", "", "") for name in names),
        attribution=dataclasses.replace(content.attribution, targets=tuple(names)),
        predictions={names[0]: -0.0123456, names[1]: 1234.5},
    )
    page = overview_figure(case)
    said = [text.get_text() for text in page.texts]
    assert "CT of L\u00e4sion" in said
    assert any(r"\u7ed3\u8282 ?[31m" in text for text in said)
    assert "\N{MINUS SIGN}0.0123" in said
    titles = [axes.get_title(loc="left") for axes in page.axes]
    assert any(r"\u7ed3\u8282 ?[31m 1.23e+03" in title for title in titles)
