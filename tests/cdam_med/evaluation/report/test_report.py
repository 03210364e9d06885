"""The report: tables that agree with the results, pictures of what was measured, whole or not."""

import csv
import dataclasses
import io
import json
import math
import shutil
from dataclasses import dataclass, replace
from typing import ClassVar

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.image import imread

from cdam_med.attribution.cdam import Cdam
from cdam_med.attribution.registry import METHODS, estimator
from cdam_med.evaluation.evaluate import evaluate
from cdam_med.evaluation.report import (
    SUMMARY_COLUMNS,
    write_report,
)
from cdam_med.evaluation.report.figures import (
    curves_figure,
    maps_figure,
    pictures,
    randomisation_figure,
    summary_figure,
    targets_figure,
)
from cdam_med.evaluation.report.page import page
from cdam_med.evaluation.results import LeftOut, Row
from data_prep.errors import OutputError

FILE_NAMES = {
    "results.csv",
    "summary.csv",
    "differences.csv",
    "summary.json",
    "summary.md",
    "maps.png",
    "summary.png",
    "curves.png",
    "targets.png",
    "randomisation.png",
    ".cdam-med-report.sha256",
}
ABOUT = {"model": "tiny", "data": "noise"}


@pytest.fixture(scope="module")
def results(nodule_model, nodules, moved_nodules):
    return evaluate(
        nodule_model,
        nodules.select(range(4)),
        ["cdam", "input_x_gradient", "centre_prior"],
        metrics=[
            "cost",
            "mif_lif",
            "compactness",
            "class_sensitivity",
            "localisation",
            "localisation_shifted",
            "grid_pointing",
            "randomisation",
        ],
        shifted=moved_nodules.select(range(3)),
    )


@pytest.fixture(scope="module")
def few(nodule_model, nodules):
    """Only one measure, so that most pictures have nothing to show."""
    return evaluate(nodule_model, nodules.select(range(2)), ["attention_map"], metrics=["cost"])


@pytest.fixture(scope="module")
def report(results, tmp_path_factory):
    return write_report(tmp_path_factory.mktemp("out") / "a" / "report", results, about=ABOUT)


def page_of(results, about=ABOUT):
    """Return the page alone, without the pictures."""
    return page(results, results.summary(), about, "cdam", ())


def read_csv(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_all_files_are_there(report):
    assert {path.name for path in report.iterdir()} == FILE_NAMES


def test_the_long_table_is_whole(report, results):
    rows = read_csv(report / "results.csv")
    assert list(rows[0]) == [
        "method",
        "metric",
        "resolution",
        "image",
        "group",
        "label",
        "value",
    ]
    assert len(rows) == len(results.rows)
    for text, row in zip(rows, results.rows, strict=True):
        assert text["metric"] == row.metric
        if math.isnan(row.value):
            assert text["value"] == ""
        else:
            assert float(text["value"]) == pytest.approx(row.value, rel=1e-5)


def test_tables_for_machines_agree(report, results):
    summary = results.summary()
    rows = read_csv(report / "summary.csv")
    record = json.loads(
        (report / "summary.json").read_text(), parse_constant=lambda word: pytest.fail(word)
    )
    assert len(rows) == len(record["summary"]) == len(summary)
    for text, entry, row in zip(rows, record["summary"], summary, strict=True):
        assert entry["metric"] == text["metric"] == row.metric
        interval, difference = row.interval, row.difference
        expected = {"mean": interval.value, "low": interval.low, "high": interval.high}
        expected |= {"images": interval.images, "groups": interval.groups}
        if difference is not None:
            expected |= {"difference": difference.value, "difference_low": difference.low}
            expected |= {"difference_high": difference.high}
            expected |= {"difference_other_side": difference.other_side}
        for name in SUMMARY_COLUMNS[4:]:
            value = expected.get(name, math.nan)
            if math.isnan(value):
                assert (entry[name], text[name]) == (None, "")
            else:
                assert entry[name] == value
                assert float(text[name]) == pytest.approx(value, rel=1e-5)
    assert record["statement"] == "Research only, not for diagnosis."
    assert record["about"] == ABOUT
    assert record["methods"]["centre_prior"]["settings"] == {"width": 0.25}
    assert record["target_correlations"]["cdam"]["targets"][0] == "malignancy"
    assert len(record["pooled_pearson"]) == 3
    matrix = record["target_correlations"]["cdam"]
    for end in ("mean", "low", "high", "images"):
        np.testing.assert_array_equal(matrix[end], results.matrices["cdam"][end])
    curves = record["curves"]["cdam"]
    for key, values in results.curves["cdam"].items():
        assert curves[key] == values.tolist()
    assert curves.keys() >= {"most_first_low", "least_first_high"}


def test_differences_are_a_table(report, results):
    rows, expected = read_csv(report / "differences.csv"), results.differences()
    assert len(rows) == len(expected)
    for text, pair in zip(rows, expected, strict=True):
        assert (text["one"], text["other"]) == (pair.one, pair.other)
        assert (text["metric"], text["resolution"]) == (pair.metric, pair.resolution)
        for column, end in (("difference", "value"), ("low", "low"), ("high", "high")):
            value = getattr(pair.difference, end)
            if math.isnan(value):
                assert text[column] == ""
            else:
                assert float(text[column]) == pytest.approx(value, rel=1e-5)


def test_the_page_for_people(report):
    text = (report / "summary.md").read_text(encoding="utf-8")
    assert "Research only, not for diagnosis." in text
    assert "CC BY 3.0" in text
    assert "- model: tiny" in text
    for section in ("Correctness", "Compactness", "Class sensitivity", "Localisation", "Cost"):
        assert f"\n## {section}\n" in text
    assert "malignant only" in text
    assert "![maps.png](maps.png)" in text
    for table in text.split("\n\n"):
        if table.startswith("|"):
            assert len({line.count("|") for line in table.splitlines()}) == 1


def cells_of(text, start):
    """Return the cells of the first table behind some words, by row and column."""
    lines = [line for line in text[text.index(start) :].splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    end = next((n for n, row in enumerate(rows[2:], 2) if row[0] in ("", "Method")), len(rows))
    return {row[0]: dict(zip(rows[0][1:], row[1:], strict=True)) for row in rows[2:end]}


def test_cells_hold_the_figures(report, results):
    text = (report / "summary.md").read_text(encoding="utf-8")
    table = cells_of(text, "## Compactness")
    rows = {(r.method, r.metric, r.resolution, r.label): r for r in results.summary()}
    for each in results.methods:
        interval = rows[each.name, "gini", "patch", ""].interval
        cell = table[each.title]["Gini's index ↑"]
        assert cell.startswith(f"{interval.value:.3g} [{interval.low:.3g}, {interval.high:.3g}]")
    assert "**Groups (patients, or images): 2;" in text


@pytest.mark.parametrize(("patients", "is_marked"), [(5, False), (6, True)])
def test_asterisks_are_of_differences_between_patients(results, patients, is_marked):
    rows = [
        Row(name, "gini", "patch", f"image {index}", f"p{index % patients}", "", value)
        for name, value in (("cdam", 0.5), ("centre_prior", 0.7))
        for index in range(8)
    ]
    changed = dataclasses.replace(results, rows=tuple(rows))
    text = page_of(changed)
    assert f"**Groups (patients, or images): {patients};" in text
    cell = cells_of(text, "## Compactness")["Centre prior"]["Gini's index ↑"]
    assert cell == "0.7 [0.7, 0.7]" + " *" * is_marked
    assert f"Images: 8, groups: {patients}." in text


def test_without_the_reference_nothing_is_said_of_it(few, report):
    assert "asterisk" not in page_of(few)
    assert "An asterisk marks a difference from CDAM" in (report / "summary.md").read_text()


def test_matrix_of_targets_and_pool_are_on_the_page(report, results):
    text = (report / "summary.md").read_text(encoding="utf-8")
    section = text[text.index("## Correlation between the maps of two targets") :]
    for each in results.methods:
        matrix = results.matrices[each.name]
        table = cells_of(section, f"\n{each.title}:")
        assert len(table) == 8
        row, column = (results.output_names.index(name) for name in ("diameter", "malignancy"))
        ends = [matrix[key] for key in ("mean", "low", "high")]
        value, low, high = (f"{end[row, column]:.3g}" for end in ends)
        assert table["diameter"]["malignancy"] == f"{value} [{low}, {high}]"
        assert table["diameter"]["texture"] == ""  # each pair once
    interval = results.pooled_correlations()["cdam", "centre_prior"]
    cell = cells_of(text, "all patches in one pool")["Centre prior"]["CDAM"]
    assert cell.startswith(f"{interval.value:.3g} [")


def test_fewer_images_are_said(nodule_model, nodules):
    """A map of which nothing is positive has no share of it, and another estimator's has."""
    half = nodules.select(range(4))

    @dataclass(frozen=True)
    class Against(Cdam):
        name: ClassVar[str] = "against"
        title: ClassVar[str] = "Against"

        def __call__(self, model, images, targets=None, *, seed=0):
            found = super().__call__(model, images, targets, seed=seed)
            scores = found.scores.clone()
            scores[0] = -scores[0].abs() - 1
            return replace(found, scores=scores)

    found = evaluate(nodule_model, half, ["centre_prior", Against()], metrics=["localisation"])
    text = page_of(found)
    table = cells_of(text, "## Localisation")
    assert "(n = 3)" in table["Against"]["Positive relevance inside ↑"]
    assert "(n =" not in table["Centre prior"]["Positive relevance inside ↑"]
    assert "(n =" not in table["Against"]["AUROC ↑"]


def test_what_is_left_out_is_said(nodule_model, nodules):
    found = evaluate(
        nodule_model, nodules.select([0, 1]), ["cdam"], metrics=["cost", "grid_pointing"]
    )
    text = page_of(found)
    assert "## Left out" in text
    assert "- grid pointing of cdam: No mosaic can be made" in text


def test_pictures_show_every_method_and_image(results):
    summary = results.summary()
    figure = maps_figure(results)
    labels = {axes.get_label() for axes in figure.axes}
    names = ("image", "cdam", "input_x_gradient", "centre_prior")
    assert {f"{name} {index}" for name in names for index in range(4)} <= labels
    for drawn in (curves_figure(results), targets_figure(results)):
        assert {"cdam", "input_x_gradient", "centre_prior"} <= {a.get_label() for a in drawn.axes}
    assert "cdam" in {a.get_label() for a in randomisation_figure(results, summary).axes}
    shown = {axes.get_label() for axes in summary_figure(results, summary).axes}
    at_patches = {row.metric for row in results.rows if row.resolution == "patch"}
    assert shown == {name for name in at_patches if not name.startswith("randomised")}
    assert {"best_dice", "entropy", "mif_lif/signed, blur", "relevance_share/shifted"} <= shown


def test_the_summary_shows_where_cdam_loses_beside_where_it_wins(results):
    values = {"gini": (0.5, 0.8, 0.2), "entropy": (0.5, 0.8, 0.2), "other_images": (0.5, 0.8, 0.2)}
    names = [each.name for each in results.methods]
    rows = tuple(
        Row(name, metric, "patch", f"image {image}", f"patient {image}", "", value + image / 100)
        for metric, of_estimators in values.items()
        for name, value in zip(names, of_estimators, strict=True)
        for image in range(8)
    )
    found = replace(results, rows=rows)
    figure = summary_figure(found, found.summary())
    colours = {}
    for axes in figure.axes:
        assert ("beats 1, loses to 1" in axes.get_title()) == (axes.get_label() != "other_images")
        dots = {
            line.get_ydata()[0]: line.get_color()
            for line in axes.lines
            if len(line.get_xdata()) == 1
        }
        colours[axes.get_label()] = [dots[number] for number in range(3)]
    (reference, better, worse), grey = colours["gini"], colours["other_images"][1]
    assert len({reference, better, worse, grey}) == 4
    assert colours["entropy"] == [reference, worse, better]
    assert colours["other_images"] == [reference, grey, grey]


def test_one_image_is_drawn_once(few):
    one = replace(few, examples=few.examples.select([0]))
    labels = [axes.get_label() for axes in maps_figure(one).axes]
    assert labels == ["image 0", "attention_map 0"]


def test_texts_stay_within_the_pictures(results):
    summary = results.summary()
    one = replace(results, examples=results.examples.select([0]))
    for figure in (
        maps_figure(results),
        maps_figure(one),
        curves_figure(results),
        targets_figure(results),
        randomisation_figure(results, summary),
        summary_figure(results, summary),
    ):
        figure.draw_without_rendering()
        width, height = figure.canvas.get_width_height()
        texts = [*figure.texts, *(text for axes in figure.axes for text in axes.texts)]
        texts += [axes.title for axes in figure.axes]
        for text in texts:
            if text and text.get_text():
                box = text.get_window_extent()
                assert box.x0 >= 0, text.get_text()
                assert box.y0 >= 0, text.get_text()
                assert box.x1 <= width, text.get_text()
                assert box.y1 <= height, text.get_text()


def test_titles_of_all_methods_do_not_overlap(results, monkeypatch):
    monkeypatch.setitem(mpl.rcParams, "font.size", 8.0)  # that of the pictures
    every = tuple(estimator(name) for name in METHODS)
    curves = next(iter(results.curves.values()))
    matrix = next(iter(results.matrices.values()))
    rows = tuple(
        row._replace(method=each.name)
        for row in results.rows
        if row.method == "cdam" and row.metric.startswith(("randomised", "gini", "auroc"))
        for each in every
    )
    full = replace(
        results,
        methods=every,
        rows=rows,
        curves=dict.fromkeys(METHODS, curves),
        matrices=dict.fromkeys(METHODS, matrix),
    )
    for figure in (
        curves_figure(full),
        targets_figure(full),
        randomisation_figure(full, full.summary()),
        summary_figure(full, full.summary()),
    ):
        figure.draw_without_rendering()
        at_the_side = [text for axes in figure.axes for text in axes.get_yticklabels()]
        assert all(text.get_window_extent().x0 >= 0 for text in at_the_side if text.get_text())
        titles = [axes.title.get_window_extent() for axes in figure.axes if axes.get_title()]
        titles += [text.get_window_extent() for text in figure.texts]
        for number, one in enumerate(titles):
            assert not any(one.overlaps(other) for other in titles[:number])


def test_the_users_settings_do_not_reach_the_pictures(few, monkeypatch):
    plain = pictures(few, few.summary())["maps.png"]
    monkeypatch.setitem(mpl.rcParams, "font.size", 30.0)
    monkeypatch.setitem(mpl.rcParams, "savefig.facecolor", "red")
    changed = pictures(few, few.summary())["maps.png"]
    pixels = [imread(io.BytesIO(data), format="png") for data in (plain, changed)]
    assert (pixels[0] == pixels[1]).all()


def test_names_from_outside_cannot_change_the_page(few):
    name = "CT\x1b[31m\n# |forged|\u202e <img src=x> [a](b)"
    changed = replace(few, left_out=(LeftOut("cdam", "cost", name),))
    text = page_of(changed, about={"data": name})
    shown = r"CT?\[31m?# \|forged\|? \<img src=x\> \[a\](b)"
    assert f"\n- data: {shown}\n" in text
    assert f": {shown}\n" in text[text.index("## Left out") :]
    assert all(line.isprintable() for line in text.split("\n"))


def test_a_report_is_replaced_only_when_asked(report, few, tmp_path):
    folder = tmp_path / "report"
    shutil.copytree(report, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(OutputError, match=r"is there already; .*overwrite=True"):
        write_report(folder, few, about=ABOUT)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    write_report(folder, few, about=ABOUT, overwrite=True)
    # a picture of an earlier run would be taken for one of this
    assert {path.name for path in folder.iterdir()} == {
        "results.csv",
        "summary.png",
        "summary.csv",
        "differences.csv",
        "summary.json",
        "summary.md",
        "maps.png",
        ".cdam-med-report.sha256",
    }


def test_other_folders_are_refused(few, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="isn't a report folder of cdam-med"):
            write_report(tmp_path / "mine", few, about={}, overwrite=overwrite)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
