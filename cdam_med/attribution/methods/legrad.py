r"""LeGrad: the gradient in the attention matrices of every block is itself the map."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cdam_med.attribution.last_block import gradients
from cdam_med.attribution.method import Attribution
from cdam_med.attribution.methods.attention_recording import recording_attention
from cdam_med.attribution.methods.block_runs import BlockRun, whole_pass
from cdam_med.attribution.numerics import wide
from cdam_med.attribution.subject import MethodBase, Subject
from cdam_med.attribution.vit import errors_named


@dataclass(frozen=True)
class LeGrad(MethodBase):
    """Mean over blocks of ``max(0, d s / d A)``, averaged over heads and over queries.

    In block `l`, `s` is the output that the model would give if it read the class token as it
    leaves that block: through the final norm and the head, without the blocks between. The
    gradient is in the attention of the same block alone, so only the class token's row isn't zero,
    and the mean over queries is a constant factor. Bousselham et al., "LeGrad: An Explainability
    Method for Vision Transformers via Feature Formation Sensitivity", arXiv 2404.03214 (ICCV
    2025), in its class-token form and over all blocks. The authors' public code, for CLIP, reads
    the mean of all tokens instead, and by default in the last two blocks only; its maps are
    stretched to 0 to 1, these are not.
    """

    name = "legrad"
    title = "LeGrad"
    meaning = (
        "How much more attention to a patch would raise the output, mean over all blocks. "
        "What would lower it is left out, so no score is below zero."
    )
    reference = "Bousselham et al., ICCV 2025"
    is_signed = False
    cost = "two forward passes, and half a backward pass for each target"

    def maps(self, subject: Subject, seed: int) -> Attribution:
        """Return LeGrad maps."""
        own = whole_pass(subject, subject.images)
        with recording_attention(subject.model, wanted_by=self.name) as matrices:
            maps, outputs = zip(
                *(_map_of_block(subject, run, matrices) for run in own.blocks), strict=True
            )
        own.check(outputs[-1], self.name)
        return subject.attribution(self, torch.stack(maps).mean(0), outputs[-1], "autograd")


@torch.enable_grad()
def _map_of_block(
    subject: Subject, run: BlockRun, matrices: list[Tensor]
) -> tuple[Float[Tensor, "batch target token"], Float[Tensor, "batch target"]]:
    """Run a block again with a graph; return its share of the map and the outputs read from it."""
    matrices.clear()
    with errors_named(subject.model.name):
        outputs = subject.model.read(run.repeat())[:, list(subject.columns)]
    maps = [
        wide(gradient).clamp(min=0).mean((1, 2))
        for (gradient,) in gradients(subject.model, outputs, matrices)
    ]
    return torch.stack(maps, dim=1), outputs.detach()
