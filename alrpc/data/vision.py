"""Images: stub to be replaced."""

from __future__ import annotations

from pathlib import Path

import torch

from alrpc.component import Classes
from alrpc.config import Data
from alrpc.data.dataset import Dataset, Split
from alrpc.errors import UserError

NAMES = ("mnist", "fashion-mnist")
STATISTICS = {"mnist": (0.1307, 0.3081), "fashion-mnist": (0.2860, 0.3530)}  # mean and deviation of the training pixels


def check(data: Data) -> None:
    pass


def load(data: Data) -> Dataset:
    """60,000 images for training, 10,000 for testing, normalised; downloaded into `root` if they are not there."""
    from torchvision import datasets

    name, root = data.name, data.root
    source = {"mnist": datasets.MNIST, "fashion-mnist": datasets.FashionMNIST}[name]
    mean, deviation = STATISTICS[name]
    root = root or Path.home() / ".cache" / "alrpc"
    splits = []
    for train in (True, False):
        try:
            data = source(root, train=train, download=True)
        except Exception as error:  # torchvision checks its files with assertions, among others
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"data.root: no readable {name} in {root}, and no download: {reason}") from error
        images = data.data.unsqueeze(1).to(torch.float32).div_(255).sub_(mean).div_(deviation)
        splits.append(Split(images, data.targets.to(torch.int64)))
    return Dataset(*splits, Classes(10))
