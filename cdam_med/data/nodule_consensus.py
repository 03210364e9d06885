"""Where the readers saw a nodule on its labelled slices: masks beside `nodule_slices`.

``slices.npz`` holds ``reader_count`` (nodule, slice, rows, columns) beside ``image``: how many
readers outlined a pixel.
"""

import csv
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from jaxtyping import Bool, Float64, Shaped

from data_prep.errors import InputError
from data_prep.resample import resample_linear

MOST_READERS = 4
"""LIDC's scans were read by four; more outlines than that are several of one reader."""

HALF = 0.5
"""Share of the readers, and of a pixel after resampling, from which it belongs to the nodule."""

_UNREADABLE = (OSError, EOFError, BadZipFile, zlib.error, KeyError, AttributeError, ValueError)
"""What the two files raise when they aren't what they should be."""


@dataclass(frozen=True, eq=False)
class NoduleConsensus:
    """The readers' consensus on native pixels: at least half of them outlined a pixel.

    Parameters
    ----------
    masks : ndarray
        The consensus; the nodule's centre is the middle of the square.
    pixel_spacing_mm : ndarray
        Edge of a native pixel of each nodule.
    """

    masks: Bool[np.ndarray, "nodule slice rows columns"]
    pixel_spacing_mm: Float64[np.ndarray, "nodule"]

    def reach_mm(self, nodule: int) -> float:
        """Return how far the stored square reaches from the nodule's centre.

        Parameters
        ----------
        nodule : int
            Its row in ``nodules.csv``.
        """
        n_pixels = int(self.masks.shape[-1])
        return float(self.pixel_spacing_mm[nodule]) * n_pixels / 2

    def on_grid(
        self, nodule: int, slice_index: int, *, offset_mm: Sequence[float], edge_mm: float, n: int
    ) -> Bool[np.ndarray, "n n"]:
        """Return the consensus of a slice on the pixels of an image.

        Parameters
        ----------
        nodule, slice_index : int
            Row in ``nodules.csv``, and slice of that nodule.
        offset_mm : sequence of float
            Rows and columns from the nodule's centre to the middle of the image, in millimetres.
        edge_mm : float
            Edge of a pixel of the image.
        n : int
            Edge of the square image in pixels.
        """
        mask = self.masks[nodule, slice_index]
        own = _centred(len(mask), float(self.pixel_spacing_mm[nodule]), (0.0, 0.0))
        grid = _centred(n, edge_mm, offset_mm)
        sampled = resample_linear(mask[None].astype(np.float32), own, grid, (1, n, n))
        return np.asarray(sampled[0] >= HALF)


def read_nodule_consensus(folder: Path) -> NoduleConsensus:
    """Read the readers' outlines beside labelled slices.

    Parameters
    ----------
    folder : Path
        A folder that `cdam_med.data.nodule_slices.read_nodule_slices` reads.

    Raises
    ------
    InputError
        If there are no outlines, or they don't match the table.
    """
    try:
        with (folder / "nodules.csv").open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
        spacing_mm = np.array([float(row["pixel_spacing_mm"]) for row in rows])
        outlines = np.array([len(row["annotation_ids"].split()) for row in rows])
        path = folder / "slices.npz"
        with path.open("rb") as binary, np.load(binary, allow_pickle=False) as archive:
            count: Shaped[np.ndarray, "nodule slice rows columns"] = archive["reader_count"]
    except _UNREADABLE as error:
        raise InputError(
            f"The readers' outlines in {folder} can't be read ({error}); slices.npz needs an "
            "array 'reader_count' (nodule, slice, rows, columns), one row of nodules.csv each."
        ) from error
    if count.ndim != 4 or len(count) != len(rows) or count.shape[2] != count.shape[3]:
        raise InputError(
            f"{folder / 'slices.npz'} holds reader_count of shape {count.shape}, not "
            f"({len(rows)} nodules, slices, rows, as many columns): write both files anew."
        )
    readers = np.minimum(outlines, MOST_READERS)[:, None, None, None]
    return NoduleConsensus(np.asarray(2 * count.astype(np.int16) >= readers), spacing_mm)


def _centred(n: int, spacing_mm: float, offset_mm: Sequence[float]) -> Float64[np.ndarray, "4 4"]:
    """Return the affine of one slice whose middle lies `offset_mm` from the nodule's centre."""
    affine = np.diag([1.0, spacing_mm, spacing_mm, 1.0])
    affine[1:3, 3] = np.asarray(offset_mm) - spacing_mm * (n - 1) / 2
    return affine
