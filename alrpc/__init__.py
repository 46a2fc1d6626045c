"""alrpc: train a network with every block in its own process, by associated learning or another local objective.

import alrpc

dataset = alrpc.load_data("digits")
network = alrpc.associate(blocks, dataset.sample, dataset.target)
alrpc.train(network, dataset, epochs=20)
network.predict(images)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for type checkers; a test holds these names equal to those below
    from alrpc.config import Config as Config
    from alrpc.config import load_config as load_config
    from alrpc.data import load_data as load_data
    from alrpc.data.dataset import Dataset as Dataset
    from alrpc.data.dataset import Split as Split
    from alrpc.data.given import as_dataset as as_dataset
    from alrpc.errors import Interrupted as Interrupted
    from alrpc.errors import RunFailed as RunFailed
    from alrpc.errors import Stopped as Stopped
    from alrpc.errors import UserError as UserError
    from alrpc.inference.predictor import Answer as Answer
    from alrpc.inference.predictor import Predictor as Predictor
    from alrpc.inference.predictor import load_run as load_run
    from alrpc.network import Network as Network
    from alrpc.network import associate as associate
    from alrpc.network import decouple as decouple
    from alrpc.objectives.base import Component as Component
    from alrpc.objectives.base import Objective as Objective
    from alrpc.objectives.cut import cut as cut
    from alrpc.objectives.targets import Classes as Classes
    from alrpc.objectives.targets import Labels as Labels
    from alrpc.objectives.targets import Values as Values
    from alrpc.runtime.restarts import launch_pipeline as launch_pipeline
    from alrpc.runtime.train import train as train

__version__ = "0.1.0"

_HOME = {
    "Answer": "alrpc.inference.predictor",
    "Classes": "alrpc.objectives.targets",
    "Component": "alrpc.objectives.base",
    "Config": "alrpc.config",
    "Dataset": "alrpc.data.dataset",
    "Interrupted": "alrpc.errors",
    "Labels": "alrpc.objectives.targets",
    "Network": "alrpc.network",
    "Objective": "alrpc.objectives.base",
    "Predictor": "alrpc.inference.predictor",
    "RunFailed": "alrpc.errors",
    "Split": "alrpc.data.dataset",
    "Stopped": "alrpc.errors",
    "UserError": "alrpc.errors",
    "Values": "alrpc.objectives.targets",
    "as_dataset": "alrpc.data.given",
    "associate": "alrpc.network",
    "cut": "alrpc.objectives.cut",
    "decouple": "alrpc.network",
    "launch_pipeline": "alrpc.runtime.restarts",
    "load_config": "alrpc.config",
    "load_data": "alrpc.data",
    "load_run": "alrpc.inference.predictor",
    "train": "alrpc.runtime.train",
}
__all__ = ["__version__", *_HOME]

if not TYPE_CHECKING:  # or else every misspelt name would have a type

    def __getattr__(name: str) -> object:
        # Imported on first use, so that `alrpc --help` answers before torch could be loaded.
        if name not in _HOME:
            raise AttributeError(f"module 'alrpc' has no attribute {name!r}")
        return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
