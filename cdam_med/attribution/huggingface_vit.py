"""Vision transformers of Hugging Face's transformers: ViT, DeiT, DINOv2, DINOv3.

A model for classification holds the ViT as a part; a bare ViT, such as a published DINOv2, has its
pooled feature as outputs, which is what a head of one's own, or a concept, takes.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cdam_med.attribution.vit import (
    Part,
    Patches,
    Pooling,
    Projections,
    VitAdapter,
    is_named,
    outputs_in,
)

_DINOV3 = "transformers.DINOv3ViTModel"
_DINOS = ("transformers.Dinov2Model", "transformers.Dinov2WithRegistersModel", _DINOV3)
_OF_ONE_SIZE = ("transformers.ViTModel", "transformers.DeiTModel")
_VITS = (*_OF_ONE_SIZE, *_DINOS)


class HuggingFaceAdapter(VitAdapter):
    """A ViT of transformers, bare or with its head for classification. See `VitAdapter`."""

    kinds = (
        *_VITS,
        "transformers.ViTForImageClassification",
        "transformers.DeiTForImageClassification",
        "transformers.DeiTForImageClassificationWithTeacher",
        "transformers.Dinov2ForImageClassification",
        "transformers.Dinov2WithRegistersForImageClassification",
    )

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        parts = (module, *module.children())
        vit: Any = next(part for part in parts if is_named(part, *_VITS))
        self._vit, self._is_bare = vit, vit is module
        registers = getattr(vit.embeddings, "register_tokens", None)
        n_registers = 0 if registers is None else int(registers.shape[1])
        self.n_prefix = 1 + n_registers + hasattr(vit.embeddings, "distillation_token")
        self.embed_dim = int(vit.embeddings.cls_token.shape[-1])
        # the name of the list of blocks is another in each family and version
        lists = (part for part in vit.modules() if isinstance(part, nn.ModuleList))
        self.blocks = tuple(next(part for part in lists if self.norms_before_attention(part[0])))
        self.norm = getattr(vit, "layernorm", None) or vit.norm
        self.readout = self._readout
        self.readout_tokens = 1 + hasattr(module, "distillation_classifier")
        if not self._is_bare:
            self.class_names = _class_names(self.module.config.id2label)
            if is_named(vit, *_DINOS):
                self.pooling = Pooling("class token and mean", self._class_token_and_mean)

    @property
    def patches(self) -> Patches:
        """Read off the layer that projects the patches; ViT and DeiT take one size alone."""
        embedding = self._vit.embeddings.patch_embeddings
        layer = getattr(embedding, "projection", embedding)
        size = tuple(embedding.image_size) if is_named(self._vit, *_OF_ONE_SIZE) else None
        return Patches(tuple(layer.kernel_size), layer.in_channels, image_size=size)

    @property
    def usual_size(self) -> tuple[int, ...]:
        """The size that the configuration names."""
        size = self._vit.config.image_size
        return (size, size) if isinstance(size, int) else tuple(size)

    def norms_before_attention(self, block: Any) -> tuple[nn.Module, ...]:
        """See `VitAdapter`."""
        norm = getattr(block, "layernorm_before", None) or getattr(block, "norm1", None)
        return () if norm is None else (norm,)

    def _class_token_and_mean(
        self, tokens: Float[Tensor, "batch token dim"]
    ) -> Float[Tensor, "batch two_dim"]:
        return torch.cat((tokens[:, 0], tokens[:, self.n_prefix :].mean(1)), dim=1)

    def _readout(self, features: Float[Tensor, "batch feature"]) -> Any:
        """Return what the classifier gives; of a bare ViT its pooler, or the feature itself."""
        if self.readout_tokens == 2:
            class_token, distilled = features.chunk(2, dim=-1)
            outputs = self.module.cls_classifier(class_token)
            return (outputs + self.module.distillation_classifier(distilled)) / 2
        if not self._is_bare:
            return self.module.classifier(features)
        pooler = getattr(self.module, "pooler", None)
        return features if pooler is None else pooler(features[:, None])

    def forward_features(
        self, images: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch token dim"]:
        """See `VitAdapter`."""
        tokens: Tensor = self._vit(images, return_dict=True).last_hidden_state
        return tokens

    def own_outputs(self, images: Float[Tensor, "batch channel height width"]) -> Any:
        """Return the logits; of a bare ViT the pooled feature, else the class token."""
        found = self.module(images, return_dict=True)
        outputs = outputs_in(found)
        return found.last_hidden_state[:, 0] if outputs is found else outputs

    def projections(self) -> Projections | None:
        """Return those of attention without rotary positions, as transformers 5 names them."""
        attention: Any = getattr(self.blocks[-1], "attention", None)
        layers: list[Any] = [getattr(attention, f"{name}_proj", None) for name in "qkvo"]
        is_plain = all(type(layer) is nn.Linear for layer in layers)
        if not is_plain or is_named(self._vit, _DINOV3):
            return None
        weights = [layer.weight for layer in layers[:3]]
        biases = [
            torch.zeros_like(layer.weight[:, 0]) if layer.bias is None else layer.bias
            for layer in layers[:3]
        ]
        heads = len(weights[0]) // attention.head_dim
        return Projections.of_layer(torch.cat(weights), torch.cat(biases), heads)

    def parts_after_attention(self) -> tuple[Part, Part, Part, Part, Part]:
        """See `VitAdapter`."""
        block: Any = self.blocks[-1]
        project, mlp, none = block.attention.o_proj, block.mlp, nn.Identity()
        if hasattr(block, "layernorm_after"):
            return project, none, block.layernorm_after, mlp, none
        return project, block.layer_scale1, block.norm2, mlp, block.layer_scale2


def _class_names(labels: dict[int, str]) -> tuple[str, ...] | None:
    """Return names of classes in their order, unless they are only numbered."""
    names = tuple(labels[column] for column in sorted(labels))
    is_numbered = names == tuple(f"LABEL_{column}" for column in range(len(names)))
    return None if is_numbered or len(set(names)) < len(names) else names
