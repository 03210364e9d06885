"""``cdam-med benchmark``: what maps cost on this computer."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from cdam_med.cli.command import JsonOption, as_command
from cdam_med.cli.repairs import names
from cdam_med.cli.terminal import print_json, print_line, print_result, working

if TYPE_CHECKING:
    from cdam_med.evaluation.speed import PeakMemory, Timing

benchmark = typer.Typer(
    name="benchmark", no_args_is_help=True, help="Measure what maps cost on this computer."
)


@benchmark.callback()
def _group() -> None:
    """Keep what is measured a word of the command, though there is only one."""


@benchmark.command(
    "speed", epilog="Example: cdam-med benchmark speed --models vit_small_patch16_224 --turns 5"
)
@as_command
def benchmark_speed(
    models: Annotated[
        str, typer.Option(metavar="NAME,...", help="timm's names; ViT-S/8, S/16, B/16, B/14 else.")
    ] = "",
    turns: Annotated[int, typer.Option(min=1, help="Times that each is run.")] = 10,
    slow_turns: Annotated[
        int, typer.Option(min=0, help="Times for what takes tens of forward passes; 0: not.")
    ] = 3,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; torch's own else.")] = None,
    bfloat16: Annotated[
        bool, typer.Option("--bfloat16", help="All of it under autocast to bfloat16.")
    ] = False,
    compiled: Annotated[
        bool, typer.Option("--compile", help="The models' blocks through torch.compile.")
    ] = False,
    memory: Annotated[bool, typer.Option("--memory", help="Also measure peak memory.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Time CDAM of nine targets, and other ways to it, against the plain forward pass.

    Everything runs by turns in one process. Maps by pytorch-grad-cam are among them where it is
    installed.
    """
    with working("Loading the models' library"):
        import torch

        from cdam_med.evaluation import speed
        from cdam_med.models.backbone import timm_name

    if threads is not None:
        torch.set_num_threads(threads)
    asked = [timm_name(name) for name in names(models)]
    sizes = {name: speed.SIZES.get(name, 1) for name in asked} or dict(speed.SIZES)
    machine = speed.describe_machine()
    found: list[speed.Timing | speed.PeakMemory] = []
    if not as_json:
        print_result(", ".join(f"{name} {value}" for name, value in machine.items()))
    for name, batch in sizes.items():
        print_line(f"{name}, batch {batch}")
        rows: list[speed.Timing | speed.PeakMemory] = [
            *speed.time_model(
                name,
                batch,
                turns=turns,
                slow_turns=slow_turns,
                bfloat16=bfloat16,
                compiled=compiled,
            )
        ]
        if slow_turns and name == "vit_small_patch16_224":
            rows.append(speed.time_token_ablation(name, turns=slow_turns))
        if memory:
            rows.append(speed.measure_memory(name, batch))
        found += rows
        if not as_json:
            for row in rows:
                print_result(_line(row))
    if as_json:
        print_json({"machine": machine, "rows": [asdict(row) for row in found]})


def _line(row: "Timing | PeakMemory") -> str:
    from cdam_med.evaluation.speed import PeakMemory

    if isinstance(row, PeakMemory):
        return (
            f"{row.model:30s} b{row.batch} peak memory: one target {row.one_target_mb:.0f} MB, "
            f"nine {row.nine_targets_mb:.0f} MB, ratio {row.ratio:.3f}"
        )
    return (
        f"{row.model:30s} b{row.batch} {row.what:45s} {1e3 * row.median_s:9.1f} ms "
        f"({1e3 * row.low_s:.1f} to {1e3 * row.high_s:.1f})  x {row.ratio:.3f}"
    )
