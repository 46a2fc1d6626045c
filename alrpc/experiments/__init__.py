"""Measurements and comparisons: the engine's benchmarks, baselines, profiles."""

from collections.abc import Iterable

from alrpc.config import Config
from alrpc.errors import UsageError
from alrpc.experiments.baselines import METHODS as BASELINES
from alrpc.models import common_fields

METHODS = {
    "al": "the objective, with a process for each stage: what `alrpc launch` does",
    "al-sequential": "the objective in one process: what `alrpc train` does",
    **BASELINES,
}
"""The methods that `alrpc compare` runs, and what each one is."""


def check_frozen(config: Config, methods: Iterable[str]) -> None:
    """Refuse, with a UsageError, frozen blocks beside back-propagation, which trains the whole network."""
    frozen = common_fields(config.model).freeze
    for method in methods:
        if frozen and method in BASELINES:
            raise UsageError(
                f"model.freeze: got {frozen}, but {method} trains the whole network; "
                "use 0, or only the methods al and al-sequential"
            )
