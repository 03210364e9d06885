"""What was found of each method, kept while a run goes on, so that it needn't begin anew.

One file a method, written whole, without pickled objects, in ``.<name>.partial`` beside the place
of the report: its rows of the long table, and its arrays. A file counts only for the run that it
was made in: the same images, outputs of the model, metrics, settings, seed and versions.
"""

import io
import json
import os
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cdam_med.attribution.method import Method
from cdam_med.evaluation.examples import Examples
from cdam_med.evaluation.experiment import Experiment
from cdam_med.evaluation.results import LeftOut, Results, Row
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
from data_prep.statements import version_of
from data_prep.text import printable

DISTRIBUTIONS = ("cdam-med", "torch", "timm", "numpy")
"""Packages on whose versions figures depend."""

_UNREADABLE = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile)


def run_sha256(experiment: Experiment, metrics: Sequence[str]) -> str:
    """Return a hash of all that figures depend on, the method apart.

    The model is known by its raw outputs for the images.
    """
    words = {
        "metrics": list(metrics),
        "seed": experiment.seed,
        "targets": list(experiment.targets),
        "outputs": list(experiment.output_names),
        "versions": {name: version_of(name) for name in DISTRIBUTIONS},
    }
    digest = sha256(json.dumps(words, sort_keys=True).encode())
    digest.update(experiment.outputs.double().numpy().tobytes())
    for examples in (experiment.examples, experiment.shifted, experiment.neighbours):
        digest.update(b"none" if examples is None else _content(examples))
    return digest.hexdigest()


def _content(examples: Examples) -> bytes:
    words = [examples.ids, examples.groups, examples.labels, examples.targets]
    digest = sha256(json.dumps(words).encode())
    for part in (examples.images, examples.masks):
        digest.update(b"none" if part is None else part.cpu().double().numpy().tobytes())
    return digest.digest()


class Store:
    """A folder of what was found of methods, made with the first one.

    Attributes
    ----------
    found : list of str
        Names of the methods that were there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.found: list[str] = []
        self._sha256_of: dict[str, str] = {}  # of the files that this run wrote or took over

    @classmethod
    def beside(cls, report: Path, *, resume: bool) -> "Store":
        """Return the store of the report that is to be written to a place.

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

    def read(self, method: Method, run: str, empty: Results) -> Results | None:
        """Return what is kept of a method in a run, on top of empty results; None if nothing is."""
        path = self._file(method, run)
        try:
            with open_no_link(path) as file:
                data = file.read()
            with np.load(io.BytesIO(data), allow_pickle=False) as kept:
                arrays = dict(kept)
            record = json.loads(arrays.pop("record").tobytes())
            if record["run"] != run or record["settings"] != _settings(method):
                return None
            found = _unpacked(method, record, arrays, empty)
        except _UNREADABLE:
            return None  # what can't be read is made again
        self._sha256_of[path.name] = sha256(data).hexdigest()
        self.found.append(method.name)
        return found

    def write(self, method: Method, run: str, found: Results) -> None:
        """Keep what was found of a method.

        Raises
        ------
        OutputError
            If it can't be written.
        """
        path = self._file(method, run)
        if os.path.lexists(path):  # a file that couldn't be read isn't ours to replace
            return
        record, arrays = _packed(method, found)
        record |= {"run": run, "settings": _settings(method)}
        arrays["record"] = np.frombuffer(json.dumps(record).encode(), dtype=np.uint8)
        data = io.BytesIO()
        np.savez_compressed(data, allow_pickle=False, **arrays)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_new_file(path, data.getvalue())
        except OSError as error:
            raise output_error("what was found so far in", self.folder, error) from error
        self._sha256_of[path.name] = sha256(data.getvalue()).hexdigest()

    def clear(self) -> None:
        """Remove the folder with what this run wrote or took over.

        Warns
        -----
        OutputWarning
            If it holds anything else, such as files of another run.
        """
        if self.folder.is_symlink() or not self.folder.is_dir():
            return

        def is_ours(place: str, path: Path) -> bool:
            whole = path.with_name(finished_name(path.name))
            if path == whole:
                return file_sha256(path) == self._sha256_of.get(place)
            return whole.name in self._sha256_of and is_beginning(path, whole)

        clear(self.folder, is_ours)

    def _file(self, method: Method, run: str) -> Path:
        words = json.dumps([run, _settings(method)], sort_keys=True)
        return self.folder / f"{method.name}-{sha256(words.encode()).hexdigest()[:16]}.npz"


def _settings(method: Method) -> dict[str, Any]:
    settings = asdict(method)  # type: ignore[call-overload]  # all are dataclasses
    as_read: dict[str, Any] = json.loads(json.dumps(settings))
    return {"class": type(method).__qualname__} | as_read


def _packed(method: Method, found: Results) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return what words say of a method's results, and their arrays."""
    name = method.name
    record = {
        "rows": [row[1:-1] for row in found.rows],
        "left_out": [entry[1:] for entry in found.left_out],
    }
    arrays = {
        "values": np.array([row.value for row in found.rows]),
        "maps": found.maps[name].numpy(),
        "shown": found.shown[name].numpy(),
    }
    for kind in ("curves", "matrices"):
        part = getattr(found, kind).get(name, {})
        arrays |= {f"{kind} {key}": values for key, values in part.items()}
    return record, arrays


def _unpacked(
    method: Method, record: dict[str, Any], arrays: dict[str, np.ndarray], empty: Results
) -> Results:
    name = method.name
    kinds: dict[str, dict[str, np.ndarray]] = {"curves": {}, "matrices": {}}
    for place, values in arrays.items():
        kind, _, key = place.partition(" ")
        if key:
            kinds[kind][key] = values
    rows = zip(record["rows"], arrays["values"].tolist(), strict=True)
    maps, shown = (torch.from_numpy(arrays[key]) for key in ("maps", "shown"))
    return replace(
        empty,
        methods=(method,),
        rows=tuple(Row._make((name, *words, value)) for words, value in rows),
        left_out=tuple(LeftOut(name, *entry) for entry in record["left_out"]),
        maps={name: maps},
        shown={name: shown},
        curves={name: kinds["curves"]} if kinds["curves"] else {},
        matrices={name: kinds["matrices"]} if kinds["matrices"] else {},
    )
