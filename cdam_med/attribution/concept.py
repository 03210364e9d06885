"""Concept CDAM: maps of how like a set of examples an image is.

A concept is the mean class token ``l_c``, after the final norm, of any set of example images, and
its target is the similarity ``g(l, l_c)`` of an image's own class token to it (arXiv 2312.02364
eq. 3 and 4). The dot product is the default, because it is what the paper uses; the cosine and the
negative Euclidean distance, which the paper names, are options. Neither is centred or normalised
beyond what its formula says.

A `Concept` is a target like any other: pass it among the targets of any method, several of them
together or beside outputs of the model, and all their maps come from one pass.
A model whose class token is not the one that it was made of refuses it by name.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from cdam_med.attribution.class_token import ClassTokenModel, ReadoutFunction, class_token_model
from cdam_med.attribution.subject import alone_with, evaluating
from cdam_med.attribution.verification import headless_sha256
from cdam_med.errors import CdamError, TargetError

Similarity: TypeAlias = Literal["dot", "cosine", "negative_l2"]
"""How like a concept a class token is: the paper's dot product, cosine, or minus the distance."""

_SIMILARITIES: Mapping[Similarity, Callable[[Tensor, Tensor], Tensor]] = {
    "dot": torch.mv,
    "cosine": lambda token, vector: functional.cosine_similarity(token, vector[None], dim=1),
    "negative_l2": lambda token, vector: -torch.linalg.vector_norm(token - vector, dim=1),
}


@dataclass(frozen=True, eq=False)
class Concept:
    """A direction of the class token, with where it comes from.

    Parameters
    ----------
    label : str
        How maps of it are named.
    vector : Tensor
        Mean class token of the examples, after the final norm.
    model : str
        Name of the model that it was made with.
    weights_sha256 : str
        Hash of that model's weights, see `cdam_med.attribution.verification`.
    examples : tuple of str
        Identifiers of the example images, as many as there were.
    similarity : {"dot", "cosine", "negative_l2"}
        What is explained.
    source : str
        Where the examples were taken from, such as a query over a cohort.

    Raises
    ------
    TargetError
        If the vector isn't finite, or there is no such similarity.
    """

    label: str
    vector: Float[Tensor, " dim"]
    model: str
    weights_sha256: str
    examples: tuple[str, ...] = ()
    similarity: Similarity = "dot"
    source: str = ""

    def __post_init__(self) -> None:
        """Refuse what no score can be made of."""
        if self.similarity not in _SIMILARITIES:
            raise TargetError(
                f"There is no similarity {self.similarity!r} to the concept {self.label!r}: choose "
                f"from {', '.join(_SIMILARITIES)}."
            )
        if self.vector.is_inference():  # such a tensor can take no part in a gradient
            with torch.inference_mode(False):
                object.__setattr__(self, "vector", self.vector.clone())
        if not torch.isfinite(self.vector).all():
            raise TargetError(
                f"The concept {self.label!r} holds NaN or infinite values: make it anew from "
                "images that the model gives finite outputs for."
            )

    def bind(self, model: ClassTokenModel) -> ReadoutFunction:
        """Return the similarity to the concept, or refuse a model that it wasn't made with."""
        width = model.adapter.embed_dim
        if len(self.vector) != width:
            raise TargetError(
                f"The concept {self.label!r} was made with {self.model}, whose class token has "
                f"{len(self.vector)} numbers, not {width}: make it anew with this model."
            )
        if headless_sha256(model.vit) != self.weights_sha256:
            dtype = model.weight.dtype
            raise TargetError(
                f"The concept {self.label!r} was made with other weights, those of {self.model} "
                f"({self.weights_sha256[:12]}), not those of this model in {dtype} (the same "
                "weights rounded to another precision are others): make it anew with this model as "
                "it is, or load the weights that it was made with."
            )

        def similarity(
            features: Float[Tensor, "batch feature"], _: Float[Tensor, "batch output"]
        ) -> Float[Tensor, " batch"]:
            token = _class_token(model, features)
            vector = self.vector.to(token)
            return _SIMILARITIES[self.similarity](token, vector)

        return similarity


@torch.inference_mode(False)
@torch.no_grad()
def concept_from_images(
    model: object,
    images: Tensor | Iterable[Tensor],
    *,
    label: str,
    examples: Sequence[str] | None = None,
    similarity: Similarity = "dot",
    source: str = "",
) -> Concept:
    """Return the concept that example images have in common: the mean of their class tokens.

    Parameters
    ----------
    model : VisionTransformer or object with `class_token_model`
        The model whose maps are wanted.
    images : Tensor or iterable of Tensor
        Examples ``(batch, channel, height, width)`` as the model takes them, in one batch or any
        number of batches.
    label : str
        How maps of the concept are named.
    examples : sequence of str, optional
        Identifiers of the images; numbers from 0 unless given.
    similarity : {"dot", "cosine", "negative_l2"}
        What is explained.
    source : str
        Where the examples were taken from.

    Raises
    ------
    TargetError
        If there are no examples, or not as many as identifiers.
    ModelError
        If the outputs aren't read from a class token.
    CdamError
        If the images aren't what the model takes.
    """
    described = class_token_model(model)
    total, count = torch.zeros(described.adapter.embed_dim, dtype=torch.float64), 0
    kind = torch.float32
    for batch in _batches(images):
        with alone_with(described), evaluating(model, described):
            tokens = _class_token(described, described.features(described.check_images(batch)))
        kind = torch.promote_types(tokens.dtype, kind)
        total += tokens.cpu().double().sum(0)
        count += len(tokens)
    names = tuple(map(str, range(count))) if examples is None else tuple(examples)
    if count == 0 or len(names) != count:
        raise TargetError(
            f"The concept {label!r} has {count} example images and {len(names)} identifiers: give "
            "at least one image, and as many identifiers as images."
        )
    return Concept(
        label=label,
        vector=(total / count).to(kind),
        model=_model_name(described.vit),
        weights_sha256=headless_sha256(described.vit),
        examples=names,
        similarity=similarity,
        source=source,
    )


def _batches(images: Tensor | Iterable[Tensor]) -> Iterator[Tensor]:
    if isinstance(images, Tensor):
        yield images
    elif isinstance(images, Iterable):
        yield from images
    else:
        raise CdamError(
            f"Examples must be a tensor of images or an iterable of such tensors, not "
            f"{type(images).__name__}: convert an array with torch.as_tensor(...)."
        )


def _class_token(
    model: ClassTokenModel, features: Float[Tensor, "batch feature"]
) -> Float[Tensor, "batch dim"]:
    """Return the class token as the head is given it, where the readout has more tokens too."""
    token = features[:, : model.adapter.embed_dim]
    norm = getattr(model.vit, "fc_norm", None)  # the final norm, in models that pool first
    normed: Tensor = token if norm is None else norm(token)
    return normed


def _model_name(vit: nn.Module) -> str:
    config = getattr(vit, "pretrained_cfg", None) or {}
    return str(config.get("architecture") or type(vit).__name__)
