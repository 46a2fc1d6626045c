"""The package's long description: the README, whose links to files of the repository are only words on a package index."""

import re
from pathlib import Path

from setuptools import setup

readme = (Path(__file__).parent / "README.md").read_text(encoding="utf-8")
without_pictures = re.sub(r"!\[[^]]*\]\([^):]+\)\n*", "", readme)
setup(
    long_description=re.sub(r"\[([^]]*)\]\([^):]+\)", r"\1", without_pictures),
    long_description_content_type="text/markdown",
)
