"""The case folder: what a radiologist opens, and the record of how it came about."""

import dataclasses
import hashlib
import os
import platform
import re
import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int16

from cdam_med.explanation import ExplainedNodule, TargetMap
from data_prep import geometry
from data_prep.disk import json_bytes, record_name, write_file, written_folder
from data_prep.errors import OutputError
from data_prep.lidc import LeftOutFinding
from data_prep.nifti import write_nifti
from data_prep.statements import RESEARCH_ONLY, version_of

CASE_FORMAT = "cdam-med case"
"""Value of ``format`` in the ``case.json`` of every case folder."""

RECORD_NAME = "case.json"

SCHEMA_VERSION = 2
"""Raised whenever a key of ``case.json`` changes its name or meaning."""

MEAN_OF_VIEWS = "mean_of_views"
"""End of the name of a map that is the mean of all views, also such that the model never saw."""

_CT_NAME = "ct.nii.gz"
_MASK_NAME = "nodule.nii.gz"
_OVERVIEW_NAME = "overview.png"
_DISTRIBUTIONS = ("cdam-med", "torch", "timm", "numpy", "nibabel")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_-]+")
_LONGEST_PART = 60


def write_case(
    folder: str | os.PathLike[str],
    case: ExplainedNodule,
    *,
    overwrite: bool = False,
    annotation_sha256: str | None = None,
    left_out: Sequence[LeftOutFinding] = (),
) -> Path:
    """Write a whole case folder, or nothing; see `cdam_med.Explanation.save`."""
    from cdam_med.export.figures import overview_png

    with written_folder(folder, "case", overwrite=overwrite) as new:
        crop = case.crop
        affine = crop.affine
        write_nifti(new / _CT_NAME, _whole_hu(crop.hu), affine, description="cdam-med CT")
        if crop.mask is not None:
            write_nifti(new / _MASK_NAME, crop.mask, affine, description="cdam-med nodule mask")
        for target_map in case.maps:
            for kind in _kinds(case):
                name = target_map.target.name
                write_nifti(
                    new / map_name(name, kind),
                    _map(case, target_map, kind),
                    affine,
                    description=f"cdam-med {file_part(name)} {kind or 'map'}"[:60],
                    symmetric_limit=target_map.limit,
                )
        write_file(new / _OVERVIEW_NAME, overview_png(case))
        record = case_record(case, annotation_sha256=annotation_sha256, left_out=left_out)
        write_file(new / RECORD_NAME, json_bytes(record))
    return Path(folder)


def _kinds(case: ExplainedNodule) -> list[str | None]:
    """List what maps of a target get a file, by the end of its name."""
    views, own = tuple(case.attribution.views), case.attribution.model_views
    kinds: list[str | None] = [None, *(view for view in views if own != (view,))]
    return kinds + [MEAN_OF_VIEWS] * (set(views) != set(own))


def _map(
    case: ExplainedNodule, target_map: TargetMap, kind: str | None
) -> Float32[np.ndarray, "i j k"]:
    if kind is None:
        return target_map.scores
    view = tuple(case.attribution.views) if kind == MEAN_OF_VIEWS else kind
    return case.attribution.map(target_map.target.name, view)


def map_name(target: str, kind: str | None = None) -> str:
    """Name the file of a target's map: of a view, of `MEAN_OF_VIEWS`, or the one to open first."""
    return f"attribution_{file_part(target)}{'' if kind is None else f'_{kind}'}.nii.gz"


def file_part(name: str) -> str:
    """Return what stands for a target's name in names of files, on any file system.

    The name itself where it is of ASCII letters, digits, ``_``, ``-`` and spaces, which become
    ``_``; else what is left of it with eight digits of its hash, so that two names don't meet.

    Examples
    --------
    >>> file_part("lung opacity")
    'lung_opacity'
    """
    plain = name.replace(" ", "_")
    if _PLAIN_NAME.fullmatch(plain) and len(plain) <= _LONGEST_PART:
        return plain
    letters = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    rest = re.sub(r"[^A-Za-z0-9_-]+", "_", letters).strip("_")[:_LONGEST_PART]
    digits = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{rest}_{digits}" if rest else digits


def check_file_names(targets: Sequence[str]) -> None:
    """Refuse targets that would have files of the same name, on any file system."""
    if len({file_part(name).casefold() for name in targets}) < len(targets):
        raise OutputError(
            f"Two of the targets {', '.join(targets)} would have files of the same name: let their "
            "names differ in more than capitals and spaces."
        )


def _whole_hu(hu: Float32[np.ndarray, "i j k"]) -> Int16[np.ndarray, "i j k"]:
    """Round to whole HU: half a unit is far below a CT's noise, and the file shrinks by half."""
    whole = np.rint(hu)
    limits = np.iinfo(np.int16)
    # written so that NaN is refused too
    if not (whole.min() >= limits.min and whole.max() <= limits.max):
        raise OutputError(
            f"{_CT_NAME} can't be written: values from {hu.min():g} to {hu.max():g} are no HU; "
            "check the rescale slope and intercept of the series."
        )
    return np.asarray(whole, dtype=np.int16)


def case_record(
    case: ExplainedNodule,
    *,
    annotation_sha256: str | None = None,
    left_out: Sequence[LeftOutFinding] = (),
) -> dict[str, Any]:
    """Return the content of ``case.json``: all that is needed to know what the maps show.

    Coordinates are RAS mm. The series is named by the SHA-256 of its UID alone.
    """
    crop, source, method, nodule = case.crop, case.source, case.method, case.nodule
    settings: Any = method if dataclasses.is_dataclass(method) else None
    return {
        "format": CASE_FORMAT,
        "schema_version": SCHEMA_VERSION,
        "statement": RESEARCH_ONLY,
        "ratings_note": case.ratings_note,
        "created_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "inputs": {
            "volume_sha256": source.volume_sha256,
            "series_uid_sha256": source.series_uid_sha256,
            "annotation_sha256": annotation_sha256,
            "left_out": [
                {"nodule_id": finding.name, "reason": finding.reason, "count": finding.count}
                for finding in left_out
            ],
            "problems": {problem.name: problem.action.value for problem in source.problems},
            "interpolated_slices": list(source.interpolated_slices),
        },
        "crop": {
            "shape": list(crop.hu.shape),
            "spacing_mm": geometry.spacing_mm(crop.affine).tolist(),
            "affine_ras_mm": crop.affine.tolist(),
            "padding_fraction": crop.padding_fraction,
        },
        "nodule": {
            "nodule_id": nodule.nodule_id,
            "center_ras_mm": nodule.center_xyz_mm.tolist(),
            "reader_count": len(nodule.readers),
            "consensus_ratings": {key: float(value) for key, value in nodule.ratings.items()},
            "reader_ratings": [
                {key: float(value) for key, value in reader.ratings.items()}
                for reader in nodule.readers
            ],
            "interpolated_slices": list(nodule.outline.interpolated_slices)
            if nodule.outline
            else [],
            "flags": list(nodule.flags),
        },
        "predictions": {name: float(value) for name, value in case.predictions.items()},
        "targets": {each.target.name: _target(case, each) for each in case.maps},
        "method": {
            "name": method.name,
            "title": method.title,
            "reference": method.reference,
            "meaning": method.meaning,
            "settings": dataclasses.asdict(settings) if settings else {},
            "is_signed": method.is_signed,
            "resolution": method.resolution,
            "path": case.path,
            "prediction_rule": case.prediction_rule,
            "model_views": list(case.attribution.model_views),
            "views": {
                name: {"patch_size_mm": list(view.patch_size_mm)}
                for name, view in case.attribution.views.items()
            },
        },
        "model": dataclasses.asdict(case.model),
        "versions": {
            **{name: version_of(name) for name in _DISTRIBUTIONS},
            "python": platform.python_version(),
        },
        "files": _files(case),
    }


def _target(case: ExplainedNodule, target_map: TargetMap) -> dict[str, object]:
    return {
        **{key: getattr(target_map.target, key) for key in ("unit", "description", "low", "high")},
        "score_unit": _score_unit(case, target_map),
        "symmetric_limit": target_map.limit,
        "largest_score": target_map.largest,
        "voxels_beyond_limit": target_map.voxels_beyond,
        "prefix_share": target_map.prefix_share,
    }


def _score_unit(case: ExplainedNodule, target_map: TargetMap) -> str:
    if target_map.unit is not None:
        return target_map.unit
    if case.is_control:
        return "none (a control, which knows nothing of the model)"
    return "none (a method without sign)"


def _files(case: ExplainedNodule) -> dict[str, str]:
    files = {_CT_NAME: "CT around the nodule, HU rounded to whole numbers; what the model saw"}
    if case.crop.mask is not None:
        files[_MASK_NAME] = "mask of the nodule" + (
            ": 1 where at least half of the readers outlined it" if case.nodule.readers else ""
        )
    own = " and ".join(case.attribution.model_views)
    slices: dict[str | None, str] = {
        None: f"{own} slices, which the model predicts from",
        MEAN_OF_VIEWS: f"mean over the {', '.join(case.attribution.views)} slices",
        **{view: f"{view} slices" for view in case.attribution.views},
    }
    for target_map in case.maps:
        name, unit = target_map.target.name, _score_unit(case, target_map)
        for kind in _kinds(case):
            files[map_name(name, kind)] = f"attribution of {name}, {slices[kind]}; unit: {unit}"
    files[_OVERVIEW_NAME] = "the central slices on one page, for people without a viewer"
    files[RECORD_NAME] = "this record"
    files[record_name("case")] = (
        "names and SHA-256 of the other files: what a later run may replace"
    )
    return files
