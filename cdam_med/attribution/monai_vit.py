"""MONAI's ViT for classification, with patches in two or three dimensions.

MONAI keeps neither image size nor grid, only how many patches there are, and has no function for
its tokens alone. Its blocks are pre-norm, `norm1` before attention, as in a plain ViT.
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cdam_med.attribution.vit import Patches, VitAdapter, is_named
from cdam_med.errors import ModelError

MONAI_ATTENTION = "monai.SABlock"


class MonaiAdapter(VitAdapter):
    """A MONAI ViT with a class token. See `VitAdapter`."""

    kinds = ("monai.ViT",)
    n_prefix = 1

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.name = f"MONAI's {self.name}"
        if not hasattr(module, "cls_token") or not hasattr(module, "classification_head"):
            raise ModelError(
                f"{self.name} has no class token and no head: create it with classification=True."
            )
        self.embed_dim = int(self.module.cls_token.shape[-1])
        self.blocks = tuple(self.module.blocks)
        self.norm = self.module.norm
        self.readout = self.module.classification_head  # ends in tanh unless told otherwise

    @property
    def patches(self) -> Patches:
        """Read off the layer that projects the patches."""
        embedding = self.module.patch_embedding
        layer = embedding.patch_embeddings
        count = int(embedding.position_embeddings.shape[1])
        if isinstance(layer, nn.Conv2d | nn.Conv3d):
            return Patches(tuple(layer.kernel_size), layer.in_channels, count=count)
        lengths: dict[str, int] = layer[0].axes_lengths  # of einops' Rearrange: p1, p2, p3
        sides = tuple(length for _, length in sorted(lengths.items()))
        return Patches(sides, layer[1].in_features // math.prod(sides), count=count)

    def own_outputs(self, images: Float[Tensor, "batch channel *size"]) -> Any:
        """Return the outputs without the hidden states that come with them."""
        found = self.module(images)
        return found[0] if isinstance(found, tuple) else found

    def norms_before_attention(self, block: Any) -> tuple[nn.Module, ...]:
        """See `VitAdapter`."""
        return (block.norm1,) if is_named(block, "monai.TransformerBlock") else ()

    def forward_features(
        self, images: Float[Tensor, "batch channel *size"]
    ) -> Float[Tensor, "batch token dim"]:
        """See `VitAdapter`."""
        patches = self.module.patch_embedding(images)
        tokens = torch.cat((self.module.cls_token.expand(len(images), -1, -1), patches), dim=1)
        for block in self.module.blocks:
            tokens = block(tokens)
        normed: Tensor = self.module.norm(tokens)
        return normed
