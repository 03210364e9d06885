"""A small synthetic case: a nodule in lung, with maps whose every voxel is known."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pytest

from cdam_med.data.views import VIEWS, volume_to_slices
from cdam_med.explanation import (
    AttributionVolumes,
    ExplainedNodule,
    ModelRecord,
    SourceRecord,
    ViewScores,
)
from cdam_med.targets import TARGETS
from data_prep.crop import Crop
from data_prep.nodules import MaskBox, Nodule, Reader
from data_prep.problems import Action, Problem

EDGE = 32
SPACING_MM = 2.0
SERIES_UID = "1.2.826.0.1.3680043.8.498.12345"


@dataclass(frozen=True)
class NamedMethod:
    """Stands for the attribution method: what a case says of it."""

    name: str = field(default="cdam", init=False)
    title: str = "CDAM"
    reference: str = "arXiv 2312.02364"
    meaning: str = "A number that this test made up. It means nothing."
    is_signed: bool = True
    resolution: str = "patch"
    cost: str = "nothing"

    def __call__(self, *_: object, **__: object) -> None:
        raise NotImplementedError


@pytest.fixture(scope="session")
def make_case() -> Callable[..., ExplainedNodule]:
    """Return a function that makes a case of the targets and views asked for."""
    return _make_case


def _make_case(
    targets: int = len(TARGETS),
    views: tuple[str, ...] = ("axial", "coronal", "sagittal"),
    *,
    is_annotated: bool = True,
    seed: int = 0,
    path: str = "closed form",
    patch_size_mm: tuple[float, float] = (8.0, 8.0),
    **method: object,
) -> ExplainedNodule:
    rng = np.random.default_rng(seed)
    shape = (EDGE, EDGE, EDGE)
    affine = np.diag([SPACING_MM, SPACING_MM, SPACING_MM, 1.0])
    affine[:3, 3] = (-83.5, 12.25, -170.0)
    distance = np.linalg.norm(np.indices(shape) - (EDGE - 1) / 2, axis=0)
    hu = rng.normal(-850, 30, shape)
    hu[distance < 5] = 40.0
    maps = {
        target.name: {view: _blocks(rng, scale=10.0 ** (number % 4 - 3)) for view in views}
        for number, target in enumerate(TARGETS[:targets])
    }
    ratings = {target.name: 3.5 for target in TARGETS}
    outline = MaskBox((0, 0, 0), np.ones((1, 1, 5), bool), shape, interpolated_slices=(4,))
    readers = tuple(
        Reader({name: float(value) for name in ratings}, None) for value in (3, 3, 4, 4)
    )
    return ExplainedNodule(
        crop=Crop(hu.astype(np.float32), affine, distance < 5 if is_annotated else None, None),
        nodule=Nodule(
            nodule_id="scan_n1",
            center_xyz_mm=affine[:3, :3] @ np.full(3, (EDGE - 1) / 2) + affine[:3, 3],
            ratings=ratings if is_annotated else {},
            readers=readers if is_annotated else (),
            outline=outline if is_annotated else None,
            flags=("combined_contours",) if is_annotated else (),
        ),
        predictions={
            **{target.name: float(rng.normal(3, 1)) for target in TARGETS},
            "malignancy_probability": 0.75,
        },
        attribution=AttributionVolumes(
            targets=tuple(maps),
            views={view: _view_scores(maps, view, path, patch_size_mm) for view in views},
            model_views=views[:1],
            affine=affine,
            shape=shape,
            padding=None,
        ),
        targets=TARGETS[:targets],
        method=NamedMethod(**method),
        model=ModelRecord("demo", "ab" * 32, {"depth": 6, "views": ("axial",)}),
        source=SourceRecord(
            "cd" * 32,
            SERIES_UID,
            (Problem("missing_slices", "Two slices are missing.", Action.REPAIR),),
            (3, 4),
        ),
    )


def _view_scores(
    maps: Mapping[str, Mapping[str, np.ndarray]],
    view: str,
    path: str,
    patch_size_mm: tuple[float, float],
) -> ViewScores:
    """A score for each voxel, and a third of them all again on one token without a place."""
    slices = [volume_to_slices(of_target[view], VIEWS[view]) for of_target in maps.values()]
    scores = np.stack(slices, axis=1)
    prefix = np.abs(scores).sum(axis=(2, 3))[..., None] / 3
    return ViewScores(scores, prefix.astype(np.float32), path, patch_size_mm)


def _blocks(rng: np.random.Generator, scale: float) -> np.ndarray:
    """Signed patches of 4 x 4 x 4 voxels, some of them exactly zero."""
    scores = rng.normal(0, scale, (EDGE // 4,) * 3)
    scores[np.abs(scores) < 0.3 * scale] = 0.0
    return np.kron(scores, np.ones((4, 4, 4))).astype(np.float32)
