"""One's own code, named in a configuration as package.module:function."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

from alrpc.errors import UserError


def import_function(name: str, field: str) -> Callable:
    """Import `package.module:function`; modules in the working directory are found too.

    Raises:
        UserError: naming the configuration's field and what could not be imported.
    """
    module_name, _, attribute = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        function = getattr(importlib.import_module(module_name), attribute)
    except ModuleNotFoundError as error:
        raise UserError(
            f"{field}: {name}: no module named {error.name!r} in the working directory or in Python's path"
        ) from error
    except AttributeError as error:
        raise UserError(f"{field}: {name}: module {module_name!r} has no {attribute!r}") from error
    except Exception as error:
        raise UserError(f"{field}: importing {module_name} raised {type(error).__name__}: {error}") from error
    if not callable(function):
        raise UserError(f"{field}: {name} is a {type(function).__name__}; it must be a function")
    return function
