"""From text to indices of words: cleaning as in the thesis, and a vocabulary of the most frequent words.

A tokenizer of Hugging Face's `tokenizers` does all steps, so that its JSON alone defines how text is converted to indices.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from alrpc.objectives.base import Tensors

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PADDING, UNKNOWN = 0, 1  # indices of the special tokens
SPECIAL = ["[PAD]", "[UNK]"]  # no text has such words, since brackets are punctuation
CHUNK = 4096  # texts encoded at once: enough to use all cores, few enough that their encodings fit in memory

# An apostrophe is removed without a blank (don't → dont, as in scikit-learn's stop words); all else that is not a word becomes
# a blank. AG News has lost the & of its entities, and has blanks before the rest of its apostrophes.
_APOSTROPHE = r"['’]|&apos;|&#0*39;| ?#0*39;"
_TAG = r"(?:<|&lt;)[a-z/!][^<>]{0,1000}?(?:>|&gt;)"
_ENTITY = r"(?:&[a-z]+[0-9]*|&?#x?[0-9a-f]+|\bquot);"
_NO_WORD = r"[^\p{L}\p{M}\p{N}]+"


def cleaner() -> Tokenizer:
    """A tokenizer with an empty vocabulary.

    It converts text to lower case, removes HTML tags and entities, punctuation and stop words (scikit-learn's
    ENGLISH_STOP_WORDS), and splits at white space.
    """
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({}, unk_token=SPECIAL[UNKNOWN]))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Lowercase(),
            normalizers.Replace(Regex(_APOSTROPHE), ""),
            normalizers.Replace(Regex(f"{_TAG}|{_ENTITY}"), " "),
            normalizers.Replace(Regex(_NO_WORD), " "),
            normalizers.Replace(Regex(f"(?<![^ ]){_any_of(ENGLISH_STOP_WORDS)}(?![^ ])"), ""),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def learn_vocabulary(tokenizer: Tokenizer, texts: Iterable[str], size: int) -> Tokenizer:
    """The tokenizer with a vocabulary of `size` words: padding, the unknown word and the most frequent words of the texts.

    Equally frequent words are ordered alphabetically, so that the order of the texts does not matter.
    """
    from tokenizers import Tokenizer, models, trainers

    learner = Tokenizer.from_str(tokenizer.to_str())
    trainer = trainers.WordLevelTrainer(vocab_size=size, special_tokens=SPECIAL, show_progress=False)
    learner.train_from_iterator(texts, trainer)
    # Training also lets the tokenizer match special tokens in text, but a text with [PAD] must be cleaned like any other.
    learned = Tokenizer.from_str(tokenizer.to_str())
    learned.model = models.WordLevel(learner.get_vocab(), unk_token=SPECIAL[UNKNOWN])
    return learned


def encode(tokenizer: Tokenizer, texts: Sequence[str], max_tokens: int, unknown: int = UNKNOWN) -> tuple[Tensor, Tensor]:
    """Encode texts as the concatenated indices of their words, at most `max_tokens` and at least one for each text, if need be
    `unknown`.

    Returns:
        tokens: (sum of lengths,), int32.
        offsets: (N + 1,), int64: text i is tokens[offsets[i] : offsets[i + 1]].
    """
    tokenizer.enable_truncation(max_tokens)
    tokens, lengths = array("i"), [0]
    for start in range(0, len(texts), CHUNK):
        for encoding in tokenizer.encode_batch_fast(texts[start : start + CHUNK]):
            words = encoding.ids or [unknown]
            tokens.extend(words)
            lengths.append(len(words))
    return torch.frombuffer(tokens, dtype=torch.int32), torch.tensor(lengths).cumsum(0)


def pad(tokens: Tensor, begin: Tensor, end: Tensor, padding: int = PADDING) -> Tensors:
    """Pad texts to the longest of them.

    Args:
        tokens: the tokens of all texts, one after another.
        begin, end: (n,) int64, where each text begins and ends in `tokens`.

    Returns:
        Tokens `x`, (n, T), int64, and `mask`, (n, T), which is true for words.
    """
    positions = begin[:, None] + torch.arange(int((end - begin).max()))
    mask = positions < end[:, None]
    x = tokens[positions.clamp(max=len(tokens) - 1)].long().masked_fill(~mask, padding)
    return {"x": x, "mask": mask}


def _any_of(words: Iterable[str]) -> str:
    """A regular expression that matches these words and shares their prefixes; it takes half the time of plain alternatives."""
    words = sorted(words)
    branches = [
        first + _any_of(word[1:] for word in group)
        for first, group in itertools.groupby(filter(None, words), key=lambda word: word[0])
    ]
    ends = "" in words
    return f"(?:{'|'.join(branches)}){'?' if ends else ''}" if branches else ""
