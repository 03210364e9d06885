"""The report: tables that agree with the results, pictures of what was measured, whole or not."""

import csv
import io
import json
import math

import matplotlib as mpl
import pytest
from matplotlib.image import imread

from cdam_med.evaluation.explanation_figures import (
    curves_figure,
    maps_figure,
    randomisation_figure,
    summary_figure,
    targets_figure,
)
from cdam_med.evaluation.explanation_report import (
    FILE_NAMES,
    check_report_folder,
    write_report,
)
from cdam_med.evaluation.explanations import evaluate_explanations
from data_prep.errors import OutputError

ABOUT = {"model": "tiny", "data": "noise"}


@pytest.fixture(scope="module")
def results(nodule_model, nodules, moved_nodules):
    return evaluate_explanations(
        nodule_model,
        nodules.select(range(4)),
        ["cdam", "input_x_gradient", "centre_prior"],
        measures=[
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
    return evaluate_explanations(
        nodule_model, nodules.select(range(2)), ["attention_map"], measures=["cost"]
    )


@pytest.fixture(scope="module")
def report(results, tmp_path_factory):
    return write_report(tmp_path_factory.mktemp("out") / "a" / "report", results, about=ABOUT)


def read_csv(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_all_files_are_there(report):
    assert {path.name for path in report.iterdir()} == set(FILE_NAMES)


def test_the_long_table_is_whole(report, results):
    rows = read_csv(report / "results.csv")
    assert list(rows[0]) == [
        "estimator",
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
        if entry["mean"] is None:
            assert text["mean"] == ""
        else:
            assert entry["mean"] == row.interval.value
    assert record["statement"] == "Research only, not for diagnosis."
    assert record["about"] == ABOUT
    assert record["estimators"]["centre_prior"]["settings"] == {"width": 0.25}
    assert record["target_correlations"]["cdam"]["targets"][0] == "malignancy"
    assert len(record["pooled_pearson"]) == 3


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


def test_what_is_left_out_is_said(nodule_model, nodules, tmp_path):
    found = evaluate_explanations(
        nodule_model, nodules.select([0, 1]), ["cdam"], measures=["cost", "grid_pointing"]
    )
    text = (write_report(tmp_path / "r", found, about={}) / "summary.md").read_text()
    assert "## Left out" in text
    assert "- grid pointing of cdam: No mosaic can be made" in text


def test_pictures_show_every_estimator_and_image(results):
    summary = results.summary()
    figure = maps_figure(results)
    labels = {axes.get_label() for axes in figure.axes}
    names = ("image", "cdam", "input_x_gradient", "centre_prior")
    assert {f"{name} {index}" for name in names for index in range(4)} <= labels
    for drawn in (curves_figure(results), targets_figure(results)):
        assert {"cdam", "input_x_gradient", "centre_prior"} <= {a.get_label() for a in drawn.axes}
    assert "cdam" in {a.get_label() for a in randomisation_figure(results, summary).axes}
    shown = {axes.get_label() for axes in summary_figure(results, summary).axes}
    assert {"positive_share/shifted", "gini", "grid_pointing"} <= shown


def test_texts_stay_within_the_pictures(results):
    summary = results.summary()
    for figure in (
        maps_figure(results),
        curves_figure(results),
        targets_figure(results),
        randomisation_figure(results, summary),
        summary_figure(results, summary),
    ):
        figure.canvas.draw()
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


def test_the_users_settings_do_not_reach_the_pictures(few, tmp_path, monkeypatch):
    plain = (write_report(tmp_path / "a", few, about={}) / "maps.png").read_bytes()
    monkeypatch.setitem(mpl.rcParams, "font.size", 30.0)
    monkeypatch.setitem(mpl.rcParams, "savefig.facecolor", "red")
    changed = (write_report(tmp_path / "b", few, about={}) / "maps.png").read_bytes()
    pixels = [imread(io.BytesIO(data), format="png") for data in (plain, changed)]
    assert (pixels[0] == pixels[1]).all()


def test_pictures_of_an_earlier_run_go(results, few, tmp_path):
    folder = write_report(tmp_path / "report", results, about=ABOUT)
    write_report(folder, few, about=ABOUT)
    assert {path.name for path in folder.iterdir()} == {
        "results.csv",
        "summary.csv",
        "summary.json",
        "summary.md",
        "maps.png",
    }


def test_other_folders_are_refused(few, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match="holds something else"):
        write_report(tmp_path / "mine", few, about={})
    with pytest.raises(OutputError, match="can't be written to or made"):
        check_report_folder(tmp_path / "mine" / "thesis.txt")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    (tmp_path / "empty").mkdir()
    check_report_folder(tmp_path / "empty")
    check_report_folder(tmp_path / "new" / "deep")
    assert not (tmp_path / "new").exists()
