"""Stages on GPUs; skipped where there is none."""

import os

import pytest
import torch
from conftest import read_summary

from alrpc.analysis.aligned import align_timings

GPUS = torch.cuda.device_count()
VISIBLE = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(GPUS))))
FIELDS = ["--set", "device=cuda", "--set", "train.epochs=3", "--quiet"]


@pytest.mark.timeout(300)
@pytest.mark.skipif(GPUS == 0, reason="no GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("gpus", "sharing"), [(1, "1"), (1, "0"), (2, "0")], ids=["shared", "through-the-host", "own"])
def test_stages_on_gpus_equal_one_process_on_one(commands, gpus, sharing, precision):
    if gpus > GPUS:
        pytest.skip(f"{GPUS} GPU")
    visible = {"CUDA_VISIBLE_DEVICES": ",".join(VISIBLE.split(",")[:gpus]), "NCCL_MULTI_RANK_GPU_ENABLE": sharing}
    fields = [*FIELDS, "--set", f"precision={precision}"]
    for command in (["train"], ["launch", "--stages", "2"]):
        done = commands.alrpc(*command, *fields, "--out", command[0], limit=140, **visible)
        assert done.returncode == 0, done.stderr
    one, other = (read_summary(commands.folder / name) for name in ("train", "launch"))
    assert [stage["device"] for stage in other["per_stage"]] == ["cuda:0", f"cuda:{gpus - 1}"]
    assert one["parameters_sha256"] == other["parameters_sha256"] and one["exits"] == other["exits"]
    assert one["test_accuracy"] > 0.5


@pytest.mark.timeout(300)
@pytest.mark.skipif(GPUS == 0, reason="no GPU")
def test_baselines_train_on_a_gpu(commands):
    options = (
        "--methods",
        "al-sequential,bp",
        "--stages",
        "1",
        "--repeat",
        "1",
        "--set",
        "device=cuda",
        "--set",
        "train.epochs=3",
    )
    done = commands.alrpc("compare", *options, limit=200, CUDA_VISIBLE_DEVICES=VISIBLE)
    assert done.returncode == 0, done.stderr


@pytest.mark.timeout(300)
@pytest.mark.skipif(GPUS == 0, reason="no GPU")
def test_kept_moments_have_the_gpus_own_beside_them(commands):
    done = commands.alrpc("launch", "--stages", "2", *FIELDS, "--out", "run", limit=140, CUDA_VISIBLE_DEVICES=VISIBLE)
    assert done.returncode == 0, done.stderr
    first = next(block for block in align_timings(commands.folder / "run").blocks if block.stage == 1)
    trains = sum(each.kind == "train" for each in first.packets)
    components = 2
    for state in ("forward", "backward", "update"):
        spans = [span for span in first.device if span.state == state]
        assert len(spans) == trains * components
        assert all(span.end >= span.begin for span in spans)
    ends = [span.end for span in first.device]
    assert ends == sorted(ends) and first.begin - 0.1 < ends[0] and ends[-1] < first.end + 5  # on the same clock
