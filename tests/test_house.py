"""The rules that keep the code readable: who may import whom, how large a file or a function is, what has one home."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "alrpc").rglob("*.py"))
MOST_LINES, MOST_LINES_OF_A_FUNCTION, MOST_MODULES = 400, 80, 10


def test_imports_run_downwards_only():
    lint = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([lint, "setup.cfg", "--no-logo"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "0 broken" in done.stdout, done.stdout


def test_no_module_imports_itself_in_the_end():
    graph = grimp.build_graph("alrpc", exclude_type_checking_imports=True)
    cycles = [
        (module, imported)
        for module in graph.modules
        for imported in graph.find_modules_directly_imported_by(module)
        if graph.find_shortest_chain(importer=imported, imported=module)
    ]
    assert cycles == []


def test_the_package_has_few_modules_of_its_own():
    assert len(list((ROOT / "alrpc").glob("*.py"))) <= MOST_MODULES


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_short(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= MOST_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < MOST_LINES_OF_A_FUNCTION, node.name


def test_the_engine_knows_no_objective_and_models_know_no_processes():
    for folder in ("training", "pipeline", "telemetry"):
        for path in (ROOT / "alrpc" / folder).rglob("*.py"):
            assert not re.search("decoder|autoencoder|bridge|associated", path.read_text(encoding="utf-8"), re.I), path
    for folder in ("models", "objectives"):
        for path in (ROOT / "alrpc" / folder).rglob("*.py"):
            assert "torch.distributed" not in path.read_text(encoding="utf-8"), path


def test_the_readers_tree_of_the_package_is_whole():
    """docs/design.md has a line for each file."""
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    missing = [
        path.name for path in FILES if path.name != "__init__.py" and not re.search(rf"\b{re.escape(path.stem)}\b", text)
    ]
    assert missing == []
