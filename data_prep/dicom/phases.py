"""Several images at one position: copies, time points or reconstructions; what tells them apart.

Never is a guess made from the order of files or from InstanceNumber.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import combinations, pairwise

import numpy as np

from data_prep import geometry
from data_prep.dicom.pixels import CTSlice, read_hu, with_default_rescale
from data_prep.problems import MAX_NAMED_FILES, Finding
from data_prep.text import printable

DUPLICATE_TOLERANCE_MM = 0.01
"""Slices nearer to each other than this along the normal lie at the same position: no CT is
reconstructed that finely."""

MAX_COMBINED = 3
"""So many attributes together are tried, if none alone tells the phases apart."""

MAX_PARTS_PER_IMAGE = 2
"""A split makes at most so many parts for each image at the position with the most: an attribute
that differs from slice to slice is no phase. More parts than images there are where acquisitions
of different regions overlap."""

MAX_SHOWN = 64
"""Characters of an attribute that are shown."""

INTERLEAVING = (
    "AcquisitionNumber",
    "TemporalPositionIdentifier",
    "TemporalPositionIndex",
    "StackID",
    "ConvolutionKernel",
    "KVP",
)
"""Attributes that don't change from slice to slice and back within one acquisition."""

MAX_INTERLEAVED = 4
"""So many acquisitions are looked for that lie between one another."""

MIN_CHANGES = 0.75
"""They do where so large a share of neighbours belong to different ones."""

IN_PLANE = "position within the slice"
"""What tells reconstructions of one size apart whose centres differ."""


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


def find_piles(slices: Sequence[CTSlice]) -> list[Pile]:
    """Pile up slices of one geometry by their position along the normal, in its order.

    Slices are copies of one image if they lie at the same place and their pixels decode to the
    same HU with the same padding, whatever the files' UIDs and other attributes. Pixels are read
    only where several slices lie at one position.

    Raises
    ------
    SeriesError
        If they can't be read.
    """
    axes_lps = np.stack(geometry.slice_axes_lps(slices[0].orientation_lps))
    along_mm = np.array([float(one.position_lps @ axes_lps[2]) for one in slices])
    order = sorted(range(len(slices)), key=lambda n: (along_mm[n], slices[n].file))
    heights_mm = along_mm[order]
    starts = np.flatnonzero(np.diff(heights_mm, prepend=-np.inf) >= DUPLICATE_TOLERANCE_MM)
    piles = []
    for start, end in zip(starts, [*starts[1:], len(order)], strict=True):
        members = tuple(slices[n] for n in order[start:end])
        piles.append(Pile(float(heights_mm[start] - heights_mm[0]), members, _tell_images(members)))
    return piles


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
    """Keep the first of the copies of each image of piles of one image: ``duplicate_slices``."""
    kept = [pile.slices[0] for pile in piles]
    copies = [pile for pile in piles if len(pile.slices) > 1]
    if not copies:
        return kept, []
    one, other, *_ = copies[0].slices
    n_copies = sum(len(pile.slices) - 1 for pile in copies)
    what = (
        f"{one.name} and {other.name} are exact copies of one image ({copies[0].along_mm:.2f} mm "
        f"along the normal from the first); copies in all: {n_copies}"
    )
    files = tuple(one.file for pile in copies for one in pile.slices)[:MAX_NAMED_FILES]
    done = f"one of each is kept, {n_copies} left out"
    remedy = "keep one of each in the folder"
    return kept, [Finding("duplicate_slices", what, remedy, files, done)]


@dataclass(frozen=True, eq=False)
class Phases:
    """A group of slices in phases.

    Parameters
    ----------
    told_apart_by
        Names of the attributes; empty where there is one phase.
    parts
        For each phase the text of its attributes, and its piles of one image each.
    """

    told_apart_by: str
    parts: Mapping[str, Sequence[Pile]]


def split_phases(piles: Sequence[Pile]) -> Phases | None:
    """Split piles into phases of one image a position, or return None where nothing does it.

    Where there is one image at every position, they are several phases all the same if two to
    four values of an attribute alternate from slice to slice: the slices of one reconstruction
    lie between those of another.

    Attributes are tried alone, then two and three together; of those that leave one image at
    every position of every part, the one with the fewest parts is taken, the first of
    ``CTSlice.phase_keys`` among several. Times also count where all of one phase lie before all
    of the next.

    Parameters
    ----------
    piles
        In the order of their positions.
    """
    n_images = max(pile.n_images for pile in piles)
    if n_images == 1:
        return _interleaved(piles) or Phases("", {"": piles})
    slices = [one for pile in piles for one in pile.slices]
    keys = list(dict.fromkeys(key for one in slices for key in one.phase_keys))
    values = {key: [one.phase_keys.get(key, "") for one in slices] for key in keys}
    values = {key: texts for key, texts in values.items() if len(set(texts)) > 1}
    most = MAX_PARTS_PER_IMAGE * n_images
    for count in range(1, MAX_COMBINED + 1):
        found = []
        for names in combinations(values, count):
            labels = list(zip(*(values[name] for name in names), strict=True))
            parts = _parts(piles, labels, names, most)
            if parts:
                found.append(Phases(" and ".join(names), parts))
        if count == 1:
            found += _by_time(piles, values, n_images)
            found += _by_place(piles, slices, most)
        if found:
            return min(found, key=lambda phases: len(phases.parts))  # the first of the smallest
    return None


def _interleaved(piles: Sequence[Pile]) -> Phases | None:
    """Return the phases that lie between one another, if there are any."""
    for key in INTERLEAVING:
        labels = [pile.slices[0].phase_keys.get(key, "") for pile in piles]
        if "" in labels or len(set(labels)) == 1:
            continue
        n_changes = sum(one != other for one, other in pairwise(labels))
        # as many slices at least as two rounds have
        if n_changes < MIN_CHANGES * (len(piles) - 1) or len(piles) < 2 * len(set(labels)):
            continue
        # copies go with the first of them
        of_slices = [
            (label,) for pile, label in zip(piles, labels, strict=True) for _ in pile.slices
        ]
        parts = _parts(piles, of_slices, (key,), MAX_INTERLEAVED)
        if parts:
            return Phases(key, parts)
    return None


def _parts(
    piles: Sequence[Pile],
    labels: Sequence[tuple[str, ...]],
    names: Sequence[str],
    most: int,
) -> dict[str, list[Pile]] | None:
    """Return the piles of each part, or None if the labels don't make phases.

    Parameters
    ----------
    piles
        The positions.
    labels
        For each slice of each pile, one after the other, the values that it is told apart by.
    names
        Of the attributes.
    most
        Number of parts beyond which they aren't phases.
    """
    different = sorted(set(labels), key=lambda label: [_sort_key(text) for text in label])
    if not 1 < len(different) <= most:
        return None
    parts: dict[tuple[str, ...], list[Pile]] = {label: [] for label in different}
    start = 0
    for pile in piles:
        own = labels[start : start + len(pile.slices)]
        start += len(pile.slices)
        for label in set(own):
            members = [n for n, each in enumerate(own) if each == label]
            if len({pile.images[n] for n in members}) > 1:
                return None
            parts[label].append(
                Pile(pile.along_mm, tuple(pile.slices[n] for n in members), (0,) * len(members))
            )
    if len(piles) > 1 and max(map(len, parts.values())) == 1:
        return None
    return {_describe(names, label): part for label, part in parts.items()}


def _describe(names: Sequence[str], label: Sequence[str]) -> str:
    shown = [printable(text)[:MAX_SHOWN] or "absent" for text in label]
    return ", ".join(f"{name} {text}" for name, text in zip(names, shown, strict=True))


def _sort_key(text: str) -> tuple[float, str]:
    try:
        return float(text), text
    except ValueError:
        return np.inf, text


def _by_time(
    piles: Sequence[Pile], values: Mapping[str, Sequence[str]], n_images: int
) -> Iterator[Phases]:
    """Yield splits by times that grow within each phase and never overlap."""
    for key, texts in values.items():
        if not key.endswith(("Time", "DateTime")):
            continue
        try:
            times = np.array([float(text) for text in texts])
        except ValueError:
            continue
        ranks = _ranks(piles, times, n_images)
        if ranks is None:
            continue
        starts = [times[ranks == rank].min() for rank in range(n_images)]
        labels = [(f"from {texts[int(np.argmax(times == starts[rank]))]}",) for rank in ranks]
        parts = _parts(piles, labels, (key,), n_images)
        if parts:
            yield Phases(key, parts)


def _ranks(piles: Sequence[Pile], times: np.ndarray, n_images: int) -> np.ndarray | None:
    """Return for each slice which phase it belongs to, None where times overlap."""
    first, last = np.full(n_images, np.inf), np.full(n_images, -np.inf)
    start = 0
    for pile in piles:
        own = times[start : start + len(pile.slices)]
        start += len(pile.slices)
        if pile.n_images < n_images:
            continue
        of_images = [own[np.array(pile.images) == image] for image in range(n_images)]
        of_images.sort(key=lambda each: float(each.min()))
        first = np.minimum(first, [each.min() for each in of_images])
        last = np.maximum(last, [each.max() for each in of_images])
    if not (last[:-1] < first[1:]).all():
        return None
    ranks = np.searchsorted(first, times, side="right") - 1
    ranks = np.maximum(ranks, 0)
    # between the last of one phase and the first of the next it could belong to either
    is_unclear = (times > last[ranks]) & (ranks < n_images - 1)
    return None if is_unclear.any() else ranks


def _by_place(piles: Sequence[Pile], slices: Sequence[CTSlice], most: int) -> Iterator[Phases]:
    """Yield the split by the position within the slice, if it is the same throughout a part."""
    one = slices[0]
    plane = one.orientation_lps.reshape(2, 3)
    places = [
        " ".join(f"{mm:.1f}" for mm in plane @ (each.position_lps - one.position_lps) + 0.0)
        for each in slices
    ]
    parts = _parts(piles, [(place,) for place in places], (IN_PLANE,), most)
    if parts:
        yield Phases(IN_PLANE, parts)
