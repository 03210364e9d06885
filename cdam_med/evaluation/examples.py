"""What explanations are judged on: images, and what is known of them."""

from collections.abc import Sequence, Sized
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from data_prep.errors import InputError


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
        if not self.ids or len(set(self.ids)) < len(self.ids):
            raise InputError(
                f"Examples need at least one image and a name of its own for each, not "
                f"{len(set(self.ids))} names for {len(self.ids)} images."
            )
        parts: dict[str, Sized | None] = {
            "groups": self.groups,
            "images": self.images,
            "targets": self.targets,
        }
        parts |= {"labels": self.labels, "masks": self.masks, "shifts_mm": self.shifts_mm}
        for name, part in parts.items():
            if part is not None and len(part) != len(self.ids):
                raise InputError(
                    f"Examples need one entry an image in {name}, not {len(part)} for "
                    f"{len(self.ids)} images."
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
        """Return some of the examples, in the order of `indices`.

        Parameters
        ----------
        indices : sequence of int
            Positions; each once.
        """
        chosen = list(indices)
        return Examples(
            ids=tuple(self.ids[index] for index in chosen),
            groups=tuple(self.groups[index] for index in chosen),
            images=self.images[chosen],
            targets=None if self.targets is None else tuple(self.targets[i] for i in chosen),
            labels=tuple(self.labels[index] for index in chosen),
            masks=None if self.masks is None else self.masks[chosen],
            shifts_mm=None if self.shifts_mm is None else self.shifts_mm[chosen],
        )
