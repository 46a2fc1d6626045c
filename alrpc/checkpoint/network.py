"""The network of a checkpoint, built as its manifest says and loaded from its files."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode

from alrpc.checkpoint.files import check_present, check_size, load_component
from alrpc.checkpoint.manifest import MANIFEST, Manifest, empty_sample, target_of
from alrpc.config import Config
from alrpc.errors import UserError, error_line
from alrpc.network import Network, build_network
from alrpc.reading.regular import MIB

ROOM = 16  # how much larger than the largest file a tensor may be while the network is built
MAKERS = (torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn)


def load_network(
    config: Config, directory: Path, manifest: Manifest, network: Network | None = None, *, resumes: bool = False
) -> Network:
    """Build the network of a checkpoint and load its parameters and buffers; all files are checked.

    Args:
        network: a network to copy instead of building one.
        resumes: check the state of the optimizer too, which a prediction does not need.

    Raises:
        UserError: naming a file that is missing or damaged, or does not fit the configuration.
    """
    check_present(directory, manifest["files"])
    for name, described in manifest["files"].items():
        check_size(directory / name, described)
    network = build_described(config, directory, manifest) if network is None else copy.deepcopy(network)
    had, has = manifest["components"], len(network.components)
    if had != has:
        raise UserError(f"{directory}: is of a network of {had} components, this one has {has}")
    for component in network.components:
        load_component(directory, component, manifest["files"], config.train.optimizer if resumes else None)
    return network


def build_described(config: Config, directory: Path, manifest: Manifest) -> Network:
    """Build the network that a configuration and a checkpoint's manifest describe; raises like `load_network`."""
    largest = max(described["bytes"] for described in manifest["files"].values())
    try:
        with _BoundedTensors(max(ROOM * largest, 512 * MIB)):
            return build_network(config, empty_sample(manifest), target_of(manifest))
    except Exception as error:  # whatever one's own modules or torch's raise for a sample or target that is not theirs
        raise UserError(f"{directory / MANIFEST}: does not fit this configuration: {error_line(error)}") from error


class _BoundedTensors(TorchFunctionMode):
    """Refuses to make a tensor of more bytes: a parameter cannot be larger than the file that it is then loaded from."""

    def __init__(self, most: int):
        super().__init__()
        self._most = most

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in MAKERS:
            sizes = kwargs.get("size") or (args[0] if args and isinstance(args[0], list | tuple) else args)
            size = math.prod(sizes) * (kwargs.get("dtype") or torch.float32).itemsize
            if size > self._most:
                raise UserError(f"a tensor of {size:,} bytes would be needed; no file of the checkpoint is as large as that")
        return function(*args, **kwargs)
