"""hub.py of an export: its plain module with the mixin of Hugging Face's hub, without a network."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

import alrpc
from alrpc.inference.export.check import LIMIT, largest_difference
from alrpc.inference.export.export import export

huggingface_hub = pytest.importorskip("huggingface_hub")


def imported(directory: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, directory / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def test_the_mixin_of_the_hub_loads_saves_and_pushes_a_whole_export(run, tmp_path, monkeypatch):
    out, saved, pushed = (tmp_path / name for name in ("out", "saved", "pushed"))
    export(alrpc.load_run(run), "torch", out=out)
    imported(out, "model", monkeypatch)
    network = imported(out, "hub", monkeypatch).Network.from_pretrained(out).requires_grad_(False)
    network.save_pretrained(saved)
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda self, repo_id, **_: SimpleNamespace(repo_id=repo_id))
    monkeypatch.setattr(
        huggingface_hub.HfApi, "upload_folder", lambda self, *, folder_path, **_: shutil.copytree(folder_path, pushed)
    )
    network.push_to_hub("me/digits")
    downloaded = tmp_path / "cache" / "models--me--digits"
    shutil.copytree(pushed, downloaded / "snapshots" / ("0" * 40))
    (downloaded / "refs").mkdir()
    (downloaded / "refs" / "main").write_text("0" * 40)

    examples = load_file(out / "examples.safetensors")
    right = [examples["outputs.scores"], examples["outputs.probabilities"]]
    torch.testing.assert_close(alrpc.load_run(run)({"x": examples["inputs.x"]}), right[0])
    for place, where in ((out, {}), (saved, {}), (pushed, {}), ("me/digits", {"local_files_only": True})):
        own = type(network).from_pretrained(place, cache_dir=tmp_path / "cache", **where).requires_grad_(False)
        assert largest_difference([own(examples["inputs.x"])], [right]) <= LIMIT
    texts = {path.name: path.read_bytes() for path in out.glob("*.*") if path.suffix in (".json", ".py")}
    for directory in (saved, pushed):
        assert {path.name for path in directory.iterdir()} == {*texts, "README.md", "model.safetensors"}
        assert all((directory / name).read_bytes() == text for name, text in texts.items())
        card = huggingface_hub.ModelCard.load(directory / "README.md")
        assert {"model_hub_mixin", "alrpc"} < {*card.data.tags} and "## How it was trained" in card.text
        assert [each.metric_value for each in card.data.eval_results] == json.loads((run / "summary.json").read_text())["exits"]

    parameters = out / "model.safetensors"
    parameters.write_bytes(bytes(parameters.stat().st_size))  # in place, where safetensors has mapped it
    assert largest_difference([network(examples["inputs.x"])], [right]) <= LIMIT
    name, parameter = next(network.named_parameters())
    parameter.zero_()
    network.save_pretrained(out)  # where it is from
    assert not load_file(parameters)[name].any() and (out / "config.json").read_bytes() == texts["config.json"]
