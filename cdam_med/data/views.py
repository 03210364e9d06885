"""Views: a crop as stacks of slices in radiological display orientation, and back.

Views are named by anatomy, so they only make sense for arrays whose axes are known: those of a
crop, where i, j and k run closest to the patient's right, front (anterior) and head (superior).
A slice is shown as a radiologist expects it: the patient's right on the left of the image, the
front at the top of an axial slice and the left of a sagittal one, the head at the top.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Shaped

from cdam_med.errors import ViewError
from data_prep.crop import CROP_AXCODES

OPPOSITE = {"R": "L", "A": "P", "S": "I"}


@dataclass(frozen=True)
class View:
    """How a crop is cut into slices; axes of the crop are 0 = i, 1 = j, 2 = k.

    Rows and columns run against their crop axis: columns towards L or P, rows towards P or I.
    Slices are counted along theirs, so that slice ``n`` lies at voxel index ``n``.
    """

    name: str
    slice_axis: int
    row_axis: int
    column_axis: int

    @property
    def axes(self) -> tuple[int, int, int]:
        """The crop's axes in the order slice, rows, columns."""
        return (self.slice_axis, self.row_axis, self.column_axis)

    @property
    def edges(self) -> tuple[str, str, str, str]:
        """The orientation letters at the image's left, right, top and bottom edge."""
        left = CROP_AXCODES[self.column_axis]
        top = CROP_AXCODES[self.row_axis]
        return (left, OPPOSITE[left], top, OPPOSITE[top])


AXIAL = View("axial", slice_axis=2, row_axis=1, column_axis=0)
CORONAL = View("coronal", slice_axis=1, row_axis=2, column_axis=0)
SAGITTAL = View("sagittal", slice_axis=0, row_axis=2, column_axis=1)

VIEWS = {view.name: view for view in (AXIAL, CORONAL, SAGITTAL)}
VIEW_NAMES = tuple(VIEWS)


def get_view(name: str) -> View:
    """Return the view of a name; of an unknown one the nearest is told."""
    if name in VIEWS:
        return VIEWS[name]
    close = difflib.get_close_matches(name, VIEW_NAMES, n=1)
    hint = f"did you mean {close[0]!r}? There are" if close else "choose from"
    raise ViewError(f"Unknown view {name!r}; {hint} {', '.join(VIEW_NAMES)}.")


def check_views(names: str | Sequence[str]) -> tuple[str, ...]:
    """Return the names of views that were chosen: known, at least one, none twice."""
    asked = (names,) if isinstance(names, str) else names
    checked = tuple(get_view(name).name for name in asked)
    if not checked or len(set(checked)) < len(checked):
        raise ViewError(
            f"Views are chosen once each, not {', '.join(checked) or 'none'}: choose from "
            f"{', '.join(VIEW_NAMES)}."
        )
    return checked


def volume_to_slices(
    volume: Shaped[np.ndarray, "i j k"], view: View
) -> Shaped[np.ndarray, "slice rows columns"]:
    """Cut a crop into slices as they are displayed, in the order of their voxel index; no copy."""
    return volume.transpose(view.axes)[:, ::-1, ::-1]


def slices_to_volume(
    slices: Shaped[np.ndarray, "slice rows columns"], view: View
) -> Shaped[np.ndarray, "i j k"]:
    """Put displayed slices back on the crop's grid: the inverse of `volume_to_slices`; no copy."""
    return slices[:, ::-1, ::-1].transpose(np.argsort(view.axes))


def central_slices(count: int) -> tuple[int, ...]:
    """Return the indices of the slices nearest the middle, the nodule's centre: one or two."""
    return tuple(sorted({(count - 1) // 2, count // 2}))
