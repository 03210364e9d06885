"""The model: a timm ViT that rates a slice of a lung nodule."""

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated, TypeVar

import torch
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from cdam_med.attribution.class_token import ClassTokenModel
from cdam_med.attribution.verification import weights_sha256
from cdam_med.data.transforms import InputSpec, standardised
from cdam_med.errors import ModelError
from cdam_med.models.backbone import BackboneSpec, build_backbone, class_token, load_weights
from cdam_med.models.low_rank import factored, multiplied
from cdam_med.models.slice_model import SliceModel
from cdam_med.targets import BIOMARKERS, TARGET_NAMES, TARGETS
from data_prep.errors import InputError

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
"""Files of a model folder, as `save_pretrained` names them."""

_Model = TypeVar("_Model", bound="NoduleViT")


class NoduleHeads(nn.Module):
    """A malignancy head and a biomarker head on one class token.

    Malignancy is linear (trained with binary cross-entropy); the biomarkers are
    Linear - ReLU - Linear, as in the paper's CT experiments. The biomarker head is trained on
    standardised targets; their means and scales are stored with the weights, and the outputs
    (and so the attributions) are in the units of the readers: rating points and millimetres.
    """

    biomarker_mean: Tensor
    biomarker_scale: Tensor

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        count = len(BIOMARKERS)
        self.malignancy = nn.Linear(embed_dim, 1)
        self.biomarkers = nn.Sequential(
            nn.Linear(embed_dim, embed_dim), nn.ReLU(), nn.Linear(embed_dim, count)
        )
        self.register_buffer("biomarker_mean", torch.zeros(count))
        self.register_buffer("biomarker_scale", torch.ones(count))

    def set_biomarker_scale(
        self, mean: Float[Tensor, "biomarker"], scale: Float[Tensor, "biomarker"]
    ) -> None:
        """Store means and standard deviations of the training labels; refuse labels all alike."""
        usable = mean.isfinite() & scale.isfinite() & (scale > 0)
        if not usable.all():
            pairs = zip(BIOMARKERS, usable.tolist(), strict=True)
            constant = ", ".join(target.name for target, ok in pairs if not ok)
            raise InputError(
                f"The training labels of {constant} don't vary, so nothing can be learnt of them; "
                "train on more nodules."
            )
        self.biomarker_mean.copy_(mean)
        self.biomarker_scale.copy_(scale)

    def standardise(
        self, biomarkers: Float[Tensor, "batch biomarker"]
    ) -> Float[Tensor, "batch biomarker"]:
        """Turn biomarkers in their units into the standardised values the head is trained on."""
        return (biomarkers - self.biomarker_mean) / self.biomarker_scale

    def forward(self, class_token: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch target"]:
        """Return the nine outputs in the order of `cdam_med.targets.TARGETS`."""
        biomarkers = self.biomarkers(class_token) * self.biomarker_scale + self.biomarker_mean
        return torch.cat([self.malignancy(class_token), biomarkers], dim=1)


class ModelConfig(BaseModel):
    """All that is needed to build a model before its weights are loaded.

    Parameters
    ----------
    name
        Short name that is shown in reports.
    backbone
        The ViT.
    input
        How slices become images.
    views
        Views whose central slices the model was trained on, at least one; its prediction is
        their mean.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    backbone: BackboneSpec
    input: InputSpec
    views: Annotated[tuple[str, ...], Field(min_length=1)] = ("axial",)


class NoduleViT(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="cdam-med",
    license="apache-2.0",
    tags=["medical-imaging", "computed-tomography", "explainable-ai"],
    coders={
        ModelConfig: (
            lambda config: config.model_dump(mode="json"),
            ModelConfig.model_validate,
        )
    },
):
    """A vision transformer with a malignancy head and a biomarker head.

    Parameters
    ----------
    config
        Architecture and input. The weights are random: see `from_backbone` and
        `cdam_med.load_model` for trained ones.

    Raises
    ------
    ModelError
        If the backbone can't be built.

    Attributes
    ----------
    backbone : VisionTransformer
        timm's model, unmodified.
    heads : NoduleHeads
        What is read from its class token.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = build_backbone(config.backbone)
        self.heads = NoduleHeads(self.backbone.embed_dim)

    @classmethod
    def from_backbone(cls, config: ModelConfig, weights: str | Path) -> "NoduleViT":
        """Return a new model that starts from a backbone's weights, ``"hub"`` or a file."""
        model = cls(config)
        model.backbone = build_backbone(config.backbone, weights=weights)
        return model

    def _save_pretrained(self, save_directory: Path) -> None:
        """Write the weights, block matrices as factors where the configuration gives a rank."""
        rank = self.config.backbone.rank
        with nullcontext() if rank is None else factored(self.backbone, rank):
            super()._save_pretrained(save_directory)
        # safetensors closes its file to all but its owner; give it the rights of its folder
        rights = save_directory.stat().st_mode & 0o666
        (save_directory / WEIGHTS_FILE).chmod(rights)

    @classmethod
    def _load_as_safetensor(  # type: ignore[override]  # the mixin's own loader of this class
        cls, model: _Model, model_file: str, map_location: str, strict: bool
    ) -> _Model:
        """Read the weights; block matrices that are stored as factors are made whole."""
        whole = partial(multiplied, rank=model.config.backbone.rank)
        load_weights(model, Path(model_file), device=map_location, change=whole)
        return model.eval()

    @classmethod
    def _load_as_pickle(  # type: ignore[override]  # as above
        cls, model: _Model, model_file: str, map_location: str, strict: bool
    ) -> _Model:
        """Refuse what `PyTorchModelHubMixin` falls back to where a hub has no safetensors."""
        raise ModelError(
            f"{model_file} is a pickle, which can run code when it is loaded; only safetensors "
            f"are accepted. Ask the author of {type(model).__name__} for model.safetensors."
        )

    def prepare(
        self, images: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch three height width"]:
        """Standardise grey images in [0, 1] and repeat them for the three colours."""
        if images.shape[1] != 1:
            raise InputError(
                f"{self.config.name} takes grey images of one channel, not of {images.shape[1]}: "
                "give one slice an image."
            )
        return standardised(images, self.config.input, 3)

    def forward(
        self, images: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch target"]:
        """Rate grey images in [0, 1], in the order of `cdam_med.targets.TARGETS`.

        That is the malignancy logit, then the biomarkers in rating points and millimetres.
        """
        outputs: Tensor = self.heads(class_token(self.backbone, self.prepare(images)))
        return outputs

    @property
    def weights_sha256(self) -> str:
        """Hash of all weights, see `cdam_med.attribution.verification`."""
        return weights_sha256(self)

    def class_token_model(self) -> ClassTokenModel:
        """Describe the model to an attribution method."""
        return ClassTokenModel(self.backbone, self.prepare, self.heads, TARGET_NAMES)

    def slice_model(self) -> SliceModel:
        """Describe the model to `cdam_med.explain`."""
        return SliceModel(
            model=self,
            description=self.class_token_model(),
            name=self.config.name,
            input=self.config.input,
            views=self.config.views,
            targets=TARGETS,
            weights_sha256=self.weights_sha256,
            config=self.config.model_dump(mode="json"),
        )
