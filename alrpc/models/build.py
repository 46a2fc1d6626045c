"""The blocks of a configured model: its function is called with the fields of the section `model`, and its result checked."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from alrpc.config.own_code import import_function
from alrpc.errors import UsageError, UserError, error_line, exit_call
from alrpc.models import MODELS, check_fields, check_name, checked
from alrpc.system import derive_seed

FUNCTIONS = {name: pkgutil.resolve_name(function) for name, function in MODELS.items()}
PARTS = ("blocks", "bridges", "encoders", "decoders", "heads", "pools")


def resolve_fields(name: str, fields: dict[str, Any]) -> dict[str, Any]:
    """The model's fields, completed with its defaults.

    Raises:
        UsageError: for an unknown model, or a field that its function does not accept.
    """
    parameters = inspect.signature(find_model(name)).parameters.values()
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    check_fields(name, fields, None if takes_any else [parameter.name for parameter in parameters])
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
            `bridges`, `encoders`, `decoders`, `heads`, `pools` (also lists, for the objectives that have them) and `head`, a function that takes the width of the output
            and returns the module that back-propagation appends to the last block.

    Raises:
        UsageError: naming the field that the model refuses, or the exception that its function raised.
    """
    function = find_model(name)
    torch.default_generator.manual_seed(derive_seed(seed, "parameters"))
    try:
        parts = function(**fields)
    except UserError:
        raise
    except SystemExit as error:
        raise UsageError(f"model.name: {name} called {exit_call(error)}") from error
    except Exception as error:
        if name in FUNCTIONS and not isinstance(error, RuntimeError | MemoryError):  # these two are for want of memory
            raise
        raise UsageError(f"model.name: {name} raised {error_line(error)}") from error
    parts = dict(parts) if isinstance(parts, dict) else {"blocks": parts}
    head = parts.pop("head", None)
    unknown = set(parts) - set(PARTS)
    if unknown or not isinstance(parts.get("blocks"), (list, tuple, nn.ModuleList, nn.Sequential)):
        raise UsageError(
            f"model.name: {name} returned {type(parts.get('blocks')).__name__} as blocks"
            f"{f' and unknown {sorted(unknown)}' if unknown else ''}; "
            f"it must return a list of modules, or a dict of {', '.join(PARTS)} and head"
        )
    parts = {key: list(modules) for key, modules in parts.items()}
    others = [type(block).__name__ for block in parts["blocks"] if not isinstance(block, nn.Module)]
    if others or not parts["blocks"]:
        given = f"a {others[0]} among its blocks" if others else "no block"
        raise UsageError(f"model.name: {name} returned {given}; it must return at least one block, each an nn.Module")
    return parts, head


def find_model(name: str) -> Callable:
    """The function of a model, or the user's own, which refuses what does not fit; raises UsageError for an unknown name."""
    check_name(name)
    return FUNCTIONS[name] if name in FUNCTIONS else checked(import_function(name, "model.name"))
