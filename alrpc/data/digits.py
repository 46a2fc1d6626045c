"""1,797 handwritten digits, 8 × 8 pixels: real data without a download.

`digits.npz` has the test split of Optical Recognition of Handwritten Digits (Alpaydin & Kaynak, UCI Machine Learning Repository, 1998,
doi 10.24432/C50P49, licence CC BY 4.0), split again, as scikit-learn has them and `train_test_split(test_size=360, stratify=labels,
random_state=0)` splits them. To import scikit-learn for them would take more than a second.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from alrpc.data.dataset import Dataset, Split
from alrpc.data.preprocessing import ImagePreprocessing
from alrpc.objectives.targets import Classes

PREPROCESSING = ImagePreprocessing(channels=1, height=8, width=8, mean=(0.0,), deviation=(1.0,))
BRIGHTEST = 16  # of a pixel, in the file


def load() -> Dataset:
    """Load 1,437 digits for training and 360 for testing, with equal class frequencies; the split is always the same."""
    with np.load(Path(__file__).with_name("digits.npz")) as file:
        train, test = (_split(file[f"{part}_images"], file[f"{part}_labels"]) for part in ("train", "test"))
    return Dataset(train, test, Classes(10), preprocessing=PREPROCESSING)


def _split(images: np.ndarray, labels: np.ndarray) -> Split:
    """Images, (N, 8, 8), and labels, (N,), both uint8."""
    return Split(torch.from_numpy(images).float().unsqueeze(1) / BRIGHTEST, torch.from_numpy(labels).long())
