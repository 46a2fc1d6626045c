"""One process of a pipeline that is profiled: rank 0 is the coordinator, rank n is stage n. Started by `alrpc profile`.

To begin and to end recording takes a stage a while, and stages are some steps apart. A lead keeps both away from the steps that
count, so that while any stage works on them, all stages train:

    coordinator   train × warm-up │ profile │ train × (lead + steps + lead) │ profiled │ end
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from alrpc.process import keep_memory, watch_parent

if __name__ == "__main__":
    keep_memory()
    watch_parent()  # before the long import of torch

from alrpc.assembly import resolve
from alrpc.bench.rounds import at_the_ends, endless_micro_batches, recipe_of
from alrpc.config import Config, load_config
from alrpc.data import read_data
from alrpc.data.dataset import Dataset
from alrpc.moments import Moments
from alrpc.observe.record import Report, recorded
from alrpc.pipeline.coordinator import coordinate
from alrpc.pipeline.health import Feeding
from alrpc.pipeline.mailbox import status, tell
from alrpc.pipeline.packet import Packet
from alrpc.pipeline.stage import Stage
from alrpc.planning import choose_split
from alrpc.profiling.recorder import Recorder, trace_file
from alrpc.training.optimizer import Recipe
from alrpc.worker import take_part


def main(directory: Path, warm_up: int, steps: int) -> None:
    """Do this process' part in a run whose directory holds its configuration; ends the process."""
    take_part(directory, ProfiledStage, lambda: feed_and_record(directory, warm_up, steps))


def feed_and_record(directory: Path, warm_up: int, steps: int) -> None:
    """The coordinator's part."""
    config, components = resolve(load_config(directory / "config.yaml"))
    feeding = Feeding()

    def load() -> tuple[Dataset, Recipe, list[int] | None]:
        dataset = read_data(config.data)
        return dataset, recipe_of(config, dataset), choose_split(config, dataset)

    with recorded(config, directory, "pipeline", config.pipeline.stages, quiet=True) as (_, report):
        stream = functools.partial(stream_profile, warm_up=warm_up, steps=steps, feeding=feeding, report=report)
        coordinate(config, components, load, directory, report, stream, feeding=feeding)


def stream_profile(
    config: Config, dataset: Dataset, recipe: Recipe, *, warm_up: int, steps: int, feeding: Feeding, report: Report
) -> Iterator[Packet]:
    """The stream above; the coordinator's own moments are kept from the first marker on too."""
    lead = at_the_ends(config.pipeline.stages, config.pipeline.window)
    report({"event": "profile", "first": warm_up + lead, "steps": steps})
    micro_batches = enumerate(endless_micro_batches(config, dataset, recipe.seed))
    step = 0
    for step, (tensors, labels) in islice(micro_batches, warm_up):
        yield Packet("train", 1, step, {**tensors, "label": labels})
    yield Packet("profile", 1, step + 1)
    feeding.timing.moments = Moments(keep=lambda block: True)
    for step, (tensors, labels) in islice(micro_batches, lead + steps + lead):
        yield Packet("train", 1, step, {**tensors, "label": labels})
    yield Packet("profiled", 1, step + 1)
    yield Packet("end", 1, step + 1)


class ProfiledStage(Stage):
    """A stage that records itself between two markers."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.actions |= {"profile": self.begin_profile, "profiled": self.end_profile}
        self.recorder = Recorder(self.device)

    def tell_moments(self, last: bool = False) -> None:
        """Only those that were recorded count."""

    def begin_profile(self, packet: Packet) -> None:
        self.hand_on(packet, {})
        self.recorder.begin(status.timing)

    def end_profile(self, packet: Packet) -> None:
        self.hand_on(packet, {})
        for block in self.recorder.end(status.timing):
            tell("moments", **block)

    def finish(self, packet: Packet) -> None:
        tell(**self.recorder.write(trace_file(self.plan.run, self.number)))
        super().finish(packet)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
