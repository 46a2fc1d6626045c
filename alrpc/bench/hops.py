"""The engine alone, with simulated stages; and torch's pipelines of back-propagation with the same sleeps."""

from __future__ import annotations

import statistics
from pathlib import Path

from alrpc.baselines.tuning import cores
from alrpc.bench.gloo_cost import copy_seconds
from alrpc.bench.measure import Watch, rate, run_rounds, summarise
from alrpc.bench.peers import MICRO_BATCHES, run_peer
from alrpc.bench.rounds import PIPELINE, Settings
from alrpc.bench.simulated import SAMPLES
from alrpc.config import parse_config

STEPS, PEER_STEPS = 100, 20
PEER_TURNS = 3  # each begins its processes anew, which they vary with


def hops(stages: int, stage_ms: float, message_mb: float, peers: list[str], rounds: int, directory: Path, watch: Watch) -> dict:
    """Measure the engine, then the peers in turns, with stages that sleep `stage_ms` a step and packets of `message_mb`.

    Efficiency is what a stage sleeps of a steady state's time: stage_ms × steps / elapsed, of the slowest stage.

    Raises:
        RunFailed, Interrupted: as `alrpc.agent.run_processes`.
    """
    config = parse_config(
        {
            "model": {"name": "alrpc.bench.simulated:build", "stages": stages},
            "data": {"batch_size": SAMPLES},
            "pipeline": {"stages": stages, "pin_cores": "never"},
            "device": "cpu",
        }
    )
    settings = Settings(rounds, STEPS, stage_ms=stage_ms, message_mb=message_mb)
    directory.mkdir(parents=True, exist_ok=True)
    measured = run_rounds(config, settings, directory / "al", watch).rounds
    figures = summarise(measured)
    efficiencies = [stage_ms / 1000 * rate(of_stages, PIPELINE) for of_stages in measured[1:]]
    sending = figures["stages"][:-1]  # the last one only receives
    engine = statistics.median(s["cpu_seconds_per_step"] - s["ceiling_cpu_seconds_per_step"] for s in sending)
    copies = copy_seconds(message_mb, stage_ms / 1000)
    seconds: dict[str, list[float]] = {peer: [] for peer in peers}
    for turn in range(1, PEER_TURNS + 1):
        for peer in peers:
            place = directory / f"{peer}-{turn}"
            with watch(place, 1):
                seconds[peer].append(run_peer(peer, stages, stage_ms, message_mb, PEER_STEPS, place))
    found = {}
    for peer, of_turns in seconds.items():
        median = statistics.median(of_turns)
        found[peer] = {
            "steps_per_second": 1 / median,
            "efficiency": stage_ms / 1000 / median,
            "theoretical_efficiency": MICRO_BATCHES / (MICRO_BATCHES + stages - 1),
            "throughput_ratio": figures["steps_per_second"] * median,
            "throughput_ratios": [figures["steps_per_second"] * each for each in of_turns],
        }
    return {
        "simulated": True,
        "cores": cores(),
        "stage_ms": stage_ms,
        "message_mb": message_mb,
        **figures,
        "efficiency": statistics.median(efficiencies),
        "rounds": efficiencies,
        "cpu_seconds_per_packet": engine,
        "cpu_seconds_of_copies": copies,
        "cpu_seconds_beyond_copies": engine - copies,
        "peers": found,
    }
