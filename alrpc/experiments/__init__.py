"""Measurements and comparisons: the engine's benchmarks, baselines, profiles."""

from alrpc.experiments.baselines import METHODS as BASELINES

METHODS = {
    "al": "the objective, with a process for each stage: what `alrpc launch` does",
    "al-sequential": "the objective in one process: what `alrpc train` does",
    **BASELINES,
}
"""The methods that `alrpc compare` runs, and what each one is."""
