"""config.json of an export: what its network takes and gives, and the run that it is from."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from alrpc import __version__, rundir
from alrpc.inference.export.check import Shapes
from alrpc.inference.export.graph import Exits
from alrpc.inference.predictor import Predictor


def describe(predictor: Predictor, exits: Exits, inputs: Shapes, exit: int | None, form: str) -> dict[str, Any]:
    """The contents of config.json; sizes that are free are null."""
    answers = ([None] if exit else [None, len(predictor.components)]) + [predictor.target.width]
    preprocessing = asdict(predictor.carried.preprocessing)
    preprocessing.pop("tokenizer", None)  # a file of its own
    return {
        "alrpc": __version__,
        "torch": torch.__version__,
        "format": form,
        "run": rundir.run_name(predictor.directory),
        "step": predictor.manifest["step"],
        "run_parameters_sha256": predictor.digest(),
        "model": predictor.config.model.name,
        "objective": predictor.config.objective.name,
        "data": predictor.config.data.name,
        "exit": exit or "all",
        "exits": len(predictor.components),
        "parameters": sum(parameter.numel() for parameter in exits.parameters()),
        "inputs": {name: {"dtype": dtype, "shape": shape} for name, dtype, shape in inputs},
        "outputs": {name: {"dtype": "float32", "shape": answers} for name in exits.gives},
        "labels": predictor.carried.classes,
        "preprocessing": preprocessing,
    }
