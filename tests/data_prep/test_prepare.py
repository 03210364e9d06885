"""Preparing a cohort: the same bytes however it came about, and no series that ends a run."""

import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import synthetic_cohort as made

import data_prep.cohort.folder
import data_prep.disk
from data_prep.cohort.check import check_cohort
from data_prep.cohort.folder import read_cohort
from data_prep.cohort.schema import Exclusion, label_of
from data_prep.cohort.select import CLINICAL
from data_prep.disk import OutputWarning
from data_prep.errors import InputError, OutputError
from data_prep.prepare.run import prepare_cohort


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return the cohort of the first so many tasks, made in one go."""

    @functools.cache
    def prepared(n_tasks: int | None = None) -> Path:
        place = tmp_path_factory.mktemp("undisturbed") / "cohort"
        prepare_cohort(made.tasks()[:n_tasks], made.PROTOCOL, place)
        return place

    return prepared


def test_the_folder_holds_crops_masks_ratings_and_exclusions(tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    out = tmp_path / "new" / "cohort"
    summary = prepare_cohort(
        made.tasks(), made.PROTOCOL, out, progress=lambda *step: seen.append(step)
    )
    assert [step[:2] for step in seen] == [(n, 6) for n in range(1, 7)]
    assert check_cohort(out) == ()
    assert not (tmp_path / "new" / ".cohort.partial").exists()
    cohort = read_cohort(out)
    assert summary.counts == cohort.record.counts
    assert summary.reasons == {"missing_slices": 1}
    assert cohort.record.sources == ("Made by a test, CC0.",)
    assert [row.nodule_id for row in cohort.nodules[:3]] == [
        "series_0000_nodule_1",
        "series_0000_nodule_2",
        "series_0001_nodule_1",
    ]
    for row in cohort.nodules:
        given = made.nodule(1, [int(r) for r in row.reader_ratings["malignancy"]])
        assert row.ratings["malignancy"] == np.median(row.reader_ratings["malignancy"])
        assert row.label == label_of(given.ratings["malignancy"])
        assert row.reader_ratings["diameter"] == (5.1, 6.1, 7.1)
        assert (row.n_readers, row.source_axcodes, row.fold in (1, 2)) == (3, "LPS", True)
    row = cohort.nodule("series_0003_nodule_2")
    images = cohort.read_images(row)
    # an independent look: nibabel's affine, and the volume at the same place
    image = nib.load(out / "crops" / "series_0003_nodule_2.nii.gz")
    middle = nib.affines.apply_affine(image.affine, (np.array(image.shape) - 1) / 2)
    np.testing.assert_allclose(middle, row.center_xyz_mm, atol=1e-4)
    assert images.hu.dtype == np.int16
    assert nib.aff2axcodes(images.affine) == ("R", "A", "S")
    assert row.annotation_ids == (201, 202, 203)
    assert images.reader_count.max() == 3
    # two readers of three drew the third slice: the consensus holds it too
    np.testing.assert_array_equal(images.mask, images.reader_count >= 2)


def test_the_bytes_do_not_depend_on_jobs_or_order(
    undisturbed: Callable[..., Path], tmp_path: Path
) -> None:
    prepare_cohort(made.tasks()[::-1], made.PROTOCOL, tmp_path / "two", jobs=2)
    assert content(undisturbed()) == content(tmp_path / "two")


def run_until(out: Path, jobs: int, pids: Path, done: Callable[[], bool]) -> int:
    """Run the preparing in another process, kill it when something is done; return its code."""
    script = [sys.executable, made.__file__, str(out), str(jobs), str(pids)]
    environment = {**os.environ, "PYTHONPATH": str(Path(made.__file__).parents[1])}
    process = subprocess.Popen(script, env=environment)
    try:
        deadline = time.monotonic() + 120
        while not done() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    return process.returncode


def killed_again_and_again(tmp_path: Path, jobs: int) -> Path:
    """Kill a run as its folder appears, after records, and while the tables are written."""
    out, pids = tmp_path / "cohort", tmp_path / "pids"
    pids.mkdir()
    staging = tmp_path / ".cohort.partial"

    def n_records() -> int:
        return len(list(staging.glob("*/records/*.json")))

    codes = []
    for done in (
        staging.exists,
        lambda: any(staging.glob("*/cohort/crops/*")),
        lambda: n_records() >= 2,
        lambda: n_records() >= 4,
        lambda: any(staging.glob("*/cohort/manifest.csv")),
    ):
        codes.append(run_until(out, jobs, pids, done))
        assert not out.exists() or check_cohort(out) == ()
    # the last one may have been quicker than its killer
    assert codes[:4] == [-signal.SIGKILL] * 4
    for pid in map(int, (path.name for path in pids.iterdir())):
        wait_until_gone(pid)
    return out


def wait_until_gone(pid: int) -> None:
    """A worker whose parent was killed must not go on."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        if "zombie" in Path(f"/proc/{pid}/status").read_text():
            return
        time.sleep(0.05)
    pytest.fail(f"process {pid} outlived its parent")


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_run_that_was_killed_ends_with_the_same_bytes(
    undisturbed: Callable[..., Path], tmp_path: Path, jobs: int
) -> None:
    out = killed_again_and_again(tmp_path, jobs)
    # leftovers of a write that was killed
    staging, name = tmp_path / ".cohort.partial", "series_0004_nodule_1.nii.gz"
    image = (undisturbed() / "crops" / name).read_bytes()
    for crops in staging.glob("*/cohort/crops"):
        (crops / f".{name}.0123abcd.part").write_bytes(image[:1000])
    prepare_cohort(made.tasks(), made.PROTOCOL, out, resume=True, jobs=jobs)
    assert content(out) == content(undisturbed())
    assert not staging.exists()


def interrupted(
    out: Path,
    after: int,
    *,
    tasks: Sequence[object] | None = None,
    overwrite: bool = False,
) -> None:
    """Stop a run after so many series, as Ctrl-C does."""

    def stop(done: int, total: int, series_id: str) -> None:
        if done == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_cohort(
            tasks or made.tasks(), made.PROTOCOL, out, progress=stop, overwrite=overwrite
        )


def test_a_stopped_run_is_resumed_and_only_what_is_missing_is_done(
    undisturbed: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "cohort"
    interrupted(out, after=4)
    assert not out.exists()
    staging = tmp_path / ".cohort.partial"
    # a crash of the machine may leave a record without its image, or half a record
    (staging / "0001" / "cohort" / "crops" / "series_0000_nodule_1.nii.gz").write_bytes(b"")
    record = staging / "0001" / "records" / "series_0001.json"
    record.write_bytes(record.read_bytes()[:20])
    part = staging / "0001" / "cohort" / "masks" / ".series_0003_nodule_2.nii.gz.0123abcd.part"
    part.write_bytes((undisturbed() / "masks/series_0003_nodule_2.nii.gz").read_bytes()[:99])
    steps: list[tuple[int, int, str]] = []
    prepare_cohort(
        made.tasks(), made.PROTOCOL, out, resume=True, progress=lambda *s: steps.append(s)
    )
    # broken and 0002 are kept
    assert [step[2] for step in steps] == [f"series_{n:04d}" for n in (0, 1, 3, 4)]
    assert steps[0][:2] == (3, 6)
    assert content(out) == content(undisturbed())
    assert not staging.exists()


def test_a_stopped_run_is_not_mixed_with_another(tmp_path: Path) -> None:
    out = tmp_path / "cohort"
    interrupted(out, after=2)
    with pytest.raises(OutputError, match=r"was stopped.*resume=True, or remove"):
        prepare_cohort(made.tasks(), made.PROTOCOL, out)
    for tasks, protocol in (
        (made.tasks()[1:], made.PROTOCOL),
        (made.tasks(), replace(made.PROTOCOL, size_mm=10.0)),
    ):
        with pytest.raises(OutputError, match=r"asked for something else"):
            prepare_cohort(tasks, protocol, out, resume=True)


def test_settings_of_a_task_belong_to_the_plan(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Settled(made.SyntheticTask):
        settings: str = ""

    interrupted_task = Settled("s", "p", 1, settings="repair=gantry_tilt")

    def stop(*step: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_cohort([interrupted_task], made.PROTOCOL, tmp_path / "c", progress=stop)
    other = replace(interrupted_task, settings="")
    with pytest.raises(OutputError, match=r"asked for something else"):
        prepare_cohort([other], made.PROTOCOL, tmp_path / "c", resume=True)
    prepare_cohort([interrupted_task], made.PROTOCOL, tmp_path / "c", resume=True)


def test_a_place_that_is_taken_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    summary = prepare_cohort(made.tasks()[:2], made.PROTOCOL, tmp_path / "empty")
    before = content(tmp_path / "empty")
    with pytest.raises(OutputError, match=r"is there already"):
        prepare_cohort(made.tasks()[:2], made.PROTOCOL, tmp_path / "empty")
    # resuming a run that had finished is no error, but another one's place is
    again = prepare_cohort(made.tasks()[:2], made.PROTOCOL, tmp_path / "empty", resume=True)
    assert again == summary
    with pytest.raises(OutputError, match=r"is there already"):
        prepare_cohort(made.tasks()[:3], made.PROTOCOL, tmp_path / "empty", resume=True)
    assert content(tmp_path / "empty") == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match=r"file is a file; choose another name"):
        prepare_cohort(made.tasks()[:2], made.PROTOCOL, tmp_path / "file")


def test_a_cohort_is_replaced_only_when_asked_and_only_if_it_is_ours(tmp_path: Path) -> None:
    out, tasks = tmp_path / "cohort", made.tasks()
    prepare_cohort(tasks[:2], made.PROTOCOL, tmp_path / "other")
    prepare_cohort(tasks[:3], made.PROTOCOL, out)
    before = content(out)
    with pytest.raises(OutputError, match=r"is there already; .*overwrite=True"):
        prepare_cohort(tasks[:2], made.PROTOCOL, out)
    (out / "concepts").mkdir()
    (out / "concepts" / "mine.safetensors").write_bytes(b"mine")
    with pytest.raises(OutputError, match=r"didn't write, .*: concepts/; move it away"):
        prepare_cohort(tasks[:2], made.PROTOCOL, out, overwrite=True)
    assert content(out) == {**before, "concepts/mine.safetensors": b"mine"}
    (out / "concepts").rename(tmp_path / "concepts")
    # what is there is replaced in the end, also by a run that was stopped
    interrupted(out, after=1, tasks=tasks[:2], overwrite=True)
    assert content(out) == before
    prepare_cohort(tasks[:2], made.PROTOCOL, out, resume=True, overwrite=True)
    assert content(out) == content(tmp_path / "other")
    assert not (tmp_path / ".cohort.partial").exists()


@pytest.fixture
def strangers(tmp_path: Path) -> Path:
    """A folder of somebody else's files, with names as a cohort has them."""
    folder = tmp_path / "strangers"
    for name in ("thesis.txt", "crops/series_0000_nodule_1.nii.gz", "records/series_0001.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("years of work")
    return folder


@pytest.mark.parametrize("target", ["strangers", "strangers/thesis.txt", "nowhere"])
@pytest.mark.parametrize("link", ["cohort", ".cohort.partial"])
def test_a_place_that_is_a_link_is_refused(
    tmp_path: Path, strangers: Path, link: str, target: str
) -> None:
    before = content(strangers)
    (tmp_path / link).symlink_to(tmp_path / target)
    for options in ({}, {"resume": True}, {"overwrite": True}, {"resume": True, "overwrite": True}):
        with pytest.raises(OutputError, match=r"is a link|was stopped|no folder of a stopped run"):
            prepare_cohort(made.tasks()[:2], made.PROTOCOL, tmp_path / "cohort", **options)
    assert content(strangers) == before
    assert (tmp_path / link).is_symlink()
    assert {path.name for path in tmp_path.iterdir()} == {link, "strangers"}


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("0001", "strangers"),
        ("0001/cohort", "strangers"),
        ("0001/cohort/crops", "strangers/crops"),
        ("0001/cohort/masks", "nowhere"),
        ("0001/cohort/overview", "strangers"),
        ("0001/records", "strangers/records"),
        ("0001/cohort/crops/series_0000_nodule_1.nii.gz", "strangers/thesis.txt"),
        ("0001/records/series_0001.json", "strangers/records/series_0001.json"),
        ("0001/cohort/manifest.csv", "nowhere"),
    ],
)
def test_no_link_in_the_folder_of_a_stopped_run_is_followed(
    undisturbed: Callable[..., Path], tmp_path: Path, strangers: Path, link: str, target: str
) -> None:
    out, planted = tmp_path / "cohort", tmp_path / ".cohort.partial" / link
    interrupted(out, after=1, tasks=made.tasks()[:2])
    before = content(strangers)
    if planted.is_dir():
        planted.rename(tmp_path / "what was there")
    planted.unlink(missing_ok=True)
    planted.symlink_to(tmp_path / target)
    with pytest.warns(OutputWarning, match=r"\.partial is left"):
        prepare_cohort(made.tasks()[:2], made.PROTOCOL, out, resume=True)
    assert content(strangers) == before
    assert content(out) == content(undisturbed(2))
    assert not any(path.is_symlink() for path in (out, *out.rglob("*")))
    assert planted.is_symlink()


def test_what_others_put_into_the_folder_of_a_stopped_run_is_kept(
    undisturbed: Callable[..., Path], tmp_path: Path
) -> None:
    out, partial = tmp_path / "cohort", tmp_path / ".cohort.partial"
    interrupted(out, after=2, tasks=made.tasks()[:3])
    image = "0001/cohort/crops/series_0001_nodule_1.nii.gz"
    assert (partial / image).is_file()
    mine = {
        image: b"not what was written",
        "0001/cohort/crops/.env": b"SECRET",
        "0001/cohort/crops/.notes.txt.0123abcd.part": b"named as ours",
        "0001/cohort/notes/a.txt": b"mine",
        "0001/records/series_0009.json": b'{"nodules": [], "exclusions": []}',
        "letter.txt": b"mine",
    }
    for name, data in mine.items():
        (partial / name).parent.mkdir(exist_ok=True)
        (partial / name).write_bytes(data)
    with pytest.warns(OutputWarning, match=r"can't be told to be of this run"):
        prepare_cohort(made.tasks()[:3], made.PROTOCOL, out, resume=True)
    assert content(out) == content(undisturbed(3))
    assert content(partial) == mine


def test_what_comes_while_a_cohort_grows_is_neither_published_nor_lost(
    undisturbed: Callable[..., Path], tmp_path: Path
) -> None:
    out, cohort = tmp_path / "cohort", tmp_path / ".cohort.partial" / "0001" / "cohort"

    def plant(*step: object) -> None:
        (cohort / "crops" / "holiday.nii.gz").write_bytes(b"mine")
        if not (cohort / "overview").is_symlink():
            (cohort / "overview").symlink_to(undisturbed(2))

    with pytest.warns(OutputWarning, match=r"is left"):
        prepare_cohort(made.tasks()[:2], made.PROTOCOL, out, progress=plant)
    assert content(out) == content(undisturbed(2))
    left = cohort.parent / "left"
    assert (left / "crops" / "holiday.nii.gz").read_bytes() == b"mine"
    assert (left / "overview").is_symlink()


@pytest.mark.parametrize("plan", [None, b"{}", b'{"plan": "../x"}\n'])
def test_a_folder_that_no_run_left_is_refused(tmp_path: Path, plan: bytes | None) -> None:
    partial = tmp_path / ".cohort.partial"
    partial.mkdir()
    (partial / ("notes.txt" if plan is None else "plan.json")).write_bytes(plan or b"mine")
    before = content(partial)
    with pytest.raises(OutputError, match=r"no folder of a stopped run; move it away"):
        prepare_cohort(made.tasks()[:2], made.PROTOCOL, tmp_path / "cohort", resume=True)
    assert content(partial) == before


@pytest.mark.parametrize(
    ("how", "reason", "message"),
    [
        ("named", "missing_slices", "Series <uid> lacks one."),
        ("unexpected", "unexpected_error", r"KeyError: 'no such\nthing in <path>'"),
        ("memory", "out_of_memory", "There was not enough memory; use fewer jobs."),
        ("os", "unexpected_error", "PermissionError: Permission denied"),
    ],
)
def test_a_series_that_fails_is_a_row(tmp_path: Path, how: str, reason: str, message: str) -> None:
    tasks = [made.FailingTask("broken", "p", how), *made.tasks()[:1]]
    prepare_cohort(tasks, made.PROTOCOL, tmp_path / "c")
    cohort = read_cohort(tmp_path / "c")
    assert cohort.exclusions == (Exclusion("p", "broken", "", reason, message),)
    assert len(cohort.nodules) == 2
    text = b"".join(content(tmp_path / "c").values())
    assert b"DOE" not in text
    assert b"113619" not in text


def test_a_series_that_takes_its_process_along_is_a_row(tmp_path: Path) -> None:
    tasks = [made.FailingTask("deadly", "p", "killed"), *made.tasks()[:2]]
    prepare_cohort(tasks, made.PROTOCOL, tmp_path / "c", jobs=2)
    cohort = read_cohort(tmp_path / "c")
    assert [row.series_id for row in cohort.exclusions] == ["deadly"]
    assert cohort.exclusions[0].reason == "worker_died"
    assert "code -9" in cohort.exclusions[0].message
    assert len(cohort.nodules) == 4


def test_an_interrupt_within_a_series_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        prepare_cohort([made.FailingTask("s", "p", "interrupted")], made.PROTOCOL, tmp_path / "c")


def test_a_full_disk_ends_the_run_and_can_be_resumed(
    undisturbed: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = data_prep.cohort.folder.write_nifti
    calls = []

    def full(*args: object, **settings: object) -> None:
        calls.append(args)
        if len(calls) > 9:
            raise OSError(28, "No space left on device")
        written(*args, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(data_prep.cohort.folder, "write_nifti", full)
        with pytest.raises(OutputError, match=r"no space left on device; free some space"):
            prepare_cohort(made.tasks(), made.PROTOCOL, tmp_path / "c")
    assert not (tmp_path / "c").exists()
    prepare_cohort(made.tasks(), made.PROTOCOL, tmp_path / "c", resume=True)
    assert content(tmp_path / "c") == content(undisturbed())


def test_names_that_could_leave_the_folder_are_refused(tmp_path: Path) -> None:
    for series_id, patient_id in (("../s", "p"), ("s", "p/.."), ("", "p"), ("s" * 200, "p")):
        task = made.SyntheticTask(series_id, patient_id, 0)
        with pytest.raises(InputError, match=r"name '.*' can't be used in a path"):
            prepare_cohort([task], made.PROTOCOL, tmp_path / "c")
    twice = [made.SyntheticTask(name, "p", 0) for name in ("Scan", "scan")]
    with pytest.raises(InputError, match=r"can't be told apart"):
        prepare_cohort(twice, made.PROTOCOL, tmp_path / "c")
    bad = Exclusion("../p", "s", "", "x", "")
    with pytest.raises(InputError, match=r"patient_id '../p' is not a safe name"):
        prepare_cohort([], made.PROTOCOL, tmp_path / "c", exclusions=[bad])
    assert not list(tmp_path.iterdir())


def test_clinical_folds_hold_each_patient_once(undisturbed: Callable[..., Path]) -> None:
    folds: dict[str, set[int | None]] = {}
    for row in read_cohort(undisturbed()).nodules:
        folds.setdefault(row.patient_id, set()).add(row.fold)
    assert all(len(of_patient) == 1 for of_patient in folds.values())
    assert {fold for of_patient in folds.values() for fold in of_patient} == {1, 2}
    assert CLINICAL.group_folds_by == "patient"
