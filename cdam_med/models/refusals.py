"""Why a model can't be explained, for the message that refuses it."""

from collections.abc import Mapping, Sequence

from torch import nn

from cdam_med.errors import ModelError
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

_MODULE = "pass its .module"

_WRAPPERS: Mapping[str, str] = {
    "torch._dynamo.eval_frame.OptimizedModule": (
        "compile it in place with its own .compile() instead of torch.compile, or pass ._orig_mod"
    ),
    "torch.nn.parallel.data_parallel.DataParallel": _MODULE,
    "torch.nn.parallel.distributed.DistributedDataParallel": _MODULE,
    "torch.optim.swa_utils.AveragedModel": _MODULE,
}
"""Modules of torch that hold a model and don't show its parts, and what to do."""


def remedy_of_wrapper(module: object) -> str | None:
    """Return what to do about a module that only wraps another, as an imperative, or None.

    Parameters
    ----------
    module : object
        A model, or a block of one.
    """
    known = (_WRAPPERS.get(full_name(kind)) for kind in type(module).__mro__)
    return next((remedy for remedy in known if remedy is not None), None)


def refuse_wrapper(model: object) -> None:
    """Refuse a model inside one of torch's wrappers, and say how to get it out.

    Parameters
    ----------
    model : object
        What somebody wants explained.

    Raises
    ------
    ModelError
        If it is one.
    """
    if (remedy := remedy_of_wrapper(model)) is not None:
        raise ModelError(
            f"{type(model).__name__} is a wrapper around a model, whose parts can't be explained "
            f"through it: {remedy}."
        )


def refuse_set_functions(name: str, vit: nn.Module, functions: Sequence[str]) -> None:
    """Refuse a ViT on which somebody has set a function that an explanation doesn't call.

    Parameters
    ----------
    name : str
        Name of the model, for the message.
    vit : Module
        The ViT.
    functions : sequence of str
        Names of the functions.

    Raises
    ------
    ModelError
        If one of them was set on the object, in place of its class's.
    """
    for function in functions:
        if function in vars(vit):
            raise ModelError(
                f"{name} has a {function} of its own, set on the object, which isn't run when it "
                f"is explained: take it off with `del model.{function}`, and do what it does, if "
                "it is needed, in prepare or readout of a ClassTokenModel."
            )


def refuse_hooks(name: str, vit: nn.Module) -> None:
    """Refuse a ViT with a hook on its own forward pass; those on its parts are run.

    Parameters
    ----------
    name : str
        Name of the model, for the message.
    vit : Module
        The ViT.

    Raises
    ------
    ModelError
        If there is one.
    """
    if vit._forward_hooks or vit._forward_pre_hooks:
        raise ModelError(
            f"{name} has a hook on its forward pass that isn't run when it is explained: remove "
            "it, and do what it does, if it is needed, in prepare or readout of a ClassTokenModel."
        )


def refuse_names(name: str, names: Sequence[str], count: int) -> None:
    """Refuse names of outputs that aren't one for each.

    Parameters
    ----------
    name : str
        Name of the model, for the message.
    names : sequence of str
        Names of its outputs; none at all is fine.
    count : int
        How many outputs it has.

    Raises
    ------
    ModelError
        If there aren't as many different names as outputs.
    """
    if names and (len(names) != count or len(set(names)) < count):
        raise ModelError(
            f"{name} has {count} output(s), and the names {', '.join(names)} for them: give "
            "target_names one for each, all different."
        )


def refuse_without_gradient(name: str) -> None:
    """Refuse a model through whose readout no gradient goes.

    Parameters
    ----------
    name : str
        Name of the model, for the message.

    Raises
    ------
    ModelError
        Always.
    """
    raise ModelError(
        f"The readout of {name} can't be differentiated, so that each map would be zero: leave out "
        "no_grad, detach, argmax, comparisons and numpy, or choose an estimator that takes no "
        "gradients, such as token_ablation."
    )


def reason_against(model: object) -> str | None:
    """Return what is known to be wrong with a model, as the end of a sentence, or None.

    Parameters
    ----------
    model : object
        What somebody wants explained.
    """
    known = (_REASONS.get(full_name(kind)) for kind in type(model).__mro__)
    return next((reason for reason in known if reason is not None), None)
