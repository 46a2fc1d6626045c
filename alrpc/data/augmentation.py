"""Random augmentation of training images, a pure function of seed, epoch and sample."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from alrpc.config.own_code import check_choice
from alrpc.system import derive_seed


def augment(images: Tensor, kind: Literal["basic", "strong"], seed: int, epoch: int, indices: Tensor) -> Tensor:
    """The augmented images that a run with this seed trains on in an epoch.

    The random numbers of a sample depend only on seed, epoch and the sample's index: not on the rest of the micro-batch, the
    process that reads it or earlier draws. torch's global generator is left unchanged.

    Args:
        images: (n, C, H, W) uint8, C = 1 or 3.
        kind: basic: a random crop of the image padded with zeros by an eighth of its side (4 pixels at 32), and a horizontal
            flip with probability 0.5. strong: also, with probability 0.8, a change of brightness, contrast and saturation by
            up to 0.4 and of hue by up to 0.1, and with probability 0.2 a conversion to grayscale. An image with one channel
            has neither saturation nor hue.
        indices: (n,) indices of the images in the training split.

    Raises:
        UsageError: for another kind.
    """
    check_choice("augmentation", kind, ("basic", "strong"))
    change = _transform(kind, *images.shape[-2:])
    changed = []
    with torch.random.fork_rng(devices=[]):  # torchvision only draws from the global generator
        for image, index in zip(images, indices.tolist(), strict=True):
            torch.default_generator.manual_seed(derive_seed(seed, "augmentation", epoch, index))
            changed.append(change(image))
    return torch.stack(changed)


@functools.cache
def _transform(kind: Literal["basic", "strong"], height: int, width: int) -> Callable[[Tensor], Tensor]:
    from torchvision.transforms import v2

    # Pillow images, since at 32 × 32 their colour jitter takes half the time of that on tensors.
    steps = [v2.ToPILImage(), v2.RandomCrop((height, width), padding=[width // 8, height // 8]), v2.RandomHorizontalFlip()]
    if kind == "strong":
        steps += [v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8), v2.RandomGrayscale(0.2)]
    return v2.Compose([*steps, v2.PILToTensor()])
