"""The model: a timm ViT that rates a slice of a lung nodule."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, TypeVar

from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import load_file
from torch import Tensor, nn

from cdam_med.attribution.class_token import ClassTokenModel
from cdam_med.data.transforms import InputSpec, standardised
from cdam_med.errors import ModelError
from cdam_med.models.backbone import (
    BackboneSpec,
    build_backbone,
    check_safetensors,
    class_token,
    in_one_line,
)
from cdam_med.models.heads import NoduleHeads
from cdam_med.models.low_rank import factored, multiplied
from cdam_med.models.slice_model import SliceModel, sha256_of_weights
from cdam_med.targets import TARGET_NAMES, TARGETS
from data_prep.errors import InputError

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
"""Files of a model folder, as `save_pretrained` names them."""

READ_AND_WRITE = 0o666
"""Bits of a file's mode that let it be read and written."""

_Model = TypeVar("_Model", bound="NoduleViT")


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
        """Return a new model that starts from a pretrained backbone.

        Parameters
        ----------
        config
            Architecture and input.
        weights
            ``"hub"`` or a ``.safetensors`` file, see `cdam_med.models.backbone.build_backbone`.

        Raises
        ------
        ModelError
            If the weights can't be loaded.
        """
        model = cls(config)
        model.backbone = build_backbone(config.backbone, weights=weights)
        return model

    def _save_pretrained(self, save_directory: Path) -> None:
        """Write the weights, block matrices as factors where the configuration gives a rank."""
        rank = self.config.backbone.rank
        with nullcontext() if rank is None else factored(self.backbone, rank):
            super()._save_pretrained(save_directory)
        # safetensors closes its file to all but its owner; give it the rights of its folder
        rights = save_directory.stat().st_mode & READ_AND_WRITE
        (save_directory / WEIGHTS_FILE).chmod(rights)

    @classmethod
    def _load_as_safetensor(  # type: ignore[override]  # the mixin's own loader of this class
        cls, model: _Model, model_file: str, map_location: str, strict: bool
    ) -> _Model:
        """Read the weights; block matrices that are stored as factors are made whole."""
        weights = check_safetensors(Path(model_file))
        try:
            stored = load_file(weights, device=map_location)
            model.load_state_dict(multiplied(stored, model.config.backbone.rank))
        except (RuntimeError, ValueError) as error:
            raise ModelError(
                f"The weights in {weights} don't fit the configuration beside them "
                f"({in_one_line(error)}); take both files from the same model folder."
            ) from error
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
        """Standardise grey images in [0, 1] and repeat them for the three colours.

        Raises
        ------
        InputError
            If they aren't grey.
        """
        if images.shape[1] != 1:
            raise InputError(
                f"{self.config.name} takes grey images of one channel, not of {images.shape[1]}: "
                "give one slice an image."
            )
        return standardised(images, self.config.input, 3)

    def forward(
        self, images: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch target"]:
        """Rate grey images in [0, 1].

        Returns
        -------
        Tensor
            In the order of `cdam_med.targets.TARGETS`: the malignancy logit, then the biomarkers
            in rating points and millimetres.
        """
        outputs: Tensor = self.heads(class_token(self.backbone, self.prepare(images)))
        return outputs

    @property
    def weights_sha256(self) -> str:
        """Hash of all weights: names and float32 values in the order of their names."""
        return sha256_of_weights(self)

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
