"""Stages on GPUs; skipped where there is none. `run.sh --device cpu --short` runs some of them on a CPU, so that they cannot rot."""

import gzip
import json
import os
import signal

import pytest
import torch
from conftest import ALRPC, read_summary

from alrpc.analysis.aligned import align_timings
from alrpc.config import NAMES
from alrpc.objectives import OBJECTIVES

DEVICE = os.environ.get("ALRPC_TEST_DEVICE", "cuda")
SHORT = "ALRPC_TEST_SHORT" in os.environ
GPUS = torch.cuda.device_count() if DEVICE == "cuda" else 0
VISIBLE = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(GPUS))))
FIELDS = ["--set", f"device={DEVICE}", "--set", "train.epochs=12", "--quiet"]
LIMIT = 140  # seconds of a command

pytestmark = [pytest.mark.timeout(400), pytest.mark.skipif(DEVICE == "cuda" and not GPUS, reason="no GPU")]
only_on_gpus = pytest.mark.skipif(DEVICE != "cuda", reason="a matter of GPUs")
not_when_short = pytest.mark.skipif(SHORT, reason="short")


def run(commands, *command, **environment):
    done = commands.alrpc(*command, limit=LIMIT, **{"CUDA_VISIBLE_DEVICES": VISIBLE, **environment})
    assert done.returncode == 0, done.stderr
    return done


def equal(commands, *fields, **environment):
    """Train in one process and on two stages, expect the same bits, and give the summaries."""
    for command in (["train"], ["launch", "--stages", "2"]):
        run(commands, *command, *FIELDS, *fields, "--out", command[0], **environment)
    one, other = (read_summary(commands.folder / name) for name in ("train", "launch"))
    assert one["parameters_sha256"] == other["parameters_sha256"] and one["exits"] == other["exits"]
    return one, other


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("gpus", "sharing"), [(1, "1"), (1, "0"), (2, "0")], ids=["shared", "through-the-host", "own"])
def test_stages_on_gpus_equal_one_process_on_one(commands, gpus, sharing, precision):
    if gpus > max(GPUS, 1):
        pytest.skip(f"{GPUS} GPU")
    if DEVICE != "cuda" and (sharing, precision) != ("1", "fp32"):
        pytest.skip("a matter of GPUs")
    visible = {"CUDA_VISIBLE_DEVICES": ",".join(VISIBLE.split(",")[:gpus]), "NCCL_MULTI_RANK_GPU_ENABLE": sharing}
    one, other = equal(commands, "--set", f"precision={precision}", **visible)
    places = ["cuda:0", f"cuda:{gpus - 1}"] if DEVICE == "cuda" else ["cpu", "cpu"]
    assert [stage["device"] for stage in other["per_stage"]] == places
    assert one["test_accuracy"] > 0.5


@not_when_short
@pytest.mark.parametrize("objective", [name for name in OBJECTIVES if name != NAMES["objective.name"]])
def test_every_objective_is_equal(commands, objective):
    equal(commands, "--set", f"objective.name={objective}")


@not_when_short
@pytest.mark.parametrize("fields", [["compile=true"], ["channels_last=true", "model.name=vgg", "model.channels=[[8,M],[8]]"]])
def test_compiled_components_and_convolutions_are_equal(commands, fields):
    equal(commands, *(part for field in fields for part in ("--set", field)))


def test_a_run_goes_on_on_a_cpu_and_back(commands):
    run(commands, "launch", "--stages", "2", *FIELDS, "--out", "run")
    for epochs, device in ((13, "cpu"), (14, DEVICE)):
        run(commands, "train", "--resume", "run", "--set", f"device={device}", "--set", f"train.epochs={epochs}", "--quiet")
        summary = read_summary(commands.folder / "run")
        assert summary["epochs"] == epochs and summary["test_accuracy"] > 0.5


@not_when_short
def test_a_killed_stage_comes_back_to_the_same_bits(commands, until):
    command = ["launch", "--stages", "2", *FIELDS, "--set", "train.epochs=40", "--set", "checkpoint.every=20"]
    run(commands, *command, "--out", "undisturbed")
    launched = commands.start(ALRPC, *command, "--max-restarts", "1", "--out", "run", CUDA_VISIBLE_DEVICES=VISIBLE)
    until(lambda: list((commands.folder / "run").glob("checkpoints/*/manifest.json")))
    commands.workers()[2].send_signal(signal.SIGKILL)
    _, errors = launched.communicate(timeout=2 * LIMIT)
    assert launched.returncode == 0, errors
    undisturbed, summary = (read_summary(commands.folder / name) for name in ("undisturbed", "run"))
    assert summary["parameters_sha256"] == undisturbed["parameters_sha256"]


@not_when_short
def test_baselines_train(commands):
    methods = f"al-sequential,bp{',ddp,gpipe,1f1b,pipedream' if GPUS > 1 else ''}"
    options = ("--methods", methods, "--stages", "2" if GPUS > 1 else "1", "--repeat", "1", *FIELDS[:4])
    run(commands, "compare", *options)


@only_on_gpus
def test_kept_moments_have_the_gpus_own_beside_them(commands):
    run(commands, "launch", "--stages", "2", *FIELDS, "--out", "run")
    first = next(block for block in align_timings(commands.folder / "run").blocks if block.stage == 1)
    trains = sum(each.kind == "train" for each in first.packets)
    components = 2
    for state in ("forward", "backward", "update"):
        spans = [span for span in first.device if span.state == state]
        assert len(spans) == trains * components
        assert all(span.end >= span.begin for span in spans)
    ends = [span.end for span in first.device]
    assert ends == sorted(ends) and first.begin - 0.1 < ends[0] and ends[-1] < first.end + 5  # on the same clock


def test_a_profile_has_the_operators_of_every_stage(commands):
    run(commands, "profile", "--stages", "2", "--steps", "4", "--set", f"device={DEVICE}", "--out", "profile")
    with gzip.open(commands.folder / "profile" / "al" / "trace.json.gz", "rt") as file:
        events = json.load(file)["traceEvents"]
    kind = "kernel" if DEVICE == "cuda" else "cpu_op"
    assert {event["pid"] for event in events if event.get("cat") == kind} >= {1, 2}
