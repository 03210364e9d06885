"""Hashes of weights, by which one model is told from another."""

from collections.abc import Iterable
from hashlib import sha256
from weakref import WeakKeyDictionary

from torch import Tensor, nn

_HEADS = ("head", "classification_head", "classifier")
"""What the names of a head's weights begin with: timm's, MONAI's, Hugging Face's."""

_KNOWN: WeakKeyDictionary[nn.Module, tuple[object, str]] = WeakKeyDictionary()
"""Hashes of ViTs without heads, each with the state of its weights at that time."""


def weights_sha256(*modules: nn.Module) -> str:
    """Return the hash of all weights and buffers: names and float32 values, sorted by name."""
    return _sha256(pair for module in modules for pair in sorted(module.state_dict().items()))


def headless_sha256(vit: nn.Module) -> str:
    """Return the same without the head: what a class token, and so a concept, depends on.

    It is kept until torch counts a change of a weight, which it doesn't for those through `.data`.
    """
    every = sorted(vit.state_dict().items())
    pairs = [(name, tensor) for name, tensor in every if not name.startswith(_HEADS)]
    if any(tensor.is_inference() for _, tensor in pairs):  # of which torch counts no changes
        return _sha256(pairs)
    state = tuple((tensor.data_ptr(), tensor._version) for _, tensor in pairs)
    known = _KNOWN.get(vit)
    if known is None or known[0] != state:
        known = _KNOWN[vit] = (state, _sha256(pairs))
    return known[1]


def _sha256(pairs: Iterable[tuple[str, Tensor]]) -> str:
    digest = sha256()
    for name, tensor in pairs:
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
