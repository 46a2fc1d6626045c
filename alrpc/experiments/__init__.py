"""Measurements and comparisons: the engine's benchmarks, baselines, profiles."""

from collections.abc import Iterable

from alrpc.config import Config
from alrpc.errors import UsageError
from alrpc.experiments.baselines import ASYNCHRONOUS
from alrpc.experiments.baselines import METHODS as BASELINES
from alrpc.models import common_fields

METHODS = {
    "al": "the objective, with a process for each stage: what `alrpc launch` does",
    "al-sequential": "the objective in one process: what `alrpc train` does",
    **BASELINES,
}
"""The methods that `alrpc compare` runs, and what each one is."""


def check_methods(config: Config, methods: Iterable[str]) -> None:
    """Refuse, with a UsageError that names the field, methods that cannot train as the configuration says."""
    frozen, train, stages = common_fields(config.model).freeze, config.train, config.pipeline.stages
    for method in methods:
        if frozen and method in BASELINES:
            raise UsageError(
                f"model.freeze: got {frozen}, but {method} trains the whole network; "
                "use 0, or only the methods al and al-sequential"
            )
        if method in ASYNCHRONOUS and train.clip_norm is not None:
            raise UsageError(
                f"train.clip_norm: got {train.clip_norm:g}, but {method} never has the gradient of the whole network at one "
                "time; use null, or other methods"
            )
        if method == "pipedream-2bw" and train.accumulate < stages:
            raise UsageError(
                f"train.accumulate: got {train.accumulate}, but {method} updates every {stages} micro-batches or more, as many "
                f"as there are stages; use at least {stages}"
            )
