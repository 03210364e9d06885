"""Matrices of low rank: the best ones for given images, and nothing left behind."""

from contextlib import ExitStack

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from cdam_med.models.low_rank import factored, reduce_rank

RANK = 7


@pytest.fixture
def images() -> Tensor:
    return torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def block_layers(vit: VisionTransformer) -> dict[str, nn.Linear]:
    return {name: part for name, part in vit.blocks.named_modules() if isinstance(part, nn.Linear)}


def layer_inputs(vit: VisionTransformer, images: Tensor) -> dict[str, np.ndarray]:
    """What goes into each matrix, one row a token, in float64."""
    inputs: dict[str, np.ndarray] = {}

    def keep(name: str):
        return lambda _, args: inputs.__setitem__(name, args[0].flatten(0, -2).double().numpy())

    with ExitStack() as stack, torch.no_grad():
        for name, layer in block_layers(vit).items():
            stack.callback(layer.register_forward_pre_hook(keep(name)).remove)
        vit.forward_features(images)
    return inputs


def matrices(vit: VisionTransformer) -> dict[str, np.ndarray]:
    return {
        name: layer.weight.detach().double().numpy().copy()
        for name, layer in block_layers(vit).items()
    }


def test_full_rank_changes_nothing(small_vit: VisionTransformer, images: Tensor) -> None:
    with torch.no_grad():
        before = small_vit.forward_features(images)
        reduce_rank(small_vit, images, 1000)
        after = small_vit.forward_features(images)
    torch.testing.assert_close(after, before, atol=1e-3, rtol=1e-3)


def test_reduced_matrices_are_the_best_of_their_rank_on_the_images(
    small_vit: VisionTransformer, images: Tensor
) -> None:
    inputs, whole = layer_inputs(small_vit, images), matrices(small_vit)
    reduce_rank(small_vit, images, RANK)
    reduced = matrices(small_vit)
    assert len(reduced) == 4 * 6
    for name, W in reduced.items():
        X = inputs[name]
        assert np.linalg.matrix_rank(W, tol=1e-4) == RANK
        error = np.linalg.norm(X @ (W - whole[name]).T)
        # Eckart-Young: no matrix of this rank can come closer to the outputs than this
        least = np.sqrt(np.sum(np.linalg.svd(X @ whole[name].T, compute_uv=False)[RANK:] ** 2))
        assert least * (1 - 1e-9) <= error < least * 1.001 + 1e-5
        U, S, V = np.linalg.svd(whole[name], full_matrices=False)
        plain = (U[:, :RANK] * S[:RANK]) @ V[:RANK]
        assert error < np.linalg.norm(X @ (plain - whole[name]).T)


def test_reduction_touches_the_block_matrices_alone(
    small_vit: VisionTransformer, images: Tensor
) -> None:
    before = {name: value.clone() for name, value in small_vit.state_dict().items()}
    reduce_rank(small_vit, images[:2], RANK)
    changed = {
        name
        for name, value in small_vit.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert changed == {f"blocks.{name}.weight" for name in block_layers(small_vit)}
    assert not any(module._forward_pre_hooks for module in small_vit.modules())


def test_factors_of_a_reduced_matrix_are_exact(
    small_vit: VisionTransformer, images: Tensor
) -> None:
    reduce_rank(small_vit, images, RANK)
    before = matrices(small_vit)
    with factored(small_vit, RANK):
        for name, layer in block_layers(small_vit).items():
            rows, columns = before[name].shape
            shapes = {tuple(parameter.shape) for parameter in layer.parameters()}
            assert shapes == {(rows, RANK), (RANK, columns), (rows,)}
    for name, W in matrices(small_vit).items():
        np.testing.assert_allclose(W, before[name], atol=1e-5)


def test_factors_are_what_is_trained(small_vit: VisionTransformer, images: Tensor) -> None:
    with factored(small_vit, RANK):
        layer = small_vit.blocks[0].attn.qkv
        small_vit.forward_features(images[:2]).square().mean().backward()
        left, right = (
            layer.parametrizations.weight.original0,
            layer.parametrizations.weight.original1,
        )
        assert left.grad.abs().max() > 0
        assert right.grad.abs().max() > 0
        with torch.no_grad():
            left.mul_(2)
            expected = left @ right
    torch.testing.assert_close(layer.weight, expected)


class StopError(Exception):
    pass


def interrupt(vit: VisionTransformer) -> None:
    with factored(vit, RANK):
        raise StopError


def test_whole_matrices_again_after_an_error(small_vit: VisionTransformer) -> None:
    names = list(small_vit.state_dict())
    with pytest.raises(StopError):
        interrupt(small_vit)
    assert sorted(small_vit.state_dict()) == sorted(names)
    for layer in block_layers(small_vit).values():
        assert type(layer) is nn.Linear
        assert isinstance(layer.weight, nn.Parameter)
        assert layer.weight.requires_grad


def broken(*_: object) -> None:
    raise StopError


def test_no_hooks_are_left_after_an_error(small_vit: VisionTransformer, images: Tensor) -> None:
    small_vit.blocks[3].register_forward_pre_hook(broken)
    with pytest.raises(StopError):
        reduce_rank(small_vit, images, RANK)
    assert not any(layer._forward_pre_hooks for layer in block_layers(small_vit).values())
