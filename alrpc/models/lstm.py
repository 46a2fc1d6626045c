"""BiLSTM: an embedding, then bidirectional LSTMs; each starts from the final state of the previous one."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from alrpc.models import checked
from alrpc.models.pooling import MeanOverTokens, Pooled

PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")  # of an LSTM, in the order of torch.lstm
CLOSES = 1e4  # a gate whose input is less by so much is 0, and 1 if it is more, whatever else is in it


class BiLSTM(nn.Module):
    """x (N, T, C), mask (N, T), state h and c (N, 2, hidden) -> x (N, T, 2 · hidden), h, c after each text's last word."""

    gives = ("x", "h", "c")

    def __init__(self, width: int, hidden: int, follows: bool):
        super().__init__()
        self.takes = ("x", "mask", "h", "c") if follows else ("x", "mask")
        self.lstm = nn.LSTM(width, hidden, bidirectional=True, batch_first=True)

    def forward(self, x: Tensor, mask: Tensor, *state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if torch.compiler.is_exporting():
            return self.by_mask(x, mask, *state)
        begin = tuple(tensor.transpose(0, 1).contiguous() for tensor in state) or None
        lengths = mask.sum(dim=1).clamp(min=1).cpu()
        if int(lengths.min()) == x.shape[1]:  # nothing is padded; not packing is several times as fast on a CPU
            x, (h, c) = self.lstm(x, begin)
        else:
            packed, (h, c) = self.lstm(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False), begin)
            x, _ = pad_packed_sequence(packed, batch_first=True, total_length=x.shape[1])
        return x, h.transpose(0, 1), c.transpose(0, 1)

    def by_mask(self, x: Tensor, mask: Tensor, *state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same function with the same parameters, but without packing, which no exported graph has.

        Each direction is an LSTM over all T positions; the backward one reads each text's words in reverse order. Padding, always
        after the words, is an input of its own: its weight closes the input gate and opens the forget gate, so that c stays what it
        was after the last word, exactly; h is taken from there.
        """
        lengths = mask.sum(dim=1).clamp(min=1)[:, None]
        places = torch.arange(x.shape[1], device=x.device)[None]
        is_word = places < lengths
        reverse = torch.where(is_word, lengths - 1 - places, places)[:, :, None]
        marked = torch.cat([x, (~is_word)[:, :, None].to(x.dtype)], dim=2)
        hidden = self.lstm.hidden_size
        gates = torch.cat(
            [x.new_full((hidden, 1), value) for value in (-CLOSES, CLOSES, 0.0, 0.0)]
        )  # input, forget, cell, output
        outputs, ends = [], []
        for direction, suffix in enumerate(("", "_reverse")):
            weight, *others = (getattr(self.lstm, f"{name}_l0{suffix}") for name in PARAMETERS)
            begin = [each[:, direction][None] for each in state] or [x.new_zeros(1, x.shape[0], hidden)] * 2
            words = marked.gather(1, reverse.expand(marked.shape)) if suffix else marked
            given, _, c = torch.lstm(
                words, begin, [torch.cat([weight, gates], dim=1), *others], True, 1, 0.0, False, False, True
            )
            last = (lengths - 1)[:, :, None].expand(-1, -1, hidden)
            ends.append((given.gather(1, last)[:, 0], c[0]))
            outputs.append(given.gather(1, reverse.expand(given.shape)) if suffix else given)
        h, c = (torch.stack(of_directions, dim=1) for of_directions in zip(*ends, strict=True))
        return torch.cat(outputs, dim=2) * is_word[:, :, None].to(x.dtype), h, c


class SumOfDirections(nn.Module):
    """h (N, 2, hidden) -> (N, hidden): the sum of the last hidden states of both directions."""

    takes = ("h",)

    def forward(self, h: Tensor) -> Tensor:
        return h.sum(dim=1)


@checked
def build(
    vocabulary: Annotated[int, Field(ge=3)] = 30_000,
    width: Annotated[int, Field(ge=1)] = 300,
    hidden: Annotated[int, Field(ge=1)] = 256,
    layers: Annotated[int, Field(ge=1, le=10_000)] = 3,
) -> dict:
    """Build the blocks: the embedding is the first component, and each LSTM is one more.

    Args:
        vocabulary: number of words, including padding (0); that of the data if not given.
        width: width of the word embeddings.
        hidden: width of the hidden state of each direction of each LSTM.
        layers: number of LSTMs.
    """
    blocks: list[nn.Module] = [nn.Embedding(vocabulary, width, padding_idx=0)]
    for layer in range(layers):
        blocks.append(BiLSTM(width if layer == 0 else 2 * hidden, hidden, follows=layer > 0))

    def head(width: int) -> nn.Module:
        return Pooled(SumOfDirections(), nn.Linear(hidden, width))

    return {"blocks": blocks, "pools": [MeanOverTokens("x"), *(SumOfDirections() for _ in range(layers))], "head": head}
