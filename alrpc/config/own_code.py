"""The user's own code, named as package.module:function: found without importing it, and imported."""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import pkgutil
import symtable
import sys
import tokenize
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

from alrpc.errors import UsageError, UserError, error_line, exit_call

MOVED = {"alrpc.bench.tokens": "alrpc.data.synthetic_text"}  # modules under the names that configurations of 0.1 use
DYNAMIC = ("import *", "__getattr__", "globals(", "vars(", "exec(", "setattr(", "sys.modules")
"""What a module contains that may have names which its text does not show."""


def import_function(name: str, field: str) -> Callable:
    """Import `package.module:function`; modules in the working directory are found as well.

    Raises:
        UsageError: naming the configuration field and what could not be imported.
    """
    module_name, attribute = _split(name)
    try:
        function = getattr(importlib.import_module(module_name), attribute)
    except ModuleNotFoundError as error:
        raise _no_module(name, field, error.name) from error
    except AttributeError as error:
        raise UsageError(f"{field}: {name}: module {module_name!r} has no {attribute!r}") from error
    except SystemExit as error:
        raise UsageError(f"{field}: importing {module_name} called {exit_call(error)}") from error
    except Exception as error:
        raise UsageError(f"{field}: importing {module_name} raised {type(error).__name__}: {error}") from error
    if not callable(function):
        raise UsageError(f"{field}: {name} is a {type(function).__name__}; it must be a function")
    return function


def call_own(function: Callable, name: str, field: str, *arguments: Any, **options: Any) -> Any:
    """Call a function of the user's own; raises UsageError, naming the configuration field, for what it raises, but UserErrors."""
    try:
        return function(*arguments, **options)
    except UserError:
        raise
    except SystemExit as error:
        raise UsageError(f"{field}: {name} called {exit_call(error)}") from error
    except Exception as error:
        raise UsageError(f"{field}: {name} raised {error_line(error)}") from error


def find_function(name: str, field: str) -> ast.FunctionDef | None:
    """Find `package.module:function` in the module's text, without importing the module (only the packages that it is in), so that
    a wrong name is told before anything slow is imported.

    Returns:
        The definition of the function; None if the text does not tell, and only an import can.

    Raises:
        UsageError: naming the configuration field and the module or function that does not exist.
    """
    module_name, attribute = _split(name)
    try:
        spec = importlib.util.find_spec(module_name)
    except ModuleNotFoundError as error:
        raise _no_module(name, field, error.name) from error
    except (Exception, SystemExit):  # the import itself, later, tells what is wrong
        return None
    if spec is None:
        raise _no_module(name, field, module_name)
    try:
        with tokenize.open(spec.origin) as file:
            text = file.read()
        tree, table = ast.parse(text), symtable.symtable(text, spec.origin, "exec")
    except (OSError, TypeError, ValueError, SyntaxError):  # compiled, without a file, or not Python
        return None
    names = [each.get_name() for each in table.get_symbols() if each.is_assigned() or each.is_imported()]
    if attribute not in names and not any(mark in text for mark in DYNAMIC):
        raise UsageError(f"{field}: {name}: module {module_name!r} has no {attribute!r}{did_you_mean(attribute, names)}")
    definitions = (each for each in tree.body if isinstance(each, ast.FunctionDef) and each.name == attribute)
    return next(definitions, None)


def describe_parameters(name: str) -> list[dict[str, Any]]:
    """Describe the parameters of a function of this package, given as `package.module:function`, by its text.

    Returns:
        For each parameter its name as `field`, its `default`, and its `meaning`, from the docstring.
    """
    function = find_function(name, name)
    _, _, arguments = ast.get_docstring(function).partition("Args:\n")
    meanings = dict(line.strip().partition(": ")[::2] for line in arguments.splitlines())
    defaults = map(ast.literal_eval, function.args.defaults)
    return [
        {"field": each.arg, "default": default, "meaning": meanings[each.arg]}
        for each, default in zip(function.args.args, defaults, strict=True)
    ]


def describe_module(name: str) -> str:
    """The first line of the docstring of a module of this package, given as `package.module:function`; imports no torch."""
    spec = importlib.util.find_spec(name.partition(":")[0])
    with tokenize.open(spec.origin) as file:
        return ast.get_docstring(ast.parse(file.read())).splitlines()[0]


def parameters(function: ast.FunctionDef) -> list[str] | None:
    """The names of a function's parameters; None if it takes any, or a decorator may have changed them."""
    given = function.args
    if given.kwarg is not None or any(ast.unparse(each) != "checked" for each in function.decorator_list):
        return None
    return [each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)]


def check_choice(option: str, given: object, known: Collection[str]) -> None:
    """Refuse, with a UsageError, the value of an option that is none of those known."""
    if given not in known:
        raise UsageError(f"{option}: got {given!r}{did_you_mean(str(given), known)}; use {', '.join(known)}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """For a message about a wrong name: " (did you mean …?)" with the nearest known one; "" if none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _split(name: str) -> tuple[str, str]:
    """The module, which is found in the working directory as well, and the function."""
    module_name, _, attribute = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    return MOVED.get(module_name, module_name), attribute


def _no_module(name: str, field: str, missing: str | None) -> UsageError:
    package, _, last = (missing or "").rpartition(".")
    folders = getattr(sys.modules.get(package), "__path__", None) if package else [str(Path.cwd())]
    near = did_you_mean(last, [module.name for module in pkgutil.iter_modules(folders)])
    return UsageError(f"{field}: {name}: no module named {missing!r} in the working directory or in Python's path{near}")
