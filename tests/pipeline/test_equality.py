"""Promise 1: pipelined training equals sequential training bit for bit, whatever the number of stages."""

import shutil

import pytest
from conftest import read_summary
from small_data import write_images, write_texts

DIGITS = ["--set", "model.name=own_blocks:build", "--set", "train.epochs=3", "--set", "data.batch_size=60", "--quiet"]
STREAM = [
    *("--set", "model.name=own_blocks:build", "--set", "data.name=own_blocks:endless", "--set", "data.batch_size=60"),
    *("--set", "train.steps=75", "--set", "train.evaluate_every=25", "--set", "train.seed=1", "--quiet"),
]
SEQUENCES = [
    *("--set", "model.name=own_sequences:build", "--set", "data.name=own_sequences:load", "--set", "train.epochs=3"),
    *("--set", "data.batch_size=32", "--set", "train.accumulate=3", "--set", "train.clip_norm=0.5", "--quiet"),
]


@pytest.mark.parametrize(
    ("options", "steps", "variants"),
    [
        # Dropout, batch norm, and a last micro-batch of 57 instead of 60.
        (DIGITS, 72, {"1": [], "2": ["--set", "pipeline.split=[1,3]"], "4": ["--set", "pipeline.window=1"]}),
        # Lengths that differ from packet to packet, a mask, an LSTM's state, accumulation, clipping.
        (SEQUENCES, 24, {"3": []}),
        ([*DIGITS, "--set", "precision=bf16"], 72, {"2": []}),
        # A sampler of one's own, which draws more samples an epoch than there are.
        ([*DIGITS, "--set", "data.name=own_blocks:sampled", "--set", "data.workers=1"], 75, {"2": []}),
        # A stream without an end, whose samples draw random numbers.
        (STREAM, 75, {"2": []}),
    ],
    ids=["digits", "sequences", "bf16", "sampler", "stream"],
)
def test_every_number_of_stages_gives_the_bits_of_the_sequential_reference(commands, options, steps, variants):
    trained = commands.alrpc("train", *options, "--out", "reference")
    assert trained.returncode == 0, trained.stderr
    reference = read_summary(commands.folder / "reference")
    assert reference["engine"] == "sequential" and reference["exits"][0] > 0.4 and reference["steps"] == steps
    for stages, more in variants.items():
        launched = commands.alrpc("launch", "--stages", stages, *options, *more, "--out", stages)
        assert launched.returncode == 0, launched.stderr
        summary = read_summary(commands.folder / stages)
        assert (summary["engine"], summary["stages"]) == ("pipeline", int(stages))
        assert summary["parameters_sha256"] == reference["parameters_sha256"]
        assert summary["exits"] == reference["exits"]
        assert summary["parameters"] == reference["parameters"]
        assert summary["steps"] == reference["steps"]


def test_a_regression_runs_through_the_pipeline(commands):
    options = ["--set", "model.name=own_blocks:build_for_regression", "--set", "data.name=own_blocks:regression"]
    options += ["--set", "train.epochs=2", "--quiet"]
    assert commands.alrpc("train", *options, "--out", "reference").returncode == 0
    launched = commands.alrpc("launch", "--stages", "2", *options, "--out", "pipeline")
    assert launched.returncode == 0, launched.stderr
    one, other = (read_summary(commands.folder / name) for name in ("reference", "pipeline"))
    assert one["parameters_sha256"] == other["parameters_sha256"] and one["exits"] == other["exits"]
    assert one["test_mse"] == one["exits"][-1] and "test_accuracy" not in one


IMAGES = [
    *("data.name=image-folder", "data.root=.", "data.image_size=16", "data.batch_size=20", "train.epochs=2"),
    *("objective.target_width=12", "objective.bridge_widths=[16]"),
]
TEXTS = [
    *("data.name=text-file", "data.file=texts.jsonl", "data.batch_size=16", "train.epochs=2", "model.width=16"),
    *("objective.target_width=12", "train.lr=5e-3"),
]
NETWORKS = {
    "vgg": ["model.channels=[[4,M],[6,M],[8],[8]]", "data.augmentation=strong", "data.workers=2", *IMAGES],
    "resnet": [
        "model.width=4",
        "model.depths=[1,1,1]",
        "model.handover=int8",
        "channels_last=true",
        *("data.augmentation=basic", *IMAGES),
    ],
    "lstm": ["model.hidden=8", "model.handover=bf16", *TEXTS],
    "transformer": ["model.heads=2", "model.feed_forward=16", "data.bucket=true", *TEXTS],
    "mlp": ["model.dropout=0.1", "model.batch_norm=true", "train.epochs=2"],
}


@pytest.mark.parametrize(("name", "stages"), [("vgg", 2), ("resnet", 4), ("lstm", 2), ("transformer", 4), ("mlp", 3)])
def test_every_network_is_equal_in_a_pipeline_and_in_one_process(commands, name, stages):
    write_images(commands.folder)
    write_texts(commands.folder / "texts.jsonl")
    options = ["--quiet", *(part for field in (f"model.name={name}", *NETWORKS[name]) for part in ("--set", field))]
    summaries = []
    for out, command in (("reference", ["train"]), ("pipeline", ["launch", "--stages", str(stages)])):
        done = commands.alrpc(*command, *options, "--out", out, XDG_CACHE_HOME=str(commands.folder / "cache"))
        assert done.returncode == 0, done.stderr
        summaries.append(read_summary(commands.folder / out))
    reference, pipeline = summaries
    assert pipeline["stages"] == stages
    assert pipeline["parameters_sha256"] == reference["parameters_sha256"] and pipeline["exits"] == reference["exits"]


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_components_are_equal_too(commands):
    fields = ("compile=true", "model.widths=[16,16]", "model.dropout=0.1", "train.epochs=1", "pipeline.stages=2")
    options = ["--quiet", *(part for field in fields for part in ("--set", field))]
    for command in ("train", "launch"):
        done = commands.alrpc(command, *options, "--out", command, limit=180)
        assert done.returncode == 0, done.stderr
    one, other = (read_summary(commands.folder / name) for name in ("train", "launch"))
    assert one["parameters_sha256"] == other["parameters_sha256"] and one["exits"] == other["exits"]
