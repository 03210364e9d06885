"""What an attribution needs to know of a model: a ViT, and how its tokens become outputs.

Mostly outputs are read from the class token, after which the classes are named. Models that pool
all tokens instead are described here too.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from timm.models.beit import Beit
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from cdam_med.errors import ModelError, TargetError
from cdam_med.models.asked_targets import each_target, name_or_column
from cdam_med.models.class_names import MONAI_VIT, class_named, full_name
from cdam_med.models.monai_vit import MonaiTokens, whole_module
from cdam_med.models.patch_grid import (
    check_batch,
    check_finite,
    check_prepared,
    check_size,
    patch_grid,
)
from cdam_med.models.pooling import Pooling, pooling_of
from cdam_med.models.refusals import (
    reason_against,
    refuse_hooks,
    refuse_names,
    refuse_set_functions,
    refuse_without_gradient,
    refuse_wrapper,
)

Vit: TypeAlias = VisionTransformer | Eva | Beit | MonaiTokens
"""The vision transformers that are understood: three classes of timm, and MONAI's in a wrapper."""

ReadoutFunction: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""What `readout` is given and its outputs, ``(batch, output)`` -> one number an image."""


@dataclass(frozen=True)
class ClassTokenModel:
    """A ViT whose outputs are read from its class token alone, or from all tokens by a pooling.

    Parameters
    ----------
    vit : VisionTransformer, Eva, Beit or MonaiTokens
        timm's model, unmodified. Outputs depend on its tokens as `forward_features` gives them.
    prepare : callable
        User's images ``(batch, channel, height, width)`` -> what `vit.forward_features` takes,
        as many images.
    readout : callable
        Class token after the final norm, or what the pooling gives, ``(batch, dim)`` -> raw
        outputs ``(batch, target)``.
    target_names : tuple of str, optional
        Names of the outputs, in their order: one for each, all different.
    readout_tokens : int
        How many leading tokens the outputs are read from. A distilled DeiT has two; its readout
        is given both side by side, ``(batch, 2 * dim)``. Not used with a pooling.
    pooling : Pooling, optional
        How all tokens become one vector, where outputs aren't read from leading tokens.

    Raises
    ------
    ModelError
        If `vit` has no class token and no pooling is given, or its forward pass is not timm's own
        or has a hook.
    """

    vit: Vit
    prepare: Callable[[Tensor], Tensor]
    readout: Callable[[Tensor], Tensor]
    target_names: tuple[str, ...] | None = None
    readout_tokens: int = 1
    pooling: Pooling | None = None

    def __post_init__(self) -> None:
        """Refuse a ViT whose class token isn't what this class says it is."""
        refuse_wrapper(self.vit)
        if self.vit.cls_token is None and self.pooling is None:
            raise ModelError(
                f"{model_name(self.vit)} has no class token, and a class-discriminative attention "
                "map is the share of each token in it: choose a ViT with a class token, or name "
                "its pooling."
            )
        base = _timm_class(self.vit)
        refuse_set_functions(model_name(self.vit), self.vit, ("forward_features",))
        if type(self.vit).forward_features is not base.forward_features:
            raise ModelError(
                f"{model_name(self.vit)} has a forward_features of its own, so what comes before "
                f"the class token is unknown: use timm's {base.__name__} itself."
            )
        refuse_hooks(model_name(self.vit), whole_module(self.vit))

    def read(self, tokens: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch target"]:
        """Return the raw outputs for the tokens that leave the last block.

        Parameters
        ----------
        tokens : Tensor
            All tokens, or at least the leading ones that are read where there is no pooling.
        """
        if self.pooling is not None:
            return self.outputs_of(self.pooling.function(self.vit.norm(tokens)))
        normed: Tensor = self.vit.norm(tokens[:, : self.readout_tokens])
        return self.outputs_of(normed.flatten(1))

    def outputs(
        self, prepared: Float[Tensor, "batch channel *size"]
    ) -> Float[Tensor, "batch target"]:
        """Return the raw outputs for images as the ViT takes them: the whole forward pass."""
        return self.outputs_of(self.features(prepared))

    def outputs_of(self, features: Float[Tensor, "batch feature"]) -> Float[Tensor, "batch target"]:
        """Return what `readout` gives, and see that it can be differentiated where that is wanted.

        Parameters
        ----------
        features : Tensor
            What `readout` is given.

        Raises
        ------
        ModelError
            If there is no gradient where one is wanted.
        """
        outputs = self.readout(features)
        if torch.is_grad_enabled() and features.requires_grad and not outputs.requires_grad:
            refuse_without_gradient(model_name(self.vit))
        return outputs

    def features(
        self, prepared: Float[Tensor, "batch channel *size"]
    ) -> Float[Tensor, "batch feature"]:
        """Return what `readout` is given for images as the ViT takes them."""
        tokens: Tensor = self.vit.forward_features(prepared)
        if self.pooling is not None:
            return self.pooling.function(tokens)
        return tokens[:, : self.readout_tokens].flatten(1)

    @property
    def rows_read(self) -> slice:
        """Which tokens that leave the last block reach the readout."""
        if self.pooling is not None:
            return slice(self.pooling.first, None)
        return slice(self.readout_tokens)

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
        own = self.outputs_of

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
            ``(batch, channel, height, width)``, floating point, finite; one more axis for a ViT
            with 3-D patches.

        Returns
        -------
        Tensor
            `prepare` of the images, cast to the type of the model's weights.

        Raises
        ------
        InputError
            If it isn't such a batch, a value is too large for the weights' type, or the model
            takes another size; the size is named.
        ModelError
            If `prepare` doesn't give as many images.
        """
        name, embed = model_name(self.vit), self.vit.patch_embed
        plain = check_batch(embed, images)
        weight = next(self.vit.parameters())
        cast = plain.to(device=weight.device, dtype=weight.dtype)
        check_finite(name, plain, cast)
        prepared = check_prepared(name, self.prepare(cast), len(cast))
        check_size(name, embed, prepared)
        return prepared

    def patch_grid(self, prepared: Float[Tensor, "batch channel *size"]) -> tuple[int, ...]:
        """Return how many patches there are along each axis of images as the ViT takes them.

        Parameters
        ----------
        prepared : Tensor
            Images, or volumes for a ViT with 3-D patches.
        """
        return patch_grid(self.vit.patch_embed, prepared)

    def grid_size(self, prepared: Float[Tensor, "batch channel *size"]) -> tuple[int, int]:
        """Return rows and columns of the patch grid for images as the ViT takes them.

        Parameters
        ----------
        prepared : Tensor
            Images; or volumes that are one patch thick along an axis, which is left out.

        Raises
        ------
        ModelError
            If patches lie behind each other.
        """
        grid = list(self.patch_grid(prepared))
        if len(grid) > 2 and 1 in grid:
            grid.remove(1)
        if len(grid) != 2:
            raise ModelError(
                f"{model_name(self.vit)} has a grid of {' x '.join(map(str, grid))} patches, and a "
                "map has rows and columns only: use cdam_scores, which gives scores of all three "
                "axes, or a model whose patches span the depth."
            )
        return grid[0], grid[1]

    def target_columns(self, targets: object) -> tuple[int, ...]:
        """Return the output columns of the targets that are meant.

        Parameters
        ----------
        targets : str, int, sequence of them, or None
            Names, columns of the output, or ``None`` for every output; see
            `cdam_med.models.asked_targets`.

        Raises
        ------
        TargetError
            If there is no such target; those that exist are listed.
        ModelError
            If there aren't as many different names as outputs.
        """
        count = self.output_count
        names = self.target_names or ()
        refuse_names(model_name(self.vit), names, count)
        if targets is None:
            return tuple(range(count))
        asked = map(name_or_column, each_target(targets))
        found = [names.index(t) if t in names else t for t in asked]
        for target in found:
            if not isinstance(target, int) or not 0 <= target < count:
                listed = f"0 to {count - 1}" + (f" or {', '.join(names)}" if names else "")
                raise TargetError(f"The model has no target {target!r}: choose from {listed}.")
        return tuple(column for column in found if isinstance(column, int))

    @property
    def output_count(self) -> int:
        """How many outputs the model has; refuses a readout that doesn't give one row an image."""
        like = next(self.vit.parameters())
        count = self.readout_tokens
        if self.pooling is not None:
            count = self.vit.num_prefix_tokens + 1
        tokens = like.new_zeros(1, count, self.vit.embed_dim)
        with torch.no_grad():
            pooled = tokens.flatten(1) if self.pooling is None else self.pooling.function(tokens)
            outputs = self.readout(pooled)
        if outputs.ndim != 2 or len(outputs) != 1:
            raise ModelError(
                f"The readout of {model_name(self.vit)} gives {tuple(outputs.shape)} for one "
                "image, and outputs must be (batch, target): give it that axis, also for a single "
                "target."
            )
        return outputs.shape[1]


def class_token_model(model: object) -> ClassTokenModel:
    """Return what an attribution needs to know of a model.

    Parameters
    ----------
    model : VisionTransformer, Eva, Beit, MONAI's ViT, ClassTokenModel or object with the method
        A timm ViT, MONAI's ViT for classification, or a model with a method
        ``class_token_model()`` that returns a `ClassTokenModel`.

    Raises
    ------
    ModelError
        If it isn't known how the outputs are read from tokens; the model and the reason are named.
    """
    if isinstance(model, ClassTokenModel):
        return model
    if hasattr(model, "class_token_model"):
        return _of_description(model)
    if isinstance(model, VisionTransformer | Eva | Beit):
        return _of_timm(model)
    if isinstance(model, nn.Module) and class_named(model, MONAI_VIT) is not None:
        tokens = MonaiTokens(model)
        return ClassTokenModel(tokens, _unchanged, tokens.readout)
    refuse_wrapper(model)
    if (reason := reason_against(model)) is not None:
        raise ModelError(
            f"{full_name(type(model))} {reason}: choose a ViT, DeiT, DINO, BEiT, EVA or MONAI's."
        )
    raise ModelError(
        f"{type(model).__name__} is not a timm VisionTransformer, Eva or Beit, nor MONAI's ViT: "
        "pass one, or a model whose method class_token_model() returns a ClassTokenModel."
    )


def _of_description(model: Any) -> ClassTokenModel:
    """Return what a model says of itself."""
    described = model.class_token_model
    if callable(described):
        described = described()
    if not isinstance(described, ClassTokenModel):
        raise ModelError(
            f"class_token_model() of {type(model).__name__} gives {type(described).__name__}, and "
            "must give a ClassTokenModel: return ClassTokenModel(vit, prepare, readout)."
        )
    return described


def _of_timm(vit: VisionTransformer | Eva | Beit) -> ClassTokenModel:
    """Describe a timm model: the readout is its own `forward_head`, token pooling apart."""
    base, functions = _timm_class(vit), ("forward", "forward_head", "pool")
    changed = [
        name
        for name in functions
        if getattr(type(vit), name, None) is not getattr(base, name, None)
    ]
    if changed:
        raise ModelError(
            f"{model_name(vit)} has a {changed[0]} of its own, so how its outputs come from the "
            "class token is unknown: give the class a method class_token_model()."
        )
    refuse_set_functions(model_name(vit), vit, functions)
    if isinstance(vit, VisionTransformerDistilled):
        return ClassTokenModel(vit, _unchanged, _distilled_readout(vit), readout_tokens=2)
    pooling = pooling_of(vit)
    if pooling is None and vit.global_pool != "token":
        raise ModelError(
            f"{model_name(vit)} was created with global_pool={vit.global_pool!r}, so it gives "
            "outputs for each token and none for the image: choose 'token', 'avg' or 'map'."
        )

    def readout(feature: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch target"]:
        outputs: Tensor = vit.head(vit.head_drop(vit.fc_norm(feature)))
        return outputs

    return ClassTokenModel(vit, _unchanged, readout, pooling=pooling)


def _distilled_readout(vit: VisionTransformerDistilled) -> Callable[[Tensor], Tensor]:
    """Average the heads of the class and the distillation token, as timm does when evaluating."""

    def readout(tokens: Float[Tensor, "batch two_dim"]) -> Float[Tensor, "batch target"]:
        class_token, dist_token = tokens.chunk(2, dim=-1)
        outputs: Tensor = vit.head(vit.head_drop(class_token))
        outputs_dist: Tensor = vit.head_dist(vit.head_drop(dist_token))
        return (outputs + outputs_dist) / 2

    return readout


def _timm_class(vit: nn.Module) -> type[Vit]:
    known = (VisionTransformerDistilled, VisionTransformer, Eva, Beit, MonaiTokens)
    return next(base for base in known if isinstance(vit, base))


def _unchanged(images: Tensor) -> Tensor:
    return images


def model_name(vit: nn.Module) -> str:
    """Return timm's name of the architecture where there is one, and the class.

    Parameters
    ----------
    vit : Module
        The ViT of a `ClassTokenModel`.
    """
    if isinstance(vit, MonaiTokens):
        return "MONAI's ViT"
    config = getattr(vit, "pretrained_cfg", None) or {}
    name = config.get("architecture")
    return f"{name} ({type(vit).__name__})" if name else type(vit).__name__
