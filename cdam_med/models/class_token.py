"""What an attribution needs to know of a model: a ViT, and how its class token becomes outputs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from cdam_med.errors import ModelError, TargetError
from data_prep.errors import InputError

ReadoutFunction: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""What `readout` is given and its outputs, ``(batch, output)`` -> one number an image."""


@dataclass(frozen=True)
class ClassTokenModel:
    """A ViT whose outputs are read from its class token alone.

    Parameters
    ----------
    vit : VisionTransformer or Eva
        timm's model, unmodified. Outputs depend on its tokens as `forward_features` gives them.
    prepare : callable
        User's images ``(batch, channel, height, width)`` -> what `vit.forward_features` takes.
    readout : callable
        Class token after the final norm ``(batch, dim)`` -> raw outputs ``(batch, target)``.
    target_names : tuple of str, optional
        Names of the outputs, in their order.
    readout_tokens : int
        How many leading tokens the outputs are read from. A distilled DeiT has two; its readout
        is given both side by side, ``(batch, 2 * dim)``.

    Raises
    ------
    ModelError
        If `vit` has no class token, or its forward pass is not timm's own.
    """

    vit: VisionTransformer | Eva
    prepare: Callable[[Tensor], Tensor]
    readout: Callable[[Tensor], Tensor]
    target_names: tuple[str, ...] | None = None
    readout_tokens: int = 1

    def __post_init__(self) -> None:
        """Refuse a ViT whose class token isn't what this class says it is."""
        if self.vit.cls_token is None:
            raise ModelError(
                f"{_name(self.vit)} has no class token, and a class-discriminative attention map "
                "is the share of each token in it: choose a ViT with a class token."
            )
        base = _timm_class(self.vit)
        if type(self.vit).forward_features is not base.forward_features:
            raise ModelError(
                f"{_name(self.vit)} has a forward_features of its own, so what comes before the "
                f"class token is unknown: use timm's {base.__name__} itself."
            )

    def read(self, tokens: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch target"]:
        """Return the raw outputs for the tokens that leave the last block.

        Parameters
        ----------
        tokens : Tensor
            All tokens, or at least the leading ones that are read.
        """
        normed: Tensor = self.vit.norm(tokens[:, : self.readout_tokens])
        return self.readout(normed.flatten(1))

    def outputs(
        self, prepared: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch target"]:
        """Return the raw outputs for images as the ViT takes them: the whole forward pass."""
        return self.readout(self.features(prepared))

    def features(
        self, prepared: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch feature"]:
        """Return what `readout` is given for images as the ViT takes them."""
        tokens: Tensor = self.vit.forward_features(prepared)
        return tokens[:, : self.readout_tokens].flatten(1)

    def with_outputs(self, functions: Sequence[ReadoutFunction]) -> "ClassTokenModel":
        """Return the same model with further outputs behind its own.

        They make any number that can be computed from the class token an output like any other:
        a difference of outputs, a similarity to a concept. The names of its own outputs stay;
        columns of the new ones start at `output_count`.

        Parameters
        ----------
        functions : sequence of callable
            Each takes what `readout` is given and the outputs that it returns, and gives one
            number an image.
        """
        own = self.readout

        def extended(class_token: Float[Tensor, "batch feature"]) -> Float[Tensor, "batch target"]:
            outputs = own(class_token)
            added = [function(class_token, outputs)[:, None] for function in functions]
            return torch.cat((outputs, *added), dim=1)

        return replace(self, readout=extended)

    def check_images(self, images: Tensor) -> Tensor:
        """Check a batch and return it as the ViT takes it, on the model's device.

        Parameters
        ----------
        images : Tensor
            ``(batch, channel, height, width)``, floating point, finite.

        Returns
        -------
        Tensor
            `prepare` of the images, cast to the type of the model's weights.

        Raises
        ------
        InputError
            If it isn't such a batch, or the model takes another size; the size is named.
        """
        if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point():
            found = f"{tuple(images.shape)} {images.dtype}"
            raise InputError(
                "images must be a floating-point tensor (batch, channel, height, width), "
                f"not {found}: add the missing axes and convert with .float()."
            )
        if len(images) == 0:
            raise InputError("images is an empty batch: give at least one image.")
        if not torch.isfinite(images).all():
            raise InputError("images holds NaN or infinite values: replace them first.")
        weight = next(self.vit.parameters())
        prepared = self.prepare(images.to(device=weight.device, dtype=weight.dtype))
        self._check_size(prepared)
        return prepared

    def _check_size(self, prepared: Tensor) -> None:
        embed: Any = self.vit.patch_embed
        height, width = prepared.shape[-2:]
        rows, columns = embed.feat_ratio(as_scalar=False)  # pixels for each row and column
        channels = next(m for m in embed.modules() if isinstance(m, nn.Conv2d)).in_channels
        if embed.strict_img_size and embed.img_size is not None:
            expected = "of {} x {} pixels".format(*embed.img_size)
            fits = (height, width) == tuple(embed.img_size)
        elif embed.dynamic_img_pad:
            expected, fits = "of any size", True
        else:
            expected = f"of a height that {rows} divides and a width that {columns} divides,"
            fits = height % rows == 0 and width % columns == 0
        if not fits or prepared.shape[1] != channels:
            raise InputError(
                f"{_name(self.vit)} takes images {expected} with {channels} channel(s), "
                f"not {height} x {width} with {prepared.shape[1]}: resize or convert them."
            )

    def grid_size(self, prepared: Float[Tensor, "batch channel height width"]) -> tuple[int, int]:
        """Return rows and columns of the patch grid for images as the ViT takes them."""
        embed: Any = self.vit.patch_embed
        rows, columns = embed.dynamic_feat_size(tuple(prepared.shape[-2:]))
        return int(rows), int(columns)

    def target_columns(self, targets: str | int | Sequence[str | int] | None) -> tuple[int, ...]:
        """Return the output columns of the targets that are meant.

        Parameters
        ----------
        targets : str, int, sequence of them, or None
            Names, columns of the output, or ``None`` for every output.

        Raises
        ------
        TargetError
            If there is no such target; those that exist are listed.
        """
        count = self.output_count
        if targets is None:
            return tuple(range(count))
        asked = (targets,) if isinstance(targets, str | int) else tuple(targets)
        if not asked:
            raise TargetError("No target is asked for: name one, or pass None for all.")
        names = self.target_names or ()
        found = [names.index(t) if t in names else t for t in asked]
        for target in found:
            if not isinstance(target, int) or not 0 <= target < count:
                listed = f"0 to {count - 1}" + (f" or {', '.join(names)}" if names else "")
                raise TargetError(f"The model has no target {target!r}: choose from {listed}.")
        return tuple(column for column in found if isinstance(column, int))

    @property
    def output_count(self) -> int:
        """How many outputs the model has."""
        like = next(self.vit.parameters())
        token = like.new_zeros(1, self.readout_tokens * self.vit.embed_dim)
        with torch.no_grad():
            return self.readout(token).shape[1]


def class_token_model(model: object) -> ClassTokenModel:
    """Return what an attribution needs to know of a model.

    Parameters
    ----------
    model : VisionTransformer, Eva, ClassTokenModel or object with `class_token_model`
        A timm ViT that reads its outputs from the class token, or a model with a method
        ``class_token_model()`` that returns a `ClassTokenModel`.

    Raises
    ------
    ModelError
        If the outputs aren't read from a class token; the model and the reason are named.
    """
    if isinstance(model, ClassTokenModel):
        return model
    if isinstance(model, VisionTransformer | Eva):
        return _plain(model)
    described = model.class_token_model() if hasattr(model, "class_token_model") else None
    if isinstance(described, ClassTokenModel):
        return described
    raise ModelError(
        f"{type(model).__name__} is not a timm VisionTransformer: pass one, or a model whose "
        "method class_token_model() returns a ClassTokenModel."
    )


def _plain(vit: VisionTransformer | Eva) -> ClassTokenModel:
    """Describe a timm model: the readout is its own `forward_head`, token pooling apart."""
    base = _timm_class(vit)
    changed = [
        name
        for name in ("forward", "forward_head", "pool")
        if getattr(type(vit), name, None) is not getattr(base, name, None)
    ]
    if changed:
        raise ModelError(
            f"{_name(vit)} has a {changed[0]} of its own, so how its outputs come from the class "
            "token is unknown: give the class a method class_token_model()."
        )
    if isinstance(vit, VisionTransformerDistilled):
        return ClassTokenModel(vit, _unchanged, _distilled_readout(vit), readout_tokens=2)
    if getattr(vit, "attn_pool", None) is not None or vit.global_pool != "token":
        raise ModelError(
            f"{_name(vit)} reads its outputs by global_pool={vit.global_pool!r}, not from the "
            "class token: create it with global_pool='token', and a head trained so."
        )

    def readout(class_token: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch target"]:
        outputs: Tensor = vit.head(vit.head_drop(vit.fc_norm(class_token)))
        return outputs

    return ClassTokenModel(vit, _unchanged, readout)


def _distilled_readout(vit: VisionTransformerDistilled) -> Callable[[Tensor], Tensor]:
    """Average the heads of the class and the distillation token, as timm does when evaluating."""

    def readout(tokens: Float[Tensor, "batch two_dim"]) -> Float[Tensor, "batch target"]:
        class_token, dist_token = tokens.chunk(2, dim=-1)
        outputs: Tensor = vit.head(vit.head_drop(class_token))
        outputs_dist: Tensor = vit.head_dist(vit.head_drop(dist_token))
        return (outputs + outputs_dist) / 2

    return readout


def _timm_class(vit: nn.Module) -> type[VisionTransformer | Eva]:
    known = (VisionTransformerDistilled, VisionTransformer, Eva)
    return next(base for base in known if isinstance(vit, base))


def _unchanged(images: Tensor) -> Tensor:
    return images


def _name(vit: nn.Module) -> str:
    """Return timm's name of the architecture where there is one, and the class."""
    config = getattr(vit, "pretrained_cfg", None) or {}
    name = config.get("architecture")
    return f"{name} ({type(vit).__name__})" if name else type(vit).__name__
