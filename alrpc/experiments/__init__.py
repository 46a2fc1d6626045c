"""Measurements and comparisons: the engine's benchmarks, baselines, profiles."""

from collections.abc import Iterable

from alrpc.config import Config
from alrpc.errors import UsageError
from alrpc.experiments.baselines import METHODS as BASELINES

METHODS = {
    "al": "the objective, with a process for each stage: what `alrpc launch` does",
    "al-sequential": "the objective in one process: what `alrpc train` does",
    **BASELINES,
}
"""The methods that `alrpc compare` runs, and what each one is."""


def check_frozen(config: Config, methods: Iterable[str]) -> None:
    """Refuse, with a UsageError, frozen blocks beside back-propagation, which trains the whole network."""
    for method in methods:
        if config.model.freeze and method in BASELINES:
            raise UsageError(
                f"model.freeze: got {config.model.freeze}, but {method} trains the whole network; "
                "use 0, or only the methods al and al-sequential"
            )
