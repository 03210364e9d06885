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
    """How a crop is cut into slices.

    Rows and columns run against their crop axis: columns towards L or P, rows towards P or I.
    Slices are counted along theirs, so that slice ``n`` lies at voxel index ``n``.

    Parameters
    ----------
    name : str
        Anatomical name of the plane.
    slice_axis, row_axis, column_axis : int
        Axis of the crop (0 = i, 1 = j, 2 = k) that counts the slices, the rows of a slice from
        the top, and its columns from the left.
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
    """Look a view up by its name.

    Parameters
    ----------
    name : str
        ``"axial"``, ``"coronal"`` or ``"sagittal"``.

    Raises
    ------
    ViewError
        No view has this name.
    """
    if name in VIEWS:
        return VIEWS[name]
    close = difflib.get_close_matches(name, VIEW_NAMES, n=1)
    hint = f"did you mean {close[0]!r}? There are" if close else "choose from"
    raise ViewError(f"Unknown view {name!r}; {hint} {', '.join(VIEW_NAMES)}.")


def check_views(names: str | Sequence[str]) -> tuple[str, ...]:
    """Check a choice of views: known, at least one, none twice.

    Parameters
    ----------
    names : str or sequence of str
        One name or several.

    Returns
    -------
    tuple of str
        The names, in the order given.

    Raises
    ------
    ViewError
        An unknown name, no name, or one given twice.
    """
    asked = (names,) if isinstance(names, str) else names
    checked = tuple(get_view(name).name for name in asked)
    if not checked:
        raise ViewError(f"No view was chosen; choose from {', '.join(VIEW_NAMES)}.")
    if len(set(checked)) < len(checked):
        raise ViewError(f"Each view can be chosen once, not {', '.join(checked)}; drop the repeat.")
    return checked


def volume_to_slices(
    volume: Shaped[np.ndarray, "i j k"], view: View
) -> Shaped[np.ndarray, "slice rows columns"]:
    """Cut a crop into slices as they are displayed.

    Parameters
    ----------
    volume : ndarray
        Values on a crop's grid, axes closest to R+, A+, S+.
    view : View
        The plane of the slices.

    Returns
    -------
    ndarray
        A view of ``volume``'s memory, slices in the order of their voxel index.
    """
    return volume.transpose(view.axes)[:, ::-1, ::-1]


def slices_to_volume(
    slices: Shaped[np.ndarray, "slice rows columns"], view: View
) -> Shaped[np.ndarray, "i j k"]:
    """Put displayed slices back on the crop's grid: the inverse of `volume_to_slices`.

    Parameters
    ----------
    slices : ndarray
        Slices in display orientation, in the order of their voxel index.
    view : View
        The plane of the slices.

    Returns
    -------
    ndarray
        A view of ``slices``' memory, axes closest to R+, A+, S+.
    """
    return slices[:, ::-1, ::-1].transpose(np.argsort(view.axes))


def central_slices(count: int) -> tuple[int, ...]:
    """Return the indices of the slices nearest the middle: two of an even count, else one.

    Parameters
    ----------
    count : int
        Number of slices. The crop is centred on the nodule, so the middle of the stack is the
        nodule's centre.
    """
    return tuple(sorted({(count - 1) // 2, count // 2}))
