"""`alrpc export`: every form of every network answers as the run does, without alrpc; nothing half-written is left."""

import errno
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import small_data
import torch
import yaml
from click.testing import CliRunner, Result
from safetensors.torch import load_file

import alrpc
from alrpc.cli.main import main
from alrpc.config import load_config
from alrpc.inference.export import check, export
from alrpc.inference.export.check import LIMIT, expected, largest_difference, micro_batch, micro_batches
from alrpc.inference.export.graph import Exits, shapes_of, trace
from alrpc.inference.export.onnx import answers_of_onnx, write_onnx
from alrpc.inference.export.plain import answers_of_plain, write_plain
from alrpc.models.lstm import BiLSTM
from alrpc.network import build_network, resolve
from alrpc.objectives import OBJECTIVES
from alrpc.runtime.run import run_sequentially

IMAGES = (("x", "float32", (None, 3, 16, 16)),)
TEXTS = (("x", "int64", (None, None)), ("mask", "bool", (None, None)))
LONGEST = 9  # words
NETWORKS = {
    "mlp": (IMAGES, ("widths=[8, 8]", "batch_norm=true")),
    "vgg": (IMAGES, ("channels=[[4, M], [6, M]]", "hidden=8")),
    "resnet": (IMAGES, ("width=4", "depths=[1, 1]")),
    "torchvision:resnet18": (IMAGES, ("components=2",)),
    "lstm": (TEXTS, ("width=6", "hidden=5", "layers=2", "vocabulary=20")),
    "transformer": (TEXTS, ("width=8", "heads=2", "feed_forward=6", "layers=2", "vocabulary=20")),
}


def ask(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["export", *map(str, arguments)])


def written(*arguments: str | Path) -> str:
    done = ask(*arguments)
    assert done.exit_code == 0, done.output
    assert float(re.search(r"the largest difference from the run is (\S+)$", done.stdout)[1]) <= LIMIT
    return done.stdout


def without_alrpc(program: str, *arguments: str | Path) -> list:
    """What a program prints as JSON in a process in which alrpc cannot be imported."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.modules['alrpc'] = None\n{program}", *map(str, arguments)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def make(name: str, *fields: str) -> tuple[alrpc.Network, tuple]:
    shapes, own = NETWORKS[name]
    config, _ = resolve(load_config(None, [f"model.name={name}", *(f"model.{field}" for field in own), *fields]))
    sample = {
        each: torch.zeros(4, *(size or LONGEST for size in shape[1:]), dtype=getattr(torch, dtype))
        for each, dtype, shape in shapes
    }
    return build_network(config, sample, alrpc.Classes(3)).eval(), shapes


def graph_of(network: alrpc.Network, shapes: tuple, exit: int | None) -> tuple[Exits, torch.export.ExportedProgram]:
    exits = Exits(network, [name for name, _, _ in shapes], exit)
    free = [[place for place, size in enumerate(shape) if size is None] for _, _, shape in shapes]
    return exits, trace(exits, micro_batch(network, shapes, 2, LONGEST), free)


@pytest.mark.parametrize(("name", "exit"), [*((name, None) for name in NETWORKS), ("lstm", 1)])
def test_every_network_is_a_graph_and_a_plain_module_of_any_number_of_samples_and_of_words(name, exit, tmp_path):
    network, shapes = make(name)
    exits, program = graph_of(network, shapes, exit)
    assert shapes_of(program) == [shape for _, _, shape in shapes]
    batches = micro_batches(network, shapes, LONGEST)
    answers = [program.module()(*batch) for batch in batches]
    assert largest_difference(answers, right := expected(network, exits.names, exit, batches)) <= LIMIT
    write_plain(tmp_path, program, exits.names, exits.gives, "A title")
    plain = runpy.run_path(tmp_path / "model.py")["Network"].from_pretrained(tmp_path).requires_grad_(False)
    assert largest_difference([plain(*batch) for batch in batches], right) <= LIMIT
    wanted = (8, 3) if exit else (8, len(network.components), 3)
    assert answers[-1][0].shape == wanted and answers[-1][1].sum(dim=-1).allclose(torch.ones(wanted[:-1]))
    assert not any(".encoder." in name for name in exits.state_dict())  # which only training uses


@pytest.mark.parametrize("handover", ["bf16", "int8"])
@pytest.mark.parametrize("name", ["mlp", "vgg", "lstm"])
def test_what_components_hand_over_is_as_coarse_in_a_graph_as_in_the_run(name, handover, tmp_path):
    network, shapes = make(name, f"model.handover={handover}")
    exits, program = graph_of(network, shapes, None)
    assert shapes_of(program) == [shape for _, _, shape in shapes]
    batches = micro_batches(network, shapes, LONGEST)
    right = expected(network, exits.names, None, batches)
    assert largest_difference([program.module()(*batch) for batch in batches], right) <= LIMIT
    write_plain(tmp_path, program, exits.names, exits.gives, "A title")
    plain = runpy.run_path(tmp_path / "model.py")["Network"].from_pretrained(tmp_path).requires_grad_(False)
    assert largest_difference([plain(*batch) for batch in batches], right) <= LIMIT


@pytest.mark.parametrize("handover", ["fp32", "bf16", "int8"])
def test_onnx_takes_any_number_of_samples_and_of_words(tmp_path, handover):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    network, shapes = make("lstm", "model.layers=1", f"model.handover={handover}")
    exits, program = graph_of(network, shapes, None)
    write_onnx(tmp_path, program, exits.names, exits.gives, {"config.json": "{}"})
    batches = micro_batches(network, shapes, LONGEST)
    answers = answers_of_onnx(tmp_path, batches)
    assert largest_difference(answers, expected(network, exits.names, None, batches)) <= LIMIT


@pytest.mark.parametrize("objective", sorted(OBJECTIVES.keys() - {"associated"}))
def test_every_objective_is_exported(objective):
    network, shapes = make("mlp", f"objective.name={objective}")
    exits, program = graph_of(network, shapes, None)
    batches = micro_batches(network, shapes, LONGEST)
    answers = [program.module()(*batch) for batch in batches]
    assert largest_difference(answers, expected(network, exits.names, None, batches)) <= LIMIT


def test_exits_that_are_combined_and_blocks_that_write_in_place_are_exported():
    blocks = [
        torch.nn.Sequential(torch.nn.Linear(6, 3), torch.nn.Flatten()),
        torch.nn.ReLU(inplace=True),
        torch.nn.Linear(3, 4),
    ]
    heads = [
        torch.nn.Identity(),
        torch.nn.Identity(),
        torch.nn.Linear(4, 3),
    ]  # the first two give what the next block overwrites
    network = alrpc.decouple(blocks, torch.randn(2, 6), alrpc.Classes(3), "classifier", heads=heads, ensemble=True).eval()
    shapes = (("x", "float32", (None, 6)),)
    _, program = graph_of(network, shapes, None)
    batches = micro_batches(network, shapes, 1)
    own = []
    for batch in batches:
        tensors, outputs, decoded = {"x": batch[0].clone()}, [], []
        for component in network.components:
            tensors, output = component.evaluate(tensors)
            outputs.append(output)
            decoded.append(network.objective.decode([], outputs))
        own.append([torch.stack(decoded, dim=1)])
    assert largest_difference([[program.module()(*batch)[0]] for batch in batches], own) <= LIMIT


def test_a_bilstm_computes_the_same_by_a_mask_as_packed():
    torch.manual_seed(0)
    first, second = BiLSTM(5, 7, follows=False), BiLSTM(14, 7, follows=True)
    mask = torch.arange(9) < torch.tensor([9, 1, 4, 0, 9, 8])[:, None]
    with torch.no_grad():
        packed, masked = [torch.randn(6, 9, 5)], None
        masked = list(packed)
        for block in (first, second):
            packed = list(block(packed[0], mask, *packed[1:]))
            masked = list(block.by_mask(masked[0], mask, *masked[1:]))
            for one, other in zip(packed, masked, strict=True):
                torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def test_a_plain_module_of_texts_needs_nothing_of_alrpc(tmp_path):
    network, shapes = make("lstm", "model.layers=1")
    exits, program = graph_of(network, shapes, 2)
    write_plain(tmp_path, program, exits.names, exits.gives, 'A title """; raise SystemExit')
    batches = micro_batches(network, shapes, LONGEST)
    assert largest_difference(answers_of_plain(tmp_path, batches), expected(network, exits.names, 2, batches)) <= LIMIT
    assert load_file(tmp_path / "model.safetensors").keys() == exits.state_dict().keys()
    assert {path.name for path in tmp_path.iterdir()} == {"model.py", "model.safetensors"}


def test_digits_are_predicted_by_the_plain_module_and_what_config_json_says(run, tmp_path):
    pixels = (alrpc.load_data("digits").test.inputs[:50] * 255).round().to(torch.uint8)
    (tmp_path / "pixels.json").write_text(json.dumps(pixels.tolist()))
    out = tmp_path / "plain"
    assert written(run, "--to", "torch", "--exit", "all", "--out", out).startswith(f"{out}: all exits of step 46, ")
    program = """
import json, torch
sys.path.insert(0, sys.argv[1])
from model import Network
config, pixels = (json.load(open(path)) for path in (f"{sys.argv[1]}/config.json", sys.argv[2]))
mean, deviation = (torch.tensor(config["preprocessing"][name])[:, None, None] for name in ("mean", "deviation"))
scores, probabilities = Network.from_pretrained(sys.argv[1])((torch.tensor(pixels) / 255 - mean) / deviation)
print(json.dumps([[config["labels"][best] for best in exits] for exits in probabilities.argmax(dim=2).T.tolist()]))
"""
    found = without_alrpc(program, out, tmp_path / "pixels.json")
    predictor = alrpc.load_run(run)
    assert found == [[answer.label for answer in predictor.answers(pixels.numpy(), exit=exit)] for exit in (1, 2)]


def test_a_graph_of_torch_export_has_all_that_a_prediction_from_texts_needs(tmp_path, monkeypatch):
    tokenizers = pytest.importorskip("tokenizers")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = small_data.write_texts(tmp_path / "texts.jsonl")
    fields = ("model.name=transformer", "model.width=8", "model.heads=2", "model.layers=1", "data.name=text-file")
    _, run = run_sequentially(
        load_config(None, [*fields, f"data.file={file}", "train.epochs=1"]), "run", tmp_path / "run", quiet=True
    )
    written(run, "--to", "pt2", "--exit", "1")
    out = run / "export" / "pt2"
    files = {"config.json": "", "tokenizer.json": ""}
    module = torch.export.load(out / "model.pt2", extra_files=files).module()
    config = json.loads(files["config.json"])
    assert files["tokenizer.json"] == (out / "tokenizer.json").read_text() and config == json.loads(
        (out / "config.json").read_text()
    )
    tokenizer = tokenizers.Tokenizer.from_str(files["tokenizer.json"])
    for text in ("lovely bright film", "dark"):
        ids = torch.tensor([tokenizer.encode(text).ids])
        _, probabilities = module(ids, torch.ones_like(ids, dtype=torch.bool))
        (answer,) = alrpc.load_run(run).answers([text], exit=1)
        assert config["labels"][probabilities.argmax()] == answer.label
        assert probabilities.max().item() == pytest.approx(answer.probability, abs=1e-5)
    examples = load_file(out / "examples.safetensors")
    found = module(*(examples[f"inputs.{name}"] for name in config["inputs"]))
    right = [examples[f"outputs.{name}"] for name in config["outputs"]]
    assert largest_difference([found], [right]) <= LIMIT


def test_the_parameters_alone_bear_the_names_of_the_run_and_the_card_tells_of_it(run):
    written(run, "--to", "safetensors", "--exit", "1")
    out = run / "export" / "safetensors"
    network = alrpc.load_run(run)
    for name, tensor in load_file(out / "model.safetensors").items():
        assert torch.equal(tensor, network.state_dict()[name]) and name.startswith("components.0.")
    card = (out / "README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    scores = [each["value"] for each in header["model-index"][0]["results"][0]["metrics"]]
    summary = json.loads((run / "summary.json").read_text())
    assert scores == summary["exits"] and header["pipeline_tag"] == "image-classification"
    assert network.digest() in card and "On 360 samples of the test split of digits" in card
    written(run, "--to", "safetensors", "--step", "40", "--force")
    assert "It was not measured on the test split at this step" in (out / "README.md").read_text()


def test_a_regression_gives_values(tmp_path):
    torch.manual_seed(0)
    split = alrpc.Split(torch.randn(40, 6), torch.randn(40, 2))
    dataset = alrpc.Dataset(split, split, alrpc.Values(2))
    network = alrpc.associate([torch.nn.Linear(6, 8)], dataset.sample, dataset.target)
    alrpc.train(network, dataset, epochs=1, out=tmp_path / "run")
    done = export.export(alrpc.load_run(tmp_path / "run", network=network), "pt2")
    assert done.difference <= LIMIT and list(done.described["outputs"]) == ["values"] and done.described["labels"] is None
    (values,) = torch.export.load(done.directory / "model.pt2").module()(split.inputs)
    torch.testing.assert_close(values, network.predict(split.inputs))


def test_nothing_is_overwritten_or_left_half_written(run, tmp_path, monkeypatch):
    out = tmp_path / "mine" / "out"
    for arguments, code, message in (
        (("--exit", "3"), 2, "--exit: got 3, but the network has exits 1 to 2"),
        (("--exit", "some"), 2, "'some' is neither the number of an exit nor all"),
        (("--step", "7"), 2, "--step: "),
        (("--out", run / "checkpoints"), 2, f"--out: {run / 'checkpoints'} exists; give one that is not there"),
        (("--out", run / "checkpoints", "--force"), 2, f"--out: {run / 'checkpoints'} exists; give one that is not there"),
        (("--out", run / "config.yaml" / "out"), 2, "--out: cannot write to"),
    ):
        done = ask(run, "--to", "safetensors", *arguments)
        assert done.exit_code == code and message in done.stderr, done.output
    monkeypatch.setattr(check, "LIMIT", -1.0)
    done = ask(run, "--to", "safetensors", "--out", out)
    assert done.exit_code == 1 and done.stderr.startswith("alrpc: the export answers otherwise than the run, by 0.0e+00")
    assert list(tmp_path.iterdir()) == [run]
    monkeypatch.undo()
    written(run, "--to", "safetensors", "--out", out)
    before = {path: path.read_bytes() for path in out.iterdir()}
    done = ask(run, "--to", "safetensors", "--out", out, "--exit", "1")
    assert done.exit_code == 2 and done.stderr == f"alrpc: --out: {out} exists; add --force to replace it, or give another\n"
    monkeypatch.setattr(check, "LIMIT", -1.0)
    assert ask(run, "--to", "safetensors", "--out", out, "--exit", "1", "--force").exit_code == 1
    assert {path: path.read_bytes() for path in out.iterdir()} == before and list(out.parent.iterdir()) == [out]


def test_neither_the_current_directory_nor_the_run_is_replaced_nor_what_holds_them(run, tmp_path, monkeypatch):
    here = tmp_path / "out" / "here"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    for folder in (here, here.parent, run, tmp_path):  # each looks like an export
        for name in ("config.json", "README.md"):
            (folder / name).touch()
    for out, told in (
        (".", "is the current directory"),
        ("..", "has the current directory within"),
        (here, "is the current directory"),
        (run, "is the run"),
        (tmp_path, "has the run within"),
    ):
        done = ask(run, "--to", "safetensors", "--force", "--out", out)
        assert done.exit_code == 2, done.output
        assert done.stderr == f"alrpc: --out: {out} {told}, and cannot be replaced; give another\n"


def test_an_export_that_cannot_be_replaced_stays(run, tmp_path, monkeypatch):
    out, rename = tmp_path / "out", Path.rename
    written(run, "--to", "safetensors", "--out", out)
    before = {path: path.read_bytes() for path in out.iterdir()}

    def refusing(path: Path, target: Path) -> Path:
        if path.name.endswith(".partial"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refusing)
    done = ask(run, "--to", "safetensors", "--out", out, "--exit", "1", "--force")
    told = f"alrpc: --out: {out} cannot be written: Permission denied; what was there stays\n"
    assert (done.exit_code, done.stderr) == (1, told)
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    assert sorted(tmp_path.iterdir()) == [out, run]


@pytest.mark.parametrize("form", ["safetensors", "torch", "pt2"])
def test_a_run_whose_name_is_not_utf8_is_exported_elsewhere(run, tmp_path, form):
    strange = run.rename(tmp_path / os.fsdecode(b"r\xfcn"))
    predictor = alrpc.load_run(strange)
    done = export.export(predictor, form, out=tmp_path / "out")
    assert done.difference <= LIMIT and done.described["run"] == "r\\udcfcn"
    assert "\n# r\\udcfcn\n" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    with pytest.raises(alrpc.UserError, match=r"^--out: got b'.*/r\\xfcn/export/.*', which is not UTF-8; give it in UTF-8$"):
        export.export(predictor, form)
    assert not (strange / "export").exists()


def test_a_missing_extra_and_a_network_without_a_graph_are_told_in_one_line(run, tmp_path, monkeypatch):
    monkeypatch.setattr("alrpc.inference.export.onnx.find_spec", lambda package: None)
    done = ask(run, "--to", "onnx")
    assert done.exit_code == 2 and done.stderr == (
        "alrpc: --to: onnx needs the extra: pip install 'alrpc[export]' (onnx is missing)\n"
    )

    class Branching(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x if x.sum() > 0 else -x)

    class Counting(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x).view(len(x), 3)

    for block, message in (
        (Branching, "torch.export makes no graph of it: "),
        (Counting, "in its graph a micro-batch has 2 samples"),
    ):
        network = alrpc.associate([block(6, 3)], torch.randn(2, 6), alrpc.Classes(3)).eval()
        with pytest.raises(alrpc.UserError, match=f"^the network cannot be exported: {message}") as raised:
            graph_of(network, (("x", "float32", (None, 6)),), None)
        assert "\n" not in str(raised.value)
