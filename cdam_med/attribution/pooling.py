"""Models whose outputs are read from all tokens, pooled, instead of from a class token."""

from collections.abc import Callable
from dataclasses import dataclass

from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.naflexvit import NaFlexVit
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from torch import Tensor


@dataclass(frozen=True)
class Pooling:
    """How the tokens that leave the final norm become the one vector that outputs are read from.

    Parameters
    ----------
    name : str
        timm's name of it: ``"avg"``, ``"map"`` and so on.
    function : callable
        All tokens after the final norm ``(batch, token, dim)`` -> ``(batch, feature)``.
    first : int
        How many leading tokens it leaves out.
    is_mean : bool
        Whether it is the plain mean of the tokens that it doesn't leave out.
    """

    name: str
    function: Callable[[Tensor], Tensor]
    first: int = 0
    is_mean: bool = False


def pooling_of(
    vit: VisionTransformer | Eva | Beit | VisionTransformerRelPos | NaFlexVit,
) -> Pooling | None:
    """Return the pooling of a timm model; None if it doesn't pool.

    Parameters
    ----------
    vit : VisionTransformer, Eva, Beit, VisionTransformerRelPos or NaFlexVit
        timm's model, with timm's own `pool` and `forward_head`.
    """
    if isinstance(vit, Beit | VisionTransformerRelPos):
        if vit.global_pool != "avg":
            return None
        return Pooling("avg", _mean_from(vit.num_prefix_tokens), vit.num_prefix_tokens, True)
    attends = getattr(vit, "attn_pool", None) is not None
    if not attends and vit.global_pool in ("token", ""):
        return None
    if attends:
        # Eva's attends to all tokens; VisionTransformer's leaves the prefix out unless told
        whole = isinstance(vit, Eva) or vit.pool_include_prefix
    else:
        whole = getattr(vit, "pool_include_prefix", False)
    first = 0 if whole else vit.num_prefix_tokens
    pool = vit._pool if isinstance(vit, NaFlexVit) else vit.pool
    return Pooling(vit.global_pool, pool, first, vit.global_pool == "avg" and not attends)


def _mean_from(first: int) -> Callable[[Tensor], Tensor]:
    def mean(tokens: Tensor) -> Tensor:
        return tokens[:, first:].mean(1)

    return mean
