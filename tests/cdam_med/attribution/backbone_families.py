"""Small versions, with random weights, of every family of backbones that the table lists.

Sizes are overridden where timm's own entry point makes the model, so that everything else about it
is as published.
"""

from collections.abc import Callable
from dataclasses import dataclass

import timm
import torch
import torchvision
from monai.networks.nets import ViT
from torch import Tensor, nn

from cdam_med.attribution.patch_embed_3d import inflate_patch_embed

SMALL = {"embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 2}


@dataclass(frozen=True)
class Family:
    """A kind of backbone.

    `norms` are the modules whose output is attributed; `shape` is that of an image, and `grid`
    that of its patches; `needs` is a package that isn't there for certain.
    """

    title: str
    examples: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    grid: tuple[int, ...] = (2, 3)
    norms: tuple[str, ...] = ("blocks.1.norm1",)
    needs: str | None = None
    first_block: str = "blocks.0"
    prefix: int | None = None
    ablates: bool = True

    def model(self) -> nn.Module:
        return with_other_weights(self.build)

    def images(self) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        return torch.randn(2, *self.shape, dtype=torch.float64, generator=generator)


def with_other_weights(build: Callable[[], nn.Module]) -> nn.Module:
    """Build in float64, with weights, biases and norms that are all far from trivial."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build().double()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1 and (parameter == 1).all():  # the scale of a norm
                    parameter.add_(torch.randn_like(parameter) * 0.3)
                else:
                    parameter.copy_(torch.randn_like(parameter) * 0.3)
    return model.eval()


def outputs(model: nn.Module, images: Tensor) -> Tensor:
    """A model's outputs by its own forward pass; MONAI's gives hidden states besides."""
    found = model(images)
    if isinstance(found, Tensor):
        return found
    return found[0] if type(found) is tuple else found.logits


def small_huggingface(family: str, kind: str, *, config: str = "", **options: object) -> nn.Module:
    """A model of transformers by the names of its classes."""
    import transformers

    settings = {
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 64,
        "mlp_ratio": 2,
        "patch_size": 16,
        "num_labels": 2,
    } | options
    known = getattr(transformers, f"{config or family}Config")
    return with_other_weights(lambda: getattr(transformers, f"{family}{kind}")(known(**settings)))


def of_timm(title: str, name: str, *, examples: str = "", patch: int = 16, **options) -> Family:
    """A family by one of timm's names; `norms` is taken from the options."""
    settings = SMALL | {"img_size": (2 * patch, 3 * patch)} | options
    norms = settings.pop("norms", ("blocks.1.norm1",))
    ablates = settings.pop("ablates", True)
    settings = {key: value for key, value in settings.items() if value is not None}
    return Family(
        title,
        f"`{name}`{', ' + examples if examples else ''}",
        lambda: timm.create_model(name, **settings),
        (3, 2 * patch, 3 * patch),
        norms=norms,
        ablates=ablates,
    )


def monai(title: str, example: str, size: tuple, patch: tuple, **options) -> Family:
    """A family of MONAI's ViT."""
    grid = tuple(side // length for side, length in zip(size, patch, strict=True))
    settings = {
        "hidden_size": 48,
        "mlp_dim": 64,
        "num_layers": 2,
        "num_heads": 3,
        "classification": True,
        "num_classes": 2,
        "spatial_dims": len(size),
    } | options
    return Family(
        title,
        example,
        lambda: ViT(1, size, patch, **settings),
        (1, *size),
        grid,
        needs="einops",
    )


def huggingface(title: str, examples: str, family: str, place: str, **options) -> Family:
    """A family of transformers; `place` says where its blocks are, `norm` what they begin with."""
    kind, norm = options.pop("kind", "ForImageClassification"), options.pop("norm", "norm1")
    prefix = 1 + options.get("num_register_tokens", 0) + (family == "DeiT")
    size = 48 if place.endswith("encoder.layer") else (32, 48)  # DINOv2 resamples a square grid
    return Family(
        title,
        examples,
        lambda: small_huggingface(family, kind, image_size=size, **options),
        (3, 32, 48),
        norms=(f"{place}.1.{norm}",),
        needs="transformers",
        first_block=f"{place}.0",
        prefix=prefix,
    )


def torchvision_vit() -> nn.Module:
    return torchvision.models.VisionTransformer(48, 16, 2, 3, 48, 64, num_classes=2)


def dinov3_with_head() -> nn.Module:
    """What somebody makes of a bare ViT."""
    import transformers

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            config = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3}
            self.backbone = transformers.DINOv3ViTModel(
                transformers.DINOv3ViTConfig(**config, intermediate_size=64, num_register_tokens=2)
            )
            self.head = nn.Linear(48, 2)

        def forward(self, images: Tensor) -> Tensor:
            return self.head(self.backbone(images).pooler_output)

    return Classifier()


def sequential() -> nn.Module:
    settings = SMALL | {"num_classes": 0, "img_size": (32, 48)}
    return nn.Sequential(timm.create_model("vit_small_patch16_224", **settings), nn.Linear(48, 2))


def inflated() -> nn.Module:
    flat = timm.create_model("vit_base_patch16_224.dino", **SMALL, img_size=(32, 48))
    return inflate_patch_embed(flat, 5, "centering")


FAMILIES = (
    of_timm(
        "plain",
        "vit_small_patch16_224",
        examples="DINO `vit_small_patch8_224.dino`, `deit_small_patch16_224`",
    ),
    of_timm("no bias of q, k, v", "vit_small_patch16_224", qkv_bias=False),
    of_timm(
        "LayerScale",
        "vit_small_patch14_dinov2",
        patch=14,
        examples="`deit3_small_patch16_224`",
    ),
    of_timm("registers", "vit_small_patch14_reg4_dinov2", patch=14),
    of_timm("two prefix tokens that are read", "deit_small_distilled_patch16_224"),
    of_timm("norm before the blocks", "vit_base_patch16_clip_224"),
    of_timm(
        "convolutional stem",
        "vit_tiny_r_s16_p8_224",
        patch=32,
    ),
    of_timm("q/k norm", "vit_small_patch16_224", qk_norm=True),
    of_timm(
        "attention and MLP in parallel",
        "vit_base_patch16_xp_224",
        norms=("blocks.1.in_norm",),
    ),
    of_timm(
        "parallel attention branches",
        "vit_small_patch16_18x2_224",
        norms=("blocks.1.attns.0.norm", "blocks.1.attns.1.norm"),
    ),
    of_timm(
        "differential attention",
        "vit_dpwee_patch16_reg1_gap_256",
        norms=("blocks.1.in_norm",),
    ),
    of_timm("norm after attention", "vit_base_patch16_rpn_224"),
    of_timm("patches averaged, no class token", "vit_medium_patch16_gap_256"),
    of_timm(
        "patches averaged, class token left out",
        "vit_small_patch16_224",
        examples='with `global_pool="avg"`',
        global_pool="avg",
    ),
    of_timm("patches averaged, RMS norm, SwiGLU", "aimv2_large_patch14_224", patch=14),
    of_timm(
        "maximum of patches",
        "vit_small_patch16_224",
        examples='with `global_pool="max"` or `"avgmax"`',
        global_pool="avgmax",
    ),
    of_timm("attention pooling", "vit_base_patch16_siglip_224"),
    of_timm(
        "PRR pooling",
        "vit_small_patch16_224",
        examples='with `global_pool="prr"`',
        global_pool="prr",
    ),
    of_timm(
        "BEiT, patches averaged", "beit_base_patch16_224", examples="`beitv2_base_patch16_224`"
    ),
    of_timm(
        "BEiT, class token",
        "beit_base_patch16_224",
        examples='with `global_pool="token"`',
        global_pool="token",
    ),
    of_timm(
        "BEiT, one bias for all blocks",
        "beit_base_patch16_224",
        examples="with `use_shared_rel_pos_bias=True`",
        use_shared_rel_pos_bias=True,
        use_rel_pos_bias=False,
    ),
    of_timm("EVA, patches averaged", "eva_giant_patch14_224", patch=14),
    of_timm("EVA, class token", "eva_giant_patch14_clip_224", patch=14),
    of_timm("EVA-02, patches averaged", "eva02_tiny_patch14_224", patch=14),
    of_timm("EVA-02, class token", "eva02_base_patch16_clip_224"),
    of_timm("EVA-02, norm after attention", "eva02_enormous_patch14_clip_224", patch=14),
    of_timm("DINOv3", "vit_small_patch16_dinov3"),
    of_timm(
        "DINOv3, class token",
        "vit_small_patch16_dinov3",
        examples='with `global_pool="token"`',
        global_pool="token",
    ),
    of_timm("rotary positions that are learned", "vit_small_patch16_rope_mixed_224"),
    of_timm("Perception Encoder", "vit_pe_core_tiny_patch16_384"),
    monai("MONAI, 2-D", "`ViT(1, (64, 96), (16, 16), spatial_dims=2, ...)`", (8, 12), (4, 4)),
    monai(
        "MONAI, 3-D patches through the whole depth",
        "`ViT(1, (32, 64, 96), (32, 16, 16), ...)`",
        (4, 8, 12),
        (4, 4, 4),
    ),
    monai(
        "MONAI, 3-D grid of patches",
        "`ViT(1, (96, 96, 96), (16, 16, 16), ...)`",
        (8, 8, 12),
        (4, 4, 4),
        proj_type="perceptron",
        qkv_bias=True,
    ),
    of_timm("relative positions, patches averaged", "vit_relpos_small_patch16_224", ablates=False),
    of_timm("relative positions, class token", "vit_relpos_base_patch16_cls_224", ablates=False),
    of_timm(
        "relative positions, norm after attention",
        "vit_relpos_small_patch16_rpn_224",
        ablates=False,
    ),
    of_timm("NaFlexVit, patches averaged", "naflexvit_base_patch16_gap", img_size=None),
    of_timm("NaFlexVit, attention pooling", "naflexvit_base_patch16_map", img_size=None),
    of_timm("ViTamin", "vitamin_small_224", embed_dim=None, num_heads=None),
    huggingface(
        "Hugging Face ViT",
        "`ViTForImageClassification`, `ViTModel`",
        "ViT",
        "vit.layers",
        norm="layernorm_before",
    ),
    huggingface(
        "Hugging Face DeiT",
        "`DeiTForImageClassification`, `DeiTModel`",
        "DeiT",
        "deit.layers",
        norm="layernorm_before",
    ),
    huggingface(
        "Hugging Face DeiT, both heads",
        "`DeiTForImageClassificationWithTeacher`",
        "DeiT",
        "deit.layers",
        kind="ForImageClassificationWithTeacher",
        norm="layernorm_before",
    ),
    huggingface(
        "Hugging Face DINOv2, class token and mean of patches",
        "`Dinov2ForImageClassification`",
        "Dinov2",
        "dinov2.encoder.layer",
    ),
    huggingface(
        "Hugging Face DINOv2 with registers",
        "`Dinov2WithRegistersForImageClassification`",
        "Dinov2WithRegisters",
        "dinov2_with_registers.encoder.layer",
        num_register_tokens=2,
    ),
    Family(
        "torchvision",
        "`vit_b_16`",
        torchvision_vit,
        (3, 48, 48),
        (3, 3),
        norms=("encoder.layers.encoder_layer_1.ln_1",),
        first_block="encoder.layers.encoder_layer_0",
    ),
    Family(
        "a module around a ViT: Sequential with a head",
        "`nn.Sequential(vit, head)`, PEFT's `PeftModel`, `TimmWrapperForImageClassification`",
        sequential,
        (3, 32, 48),
        norms=("0.blocks.1.norm1",),
        ablates=False,
    ),
    Family(
        "a module around a ViT: DINOv3 and a head",
        "`DINOv3ViTModel` with a linear layer",
        dinov3_with_head,
        (3, 32, 48),
        norms=("backbone.model.layer.1.norm1",),
        needs="transformers",
        ablates=False,
    ),
    Family(
        "stack of slices, the paper's 3-D embedding",
        "`inflate_patch_embed(vit, depth)`",
        inflated,
        (5, 32, 48),
    ),
)
