r"""Grad-CAM for vision transformers: channels of the last block's tokens, weighted by gradients."""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cdam_med.attribution.combinations import Targets
from cdam_med.attribution.estimator import Attribution, Resolution, Subject, explaining
from cdam_med.attribution.estimators.block_runs import BlockRun, block_runs
from cdam_med.attribution.last_block import has_norm_before_attention, wide
from cdam_med.errors import ModelError


@dataclass(frozen=True)
class GradCam:
    """``max(0, sum_j w_j T_ij)``, where `w` is the mean over patches of ``d f / d T_ij``.

    `T` is the output of `norm1` in the last block, the layer that is usually taken in a ViT: its
    patch tokens are the last that still reach the class token. Patches alone count, in the mean
    and in the map. Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via
    Gradient-based Localization", ICCV 2017, eq. 1 and 2, with the ReLU.
    """

    name: ClassVar[str] = "grad_cam"
    title: ClassVar[str] = "Grad-CAM"
    meaning: ClassVar[str] = (
        "What the model holds of a patch in its last block, weighted by how that raises the "
        "output on average over the image. What lowers the output is left out, so no score is "
        "below zero."
    )
    reference: ClassVar[str] = "Selvaraju et al., ICCV 2017"
    resolution: ClassVar[Resolution] = "patch"
    is_signed: ClassVar[bool] = False
    cost: ClassVar[str] = "one forward pass, and one block's backward pass for each target"

    def __call__(
        self, model: object, images: Tensor, targets: Targets = None, *, seed: int = 0
    ) -> Attribution:
        """Return Grad-CAM maps; see `cdam_med.attribution.estimator.Estimator`."""
        with explaining(model, images, targets) as subject:
            last = block_runs(subject.model, subject.images)[-1]
            patches, outputs = _maps(subject, last)
            scores = torch.unflatten(patches, -1, subject.model.grid_size(subject.images))
            return subject.attribution_of_maps(self, scores, outputs, "autograd")


@torch.enable_grad()
def _maps(
    subject: Subject, last: BlockRun
) -> tuple[Float[Tensor, "batch target patch"], Float[Tensor, "batch target"]]:
    """Run the last block again with a graph that begins behind its first norm."""
    if not has_norm_before_attention(last.block):
        raise ModelError(
            f"grad_cam reads the output of norm1 before attention, and {type(last.block).__name__} "
            "has none: choose a pre-norm ViT, or another estimator, such as token_ablation."
        )
    leaves: list[Tensor] = []

    def cut(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor:
        leaves.append(output.detach().requires_grad_())
        return leaves[-1]

    with ExitStack() as undo:
        norm: Any = last.block.norm1
        undo.callback(norm.register_forward_hook(cut).remove)
        outputs = subject.model.read(last.repeat())[:, list(subject.columns)]
    prefix = subject.model.vit.num_prefix_tokens
    T = wide(leaves[0].detach()[:, prefix:])
    maps = []
    for output in outputs.unbind(1):
        (gradient,) = torch.autograd.grad(output.sum(), leaves, retain_graph=True)
        weights = wide(gradient[:, prefix:]).mean(1, keepdim=True)
        maps.append((weights * T).sum(-1).clamp(min=0))
    return torch.stack(maps, dim=1), outputs.detach()
