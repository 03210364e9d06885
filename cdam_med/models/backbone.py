"""Backbones: any timm vision transformer with a class token, with or without trained weights."""

from pathlib import Path

import timm
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, PositiveInt
from safetensors import SafetensorError, safe_open
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from cdam_med.errors import ModelError

PAPER_BACKBONES = {
    "dino_vits8": "vit_small_patch8_224.dino",
    "dino_vitb8": "vit_base_patch8_224.dino",
    "dino_vits16": "vit_small_patch16_224.dino",
    "dino_vitb16": "vit_base_patch16_224.dino",
    "dinov2_vits14_reg": "vit_small_patch14_reg4_dinov2",
    "dinov2_vitb14_reg": "vit_base_patch14_reg4_dinov2",
    "vit_b_16": "vit_base_patch16_224.augreg_in21k_ft_in1k",
    "deit_small": "deit_small_patch16_224",
}
"""The paper's names of its backbones (and DeiT) and timm's; any other timm name is taken too."""

FROM_HUB = "hub"
"""As weights: download those that timm names for the architecture."""


class BackboneSpec(BaseModel):
    """Shape of a backbone: all that is needed to build it before its weights are loaded.

    Parameters
    ----------
    architecture
        A name in `PAPER_BACKBONES` or any timm name of a vision transformer with a class token.
    image_size
        Edge of the square image in pixels; a multiple of the patch size.
    rank
        Rank of the block matrices, which are then stored as factors (`cdam_med.models.low_rank`);
        None for whole matrices.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: str
    image_size: PositiveInt
    rank: PositiveInt | None = None


def build_backbone(spec: BackboneSpec, *, weights: str | Path | None = None) -> VisionTransformer:
    """Build a timm ViT without a classifier.

    Parameters
    ----------
    spec
        The architecture.
    weights
        `FROM_HUB`, a ``.safetensors`` file with timm's names, or None for random weights. The
        position embedding is resampled where the image size differs.

    Raises
    ------
    ModelError
        If timm doesn't know the architecture, it isn't a ViT with a class token, or the weights
        can't be loaded.
    """
    name = PAPER_BACKBONES.get(spec.architecture, spec.architecture)
    if name.split(".")[0] not in timm.list_models():
        close = ", ".join(timm.list_models(f"*{name.split('.')[0][:12]}*")[:5])
        raise ModelError(
            f"timm doesn't know the architecture {name!r}; give one of "
            f"{', '.join(PAPER_BACKBONES)} or a timm name{f' such as {close}' if close else ''}."
        )
    overlay: dict[str, str] | None = None
    if weights is not None and weights != FROM_HUB:
        overlay = {"file": str(check_safetensors(Path(weights)))}
    try:
        vit = timm.create_model(
            name,
            pretrained=weights is not None,
            pretrained_cfg_overlay=overlay,
            num_classes=0,
            img_size=spec.image_size,
        )
    except (RuntimeError, TypeError, OSError) as error:
        raise ModelError(
            f"The backbone {name!r} can't be built at {spec.image_size} pixels with weights "
            f"{'none' if weights is None else weights}: {error}"
        ) from error
    if not isinstance(vit, VisionTransformer) or vit.cls_token is None:
        raise ModelError(
            f"{name!r} ({type(vit).__name__}) has no class token of timm's VisionTransformer; "
            "choose a ViT, DINO, DINOv2 or DeiT."
        )
    return vit


def check_safetensors(path: Path) -> Path:
    """Return the path of a safetensors file, or refuse anything else.

    Raises
    ------
    ModelError
        If the file is missing, or is a pickle or damaged; nothing in it is executed.
    """
    if not path.is_file():
        raise ModelError(f"There is no weights file {path}; give an existing .safetensors file.")
    try:
        with safe_open(path, framework="pt"):
            return path
    except SafetensorError as error:
        raise ModelError(
            f"{path} is no safetensors file ({error}). Pickled weights (.pt, .pth, .ckpt, .bin) "
            "can run code and are refused: convert them with safetensors.torch.save_file in a "
            "process that you trust."
        ) from error


def class_token(
    vit: VisionTransformer, images: Float[Tensor, "batch channel height width"]
) -> Float[Tensor, "batch dim"]:
    """Return the class token after the final norm."""
    tokens: Tensor = vit.forward_features(images)
    return tokens[:, 0]
