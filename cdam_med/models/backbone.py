"""Backbones: any timm vision transformer with a class token, with or without trained weights."""

import textwrap
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import timm
import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, PositiveInt
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
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
    """Return a timm ViT without a classifier, which ends with the final norm.

    Weights are `FROM_HUB`, a ``.safetensors`` file with timm's names, or None for random ones; the
    position embedding is resampled where the image size differs. A `ModelError` says what doesn't
    fit.
    """
    name = timm_name(spec.architecture)
    file = None if weights is None or weights == FROM_HUB else check_safetensors(Path(weights))
    if file is not None:
        with torch.device("meta"):  # shapes alone: what doesn't fit is named before it is loaded
            check_weights(file, _created(name, spec.image_size, None, None), name)
    return _created(name, spec.image_size, weights, file)


def timm_name(architecture: str) -> str:
    """Return timm's name of an architecture; of an unknown one the nearest are told."""
    name = PAPER_BACKBONES.get(architecture, architecture)
    known = timm.list_models()
    if name.split(".")[0] not in known:
        close = ", ".join(get_close_matches(name.split(".")[0], known, n=5))
        raise ModelError(
            f"timm doesn't know the architecture {name!r}; give one of "
            f"{', '.join(PAPER_BACKBONES)} or a timm name{f' such as {close}' if close else ''}."
        )
    return name


def _created(
    name: str, image_size: int, weights: str | Path | None, file: Path | None
) -> VisionTransformer:
    """Return timm's model, or refuse one without a normed class token or for other images."""
    try:
        vit: Any = timm.create_model(
            name,
            pretrained=weights is not None,
            pretrained_cfg_overlay=None if file is None else {"file": str(file)},
            num_classes=0,
            img_size=image_size,
        )
    except (RuntimeError, TypeError, OSError) as error:
        origin = "random weights" if weights is None else f"weights from {weights}"
        raise ModelError(
            f"The backbone {name!r} can't be built at {image_size} pixels with {origin}: "
            f"{in_one_line(error)}"
        ) from error
    is_known = isinstance(vit, VisionTransformer) and vit.cls_token is not None
    if not is_known or isinstance(vit.norm, nn.Identity):  # where it pools its patches
        raise ModelError(
            f"{name!r} ({type(vit).__name__}) has no class token of timm's VisionTransformer that "
            "goes through the final norm; choose a ViT, DINO, DINOv2 or DeiT."
        )
    patch_size = vit.patch_embed.feat_ratio(as_scalar=False)
    if any(image_size % edge for edge in patch_size):
        raise ModelError(
            f"Images of {image_size} pixels don't divide into the patches of {name!r}, "
            f"{' x '.join(map(str, patch_size))} pixels; choose a multiple as image_size."
        )
    found: VisionTransformer = vit
    return found


def check_weights(file: Path, vit: VisionTransformer, name: str) -> None:
    """Refuse a file that doesn't hold a ViT's weights, some of which timm would pass over.

    The weights of `vit`, a model without a head, may be on the meta device.
    """
    with safe_open(file, framework="pt") as stored:
        found = {key: stored.get_slice(key).get_shape() for key in stored.keys()}  # noqa: SIM118
    expected = {key: list(each.shape) for key, each in vit.state_dict().items()}
    resampled = ("pos_embed", "patch_embed.")  # by timm
    wrong = [
        f"{key} is {found[key]}, not {shape}"
        for key, shape in expected.items()
        if found.get(key, shape) != shape and not key.startswith(resampled)
    ]
    missing = sorted(expected.keys() - found.keys())
    wrong += [f"it lacks {len(missing)} weights, among them {key}" for key in missing]
    surplus = sorted(key for key in found.keys() - expected.keys() if key.startswith("blocks."))
    wrong += [f"there is no {key}" for key in surplus]
    if wrong:
        raise ModelError(
            f"{file} holds weights of another architecture than {name!r} ({wrong[0]}); name the "
            "architecture that they belong to, and give them under timm's names."
        )


def in_one_line(error: Exception) -> str:
    """Return what a library says went wrong, on one line and not at any length."""
    return textwrap.shorten(str(error), 300, placeholder=" ...")


def check_safetensors(path: Path) -> Path:
    """Return the path of a safetensors file; refuse a pickle, of which nothing is executed."""
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


def load_weights(
    model: nn.Module,
    path: Path,
    *,
    device: str = "cpu",
    change: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] = lambda stored: stored,
) -> None:
    """Load a safetensors file of a model folder into the model, changed by a function if given."""
    file = check_safetensors(path)
    try:
        model.load_state_dict(change(load_file(file, device=device)))
    except (RuntimeError, ValueError) as error:
        raise ModelError(
            f"The weights in {file} don't fit the configuration beside them "
            f"({in_one_line(error)}); take both files from the same model folder."
        ) from error


def class_token(
    vit: VisionTransformer, images: Float[Tensor, "batch channel height width"]
) -> Float[Tensor, "batch dim"]:
    """Return the class token after the final norm."""
    tokens: Tensor = vit.forward_features(images)
    return tokens[:, 0]
