"""Configurations: what ships is sound, and a mistake is one line that names the field."""

import dataclasses
import os
from pathlib import Path

import pytest
import torch

import alrpc
from alrpc.config import Config, load_config, parse_config, save_config, user_code_fields
from alrpc.config.objectives import SECTIONS
from alrpc.data import read_data
from alrpc.events import Losses
from alrpc.network import build_network, resolve
from alrpc.pipeline.placement import check_pipeline


def test_overrides_are_read_as_yaml_and_reach_any_section(tmp_path):
    config = load_config(None, ["train.lr=1e-3", "model.widths=[8, 8]", "data.root=null", "threads=2", "train.clip_norm=5"])
    assert (config.train.lr, config.model.fields["widths"], config.data.root, config.threads) == (1e-3, [8, 8], None, 2)
    assert load_config(None, ["model.name=own_blocks:build"]).model.fields == {}  # the fields of the mlp are not its own


def test_a_resolved_configuration_says_all_and_loads_again(tmp_path):
    config, _ = resolve(load_config(None, ["train.epochs=3"]))
    save_config(config, tmp_path / "config.yaml")
    again = load_config(tmp_path / "config.yaml")
    assert again == config
    assert again.model.fields == {"widths": [256] * 4, "activation": "relu", "batch_norm": False, "dropout": 0.0}


def test_every_field_is_documented():
    def undocumented(section, path=""):
        for name, field in section.model_fields.items():
            if hasattr(field.annotation, "model_fields"):
                yield from undocumented(field.annotation, f"{path}{name}.")
            elif not field.description:
                yield path + name

    sections = {name: section for name, section in SECTIONS.items() if name != "associated"}
    assert [name for name in undocumented(Config) if name != "objective"] == []  # which is one of these sections:
    assert {name: [*undocumented(section)] for name, section in sections.items()} == {name: ["name"] for name in sections}
    assert list(undocumented(SECTIONS["associated"])) == []


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epoch=3", "train.epoch: unknown field; did you mean train.epochs?"),
        ("trian.epochs=3", "trian: unknown field; did you mean train?"),
        ("train.epochs=many", "train.epochs: got 'many'; it should be a valid integer"),
        ("train.epochs=0", "train.epochs: got 0; it should be greater than 0"),
        (
            "data.batch_size=10000000000",
            "data.batch_size: got 10000000000; the largest number of a configuration is 2,147,483,647",
        ),
        ("model.widths=[16, 99999999999]", "model.widths: got 99999999999; the largest number"),
        ("checkpoint.grace=1e300", "checkpoint.grace: got 1e+300; the largest number"),
        ("train.lr=.nan", "train.lr: got nan; it should be a finite number"),
        ("train.end_lr=1", "train.end_lr: got 1.0, above train.lr"),
        (
            "train.optimizer=lion",
            "train.optimizer: got 'lion'; it should be 'adam', 'adamw', 'sgd' or 'lars', or package.module:function for your own",
        ),
        ("train.warmup=30", "train.warmup: got 30.0 of 30 epochs; it must end before the run"),
        ("train.betas=[0.9]", "train.betas: got [0.9]; list should have at least 2 items"),
        ("data.batch_size=0", "data.batch_size: got 0; it should be greater than 0"),
        ("data.name=digit", "data.name: unknown data set 'digit' (did you mean digits?); use digits, mnist"),
        ("data.root=/nowhere/at/all", "data.root: /nowhere/at/all is not a directory"),
        ("pipeline.stages=5", "pipeline.stages: got 5, but the model has 4 components; use 1 to 4"),
        ("pipeline.split=[1, 3]", "pipeline.split: got [1, 3], 2 entries for 4 stages"),
        ("pipeline.split=[1, 1, 1, 3]", "pipeline.split: got [1, 1, 1, 3], 6 components; it must add up to the model's 4"),
        (
            "pipeline.split=[1, 1, 2, 0]",
            "pipeline.split: got [1, 1, 2, 0]; it should be the number of components of each stage",
        ),
        ("pipeline.window=0", "pipeline.window: got 0; it should be greater than 0"),
        ("pipeline.port=70000", "pipeline.port: got 70000; it should be less than or equal to 65535"),
        ("model.name=perceptron", "model.name: unknown model 'perceptron'; use mlp"),
        ("model.width=3", "model.width: unknown field (did you mean widths?); model mlp has widths, activation"),
        ("model.widths=[8, none]", "model.widths.1: got 'none'; it should be a valid integer"),
        ("model.dropout=1", "model.dropout: got 1; it should be less than 1"),
        ("model.name=nowhere:build", "model.name: nowhere:build: no module named 'nowhere'"),
        ("model.name=own_blocks:nothing", "model.name: own_blocks:nothing: module 'own_blocks' has no 'nothing'"),
        ("model.name=own_blocks:raising", "model.name: own_blocks:raising raised RuntimeError: no blocks today"),
        ("model.name=own_blocks:no_list", "model.name: own_blocks:no_list returned int as blocks"),
        ("model.name=own_blocks:needy", "model.width: not given, but needed"),
        ("train.epochs", "--set: got 'train.epochs'; write section.field=value"),
        ("train.epochs=[", "--set: train.epochs: '[' is not a YAML value"),
        ("data.name.first=3", "--set: data.name.first: name is not a section"),
        ("threads.all=3", "threads: got {'all': 3}; it should be a valid integer"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_field(override, message):
    with pytest.raises(alrpc.UserError) as error:
        check_pipeline(*resolve(load_config(None, [override])))
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path):
    with pytest.raises(alrpc.UserError, match=r"--config: no file nowhere.yaml; .* digits-mlp"):
        load_config("nowhere.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("train: [")
    with pytest.raises(alrpc.UserError, match=r"broken\.yaml: not YAML"):
        load_config(broken)
    broken.write_text("- train")
    with pytest.raises(alrpc.UserError, match=r"broken\.yaml: got a list at the top"):
        load_config(broken)
    broken.write_text("train:\n  lr: !!python/object/apply:os.system ['true']")
    with pytest.raises(alrpc.UserError, match="not YAML"):
        load_config(broken)


SHIPPED = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_configuration_that_ships_fits_its_model(path, tmp_path):
    tree = load_config(path)
    here = {"tiny-imagenet": [f"data.root={tmp_path}"], "text-file": [f"data.file={tmp_path / 'texts.csv'}"]}
    (tmp_path / "texts.csv").write_text("text,label\ngood,1\nbad,0\n")
    config, components = resolve(load_config(path, here.get(tree.data.name, [])))
    check_pipeline(config, components)


HERE = {
    "digits-mlp": [],
    **{key: ["data.root={data}"] for key in ("mnist-mlp", "mnist-vgg-small")},
    **{key: ["data.file={data}/text/imdb.csv"] for key in ("imdb-lstm-small", "imdb-transformer-small")},
}


@pytest.mark.skipif("ALRPC_DATA" not in os.environ, reason="ALRPC_DATA names no folder with MNIST and IMDB")
@pytest.mark.parametrize("name", HERE)
def test_the_configurations_whose_data_is_here_train_two_steps(name):
    config, _ = resolve(load_config(name, [field.format(data=os.environ["ALRPC_DATA"]) for field in HERE[name]]))
    whole = read_data(config.data, config.train)
    size = config.data.batch_size
    first = torch.randperm(len(whole.train), generator=torch.Generator().manual_seed(0))[: 2 * size]
    train = dataclasses.replace(whole.train, inputs=whole.train.inputs[first], labels=whole.train.labels[first])
    test = dataclasses.replace(whole.test, inputs=whole.test.inputs[:size], labels=whole.test.labels[:size])
    network = build_network(config, whole.sample, whole.target)
    before = network.digest()
    fields = {**config.train.model_dump(), "epochs": 1, "log_every": 1}
    events, two_steps = [], dataclasses.replace(whole, train=train, test=test)
    alrpc.train(network, two_steps, batch_size=size, device="cpu", callbacks=[events.append], **fields)
    steps = {event.step for event in events if isinstance(event, Losses)}
    assert steps == {1, 2} and network.digest() != before


@pytest.mark.parametrize("loss", [0.5, "a:b"])
def test_a_field_named_loss_of_ones_own_objective_is_not_code(loss):
    config = parse_config({"objective": {"name": "mine:Own", "loss": loss}})
    assert user_code_fields(config) == {"objective.name": "mine:Own"}
    config = parse_config({"objective": {"name": "classifier", "loss": "mine:loss"}})
    assert user_code_fields(config) == {"objective.loss": "mine:loss"}
