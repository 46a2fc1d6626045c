"""A program that uses every public name as it is meant: mypy finds nothing wrong with it. It is checked, never run."""

from pathlib import Path
from typing import assert_type

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

import alrpc
from alrpc.events import Evaluation, Event


def build() -> alrpc.Network:
    blocks = [nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU()), nn.Sequential(nn.Linear(128, 128), nn.ReLU())]
    dataset = alrpc.load_data("digits", batch_size=32)
    network = alrpc.associate(blocks, dataset.sample, dataset.target, bridge_widths=[64], pools=[None, nn.Flatten()])
    assert_type(network.predict(dataset.test.inputs[:2], exit=1), Tensor)
    assert_type(network.count_parameters(), dict[str, int])
    assert_type(network.digest(), str)
    return network


def own_data(inputs: Tensor, labels: Tensor) -> alrpc.Dataset:
    half = len(labels) // 2
    train, test = alrpc.Split(inputs[:half], labels[:half]), alrpc.Split(inputs[half:], labels[half:])
    return alrpc.Dataset(train, test, alrpc.Values(1) if labels.is_floating_point() else alrpc.Classes(10))


def given(inputs: NDArray[np.float32], labels: list[str]) -> list[alrpc.Dataset]:
    return [alrpc.as_dataset((inputs, labels), classes=["a", "b"]), alrpc.as_dataset([(inputs[0], 1)], validation=0.1)]


def show(event: Event) -> None:
    if isinstance(event, Evaluation):
        assert_type(event.exits, list[float])


def learn(network: alrpc.Network, dataset: alrpc.Dataset) -> list[float]:
    try:
        alrpc.train(
            network, dataset, epochs=2, lr=1e-3, clip_norm=None, threads=2, precision="bf16", out="run", callbacks=[show]
        )
    except alrpc.Stopped:
        return alrpc.train(network, dataset, resume=Path("run"), callbacks=[show, print])
    except alrpc.UserError as error:
        print(error)
    return []


def pipeline() -> alrpc.Network:
    config = alrpc.load_config("digits-mlp", ["train.epochs=5"])
    assert_type(config, alrpc.Config)
    assert_type(config.train.epochs, int)
    try:
        summary, directory = alrpc.launch_pipeline(config, stages=4, out="pipeline", max_restarts=1)
    except (alrpc.RunFailed, alrpc.Interrupted) as error:
        raise SystemExit(1) from error
    assert_type(directory, Path)
    print(alrpc.__version__, summary["parameters_sha256"])
    network = alrpc.load_run(directory, network=build())
    for answer in network.answers([Path("a.png"), "b.png"], top_k=3):
        assert_type(answer.label, str | None)
    first = network.components[0]
    assert isinstance(first, alrpc.Component)
    assert_type(first.number, int)
    return network
