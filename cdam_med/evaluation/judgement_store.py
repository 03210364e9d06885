"""Judgements kept while a run goes on, so that one that is broken off needn't begin anew.

One file an estimator, written whole, without pickled objects, in ``.<name>.partial`` beside the
place of the report. A file counts only for the run that it was made in: the same images, outputs of
the model, measures, settings, seed and versions.
"""

import io
import json
import os
import zipfile
from collections.abc import Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cdam_med.attribution.estimator import Estimator
from cdam_med.evaluation.examples import Examples
from cdam_med.evaluation.judged import Trial
from cdam_med.evaluation.judgement import Judgement
from cdam_med.evaluation.metrics.class_sensitivity import TargetCorrelations
from cdam_med.evaluation.report.results import Curves, LeftOut, Row
from data_prep.disk import (
    clear,
    file_sha256,
    finished_name,
    is_beginning,
    open_no_link,
    output_error,
    write_new_file,
)
from data_prep.errors import OutputError
from data_prep.text import printable
from data_prep.versions import version_of

_DISTRIBUTIONS = ("cdam-med", "torch", "timm", "numpy")


def run_sha256(trial: Trial, measures: Sequence[str]) -> str:
    """Return a hash of all that judgements depend on, the estimator apart.

    The model is known by its raw outputs for the images.

    Parameters
    ----------
    trial : Trial
        Model and examples.
    measures : sequence of str
        Names of the measures, in order.
    """
    words = {
        "measures": list(measures),
        "seed": trial.seed,
        "targets": list(trial.targets),
        "outputs": list(trial.output_names),
        "versions": {name: version_of(name) for name in _DISTRIBUTIONS},
    }
    digest = sha256(json.dumps(words, sort_keys=True).encode())
    digest.update(trial.outputs.double().numpy().tobytes())
    for examples in (trial.examples, trial.shifted, trial.neighbours):
        digest.update(b"none" if examples is None else _content(examples))
    return digest.hexdigest()


def _content(examples: Examples) -> bytes:
    words = [examples.ids, examples.groups, examples.labels, examples.targets]
    digest = sha256(json.dumps(words).encode())
    for part in (examples.images, examples.masks):
        digest.update(b"none" if part is None else part.cpu().double().numpy().tobytes())
    return digest.digest()


class JudgementStore:
    """A folder of judgements.

    Parameters
    ----------
    folder : Path
        Where they are kept; made with the first one.

    Attributes
    ----------
    found : list of str
        Names of the estimators whose judgement was there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.found: list[str] = []
        self._sha256_of: dict[str, str] = {}  # of the files that this run wrote or took over

    @classmethod
    def beside(cls, report: Path, *, resume: bool) -> "JudgementStore":
        """Return the store of the report that is to be written to a place.

        Parameters
        ----------
        report : Path
            The place.
        resume : bool
            Whether to go on with a run that was stopped.

        Raises
        ------
        OutputError
            If a run was stopped and `resume` isn't asked for, or there is no folder in its place.
        """
        report = report.absolute()
        folder = report.with_name(f".{report.name}.partial")
        shown = printable(str(folder))
        if os.path.lexists(folder):
            if folder.is_symlink() or not folder.is_dir():
                raise OutputError(f"{shown} is no folder of a stopped run; move it away.")
            if not resume:
                raise OutputError(
                    f"A run for {printable(str(report))} was stopped and left {shown}; go on with "
                    f"it by resume=True, or remove that folder."
                )
        return cls(folder)

    def read(self, estimator: Estimator, run: str) -> Judgement | None:
        """Return what is kept of an estimator, or None if there is nothing, or of another run.

        Parameters
        ----------
        estimator : Estimator
            With its settings.
        run : str
            What `run_sha256` gives.
        """
        path = self._file(estimator, run)
        try:
            with open_no_link(path) as file:
                data = file.read()
            with np.load(io.BytesIO(data), allow_pickle=False) as kept:
                arrays = dict(kept)
                record = json.loads(arrays.pop("record").tobytes())
            if record["run"] != run or record["settings"] != _settings(estimator):
                return None
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
            return None  # what can't be read is made again
        self._sha256_of[path.name] = sha256(data).hexdigest()
        self.found.append(estimator.name)
        return _judgement(record, arrays)

    def write(self, estimator: Estimator, run: str, judgement: Judgement) -> None:
        """Keep a judgement, unless something may go well another time.

        Parameters
        ----------
        estimator : Estimator
            With its settings.
        run : str
            What `run_sha256` gives.
        judgement : Judgement
            What was found.

        Raises
        ------
        OutputError
            If it can't be written.
        """
        path = self._file(estimator, run)
        # a file that couldn't be read isn't ours to replace
        if judgement.may_go_well or os.path.lexists(path):
            return
        record, arrays = _parts(judgement)
        record |= {"run": run, "settings": _settings(estimator)}
        arrays["record"] = np.frombuffer(json.dumps(record).encode(), dtype=np.uint8)
        data = io.BytesIO()
        np.savez_compressed(data, allow_pickle=False, **arrays)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_new_file(path, data.getvalue())
        except OSError as error:
            raise output_error("what was judged so far in", self.folder, error) from error
        self._sha256_of[path.name] = sha256(data.getvalue()).hexdigest()

    def clear(self) -> None:
        """Remove the folder with what this run wrote or took over.

        Warns
        -----
        OutputWarning
            If it holds anything else, such as judgements of another run.
        """
        if self.folder.is_symlink() or not self.folder.is_dir():
            return

        def is_ours(place: str, path: Path) -> bool:
            whole = path.with_name(finished_name(path.name))
            if path == whole:
                return file_sha256(path) == self._sha256_of.get(place)
            return whole.name in self._sha256_of and is_beginning(path, whole)

        clear(self.folder, is_ours)

    def _file(self, estimator: Estimator, run: str) -> Path:
        words = json.dumps([run, _settings(estimator)], sort_keys=True)
        return self.folder / f"{estimator.name}-{sha256(words.encode()).hexdigest()[:16]}.npz"


def _settings(estimator: Estimator) -> dict[str, Any]:
    settings = asdict(estimator)  # type: ignore[call-overload]  # all are dataclasses
    as_read: dict[str, Any] = json.loads(json.dumps(settings))
    return {"class": type(estimator).__qualname__} | as_read


def _parts(judgement: Judgement) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return what words say of a judgement, and its arrays."""
    record: dict[str, Any] = {
        "estimator": judgement.estimator,
        "rows": [row[1:-1] for row in judgement.rows],
        "left_out": [entry[1:] for entry in judgement.left_out],
    }
    arrays = {"values": np.array([row.value for row in judgement.rows])}
    for name in ("maps", "shown"):
        if (maps := getattr(judgement, name)) is not None:
            arrays[name] = maps.numpy()
    if judgement.curves is not None:
        arrays |= {f"curves {key}": values for key, values in vars(judgement.curves).items()}
    if judgement.matrix is not None:
        ends = dict(vars(judgement.matrix))
        record["targets"] = list(ends.pop("targets"))
        arrays |= {f"matrix {key}": values for key, values in ends.items()}
    return record, arrays


def _judgement(record: dict[str, Any], arrays: dict[str, np.ndarray]) -> Judgement:
    name = record["estimator"]

    def of(kind: str) -> dict[str, np.ndarray]:
        return {
            key.removeprefix(kind): values for key, values in arrays.items() if key.startswith(kind)
        }

    curves, matrix = of("curves "), of("matrix ")
    maps, shown = (
        torch.from_numpy(arrays[key]) if key in arrays else None for key in ("maps", "shown")
    )
    values = arrays["values"].tolist()
    return Judgement(
        estimator=name,
        rows=tuple(
            Row._make((name, *words, value))
            for words, value in zip(record["rows"], values, strict=True)
        ),
        left_out=tuple(LeftOut(name, *entry) for entry in record["left_out"]),
        maps=maps,
        shown=shown,
        curves=Curves(**curves) if curves else None,
        matrix=TargetCorrelations(tuple(record["targets"]), **matrix) if matrix else None,
        may_go_well=False,
    )
