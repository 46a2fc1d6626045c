"""`POST /predict`: the examples of a body of plain JSON, or of a body that is an image or a text itself."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any

import numpy
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic_core import from_json
from starlette.exceptions import HTTPException

from alrpc.errors import UserError
from alrpc.inference.sources import Example
from alrpc.reading.documents import describe

JSON = "application/json"


class Body(BaseModel):
    """What is asked: one example, or several."""

    model_config = ConfigDict(extra="forbid")
    input: Any = None
    inputs: Annotated[list[Any], Field(min_length=1)] = []

    @model_validator(mode="after")
    def _check_one(self) -> Body:
        if len(self.model_fields_set) != 1:
            raise ValueError('give either "input", an example, or "inputs", a list of them')
        return self


BODY = TypeAdapter(Body)
TOP_K = TypeAdapter(Annotated[int, Field(ge=1)])


def examples_of(body: bytes, media_type: str, kind: str) -> tuple[list[Example], bool]:
    """The examples of a body, and whether the answer is a list of answers.

    Args:
        kind: that of the run's preprocessing: images, texts or arrays.

    Raises:
        HTTPException: for a media type that the run does not take.
        UserError: for a body that is not what its type says.
    """
    if media_type == JSON:
        asked = parse_json(body, BODY)
        if not asked.inputs:
            return [Example("input", lambda: raw_of(asked.input, kind))], False
        return [
            Example(f"inputs[{number}]", lambda given=given: raw_of(given, kind)) for number, given in enumerate(asked.inputs)
        ], True
    if kind == "images" and (media_type.startswith("image/") or media_type == "application/octet-stream"):
        return [Example("body", lambda: body)], False
    if kind == "texts" and media_type == "text/plain":
        return [Example("body", lambda: _decoded(body))], False
    own = {"images": ", or image/png and its kin for the file itself", "texts": ", or text/plain for the text itself"}
    raise HTTPException(415, f"Content-Type: got {media_type or 'none'}; give {JSON}{own.get(kind, '')}")


def parse_json(body: bytes, shape: TypeAdapter) -> Any:
    """The value of a body of JSON; raises UserError for one that is no JSON, or of another shape."""
    try:
        return shape.validate_python(from_json(body))
    except ValidationError as error:
        raise UserError(f"body: {describe(error)}") from error
    except ValueError as error:
        raise UserError(f"body: not JSON: {error}") from error


def raw_of(given: Any, kind: str) -> Any:
    """The raw example that a value of JSON stands for; an image is a string, its file in base64, or an array.

    Raises:
        UserError: for a string that is not base64, or an array of an image that is none.
    """
    if kind != "images":
        return given
    if isinstance(given, str):
        return image_of(given)
    try:
        array = numpy.asarray(given)
    except ValueError as error:
        raise UserError("got lists of different lengths; give an image: a file in base64, or an array") from error
    if array.dtype.kind in "iu" and array.size and array.min() >= 0 and array.max() <= 255:
        return array.astype(numpy.uint8)
    return array


def image_of(text: str) -> bytes:
    """The bytes of a file in base64, which may be a data URL; raises UserError for other text."""
    _, comma, encoded = text.partition("base64,")
    try:
        return base64.b64decode(encoded if comma else text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError(f"not base64: {error}; give an image's file in base64") from error


def _decoded(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise UserError("not UTF-8") from error
