"""Models. A model is a function that builds a list of blocks; its keyword arguments are the fields of the YAML's `model` section.

This module never imports torch, so that a mistake in the name of a model or of its fields is told at once.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import pydantic

from alrpc.config import PYTHON, Model, complaint, parse_section
from alrpc.config.model import LIBRARIES
from alrpc.config.own_code import did_you_mean, find_function, import_function, parameters
from alrpc.errors import UsageError

P, T = ParamSpec("P"), TypeVar("T")
MODELS = {
    "mlp": "alrpc.models.mlp:build",
    "vgg": "alrpc.models.vgg:build",
    "resnet": "alrpc.models.resnet:build",
    "lstm": "alrpc.models.lstm:build",
    "transformer": "alrpc.models.transformer:build",
}

LIBRARY_MODELS = {
    "torchvision": "a network of torchvision.models, such as torchvision:resnet18, cut into model.components blocks",
    "timm": "a network of timm, such as timm:convnext_atto, cut into model.components blocks; extra timm",
    "hf": "a network of Hugging Face transformers by its type, such as hf:bert, or hf:./DIRECTORY with a config.json; extra transformers",
}
"""Each library of `alrpc.config.model.LIBRARIES`, and what its models are."""
PACKAGES = {"torchvision": "torchvision", "timm": "timm", "hf": "transformers"}  # what each library's models need
BUILDERS = {  # functions that build a network of a library, called with its name there
    "torchvision": "alrpc.models.library:build_traced",
    "timm": "alrpc.models.library:build_traced",
    "hf": "alrpc.models.hf:build",
}
DOWNLOADED = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "weights_backbone")
"""Arguments of the libraries' functions that have weights downloaded, or read from where they are not checked."""
COMMON = set(Model.model_fields) - {"name"}  # fields of every model, which no model's function is given

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


def check_model(model: Model) -> None:
    """Check the names in the configuration's section `model`, as far as is possible without importing the model.

    Raises:
        UsageError: for a model that does not exist, or a field that its function does not have.
    """
    check_name(model.name)
    if model.library is not None:
        check_library(model)
        return
    function = find_function(MODELS.get(model.name, model.name), "model.name")
    if function is not None:
        check_fields(model.name, model.fields, parameters(function))


def check_library(model: Model) -> None:
    """Refuse, with a UsageError, a library that is missing, and fields that would download weights."""
    package = PACKAGES[model.library]
    if importlib.util.find_spec(package) is None:
        raise UsageError(f"model.name: {model.name} needs the extra: pip install 'alrpc[{package}]' ({package} is missing)")
    for field in model.fields:
        if field in DOWNLOADED:
            raise UsageError(
                f"model.{field}: alrpc downloads no weights; give model.weights a file, and leave model.{field} out"
            )


def own_fields(model: Model) -> set[str]:
    """Those of COMMON that are parameters of the user's own function: they are passed on to it, and mean what it makes of them.

    The function is imported.
    """
    if not model.is_own:
        return set()
    return COMMON & set(inspect.signature(import_function(model.name, "model.name")).parameters)


def common_fields(model: Model) -> Model:
    """The fields of COMMON, the default in place of those that are the user's own function's; raises UsageError for a wrong one."""
    return parse_section("model", {field: getattr(model, field) for field in COMMON - own_fields(model)})


def check_weights(path: Path | None) -> None:
    """Refuse, with a UsageError, a file of weights that is not there; only a run that begins reads it."""
    if path is not None and not path.is_file():
        raise UsageError(f"model.weights: no file {path}; give one that exists, a .safetensors or a state dict of torch.save")


def check_name(name: str) -> None:
    """Refuse, with a UsageError, a name that is neither that of a model of this package nor `package.module:function`."""
    if name == PYTHON:
        raise UsageError(
            f"model.name: {PYTHON} is the network that alrpc.train was given, which only your own code can build; resume with "
            "alrpc.train(network, dataset, resume=DIR), load with alrpc.load_run(DIR, network=network)"
        )
    if ":" not in name and name not in MODELS:
        libraries = ", ".join(f"{library}:NAME" for library in LIBRARIES)
        raise UsageError(
            f"model.name: unknown model {name!r}{did_you_mean(name, MODELS)}; "
            f"use {', '.join(MODELS)}, {libraries}, or package.module:function for your own"
        )


def check_fields(name: str, fields: Iterable[str], known: list[str] | None) -> None:
    """Refuse, with a UsageError, a field of the section `model` that the model's function does not have.

    Args:
        known: names of the function's parameters; None if it takes any.
    """
    for field in fields:
        if known is not None and field not in known:
            near = did_you_mean(field, known)
            raise UsageError(f"model.{field}: unknown field{near}; model {name} has {', '.join(known) or 'none'}")


def checked(build: Callable[P, T]) -> Callable[P, T]:
    """A model's function that refuses, with a UsageError, an argument that does not fit its annotation."""

    @functools.wraps(build)
    def call(*arguments: P.args, **fields: P.kwargs) -> T:
        try:
            return pydantic.validate_call(build, config={"arbitrary_types_allowed": True})(*arguments, **fields)
        except pydantic.ValidationError as error:
            first, known = error.errors()[0], list(inspect.signature(build).parameters)
            field, *within = first["loc"]
            if first["type"] == "unexpected_keyword_argument":
                check_fields(build.__module__, [field], known)
            field = known[field] if isinstance(field, int) and field < len(known) else field
            raise UsageError(f"model.{'.'.join(map(str, (field, *within)))}: {complaint(first)}") from error

    return call
