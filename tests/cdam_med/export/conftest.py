"""A small synthetic case: a nodule in lung, with maps whose every voxel is known."""

from collections.abc import Callable

import numpy as np
import pytest

from cdam_med.export import (
    CaseContent,
    MethodRecord,
    ModelRecord,
    NoduleRecord,
    SourceRecord,
    TargetResult,
)
from cdam_med.targets import TARGETS
from data_prep.crop import Crop
from data_prep.problems import Action, Problem

EDGE = 32
SPACING_MM = 2.0
SERIES_UID = "1.2.826.0.1.3680043.8.498.12345"


@pytest.fixture(scope="session")
def make_case() -> Callable[..., CaseContent]:
    """Return a function that makes a case of the targets and views asked for."""
    return _make_case


def _make_case(
    targets: int = len(TARGETS),
    views: tuple[str, ...] = ("axial", "coronal", "sagittal"),
    *,
    is_annotated: bool = True,
    seed: int = 0,
) -> CaseContent:
    rng = np.random.default_rng(seed)
    shape = (EDGE, EDGE, EDGE)
    affine = np.diag([SPACING_MM, SPACING_MM, SPACING_MM, 1.0])
    affine[:3, 3] = (-83.5, 12.25, -170.0)
    distance = np.linalg.norm(np.indices(shape) - (EDGE - 1) / 2, axis=0)
    hu = rng.normal(-850, 30, shape)
    hu[distance < 5] = 40.0
    results = []
    for number, target in enumerate(TARGETS[:targets]):
        maps = {view: _blocks(rng, scale=10.0 ** (number % 4 - 3)) for view in views}
        results.append(TargetResult(target, maps, maps[views[0]], 0.25))
    ratings = {target.name: 3.5 for target in TARGETS}
    readers = tuple({name: float(value) for name in ratings} for value in (3, 3, 4, 4))
    return CaseContent(
        crop=Crop(hu.astype(np.float32), affine, distance < 5 if is_annotated else None, None),
        nodule=NoduleRecord(
            nodule_id="scan_n1",
            center_xyz_mm=affine[:3, :3] @ np.full(3, (EDGE - 1) / 2) + affine[:3, 3],
            ratings=ratings if is_annotated else {},
            readers=readers if is_annotated else (),
            interpolated_slices=(4,) if is_annotated else (),
            flags=("combined_contours",) if is_annotated else (),
        ),
        predictions={
            **{target.name: float(rng.normal(3, 1)) for target in TARGETS},
            "malignancy_probability": 0.75,
        },
        results=tuple(results),
        method=MethodRecord(
            name="cdam",
            title="CDAM",
            reference="arXiv 2312.02364",
            settings={},
            meaning="A number that this test made up. It means nothing.",
            is_signed=True,
            resolution="patch",
            path="closed form",
            model_views=views[:1],
            patch_size_mm=dict.fromkeys(views, (8.0, 8.0)),
            prediction_rule="mean of the central slices",
        ),
        model=ModelRecord("demo", "ab" * 32, {"depth": 6, "views": ("axial",)}),
        source=SourceRecord(
            "cd" * 32,
            SERIES_UID,
            "ef" * 32 if is_annotated else None,
            (Problem("missing_slices", "Two slices are missing.", Action.REPAIR),),
            (3, 4),
        ),
    )


def _blocks(rng: np.random.Generator, scale: float) -> np.ndarray:
    """Signed patches of 4 x 4 x 4 voxels, some of them exactly zero."""
    scores = rng.normal(0, scale, (EDGE // 4,) * 3)
    scores[np.abs(scores) < 0.3 * scale] = 0.0
    return np.kron(scores, np.ones((4, 4, 4))).astype(np.float32)
