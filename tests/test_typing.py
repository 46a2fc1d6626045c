"""Types: every public name has one that a type checker sees, although the package imports its modules only when they are used."""

import ast
import inspect
import re
import typing
from pathlib import Path

import pytest

import alrpc
from alrpc.config import Config, Data, Train
from alrpc.runtime.train import DATA, TOP, Fields

HERE = Path(__file__).parent
PACKAGE = Path(alrpc.__file__).parent


@pytest.fixture(scope="module")
def complaints(tmp_path_factory) -> list[tuple[str, int, str, str]]:
    """File, line, message and code of each of mypy's errors."""
    api = pytest.importorskip("mypy.api")
    with pytest.MonkeyPatch.context() as patch:
        if PACKAGE.parent.name != "site-packages":  # where mypy looks by itself, for packages with py.typed
            patch.setenv("MYPYPATH", str(PACKAGE.parent))
        files = [str(HERE / "typing" / name) for name in ("example.py", "wrong.py")]
        options = ["--config-file", str(HERE.parent / "setup.cfg"), "--cache-dir", str(tmp_path_factory.mktemp("cache"))]
        out, errors, _ = api.run([*options, *files])
    assert not errors
    found = re.findall(r"(\w+\.py):(\d+): error: (.*)  \[([\w-]+)\]", out)
    return [(name, int(line), message, code) for name, line, message, code in found]


def test_a_right_program_has_no_errors(complaints):
    assert [each for each in complaints if each[0] != "wrong.py"] == []


def test_each_planted_mistake_is_found(complaints):
    lines = enumerate((HERE / "typing" / "wrong.py").read_text().splitlines(), 1)
    planted = {number: found.groups() for number, line in lines if (found := re.search("  # ([a-z-]+): (.*)", line))}
    found = {line: (code, message) for name, line, message, code in complaints if name == "wrong.py"}
    assert found.keys() == planted.keys() and len(planted) > 10
    for line, (code, part) in planted.items():
        assert found[line][0] == code and part in found[line][1]


def test_type_checkers_and_programs_see_the_same_names_at_the_same_places():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    (checked,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    homes = {alias.asname: node.module for node in checked.body for alias in node.names if alias.asname == alias.name}
    assert homes == alrpc._HOME
    assert sorted(alrpc.__all__) == dir(alrpc) == sorted(["__version__", *homes])
    for name in alrpc.__all__:
        assert getattr(alrpc, name) is not None


def test_the_reference_has_every_public_name():
    text = (HERE.parent / "docs" / "reference.md").read_text()
    assert {f"::: alrpc.{name}" for name in alrpc._HOME} <= set(text.splitlines())


def public_functions():
    for name in alrpc._HOME:
        home = getattr(alrpc, name)
        if inspect.isfunction(home):
            yield pytest.param(home, id=name)
        for method, function in vars(home).items() if inspect.isclass(home) else ():
            if inspect.isfunction(function) and not method.startswith("_"):
                yield pytest.param(function, id=f"{name}.{method}")


@pytest.mark.parametrize("function", list(public_functions()))
def test_every_public_function_is_annotated(function):
    parameters = [parameter for parameter in inspect.signature(function).parameters if parameter != "self"]
    assert [name for name in [*parameters, "return"] if name not in function.__annotations__] == []


def test_the_fields_that_train_takes_have_the_types_that_the_configuration_gives_them():
    homes = {**dict.fromkeys(DATA, Data), **dict.fromkeys(TOP, Config), **dict.fromkeys(Train.model_fields, Train)}
    types = {name: typing.get_type_hints(home)[name] for name, home in homes.items()}
    assert typing.get_type_hints(Fields) == types


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'alrpc' has no attribute 'trian'"):
        alrpc.trian  # noqa: B018
