"""Vision transformers of Hugging Face's transformers: ViT, DeiT, DINOv2, DINOv3.

Importing the library takes seconds, so that its classes are recognised by their names. A model for
classification holds the ViT as a part; a bare ViT, such as a published DINOv2, has its pooled
feature as outputs, which is what a head of one's own, or a concept, takes.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cdam_med.attribution.pooling import Pooling
from cdam_med.attribution.vit import Patches, Projections, VitAdapter, is_named, outputs_in

_DINOV3 = "transformers.models.dinov3_vit.modeling_dinov3_vit.DINOv3ViTModel"
_DINOS = (
    "transformers.models.dinov2.modeling_dinov2.Dinov2Model",
    "transformers.models.dinov2_with_registers.modeling_dinov2_with_registers."
    "Dinov2WithRegistersModel",
    _DINOV3,
)
_OF_ONE_SIZE = (
    "transformers.models.vit.modeling_vit.ViTModel",
    "transformers.models.deit.modeling_deit.DeiTModel",
)
_VITS = (*_OF_ONE_SIZE, *_DINOS)
_CLASSIFIERS = (
    "transformers.models.vit.modeling_vit.ViTForImageClassification",
    "transformers.models.deit.modeling_deit.DeiTForImageClassification",
    "transformers.models.deit.modeling_deit.DeiTForImageClassificationWithTeacher",
    "transformers.models.dinov2.modeling_dinov2.Dinov2ForImageClassification",
    "transformers.models.dinov2_with_registers.modeling_dinov2_with_registers."
    "Dinov2WithRegistersForImageClassification",
)


class HuggingFaceAdapter(VitAdapter):
    """A ViT of transformers, bare or with its head for classification. See `VitAdapter`."""

    module: Any  # the library's, which isn't imported

    @classmethod
    def takes(cls, module: nn.Module) -> bool:
        """See `VitAdapter`."""
        return is_named(module, *_VITS, *_CLASSIFIERS)

    @property
    def _vit(self) -> Any:
        """The bare ViT."""
        if is_named(self.module, *_VITS):
            return self.module
        return next(part for part in self.module.children() if is_named(part, *_VITS))

    @property
    def n_prefix(self) -> int:
        """The class token, DeiT's distillation token, registers."""
        embeddings = self._vit.embeddings
        registers = getattr(embeddings, "register_tokens", None)
        count = 0 if registers is None else int(registers.shape[1])
        return 1 + count + hasattr(embeddings, "distillation_token")

    @property
    def embed_dim(self) -> int:
        """See `VitAdapter`."""
        return int(self._vit.embeddings.cls_token.shape[-1])

    @property
    def patches(self) -> Patches:
        """Read off the layer that projects the patches; ViT and DeiT take one size alone."""
        embedding = self._vit.embeddings.patch_embeddings
        layer = getattr(embedding, "projection", embedding)
        is_fixed = is_named(self._vit, *_OF_ONE_SIZE)
        return Patches(
            sides=tuple(layer.kernel_size),
            channels=layer.in_channels,
            image_size=tuple(embedding.image_size) if is_fixed else None,
        )

    @property
    def usual_size(self) -> tuple[int, ...]:
        """The size that the configuration names."""
        size = self._vit.config.image_size
        return (size, size) if isinstance(size, int) else tuple(size)

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Those of the configuration, unless they are only numbered."""
        if self._vit is self.module:
            return None
        labels: dict[int, str] = self.module.config.id2label
        names = tuple(labels[column] for column in sorted(labels))
        is_numbered = names == tuple(f"LABEL_{column}" for column in range(len(names)))
        return None if is_numbered or len(set(names)) < len(names) else names

    @property
    def blocks(self) -> tuple[nn.Module, ...]:
        """Read off the one list of them, whose name is another in each family and version."""
        lists = (part for part in self._vit.modules() if isinstance(part, nn.ModuleList))
        return tuple(next(part for part in lists if self.norms_before_attention(part[0])))

    @property
    def norm(self) -> nn.Module:
        """See `VitAdapter`."""
        norm: nn.Module = getattr(self._vit, "layernorm", None) or self._vit.norm
        return norm

    def norms_before_attention(self, block: Any) -> tuple[nn.Module, ...]:
        """See `VitAdapter`."""
        norm = getattr(block, "layernorm_before", None) or getattr(block, "norm1", None)
        return () if norm is None else (norm,)

    @property
    def readout_tokens(self) -> int:
        """Two where DeiT's distillation token has a head too."""
        return 2 if hasattr(self.module, "distillation_classifier") else 1

    @property
    def pooling(self) -> Pooling | None:
        """Class token and mean of the patches side by side, in DINOv2's classifiers."""
        if self._vit is self.module or not is_named(self._vit, *_DINOS):
            return None
        return Pooling("class token and mean", self._class_token_and_mean)

    def _class_token_and_mean(
        self, tokens: Float[Tensor, "batch token dim"]
    ) -> Float[Tensor, "batch two_dim"]:
        return torch.cat((tokens[:, 0], tokens[:, self.n_prefix :].mean(1)), dim=1)

    @property
    def readout(self) -> Callable[[Tensor], Tensor]:
        """The classifier; of a bare ViT its pooler, or nothing."""
        return self._readout

    def _readout(self, features: Float[Tensor, "batch feature"]) -> Float[Tensor, "batch target"]:
        if self.readout_tokens == 2:
            class_token, distillation_token = features.chunk(2, dim=-1)
            of_class = self.module.cls_classifier(class_token)
            both: Tensor = of_class + self.module.distillation_classifier(distillation_token)
            return both / 2
        if self._vit is self.module:
            pooler = getattr(self.module, "pooler", None)
            pooled: Tensor = features if pooler is None else pooler(features[:, None])
            return pooled
        outputs: Tensor = self.module.classifier(features)
        return outputs

    def forward_features(
        self, images: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch token dim"]:
        """See `VitAdapter`."""
        tokens: Tensor = self._vit(images, return_dict=True).last_hidden_state
        return tokens

    def own_outputs(self, images: Float[Tensor, "batch channel height width"]) -> Tensor:
        """Return the logits; of a bare ViT the pooled feature, else the class token."""
        found = self.module(images, return_dict=True)
        outputs = outputs_in(found)
        class_token: Tensor = found.last_hidden_state[:, 0] if outputs is found else outputs
        return class_token

    def projections(self) -> Projections | None:
        """Return those of attention without rotary positions, as transformers 5 names them."""
        attention: Any = getattr(self.blocks[-1], "attention", None)
        layers: list[Any] = [getattr(attention, f"{name}_proj", None) for name in "qkvo"]
        is_plain = all(type(layer) is nn.Linear for layer in layers)
        if not is_plain or is_named(self._vit, _DINOV3):
            return None
        heads = (-1, attention.head_dim)
        W_q, W_k, W_v = (torch.unflatten(layer.weight, 0, heads) for layer in layers[:3])
        b_q, _, b_v = (
            torch.zeros_like(layer.weight[:, 0]) if layer.bias is None else layer.bias
            for layer in layers[:3]
        )
        each_head = (-1, 1, attention.head_dim)
        return Projections(
            W_q, W_k, W_v, torch.unflatten(b_q, 0, each_head), torch.unflatten(b_v, 0, each_head)
        )

    def after_attention(
        self,
        z: Float[Tensor, "batch head read head_dim"],
        residual: Float[Tensor, "batch read dim"],
    ) -> Float[Tensor, "batch read dim"]:
        """See `VitAdapter`."""
        block: Any = self.blocks[-1]
        attended = block.attention.o_proj(z.transpose(1, 2).flatten(2))
        if hasattr(block, "layernorm_after"):
            x = residual + attended
            left: Tensor = x + block.mlp(block.layernorm_after(x))
        else:
            x = residual + block.layer_scale1(attended)
            left = x + block.layer_scale2(block.mlp(block.norm2(x)))
        return left
