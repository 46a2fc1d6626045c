"""What TensorBoard finds of a run."""

import importlib.util

import pytest

import alrpc
from alrpc.runtime.run import run_sequentially
from alrpc.telemetry.loggers import FOLDER

FIELDS = ["observe.tensorboard=true", "train.epochs=4", "train.log_every=10"]


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
    with pytest.raises(alrpc.UserError, match=r"observe\.tensorboard: needs the extra: pip install 'alrpc\[tensorboard\]'"):
        run_sequentially(alrpc.load_config(None, FIELDS), "digits", tmp_path / "run")
    assert not (tmp_path / "run").exists()
