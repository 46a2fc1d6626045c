"""Measures a pipeline against its ceiling: the same stages at the same time, with their input in memory, sending nothing."""

from __future__ import annotations

from pathlib import Path

from alrpc.config import Config
from alrpc.experiments.bench.measure import Watch, run_rounds, summarise
from alrpc.experiments.bench.rounds import Settings
from alrpc.system import cores


def ceiling(config: Config, rounds: int, steps: int, directory: Path, watch: Watch) -> dict:
    """Measure rounds of pipeline and ceiling in turn, in one set of processes.

    Raises:
        UserError: for what the user can put right; nothing is left then.
        RunFailed, Interrupted: as `alrpc.runtime.local.run_processes`.
    """
    measured = run_rounds(config, Settings(rounds, steps), directory / "al", watch)
    figures, samples = summarise(measured.rounds), measured.samples_per_step
    return {
        "samples_per_second": figures["steps_per_second"] * samples,
        "ceiling_samples_per_second": figures["ceiling_steps_per_second"] * samples,
        **figures,
        "oversubscribed": config.device != "cuda" and config.pipeline.stages * config.threads > cores(),
    }
