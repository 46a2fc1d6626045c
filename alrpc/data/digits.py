"""scikit-learn's 1,797 handwritten digits, 8 × 8: real data that needs no download (Alpaydin & Kaynak, UCI, 1998)."""

from __future__ import annotations

import torch

from alrpc.data.dataset import Dataset, Split
from alrpc.objectives.base import Classes


def load() -> Dataset:
    """1,437 digits for training, 360 for testing, each class in the same share; the split never changes."""
    from sklearn import datasets, model_selection

    digits = datasets.load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target, dtype=torch.int64)
    train, test = model_selection.train_test_split(range(len(labels)), test_size=360, stratify=labels, random_state=0)
    return Dataset(Split(images[train], labels[train]), Split(images[test], labels[test]), Classes(10))
