"""Trained parameters that a run begins with, and blocks that are not trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import read_summary
from safetensors.torch import save_file
from torch import nn

import alrpc
from alrpc.checkpoint.state import restore, snapshot
from alrpc.config import load_config
from alrpc.experiments import check_methods
from alrpc.network import begin_network, build_network, resolve
from alrpc.objectives import OBJECTIVES
from alrpc.objectives.base import Microbatch
from alrpc.training.optimizer import make_recipe
from alrpc.training.step import forward, make_trainer, update

IMAGES = {"x": torch.randn(4, 3, 16, 16)}
CLASSES = alrpc.Classes(3)
VGG = ["model.name=vgg", "model.channels=[[4],[6,M],[8]]", "model.hidden=9", "objective.target_width=8"]
SQUEEZENET = ["model.name=torchvision:squeezenet1_1", "model.num_classes=7"]


def configure(*fields: str) -> alrpc.Config:
    return resolve(load_config(None, list(fields)))[0]


def saved(state: dict, path: Path) -> Path:
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return path


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_run_begins_with_the_parameters_of_a_file(tmp_path, suffix):
    """Of a list of blocks, and of a library's network whose classifier is of other classes; lazy modules have their sizes by then."""
    other = build_network(configure(*VGG, "train.seed=5"), IMAGES, CLASSES)
    state = nn.Sequential(*(component.block for component in other.components)).state_dict()
    path = saved(state, tmp_path / f"vgg{suffix}")
    network = begin_network(configure(*VGG, f"model.weights={path}"), IMAGES, CLASSES)
    fresh = build_network(configure(*VGG), IMAGES, CLASSES)
    for component, loaded, unlike in zip(network.components, other.components, fresh.components, strict=True):
        assert all(map(torch.equal, component.block.state_dict().values(), loaded.block.state_dict().values()))
        assert all(map(torch.equal, component.bridge.state_dict().values(), unlike.bridge.state_dict().values()))

    import torchvision

    whole = torchvision.models.squeezenet1_1(num_classes=5).eval()
    path = saved(whole.state_dict(), tmp_path / f"squeezenet{suffix}")
    network = begin_network(configure(*SQUEEZENET, f"model.weights={path}"), {"x": torch.randn(2, 3, 32, 32)}, CLASSES).eval()
    x = torch.randn(2, 3, 32, 32)
    expected = whole.features(x)
    for component in network.components:
        x = component.block(x)
    assert torch.equal(x, expected)


def test_a_file_of_another_model_is_refused_in_one_line(tmp_path):
    network = build_network(configure(*VGG), IMAGES, CLASSES)
    state = nn.ModuleList([component.block for component in network.components]).state_dict()
    odd = {**state, "head.weight": torch.zeros(1), "0.0.weight": torch.zeros(2, 3)}
    del odd["1.0.weight"]
    cases = {
        "odd.pt": (
            odd,
            "it lacks 1.0.weight; it has the unknown head.weight; 0.0.weight is (2, 3), but the model's (4, 3, 3, 3);",
        ),
        "nested.pt": (
            {"model": state, "epoch": 3},
            "holds a dict of model, epoch, …; it must be a state dict, of dense tensors by name",
        ),
        "numbered.pt": ({0: torch.zeros(2)}, "holds a dict of 0, …; it must be a state dict, of dense tensors by name"),
        "sparse.pt": (
            {**state, "0.0.weight": torch.zeros(4, 3, 3, 3).to_sparse()},
            "it must be a state dict, of dense tensors by name",
        ),
        "kinds.pt": (
            {**state, "0.0.weight": torch.zeros(4, 3, 3, 3) + 1j, "0.1.bias": torch.tensor([1.0, 1.0, 1.0, float("nan")])},
            ": 0.0.weight is torch.complex64, but the model's torch.float32; 0.1.bias has numbers that are not finite;",
        ),
        "code.pt": ({"0.0.weight": nn.Linear(2, 2)}, "torch's weights-only loader refuses it: "),
        "none.safetensors": (None, "model.weights: no file "),
    }
    for name, (content, message) in cases.items():
        if content is not None:
            torch.save(content, tmp_path / name)
        with pytest.raises(alrpc.UserError) as error:
            begin_network(configure(*VGG, f"model.weights={tmp_path / name}"), IMAGES, CLASSES)
        assert message in str(error.value) and "\n" not in str(error.value) and name in str(error.value)
    (tmp_path / "text.safetensors").write_text("no tensors at all")
    with pytest.raises(alrpc.UserError, match=r"text\.safetensors: is damaged"):
        begin_network(configure(*VGG, f"model.weights={tmp_path / 'text.safetensors'}"), IMAGES, CLASSES)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_frozen_blocks_stay_and_their_objectives_modules_learn(name):
    """Parameters and batch norm's statistics; the optimizer has none of them, nor has a checkpoint, from which it goes on."""
    fields = [*VGG[:3], f"objective.name={name}", "train.momentum=0.9", "train.optimizer=sgd", "model.freeze=2"]
    config = configure(*fields)
    recipe = make_recipe(config, 4)
    network, unlike = (build_network(config, IMAGES, CLASSES) for _ in range(2))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    trainers = [make_trainer(component, recipe, torch.device("cpu")) for component in network.components]
    if trainers[0].ring is not None:
        from alrpc.training.feedback import connect

        connect([trainer.ring for trainer in trainers])
    for step in range(3):
        batch = Microbatch(IMAGES, network.objective.begin(torch.tensor([0, 1, 2, 1])))
        for trainer in trainers:
            output = forward(trainer, batch, step)
            update(trainer, output, step)
            batch = output.batch
    after = network.state_dict()
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    frozen = {name for name in after if name.startswith(("components.0.block", "components.1.block"))}
    assert not changed & frozen and {name for name in after if name.startswith("components.2.block")} <= changed
    assert all(any(name.startswith(f"components.{index}.") for name in changed) for index in (0, 1))
    for trainer, component in zip(trainers, unlike.components, strict=True):
        held = [parameter for group in trainer.optimizer.param_groups for parameter in group["params"]]
        of_block = {id(parameter) for parameter in trainer.component.block.parameters()}
        assert trainer.number == 3 or not of_block & {id(parameter) for parameter in held}
        again = make_trainer(component, recipe, torch.device("cpu"))
        restore(again, snapshot(trainer))
        assert all(map(torch.equal, component.state_dict().values(), trainer.component.state_dict().values()))


def test_a_run_with_frozen_blocks_is_loaded_into_a_network_without(tmp_path):
    """To predict, of which the optimizer's state is no part; a resume needs blocks that are frozen as they were."""
    split = alrpc.Split(torch.randn(8, 2), torch.arange(8) % 3)
    dataset = alrpc.Dataset(split, split, CLASSES)
    network, other = (
        alrpc.associate([nn.Linear(2, 4), nn.Linear(4, 2)], dataset.sample, CLASSES, target_width=2) for _ in range(2)
    )
    network.components[0].freeze()
    alrpc.train(network, dataset, epochs=1, out=tmp_path / "run")
    assert alrpc.load_run(tmp_path / "run", network=other).digest() == network.digest()
    with pytest.raises(alrpc.UserError, match=r"component-001\.safetensors: does not fit component 1 .*: optimizer\.\d+\."):
        alrpc.train(other, dataset, epochs=2, resume=tmp_path / "run")


def test_what_freezes_everything_is_told():
    class Nothing(alrpc.Objective):
        losses = ()

        def build(self, place):
            return {}, place.beside

        def learn(self, component, leaving, beside):
            return beside, ()

        def exit(self, component, leaving):
            return leaving["x"]

    network = alrpc.decouple([nn.Linear(2, 2)], torch.zeros(1, 2), CLASSES, Nothing)
    network.components[0].freeze()
    with pytest.raises(alrpc.UserError, match="a component has nothing to train"):
        make_trainer(network.components[0], make_recipe(configure(*VGG), 1), torch.device("cpu"))
    config = configure(*VGG, "model.freeze=1")
    check_methods(config, ["al", "al-sequential"])
    with pytest.raises(alrpc.UserError, match=r"model\.freeze: got 1, but gpipe trains the whole network"):
        check_methods(config, ["al", "gpipe"])


def test_a_function_of_ones_own_is_given_what_it_has_as_a_parameter(tmp_path, monkeypatch):
    """Its own meaning, kind and default then, in a run's configuration too; what it does not have is alrpc's."""
    text = "from torch import nn\n\n\ndef {}:\n    return [nn.Linear(2, 2), nn.Linear(2, 2)] if [weights, freeze] == [{}] else 1 / 0\n"
    functions = "build(weights='imagenet', freeze=None)", "half(weights=(1.5, 2))"
    (tmp_path / "taken.py").write_text(text.format(functions[0], "'imagenet', None"))
    monkeypatch.chdir(tmp_path)
    config = configure("model.name=taken:build")
    again = alrpc.Config.model_validate(config.model_dump(mode="json"))
    assert resolve(again)[0] == config and (config.model.weights, config.model.freeze) == ("imagenet", None)
    target = alrpc.Classes(2)
    network = begin_network(config, {"x": torch.zeros(1, 2)}, target)
    assert not any(component.frozen for component in network.components)
    check_methods(config, ["al", "gpipe"])
    (tmp_path / "half.py").write_text(f"freeze = 0\n{text.format(functions[1], '[1.5, 3], 0')}")
    fields = ["model.name=half:half", "model.weights=[1.5, 3]"]
    network = begin_network(configure(*fields, "model.freeze=1"), {"x": torch.zeros(1, 2)}, target)
    assert [component.frozen for component in network.components] == [True, False]
    with pytest.raises(alrpc.UserError, match=r"model\.freeze: got 'all'"):
        configure(*fields, "model.freeze=all")


def test_exits_are_added_to_a_trained_network_in_a_pipeline_as_in_one_process(commands):
    """All blocks are frozen. The weights are gone when the run is resumed."""
    import torchvision

    torch.manual_seed(1)
    saved(torchvision.models.squeezenet1_1(num_classes=4).state_dict(), commands.folder / "weights.pt")
    from small_data import write_images

    write_images(commands.folder, side=32)
    fields = [*SQUEEZENET, "model.components=3", "model.weights=weights.pt", "model.freeze=3", "data.name=image-folder"]
    fields += ["data.root=.", "data.image_size=32", "data.batch_size=12", "train.epochs=2", "objective.target_width=8"]
    options = ["--quiet", *(part for field in fields for part in ("--set", field))]
    launched = commands.alrpc("launch", "--stages", "2", *options, "--out", "pipeline")
    assert launched.returncode == 0, launched.stderr
    trained = commands.alrpc("train", *options, "--out", "sequential")
    assert trained.returncode == 0, trained.stderr
    one, other = (read_summary(commands.folder / name) for name in ("pipeline", "sequential"))
    assert one["parameters_sha256"] == other["parameters_sha256"] and one["exits"] == other["exits"]
    network = alrpc.load_run(commands.folder / "pipeline")
    state = torch.load(commands.folder / "weights.pt", weights_only=True)
    for component in network.components:
        assert all(torch.equal(tensor, state[name]) for name, tensor in component.block.state_dict().items())
    (commands.folder / "weights.pt").unlink()
    resumed = commands.alrpc("train", "--quiet", "--resume", "pipeline", "--set", "train.epochs=3")
    assert resumed.returncode == 0, resumed.stderr
    refused = commands.alrpc("launch", "--stages", "2", *options, "--out", "refused")
    assert refused.returncode == 2 and refused.stderr.startswith("alrpc: model.weights: no file weights.pt")
    assert not (commands.folder / "refused").exists()
