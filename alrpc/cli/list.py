"""`alrpc list`."""

from __future__ import annotations

import itertools
import json

import click

from alrpc.cli.options import json_option, plain_endings


@click.command("list", short_help="List configurations, models, data sets, objectives, methods.")
@json_option
def list_names(as_json: bool) -> None:
    """List the names that the configuration and the options accept: each with what it is.

    \b
    configurations   for --config
    models           for --set model.name=NAME, and those of libraries, such as torchvision:resnet18
    data sets        for --set data.name=NAME
    objectives       what every component learns; its fields are those of the section objective
    methods          for `alrpc compare --methods`

    \b
    Examples:
        alrpc list
        alrpc list --json
    The fields of the configuration are listed by `alrpc config`.
    """
    with plain_endings():
        names = collect_names()
        if as_json:
            click.echo(json.dumps(names, indent=2, ensure_ascii=False))
            return
        width = max(len(name) for of_kind in names.values() for name in of_kind)
        for kind, of_kind in names.items():
            click.secho(f"{kind}", bold=True)
            for name, what in of_kind.items():
                click.echo(f"  {name:{width}}  {what}")
            click.echo()


def collect_names() -> dict[str, dict[str, str]]:
    """For each kind of name, what each name of this kind stands for. This imports no torch."""
    from alrpc.config import shipped_configs
    from alrpc.config.own_code import describe_module
    from alrpc.data.catalog import DATA
    from alrpc.experiments import METHODS
    from alrpc.models import LIBRARY_MODELS, MODELS
    from alrpc.objectives import OBJECTIVES

    return {
        "configurations": {name: first_sentence(path.read_text(encoding="utf-8")) for name, path in shipped_configs().items()},
        "models": {name: describe_module(function) for name, function in MODELS.items()},
        "models of libraries": {f"{library}:NAME": what for library, what in LIBRARY_MODELS.items()},
        "data sets": DATA,
        "objectives": {name: describe_module(objective) for name, objective in OBJECTIVES.items()},
        "methods": METHODS,
    }


def first_sentence(text: str) -> str:
    """The first sentence of the comment at the top of a YAML file."""
    comment = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
    sentence, _, _ = " ".join(line.removeprefix("#").strip() for line in comment).partition(". ")
    return f"{sentence.removesuffix('.')}."
