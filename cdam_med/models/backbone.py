"""Backbones: any timm vision transformer with a class token, with or without trained weights."""

import textwrap
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

import timm
import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, PositiveInt
from safetensors import SafetensorError, safe_open
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

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

_CLOSE_NAMES = 5
_REASON_LENGTH = 300
"""How many names are offered for an unknown one, and characters of a library's reason shown."""


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

    Returns
    -------
    VisionTransformer
        timm's model; its `forward_features` ends with the final norm.

    Raises
    ------
    ModelError
        If timm doesn't know the architecture, it isn't a ViT with a normed class token, the image
        size isn't a multiple of its patch size, or the weights can't be loaded.
    """
    name = timm_name(spec.architecture)
    file = None if weights is None or weights == FROM_HUB else check_safetensors(Path(weights))
    if file is not None:
        with torch.device("meta"):  # shapes alone: what doesn't fit is named before it is loaded
            check_weights(file, _created(name, spec.image_size, None, None), name)
    return _created(name, spec.image_size, weights, file)


def timm_name(architecture: str) -> str:
    """Return timm's name of an architecture.

    Parameters
    ----------
    architecture
        A name in `PAPER_BACKBONES`, or timm's own.

    Raises
    ------
    ModelError
        If timm doesn't know it; the nearest names are given.
    """
    name = PAPER_BACKBONES.get(architecture, architecture)
    known = timm.list_models()
    if name.split(".")[0] not in known:
        close = ", ".join(get_close_matches(name.split(".")[0], known, n=_CLOSE_NAMES))
        raise ModelError(
            f"timm doesn't know the architecture {name!r}; give one of "
            f"{', '.join(PAPER_BACKBONES)} or a timm name{f' such as {close}' if close else ''}."
        )
    return name


def _created(
    name: str, image_size: int, weights: str | Path | None, file: Path | None
) -> VisionTransformer:
    """Return timm's model, or refuse one that has no class token or can't take the images."""
    try:
        created = timm.create_model(
            name,
            pretrained=weights is not None,
            pretrained_cfg_overlay=None if file is None else {"file": str(file)},
            num_classes=0,
            img_size=image_size,
        )
    except (RuntimeError, TypeError, OSError) as error:
        raise ModelError(
            f"The backbone {name!r} can't be built at {image_size} pixels with "
            f"{'random weights' if weights is None else f'weights from {weights}'}: "
            f"{in_one_line(error)}"
        ) from error
    vit = _with_class_token(created, name)
    patch_size = vit.patch_embed.feat_ratio(as_scalar=False)
    if any(image_size % edge for edge in patch_size):
        raise ModelError(
            f"Images of {image_size} pixels don't divide into the patches of {name!r}, "
            f"{' x '.join(map(str, patch_size))} pixels; choose a multiple as image_size."
        )
    return vit


def check_weights(file: Path, vit: VisionTransformer, name: str) -> None:
    """Refuse a file that doesn't hold a ViT's weights, some of which timm would pass over.

    Parameters
    ----------
    file : Path
        A safetensors file.
    vit : VisionTransformer
        timm's model without a head; its weights may be on the meta device.
    name : str
        Name of the architecture, for the message.

    Raises
    ------
    ModelError
        If it lacks weights, has others in the blocks, or some of another shape.
    """
    with safe_open(file, framework="pt") as stored:
        found = {key: stored.get_slice(key).get_shape() for key in stored.keys()}  # noqa: SIM118
    expected = {key: list(each.shape) for key, each in vit.state_dict().items()}
    # timm resamples these two
    wrong = [
        key
        for key in expected
        if found.get(key, expected[key]) != expected[key]
        and not key.startswith(("pos_embed", "patch_embed."))
    ]
    if wrong:
        raise ModelError(
            f"{file} holds weights of another architecture than {name!r}: {wrong[0]} is "
            f"{_times(found[wrong[0]])}, not {_times(expected[wrong[0]])}; name the architecture "
            "that they belong to."
        )
    missing = sorted(expected.keys() - found.keys())
    if missing:
        raise ModelError(
            f"{file} lacks {len(missing)} weights of {name!r}, the first of them {missing[0]}; "
            "give weights of this architecture under timm's names."
        )
    surplus = sorted(key for key in found.keys() - expected.keys() if key.startswith("blocks."))
    if surplus:
        raise ModelError(
            f"{file} holds weights of another architecture than {name!r}, which has no "
            f"{surplus[0]}; name the architecture that they belong to."
        )


def _times(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _with_class_token(vit: nn.Module, name: str) -> VisionTransformer:
    """Return the ViT, or refuse one without a class token that goes through the final norm."""
    if not isinstance(vit, VisionTransformer) or vit.cls_token is None:
        raise ModelError(
            f"{name!r} ({type(vit).__name__}) has no class token of timm's VisionTransformer; "
            "choose a ViT, DINO, DINOv2 or DeiT."
        )
    if isinstance(vit.norm, nn.Identity):
        raise ModelError(
            f"{name!r} pools its patch tokens, so that its class token isn't normed and was never "
            "trained to hold the result; choose a ViT, DINO, DINOv2 or DeiT."
        )
    return vit


def in_one_line(error: Exception) -> str:
    """Return what a library says went wrong, on one line and not at any length."""
    return textwrap.shorten(str(error), _REASON_LENGTH, placeholder=" ...")


def check_safetensors(path: Path) -> Path:
    """Return the path, unchanged, of a safetensors file; refuse anything else.

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
    except (SafetensorError, OSError) as error:
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
