"""What `alrpc list` and `alrpc config` tell is what the configuration and the options accept, without importing torch."""

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner
from conftest import LIMIT

import alrpc
from alrpc.cli.compare import compare
from alrpc.cli.main import main
from alrpc.config import Model, load_config
from alrpc.config.objectives import SECTIONS
from alrpc.experiments import METHODS
from alrpc.experiments.baselines import ASYNCHRONOUS
from alrpc.models.build import resolve_fields
from alrpc.network import resolve


def printed(*arguments):
    shown = CliRunner().invoke(main, arguments)
    assert shown.exit_code == 0, shown.output
    return shown.stdout


@pytest.mark.parametrize("command", ["list", "config"])
def test_they_answer_without_torch(command):
    code = f"import sys; sys.modules['torch'] = None; from alrpc.cli.main import main; main(['{command}'])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=LIMIT)
    assert answer.returncode == 0 and "resnet" in answer.stdout, answer.stderr


def test_every_name_is_accepted_and_has_a_line(tmp_path):
    names = json.loads(printed("list", "--json"))
    assert list(names) == ["configurations", "models", "models of libraries", "data sets", "objectives", "methods"]
    assert all(what and "\n" not in what for of_kind in names.values() for what in of_kind.values())
    shown = printed("list")
    assert all(f"  {name} " in shown and what in shown for of_kind in names.values() for name, what in of_kind.items())
    for name in names["configurations"]:
        load_config(name)
    for name in names["models"]:
        assert resolve(load_config(None, [f"model.name={name}"]))[1] > 1
    for name in names["data sets"]:
        with pytest.raises(alrpc.UserError) as error:  # it may be absent, but it is known
            alrpc.load_data(name, augmentation="strong", root=tmp_path / "absent")
        assert "unknown data set" not in str(error.value)


def test_compares_help_tells_its_methods_as_the_list_does():
    shown = printed("compare", "--help")
    assert all(f"{name:13}  {what}\n" in shown for name, what in METHODS.items())
    assert next(option for option in compare.params if option.name == "methods").default == ",".join(
        method for method in METHODS if method not in ASYNCHRONOUS
    )


def test_every_field_is_told_with_type_default_and_meaning():
    fields = json.loads(printed("config", "--json"))
    of_sections = {f["field"]: f for f in fields if "model" not in f and f.get("objective", "associated") == "associated"}
    sections = load_config(None).model_dump(mode="json")
    known = {f"{name}.{inner}" for name, section in sections.items() if isinstance(section, dict) for inner in section}
    known |= {name for name, section in sections.items() if not isinstance(section, dict)}
    model = {f"model.{name}" for name in Model.model_fields}
    assert set(of_sections) == {name for name in known if not name.startswith("model.")} | model
    assert all(field["meaning"] for field in fields)
    assert of_sections["train.lr"]["type"] == "number > 0" and of_sections["train.lr"]["default"] == 1e-3
    assert of_sections["data.test_share"]["type"] == "number > 0 and < 1"
    assert of_sections["train.group_lr"]["type"] == "number > 0 by name"
    assert of_sections["pipeline.split"]["type"] == "list of whole number > 0 or auto or null"
    for objective, section in SECTIONS.items():
        told = {f["field"].removeprefix("objective.") for f in fields if f.get("objective") == objective}
        assert told == set(section.model_fields) - {"name"} and len(told) > 2
    for model in ("mlp", "vgg", "resnet", "lstm", "transformer"):
        told = {f["field"].removeprefix("model."): f["default"] for f in fields if f.get("model") == model}
        assert told == json.loads(json.dumps(resolve_fields(model, {})))


def test_a_section_or_a_field_is_told_alone_and_a_wrong_one_is_refused():
    assert "train.epochs: whole number > 0, default 30\n    Passes over" in printed("config", "train")
    assert printed("config", "train.lr").count("default") == 1
    refused = CliRunner().invoke(main, ["config", "trian"])
    assert refused.exit_code == 2 and refused.stderr.startswith("alrpc: SECTION: got 'trian' (did you mean train?); give")
