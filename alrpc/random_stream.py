"""Random numbers as pure functions of what they are for, so that no process depends on what another one drew."""

from __future__ import annotations

import hashlib

import torch


def derive_seed(*purpose: int | str) -> int:
    """A 63-bit seed from the run's seed and what it is for."""
    text = "/".join(str(part) for part in purpose)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def begin_stream(device: torch.device, seed: int, component: int, step: int) -> None:
    """Start component `component`'s random numbers for one step on the device's default generator.

    Seeding anew at each step costs microseconds and leaves nothing to carry along: step k draws the same numbers
    whatever ran before it in this process.
    """
    value = derive_seed(seed, "component", component, "step", step)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(value)
    torch.default_generator.manual_seed(value)  # a block may draw on the CPU wherever it lives
