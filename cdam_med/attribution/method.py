"""What every method takes and gives, so that one can be put in the place of another.

A method is an object that holds its settings and is called with a model, images and targets.
What all of them begin and end with is in `cdam_med.attribution.subject`.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, TypeAlias, runtime_checkable

from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from cdam_med.attribution.combinations import Targets

Resolution: TypeAlias = Literal["patch", "pixel"]
"""Whether a map has one score a patch or one a pixel."""


@dataclass(frozen=True, eq=False)
class Attribution:
    """Maps of a batch of images, by any method.

    Parameters
    ----------
    scores : Tensor
        Score of each patch or pixel. Signed scores speak for the target where positive and
        against it where negative; those of an unsigned method are never negative. At least in
        float32, also where the model isn't.
    outputs : Tensor
        Raw outputs of the model for the same targets and the images as given.
    targets : tuple of str or int
        Label of each target, or its column where the model has no names.
    method : str
        Name of the method in the registry.
    resolution : {"patch", "pixel"}
        What rows and columns are: the patch grid, or the pixels that the ViT takes.
    is_signed : bool
        Whether scores have a sign.
    prefix_scores : Tensor or None
        What fell on the tokens before the patches: the class token first, then registers.
        ``None`` where the method gives these tokens nothing.
    path : str
        How the scores were computed, such as ``"closed form"`` or ``"autograd"``.
    """

    scores: Float[Tensor, "batch target *grid"]
    outputs: Float[Tensor, "batch target"]
    targets: tuple[str | int, ...]
    method: str
    resolution: Resolution
    is_signed: bool
    prefix_scores: Float[Tensor, "batch target prefix"] | None
    path: str


@runtime_checkable
class Method(Protocol):
    """A way to make maps, with its settings; see `cdam_med.attribution.registry`.

    Called twice with the same seed it gives the same maps, and a batch gives the maps that its
    images give alone. The model is left as it was, also after an error.

    Methods that are called from several threads wait for each other where they explain the same
    ViT, and don't where each has its own. Another thread may predict with the model meanwhile:
    hooks act on the calls of their own thread alone. Training it meanwhile isn't kept from it.

    `meaning` is what a score is, for people who don't know the method; `cost` is in units of the
    model's forward pass, in words.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    meaning: ClassVar[str]
    reference: ClassVar[str]
    resolution: ClassVar[Resolution]
    is_signed: ClassVar[bool]
    cost: ClassVar[str]

    def __call__(
        self, model: object, images: Tensor, targets: "Targets" = None, *, seed: int = 0
    ) -> Attribution:
        """Return maps of a batch of images for any or all targets, as the model takes them.

        Targets are names or columns of outputs, combinations, concepts; ``None`` for every output.
        An image draws random numbers of its own, the same in any batch. A `CdamError` says what
        can't be explained.
        """
