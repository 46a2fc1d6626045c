"""A launch on this machine: what it shows, what it leaves, where it listens."""

import json

import pytest
from conftest import read_summary

import alrpc
from alrpc.config import load_config


def test_a_run_leaves_its_record_and_a_network_that_predicts_alike(commands):
    launched = commands.alrpc("launch", "--stages", "2", "--set", "train.epochs=3", "--out", "run")
    assert launched.returncode == 0 and launched.stderr == ""  # no warning of torch's or RPC's own
    run = commands.folder / "run"
    summary = read_summary(run)

    lines = launched.stdout.strip().splitlines()
    assert "stage 1: 1-2 on cpu, stage 2: 3-4 on cpu" in lines[0]
    assert [line.split("  ")[0].partition(":")[0] for line in lines[1:-1]] == [
        *("epoch 1/3", "deep exits begin at chance", "epoch 2/3", "epoch 3/3")
    ]
    assert lines[-1].startswith(f"test accuracy {summary['test_accuracy']:.4f}") and lines[-1].endswith("run")

    files = {"config.yaml", "labels.json", "preprocess.json", "metrics.jsonl", "timings.jsonl", "summary.json"}
    assert {path.name for path in run.iterdir()} == {*files, "checkpoints", "logs"}
    assert {path.name for path in (run / "logs").iterdir()} == {
        f"{n}.log" for n in ("launcher", "coordinator", "stage-1", "stage-2")
    }
    assert load_config(run / "config.yaml").pipeline.stages == 2

    assert (summary["engine"], summary["stages"], summary["epochs"], summary["steps"]) == ("pipeline", 2, 3, 69)
    assert summary["exits"][-1] == summary["test_accuracy"]
    assert [stage["components"] for stage in summary["per_stage"]] == [[1, 2], [3, 4]]
    for stage in summary["per_stage"]:
        parts = [stage[f"seconds_{state}"] for state in ("computing", "waiting_to_receive", "waiting_to_send")]
        assert 0 < sum(parts) <= summary["wall_seconds"] and min(parts) >= 0
        assert stage["device"] == "cpu" and stage["peak_memory_bytes"] > 0

    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [event["exits"] for event in events if event["event"] == "evaluation"][-1] == summary["exits"]
    assert {event["component"] for event in events if event["event"] == "losses"} == {1, 2, 3, 4}

    carried = {name: (run / name).stat().st_size for name in ("labels.json", "preprocess.json")}
    (last,) = run.glob(f"checkpoints/step-{summary['steps']:08d}/manifest.json")
    assert {name: each["bytes"] for name, each in json.loads(last.read_text())["carried"].items()} == carried
    network = alrpc.load_run(run)
    assert network.digest() == summary["parameters_sha256"]
    test = alrpc.load_data("digits").test
    for number, accuracy in enumerate(summary["exits"], 1):
        assert (network.predict(test.inputs, exit=number) == test.labels).float().mean().item() == pytest.approx(accuracy)


def test_the_python_function_launches_ones_own_blocks_and_load_run_asks_before_importing_them(tmp_path):
    config = load_config(None, ["model.name=own_blocks:build", "model.depth=3", "train.epochs=1"])
    summary, directory = alrpc.launch_pipeline(config, stages=3, out=tmp_path / "run")
    assert summary == read_summary(directory) and summary["stages"] == 3
    with pytest.raises(alrpc.UserError, match="pass model='own_blocks:build'"):
        alrpc.load_run(directory)
    assert alrpc.load_run(directory, model="own_blocks:build").digest() == summary["parameters_sha256"]


def test_a_cuda_device_that_is_not_there_is_refused(commands):
    refused = commands.alrpc("launch", "--set", "device=cuda", CUDA_VISIBLE_DEVICES="")
    assert refused.stderr.startswith("alrpc: device: got cuda, but this machine has no GPU")
    assert list(commands.folder.iterdir()) == []
