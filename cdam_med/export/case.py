"""The case folder: what a radiologist opens, and the record of how it came about."""

import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int16

from cdam_med.export.content import (
    STATEMENT,
    CaseContent,
    MethodRecord,
    NoduleRecord,
    SourceRecord,
    TargetResult,
    file_part,
)
from cdam_med.export.figures import write_overview
from cdam_med.export.slice_drawing import is_control, score_unit
from data_prep import geometry
from data_prep.disk import write_file
from data_prep.errors import OutputError
from data_prep.nifti import write_nifti
from data_prep.versions import version_of
from data_prep.written import record_name, written_folder

CASE_FORMAT = "cdam-med case"
"""Value of ``format`` in the ``case.json`` of every case folder."""

RECORD_NAME = "case.json"

SCHEMA_VERSION = 2
"""Raised whenever a key of ``case.json`` changes its name or meaning."""

MEAN_OF_VIEWS = "mean_of_views"
"""End of the name of a map that is the mean of all views, also such that the model never saw."""

_NO_SIGN = "none (a method without sign)"
_CONTROL = "none (a control, which knows nothing of the model)"
_CT_NAME = "ct.nii.gz"
_MASK_NAME = "nodule.nii.gz"
_OVERVIEW_NAME = "overview.png"
_DISTRIBUTIONS = ("cdam-med", "torch", "timm", "numpy", "nibabel")


def write_case(
    folder: str | os.PathLike[str], content: CaseContent, *, overwrite: bool = False
) -> Path:
    """Write a whole case folder, or nothing.

    Parameters
    ----------
    folder : path-like
        The place.
    content : CaseContent
        What goes in.
    overwrite : bool
        Replace a case folder of an earlier run. One that holds anything else, or a file that was
        changed since, is refused.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    OutputError
        The place is taken or can't be written to, or a result is not finite.
    """
    with written_folder(folder, "case", overwrite=overwrite) as new:
        affine = content.crop.affine
        write_nifti(new / _CT_NAME, _whole_hu(content.crop.hu), affine, description="cdam-med CT")
        if content.crop.mask is not None:
            write_nifti(
                new / _MASK_NAME, content.crop.mask, affine, description="cdam-med nodule mask"
            )
        for result in content.results:
            limit = result.symmetric_limit
            for kind in _kinds(content.method):
                write_nifti(
                    new / map_name(result.target.name, kind),
                    _map(result, kind),
                    affine,
                    description=f"cdam-med {file_part(result.target.name)} {kind or 'map'}"[:60],
                    symmetric_limit=limit,
                )
        write_overview(new / _OVERVIEW_NAME, content)
        record = json.dumps(case_record(content), indent=2, allow_nan=False)
        write_file(new / RECORD_NAME, f"{record}\n".encode())
    return Path(folder)


def map_name(target: str, kind: str | None = None) -> str:
    """Name of the file of a map.

    Parameters
    ----------
    target : str
        Name of the target.
    kind : str, optional
        Name of a view, or `MEAN_OF_VIEWS`; the map handed over first, of the views that the model
        predicts from, unless given.
    """
    kind = "" if kind is None else f"_{kind}"
    return f"attribution_{file_part(target)}{kind}.nii.gz"


def _kinds(method: MethodRecord) -> list[str | None]:
    """List what maps of a target get a file, by the end of its name."""
    kinds: list[str | None] = [None]
    kinds += [view for view in method.views if method.model_views != (view,)]
    return kinds + [MEAN_OF_VIEWS] * (set(method.views) != set(method.model_views))


def _map(result: TargetResult, kind: str | None) -> Float32[np.ndarray, "i j k"]:
    if kind == MEAN_OF_VIEWS:
        mean = np.mean(list(result.maps.values()), axis=0, dtype=np.float64)
        return np.asarray(mean, dtype=np.float32)
    return result.main_map if kind is None else result.maps[kind]


def case_record(content: CaseContent) -> dict[str, object]:
    """Build the content of ``case.json``: all that is needed to know what the maps show.

    Coordinates are RAS mm. The series is named by the SHA-256 of its UID alone.

    Parameters
    ----------
    content : CaseContent
        The case.

    Returns
    -------
    dict
        Values that fit into JSON.
    """
    method = content.method
    return {
        "format": CASE_FORMAT,
        "schema_version": SCHEMA_VERSION,
        "statement": STATEMENT,
        "ratings_note": content.ratings_note,
        "created_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "inputs": _source(content.source),
        "crop": {
            "shape": list(content.crop.hu.shape),
            "spacing_mm": geometry.spacing_mm(content.crop.affine).tolist(),
            "affine_ras_mm": content.crop.affine.tolist(),
            "padding_fraction": float(content.crop.padding_fraction),
        },
        "nodule": _nodule(content.nodule),
        "predictions": {name: float(value) for name, value in content.predictions.items()},
        "targets": {result.target.name: _target(result, method) for result in content.results},
        "method": {
            "name": method.name,
            "title": method.title,
            "reference": method.reference,
            "meaning": method.meaning,
            "settings": dict(method.settings),
            "is_signed": method.is_signed,
            "resolution": method.resolution,
            "path": method.path,
            "prediction_rule": method.prediction_rule,
            "model_views": list(method.model_views),
            "views": {
                view: {"patch_size_mm": [float(side) for side in method.patch_size_mm[view]]}
                for view in method.views
            },
        },
        "model": {
            "name": content.model.name,
            "weights_sha256": content.model.weights_sha256,
            "config": dict(content.model.config),
        },
        "versions": {
            **{name: version_of(name) for name in _DISTRIBUTIONS},
            "python": platform.python_version(),
        },
        "files": _files(content),
    }


def _whole_hu(hu: Float32[np.ndarray, "i j k"]) -> Int16[np.ndarray, "i j k"]:
    """Round to whole HU: half a unit is far below a CT's noise, and the file shrinks by half."""
    whole = np.rint(hu)
    limits = np.iinfo(np.int16)
    # written so that NaN is refused too
    if not (whole.min() >= limits.min and whole.max() <= limits.max):
        raise OutputError(
            f"{_CT_NAME} can't be written: values from {hu.min():g} to {hu.max():g} are no HU; "
            f"check the rescale slope and intercept of the series."
        )
    return np.asarray(whole, dtype=np.int16)


def _source(source: SourceRecord) -> dict[str, object]:
    return {
        "volume_sha256": source.volume_sha256,
        "series_uid_sha256": source.series_uid_sha256,
        "annotation_sha256": source.annotation_sha256,
        "left_out": [
            {"nodule_id": finding.name, "reason": finding.reason, "count": finding.count}
            for finding in source.left_out
        ],
        "problems": {problem.name: problem.action.value for problem in source.problems},
        "interpolated_slices": list(source.interpolated_slices),
    }


def _nodule(nodule: NoduleRecord) -> dict[str, object]:
    return {
        "nodule_id": nodule.nodule_id,
        "center_ras_mm": nodule.center_xyz_mm.tolist(),
        "reader_count": len(nodule.readers),
        "consensus_ratings": {name: float(value) for name, value in nodule.ratings.items()},
        "reader_ratings": [
            {name: float(value) for name, value in reader.items()} for reader in nodule.readers
        ],
        "interpolated_slices": list(nodule.interpolated_slices),
        "flags": list(nodule.flags),
    }


def _unit(result: TargetResult, method: MethodRecord) -> str:
    return score_unit(method, result) or (_CONTROL if is_control(method) else _NO_SIGN)


def _target(result: TargetResult, method: MethodRecord) -> dict[str, object]:
    target = result.target
    return {
        "unit": target.unit,
        "description": target.description,
        "low": target.low,
        "high": target.high,
        "score_unit": _unit(result, method),
        "symmetric_limit": result.symmetric_limit,
        "largest_score": result.largest_score,
        "voxels_beyond_limit": result.voxels_beyond_limit,
        "prefix_share": float(result.prefix_share),
    }


def _files(content: CaseContent) -> dict[str, str]:
    files = {_CT_NAME: "CT around the nodule, HU rounded to whole numbers; what the model saw"}
    if content.crop.mask is not None:
        files[_MASK_NAME] = "mask of the nodule" + (
            ": 1 where at least half of the readers outlined it" if content.nodule.readers else ""
        )
    for result in content.results:
        name = result.target.name
        unit = _unit(result, content.method)
        for kind in _kinds(content.method):
            slices = _slices(kind, content.method)
            files[map_name(name, kind)] = f"attribution of {name}, {slices}; unit: {unit}"
    files[_OVERVIEW_NAME] = "the central slices on one page, for people without a viewer"
    files[RECORD_NAME] = "this record"
    files[record_name("case")] = (
        "names and SHA-256 of the other files: what a later run may replace"
    )
    return files


def _slices(kind: str | None, method: MethodRecord) -> str:
    """Say which slices a map is of."""
    if kind == MEAN_OF_VIEWS:
        return f"mean over the {', '.join(method.views)} slices"
    slices = f"{kind or ' and '.join(method.model_views)} slices"
    return f"{slices}, which the model predicts from" if kind is None else slices
