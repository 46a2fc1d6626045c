"""The parts of a model: its blocks, and what else its function may give."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import nn


@dataclass
class Parts:
    """A model in parts."""

    blocks: list[nn.Module]
    own: dict[str, Sequence[nn.Module | None]] = field(default_factory=dict)
    """The user's own modules beside the blocks, by the name of the argument of `alrpc.associate` or `alrpc.decouple`."""
    head: Callable[[int], nn.Module] | None = None
    """Makes the head for back-propagation, of the width of its output; None for the default."""
    whole: nn.Module | None = None
    """The network that the blocks were cut from, by whose names `model.weights` has the parameters; None for the list of blocks,
    whose names begin with the block's index, from 0."""
