"""What holds for every objective: the bits do not depend on the stages, and no gradient leaves a component."""

from collections import deque
from typing import get_args

import pytest
import torch
import yaml
from torch import nn

import alrpc
from alrpc.config import Config, load_config
from alrpc.config.objectives import SECTIONS, Unknown
from alrpc.data import read_data
from alrpc.errors import UserError
from alrpc.events import Evaluation, Event, Finished
from alrpc.network import build_network, combine_digests, resolve
from alrpc.objectives import OBJECTIVES
from alrpc.objectives.base import Microbatch
from alrpc.timing import Timing
from alrpc.training.optimizer import make_recipe
from alrpc.training.packet import Packet
from alrpc.training.program import program
from alrpc.training.stage import Stage

CASES = {
    "associated": ["objective.name=associated"],
    "classifier": [
        "objective.name=classifier",
        "objective.head=mlp",
        "objective.label_smoothing=0.1",
        "objective.similarity=0.9",
        "objective.reconstruction=0.5",
    ],
    "contrastive": ["objective.name=contrastive", "objective.projector_widths=[16, 24]"],
    "deinfo": ["objective.name=deinfo", "objective.projector_widths=[24, 16]"],
    "forward_forward": ["objective.name=forward_forward", "objective.goodness=mean"],
    "synthetic": ["objective.name=synthetic", "objective.synthesiser_width=16"],
    "target_propagation": ["objective.name=target_propagation", "objective.inverse_width=16"],
}
OF_CLASSES = [name for name in CASES if name not in ("associated", "synthetic", "target_propagation")]
every_objective = pytest.mark.parametrize("name", CASES)


def test_every_objective_has_a_case_and_a_section_of_the_configuration():
    assert set(CASES) == set(OBJECTIVES) == set(SECTIONS) == set(get_args(Unknown.model_fields["name"].annotation))


def configure(name: str, *more: str) -> Config:
    """Batch norm, dropout, accumulation, clipping, and a last micro-batch of 57 instead of 60."""
    fields = [
        "model.name=own_blocks:build",
        "data.batch_size=60",
        "train.epochs=2",
        "train.accumulate=5",
        "train.clip_norm=0.5",
    ]
    config, _ = resolve(load_config(None, [*fields, *CASES[name], *more]))
    return config


def train_in_stages(config: Config, split: list[int]) -> tuple[str, list[Event]]:
    """Train with stages that hand each other copies of their packets; returns the network's digest, and all events."""
    torch.set_num_threads(1)
    dataset = read_data(config.data, config.train)
    recipe = make_recipe(config, -(-len(dataset.train) // config.data.batch_size))
    events: list[Event] = []
    stages: list[Stage] = []

    back: list[deque[Packet]] = [deque() for _ in split]  # feedback that stages have sent to the one before

    def copied(packet: Packet) -> Packet:
        return packet.with_tensors({name: tensor.clone() for name, tensor in packet.tensors.items()})

    def send_to(place: int):
        return lambda packet: stages[place].handle(copied(packet))

    def send_back_from(place: int):
        return lambda packet: back[place].append(copied(packet))

    first = 1
    for place, count in enumerate(split):
        stages.append(
            Stage(
                place + 1,
                build_network(config, dataset.sample, dataset.target),
                list(range(first, first + count)),
                recipe,
                torch.device("cpu"),
                log_every=50,
                send=send_to(place + 1) if place + 1 < len(split) else None,
                send_back=send_back_from(place) if place else None,
                receive_back=back[place + 1].popleft if place + 1 < len(split) else None,
                emit=events.append,
                save=lambda step, trainers: None,
                timing=Timing(),
            )
        )
        first += count
    for packet in program(config, dataset, recipe):
        stages[0].handle(packet)
    for stage in stages:
        stage.finish()
    finished = [event for event in events if isinstance(event, Finished)]
    return combine_digests(digest for event in finished for digest in event.digests), events


@every_objective
def test_the_bits_do_not_depend_on_the_number_of_stages(name):
    config = configure(name)
    reference, _ = train_in_stages(config, [4])
    for split in ([1, 3], [1, 1, 1, 1]):
        assert train_in_stages(config, split)[0] == reference


def small(name: str) -> alrpc.Network:
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(12, 12), nn.ReLU()) for _ in range(3)]
    given = (option.removeprefix("objective.").split("=") for option in CASES[name] if "objective.name" not in option)
    options = {option: yaml.safe_load(value) for option, value in given}
    return alrpc.decouple(blocks, torch.zeros(2, 12), alrpc.Classes(3), name, **options)


@every_objective
def test_no_gradient_enters_or_leaves_a_component(name):
    network = small(name)
    batch = Microbatch({"x": torch.randn(9, 12)}, network.objective.begin(torch.arange(9) % 3))
    for number, component in enumerate(network.components):
        torch.manual_seed(number)
        batch, losses = component(batch)
        assert len(losses) == len(network.objective.losses)
        assert not any(tensor.requires_grad for tensor in (*batch.tensors.values(), *batch.beside.values()))
        sum(losses).backward()
        trained = [other for other in network.components if any(p.grad is not None for p in other.parameters())]
        assert trained == list(network.components[: number + 1])
        grouped = [p for group in network.objective.parameter_groups(component).values() for p in group]
        assert {id(p) for p in grouped} == {id(p) for p in component.parameters()} and len(grouped) == len(
            set(map(id, grouped))
        )


@every_objective
def test_one_sample_and_an_absent_class_have_losses(name):
    network = small(name).train()
    for samples in (1, 2):
        batch = Microbatch({"x": torch.randn(samples, 12)}, network.objective.begin(torch.zeros(samples, dtype=torch.int64)))
        for component in network.components:
            batch, losses = component(batch)
            assert all(loss.isfinite() for loss in losses)


@every_objective
def test_every_exit_predicts_and_the_parameters_are_all_counted(name):
    network = small(name)
    for exit in (1, 2, 3):
        assert network.predict(torch.randn(5, 12), exit).shape == (5,)
    counted = network.count_parameters()
    assert sum(counted.values()) == sum(p.numel() for p in network.parameters()) and counted["affiliated"] > 0


@pytest.mark.parametrize("name", OF_CLASSES)
def test_an_objective_of_classes_refuses_a_regression_by_name(name):
    with pytest.raises(UserError, match=rf"objective.name: {name} learns from classes"):
        alrpc.decouple([nn.Linear(4, 4)], torch.zeros(2, 4), alrpc.Values(2), name)
    if name != "classifier":
        with pytest.raises(UserError, match=rf"objective.name: {name} learns from classes, but the target is Labels"):
            alrpc.decouple([nn.Linear(4, 4)], torch.zeros(2, 4), alrpc.Labels(2), name)


OF_LABELS = ["associated", "classifier", "synthetic", "target_propagation"]


@pytest.mark.parametrize("name", OF_LABELS)
def test_several_labels_are_learned_with_the_same_bits_on_two_stages(name):
    config = configure(name, "data.name=own_blocks:several_labels", "train.metrics=[micro_f1, average_precision]")
    reference, events = train_in_stages(config, [4])
    assert train_in_stages(config, [2, 2])[0] == reference
    evaluated = [event for event in events if isinstance(event, Evaluation)]
    assert evaluated[-1].metric == "label_accuracy" and evaluated[-1].chance is None
    assert evaluated[-1].metrics.keys() == {"micro_f1", "average_precision"}


@pytest.mark.parametrize("name", CASES)
def test_an_unknown_option_is_refused_by_name(name):
    with pytest.raises(UserError, match=r"objective.haed: unknown field"):
        alrpc.decouple([nn.Linear(4, 4)], torch.zeros(2, 4), alrpc.Classes(2), name, haed="x")
