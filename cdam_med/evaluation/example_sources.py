"""Examples from what is on disk: labelled slices, a cohort folder, a folder of images."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Bool, Float32, Shaped
from torch import Tensor, nn

from cdam_med.data.image_folder import ImageFolder, ImagePreparation, load_images
from cdam_med.data.nodule_slices import read_nodule_consensus, read_nodule_slices
from cdam_med.data.transforms import InputSpec, slices_to_images
from cdam_med.data.views import AXIAL, volume_to_slices
from cdam_med.evaluation.examples import Examples
from cdam_med.models.nodule_vit import NoduleViT
from cdam_med.targets import MALIGNANCY
from data_prep.cohort.folder import Cohort, CohortImages
from data_prep.cohort.schema import label_of
from data_prep.errors import InputError
from data_prep.resample import resample_linear

Pixels = Bool[np.ndarray, "height width"]


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

    Malignancy is explained. The consensus are the pixels that at least half of the readers
    outlined; in a few middle slices there is none.

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
    _refuse_hu(model, folder)
    margin = _whole_pixels(shift_mm, spec)
    slices = read_nodule_slices(folder, spec, margin_mm=margin * spec.spacing_mm)
    consensus = read_nodule_consensus(folder)
    images, masks, offsets_mm, kept = [], [], [], []
    for row in _rows_of(slices.nodule_ids, nodules, folder):
        index = int(slices.n_slices[row]) // 2 + slice_offset
        if not 0 <= index < slices.n_slices[row]:
            continue
        room_mm = consensus.reach_mm(row) - spec.field_of_view_mm / 2
        offset = _offset(slices.nodule_ids[row], min(shift_mm, room_mm), spec, seed)
        images.append(_window(slices.slices[row, index], margin + offset, spec.n_pixels))
        offset_mm, edge_mm = offset * spec.spacing_mm, spec.field_of_view_mm / spec.image_size
        mask = consensus.on_grid(
            row, index, offset_mm=offset_mm.tolist(), edge_mm=edge_mm, n=spec.image_size
        )
        masks.append(mask)
        offsets_mm.append(offset_mm)
        kept.append(row)
    patients = {slices.nodule_ids[row]: slices.patient_ids[row] for row in kept}
    labels = [label_of(float(slices.malignancy[row])) for row in kept]
    return _nodule_examples(patients, labels, images, masks, offsets_mm=offsets_mm, spec=spec)


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
    spec, protocol = model.config.input, cohort.protocol
    room_mm = (protocol.size_mm - spec.field_of_view_mm) / 2
    if room_mm < 0:
        raise InputError(
            f"The cohort {cohort.path} has cubes of {protocol.size_mm:g} mm, and the model "
            f"{model.config.name} sees {spec.field_of_view_mm:g} mm: prepare the cohort with "
            "larger cubes."
        )
    by_id = {nodule.nodule_id: nodule for nodule in cohort.nodules}
    images, masks, offsets_mm, kept = [], [], [], []
    for row in _rows_of(tuple(by_id), nodules, cohort.path):
        nodule = cohort.nodules[row]
        offset_mm = _offset(nodule.nodule_id, min(shift_mm, room_mm), spec, seed) * spec.spacing_mm
        # of an even number of slices the one above the middle, as of stored slices
        above_mm = (slice_offset + 0.5 * (spec.n_pixels % 2 == 0)) * spec.spacing_mm
        if abs(above_mm) > protocol.size_mm / 2:
            continue
        place = np.array([above_mm, *offset_mm])
        image, mask = _slice_of_cube(cohort.read_images(nodule), place, spec)
        images.append(image)
        masks.append(mask)
        offsets_mm.append(offset_mm)
        kept.append(nodule)
    return _nodule_examples(
        {nodule.nodule_id: nodule.patient_id for nodule in kept},
        [nodule.label for nodule in kept],
        images,
        masks,
        offsets_mm=offsets_mm,
        spec=spec,
    )


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
    return Examples(
        ids=folder.names,
        groups=folder.names,
        images=load_images(folder, ImagePreparation(model)),
        targets=None,
        labels=tuple(folder.classes[label] for label in folder.labels),
        masks=None,
    )


def _refuse_hu(model: NoduleViT, folder: Path) -> None:
    if model.config.input.intensity == "hu_window":
        raise InputError(
            f"The model {model.config.name} takes HU, and slices in {folder} needn't be in HU; "
            "give a cohort folder, or a model with the intensity slice_stretch."
        )


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


def _whole_pixels(shift_mm: float, spec: InputSpec) -> int:
    if not (np.isfinite(shift_mm) and shift_mm >= 0):
        raise InputError(f"shift_mm must be 0 or more, not {shift_mm}: it is a distance.")
    return int(shift_mm // spec.spacing_mm)


def _offset(nodule_id: str, most_mm: float, spec: InputSpec, seed: int) -> Shaped[np.ndarray, "2"]:
    """Return rows and columns, in pixels, from the nodule's centre to the image's middle."""
    most = max(0, int(most_mm // spec.spacing_mm))
    random = np.random.default_rng([seed, *nodule_id.encode()])
    return random.integers(-most, most + 1, size=2)


def _window(
    plane: Float32[np.ndarray, "rows columns"], first: Shaped[np.ndarray, "2"], n_pixels: int
) -> Float32[np.ndarray, "n n"]:
    row, column = first
    return plane[row : row + n_pixels, column : column + n_pixels]


def _slice_of_cube(
    images: CohortImages, place_mm: Shaped[np.ndarray, "3"], spec: InputSpec
) -> tuple[Float32[np.ndarray, "n n"], Pixels]:
    """Return HU at the model's spacing, and the mask on the model's pixels, of an axial slice."""
    edges_mm = np.linalg.norm(images.affine[:3, :3], axis=0)[list(AXIAL.axes)]
    has_none = np.zeros(images.hu.shape, dtype=np.bool_)
    mask = has_none if images.mask is None else images.mask
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


def _nodule_examples(
    patient_of: Mapping[str, str],
    labels: list[Any],
    slices: list[Float32[np.ndarray, "n n"]],
    masks: list[Pixels],
    *,
    offsets_mm: list[Shaped[np.ndarray, "2"]],
    spec: InputSpec,
) -> Examples:
    if not slices:
        raise InputError("No nodule has the slice that is asked for; ask for one nearer by.")
    images: Tensor = slices_to_images(torch.from_numpy(np.stack(slices)), spec)
    return Examples(
        ids=tuple(patient_of),
        groups=tuple(patient_of.values()),
        images=images,
        targets=(MALIGNANCY.name,) * len(slices),
        labels=cast(tuple[str, ...], tuple(labels)),
        masks=torch.from_numpy(np.stack(masks)),
        shifts_mm=-np.array(offsets_mm, dtype=np.float64),  # against the window's own offset
    )
