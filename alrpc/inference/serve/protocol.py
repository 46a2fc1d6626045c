"""The Open Inference Protocol, version 2, over HTTP: what a run is to its clients, and what they ask and are answered, as tensors.

https://github.com/kserve/open-inference-protocol: tensors are JSON, in the order of rows; there is no binary extension.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy
from pydantic import BaseModel, Field, TypeAdapter

from alrpc import __version__
from alrpc.errors import UserError
from alrpc.inference.predict import rounded
from alrpc.inference.predictor import Answer, Predictor
from alrpc.inference.serve.plain import image_of
from alrpc.inference.sources import Example

DTYPES = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
}
"""numpy's type, by the protocol's."""
OF_TORCH = {dtype: name for name, dtype in DTYPES.items()} | {"bfloat16": "FP32"}
BYTES = "BYTES"
SINGLE = {"texts": "text", "images": "image"}
"""The name of the only input, by the kind of the run's preprocessing."""


class Tensor(BaseModel):
    """A tensor of a request."""

    name: str
    shape: Annotated[list[Annotated[int, Field(ge=0, lt=1 << 31)]], Field(min_length=1, max_length=32)]
    datatype: Literal["BYTES", "BOOL", "UINT8", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64"]
    data: list[Any]


class Named(BaseModel):
    """An output that is asked for."""

    name: str


class Parameters(BaseModel):
    """What alrpc takes besides the tensors."""

    top_k: Annotated[int, Field(ge=1)] = 1
    """How many classes to name."""


class Asked(BaseModel):
    """The body of a request."""

    id: str | None = None
    parameters: Parameters = Parameters()
    inputs: Annotated[list[Tensor], Field(min_length=1)]
    outputs: list[Named] | None = None


ASKED = TypeAdapter(Asked)


def server_metadata() -> dict[str, Any]:
    return {"name": "alrpc", "version": __version__, "extensions": []}


def model_metadata(name: str, predictor: Predictor) -> dict[str, Any]:
    """The inputs and outputs of a run, whose first dimension is that of the samples."""
    preprocessing = predictor.carried.preprocessing
    if single := SINGLE.get(preprocessing.kind):
        inputs = [{"name": single, "datatype": BYTES, "shape": [-1]}]
    else:
        inputs = [
            {"name": each, "datatype": OF_TORCH[dtype], "shape": [-1, *shape]}
            for each, (dtype, shape) in preprocessing.tensors.items()
        ]
    return {"name": name, "platform": "alrpc", "inputs": inputs, "outputs": _outputs_of(predictor)}


def _outputs_of(predictor: Predictor) -> list[dict[str, Any]]:
    values = [("label", BYTES, -1), ("probability", "FP32", -1)]
    if predictor.carried.classes is None:
        values = [("values", "FP32", predictor.target.width)]
    exit = {"name": "exit", "datatype": "INT64", "shape": [-1]}
    return [*({"name": name, "datatype": datatype, "shape": [-1, size]} for name, datatype, size in values), exit]


def examples_of(asked: Asked, predictor: Predictor) -> list[Example]:
    """The examples of a request.

    Raises:
        UserError: naming what does not fit the run: names, shapes, types, numbers of elements.
    """
    known = {output["name"] for output in _outputs_of(predictor)}
    for number, output in enumerate(asked.outputs or ()):
        if output.name not in known:
            raise UserError(f"outputs[{number}].name: got {output.name!r}; the model gives {', '.join(sorted(known))}")
    kind = predictor.carried.preprocessing.kind
    names = [SINGLE[kind]] if kind in SINGLE else list(predictor.carried.preprocessing.tensors)
    given = [tensor.name for tensor in asked.inputs]
    if sorted(given) != sorted(names):
        raise UserError(f"inputs: got {', '.join(given)}; the model takes {', '.join(names)}")
    counts = {tensor.shape[0] for tensor in asked.inputs}
    if len(counts) > 1 or 0 in counts:
        raise UserError(f"inputs: got {', '.join(map(str, sorted(counts)))} samples; give as many in each input, at least one")
    columns = {tensor.name: _column(number, tensor, kind) for number, tensor in enumerate(asked.inputs)}
    if kind in SINGLE:
        (column,) = columns.values()
        return [Example(f"{names[0]}[{row}]", lambda value=value: _single(value, kind)) for row, value in enumerate(column)]
    return [
        Example(f"sample {row}", lambda row=row: {name: column[row] for name, column in columns.items()})
        for row in range(counts.pop())
    ]


def _single(value: Any, kind: str) -> Any:
    return image_of(value) if kind == "images" and isinstance(value, str) else value


def _column(number: int, tensor: Tensor, kind: str) -> Sequence[Any]:
    """The samples of a tensor: strings, or an array, (N, ...)."""
    place, count = f"inputs[{number}]", math.prod(tensor.shape)
    if kind == ("arrays" if tensor.datatype == BYTES else "texts"):  # of images there are both
        raise UserError(
            f"{place}.datatype: got {tensor.datatype}; give {BYTES if kind == 'texts' else 'numbers, such as FP32'}"
        )
    try:
        array = numpy.asarray(tensor.data, dtype=object if tensor.datatype == BYTES else None)
    except ValueError as error:
        raise UserError(f"{place}.data: got lists of different lengths; give the elements in the order of rows") from error
    if array.size != count:
        raise UserError(f"{place}: shape {tensor.shape} has {count} elements; data has {array.size}")
    if tensor.datatype == BYTES:
        texts = array.reshape(-1).tolist()
        if count != tensor.shape[0] or not all(isinstance(each, str) for each in texts):
            raise UserError(f"{place}.data: got other things than a string for each sample; give shape [N] and N strings")
        return texts
    return _numbers(place, array, tensor).reshape(tensor.shape)


def _numbers(place: str, array: numpy.ndarray, tensor: Tensor) -> numpy.ndarray:
    if array.dtype.kind not in "biuf":
        raise UserError(f"{place}.data: got what is no array of numbers; give {tensor.datatype}")
    with numpy.errstate(all="ignore"):
        converted = array.astype(DTYPES[tensor.datatype])
    exact = converted.dtype.kind == "f" or numpy.array_equal(converted, array)
    if not exact or not numpy.isfinite(converted).all():
        raise UserError(f"{place}.data: has a number that {tensor.datatype} does not have; give {tensor.datatype}, all finite")
    return converted


def answered(asked: Asked, name: str, answers: Sequence[Answer]) -> dict[str, Any]:
    """The answer to a request: the outputs that it asks for, all of them if it names none."""
    count, wanted = len(answers), None if asked.outputs is None else {output.name for output in asked.outputs}
    if all(named := [answer.top or answer.labels for answer in answers]):
        rows = {
            "label": (BYTES, [[label for label, _ in each] for each in named]),
            "probability": ("FP32", [[rounded(share) for _, share in each] for each in named]),
        }
    else:
        rows = {"values": ("FP32", [[rounded(value) for value in answer.values] for answer in answers])}
    outputs = [
        {
            "name": output,
            "datatype": datatype,
            "shape": [count, len(values[0])],
            "data": [value for row in values for value in row],
        }
        for output, (datatype, values) in rows.items()
    ]
    outputs.append({"name": "exit", "datatype": "INT64", "shape": [count], "data": [answer.exit for answer in answers]})
    tree = {"model_name": name, "outputs": [output for output in outputs if wanted is None or output["name"] in wanted]}
    return tree if asked.id is None else {**tree, "id": asked.id}
