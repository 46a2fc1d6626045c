"""Images that a process has decoded, kept in memory for the next epoch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from alrpc.reading.regular import MIB

LARGEST = 256 * MIB  # of the images of a split, which are all kept, or none


class Decoded:
    """The images of a split, (N, C, H, W) uint8, each decoded when it is first wanted, if all of them take at most 256 MiB;
    else nothing. Memory is taken only as it fills."""

    def __init__(self, count: int, shape: tuple[int, int, int]):
        self._shape = (count, *shape)
        self._images, self._known = None, None

    def __reduce__(self) -> tuple:
        return Decoded, (self._shape[0], self._shape[1:])  # another process decodes for itself

    def get(self, indices: Tensor, decode: Callable[[int], Tensor]) -> Tensor:
        """The images with these indices, (n, C, H, W); `decode` makes those that are not known."""
        if torch.Size(self._shape).numel() > LARGEST:
            return torch.stack([decode(index) for index in indices.tolist()])
        if self._images is None:
            self._images = torch.empty(self._shape, dtype=torch.uint8)
            self._known = torch.zeros(self._shape[0], dtype=torch.bool)
        for index in indices[~self._known[indices]].tolist():
            self._images[index] = decode(index)
            self._known[index] = True
        return self._images[indices]
