"""Why a model can't be explained, for the message that refuses it."""

from collections.abc import Mapping

from cdam_med.models.class_names import full_name

_WINDOWS = (
    "attends within windows and merges patches from stage to stage, so that the last block's "
    "tokens are neither patches of one size nor all read together"
)
_CLASS_ATTENTION = (
    "ends in blocks in which the class token alone attends, apart from the patches' own blocks, so "
    "that there is no last block with a norm before the attention of all tokens"
)
_STAGES = "has stages of different patch sizes, so that no one grid of patches reaches its head"
_OTHER_ATTENTION = "attends in a form of its own, which isn't tested with CDAM"

_REASONS: Mapping[str, str] = {
    "timm.models.swin_transformer.SwinTransformer": _WINDOWS,
    "timm.models.swin_transformer_v2.SwinTransformerV2": _WINDOWS,
    "timm.models.swin_transformer_v2_cr.SwinTransformerV2Cr": _WINDOWS,
    "monai.networks.nets.swin_unetr.SwinTransformer": _WINDOWS,
    "timm.models.gcvit.GlobalContextVit": _WINDOWS,
    "timm.models.davit.DaVit": _WINDOWS,
    "timm.models.maxxvit.MaxxVit": _WINDOWS,
    "timm.models.hiera.Hiera": _STAGES,
    "timm.models.mvitv2.MultiScaleVit": _STAGES,
    "timm.models.pvt_v2.PyramidVisionTransformerV2": _STAGES,
    "timm.models.pit.PoolingVisionTransformer": _STAGES,
    "timm.models.levit.Levit": _STAGES,
    "timm.models.coat.CoaT": _STAGES,
    "timm.models.twins.Twins": _STAGES,
    "timm.models.nest.Nest": _STAGES,
    "timm.models.cait.Cait": _CLASS_ATTENTION,
    "timm.models.xcit.Xcit": _CLASS_ATTENTION,
    "timm.models.volo.VOLO": _CLASS_ATTENTION,
    "timm.models.crossvit.CrossVit": "has two branches with patches of two sizes",
    "timm.models.convit.ConVit": _OTHER_ATTENTION,
    "timm.models.tnt.TNT": _OTHER_ATTENTION,
    "timm.models.vision_transformer_relpos.VisionTransformerRelPos": _OTHER_ATTENTION,
    "timm.models.vision_transformer_sam.VisionTransformerSAM": _WINDOWS,
    "timm.models.naflexvit.NaFlexVit": "takes patches of any number instead of an image",
    "torchvision.models.vision_transformer.VisionTransformer": (
        "keeps its attention in a layer that timm's doesn't have"
    ),
}


def reason_against(model: object) -> str | None:
    """Return what is known to be wrong with a model, as the end of a sentence, or None.

    Parameters
    ----------
    model : object
        What somebody wants explained.
    """
    known = (_REASONS.get(full_name(kind)) for kind in type(model).__mro__)
    return next((reason for reason in known if reason is not None), None)
