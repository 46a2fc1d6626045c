"""What TensorBoard, Weights & Biases, trackio and MLflow find of a run; and what a logger that fails does not do to it."""

import contextlib
import importlib
import importlib.util
import json
import math
import struct
import threading

import pytest

import alrpc
from alrpc import events
from alrpc.config import load_config
from alrpc.runtime.run import run_sequentially
from alrpc.telemetry import loggers
from alrpc.telemetry.loggers import FOLDER, scalars_of
from alrpc.telemetry.progress import Progress, StageProgress

FIELDS = ["observe.tensorboard=true", "train.epochs=4", "train.log_every=10"]
SHORT = ["train.epochs=2", "train.log_every=10", "model.widths=[16, 16]"]
BLOCK, HEADER = 1 << 15, 7  # of a file of Weights & Biases, which is a log of leveldb's


def test_scalars_of_every_component_and_the_timeline(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    summary, run = run_sequentially(alrpc.load_config(None, FIELDS), "digits", tmp_path / "run", quiet=True)
    found = accumulator.EventAccumulator(str(run / FOLDER))
    found.Reload()
    for component in range(1, 5):
        losses = found.Scalars(f"associated_loss/component {component}")
        assert [each.step for each in losses] == [10, 20, 23, 30, 40, 46, 50, 60, 69, 70, 80, 90, 92]
        last = found.Scalars(f"accuracy/exit {component}")[-1]
        assert (last.step, last.value) == (92, pytest.approx(summary["exits"][component - 1]))
    assert found.Scalars("works/stage 1")[-1].value > 0.5 and found.Scalars("peak_memory_MiB/stage 1")[-1].value > 50
    assert found.Images("timeline")[0].width > 1000


def test_without_the_package_nothing_begins(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for fields, message in (
        (FIELDS, r"observe\.tensorboard: needs the extra: pip install 'alrpc\[tensorboard\]'"),
        (["observe.loggers=[trackio]"], r"observe\.loggers: trackio needs the extra: pip install 'alrpc\[trackio\]'"),
    ):
        with pytest.raises(alrpc.UserError, match=message):
            run_sequentially(alrpc.load_config(None, fields), "digits", tmp_path / "run")
        assert not (tmp_path / "run").exists()


def logged(run):
    """{name: [(step, value), …]} of losses and scores, as metrics.jsonl has them."""
    progress, found = Progress("", "sequential", {1: StageProgress()}, 2, window=2), {}
    progress.micro_batches = 23
    for line in (run / "metrics.jsonl").read_text().splitlines():
        event = events.from_json(json.loads(line))
        for name, value in (
            scalars_of(event, progress)[1].items() if isinstance(event, events.Losses | events.Evaluation) else ()
        ):
            found.setdefault(name, []).append((scalars_of(event, progress)[0], value))
    return {name: sorted(values) for name, values in found.items()}


def of_mlflow(run, folder):
    from mlflow import MlflowClient

    client = MlflowClient()
    (found,) = client.search_runs([client.get_experiment_by_name("flowers").experiment_id])
    assert (
        found.info.run_name == run.name and found.data.params["model.widths"] == "[16, 16]" and found.info.status == "FINISHED"
    )
    return {
        name: [(each.step, each.value) for each in client.get_metric_history(found.info.run_id, name)]
        for name in found.data.metrics
    }


def of_trackio(run, folder):
    from trackio.sqlite_storage import SQLiteStorage

    found = {}
    for row in SQLiteStorage.get_logs("alrpc", run.name):
        for name, value in row.items():
            found.setdefault(name, []).append((row["step"], value))
    return found


def of_wandb(run, folder):
    internal = importlib.import_module("wandb.proto.wandb_internal_pb2")
    (file,) = run.glob("wandb/offline-run-*/*.wandb")
    data, at, parts, found = file.read_bytes(), HEADER, b"", {}
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:
            at += BLOCK - at % BLOCK
        length, kind = struct.unpack("<HB", data[at + 4 : at + HEADER])
        parts += data[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (1, 4):  # whole, or the last part
            record, parts = internal.Record.FromString(parts), b""
            row = {(item.key or item.nested_key[0]): json.loads(item.value_json) for item in record.history.item}
            for name, value in row.items():
                found.setdefault(name, []).append((row["step"], value))
    return found


READ = {"wandb": of_wandb, "trackio": of_trackio, "mlflow": of_mlflow}


@pytest.mark.parametrize("name", READ)
def test_a_logger_has_what_the_metrics_have(tmp_path, monkeypatch, name):
    for package in (name, "psutil"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is missing")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "flowers")
    if name == "trackio":
        for module in ("utils", "sqlite_storage"):
            monkeypatch.setattr(importlib.import_module(f"trackio.{module}"), "TRACKIO_DIR", tmp_path / "trackio")
    fields = [f"observe.loggers=[{name}]", *SHORT]
    summary, run = run_sequentially(load_config(None, fields), "digits", tmp_path / "run", quiet=True)
    assert summary["checkpoint_failures"] == []
    expected, found = logged(run), READ[name](run, tmp_path)
    assert len(expected) == 6 and len(expected["accuracy/exit 1"]) == 2
    for scalar, values in expected.items():
        assert sorted(found[scalar]) == values, scalar
    assert found["works/stage 1"] and all(map(math.isfinite, (value for _, value in found["works/stage 1"])))


def test_a_logger_that_fails_or_hangs_is_told_once_and_ends_nothing(tmp_path, monkeypatch):
    released = threading.Event()

    def failing(directory, config):
        return contextlib.nullcontext(lambda step, scalars: (tmp_path / "gone").stat())

    @contextlib.contextmanager
    def hanging(directory, config):
        yield lambda step, scalars: released.wait()

    @contextlib.contextmanager
    def leaving(directory, config):
        raise SystemExit(3)
        yield

    for name, opened in (("wandb", failing), ("trackio", hanging), ("mlflow", leaving)):
        monkeypatch.setitem(loggers.OPEN, name, opened)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: name in loggers.OPEN or find(name, *rest))
    monkeypatch.setattr(loggers, "PATIENCE", 0.3)
    fields = ["observe.loggers=[wandb, trackio, mlflow]", *SHORT]
    summary, _ = run_sequentially(load_config(None, fields), "digits", tmp_path / "run", quiet=True)
    released.set()
    without, _ = run_sequentially(load_config(None, SHORT), "digits", tmp_path / "without", quiet=True)
    assert summary["parameters_sha256"] == without["parameters_sha256"] and without["checkpoint_failures"] == []
    from_mlflow, from_trackio, from_wandb = sorted(summary["checkpoint_failures"])
    assert from_mlflow.startswith("mlflow takes no scalars: ") and from_mlflow.endswith("called sys.exit(3)")
    assert from_trackio == "trackio has not taken all that was logged within 0.3 s"
    assert from_wandb == f"wandb takes no scalars: {tmp_path / 'gone'}: No such file or directory"
