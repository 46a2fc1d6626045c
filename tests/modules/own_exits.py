"""Code of a user's own that calls sys.exit, as a script does."""

import sys

import torch
from torch import nn

import alrpc


def build():
    sys.exit("no network today")


class Exit(nn.Module):
    """Passes its input on, and calls sys.exit at the tenth training step."""

    steps = 0

    def forward(self, x):
        self.steps += self.training
        if self.steps == 10:
            sys.exit(134)  # the exit code of a process that SIGABRT has killed
        return x


def build_blocks():
    return [nn.Sequential(nn.Flatten(), nn.Linear(64, 16)), nn.Sequential(nn.Linear(16, 16), Exit())]


def load():
    sys.exit(2)


class ExitingSplit(alrpc.Split):
    def batch(self, indices):
        if 70 in indices:
            sys.exit(3)
        return super().batch(indices)


def load_split():
    labels = torch.arange(100) % 2
    inputs = torch.randn(100, 1, 8, 8)
    return alrpc.Dataset(ExitingSplit(inputs, labels), alrpc.Split(inputs, labels), alrpc.Classes(2))
