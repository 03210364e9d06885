"""Measure nine-target CDAM against timm's plain forward pass of the same batch.

Both run in one process, by turns, and each figure is a median after a warm-up round, so that the
ratio means something even on a busy machine. Weights are random: they don't change the time.

Run: ``python tests/benchmarks/cdam_speed.py [--repeats 10] [--threads 1] [--json]``. Where other
work competes for the cores, threads wait for each other at every operation: use one.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import timm
import torch
from torch import Tensor, nn

from cdam_med.attribution.cdam import cdam_scores

MODELS = (
    ("vit_small_patch8_224", 4),
    ("vit_small_patch16_224", 8),
    ("vit_base_patch14_reg4_dinov2", 2),
)
TARGETS = 9
SIDE = 224


@dataclass(frozen=True)
class Measurement:
    """One model: milliseconds for a batch, and the ratio of the medians.

    The median of the ratios within each turn moves less with a load that comes and goes, and the
    ratio of processor time (median too) with one that takes the cores away; with more than one
    thread that counts waiting for each other as well.
    """

    model: str
    batch: int
    plain_ms: float
    cdam_ms: float
    ratio: float
    ratio_within_turns: float
    ratio_cpu: float
    all_targets_backward_ratio: float | None


def _seconds(run: Callable[[], object]) -> tuple[float, float]:
    """Return wall time and processor time."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def _full_backward(vit: nn.Module, images: Tensor) -> None:
    """Compute the same maps as in the paper: one full backward pass for each target."""
    for target in range(TARGETS):
        kept: list[Tensor] = []
        handle = vit.blocks[-1].norm1.register_forward_hook(
            lambda _, __, T, kept=kept: kept.append(T)
        )
        pixels = images.clone().requires_grad_()
        output = vit(pixels)[:, target].sum()
        handle.remove()
        kept[0].retain_grad()
        output.backward()
        (kept[0] * kept[0].grad).sum(-1)


def measure(name: str, batch: int, *, repeats: int, backward: bool) -> Measurement:
    """Time a model's plain forward pass and CDAM by turns."""
    torch.manual_seed(0)
    vit = timm.create_model(name, num_classes=TARGETS, img_size=SIDE).eval()
    images = torch.randn(batch, 3, SIDE, SIDE)

    @torch.inference_mode()
    def plain() -> Tensor:
        return vit(images)

    pair = (plain, lambda: cdam_scores(vit, images))
    for run in pair:  # warm-up
        run()
    turns = [[_seconds(run) for run in pair] for _ in range(repeats)]
    (plain_s, plain_cpu), (cdam_s, cdam_cpu) = (
        tuple(statistics.median(times) for times in zip(*runs, strict=True))
        for runs in zip(*turns, strict=True)
    )
    full = _seconds(lambda: _full_backward(vit, images))[0] / plain_s if backward else None
    return Measurement(
        model=name,
        batch=batch,
        plain_ms=round(1e3 * plain_s, 1),
        cdam_ms=round(1e3 * cdam_s, 1),
        ratio=round(cdam_s / plain_s, 3),
        ratio_within_turns=round(statistics.median(c[0] / p[0] for p, c in turns), 3),
        ratio_cpu=round(cdam_cpu / plain_cpu, 3),
        all_targets_backward_ratio=round(full, 1) if full else None,
    )


def main() -> None:
    """Measure every model and write a table, or JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--backward", action="store_true", help="time nine full backward passes")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    versions = {"torch": torch.__version__, "timm": timm.__version__, "threads": arguments.threads}
    for name, batch in MODELS:
        found = measure(name, batch, repeats=arguments.repeats, backward=arguments.backward)
        line = (
            json.dumps(asdict(found) | versions)
            if arguments.json
            else f"{name:32s} batch {batch}: plain {found.plain_ms:7.1f} ms, "
            f"CDAM {found.cdam_ms:7.1f} ms, ratio {found.ratio:.3f} "
            f"(within turns {found.ratio_within_turns:.3f}, processor time {found.ratio_cpu:.3f})"
        )
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
