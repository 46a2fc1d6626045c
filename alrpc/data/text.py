"""Labelled texts as indices of words: four public data sets, and the user's own files."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from alrpc.config import Data
from alrpc.data.dataset import Dataset, Split, shuffled
from alrpc.data.hub import load_splits
from alrpc.data.preprocessing import TextPreprocessing, parse_tokenizer
from alrpc.data.text_cache import cache_folder, read_cached, write_cached
from alrpc.data.text_file import Record, read_records
from alrpc.data.tokenizer import UNKNOWN, cleaner, encode, learn_vocabulary, pad
from alrpc.data.word_vectors import read_word_vectors
from alrpc.errors import UserError
from alrpc.objectives.base import Tensors
from alrpc.objectives.targets import Classes
from alrpc.system import derive_seed

if TYPE_CHECKING:
    from tokenizers import Tokenizer

HUB = {  # name on the hub, column of the text, labelled split for testing
    "ag_news": ("fancyzhx/ag_news", "text", "test"),
    "dbpedia_14": ("fancyzhx/dbpedia_14", "content", "test"),
    "imdb": ("stanfordnlp/imdb", "text", "test"),
    "sst2": ("stanfordnlp/sst2", "sentence", "validation"),
}
FORMAT = 1  # version of the cached content; increment it with every change
POOL = 50  # micro-batches whose texts are sorted by length together: little padding, but other micro-batches in each epoch


@dataclass(frozen=True)
class Texts(Split):
    """Texts of different lengths.

    inputs: (N, 2), int64: begin and end of each text in `tokens`. tokens: the tokens of all texts, (sum of lengths,), int32.
    """

    tokens: Tensor
    bucket: bool = False

    def batch(self, indices: Tensor) -> tuple[Tensors, Tensor]:
        """Tokens `x`, (n, T), int64, padded to the longest of these texts, and `mask`, (n, T), which is true for words."""
        return pad(self.tokens, *self.inputs[indices].unbind(1)), self.labels[indices]

    def order(self, seed: int, epoch: int, batch_size: int) -> Tensor:
        """A random order; with `bucket` each micro-batch, except a smaller last one, has texts of similar length."""
        order = super().order(seed, epoch, batch_size)
        if not self.bucket:
            return order
        full = len(order) // batch_size * batch_size
        lengths = self.inputs[:, 1] - self.inputs[:, 0]
        pools = [pool[lengths[pool].argsort(stable=True)] for pool in order[:full].split(POOL * batch_size)]
        micro_batches = torch.cat(pools).view(-1, batch_size)
        micro_batches = micro_batches[shuffled(len(micro_batches), derive_seed(seed, "micro-batches"), epoch)]
        return torch.cat([micro_batches.flatten(), order[full:]])


class Labelled(NamedTuple):
    """Texts, and the label of each as a string."""

    texts: Sequence[str]
    labels: Sequence[str]


def load(data: Data) -> Dataset:
    """Load cleaned and encoded texts. They are kept in the user's cache, and prepared again only when texts or fields change.

    Raises:
        UserError: naming the wrong field, or file and line, or when a public data set cannot be downloaded.
    """
    return prepare(*(_find_files(data) if data.name == "text-file" else _find_on_hub(data)), data)


def prepare(identity: list, read: Callable[[], tuple[Labelled, Labelled]], names: Mapping[str, str], data: Data) -> Dataset:
    """Clean and encode the texts to train and to test on, or take them as they are in the user's cache.

    Args:
        identity: what the texts are in the cache.
        read: gives the texts.
        names: of labels that are called otherwise in the data set.
    """
    tokenizer = cleaner()
    key = [FORMAT, identity, tokenizer.to_str(), data.vocabulary, data.max_tokens]
    folder = cache_folder()
    path = folder and folder / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]}.safetensors"
    prepared = read_cached(path) if path else None
    if prepared is None:
        prepared = _prepare(*read(), tokenizer, data)
        if path:
            write_cached(path, *prepared)
    tensors, strings = prepared
    splits = [
        _split(tensors[f"{name}.tokens"], tensors[f"{name}.offsets"], tensors[f"{name}.labels"], data.bucket)
        for name in ("train", "test")
    ]
    word_vectors = None
    if data.word_vectors is not None:
        words = json.loads(strings["tokenizer"])["model"]["vocab"]
        word_vectors = read_word_vectors(data.word_vectors, {word: row for word, row in words.items() if row > UNKNOWN})
    classes = [names.get(label, label) for label in json.loads(strings["classes"])]
    prepared = TextPreprocessing(strings["tokenizer"], data.max_tokens)
    return Dataset(*splits, Classes(len(classes)), word_vectors, classes=classes, preprocessing=prepared)


def load_test(data: Data, classes: Sequence[str], prepared: TextPreprocessing) -> Texts:
    """Read the test split alone, for a network that was trained on these classes with this preprocessing; raises like `load`.

    A `data.test_file` needs no `data.file`.
    """
    if data.test_file is not None:
        test = _read_test_file(data, classes, "one of the run's")
        labels = test.labels
    else:
        _, read, names = _find_files(data) if data.name == "text-file" else _find_on_hub(data)
        test = read()[1]
        labels = [names.get(label, label) for label in test.labels]
    index = {label: number for number, label in enumerate(classes)}
    if strange := next((label for label in labels if label not in index), None):
        raise UserError(f"data: the label {strange!r} is not one of the run's: {listed(index)}; test only what is trained")
    return encoded(test.texts, torch.tensor([index[label] for label in labels]), prepared)


def encoded(texts: Sequence[str], labels: Tensor, prepared: TextPreprocessing) -> Texts:
    """The split of texts, with these class indices, (N,), as a preprocessing that is known encodes them."""
    tokens, offsets = encode(parse_tokenizer(prepared.tokenizer), texts, prepared.max_tokens, prepared.unknown)
    return _split(tokens, offsets, labels, bucket=False)


def _split(tokens: Tensor, offsets: Tensor, labels: Tensor, bucket: bool) -> Texts:
    return Texts(torch.stack([offsets[:-1], offsets[1:]], dim=1), labels, tokens, bucket)


def _prepare(train: Labelled, test: Labelled, tokenizer: Tokenizer, data: Data) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tokens, offsets and labels of both splits; and the names of the classes and the tokenizer, as JSON."""
    tokenizer = learn_vocabulary(tokenizer, train.texts, data.vocabulary)
    classes = sort_labels({*train.labels, *test.labels})
    index = {label: number for number, label in enumerate(classes)}
    tensors = {}
    for name, (texts, labels) in (("train", train), ("test", test)):
        tensors[f"{name}.tokens"], tensors[f"{name}.offsets"] = encode(tokenizer, texts, data.max_tokens)
        tensors[f"{name}.labels"] = torch.tensor([index[label] for label in labels])
    return tensors, {"classes": json.dumps(classes), "tokenizer": tokenizer.to_str()}


# The identity of texts in the cache, a function that reads them, and names of their labels that they go by.
_Found = tuple[list, Callable[[], tuple[Labelled, Labelled]], dict[str, str]]


def _find_files(data: Data) -> _Found:
    identity = [data.text_column, data.label_column, data.test_share if data.test_file is None else None]
    for field, path in (("file", data.file), ("test_file", data.test_file)):
        if path is not None:
            identity += [path.suffix.lower(), _digest(field, path)]
    return identity, lambda: _read_files(data), {}


def _digest(field: str, path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"data.{field}: cannot read {path}: {error.strerror}; give a file that can be read") from error


def _read_files(data: Data) -> tuple[Labelled, Labelled]:
    """Read the training and test texts of local files."""
    train = read_records(data.file, data.text_column, data.label_column)
    known = {record.label: record.line for record in train}
    if len(known) == 1:
        raise UserError(f"{data.file}: every label is {train[0].label!r}; there must be two or more")
    if data.test_file is not None:
        return _labelled(train), _read_test_file(data, known, f"in {data.file}")
    from sklearn.model_selection import train_test_split

    labels = [record.label for record in train]
    count = Counter(labels)
    for label, line in known.items():
        if count[label] == 1:
            raise UserError(
                f"{data.file}:{line}: no other text has the label {label!r}; give each label two or more, or a data.test_file"
            )
    try:
        train, test = train_test_split(train, test_size=data.test_share, stratify=labels, random_state=0)
    except ValueError as error:
        raise UserError(
            f"data.test_share: {data.test_share} of {len(labels)} texts with {len(known)} labels is less than one a label to"
            " train on or to test on; give another share, or a data.test_file"
        ) from error
    return _labelled(train), _labelled(test)


def _read_test_file(data: Data, known: Collection[str], whose: str) -> Labelled:
    """Read data.test_file.

    Args:
        known: the labels that it may have.
        whose: what these are, for the message about another one.
    """
    test = read_records(data.test_file, data.text_column, data.label_column)
    for record in test:
        if record.label not in known:
            raise UserError(
                f"{data.test_file}:{record.line}: label {record.label!r} is not {whose}; use one of those trained on:"
                f" {listed(known)}"
            )
    return _labelled(test)


def _labelled(records: Sequence[Record]) -> Labelled:
    return Labelled([record.text for record in records], [record.label for record in records])


def _find_on_hub(data: Data) -> _Found:
    """The same of a public data set, which is downloaded if it is absent."""
    name, column, test = HUB[data.name]
    try:
        splits = load_splits(name, data.root)
    except UserError as error:
        raise UserError(f"data.name: {data.name} is {error}; data.name text-file reads a local file instead") from error
    train, test = splits["train"], splits[test]

    def read() -> tuple[Labelled, Labelled]:
        return tuple(Labelled(list(split[column]), [str(label) for label in split["label"]]) for split in (train, test))

    names = getattr(train.features["label"], "names", None) or []
    return [name, train._fingerprint, test._fingerprint], read, {str(number): label for number, label in enumerate(names)}


def sort_labels(labels: set[str]) -> list[str]:
    """Sort labels in the order of their class indices: numerically if all are integers, else alphabetically."""
    try:
        return sorted(labels, key=lambda label: (int(label), label))
    except ValueError:
        return sorted(labels)


def listed(labels: Collection[str]) -> str:
    """Some labels, for a message."""
    names = sort_labels(set(labels))
    return ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
