"""Slices at the same position: which of them are copies of one image."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

import numpy as np

from data_prep import geometry
from data_prep.dicom.findings import MAX_NAMED_FILES, Finding, finding_from_error
from data_prep.dicom.pixels import read_hu
from data_prep.dicom.slices import CTSlice, with_default_rescale
from data_prep.problems import SeriesError

DUPLICATE_TOLERANCE_MM = 0.01
"""Slices nearer to each other than this along the normal lie at the same position: no CT is
reconstructed that finely."""


@dataclass(frozen=True, eq=False)
class Pile:
    """Slices at one position along the normal.

    Parameters
    ----------
    along_mm
        The position, from the first slice of the group.
    slices
        One or more.
    images
        For each slice the number of its image, from 0; copies of an image have the same one.
    """

    along_mm: float
    slices: tuple[CTSlice, ...]
    images: tuple[int, ...]

    @property
    def n_images(self) -> int:
        """Number of different images."""
        return max(self.images) + 1

    def two_images(self) -> tuple[CTSlice, CTSlice]:
        """Return two different images of a pile that holds several."""
        return self.slices[self.images.index(0)], self.slices[self.images.index(1)]


def find_piles(slices: Sequence[CTSlice]) -> tuple[list[Pile], tuple[Finding, ...]]:
    """Pile up slices by their position along the normal, in its order.

    Slices are copies of one image if they lie at the same place and their pixels decode to the
    same HU with the same padding, whatever the files' UIDs and other attributes.

    Parameters
    ----------
    slices
        Of one orientation, matrix size and pixel spacing. Only where several lie at one position
        are their pixels read.

    Returns
    -------
    piles : list of Pile
    findings : tuple of Finding
        Why the pixels of one can't be read.
    """
    axes_lps = np.stack(geometry.slice_axes_lps(slices[0].orientation_lps))
    along_mm = np.array([float(one.position_lps @ axes_lps[2]) for one in slices])
    order = sorted(range(len(slices)), key=lambda n: (along_mm[n], slices[n].file))
    heights_mm = along_mm[order]
    starts = np.flatnonzero(np.diff(heights_mm, prepend=-np.inf) >= DUPLICATE_TOLERANCE_MM)
    piles = []
    for start, end in zip(starts, [*starts[1:], len(order)], strict=True):
        members = tuple(slices[n] for n in order[start:end])
        try:
            images = _tell_images(members)
        except SeriesError as error:
            return [], (replace(finding_from_error(error, members[0].file), can_repair=False),)
        piles.append(Pile(float(heights_mm[start] - heights_mm[0]), members, images))
    return piles, ()


def _tell_images(slices: Sequence[CTSlice]) -> tuple[int, ...]:
    if len(slices) == 1:
        return (0,)
    firsts: list[tuple[bytes, CTSlice]] = []
    images = []
    for one in slices:
        digest = _digest(one)
        for number, (known, first) in enumerate(firsts):
            distance_mm = np.abs(one.position_lps - first.position_lps).max()
            if digest == known and distance_mm < DUPLICATE_TOLERANCE_MM:
                images.append(number)
                break
        else:
            images.append(len(firsts))
            firsts.append((digest, one))
    return tuple(images)


def _digest(one: CTSlice) -> bytes:
    hu, outside = read_hu(with_default_rescale([one]))
    digest = sha256(hu.dtype.name.encode())
    # transposed: a slice lies row by row, and isn't copied
    digest.update(np.ascontiguousarray(hu.T).data)
    digest.update(b"" if outside is None else np.packbits(outside.T).tobytes())
    return digest.digest()


def drop_copies(piles: Sequence[Pile]) -> tuple[list[CTSlice], list[Finding]]:
    """Keep the first of the copies of each image.

    Parameters
    ----------
    piles
        Of one image each.

    Returns
    -------
    slices : list of CTSlice
    findings : list of Finding
        ``duplicate_slices``
    """
    kept = [pile.slices[0] for pile in piles]
    copies = [pile for pile in piles if len(pile.slices) > 1]
    if not copies:
        return kept, []
    one, other, *_ = copies[0].slices
    n_copies = sum(len(pile.slices) - 1 for pile in copies)
    return kept, [
        Finding(
            "duplicate_slices",
            f"{one.name} and {other.name} are exact copies of one image "
            f"({copies[0].along_mm:.2f} mm along the normal from the first); copies in all: "
            f"{n_copies}",
            "keep one of each in the folder",
            tuple(one.file for pile in copies for one in pile.slices)[:MAX_NAMED_FILES],
            f"one of each is kept, {n_copies} left out",
        )
    ]
