"""A small run, a comparison, a measured quality and a calibration, to be damaged."""

import json
import shutil
from pathlib import Path

import pytest

import alrpc
from alrpc.analysis.comparison.summary import read_run, summarise
from alrpc.analysis.quality import inspect_run, write_quality
from alrpc.inference.calibrate import calibrate
from alrpc.inference.calibration import write_calibration
from alrpc.runtime.run import run_sequentially

FIELDS = ("train.epochs=2", "train.log_every=5", "model.widths=[16, 16]", "checkpoint.every=40", "checkpoint.keep=9")


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs whose quality is measured, whose exits are calibrated, and which was restarted once."""
    run = tmp_path_factory.mktemp("whole") / "run"
    run_sequentially(alrpc.load_config(None, FIELDS), "run", run, quiet=True)
    write_quality(run, inspect_run(run, 30))
    predictor = alrpc.load_run(run)
    write_calibration(run, calibrate(predictor, predictor.config, "test", target_accuracy=0.99))
    (run / "logs").mkdir()
    (run / "logs" / "restarts.jsonl").write_text('{"cause": "stage 1 failed", "step": 40, "repeated_steps": 2}\n')
    return run


@pytest.fixture(scope="session")
def compared(whole: Path) -> Path:
    """A comparison of two methods."""
    folder, runs = whole.parent / "compared", []
    for number, method in enumerate(("al-sequential", "bp"), 1):
        shutil.copytree(whole, folder / f"{method}-1")
        runs.append({**read_run(folder / f"{method}-1", method, 1, 0), "chosen": {"threads": number, "device": "cpu"}})
    result = {
        **{"alrpc": "0.2", "torch": "2", "machine": {"host": "here", "cores": 2, "processor": "x"}, "stages": 2, "repeat": 1},
        **{"config": alrpc.load_config(None).model_dump(mode="json"), "metric": "accuracy", "goal": 0.5, "runs": runs},
        **{"table": [summarise([run], 0.5, runs[1:]) for run in runs], "failures": []},
    }
    (folder / "comparison.json").write_text(json.dumps(result))
    return folder


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A copy of the run."""
    return Path(shutil.copytree(whole, tmp_path / "run"))


@pytest.fixture
def comparison(compared: Path, tmp_path: Path) -> Path:
    """A copy of the comparison."""
    return Path(shutil.copytree(compared, tmp_path / "compared"))
