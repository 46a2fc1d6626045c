"""The model card of an export, README.md: what the network is, how good it is, and how it was trained, from its run.

Its header is that of Hugging Face's model cards: https://huggingface.co/docs/hub/model-cards
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

import yaml

from alrpc import rundir
from alrpc.analysis.contents import SUMMARY
from alrpc.analysis.scores import with_interval
from alrpc.config import to_yaml
from alrpc.inference.export.hub import TAGS
from alrpc.inference.predictor import Predictor
from alrpc.reading.documents import read_json
from alrpc.reading.regular import Absent

TASKS = {"images": "image-classification", "texts": "text-classification"}  # Hugging Face's names
LOADED = {
    "safetensors": """```python
from safetensors.torch import load_file
tensors = load_file("model.safetensors")
```""",
    "torch": """```python
import sys; sys.path.insert(0, DIRECTORY)
from model import Network
{outputs} = Network.from_pretrained(DIRECTORY)({inputs})
```""",
    "pt2": """```python
import torch
{outputs} = torch.export.load("model.pt2").module()({inputs})
```""",
    "onnx": """```python
import onnxruntime
{outputs} = onnxruntime.InferenceSession("model.onnx").run(None, {{{arrays}}})
```""",
}


def model_card(predictor: Predictor, described: Mapping[str, Any], is_calibrated: bool) -> str:
    """The text of README.md.

    Args:
        described: config.json.
        is_calibrated: whether calibration.json is beside it.

    Raises:
        UserError: when the run's summary is damaged.
    """
    summary, name = _summary(predictor), described["run"]
    scores = _scores(predictor, summary)
    task = TASKS.get(predictor.carried.preprocessing.kind) if described["labels"] else None
    task_of_data = {"type": task or "other"}, {"type": described["data"], "name": described["data"]}
    header: dict[str, Any] = {
        "library_name": "onnx" if described["format"] == "onnx" else "pytorch",
        **({"pipeline_tag": task} if task else {}),
        "tags": [
            *("alrpc", described["objective"], described["model"], described["format"]),
            *(TAGS if described["format"] == "torch" else ()),
        ],
        "metrics": [predictor.target.metric],
    }
    if scores:
        metrics = [
            {"type": predictor.target.metric, "value": score, "name": f"exit {number}"}
            for number, score in enumerate(scores, 1)
        ]
        header["model-index"] = [
            {"name": name, "results": [{"task": task_of_data[0], "dataset": task_of_data[1], "metrics": metrics}]}
        ]
    parts = [
        f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---",
        f"# {name}",
        _about(predictor, described),
        "## Use",
        _use(described),
        "## How good it is",
        _quality(predictor, scores, summary),
        "## How it was trained",
        _training(predictor, summary),
        "## Limits",
        _limits(predictor, described, is_calibrated),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _summary(predictor: Predictor) -> Mapping[str, Any]:
    """The run's summary; empty for a run that has not ended."""
    try:
        return read_json(predictor.directory / rundir.SUMMARY, SUMMARY)
    except Absent:
        return {}


def _scores(predictor: Predictor, summary: Mapping[str, Any]) -> list[float]:
    """The score of each exit on the test split, if it was measured at the step of the checkpoint."""
    epoch = summary.get("tested_epoch", summary.get("epochs"))
    is_of_step = summary and predictor.manifest["step"] == epoch * predictor.manifest["micro_batches"]
    return list(summary["exits"]) if is_of_step else []


def _about(predictor: Predictor, described: Mapping[str, Any]) -> str:
    which = (
        f"All {described['exits']} exits" if described["exit"] == "all" else f"Exit {described['exit']} of {described['exits']}"
    )
    kinds = f"{predictor.target.width} {predictor.target.kind}"
    return (
        f"{which} of the network {described['model']}, cut into {described['exits']} components, which learned {kinds} from the data "
        f"set {described['data']} by the objective {described['objective']}, with alrpc {described['alrpc']}. It has "
        f"{described['parameters']:,} parameters. They are of step {described['step']:,}; the SHA-256 of all parameters of the run is "
        f"then {described['run_parameters_sha256']}."
    )


def _use(described: Mapping[str, Any]) -> str:
    inputs, outputs = ", ".join(described["inputs"]), ", ".join(described["outputs"])
    arrays = ", ".join(f'"{name}": {name}' for name in described["inputs"])
    loaded = LOADED[described["format"]].format(inputs=inputs, outputs=outputs, arrays=arrays)
    shapes = "\n".join(
        f"| {name} | {each['dtype']} | ({', '.join('any' if size is None else str(size) for size in each['shape'])}) |"
        for name, each in (*described["inputs"].items(), *described["outputs"].items())
    )
    return (
        f"{loaded}\n\n| | type | shape |\n|---|---|---|\n{shapes}\n\n"
        "The preprocessing is not in the network; config.json describes it under `preprocessing`, and has the names of the classes, "
        "or labels, under `labels`. examples.safetensors, where it is there, has random inputs and what the network answered to them before the export."
    )


def _quality(predictor: Predictor, scores: list[float], summary: Mapping[str, Any]) -> str:
    metric = predictor.target.metric
    if not scores:
        return "It was not measured on the test split at this step."
    samples = summary.get("test_samples")
    rows = "\n".join(f"| {number} | {with_interval(metric, score, samples)} |" for number, score in enumerate(scores, 1))
    of = f"{samples:,} samples" if samples else "the samples"
    return f"On {of} of the test split of {predictor.config.data.name}:\n\n| exit | {metric} |\n|---|---|\n{rows}"


def _training(predictor: Predictor, summary: Mapping[str, Any]) -> str:
    command = f"```sh\n{shlex.join(summary['command'])}\n```\n\n" if summary.get("command") else ""
    seed = predictor.config.train.seed
    return f"{command}Seed {seed}. The whole configuration, which `alrpc train --config FILE` takes:\n\n```yaml\n{to_yaml(predictor.config)}```"


def _limits(predictor: Predictor, described: Mapping[str, Any], is_calibrated: bool) -> str:
    probabilities = ""
    if described["labels"] is not None:
        calibrated = (
            "calibrated ones are softmax(scores / temperature), by the temperature of each exit in calibration.json"
            if is_calibrated
            else "no exit was calibrated"
        )
        probabilities = f" The probabilities rank the {predictor.target.kind}, and are no frequencies: {calibrated}."
    return (
        f"It knows only what is in {described['data']}, and answers whatever it is given with one of its answers.{probabilities} "
        "It computes in float32, whatever the precision of the training."
    )
