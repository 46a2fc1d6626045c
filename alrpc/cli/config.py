"""`alrpc config`."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from typing import Any

import click

from alrpc.cli.options import json_option, plain_endings
from alrpc.errors import UsageError

WIDTH = 110


@click.command(short_help="Explain the fields of the configuration.")
@click.argument("section", required=False)
@json_option
def config(section: str | None, as_json: bool) -> None:
    """Explain the fields of the configuration: the type, the default value and the meaning of each.

    SECTION is a section, such as train, or a single field, such as train.lr; without it all fields are shown. Each field can be
    written into a YAML file for --config, or given by --set. A run's directory holds its whole configuration as config.yaml,
    and --print-config prints it without a run.

    \b
    Examples:
        alrpc config
        alrpc config train
        alrpc config data.augmentation
        alrpc launch --set train.lr=1e-3 --print-config
    """
    with plain_endings():
        fields = choose(list(describe_fields()), section)
        if as_json:
            click.echo(json.dumps(fields, indent=2, ensure_ascii=False))
            return
        for field in fields:
            kind = ", ".join(
                [
                    *(f"of {owner} {field[owner]}" for owner in ("model", "objective") if owner in field),
                    *([field["type"]] if "type" in field else []),
                ]
            )
            click.secho(field["field"], bold=True, nl=False)
            click.echo(f": {kind}, default {json.dumps(field['default'], ensure_ascii=False)}")
            click.echo(textwrap.fill(field["meaning"], WIDTH, initial_indent="    ", subsequent_indent="    "))


def choose(fields: list[dict[str, Any]], section: str | None) -> list[dict[str, Any]]:
    """The fields of a section, or a single field; raises UsageError when there is none of this name."""
    from alrpc.config.own_code import did_you_mean

    if section is None:
        return fields
    chosen = [field for field in fields if field["field"] == section or field["field"].startswith(f"{section}.")]
    if not chosen:
        names = list(dict.fromkeys(field["field"].partition(".")[0] for field in fields))
        near = did_you_mean(section, [*names, *(field["field"] for field in fields)])
        raise UsageError(f"SECTION: got {section!r}{near}; give a field, or one of {', '.join(names)}")
    return chosen


def describe_fields() -> Iterator[dict[str, Any]]:
    """Describe each field of the configuration, and each argument of the models that ship; this imports no torch."""
    from alrpc.config import Config
    from alrpc.config.objectives import SECTIONS
    from alrpc.config.own_code import describe_parameters
    from alrpc.models import BUILDERS, MODELS

    schema = Config.model_json_schema()
    default = Config().model_dump(mode="json")
    for name, field in schema["properties"].items():
        if name == "objective":
            for objective, section in SECTIONS.items():
                for inner, of_section in section.model_json_schema()["properties"].items():
                    if inner != "name" or objective == default[name]["name"]:
                        described = describe(f"{name}.{inner}", of_section, of_section.get("default"))
                        yield described if inner == "name" else {**described, "objective": objective}
            continue
        if "$ref" not in field:
            yield describe(name, field, default[name])
            continue
        section = schema["$defs"][field["$ref"].rpartition("/")[2]]
        for inner, of_section in section["properties"].items():
            yield describe(f"{name}.{inner}", of_section, default[name][inner])
        if name == "model":
            libraries = {f"{library}:NAME": function for library, function in BUILDERS.items()}
            for model, function in {**MODELS, **libraries}.items():
                for parameter in describe_parameters(function):
                    yield {**parameter, "field": f"model.{parameter['field']}", "model": model}


def describe(name: str, schema: dict[str, Any], default: Any) -> dict[str, Any]:
    """Describe one field by its JSON schema."""
    meaning = " ".join(schema.get("description", "").split())
    return {"field": name, "type": describe_type(schema), "default": default, "meaning": meaning}


def describe_type(schema: dict[str, Any]) -> str:
    """The type of a JSON schema in words, such as "whole number > 0 or null"."""
    if "anyOf" in schema:
        return " or ".join(describe_type(each) for each in schema["anyOf"])
    if "enum" in schema:
        return " | ".join(schema["enum"])
    if "const" in schema:
        return schema["const"]
    if schema["type"] == "array":
        return f"list of {describe_type(schema['items'])}"
    if schema["type"] == "object":
        return f"{describe_type(schema['additionalProperties'])} by name"
    words = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true | false", "null": "null"}
    marks = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
    kind = "path" if schema.get("format") == "path" else words[schema["type"]]
    bounds = " and ".join(f"{mark} {schema[bound]}" for bound, mark in marks.items() if bound in schema)
    return f"{kind} {bounds}".strip()
