"""How long maps take, beside the model's own forward pass: by turns, in one process.

Weights are random, as they don't change the time. Every figure is a median over turns, and a ratio
is the median of the ratios within each turn, which a load that comes and goes moves least.
"""

import importlib.util
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from captum.attr import LayerGradientXActivation
from torch import Tensor, nn

from cdam_med.attribution import registry
from cdam_med.attribution.cdam import cdam_scores
from cdam_med.errors import ModelError

SIZES: Mapping[str, int] = {
    "vit_small_patch8_224": 2,
    "vit_small_patch16_224": 8,
    "vit_base_patch16_224": 4,
    "vit_base_patch14_reg4_dinov2": 2,
}
"""Models, by timm's names, and images a batch."""

SIDE = 224
TARGETS = 9
MANY_TARGETS = 64

_STATUS, _CPUINFO = Path("/proc/self/status"), Path("/proc/cpuinfo")  # on Linux

Run = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """One way to compute something, timed: median, smallest and largest turn for the whole batch.

    The ratio is relative to the plain forward pass of the same batch: the median of the ratios
    within turns. One run before the turns isn't counted.
    """

    model: str
    batch: int
    what: str
    median_s: float
    low_s: float
    high_s: float
    ratio: float
    turns: int


@dataclass(frozen=True)
class PeakMemory:
    """Peak resident memory of a process, with Python and torch, that makes maps of one batch."""

    model: str
    batch: int
    one_target_mb: float
    nine_targets_mb: float
    ratio: float


def describe_machine() -> dict[str, str | int]:
    """Name what the figures were measured on."""
    return {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "timm": timm.__version__,
    }


def time_model(
    name: str,
    batch: int,
    *,
    turns: int = 10,
    slow_turns: int = 3,
    bfloat16: bool = False,
    compiled: bool = False,
) -> list[Timing]:
    """Time maps of nine targets against a model's plain forward pass.

    Parameters
    ----------
    name : str
        timm's name of a vision transformer.
    batch : int
        Images.
    turns, slow_turns : int
        How often each is run, and what takes tens of forward passes, with a plain pass beside it.
    bfloat16, compiled : bool
        All of it under autocast; the plain pass and the blocks before the last by `torch.compile`.

    Raises
    ------
    ModelError
        If timm has no such model.
    """
    vit = _build(name, TARGETS)
    many, fresh = _build(name, MANY_TARGETS), _build(name, TARGETS)
    if compiled:
        for model in (vit, many, fresh):
            for block in model.blocks:
                block.compile()
    images = torch.randn(batch, 3, SIDE, SIDE)
    cast = _autocast if bfloat16 else nullcontext
    quick: dict[str, Run] = {
        "plain forward pass": _inference(lambda: vit(images)),
        f"CDAM, {TARGETS} targets": lambda: cdam_scores(vit, images),
        f"CDAM, {TARGETS} targets, not verified": lambda: cdam_scores(vit, images, verify=False),
        f"CDAM, {TARGETS} targets, first call": lambda: cdam_scores(_changed(fresh), images),
        "CDAM, 1 target": lambda: cdam_scores(many, images, 0),
        f"CDAM, {MANY_TARGETS} targets": lambda: cdam_scores(many, images),
        f"Smooth CDAM (50), {TARGETS} targets": _maps("smooth_cdam", vit, images),
        f"Integrated CDAM (50), {TARGETS} targets": _maps("integrated_cdam", vit, images),
    }
    slow: dict[str, Run] = {
        "plain forward pass": quick["plain forward pass"],
        f"full backward passes, {TARGETS} targets": lambda: full_backward_maps(vit, images),
        f"full backward passes, weights frozen, {TARGETS} targets": _frozen(
            vit, lambda: full_backward_maps(vit, images)
        ),
        f"captum LayerGradientXActivation, {TARGETS} targets": lambda: _by_captum(vit, images),
    }
    if importlib.util.find_spec("pytorch_grad_cam") is not None:
        slow[f"pytorch-grad-cam GradCAM, {TARGETS} targets"] = _by_grad_cam(vit, images)
    with cast():
        found = _by_turns(name, batch, quick, turns)
        found += _by_turns(name, batch, slow, slow_turns)[1:] if slow_turns else []
    return found


def time_token_ablation(name: str, *, turns: int = 3) -> Timing:
    """Time the removal of one token of an image against a plain forward pass of that image."""
    vit = _build(name, TARGETS)
    images = torch.randn(1, 3, SIDE, SIDE)
    n_tokens = vit.patch_embed.num_patches
    # one image at a time is slow for any model: the plain pass has as many as ablation takes
    beside = torch.randn(16, 3, SIDE, SIDE)
    runs: dict[str, Run] = {
        "plain forward pass": _inference(lambda: vit(beside)),
        "token ablation": _maps("token_ablation", vit, images),
    }
    _, ablation = _by_turns(name, 1, runs, turns)
    return replace(
        ablation,
        what=f"token ablation, {TARGETS} targets, per token",
        median_s=ablation.median_s / n_tokens,
        low_s=ablation.low_s / n_tokens,
        high_s=ablation.high_s / n_tokens,
        ratio=ablation.ratio * len(beside) / n_tokens,
    )


def measure_memory(name: str, batch: int) -> PeakMemory:
    """Measure peak memory of CDAM for one target and for nine, each in a process of its own."""
    one, nine = (_peak_mb(name, batch, count) for count in (1, TARGETS))
    return PeakMemory(name, batch, one, nine, nine / one)


def full_backward_maps(vit: nn.Module, images: Tensor) -> Tensor:
    """Return CDAM ``(batch, target, token)`` in the published way: full passes for each target.

    Gradients of the weights are computed too, unless the weights are frozen.
    """
    norm: Any = vit.get_submodule("blocks")[-1].norm1  # type: ignore[index]
    maps: list[Tensor] = []
    kept: list[Any] = []
    handle = norm.register_forward_hook(lambda _, __, T: kept.append(T))
    try:
        for target in range(TARGETS):
            output = vit(images.clone().requires_grad_())[:, target].sum()
            T = kept.pop()
            T.retain_grad()
            output.backward()
            maps.append((T.detach() * T.grad).sum(-1))
    finally:
        handle.remove()
    vit.zero_grad(set_to_none=True)
    return torch.stack(maps, dim=1)


def _changed(vit: nn.Module) -> nn.Module:
    """Return a model in a state of its own: torch counts a change of a weight."""
    next(vit.parameters()).detach().mul_(1.0)
    return vit


def _frozen(vit: nn.Module, run: Run) -> Run:
    """Return a run without gradients of the weights."""

    def frozen() -> None:
        vit.requires_grad_(False)
        try:
            run()
        finally:
            vit.requires_grad_(True)

    return frozen


def _by_captum(vit: nn.Module, images: Tensor) -> Tensor:
    norm: Any = vit.get_submodule("blocks")[-1].norm1  # type: ignore[index]
    method = LayerGradientXActivation(vit, norm)
    maps = [method.attribute(images, target=target).sum(-1) for target in range(TARGETS)]
    return torch.stack(maps, dim=1).detach()


def _by_grad_cam(vit: Any, images: Tensor) -> Run:
    """Return a run of pytorch-grad-cam, which has one target a call."""
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    rows, columns = vit.patch_embed.grid_size

    def on_grid(tokens: Tensor) -> Tensor:
        patches = tokens[:, vit.num_prefix_tokens :]
        return torch.unflatten(patches, 1, (rows, columns)).permute(0, 3, 1, 2)

    def run() -> None:
        with GradCAM(vit, [vit.blocks[-1].norm1], reshape_transform=on_grid) as method:
            for target in range(TARGETS):
                method(images, [ClassifierOutputTarget(target)] * len(images))

    return run


def _build(name: str, outputs: int) -> Any:
    torch.manual_seed(0)
    # a name like "hf-hub:..." would be looked for in the network
    if not timm.is_model(name):
        raise ModelError(f"timm has no model {name!r}; timm.list_models('vit_*') lists them.")
    return timm.create_model(name, num_classes=outputs, img_size=SIDE).eval()


def _maps(name: str, vit: nn.Module, images: Tensor) -> Run:
    method = registry.method(name)
    return lambda: method(vit, images)


def _inference(run: Run) -> Run:
    return torch.inference_mode()(run)


def _autocast() -> AbstractContextManager[None]:
    return torch.autocast("cpu", dtype=torch.bfloat16)


def _by_turns(name: str, batch: int, runs: Mapping[str, Run], turns: int) -> list[Timing]:
    """Time runs by turns; the first of them is what the others are compared with."""
    for run in runs.values():  # warm-up
        run()
    times: dict[str, list[float]] = {what: [] for what in runs}
    for turn in range(turns):
        # each turn begins with another, since what ran before leaves its mark on the caches
        first = turn % len(runs)
        for what in (*list(runs)[first:], *list(runs)[:first]):
            times[what].append(_seconds(runs[what]))
    plain = times[next(iter(runs))]
    return [
        Timing(
            name,
            batch,
            what,
            statistics.median(each),
            min(each),
            max(each),
            statistics.median(own / beside for own, beside in zip(each, plain, strict=True)),
            turns,
        )
        for what, each in times.items()
    ]


def _seconds(run: Run) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def _peak_mb(name: str, batch: int, targets: int) -> float:
    call = f"peak_mb({name!r}, {batch}, {targets})"
    code = f"from cdam_med.evaluation.speed import peak_mb; print({call})"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return float(answer.stdout)


def peak_mb(name: str, batch: int, targets: int) -> float:
    """Compute CDAM once and return the peak memory of this process so far, in MB."""
    cdam_scores(_build(name, TARGETS), torch.randn(batch, 3, SIDE, SIDE), range(targets))
    if _STATUS.is_file():
        # Linux hands the peak that `resource` gives on from a parent to its children
        (line,) = (line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    import resource  # not on Windows

    unit = 1024**2 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _processor() -> str:
    if _CPUINFO.is_file():
        for line in _CPUINFO.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
