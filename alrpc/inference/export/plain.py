"""The graph of a network as Python: a plain `nn.Module` in a file of its own, which needs torch and safetensors alone."""

from __future__ import annotations

import operator
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from string import Template

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Graph, GraphModule
from torch.fx.graph import CodeGen

from alrpc.errors import UserError

MODEL, PARAMETERS = "model.py", "model.safetensors"
KNOWN = {"torch": "", "device": "", "inf": "from math import inf\n", "nan": "from math import nan\n"}
"""The global names that the code of a graph may use, and what imports them."""
CPU = "device(type='cpu')"  # as it is in the code of a graph
MODULE = Template('''"""$title

It needs torch and safetensors alone:

    network = Network.from_pretrained(DIRECTORY)
    $outputs = network($inputs)

config.json says what goes in and what comes out. The code is the graph of torch.export, in evaluation mode.
"""

${imports}from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

BUFFERS = [$buffers]


class Network(nn.Module):
    @classmethod
    def from_pretrained(cls, directory):
        """The network with the parameters of DIRECTORY/model.safetensors."""
        return cls(load_file(Path(directory) / "model.safetensors"))

    def __init__(self, tensors):
        super().__init__()
        for name, tensor in tensors.items():
            *path, last = name.split(".")
            owner, tensor = self, tensor.clone()  # safetensors maps the file, which may be written anew
            for step in path:
                if step not in owner._modules:
                    owner.add_module(step, nn.Module())
                owner = owner._modules[step]
            if name in BUFFERS:
                owner.register_buffer(last, tensor)
            else:
                owner.register_parameter(last, nn.Parameter(tensor))

$forward
''')
RUN = """
import sys
sys.modules["alrpc"] = None  # so that its import fails
sys.path.insert(0, sys.argv[1])
import torch
from safetensors.torch import load_file, save_file
from model import Network
network, given = Network.from_pretrained(sys.argv[1]), load_file(sys.argv[2])
answers, number = {}, 0
with torch.no_grad():
    while f"{number}.0" in given:
        count = sum(name.startswith(f"{number}.") for name in given)
        outputs = network(*(given[f"{number}.{place}"] for place in range(count)))
        for place, output in enumerate(outputs if isinstance(outputs, tuple) else (outputs,)):
            answers[f"{number}.{place}"] = output.contiguous().clone()
        number += 1
save_file(answers, sys.argv[3])
"""
"""A process that answers tensors `BATCH.PLACE` of a file by those of another."""


def write_plain(directory: Path, program: ExportedProgram, names: Sequence[str], gives: Sequence[str], title: str) -> None:
    """Write model.py and model.safetensors.

    Args:
        names: of the inputs.
        gives: the names of the outputs.
        title: a line about the network.

    Raises:
        UserError: for a graph that is no plain Python.
    """
    module = program.module(check_guards=False)
    graph = module.graph
    graph.set_codegen(CodeGen())
    inputs = _name_inputs(graph, names)
    tensors = {node.target: _tensor(module, node.target) for node in graph.nodes if node.op == "get_attr" and node.users}
    for node in list(graph.nodes):
        if node.op == "get_attr" and not node.users:  # such as a count that batch norm keeps for training
            graph.erase_node(node)
        elif node.op == "get_attr":
            next(other for other in graph.nodes if other in node.users).prepend(node)  # beside the layer that it belongs to
        elif node.target is torch.ops.aten._assert_tensor_metadata.default:  # that it is on a CPU
            graph.erase_node(node)
        elif node.op == "output" and len(node.args[0]) == 1:
            node.args = (node.args[0][0],)
    code = graph.python_code("self")
    used = {name for name in code.globals if re.search(rf"\b{name}\b", code.src)}
    if strange := used - KNOWN.keys():
        raise UserError(f"the network cannot be exported as a plain module: its graph uses {sorted(strange)[0]}; use --to pt2")
    buffers = {*program.graph_signature.buffers} | {name for name, tensor in tensors.items() if not tensor.is_floating_point()}
    save_file({name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}, directory / PARAMETERS)
    text = MODULE.substitute(
        title=re.sub(r"[^\w .,-]", "?", title),  # it has the name of a directory, which must not become code
        outputs=", ".join(gives),
        inputs=", ".join(inputs),
        imports="".join(sorted(KNOWN[name] for name in used)),
        buffers=", ".join(repr(name) for name in sorted(buffers & tensors.keys())),
        forward=_indented(code.src, inputs[0]),
    )
    (directory / MODEL).write_text(text, encoding="utf-8")


def _name_inputs(graph: Graph, names: Sequence[str]) -> list[str]:
    """Give a graph's inputs these names, as far as Python allows; returns those that they have."""
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    for node, name in zip(inputs, names, strict=True):
        node._rename(name)
        node.target = node.name
    return [node.name for node in inputs]


def _tensor(module: GraphModule, path: str) -> Tensor:
    tensor = operator.attrgetter(path)(module)
    if not isinstance(tensor, Tensor):
        raise UserError(f"the network cannot be exported as a plain module: its graph has a graph within, {path}; use --to pt2")
    return tensor


def _indented(source: str, first_input: str) -> str:
    """The function `forward` of a graph as a method, on whichever device its inputs are."""
    lines = [line.rstrip() for line in source.strip().splitlines()]
    if any(CPU in line for line in lines):
        lines = [lines[0], f"    at = {first_input}.device", *(line.replace(CPU, "at") for line in lines[1:])]
    return "\n".join(f"    {line}" if line else "" for line in lines)


def answers_of_plain(directory: Path, batches: Sequence[Sequence[Tensor]]) -> list[list[Tensor]]:
    """What the module answers to micro-batches in a process of its own, in which alrpc cannot be imported.

    Raises:
        UserError: with the last line of the process, if it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        given, taken = Path(folder) / "given", Path(folder) / "taken"
        save_file(
            {
                f"{number}.{place}": tensor.contiguous().clone()
                for number, batch in enumerate(batches)
                for place, tensor in enumerate(batch)
            },
            given,
        )
        done = subprocess.run(
            [sys.executable, "-B", "-c", RUN, str(directory.absolute()), str(given), str(taken)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            cwd=folder,
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise UserError(f"the plain module cannot be run: {last}")
        answers = load_file(taken)
    return [
        [answers[f"{number}.{place}"] for place in range(sum(name.startswith(f"{number}.") for name in answers))]
        for number in range(len(batches))
    ]
