"""What the README shows, works."""

import re
import sys
from pathlib import Path

from conftest import ALRPC

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_python_example_runs(commands):
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    check = "print(summary['stages'], trained.digest() == summary['parameters_sha256'])\nprint(min(exits))\n"
    (commands.folder / "example.py").write_text(example + check)
    ran = commands.run(sys.executable, "example.py")
    assert ran.returncode == 0, ran.stderr
    equal, accuracy = ran.stdout.strip().splitlines()[-2:]
    assert equal == "4 True" and float(accuracy) > 0.85


def test_the_refusal_is_as_printed(commands):
    command, answer = re.search(r"\$ (alrpc launch --set .*)\n(alrpc: .*)\n", README).groups()
    refused = commands.run(ALRPC, *command.split()[1:])
    assert refused.stderr.strip() == answer


def test_every_file_it_links_to_is_there():
    root = Path(__file__).parent.parent
    links = re.findall(r"\]\(([^):]+)\)", README)
    assert len(links) > 10 and [link for link in links if not (root / link).exists()] == []
