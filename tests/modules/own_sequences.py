"""Sequences of varying length: a mask and the state of an LSTM travel with the packet as named tensors."""

import torch
from torch import nn

import alrpc


class Sequences(alrpc.Split):
    """Micro-batches are cut to their longest sequence; token 0 is padding."""

    def batch(self, indices):
        tokens = self.inputs[indices]
        tokens = tokens[:, : int((tokens != 0).sum(dim=1).max())]
        return {"x": tokens, "mask": tokens != 0}, self.labels[indices]


def load():
    """Which half of the vocabulary most of a sequence's tokens come from."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, 20, (300,), generator=generator)
    labels = torch.randint(0, 2, (300,), generator=generator)
    tokens = torch.randint(1, 11, (300, 20), generator=generator) + 8 * labels.unsqueeze(1)
    tokens[torch.arange(20) >= lengths.unsqueeze(1)] = 0
    return alrpc.Dataset(Sequences(tokens[:230], labels[:230]), Sequences(tokens[230:], labels[230:]), alrpc.Classes(2))


class Layer(nn.Module):
    """A bidirectional LSTM whose state starts where the one before ended."""

    gives = ("x", "h", "c")

    def __init__(self, width, follows):
        super().__init__()
        self.takes = ("x", "h", "c") if follows else ("x",)
        self.lstm = nn.LSTM(width, width // 2, bidirectional=True, batch_first=True)

    def forward(self, x, *state):
        state = tuple(tensor.transpose(0, 1).contiguous() for tensor in state)
        x, state = self.lstm(x, state or None)
        return x, *(tensor.transpose(0, 1) for tensor in state)


def build(width: int = 16):
    return [nn.Embedding(19, width), Layer(width, follows=False), Layer(width, follows=True), Layer(width, follows=True)]
