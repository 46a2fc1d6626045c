"""alrpc: train a network with every block in its own process, by associated learning.

import alrpc

dataset = alrpc.load_data("digits")
network = alrpc.associate(blocks, dataset.sample, dataset.target)
alrpc.train(network, dataset, epochs=20)
network.predict(images)
"""

from __future__ import annotations

import importlib

__version__ = "0.1.0"

_HOME = {
    "Classes": "alrpc.objectives.base",
    "Component": "alrpc.objectives.base",
    "Dataset": "alrpc.data.dataset",
    "Network": "alrpc.network",
    "Split": "alrpc.data.dataset",
    "UserError": "alrpc.errors",
    "Values": "alrpc.objectives.base",
    "associate": "alrpc.network",
    "launch_pipeline": "alrpc.runtime.restarts",
    "load_config": "alrpc.config",
    "load_data": "alrpc.data",
    "load_run": "alrpc.checkpoint.resume",
    "train": "alrpc.runtime.run",
}
__all__ = ["__version__", *_HOME]


def __getattr__(name: str):
    # Imported on first use, so that `alrpc --help` answers before torch could be loaded.
    if name not in _HOME:
        raise AttributeError(f"module 'alrpc' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
