"""The graph of a network as ONNX, written by torch's exporter and run by onnxruntime."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from alrpc.errors import UsageError, UserError, error_line
from alrpc.inference.export.graph import tracing

MODEL = "model.onnx"
NEEDED = ("onnx", "onnxscript", "onnxruntime")


def check_onnx() -> None:
    """Refuse, with a UsageError, an environment without the extra `export`."""
    for package in NEEDED:
        if find_spec(package) is None:
            raise UsageError(f"--to: onnx needs the extra: pip install 'alrpc[export]' ({package} is missing)")


def write_onnx(
    directory: Path, program: ExportedProgram, names: Sequence[str], gives: Sequence[str], files: Mapping[str, str]
) -> None:
    """Write model.onnx.

    Args:
        names, gives: of the inputs and outputs.
        files: texts that become the model's metadata, by their names.

    Raises:
        UserError: for a graph of which there is no ONNX.
    """
    try:
        with tracing(), contextlib.redirect_stdout(io.StringIO()):
            exported = torch.onnx.export(program, dynamo=True, input_names=list(names), output_names=list(gives), verbose=False)
        for node in exported.model.graph.all_nodes():
            node.metadata_props.clear()  # names of this package's classes, and paths of this machine
        exported.model.metadata_props.update(files)
        exported.save(directory / MODEL)
    except OSError:
        raise
    except Exception as error:  # of the exporter, for an operation that ONNX has not
        raise UserError(f"the network cannot be exported to ONNX: {error_line(error)}; use --to pt2") from error


def answers_of_onnx(directory: Path, batches: Sequence[Sequence[Tensor]]) -> list[list[Tensor]]:
    """What onnxruntime answers to micro-batches, on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(directory / MODEL, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    return [
        [
            torch.from_numpy(output)
            for output in session.run(None, dict(zip(names, (tensor.numpy() for tensor in batch), strict=True)))
        ]
        for batch in batches
    ]
