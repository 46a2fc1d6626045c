"""How good every exit is on the test split."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from alrpc.component import Target, decode


@dataclass
class ExitScores:
    """Scores of every exit, summed over test micro-batches.

    `decoders` holds h_1 … h_L; with them and the outputs of all bridges every exit can be decoded in one place.
    """

    target: Target
    decoders: list[nn.Module]
    sums: list[float] = field(default_factory=list)
    samples: int = 0

    @torch.no_grad()
    def add(self, bridged: list[Tensor], labels: Tensor) -> None:
        """Decode the bridges' outputs of one micro-batch, first exit to last, and score them against its labels."""
        self.sums = self.sums or [0.0] * len(bridged)
        for index, exit_output in enumerate(bridged):
            output = decode(self.decoders[: index + 1], exit_output)
            self.sums[index] += self.target.score(output, labels)
        self.samples += len(labels)

    def event(self, epoch: int) -> dict:
        """The mean score of each exit, as a line for metrics.jsonl."""
        return {
            "event": "evaluation",
            "epoch": epoch,
            "metric": self.target.metric,
            "exits": [total / self.samples for total in self.sums],
        }
