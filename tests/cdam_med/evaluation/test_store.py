"""What is kept of a run: one that is broken off goes on, and nothing else is believed."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from cdam_med.attribution.cdam import Cdam
from cdam_med.attribution.registry import estimator
from cdam_med.evaluation.evaluate import evaluate
from cdam_med.evaluation.report import write_report
from cdam_med.evaluation.store import Store
from data_prep.disk import OutputWarning
from data_prep.errors import OutputError

METRICS = ("compactness", "localisation")
EVERY_KIND = (*METRICS, "class_sensitivity", "mif_lif", "grid_pointing", "localisation_shifted")
"""Metrics that bring rows, matrices, curves, mosaics, and one that the examples don't allow."""
METHODS = ("cdam", "input_x_gradient", "random")


class BrokenOffError(Exception):
    """As if the process were killed."""


@dataclass(frozen=True)
class Short(Cdam):
    """Has not enough memory the first time."""

    name: ClassVar[str] = "short"
    calls: ClassVar[list[int]] = []

    def __call__(self, model, images, targets=None, *, seed=0):
        self.calls.append(len(images))
        if len(self.calls) == 1:
            raise RuntimeError("not enough memory")
        return super().__call__(model, images, targets, seed=seed)


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def evaluated(model, examples, folder, *, methods=METHODS, until=None, **options):
    """Evaluate with a store; broken off before the maps of the method with the title `until`."""

    def progress(done, total, what):
        if what == f"{until}: maps":
            raise BrokenOffError

    store = Store(folder)
    options = {"metrics": METRICS} | options
    results = evaluate(model, examples, methods, store=store, progress=progress, **options)
    return results, store


@pytest.fixture
def broken_off(nodule_model, nodules, tmp_path):
    """What is left of a run that ended before its third method."""
    with pytest.raises(BrokenOffError):
        evaluated(nodule_model, nodules, tmp_path / "kept", until="Random")
    return tmp_path / "kept"


def test_a_run_goes_on_where_it_was(nodule_model, nodules, tmp_path):
    few, kept = nodules.select(range(4)), tmp_path / "kept"
    whole = evaluate(nodule_model, few, METHODS, metrics=EVERY_KIND)
    with pytest.raises(BrokenOffError):
        evaluated(nodule_model, few, kept, until="Random", metrics=EVERY_KIND)
    results, store = evaluated(nodule_model, few, kept, metrics=EVERY_KIND)
    assert store.found == ["cdam", "input_x_gradient"]
    for name, each in (("whole", whole), ("parts", results)):
        write_report(tmp_path / name, each, about={})
    assert content(tmp_path / "parts") == content(tmp_path / "whole")
    store.clear()
    assert not kept.exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda nodules: {"examples": dataclasses.replace(nodules, images=nodules.images * 0.9)},
        lambda nodules: {"examples": nodules.select(range(len(nodules) - 1))},
        lambda nodules: {"examples": dataclasses.replace(nodules, masks=~nodules.masks)},
        lambda nodules: {"examples": dataclasses.replace(nodules, groups=nodules.ids)},
        lambda nodules: {"shifted": nodules},
        lambda nodules: {"seed": 1},
        lambda nodules: {"metrics": METRICS[::-1]},
    ],
    ids=["images", "fewer", "masks", "groups", "shifted", "seed", "metrics"],
)
def test_another_run_takes_nothing_over(nodule_model, nodules, broken_off, change):
    options = {"examples": nodules} | change(nodules)
    _, store = evaluated(nodule_model, folder=broken_off, methods=["cdam"], **options)
    assert store.found == []
    _, again = evaluated(nodule_model, folder=broken_off, methods=["cdam"], **options)
    assert again.found == ["cdam"]


def test_another_model_takes_nothing_over(nodule_model, nodules, tmp_path):
    evaluated(nodule_model, nodules, tmp_path, methods=["cdam"])
    bias = nodule_model.heads.state_dict()
    name = next(key for key in bias if key.endswith("bias"))
    before = bias[name].clone()
    bias[name].add_(1.0)
    try:
        _, store = evaluated(nodule_model, nodules, tmp_path, methods=["cdam"])
    finally:
        bias[name].copy_(before)
    assert store.found == []


def test_other_settings_take_nothing_over(nodule_model, nodules, tmp_path):
    for samples, found in ((2, []), (3, []), (3, ["smooth_cdam"])):
        smooth = estimator("smooth_cdam", samples=samples)
        _, store = evaluated(
            nodule_model, nodules, tmp_path, methods=[smooth], metrics=["compactness"]
        )
        assert store.found == found


def test_what_may_go_well_another_time_is_tried_again(nodule_model, nodules, tmp_path):
    for left_out in (["RuntimeError: not enough memory"], []):
        results, store = evaluated(
            nodule_model, nodules, tmp_path, methods=[Short()], metrics=["compactness"]
        )
        assert [entry.reason for entry in results.left_out] == left_out
        assert store.found == []


def test_a_file_that_cannot_be_read_is_neither_believed_nor_replaced(
    nodule_model, nodules, broken_off
):
    one, other = sorted(broken_off.iterdir())
    one.write_bytes(b"PK nothing of the kind")
    other.unlink()
    np.savez(other, record=np.array([{"run": 1}], dtype=object))
    before = content(broken_off)
    _, store = evaluated(nodule_model, nodules, broken_off)
    assert store.found == []
    assert content(broken_off).items() > before.items()
    with pytest.warns(OutputWarning, match=f"such as {one.name}; delete it"):
        store.clear()
    assert content(broken_off) == before


def test_only_what_the_run_knows_is_cleared(nodule_model, nodules, broken_off):
    _, other_run = evaluated(nodule_model, nodules, broken_off, seed=1)
    (broken_off / "notes.txt").write_text("mine")
    (broken_off / "link").symlink_to(broken_off / "notes.txt")
    others = set(broken_off.iterdir())
    _, store = evaluated(nodule_model, nodules, broken_off)
    (whole,) = set(broken_off.iterdir()) - others
    (broken_off / f".{whole.name}.0123abcd.part").write_bytes(whole.read_bytes()[:50])  # killed
    for each, left in ((store, 5), (other_run, 2)):
        with pytest.warns(OutputWarning, match="is left"):
            each.clear()
        assert len(list(broken_off.iterdir())) == left
    assert content(broken_off) == {"notes.txt": b"mine", "link": b"mine"}


def test_a_stopped_run_is_only_gone_on_with_when_asked(tmp_path):
    report = tmp_path / "report"
    (tmp_path / ".report.partial").mkdir()
    with pytest.raises(OutputError, match=r"was stopped and left .*resume=True"):
        Store.beside(report, resume=False)
    Store.beside(report, resume=True).clear()
    assert Store.beside(report, resume=False).found == []
    (tmp_path / ".report.partial").symlink_to(tmp_path)
    with pytest.raises(OutputError, match="is no folder of a stopped run"):
        Store.beside(report, resume=True)


def test_a_place_that_cannot_be_written_to_is_named(nodule_model, nodules, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match=r"found so far in .*file"):
        evaluated(nodule_model, nodules, tmp_path / "file" / "kept", methods=["random"])
