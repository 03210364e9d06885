"""MONAI's ViT, seen as the attribution sees timm's: the same parts under the same names.

MONAI keeps neither image size nor grid, only how many patches there are, and has no function for
its tokens alone. Its blocks are pre-norm, `norm1` before attention, as in a plain ViT.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cdam_med.errors import ModelError
from cdam_med.models.class_names import MONAI_VIT, class_named
from cdam_med.models.refusals import refuse_set_functions


@dataclass(frozen=True)
class MonaiPatches:
    """The patches of a MONAI ViT: what timm's patch embedding says of its own.

    Parameters
    ----------
    patch_size : tuple of int
        Pixels or voxels of a patch along each axis of the image, two or three.
    num_patches : int
        How many patches an image must have.
    channels : int
        Channels of an image.
    """

    patch_size: tuple[int, ...]
    num_patches: int
    channels: int

    def feat_ratio(self, as_scalar: bool = True) -> int | tuple[int, ...]:
        """Return the sides of a patch, or the longest; as timm's function of that name.

        Parameters
        ----------
        as_scalar : bool
            Whether to return the longest alone.
        """
        return max(self.patch_size) if as_scalar else self.patch_size

    def dynamic_feat_size(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Return how many patches there are along each axis; as timm's function of that name.

        Parameters
        ----------
        size : tuple of int
            Sides of the image.
        """
        return tuple(side // patch for side, patch in zip(size, self.patch_size, strict=True))

    def fits(self, size: tuple[int, ...]) -> bool:
        """Say whether an image of that size has whole patches, and as many as there must be.

        Parameters
        ----------
        size : tuple of int
            Sides of the image.
        """
        whole = all(side % patch == 0 for side, patch in zip(size, self.patch_size, strict=True))
        return whole and math.prod(self.dynamic_feat_size(size)) == self.num_patches


class MonaiTokens(nn.Module):
    """A MONAI ViT with a class token, under the names of timm's; it shares all parts.

    Parameters
    ----------
    vit : monai.networks.nets.ViT
        Made with ``classification=True``.

    Raises
    ------
    ModelError
        If it has no class token, or a forward pass of its own.
    """

    num_prefix_tokens = 1
    grad_checkpointing = False
    fc_norm = None

    def __init__(self, vit: nn.Module) -> None:
        super().__init__()
        base: Any = class_named(vit, MONAI_VIT)
        if base is None or type(vit).forward is not base.forward:
            raise ModelError(
                f"{type(vit).__name__} has a forward of its own, so how its outputs come from the "
                "class token is unknown: use MONAI's ViT itself."
            )
        refuse_set_functions(f"MONAI's {type(vit).__name__}", vit, ("forward",))
        if not hasattr(vit, "cls_token") or not hasattr(vit, "classification_head"):
            raise ModelError(
                f"MONAI's {type(vit).__name__} has no class token and no head: create it with "
                "classification=True."
            )
        self.vit: Any = vit
        self.patch_embed = _patches(vit)

    @property
    def cls_token(self) -> Tensor:
        """The class token before any block."""
        token: Tensor = self.vit.cls_token
        return token

    @property
    def blocks(self) -> nn.ModuleList:
        """MONAI's blocks."""
        blocks: nn.ModuleList = self.vit.blocks
        return blocks

    @property
    def norm(self) -> nn.Module:
        """The final norm."""
        norm: nn.Module = self.vit.norm
        return norm

    @property
    def embed_dim(self) -> int:
        """Numbers in a token."""
        return int(self.vit.cls_token.shape[-1])

    def forward_features(self, images: Tensor) -> Tensor:
        """Return all tokens after the final norm, the class token first.

        Parameters
        ----------
        images : Tensor
            ``(batch, channel, *size)`` as the ViT takes them.
        """
        patches = self.vit.patch_embedding(images)
        tokens = torch.cat((self.vit.cls_token.expand(len(images), -1, -1), patches), dim=1)
        for block in self.vit.blocks:
            tokens = block(tokens)
        normed: Tensor = self.vit.norm(tokens)
        return normed

    def readout(self, class_token: Tensor) -> Tensor:
        """Return the outputs for class tokens; MONAI's head ends in tanh unless told otherwise.

        Parameters
        ----------
        class_token : Tensor
            ``(batch, dim)``, after the final norm.
        """
        outputs: Tensor = self.vit.classification_head(class_token)
        return outputs


def whole_module(vit: nn.Module) -> nn.Module:
    """Return the module that the user has: MONAI's ViT itself instead of its wrapper.

    Parameters
    ----------
    vit : Module
        The ViT of a `ClassTokenModel`.
    """
    module: nn.Module = vit.vit if isinstance(vit, MonaiTokens) else vit
    return module


def _patches(vit: Any) -> MonaiPatches:
    """Read patch size and channels off the layer that projects the patches."""
    embedding = vit.patch_embedding
    layer = embedding.patch_embeddings
    count = int(embedding.position_embeddings.shape[1])
    if isinstance(layer, nn.Conv2d | nn.Conv3d):
        return MonaiPatches(tuple(layer.kernel_size), count, layer.in_channels)
    lengths: dict[str, int] = layer[0].axes_lengths  # of einops' Rearrange: p1, p2, p3
    patch_size = tuple(length for _, length in sorted(lengths.items()))
    return MonaiPatches(patch_size, count, layer[1].in_features // math.prod(patch_size))
