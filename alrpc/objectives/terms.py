"""Terms of local losses: similarity matching, and the energy of residual branches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from alrpc.errors import UserError
from alrpc.models.pooling import Pooled, choose_pool
from alrpc.objectives.base import Place, gives
from alrpc.objectives.build import run_sample

EPSILON = 1e-8  # keeps the gradient of a deviation of zero finite
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
    """What is compared of a block's output: a 3 × 3 convolution of a map, a linear layer of a vector or of each token."""
    name = gives(place.block)[0]
    shape = place.leaving[name].shape
    if len(shape) == 4:
        return nn.Conv2d(shape[1], shape[1], 3, padding=1, bias=False)
    pool = choose_pool(place.leaving, name, "mean" if len(shape) > 2 else "flatten")
    width = run_sample(pool, place.leaving, f"the pool of component {place.number}", (name,)).shape[-1]
    return Pooled(pool, nn.Linear(width, width, bias=False))


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
