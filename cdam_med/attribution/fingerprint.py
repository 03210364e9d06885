"""Which weights a class token comes from, so that one model's concepts aren't used with another."""

from hashlib import sha256
from typing import TypeAlias
from weakref import WeakKeyDictionary

from torch import Tensor, nn

_State: TypeAlias = tuple[tuple[int, int], ...]

_HEADS = ("head", "classification_head", "classifier")
"""What the names of a head's weights begin with: timm's, MONAI's, Hugging Face's."""

_KNOWN: WeakKeyDictionary[nn.Module, tuple[_State, str]] = WeakKeyDictionary()
"""Hashes of models, each with the state of its weights at that time."""


def weights_sha256(vit: nn.Module) -> str:
    """Return the hash of a ViT's weights and buffers, those of its head apart.

    Names and float32 values in the order of the names. The head is left out because it comes after
    the class token: models that differ in their heads alone have the same class token. The hash is
    kept until torch counts a change of a weight, which it doesn't for those through `.data`.

    Parameters
    ----------
    vit : Module
        timm's model.
    """
    tensors = {
        name: tensor
        for name, tensor in sorted(vit.state_dict().items())
        if not name.startswith(_HEADS)
    }
    state = _state(list(tensors.values()))
    known = _KNOWN.get(vit)
    if known is not None and state is not None and known[0] == state:
        return known[1]
    digest = sha256()
    for name, tensor in tensors.items():
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy())
    found = digest.hexdigest()
    if state is not None:
        _KNOWN[vit] = (state, found)
    return found


def _state(tensors: list[Tensor]) -> _State | None:
    """Return where each tensor is and how often it was changed, where torch counts that."""
    if any(tensor.is_inference() for tensor in tensors):
        return None
    return tuple((tensor.data_ptr(), tensor._version) for tensor in tensors)
