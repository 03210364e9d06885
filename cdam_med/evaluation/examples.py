"""What explanations are evaluated on: images, and what is known of them; read from disk.

Sources are labelled slices, a cohort folder, and a folder of images by class. Of nodules malignancy
is explained.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Shaped
from torch import Tensor, nn

from cdam_med.data.image_folder import ImageFolder, ImagePreparation, load_images
from cdam_med.data.nodule_slices import read_nodule_consensus, read_nodule_slices
from cdam_med.data.transforms import InputSpec, slices_to_images
from cdam_med.data.views import AXIAL, volume_to_slices
from cdam_med.models.nodule_vit import NoduleViT
from cdam_med.targets import MALIGNANCY
from data_prep.cohort.folder import Cohort, CohortImages
from data_prep.cohort.schema import label_of
from data_prep.errors import InputError
from data_prep.resample import resample_linear

Pixels = Bool[np.ndarray, "height width"]
Slice = Float32[np.ndarray, "n n"]


@dataclass(frozen=True, eq=False)
class Examples:
    """Images to explain, and what is known of each.

    Parameters
    ----------
    ids : tuple of str
        Name of each image; no two are the same.
    groups : tuple of str
        What is drawn by the bootstrap: the patient, or the image where that is unknown.
    images : Tensor
        Images as the model takes them.
    targets : tuple of str or int, or None
        Target that is explained for each image; ``None`` for the output that is highest.
    labels : tuple of str
        Class of each image, such as ``"malignant"``; ``""`` where unknown.
    masks : Tensor or None
        Where the object is, in the pixels of `images`; ``None`` where nobody has said.
    shifts_mm : ndarray or None
        How far the object was moved out of the centre, down the rows and along the columns;
        ``None`` where that isn't known.

    Raises
    ------
    InputError
        If there is no image, an id comes twice, or the parts don't have one entry an image.
    """

    ids: tuple[str, ...]
    groups: tuple[str, ...]
    images: Float[Tensor, "image channel height width"]
    targets: tuple[str | int, ...] | None
    labels: tuple[str, ...]
    masks: Bool[Tensor, "image height width"] | None
    shifts_mm: Float[np.ndarray, "image 2"] | None = None

    def __post_init__(self) -> None:
        """Refuse parts that don't belong together."""
        count = len(self.ids)
        if not self.ids or len(set(self.ids)) < count:
            raise InputError(
                f"Examples need at least one image and a name of its own for each, not "
                f"{len(set(self.ids))} names for {count} images."
            )
        for field in fields(self):
            part = getattr(self, field.name)
            if part is not None and len(part) != count:
                raise InputError(
                    f"Examples need one entry an image in {field.name}, not {len(part)} for "
                    f"{count} images."
                )
        if self.masks is not None and self.masks.shape[1:] != self.images.shape[2:]:
            raise InputError(
                f"masks of {tuple(self.masks.shape[1:])} pixels don't lie on images of "
                f"{tuple(self.images.shape[2:])}: resample them."
            )

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.ids)

    def select(self, indices: Sequence[int]) -> "Examples":
        """Return some of the examples, in the order of `indices`."""
        chosen = list(indices)
        parts: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, part in parts.items():
            if isinstance(part, tuple):
                parts[name] = tuple(part[index] for index in chosen)
            elif part is not None:
                parts[name] = part[chosen]
        return Examples(**parts)


class _Nodule(NamedTuple):
    """A slice of a nodule: values at the model's spacing, and the mask on the model's pixels."""

    nodule_id: str
    patient_id: str
    label: str
    values: Slice
    mask: Pixels
    offset_mm: Shaped[np.ndarray, "2"]


def examples_from_slices(
    folder: Path,
    model: NoduleViT,
    *,
    nodules: Collection[str] | None = None,
    shift_mm: float = 0.0,
    slice_offset: int = 0,
    seed: int = 0,
) -> Examples:
    """Return the middle slices of labelled nodules, with the readers' consensus as mask.

    The consensus are the pixels that at least half of the readers outlined; in a few middle slices
    there is none.

    Parameters
    ----------
    folder : Path
        A folder that `cdam_med.data.nodule_slices.read_nodule_slices` reads, with
        ``reader_count`` beside the images.
    model : NoduleViT
        Its input says how a slice becomes an image.
    nodules : collection of str, optional
        Names of the nodules; all unless given.
    shift_mm : float
        How far, at most and along each axis, the nodule is moved out of the centre, drawn by its
        name and the seed; no further than its stored slice reaches, so that no pixel is made up.
    slice_offset : int
        The slice so many above the middle one; nodules that don't have it are left out.
    seed : int
        Of the shifts.

    Raises
    ------
    InputError
        If a file is missing or damaged, there is no such nodule, or none is left, or the model
        takes HU, which such slices have lost.
    """
    spec = model.config.input
    if spec.intensity == "hu_window":
        raise InputError(
            f"The model {model.config.name} takes HU, and slices in {folder} needn't be in HU; "
            "give a cohort folder, or a model with the intensity slice_stretch."
        )
    if not (np.isfinite(shift_mm) and shift_mm >= 0):
        raise InputError(f"shift_mm must be 0 or more, not {shift_mm}: it is a distance.")
    margin = int(shift_mm // spec.spacing_mm)
    slices = read_nodule_slices(folder, spec, margin_mm=margin * spec.spacing_mm)
    consensus = read_nodule_consensus(folder)
    edge_mm = spec.field_of_view_mm / spec.image_size
    found = []
    for row in _rows_of(slices.nodule_ids, nodules, folder):
        index = int(slices.n_slices[row]) // 2 + slice_offset
        if not 0 <= index < slices.n_slices[row]:
            continue
        room_mm = consensus.reach_mm(row) - spec.field_of_view_mm / 2
        offset = _offset(slices.nodule_ids[row], min(shift_mm, room_mm), spec, seed)
        offset_mm, (first, start) = offset * spec.spacing_mm, margin + offset
        plane = slices.slices[row, index, first:, start:][: spec.n_pixels, : spec.n_pixels]
        mask = consensus.on_grid(
            row, index, offset_mm=offset_mm.tolist(), edge_mm=edge_mm, n=spec.image_size
        )
        label = label_of(float(slices.malignancy[row]))
        names = slices.nodule_ids[row], slices.patient_ids[row], label
        found.append(_Nodule(*names, plane, mask, offset_mm))
    return _nodule_examples(found, spec)


def examples_from_cohort(
    cohort: Cohort,
    model: NoduleViT,
    *,
    nodules: Collection[str] | None = None,
    shift_mm: float = 0.0,
    slice_offset: int = 0,
    seed: int = 0,
) -> Examples:
    """Return the central axial slices of a cohort's nodules, with the consensus as mask.

    Parameters are those of `examples_from_slices`; the cubes of the cohort take the place of the
    stored slices, and `slice_offset` counts slices of the model's spacing towards the head.
    Nodules without a mask have one that is empty.

    Raises
    ------
    InputError
        If a file is missing or damaged, there is no such nodule, or none is left, or the
        cohort's cubes are smaller than the model's field of view.
    """
    spec, size_mm = model.config.input, cohort.protocol.size_mm
    room_mm = (size_mm - spec.field_of_view_mm) / 2
    if room_mm < 0:
        raise InputError(
            f"The cohort {cohort.path} has cubes of {size_mm:g} mm, and the model "
            f"{model.config.name} sees {spec.field_of_view_mm:g} mm: prepare the cohort with "
            "larger cubes."
        )
    # of an even number of slices the one above the middle, as of stored slices
    above_mm = (slice_offset + 0.5 * (spec.n_pixels % 2 == 0)) * spec.spacing_mm
    ids = tuple(nodule.nodule_id for nodule in cohort.nodules)
    rows = _rows_of(ids, nodules, cohort.path) if abs(above_mm) <= size_mm / 2 else []
    found = []
    for row in rows:
        nodule = cohort.nodules[row]
        offset_mm = _offset(nodule.nodule_id, min(shift_mm, room_mm), spec, seed) * spec.spacing_mm
        place = np.array([above_mm, *offset_mm])
        parts = _slice_of_cube(cohort.read_images(nodule), place, spec)
        names = nodule.nodule_id, nodule.patient_id, str(nodule.label)
        found.append(_Nodule(*names, *parts, offset_mm))
    return _nodule_examples(found, spec)


def examples_from_image_folder(folder: ImageFolder, model: nn.Module) -> Examples:
    """Return images from folders by class; each is explained for its highest output.

    Parameters
    ----------
    folder : ImageFolder
        The images, or some of them.
    model : Module
        timm's model, whose data configuration says how an image is prepared.

    Raises
    ------
    InputError
        If an image can't be read.
    """
    labels = tuple(folder.classes[label] for label in folder.labels)
    images = load_images(folder, ImagePreparation(model))
    return Examples(folder.names, folder.names, images, targets=None, labels=labels, masks=None)


def _rows_of(ids: tuple[str, ...], asked: Collection[str] | None, place: Path) -> list[int]:
    """Return the positions of the nodules asked for, in the order of the table."""
    if asked is None:
        return list(range(len(ids)))
    if missing := sorted(set(asked) - set(ids)):
        raise InputError(
            f"There is no nodule {', '.join(missing)} among the {len(ids)} of {place}; check the "
            "names."
        )
    return [row for row, name in enumerate(ids) if name in set(asked)]


def _offset(nodule_id: str, most_mm: float, spec: InputSpec, seed: int) -> Shaped[np.ndarray, "2"]:
    """Return rows and columns, in pixels, from the nodule's centre to the image's middle."""
    most = max(0, int(most_mm // spec.spacing_mm))
    random = np.random.default_rng([seed, *nodule_id.encode()])
    return random.integers(-most, most + 1, size=2)


def _slice_of_cube(
    images: CohortImages, place_mm: Shaped[np.ndarray, "3"], spec: InputSpec
) -> tuple[Slice, Pixels]:
    """Return HU at the model's spacing, and the mask on the model's pixels, of an axial slice."""
    edges_mm = np.linalg.norm(images.affine[:3, :3], axis=0)[list(AXIAL.axes)]
    mask = np.zeros(images.hu.shape, dtype=np.bool_) if images.mask is None else images.mask
    sampled = []
    for volume, edge_mm, n in (
        (images.hu, spec.spacing_mm, spec.n_pixels),
        (mask, spec.field_of_view_mm / spec.image_size, spec.image_size),
    ):
        stack = volume_to_slices(volume, AXIAL).astype(np.float32)
        own = _centred_affine(edges_mm, stack.shape, np.zeros(3))
        # the thickness of the slice is the model's spacing in both
        grid = _centred_affine(np.array([spec.spacing_mm, edge_mm, edge_mm]), (1, n, n), place_mm)
        sampled.append(resample_linear(stack, own, grid, (1, n, n))[0])
    hu, share = sampled
    return hu, np.asarray(share >= 0.5)


def _centred_affine(
    edges_mm: Shaped[np.ndarray, "3"], shape: tuple[int, ...], middle_mm: Shaped[np.ndarray, "3"]
) -> Shaped[np.ndarray, "4 4"]:
    affine = np.diag([*edges_mm, 1.0])
    affine[:3, 3] = middle_mm - edges_mm * (np.array(shape) - 1) / 2
    return affine


def _nodule_examples(found: Sequence[_Nodule], spec: InputSpec) -> Examples:
    if not found:
        raise InputError("No nodule has the slice that is asked for; ask for one nearer by.")
    ids, patients, labels, values, masks, offsets_mm = zip(*found, strict=True)
    return Examples(
        ids=ids,
        groups=patients,
        images=slices_to_images(torch.from_numpy(np.stack(values)), spec),
        targets=(MALIGNANCY.name,) * len(found),
        labels=labels,
        masks=torch.from_numpy(np.stack(masks)),
        shifts_mm=-np.array(offsets_mm, dtype=np.float64),  # against the window's own offset
    )
