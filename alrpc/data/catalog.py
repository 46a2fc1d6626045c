"""The data sets by name, and what can be checked of the section `data` before any data is read.

This module never imports torch, so that a mistake in the configuration is told at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec

from alrpc.config import Data
from alrpc.config.data import HUB
from alrpc.config.own_code import did_you_mean, find_function
from alrpc.data.text_file import SUFFIXES
from alrpc.errors import UsageError

VISION = {
    "mnist": "70,000 handwritten digits, 1 × 28 × 28, 10 classes; downloaded",
    "fashion-mnist": "70,000 articles of clothing, 1 × 28 × 28, 10 classes; downloaded",
    "cifar10": "60,000 photographs, 3 × 32 × 32, 10 classes; downloaded",
    "cifar100": "60,000 photographs, 3 × 32 × 32, 100 classes; downloaded",
    "tiny-imagenet": "110,000 photographs of 200 classes, resized to data.image_size; data.root is where its archive is unpacked",
    "image-folder": "your own images: data.root has train/<class>/* and test/<class>/*",
}
TEXT = {
    "ag_news": "127,600 news in 4 classes; downloaded by Hugging Face datasets",
    "dbpedia_14": "630,000 encyclopedia articles in 14 classes; downloaded by Hugging Face datasets",
    "imdb": "50,000 film reviews, good or bad; downloaded by Hugging Face datasets",
    "sst2": "68,221 sentences of film reviews, good or bad; downloaded by Hugging Face datasets",
    "text-file": "your own texts: data.file is a CSV or JSON-lines file with a text and a label in each row",
}
TABLES = {
    "npz": "your own arrays: data.file is an archive of numpy's savez, with arrays of numbers or pixels, and one of labels",
    "parquet": "your own table: data.file has a column of texts, of images or of arrays, or several of numbers, and one of labels",
    "hf:NAME": "a data set of Hugging Face: a folder, by its path, or a name on the hub, such as hf:stanfordnlp/imdb",
}
DATA = {
    "digits": "1,797 handwritten digits, 1 × 8 × 8, 10 classes; they come with alrpc, so nothing is downloaded",
    **VISION,
    **TEXT,
    **TABLES,
    "synthetic-text": "random words, for measuring speed; there is nothing to be learned from them",
}
"""Each data set, and what it is."""
FILES = {"text-file": SUFFIXES, "npz": (".npz",), "parquet": (".parquet",)}
"""The data sets that are read from data.file, and what its name ends in."""
TINY_IMAGENET = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"


def check_data(data: Data) -> None:
    """Check the configuration's section `data`, as far as is possible without reading the data.

    Raises:
        UsageError: naming the wrong field of the section.
    """
    if data.is_own:
        find_function(data.name, "data.name")
    elif not data.name.startswith(HUB) and data.name not in DATA:
        raise UsageError(
            f"data.name: unknown data set {data.name!r}{did_you_mean(data.name, DATA)}; "
            f"use {', '.join(DATA)}, or package.module:function for your own"
        )
    if data.root is not None and not data.root.is_dir():
        raise UsageError(
            f"data.root: {data.root} is not a directory; give one that exists (data is downloaded into it if absent)"
        )
    if data.augmentation != "none" and data.name not in VISION and not is_table(data):
        raise UsageError(f"data.augmentation: got {data.augmentation}, but {data.name} can only have none")
    if data.augmentation == "views" and data.batch_size % 2:
        raise UsageError(f"data.batch_size: got {data.batch_size}, but views pairs the samples; give an even number")
    if data.root is None and data.name == "tiny-imagenet":
        raise UsageError(f"data.root: not given; tiny-imagenet needs the folder of its archive, from {TINY_IMAGENET}, unpacked")
    if data.root is None and data.name == "image-folder":
        raise UsageError("data.root: not given; image-folder needs a directory with train/<class>/* and test/<class>/*")
    if data.name in TEXT:
        _check_text(data)
    if is_table(data) and data.name != "npz" and find_spec("datasets") is None:
        raise UsageError(f"data.name: {data.name} needs the extra: pip install 'alrpc[text]' (datasets is missing)")
    if data.name == HUB or data.name == "hf:NAME":
        raise UsageError(f"data.name: got {data.name}; give a folder, or a name on the hub, such as hf:stanfordnlp/imdb")
    if data.name in TEXT or is_table(data):  # an evaluation on other data leaves the file of the run aside
        _check_files(data)


def is_table(data: Data) -> bool:
    """Whether the data set is one of examples in columns: npz, parquet or hf:NAME."""
    return data.name in TABLES or data.name.startswith(HUB)


def _check_text(data: Data) -> None:
    for package in ("tokenizers",) if data.name == "text-file" else ("tokenizers", "datasets"):
        if find_spec(package) is None:
            raise UsageError(f"data.name: {data.name} needs the extra: pip install 'alrpc[text]' ({package} is missing)")
    if data.word_vectors is not None and not data.word_vectors.is_file():
        raise UsageError(f"data.word_vectors: no file {data.word_vectors}; give one that exists, as GloVe's")


def _check_files(data: Data) -> None:
    suffixes = FILES.get(data.name, ())
    if suffixes and data.file is None:
        raise UsageError(f"data.file: not given, but needed by {data.name}; give a file that ends in {listed(suffixes)}")
    for field, path in (("file", data.file), ("test_file", data.test_file)):
        if path is None:
            continue
        if not suffixes:
            raise UsageError(f"data.{field}: got {path}, but {data.name} reads no file; set data.name to {listed(FILES)}")
        if path.suffix.lower() not in suffixes:
            raise UsageError(f"data.{field}: got {path}; it must end in {listed(suffixes)}")
        if not path.is_file():
            raise UsageError(f"data.{field}: no file {path}; give one that exists")


def listed(names: Iterable[str]) -> str:
    """Names that may be chosen, in words."""
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last
