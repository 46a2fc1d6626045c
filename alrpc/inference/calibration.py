"""calibration.json in a run's directory: what held-out samples told about each exit, and which choices of early exits there are."""

from __future__ import annotations

from pathlib import Path

from alrpc import rundir
from alrpc.analysis.contents import CALIBRATION, Calibration, EarlyExits
from alrpc.errors import UsageError, UserError
from alrpc.network import Network
from alrpc.reading.documents import read_json
from alrpc.reading.regular import Absent


def read_calibration(run: Path, network: Network, step: int) -> Calibration:
    """Read the calibration of a run's network.

    Args:
        network: the network of the run's checkpoint of `step`.

    Raises:
        UsageError: when the run is not calibrated.
        UserError: when the file is damaged, or belongs to another checkpoint.
    """
    path = run / rundir.CALIBRATION
    try:
        calibration = read_json(path, CALIBRATION)
    except Absent as error:
        raise UsageError(
            f"{run}: its exits are not calibrated: it has no {path.name}; alrpc calibrate {run} makes it"
        ) from error
    if calibration["step"] != step or calibration["parameters_sha256"] != network.digest():
        other = f"step {calibration['step']:,}" if calibration["step"] != step else "other parameters"
        raise UserError(
            f"{path}: is of a checkpoint of {other}, but the one that is loaded is of step {step:,}; calibrate again: "
            f"alrpc calibrate {run} --step {step}"
        )
    if len(calibration["exits"]) != len(network.components):
        raise UserError(f"{path}: has {len(calibration['exits'])} exits, but the network {len(network.components)}")
    return calibration


def write_calibration(run: Path, calibration: Calibration) -> None:
    """Write the file; an older one stays until the new one is complete. Raises UserError when it cannot be written."""
    try:
        rundir.write_json(run / rundir.CALIBRATION, calibration)
    except OSError as error:
        raise UserError(f"{run / rundir.CALIBRATION}: cannot be written: {error.strerror}") from error


def choose(
    choices: list[EarlyExits], full_accuracy: float, target_accuracy: float | None = None, budget: float | None = None
) -> EarlyExits:
    """The choice of early exits that held-out samples recommend.

    Args:
        choices: as in calibration.json, the cheapest first, the last one the best.
        full_accuracy: the accuracy of the full path on the held-out samples.
        target_accuracy: the cheapest one is chosen with at least so much of the full path's accuracy; or the best one, if all have
            less.
        budget: or the best one that computes at most this share of the full path's operations.

    Raises:
        UsageError: when all compute more than the budget.
    """
    if budget is None:
        wanted = (target_accuracy or 0) * full_accuracy
        return next((choice for choice in choices if choice["accuracy"] >= wanted), choices[-1])
    affordable = [choice for choice in choices if choice["compute"] <= budget]
    if not affordable:
        raise UsageError(f"--budget: got {budget:g}, but the cheapest choice of exits computes {choices[0]['compute']:.3f}")
    return affordable[-1]


def chosen(calibration: Calibration, target_accuracy: float | None = None, budget: float | None = None) -> EarlyExits:
    """The choice for what is asked for, or, if it is nothing, for what the calibration was made for; raises as `choose`."""
    if target_accuracy is None and budget is None:
        target_accuracy, budget = calibration["target_accuracy"], calibration["budget"]
    return choose(calibration["choices"], calibration["exits"][-1]["accuracy"], target_accuracy, budget)
