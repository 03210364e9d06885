"""The attention map: where the class token of the last block looks. It knows no targets."""

from dataclasses import dataclass
from typing import ClassVar

from cdam_med.attribution.estimator import Attribution
from cdam_med.attribution.methods.attention_recording import (
    recording_attention,
    rows_followed,
)
from cdam_med.attribution.numerics import wide
from cdam_med.attribution.subject import Method, Subject


@dataclass(frozen=True)
class AttentionMap(Method):
    """Softmax attention from the class token in the last block, mean over heads.

    arXiv 2312.02364 eq. 1, after Caron et al. 2021 (DINO). What the class token gives itself and
    registers is in `prefix_scores`; patches are not scaled up to a sum of one. Where outputs are
    read from two tokens (distilled models), the mean of both rows; where the model averages its
    patches, the mean of their rows. The map is the same for every target.
    """

    name: ClassVar[str] = "attention_map"
    title: ClassVar[str] = "Attention map"
    meaning: ClassVar[str] = (
        "How much attention the model pays to a patch in its last block, the same for every "
        "output. It has no sign: it doesn't say whether the patch raises or lowers an output."
    )
    reference: ClassVar[str] = "Caron et al., ICCV 2021"
    is_signed: ClassVar[bool] = False
    cost: ClassVar[str] = "one forward pass"

    def maps(self, subject: Subject, seed: int) -> Attribution:
        """Return attention maps."""
        followed = rows_followed(subject.model, wanted_by=self.name)
        last = slice(-1, None)
        with recording_attention(subject.model, wanted_by=self.name, blocks=last) as matrices:
            outputs = subject.model.outputs(subject.images)[:, list(subject.columns)]
        # the last one, where a block stands at several depths
        rows = wide(matrices[-1][:, :, followed])
        tokens = rows.mean((1, 2))[:, None].repeat(1, len(subject.columns), 1)
        return subject.attribution(self, tokens, outputs, "attention matrices")
