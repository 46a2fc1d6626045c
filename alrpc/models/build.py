"""The blocks of a configured model: its function is called with the fields of the section `model`, and its result checked."""

from __future__ import annotations

import functools
import inspect
import pkgutil
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from alrpc.config import Config, Model
from alrpc.config.own_code import import_function
from alrpc.errors import UsageError, UserError, error_line, exit_call
from alrpc.models import BUILDERS, MODELS, check_fields, check_name, checked, own_fields
from alrpc.models.parts import Parts
from alrpc.system import derive_seed

FUNCTIONS = {name: pkgutil.resolve_name(function) for name, function in MODELS.items()}
PARTS = ("blocks", "bridges", "encoders", "decoders", "heads", "pools")


def resolve_model(config: Config) -> dict[str, Any]:
    """The section `model`, completed with the defaults of the model's function.

    Raises:
        UsageError: for an unknown model, or a field that its function does not accept.
    """
    model = config.model
    name, given = model.name, arguments(model)
    if model.library == "hf":
        from alrpc.models.hf import from_directory

        name, given = from_directory(name, given)
        given = given if "vocab_size" in given else {**given, "vocab_size": config.data.vocabulary}
    fields = resolve_fields(name, given)
    if "vocabulary" in fields and "vocabulary" not in given:
        fields["vocabulary"] = config.data.vocabulary
    return {**model.model_dump(include=set(Model.model_fields) - own_fields(model)), "name": name, **fields}


def arguments(model: Model) -> dict[str, Any]:
    """The arguments of a model's function: the section's other fields, and those of every model that are the function's own."""
    return {**model.fields, **model.model_dump(include=own_fields(model) & model.model_fields_set)}


def resolve_fields(name: str, fields: dict[str, Any]) -> dict[str, Any]:
    """The model's fields, completed with its defaults.

    Raises:
        UsageError: for an unknown model, or a field that its function does not accept.
    """
    if Model(name=name).library is not None:
        return dict(fields)
    parameters = inspect.signature(find_model(name)).parameters.values()
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    check_fields(name, fields, None if takes_any else [parameter.name for parameter in parameters])
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in {**defaults, **fields}.items()}


def build_parts(model: Model, seed: int, sample: dict[str, Tensor] | None = None) -> Parts:
    """Build the parts of a network.

    Parameters are drawn from torch's global generator, which is left seeded for the modules that are built next.

    Args:
        model: names a model of this package or of a library, or `package.module:function` for the user's own. The function is
            called with the model's fields. It returns a list of blocks, or a dict of `blocks` and, where the defaults do not fit,
            `bridges`, `encoders`, `decoders`, `heads`, `pools` (also lists, for the objectives that have them) and `head`, a
            function that takes the width of the output and returns the module that back-propagation appends to the last block.
        sample: a micro-batch, by which a library's network is cut into blocks of similar cost; None for their number alone.

    Raises:
        UsageError: naming the field that the model refuses, or the exception that its function raised.
    """
    name, fields = model.name, arguments(model)
    function = find_model(name)
    if model.library is not None:
        function = functools.partial(function, (sample or {}).get("x"))
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
    return parts if isinstance(parts, Parts) else check_parts(name, parts)


def check_parts(name: str, given: object) -> Parts:
    """The parts that a model's function has returned; refuses, with a UsageError, what is none."""
    parts = dict(given) if isinstance(given, dict) else {"blocks": given}
    head = parts.pop("head", None)
    unknown = set(parts) - set(PARTS)
    if unknown or not isinstance(parts.get("blocks"), (list, tuple, nn.ModuleList, nn.Sequential)):
        raise UsageError(
            f"model.name: {name} returned {type(parts.get('blocks')).__name__} as blocks"
            f"{f' and unknown {sorted(unknown)}' if unknown else ''}; "
            f"it must return a list of modules, or a dict of {', '.join(PARTS)} and head"
        )
    own = {key: list(modules) for key, modules in parts.items()}
    blocks = own.pop("blocks")
    others = [type(block).__name__ for block in blocks if not isinstance(block, nn.Module)]
    if others or not blocks:
        found = f"a {others[0]} among its blocks" if others else "no block"
        raise UsageError(f"model.name: {name} returned {found}; it must return at least one block, each an nn.Module")
    return Parts(blocks, own, head)


def find_model(name: str) -> Callable:
    """The function of a model, or the user's own, which refuses what does not fit; raises UsageError for an unknown name."""
    check_name(name)
    library = Model(name=name).library
    if library is not None:
        return functools.partial(checked(pkgutil.resolve_name(BUILDERS[library])), name)
    if name in FUNCTIONS:
        return FUNCTIONS[name]
    return checked(import_function(name, "model.name"))
