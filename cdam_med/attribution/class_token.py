"""What an attribution needs to know of a model: a ViT, and how its tokens become outputs.

Mostly outputs are read from the class token, after which the classes are named. Models that pool
all tokens instead are described here too.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cdam_med.attribution.asked_targets import each_target, name_or_column
from cdam_med.attribution.border import errors_named
from cdam_med.attribution.families import adapter_of
from cdam_med.attribution.hooks import after_calls
from cdam_med.attribution.image_checks import check_batch, check_finite, check_prepared, check_size
from cdam_med.attribution.pooling import Pooling
from cdam_med.attribution.vit import VitAdapter, outputs_in
from cdam_med.attribution.wrappers import refuse_wrapper
from cdam_med.errors import ModelError, TargetError

ReadoutFunction: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""What `readout` is given and its outputs, ``(batch, output)`` -> one number an image."""


@dataclass(frozen=True)
class ClassTokenModel:
    """A ViT whose outputs are read from its class token alone, or from all tokens by a pooling.

    Parameters
    ----------
    vit : Module
        A model of one of the families in `cdam_med.attribution.families`, timm's or MONAI's.
    prepare : callable
        User's images ``(batch, channel, height, width)`` -> what `vit` takes, as many images.
    readout : callable or None
        Class token after the final norm, or what the pooling gives, ``(batch, dim)`` -> raw
        outputs ``(batch, target)``. ``None`` where it isn't known; then `forward` must be given,
        and what runs a part of the model alone isn't possible.
    target_names : tuple of str, optional
        Names of the outputs, in their order: one for each, all different.
    readout_tokens : int
        How many leading tokens the outputs are read from. A distilled DeiT has two; its readout
        is given both side by side, ``(batch, 2 * dim)``. Not used with a pooling.
    pooling : Pooling, optional
        How all tokens become one vector, where outputs aren't read from leading tokens.
    forward : callable, optional
        The model's own whole pass, of which `vit` is a part: what `prepare` gives -> raw outputs.
        ``vit.forward_features`` and `readout` unless given.
    derived : tuple of callable
        Further outputs behind the model's own, see `with_outputs`.
    own_count : int, optional
        How many outputs the model has, where only a whole pass tells.

    Raises
    ------
    ModelError
        If `vit` is of no known family, or has no class token and no pooling is given.
    """

    vit: nn.Module
    prepare: Callable[[Tensor], Tensor]
    readout: Callable[[Tensor], Tensor] | None
    target_names: tuple[str, ...] | None = None
    readout_tokens: int = 1
    pooling: Pooling | None = None
    forward: Callable[[Tensor], Any] | None = None
    derived: tuple[ReadoutFunction, ...] = ()
    own_count: int | None = None

    def __post_init__(self) -> None:
        """Refuse a ViT whose class token isn't what this class says it is."""
        refuse_wrapper(self.vit)
        if self.pooling is None and self.adapter.n_prefix < self.readout_tokens:
            raise ModelError(
                f"{self.name} has no class token, and a class-discriminative attention "
                "map is the share of each token in it: choose a ViT with a class token, or name "
                "its pooling."
            )
        if self.readout is None and self.forward is None:
            raise ModelError(
                f"Neither readout nor forward of {self.name} is given, so that it has no outputs: "
                "give one of them."
            )

    @property
    def adapter(self) -> VitAdapter:
        """The ViT as attributions see those of any family."""
        return adapter_of(self.vit)

    @property
    def name(self) -> str:
        """How messages call the model."""
        if self.module is self.vit:
            return self.adapter.name
        return f"{type(self.module).__name__} around {self.adapter.name}"

    @property
    def module(self) -> nn.Module:
        """The outermost module that is known: the one around the ViT, or the ViT."""
        return self.forward if isinstance(self.forward, nn.Module) else self.vit

    def read(self, tokens: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch target"]:
        """Return the raw outputs for the tokens that leave the last block.

        Parameters
        ----------
        tokens : Tensor
            All tokens, or at least the leading ones that are read where there is no pooling.
        """
        if self.pooling is None:
            tokens = tokens[:, : self.readout_tokens]
        return self.outputs_of(self.pooled(self.adapter.norm(tokens)))

    def outputs(
        self, prepared: Float[Tensor, "batch channel *size"]
    ) -> Float[Tensor, "batch target"]:
        """Return the raw outputs for images as the ViT takes them: the model's own whole pass.

        Parameters
        ----------
        prepared : Tensor
            What `prepare` gives.

        Raises
        ------
        ModelError
            If the pass fails, gives other than ``(batch, target)``, or no gradient where one is
            wanted.
        """
        with errors_named(self.name):
            if self.forward is None:
                return self.outputs_of(self.features(prepared))
            if not self.derived:
                return self._checked(outputs_in(self.forward(prepared)), prepared)
            final: list[Tensor] = []
            with after_calls(self.module, [self.adapter.norm], lambda _, out: final.append(out)):
                own = self._checked(outputs_in(self.forward(prepared)), prepared)
            return self._with_derived(self.pooled(final[-1]), own)

    def outputs_of(self, features: Float[Tensor, "batch feature"]) -> Float[Tensor, "batch target"]:
        """Return what `readout` gives, and see that it can be differentiated where that is wanted.

        Parameters
        ----------
        features : Tensor
            What `readout` is given.

        Raises
        ------
        ModelError
            If there is no readout, it gives other than ``(batch, target)``, or no gradient where
            one is wanted.
        """
        if self.readout is None:
            raise ModelError(
                f"How {self.name} reads its outputs from tokens isn't known, so that no part of it "
                "can be run alone: give a readout, or choose an estimator that runs the whole "
                "model, such as cdam or occlusion."
            )
        own = self._checked(self.readout(features), features)
        return self._with_derived(features, own)

    def _checked(self, outputs: object, given: Tensor) -> Float[Tensor, "batch target"]:
        if not isinstance(outputs, Tensor) or outputs.ndim != 2 or len(outputs) != len(given):
            found = type(outputs).__name__
            if isinstance(outputs, Tensor):
                found = str(tuple(outputs.shape))
            raise ModelError(
                f"{self.name} gives {found} for {len(given)} image(s), and outputs must be a "
                "tensor (batch, target): describe it by a ClassTokenModel whose readout gives one, "
                "with the axis of targets also for a single target."
            )
        if torch.is_grad_enabled() and given.requires_grad and not outputs.requires_grad:
            self.refuse_without_gradient()
        return outputs

    def _with_derived(
        self, features: Float[Tensor, "batch feature"], own: Float[Tensor, "batch output"]
    ) -> Float[Tensor, "batch target"]:
        added = [function(features, own)[:, None] for function in self.derived]
        return torch.cat((own, *added), dim=1) if added else own

    def refuse_without_gradient(self) -> None:
        """Refuse a model through whose last part no gradient goes.

        Raises
        ------
        ModelError
            Always.
        """
        raise ModelError(
            f"The outputs of {self.name} can't be differentiated in its tokens, so that each map "
            "would be zero: leave out no_grad, detach, argmax, comparisons, numpy and quantised "
            "layers, or choose an estimator that takes no gradients, such as token_ablation."
        )

    def features(
        self, prepared: Float[Tensor, "batch channel *size"]
    ) -> Float[Tensor, "batch feature"]:
        """Return what `readout` is given for images as the ViT takes them."""
        with errors_named(self.name):
            return self.pooled(self.adapter.forward_features(prepared))

    def pooled(self, tokens: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch feature"]:
        """Return what `readout` is given, from the tokens after the final norm.

        Parameters
        ----------
        tokens : Tensor
            All of them, or at least those that are read.
        """
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
            Each takes what `readout` is given and the model's own outputs, and gives one number
            an image.
        """
        return replace(self, derived=(*self.derived, *functions))

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
        CdamError
            If it isn't such a batch, a value is too large for the weights' type, or the model
            takes another size; the size is named.
        ModelError
            If `prepare` doesn't give as many images.
        """
        cast = self.cast(images)
        prepared = check_prepared(self.name, self.prepare(cast), len(cast))
        if self.readout is not None:  # what is around a ViT may take other channels
            check_size(self.name, self.adapter.patches, prepared)
        return prepared

    def cast(self, images: Tensor) -> Tensor:
        """Check a batch and return it on the model's device, in the type of its weights.

        Parameters
        ----------
        images : Tensor
            As the user has them.
        """
        plain = check_batch(self.adapter.patches, images)
        weight = self.weight
        cast = plain.to(device=weight.device, dtype=weight.dtype)
        check_finite(self.name, plain, cast)
        return cast

    @property
    def weight(self) -> Tensor:
        """One of the ViT's floating-point weights, which says where it is and in which type.

        Raises
        ------
        ModelError
            If it has none, or none with values.
        """
        weight = next((p for p in self.vit.parameters() if p.is_floating_point()), None)
        if weight is None or weight.is_meta:
            has = "no floating-point weights" if weight is None else "weights without values"
            raise ModelError(
                f"{self.name} has {has}: load it in float, on a device such as 'cpu', not "
                "quantised and not on the meta device."
            )
        return weight

    def patch_grid(self, prepared: Float[Tensor, "batch channel *size"]) -> tuple[int, ...]:
        """Return how many patches there are along each axis of images as the ViT takes them.

        Parameters
        ----------
        prepared : Tensor
            Images, or volumes for a ViT with 3-D patches.
        """
        return self.adapter.patches.grid(prepared.shape[2:])

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
                f"{self.name} has a grid of {' x '.join(map(str, grid))} patches, and a "
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
            `cdam_med.attribution.asked_targets`.

        Raises
        ------
        TargetError
            If there is no such target; those that exist are listed.
        ModelError
            If there aren't as many different names as outputs.
        """
        count = self.output_count
        names = self.target_names or ()
        if names and (len(names) != count or len(set(names)) < count):
            raise ModelError(
                f"{self.name} has {count} output(s), and the names {', '.join(names)} for them: "
                "give target_names one for each, all different."
            )
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
        return self.outputs_of_sample().shape[1] if self.own_count is None else self.own_count

    @torch.no_grad()
    def outputs_of_sample(self) -> Float[Tensor, "1 target"]:
        """Return the outputs for made-up tokens, or for an empty image where there's no readout."""
        like, patches = self.weight, self.adapter.patches
        if self.readout is None:
            size = patches.image_size or tuple(2 * side for side in patches.sides)
            return self.outputs(like.new_zeros(1, patches.channels, *size))
        count = self.readout_tokens if self.pooling is None else self.adapter.n_prefix + 1
        numbers = count * self.adapter.embed_dim
        tokens = torch.linspace(-1, 1, numbers, dtype=like.dtype, device=like.device)
        with errors_named(self.name):
            return self.outputs_of(self.pooled(tokens.view(1, count, -1)))
