"""Synthetic text: random words in sequences of equal length, for measuring speed without a download."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from alrpc.data.dataset import Dataset, Split
from alrpc.objectives.base import Tensors
from alrpc.objectives.targets import Classes

SEQUENCES, TESTED, TOKENS, VOCABULARY = 1024, 64, 64, 10_000


@dataclass(frozen=True)
class Sequences(Split):
    """Sequences of equal length. inputs: (N, TOKENS), int64; a micro-batch has a mask, as texts do, which is true everywhere."""

    def batch(self, indices: Tensor) -> tuple[Tensors, Tensor]:
        x = self.inputs[indices]
        return {"x": x, "mask": torch.ones_like(x, dtype=torch.bool)}, self.labels[indices]


def load() -> Dataset:
    """Generate 1,024 sequences of 64 words out of 10,000 in two classes, and use 64 of them for testing; nothing can be learned."""
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(2, VOCABULARY, (SEQUENCES, TOKENS), generator=generator)
    labels = torch.arange(SEQUENCES) % 2
    return Dataset(Sequences(words, labels), Sequences(words[:TESTED], labels[:TESTED]), Classes(2))
