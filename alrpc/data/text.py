"""Text: stub to be replaced."""

from __future__ import annotations

from alrpc.config import Data
from alrpc.data.dataset import Dataset

NAMES = ()


def check(data: Data) -> None:
    pass


def load(data: Data) -> Dataset:
    raise NotImplementedError
