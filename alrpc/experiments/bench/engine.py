"""Measures the engine alone, with simulated stages, and pipelines of back-propagation with the same sleeps."""

from __future__ import annotations

import statistics
import warnings
from pathlib import Path

from alrpc.config import parse_config
from alrpc.errors import Advice
from alrpc.experiments.bench.gloo_cost import copy_seconds
from alrpc.experiments.bench.measure import Watch, rate, run_rounds, summarise
from alrpc.experiments.bench.peers import run_peer, theoretical_efficiency
from alrpc.experiments.bench.rounds import PIPELINE, Settings
from alrpc.experiments.bench.simulated import SAMPLES
from alrpc.experiments.bench.slow_links import SlowLinks
from alrpc.system import cores

STEPS, PEER_STEPS = 100, 20
SLOW_STEPS, SLOW_PEER_STEPS = 1000, 5  # over slow links, where TCP needs dozens of packets after a pause to be at its rate
PEER_TURNS = 3  # each turn starts new processes, since figures vary between starts


def hops(
    stages: int,
    stage_ms: float,
    message_mb: float,
    window: int,
    peers: list[str],
    rounds: int,
    directory: Path,
    watch: Watch,
    links: SlowLinks | None = None,
) -> dict:
    """Measure the engine, then the peers in turns, with stages that sleep `stage_ms` per step and packets of `message_mb`.

    Efficiency is the share of the steady state that the slowest stage is asked to sleep: stage_ms × steps / elapsed.

    Args:
        window: `pipeline.window` of the engine.
        links: hosts for the processes, if their links are to be slow: one more than there are stages.

    Raises:
        RunFailed, Interrupted: as `alrpc.runtime.local.run_processes`.
    """
    config = parse_config(
        {
            "model": {"name": "alrpc.experiments.bench.simulated:build", "stages": stages},
            "data": {"batch_size": SAMPLES},
            "pipeline": {"stages": stages, "window": window, "pin_cores": "never"},
            "device": "cpu",
        }
    )
    settings = Settings(rounds, SLOW_STEPS if links else STEPS, stage_ms=stage_ms, message_mb=message_mb, links=links)
    directory.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Advice)  # simulated stages are meant to have nothing to learn
        measured = run_rounds(config, settings, directory / "al", watch).rounds
    figures = summarise(measured)
    efficiencies = [stage_ms / 1000 * rate(of_stages, PIPELINE) for of_stages in measured[1:]]
    sending = figures["stages"][:-1]  # the last stage only receives
    engine = statistics.median(s["cpu_seconds_per_step"] - s["ceiling_cpu_seconds_per_step"] for s in sending)
    copies = copy_seconds(message_mb, stage_ms / 1000, directory / "copies")
    found = {peer: {} for peer in peers}
    for (peer, keeps_memory), of_turns in time_peers(stages, stage_ms, message_mb, peers, directory, watch, links).items():
        median = statistics.median(of_turns)
        figure = {
            "steps_per_second": 1 / median,
            "efficiency": stage_ms / 1000 / median,
            "theoretical_efficiency": theoretical_efficiency(peer, stages),
            "throughput_ratio": figures["steps_per_second"] * median,
            "throughput_ratios": [figures["steps_per_second"] * each for each in of_turns],
        }
        found[peer] |= {"memory_kept": figure} if keeps_memory else figure
    return {
        "simulated": True,
        "cores": cores(),
        "stage_ms": stage_ms,
        "message_mb": message_mb,
        "window": window,
        **figures,
        "efficiency": statistics.median(efficiencies),
        "rounds": efficiencies,
        "cpu_seconds_per_packet": engine,
        "cpu_seconds_of_copies": copies,
        "cpu_seconds_beyond_copies": engine - copies,
        "peers": found,
    }


def time_peers(
    stages: int,
    stage_ms: float,
    message_mb: float,
    peers: list[str],
    directory: Path,
    watch: Watch,
    links: SlowLinks | None,
) -> dict[tuple[str, bool], list[float]]:
    """Seconds per batch of each peer in each turn: with torch's own memory settings, and with those of this engine."""
    seconds: dict[tuple[str, bool], list[float]] = {(peer, keeps): [] for peer in peers for keeps in (False, True)}
    steps = SLOW_PEER_STEPS if links else PEER_STEPS
    for turn in range(1, PEER_TURNS + 1):
        for (peer, keeps_memory), of_turns in seconds.items():
            place = directory / f"{peer}{'-memory-kept' if keeps_memory else ''}-{turn}"
            with watch(place, 1):
                of_turns.append(run_peer(peer, stages, stage_ms, message_mb, steps, keeps_memory, place, links))
    return seconds
