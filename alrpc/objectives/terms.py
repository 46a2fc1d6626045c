"""Terms of local losses: similarity matching, and the energy of residual branches."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from alrpc.errors import UserError
from alrpc.models.pooling import Pooled
from alrpc.objectives.base import Place, gives
from alrpc.objectives.heads import BatchNorm, make_pool

EPSILON = 1e-8  # keeps the gradient of a deviation of zero finite
CHANNELS = 12  # of the convolutions that rebuild an image
BRANCHES = "residual_branches"
"""A block's attribute: the names of its submodules whose outputs are added to what runs past them."""


def similarity_loss(features: Tensor, code: Tensor) -> Tensor:
    """The mean squared difference of the similarities of samples by their features, (N, …), and by their codes, (N, C).

    The similarity of two samples is the cosine of their centred vectors (Nøkland & Eidnes, 2019, section 3.1); maps are reduced to
    the deviation of each channel, (N, C), as there.
    """
    with torch.autocast(features.device.type, enabled=False):
        if features.ndim == 4:
            features = (features.flatten(2).var(dim=2, unbiased=False) + EPSILON).sqrt()
        return functional.mse_loss(similarities(features.flatten(1)), similarities(code))


def similarities(vectors: Tensor) -> Tensor:
    """The cosines of the centred vectors of N samples, (N, D) -> (N, N)."""
    vectors = functional.normalize(vectors - vectors.mean(dim=1, keepdim=True))
    return vectors @ vectors.T


def make_embedding(place: Place) -> nn.Module:
    """What is compared of a block's output: a 3 × 3 convolution of a map, else a linear layer of the pooled vector."""
    shape = place.leaving[gives(place.block)[0]].shape
    if len(shape) == 4:
        return nn.Conv2d(shape[1], shape[1], 3, padding=1, bias=False)
    pool, width = make_pool(place, "auto")
    return Pooled(copy.deepcopy(pool), nn.Linear(width, width, bias=False))


def check_branches(blocks: Sequence[nn.Module]) -> None:
    """Refuse, with a UserError, blocks of which none names a residual branch."""
    if not any(hasattr(block, BRANCHES) for block in blocks):
        raise UserError(
            f"objective.transport: no block has residual branches; a block names them in its attribute {BRANCHES}, as those of resnet do"
        )


def watch_branches(block: nn.Module) -> None:
    """Let each residual branch of a block keep the mean square of what it adds, in training."""
    for name in getattr(block, BRANCHES, ()):
        block.get_submodule(name).register_forward_hook(_keep_energy)


def _keep_energy(module: nn.Module, inputs: tuple, output: Tensor) -> None:
    if module.training:
        module.energy = output.clone().square().mean()  # of a copy, since the block adds to the output in place


def transport_loss(block: nn.Module, like: Tensor) -> Tensor:
    """The sum over a block's residual branches of the mean square of what they add; 0, without graph, where there are none.

    Karkar, Ayed, de Bézenac & Gallinari, Module-wise Training of Neural Networks via the Minimizing Movement Scheme, NeurIPS 2023,
    section 3: the kinetic energy of the transport, by a mean instead of a sum.
    """
    branches = [block.get_submodule(name) for name in getattr(block, BRANCHES, ())]
    return sum((branch.__dict__.pop("energy").float() for branch in branches), like.new_zeros(()))


def make_reconstructor(place: Place, wanted: Tensor) -> nn.Module:
    """What rebuilds the network's input, (N, …), from a block's output: two 3 × 3 convolutions for images, the second at the input's
    size; else a pool and a linear layer (Wang et al., Revisiting Locally Supervised Learning, ICLR 2021, section 3.3).

    Raises:
        UserError: for an input that holds indices, as a text's words.
    """
    name = gives(place.block)[0]
    shape = place.leaving[name].shape
    if not wanted.is_floating_point():
        raise UserError(
            f"objective.reconstruction: rebuilds an input of numbers, but the network's holds indices ({wanted.dtype}), as of a "
            "text's words; leave it out"
        )
    if len(shape) == 4 == wanted.ndim:
        return nn.Sequential(
            nn.Conv2d(shape[1], CHANNELS, 3, padding=1, bias=False),
            BatchNorm(CHANNELS),
            nn.ReLU(),
            nn.Upsample(tuple(wanted.shape[2:])),  # by repetition, whose gradient is deterministic on a GPU
            nn.Conv2d(CHANNELS, wanted.shape[1], 3, padding=1),
        )
    pool, width = make_pool(place, "auto")
    return Pooled(copy.deepcopy(pool), nn.Linear(width, wanted[0].numel()), nn.Unflatten(1, tuple(wanted.shape[1:])))
