r"""Grad-CAM for vision transformers: channels of the last block's tokens, weighted by gradients."""

from dataclasses import dataclass

import torch

from cdam_med.attribution.last_block import gradients, norms_before_attention, own_pass
from cdam_med.attribution.method import Attribution
from cdam_med.attribution.numerics import wide
from cdam_med.attribution.subject import MethodBase, Subject
from cdam_med.attribution.verification import check_own_outputs
from cdam_med.errors import ModelError


@dataclass(frozen=True)
class GradCam(MethodBase):
    """``max(0, sum_j w_j T_ij)``, where `w` is the mean over patches of ``d f / d T_ij``.

    `T` is the output of `norm1` in the last block, the layer that is usually taken in a ViT: its
    patch tokens are the last that still reach the class token. Patches alone count, in the mean
    and in the map. Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via
    Gradient-based Localization", ICCV 2017, eq. 1 and 2, with the ReLU.
    """

    name = "grad_cam"
    title = "Grad-CAM"
    meaning = (
        "What the model holds of a patch in its last block, weighted by how that raises the "
        "output on average over the image. What lowers the output is left out, so no score is "
        "below zero."
    )
    reference = "Selvaraju et al., ICCV 2017"
    is_signed = False
    cost = "one forward pass, and one block's backward pass for each target"

    def maps(self, subject: Subject, seed: int) -> Attribution:
        """Return Grad-CAM maps, from a graph that begins behind the norm before attention."""
        model, prefix = subject.model, subject.model.adapter.n_prefix
        if len(norms_before_attention(model)) > 1:
            raise ModelError(
                f"grad_cam reads the output of one norm before attention, and the last block of "
                f"{model.name} has several: choose another method, such as cdam."
            )
        whole, leaves = own_pass(model, subject.images)
        T = wide(leaves[0].detach()[:, prefix:])
        maps = []
        for (gradient,) in gradients(model, whole, leaves, subject.columns):
            weights = wide(gradient[:, prefix:]).mean(1, keepdim=True)
            maps.append((weights * T).sum(-1).clamp(min=0))
        patches = torch.stack(maps, dim=1)
        check_own_outputs(subject.verifier, model, subject.images, whole, patches)
        scores = subject.on_grid(patches, model.grid_size(subject.images))
        outputs = whole.detach()[:, list(subject.columns)]
        return subject.attribution_of_maps(self, scores, outputs, "autograd")
