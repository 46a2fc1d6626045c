"""`alrpc plan`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from alrpc.cli.options import (
    Number,
    heavy_imports,
    json_option,
    plain_endings,
    read_config,
    source_options,
    stages_option,
    with_stages,
)

if TYPE_CHECKING:
    from rich.console import Console

    from alrpc.planning.costs import Cost
    from alrpc.planning.partition import Partition

MIB = 1 << 20


@click.command(short_help="Find the best split of the components over the stages.")
@source_options
@stages_option
@click.option("--memory-limit", type=Number(min=0, min_open=True), metavar="MIB", help="The memory that no stage may exceed.")
@json_option
def plan(source: str | None, overrides: tuple[str, ...], stages: int | None, memory_limit: float | None, as_json: bool) -> None:
    """Measure the time and memory of each component, and find the split over the stages whose slowest stage is fastest.

    Up to 256 components, all splits into consecutive components are considered; beyond, the slowest stage is as fast, and found
    within seconds for thousands, unless the memory limit excludes what is found. The even split is shown for comparison. Memory is
    that of the tensors: parameters, gradients, optimizer states, the activations of one component and the packets under way.

    \b
    Examples:
        alrpc plan --stages 3
        alrpc plan --config transformer-8 --stages 2 --memory-limit 400
    Then train with it, or let the launch measure for itself:
        alrpc launch --stages 3 --set pipeline.split=[2,1,1]
        alrpc launch --stages 3 --set pipeline.split=auto
    """
    from alrpc.runtime.forkserver import start_fork_server

    with plain_endings():
        config = read_config(source, with_stages(overrides, stages))
        start_fork_server()
        with heavy_imports():
            from rich.console import Console

            from alrpc.data import read_data
            from alrpc.data.loader import epoch_size
            from alrpc.network import resolve
            from alrpc.pipeline.placement import check_pipeline, split_components
            from alrpc.planning.costs import measure_components
            from alrpc.planning.partition import best_split, predict
            from alrpc.system import local_device

        config, components = resolve(config)
        config = config.model_copy(update={"pipeline": config.pipeline.model_copy(update={"split": None})})
        check_pipeline(config, components)
        console = Console(stderr=as_json)  # then standard output has nothing but JSON
        with console.status("measuring each component"):
            dataset = read_data(config.data, config.train)
            costs = measure_components(config, dataset, local_device(config.device))
        size = epoch_size(dataset, config.data.batch_size, config.train)
        samples = size.samples / size.micro_batches
        count, window = config.pipeline.stages, config.pipeline.window
        best = best_split(costs, count, window, int(memory_limit * MIB) if memory_limit else None)
        even = predict(costs, [len(numbers) for numbers in split_components(components, count, None)], window)
        if as_json:
            splits = {name: describe(split, samples) for name, split in (("best", best), ("even", even))}
            click.echo(json.dumps({"components": [dataclasses.asdict(cost) for cost in costs], **splits}, indent=2))
        else:
            show(console, costs, best, even, samples)


def describe(split: Partition, samples: float) -> dict:
    """The predicted figures of a split; `samples` is their mean number in a micro-batch."""
    return {
        "split": split.sizes,
        "step_seconds": split.step_seconds,
        "samples_per_second": samples / split.step_seconds,
        "efficiency": split.efficiency,
        "stage_seconds": split.stage_seconds,
        "stage_bytes": split.stage_bytes,
    }


def show(console: Console, costs: Sequence[Cost], best: Partition, even: Partition, samples: float) -> None:
    """Print a table of the components' costs and one of the two splits."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", show_edge=False)
    for name in ("component", "ms/step", "parameters MiB", "activations MiB", "packet MiB"):
        table.add_column(name, justify="right", no_wrap=True)
    for cost in costs:
        sizes = (cost.parameter_bytes, cost.activation_bytes, cost.packet_bytes)
        table.add_row(str(cost.number), f"{cost.seconds * 1000:.2f}", *(f"{size / MIB:.1f}" for size in sizes))
    console.print(table)
    console.print()
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", show_edge=False)
    for name in ("split", "components", "slowest stage ms", "samples/s", "efficiency", "largest stage MiB"):
        table.add_column(name, justify="left" if name == "split" else "right", no_wrap=True)
    for name, split in (("best", best), ("even", even)):
        table.add_row(
            name,
            f"[{', '.join(map(str, split.sizes))}]".replace("[", r"\["),
            f"{split.step_seconds * 1000:.2f}",
            f"{samples / split.step_seconds:,.0f}",
            f"{split.efficiency:.1%}",
            f"{max(split.stage_bytes) / MIB:.1f}",
        )
    console.print(table)
    gain = even.step_seconds / best.step_seconds
    console.print(f"the best split is predicted to be {gain:.2f} times as fast as the even one", highlight=False)
    chosen = ",".join(map(str, best.sizes))
    console.print(f"use it with --set pipeline.split=[{chosen}]", markup=False, highlight=False)
