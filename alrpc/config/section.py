"""The base of the configuration's sections, and the types of fields that several of them have."""

from __future__ import annotations

from typing import Any

from pydantic import AfterValidator, BaseModel, ConfigDict, WithJsonSchema
from pydantic_core import PydanticCustomError

from alrpc.config.own_code import did_you_mean


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


def name_or_own(*names: str) -> tuple[Any, ...]:
    """The annotations of a field that is one of some names, or `package.module:function` for the user's own."""
    listed = f"{', '.join(map(repr, names[:-1]))} or {names[-1]!r}"

    def check(value: str) -> str:
        if value not in names and not all(value.partition(":")):
            right = f"it should be {listed}{did_you_mean(value, names)}, or package.module:function for your own"
            raise PydanticCustomError("name", "{right}", {"right": right})
        return value

    return AfterValidator(check), WithJsonSchema({"type": "string", "enum": [*names, "package.module:function"]})
