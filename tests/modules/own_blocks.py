"""Blocks and data of a user's own, named in configurations as own_blocks:<function>."""

import ctypes
import itertools
import os
import sys
import threading
import time

import torch
from torch import nn

import alrpc


def build(width: int = 32, depth: int = 4):
    """Blocks with random numbers (dropout) and buffers (batch norm)."""
    sizes = [64] + [width] * depth
    blocks = [
        nn.Sequential(nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU(), nn.Dropout(0.2))
        for before, after in itertools.pairwise(sizes)
    ]
    return [nn.Sequential(nn.Flatten(), blocks[0]), *blocks[1:]]


def build_idle():
    """Blocks of which the first has nothing to learn."""
    return [nn.Flatten(), *build(depth=2)]


class Fuse(nn.Module):
    """Passes its input on, and raises at a training step."""

    def __init__(self, step: int):
        super().__init__()
        self.left = step

    def forward(self, x):
        if self.training:
            self.left -= 1
            if self.left == 0:
                raise ValueError("the fuse has blown")
        return x


def build_with_fuse(step: int = 10):
    blocks = build()
    blocks[1].append(Fuse(step))
    return blocks


class Bad(nn.Module):
    """Passes its input on, but that at one training step the activation, or only its gradient, is not a number."""

    def __init__(self, step: int, forward: bool):
        super().__init__()
        self.left, self.in_forward = step, forward

    def forward(self, x):
        if self.training:
            self.left -= 1
            if self.left == 0:
                if self.in_forward:
                    return x * float("nan")
                x = x.clone()
                x.register_hook(lambda gradient: gradient * float("nan"))
        return x


def build_bad(step: int = 30, forward: bool = True):
    blocks = build()
    blocks[1].insert(1, Bad(step, forward))  # before batch norm, whose running means see it
    return blocks


class Drag(nn.Module):
    """Passes its input on, and takes so many seconds more at each training step."""

    def __init__(self, seconds: float):
        super().__init__()
        self.seconds = seconds

    def forward(self, x):
        if self.training:
            time.sleep(self.seconds)
        return x


def build_uneven(seconds: float = 0.03):
    """Three blocks, of which the second is several times as heavy as the others."""
    blocks = build(depth=3)
    blocks[1].append(Drag(seconds))
    return blocks


class Slow(nn.Module):
    """Passes its input on, and takes so many seconds at a training step."""

    def __init__(self, step: int, seconds: float):
        super().__init__()
        self.left, self.seconds = step, seconds

    def forward(self, x):
        if self.training:
            self.left -= 1
            if self.left == 0:
                time.sleep(self.seconds)
        return x


def build_slow(step: int = 5, seconds: float = 6.0):
    blocks = build()
    blocks[2].append(Slow(step, seconds))
    return blocks


def build_heavy(heavy: int = 2, times: float = 4, seconds: float = 0.006):
    """Two blocks of the same weight, of which one is made so many times heavier."""
    blocks = build(depth=2)
    for number, block in enumerate(blocks, 1):
        block.append(Drag(seconds * (times if number == heavy else 1)))
    return blocks


def keep_the_lock(seconds: float) -> None:
    """Keep the interpreter's lock, as one long call into an extension does."""
    ctypes.PyDLL(None).usleep(int(seconds * 1e6))


class Locking(nn.Module):
    """Passes its input on, and keeps the interpreter's lock for so many seconds at a training step."""

    def __init__(self, step: int, seconds: float):
        super().__init__()
        self.left, self.seconds = step, seconds

    def forward(self, x):
        if self.training:
            self.left -= 1
            if self.left == 0:
                keep_the_lock(self.seconds)
        return x


def build_locking(step: int = 5, seconds: float = 8.0):
    blocks = build()
    blocks[2].append(Locking(step, seconds))
    return blocks


def locking_data():
    """Digits, read while the interpreter's lock is kept."""
    keep_the_lock(8)
    return alrpc.load_data("digits")


class Hanging(alrpc.Split):
    """Gives a few micro-batches, then hangs."""

    given = 0

    def batch(self, indices):
        Hanging.given += 1
        if Hanging.given > 12:
            time.sleep(1000)
        return super().batch(indices)


def hanging():
    digits = alrpc.load_data("digits")
    return alrpc.Dataset(Hanging(digits.train.inputs, digits.train.labels), digits.test, digits.target)


class Rare(alrpc.Split):
    """A sampler: each epoch trains on 1,500 draws, with repetition, in which every class is as frequent as any other."""

    def order(self, seed, epoch, batch_size):
        generator = torch.Generator().manual_seed(1000 * seed + epoch)
        weights = 1 / torch.bincount(self.labels)[self.labels]
        return torch.multinomial(weights, 1500, replacement=True, generator=generator)


def sampled():
    digits = alrpc.load_data("digits")
    return alrpc.Dataset(Rare(digits.train.inputs[:700], digits.train.labels[:700]), digits.test, digits.target)


def misfit():
    return [nn.Linear(3, 3)]


def needy(width: int):
    return [nn.Linear(64, width)]


def raising():
    raise RuntimeError("no blocks today")


def no_list():
    return 7


def regression():
    """scikit-learn's diabetes progression: 10 features to 1 value."""
    from sklearn import datasets

    data = datasets.load_diabetes()
    inputs = torch.tensor(data.data, dtype=torch.float32) * 20
    values = (torch.tensor(data.target, dtype=torch.float32).unsqueeze(1) - 150) / 80
    return alrpc.Dataset(alrpc.Split(inputs[:352], values[:352]), alrpc.Split(inputs[352:], values[352:]), alrpc.Values(1))


def several_labels():
    """The digits, of each of which it is told whether it is even, at least 5, and divisible by 3."""
    digits = alrpc.load_data("digits")

    def told(split):
        number = split.labels
        return alrpc.Split(split.inputs, torch.stack([number % 2 == 0, number >= 5, number % 3 == 0], dim=1).to(torch.uint8))

    return alrpc.Dataset(told(digits.train), told(digits.test), alrpc.Labels(3), classes=["even", "large", "threefold"])


def build_for_regression():
    return [nn.Sequential(nn.LazyLinear(32), nn.ReLU()), nn.Sequential(nn.LazyLinear(32), nn.ReLU())]


def no_dataset():
    return {}


def build_that_exits():
    """Ends the process that builds it, as if all were well, but in the coordinator, which must know the number of blocks."""
    if os.environ.get("RANK") == "2":
        sys.exit(0)
    return build()


def build_with_a_thread():
    """Leaves a thread in each process of the run that never ends."""
    if "RANK" in os.environ:
        threading.Thread(target=time.sleep, args=(1000,)).start()
    return build()


class Picky(nn.Linear):
    """Refuses rows whose first number is negative."""

    def forward(self, x):
        if (x[:, 0] < 0).any():
            raise ValueError("a negative number")
        return super().forward(x)


class Endless:
    """Digits in a random order, again and again, each with noise that is drawn when it is read."""

    def __init__(self, split):
        self.split = split

    def __iter__(self):
        while True:
            for index in torch.randperm(len(self.split)).tolist():
                image = self.split.inputs[index]
                yield image + 0.1 * torch.randn_like(image), int(self.split.labels[index])


def endless():
    digits = alrpc.load_data("digits")
    return alrpc.as_dataset(Endless(digits.train), (digits.test.inputs, digits.test.labels))
