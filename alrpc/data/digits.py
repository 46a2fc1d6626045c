"""scikit-learn's 1,797 handwritten digits, 8 × 8 pixels: real data without a download (Alpaydin & Kaynak, UCI, 1998)."""

from __future__ import annotations

import torch

from alrpc.data.dataset import Dataset, Split
from alrpc.data.preprocessing import ImagePreprocessing
from alrpc.objectives.targets import Classes

PREPROCESSING = ImagePreprocessing(channels=1, height=8, width=8, mean=(0.0,), deviation=(1.0,))


def load() -> Dataset:
    """Load 1,437 digits for training and 360 for testing, with equal class frequencies; the split is always the same."""
    from sklearn import datasets, model_selection

    digits = datasets.load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target, dtype=torch.int64)
    train, test = model_selection.train_test_split(range(len(labels)), test_size=360, stratify=labels, random_state=0)
    return Dataset(
        Split(images[train], labels[train]), Split(images[test], labels[test]), Classes(10), preprocessing=PREPROCESSING
    )
