"""Whether what is computed is the model's own: compared once for each state of a model.

Anybody may have changed what a model does: hooks on its parts, functions put in the place of its
own, adapters, torch's global hooks. Nothing of that is looked for. Instead, for the first image,

- outputs and scores of the closed form are compared with those of the model's own whole pass and a
  backward pass from it, in one direction of the outputs for all targets together. Where they
  differ, autograd through the own pass is used;
- outputs of the own pass in the batch are compared with those of a pass of the image alone, which
  shows random layers, and images that aren't treated one by one;
- outputs of a model that describes itself are compared with those of its own call.

A state is what the answer can depend on: which modules there are, their hooks and functions, and
how often weights and buffers were changed. See `cdam_med.attribution.numerics.tolerance` for what
counts as equal.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from cdam_med.attribution.class_token import ClassTokenModel
from cdam_med.attribution.numerics import tolerance, wide
from cdam_med.attribution.vit import errors_named
from cdam_med.errors import ModelError

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

_GLOBAL_HOOKS = (
    torch_module._global_forward_hooks,
    torch_module._global_forward_pre_hooks,
    torch_module._global_backward_hooks,
    torch_module._global_backward_pre_hooks,
)

_PLAIN = (bool, int, float, str)

_HEADS = ("head", "classification_head", "classifier")
"""What the names of a head's weights begin with: timm's, MONAI's, Hugging Face's."""

_ANSWERS: WeakKeyDictionary[object, dict[str, tuple[Hashable, Any]]] = WeakKeyDictionary()
"""By the object that the user has: each question with the model's state and the answer."""


@dataclass(frozen=True, eq=False)
class Verifier:
    """Answers questions about a model once for each of its states.

    The owner is the module or description that the user has, see `state_of` for its state.
    """

    owner: object
    state: Hashable

    def known(self, question: str) -> Any:
        """Return the answer to a question, or None where it wasn't asked in this state."""
        found = _ANSWERS.get(self.owner, {}).get(question)
        return found[1] if found is not None and found[0] == self.state else None

    def answer(self, question: str, find: Callable[[], Any]) -> Any:
        """Return the answer to a question, found once for each state."""
        if (known := self.known(question)) is not None:
            return known
        found = find()
        _ANSWERS.setdefault(self.owner, {})[question] = (self.state, found)
        return found


def state_of(modules: Iterable[nn.Module]) -> Hashable:
    """Return what identifies a model as it is: its parts, and what anybody has done to them.

    Modules with their hooks, functions and plain settings, torch's global hooks, and where weights
    and buffers are and how often torch has counted a change of each. A change that torch doesn't
    count, such as through `.data`, isn't seen.
    """
    parts = dict.fromkeys(part for module in modules for part in module.modules())
    kinds = dict.fromkeys(kind for part in parts for kind in type(part).__mro__)
    return (
        tuple(tuple(hooks) for hooks in _GLOBAL_HOOKS),
        tuple(_functions(vars(kind)) for kind in kinds if kind not in (nn.Module, object)),
        tuple(_state_of_part(part) for part in parts),
    )


def _functions(names: Mapping[str, object]) -> Hashable:
    return tuple((name, id(thing)) for name, thing in names.items() if callable(thing))


def _state_of_part(part: nn.Module) -> Hashable:
    own = vars(part)
    tensors = (*own["_parameters"].values(), *own["_buffers"].values())
    return (
        id(part),
        _functions(own),
        tuple(tuple(own[hooks]) for hooks in _HOOKS),
        tuple((name, thing) for name, thing in own.items() if type(thing) in _PLAIN),
        tuple((t.data_ptr(), _version(t)) for t in tensors if t is not None),
    )


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def weights_sha256(*modules: nn.Module) -> str:
    """Return the hash of all weights and buffers: names and float32 values, sorted by name."""
    return _sha256(pair for module in modules for pair in sorted(module.state_dict().items()))


def headless_sha256(vit: nn.Module) -> str:
    """Return the same without the head: what a class token, and so a concept, depends on."""

    def find() -> str:
        every = sorted(vit.state_dict().items())
        return _sha256((name, each) for name, each in every if not name.startswith(_HEADS))

    found: str = Verifier(vit, state_of([vit])).answer("weights", find)
    return found


def _sha256(pairs: Iterable[tuple[str, Tensor]]) -> str:
    digest = sha256()
    for name, tensor in pairs:
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def check_own_outputs(
    verifier: Verifier | None,
    model: ClassTokenModel,
    images: Float[Tensor, "batch channel *size"],
    outputs: Float[Tensor, "batch output"],
    S: Float[Tensor, "batch target token"],
) -> None:
    """Refuse a model whose own pass of a batch isn't that of its images.

    The first image alone must have the outputs that it has in the batch, and the same twice.
    Scores are in the unit of the outputs; without a verifier nobody is to look.
    """
    size = wide(outputs.detach()).abs().max() + S.abs().sum(-1).max()
    question = "own outputs of " + ("an image" if len(images) == 1 else "a batch")

    def compare() -> bool:
        alone = model.outputs(images[:1])
        if are_same(images, outputs[:1], alone, size):
            return True
        again = model.outputs(images[:1])
        if not are_same(images, alone, again, size):
            raise random_outputs(model, alone, again)
        raise differing_outputs(
            model,
            outputs[:1],
            alone,
            f"the first in a batch of {len(images)} images, the second for the same image alone. "
            "Images must be treated one by one: take out norms and other parts that mix a batch.",
        )

    if verifier is not None:
        verifier.answer(question, compare)


def size_of_outputs(
    model: ClassTokenModel, features: Float[Tensor, "batch feature"]
) -> Float[Tensor, ""]:
    """Return how large the terms are that outputs are sums of, by which rounding is measured."""
    plain, leaf = replace(model, derived=()), features.detach()
    size = wide(plain.outputs_of(leaf)).abs().max()
    try:
        with torch.enable_grad(), errors_named(model.name):
            total = plain.outputs_of(leaf.requires_grad_()).abs().sum()
            (found,) = torch.autograd.grad(total, leaf)
    except ModelError:  # without a gradient, which not every method needs
        return size
    return size + (wide(features) * wide(found)).abs().sum(1).max()


def are_same(
    like: Tensor,
    found: Float[Tensor, "batch target"],
    own: Float[Tensor, "batch target"],
    size: Float[Tensor, ""],
) -> bool:
    """Say whether two ways to compute outputs give the same, up to rounding.

    The type of `like` says how exact outputs are, `size` how large their terms.
    """
    apart = (wide(found.detach()) - wide(own.detach())).abs().max()
    return bool(apart <= tolerance(like) * (size + wide(own.detach()).abs().max()))


def differing_outputs(
    model: ClassTokenModel,
    found: Float[Tensor, "batch target"],
    own: Float[Tensor, "batch target"],
    what: str,
) -> ModelError:
    """Return the refusal of a model with two values of an output; `what` they are ends it."""
    worst = (wide(found.detach()) - wide(own.detach())).abs().argmax()
    one, other = (each.detach().flatten()[worst].item() for each in (found, own))
    return ModelError(f"{model.name} gives {one:.6g} and {other:.6g} for one output: {what}")


def random_outputs(
    model: ClassTokenModel,
    found: Float[Tensor, "batch target"],
    again: Float[Tensor, "batch target"],
) -> ModelError:
    """Return the refusal of a model that gives other outputs each time."""
    what = (
        "it was run twice on the same, and something in it is random. Put the parts that a "
        "readout, a pooling or a target holds in evaluation mode with .eval(), dropout above all."
    )
    return differing_outputs(model, found, again, what)
