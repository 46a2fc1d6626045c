"""The data sets by name, and what can be checked of the section `data` before any data is read.

This module never imports torch, so that a mistake in the configuration is told at once.
"""

from __future__ import annotations

from importlib.util import find_spec

from alrpc.config import Data
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
DATA = {
    "digits": "1,797 handwritten digits, 1 × 8 × 8, 10 classes; they come with scikit-learn, so nothing is downloaded",
    **VISION,
    **TEXT,
    "synthetic-text": "random words, for measuring speed; there is nothing to be learned from them",
}
"""Each data set, and what it is."""
TINY_IMAGENET = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"


def check_data(data: Data) -> None:
    """Check the configuration's section `data`, as far as is possible without reading the data.

    Raises:
        UsageError: naming the wrong field of the section.
    """
    if ":" in data.name:
        find_function(data.name, "data.name")
    elif data.name not in DATA:
        raise UsageError(
            f"data.name: unknown data set {data.name!r}{did_you_mean(data.name, DATA)}; "
            f"use {', '.join(DATA)}, or package.module:function for your own"
        )
    if data.root is not None and not data.root.is_dir():
        raise UsageError(
            f"data.root: {data.root} is not a directory; give one that exists (data is downloaded into it if absent)"
        )
    if data.augmentation != "none" and data.name not in VISION:
        raise UsageError(f"data.augmentation: got {data.augmentation}, but {data.name} can only have none")
    if data.augmentation == "views" and data.batch_size % 2:
        raise UsageError(f"data.batch_size: got {data.batch_size}, but views pairs the samples; give an even number")
    if data.root is None and data.name == "tiny-imagenet":
        raise UsageError(f"data.root: not given; tiny-imagenet needs the folder of its archive, from {TINY_IMAGENET}, unpacked")
    if data.root is None and data.name == "image-folder":
        raise UsageError("data.root: not given; image-folder needs a directory with train/<class>/* and test/<class>/*")
    if data.name in TEXT:
        _check_text(data)


def _check_text(data: Data) -> None:
    for package in ("tokenizers",) if data.name == "text-file" else ("tokenizers", "datasets"):
        if find_spec(package) is None:
            raise UsageError(f"data.name: {data.name} needs the extra: pip install 'alrpc[text]' ({package} is missing)")
    if data.name == "text-file" and data.file is None:
        raise UsageError(
            f"data.file: not given, but needed by text-file; give a {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file"
        )
    for field, path in (("file", data.file), ("test_file", data.test_file)):
        if path is None:
            continue
        if data.name != "text-file":
            raise UsageError(f"data.{field}: got {path}, but {data.name} reads no file; set data.name to text-file")
        if path.suffix.lower() not in SUFFIXES:
            raise UsageError(f"data.{field}: got {path}; it must end in .csv, or in .jsonl or .json for JSON lines")
        if not path.is_file():
            raise UsageError(f"data.{field}: no file {path}; give one that exists")
    if data.word_vectors is not None and not data.word_vectors.is_file():
        raise UsageError(f"data.word_vectors: no file {data.word_vectors}; give one that exists, as GloVe's")
