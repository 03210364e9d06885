"""Concept CDAM: maps of how like a set of examples an image is.

A concept is the mean class token ``l_c``, after the final norm, of any set of example images, and
its target is the similarity ``g(l, l_c)`` of an image's own class token to it (arXiv 2312.02364
eq. 3 and 4). The dot product is the default, because it is what the paper uses; the cosine and the
negative Euclidean distance, which the paper names, are options. Neither is centred or normalised
beyond what its formula says.

A `Concept` is a target like any other: pass it among the targets of any estimator, several of them
together or beside outputs of the model, and all their maps come from one pass.

It is stored as a safetensors file, the vector as its one tensor and everything else as JSON in its
header, and it is refused, by name, by a model whose class token is not the one it was made of.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional

from cdam_med.attribution.fingerprint import weights_sha256
from cdam_med.attribution.subject import alone_with, evaluating
from cdam_med.errors import TargetError
from cdam_med.models.class_token import ClassTokenModel, ReadoutFunction
from cdam_med.models.description import class_token_model
from data_prep.disk import output_error, write_file, write_new_file
from data_prep.errors import InputError, OutputError
from data_prep.text import printable
from data_prep.written import check_parent

Similarity: TypeAlias = Literal["dot", "cosine", "negative_l2"]
"""How like a concept a class token is: the paper's dot product, cosine, or minus the distance."""

_SIMILARITIES: Mapping[Similarity, Callable[[Tensor, Tensor], Tensor]] = {
    "dot": torch.mv,
    "cosine": lambda token, vector: functional.cosine_similarity(token, vector[None], dim=1),
    "negative_l2": lambda token, vector: -torch.linalg.vector_norm(token - vector, dim=1),
}

_HEADER, _VECTOR = "cdam_med.concept.1", "vector"


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
        Hash of that model's weights, see `cdam_med.attribution.fingerprint`.
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
        """Return the similarity to the concept as a function of the class token.

        Parameters
        ----------
        model : ClassTokenModel
            The model to explain.

        Raises
        ------
        TargetError
            If the concept was made with another model.
        """
        width = model.adapter.embed_dim
        if len(self.vector) != width:
            raise TargetError(
                f"The concept {self.label!r} was made with {self.model}, whose class token has "
                f"{len(self.vector)} numbers, not {width}: make it anew with this model."
            )
        if weights_sha256(model.vit) != self.weights_sha256:
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
    InputError
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
        weights_sha256=weights_sha256(described.vit),
        examples=names,
        similarity=similarity,
        source=source,
    )


def save_concept(concept: Concept, path: str | Path, *, overwrite: bool = False) -> None:
    """Write a concept to a safetensors file.

    Parameters
    ----------
    concept : Concept
        What is stored.
    path : str or Path
        A file; its folder must exist.
    overwrite : bool
        Replace a file that holds a concept.

    Raises
    ------
    OutputError
        If something is there that isn't to be replaced, or the file can't be written.
    """
    record = _Record(
        label=concept.label,
        model=concept.model,
        weights_sha256=concept.weights_sha256,
        examples=concept.examples,
        similarity=concept.similarity,
        source=concept.source,
    )
    vector = concept.vector.detach().cpu().contiguous()
    header = {_HEADER: record.model_dump_json()}
    place = Path(path)
    check_concept_file(place, overwrite=overwrite)
    write = write_file if os.path.lexists(place) else write_new_file
    try:
        write(place, save({_VECTOR: vector}, metadata=header))
    except OSError as error:
        raise output_error("the concept", place, error) from error


def check_concept_file(place: Path, *, overwrite: bool) -> None:
    """Refuse a place for a concept before it is made.

    Parameters
    ----------
    place : Path
        Where it is to go.
    overwrite : bool
        A concept may be there, but nothing else.

    Raises
    ------
    OutputError
        If the place is taken or can't be written to.
    """
    check_parent(place)
    if not os.path.lexists(place):
        return
    shown = printable(str(place))
    if not overwrite:
        raise OutputError(
            f"{shown} is there already; choose another place, or replace it by overwrite=True."
        )
    try:
        is_concept = not place.is_symlink() and load_concept(place) is not None
    except TargetError:
        is_concept = False
    if not is_concept:
        raise OutputError(
            f"{shown} is no concept that cdam-med wrote, and isn't replaced; choose another place "
            f"or move it away."
        )


def load_concept(path: str | Path) -> Concept:
    """Read a concept that `save_concept` wrote; nothing in the file is executed.

    Parameters
    ----------
    path : str or Path
        A file.

    Raises
    ------
    TargetError
        If the file is missing or isn't such a file.
    """
    try:
        with safe_open(Path(path), framework="pt") as file:
            header = (file.metadata() or {}).get(_HEADER)
            vector = file.get_tensor(_VECTOR) if _VECTOR in file.keys() else None  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise TargetError(
            f"{path} can't be read as a concept ({error}): give a file that save_concept wrote."
        ) from error
    if header is None or vector is None or vector.ndim != 1 or not vector.is_floating_point():
        raise TargetError(
            f"{path} is a safetensors file, but holds no concept: give one that save_concept wrote."
        )
    try:
        record = _Record.model_validate_json(header)
    except ValidationError as error:
        raise TargetError(
            f"The header of {path} is not that of a concept: make it anew with save_concept."
        ) from error
    return Concept(vector=vector, **dict(record))


class _Record(BaseModel):
    """What is stored beside the vector."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: str
    model: str
    weights_sha256: str
    examples: tuple[str, ...]
    similarity: Similarity
    source: str


def _batches(images: Tensor | Iterable[Tensor]) -> Iterator[Tensor]:
    if isinstance(images, Tensor):
        yield images
    elif isinstance(images, Iterable):
        yield from images
    else:
        raise InputError(
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
