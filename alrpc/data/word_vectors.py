"""Word vectors from a file in GloVe's format."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch

from alrpc.data.dataset import WordVectors
from alrpc.data.text_file import read_lines
from alrpc.errors import UserError


def read_word_vectors(path: Path, vocabulary: Mapping[str, int]) -> WordVectors:
    """Read the vectors of the vocabulary's words.

    Args:
        path: a file with a word and its numbers on each line, separated by single blanks. The first line determines the count
            of numbers; a word may itself contain blanks. Numbers are parsed only for words of the vocabulary.
        vocabulary: the index of each word.

    Returns:
        values in float32, rows ascending. If several lines have the same word, the first one counts.

    Raises:
        UserError: naming file and line if a value is not a number or their count is wrong; or when no word is found.
    """
    width = 0
    found: dict[int, list[float]] = {}
    try:
        for number, line in read_lines(path):
            line = line.rstrip()
            if not line and number > 1:
                continue
            word, _, numbers = line.partition(" ")
            count = numbers.count(" ") + 1 if numbers else 0
            if number == 1:
                width = count
            if count > width:  # the word may contain blanks
                word = line.rsplit(" ", width)[0]
            if width == 0 or count < width or (count > width and _is_number(word.rpartition(" ")[2])):
                raise UserError(
                    f"{path}:{number}: a word and {count} numbers; every line must have a word and as many numbers as line 1,"
                    f" which has {width} (remove a header)"
                )
            index = vocabulary.get(word)
            if index is None or index in found:
                continue
            values = line.rsplit(" ", width)[1:]
            wrong = next((value for value in values if not _is_number(value)), None)
            if wrong is not None:
                raise UserError(f"{path}:{number}: {wrong!r} is no number; a word is followed by {width} finite numbers")
            found[index] = [float(value) for value in values]
    except OSError as error:
        raise UserError(f"data.word_vectors: cannot read {path}: {error.strerror}") from error
    if not found:
        raise UserError(f"data.word_vectors: {path} has none of the vocabulary's words; it must have lower-case words")
    rows = sorted(found)
    return WordVectors(torch.tensor(rows), torch.tensor([found[row] for row in rows], dtype=torch.float32))


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
