"""Models. A model is a function that builds a list of blocks; its keyword arguments are the fields of the YAML's `model` section."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import pydantic
import torch
from torch import nn

from alrpc.config import complaint, import_function
from alrpc.errors import UserError
from alrpc.models import lstm, mlp, resnet, transformer, vgg
from alrpc.system import derive_seed

MODELS = {
    "mlp": mlp.build,
    "vgg": vgg.build,
    "resnet": resnet.build,
    "lstm": lstm.build,
    "transformer": transformer.build,
}

# The thesis' settings for vision and for text, as fields of the configuration's section `objective`.
VISION = {
    "target_width": 700,
    "bridge_widths": [1000],
    "activation": "sigmoid",
    "decoder_activation": "sigmoid",
    "pooling": "flatten",
}
TEXT = {"target_width": 128, "bridge_widths": [], "activation": "tanh", "pooling": "mean", "autoencoder_loss": "cross_entropy"}
OBJECTIVES: dict[str, dict[str, Any]] = {"vgg": VISION, "resnet": VISION, "lstm": TEXT, "transformer": TEXT}

PARTS = ("blocks", "bridges", "encoders", "decoders", "pools")


def resolve_fields(name: str, fields: dict[str, Any]) -> dict[str, Any]:
    """The model's fields, completed with its defaults.

    Raises:
        UserError: for an unknown model, or a field that its function does not accept.
    """
    parameters = inspect.signature(_find(name)).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        known = None
    else:
        known = [parameter.name for parameter in parameters]
    for field in fields:
        if known is not None and field not in known:
            raise UserError(f"model.{field}: unknown field; model {name} has {', '.join(known) or 'none'}")
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in {**defaults, **fields}.items()}


def build_parts(
    name: str, fields: dict[str, Any], seed: int
) -> tuple[dict[str, Sequence[nn.Module | None]], Callable[[int], nn.Module] | None]:
    """Build the parts of a network: lists of modules, as arguments of `alrpc.associate`, and the head for back-propagation.

    Parameters are drawn from torch's global generator, which is left seeded for the modules that are built next.

    Args:
        name: a model of this package, or `package.module:function` for the user's own. The function is called with the
            model's fields. It returns a list of blocks, or a dict of `blocks` and, where the defaults do not fit,
            `bridges`, `encoders`, `decoders`, `pools` (also lists) and `head`, a function that takes the width of the output
            and returns the module that back-propagation appends to the last block.

    Raises:
        UserError: naming the field that the model refuses, or the exception that its function raised.
    """
    function = _find(name)
    torch.default_generator.manual_seed(derive_seed(seed, "parameters"))
    try:
        parts = pydantic.validate_call(function)(**fields)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise UserError(f"model.{field}: {complaint(first)}") from error
    except UserError:
        raise
    except Exception as error:
        if name in MODELS:
            raise
        raise UserError(f"model.name: {name} raised {type(error).__name__}: {error}") from error
    parts = dict(parts) if isinstance(parts, dict) else {"blocks": parts}
    head = parts.pop("head", None)
    unknown = set(parts) - set(PARTS)
    if unknown or not isinstance(parts.get("blocks"), (list, tuple, nn.ModuleList, nn.Sequential)):
        raise UserError(
            f"model.name: {name} returned {type(parts.get('blocks')).__name__} as blocks"
            f"{f' and unknown {sorted(unknown)}' if unknown else ''}; "
            f"it must return a list of modules, or a dict of {', '.join(PARTS)} and head"
        )
    parts = {key: list(modules) for key, modules in parts.items()}
    others = [type(block).__name__ for block in parts["blocks"] if not isinstance(block, nn.Module)]
    if others or not parts["blocks"]:
        given = f"a {others[0]} among its blocks" if others else "no block"
        raise UserError(f"model.name: {name} returned {given}; it must return at least one block, each an nn.Module")
    return parts, head


def _find(name: str):
    if ":" in name:
        return import_function(name, "model.name")
    if name not in MODELS:
        raise UserError(f"model.name: unknown model {name!r}; use {', '.join(MODELS)}, or package.module:function for your own")
    return MODELS[name]
