"""The check of an export: the answers of its files beside those of the run, on random micro-batches of several sizes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from alrpc.errors import UserError
from alrpc.network import Network

LIMIT = 1e-5
"""The largest difference that rounding may make, as a share of the largest output, or of 1 if that is smaller."""
SAMPLES, SIZES = (1, 3, 8), (1, 7, 32)  # of the micro-batches, and of every other size that is free

Shapes = Sequence[tuple[str, str, tuple[int | None, ...]]]
"""Name, type and shape of each input; None for a size that is free."""


def micro_batches(network: Network, shapes: Shapes, longest: int) -> list[list[Tensor]]:
    """Random micro-batches of as many sizes as SAMPLES.

    Args:
        longest: the largest size that is free but for the number of samples.
    """
    sizes = zip(SAMPLES, SIZES, strict=True)
    return [micro_batch(network, shapes, samples, min(size, longest)) for samples, size in sizes]


def micro_batch(network: Network, shapes: Shapes, samples: int, size: int) -> list[Tensor]:
    """Random inputs: normal numbers, indices of the network's first embedding, masks of texts of several lengths."""
    generator = torch.Generator().manual_seed(0)
    count = next((each.num_embeddings for each in network.modules() if isinstance(each, nn.Embedding)), 2)
    return [
        _random([samples, *(size if wanted is None else wanted for wanted in shape[1:])], dtype, count, generator)
        for _, dtype, shape in shapes
    ]


def _random(shape: list[int], dtype: str, count: int, generator: torch.Generator) -> Tensor:
    kind = getattr(torch, dtype)
    if kind == torch.bool:  # a mask, true for at least one word, and then for no other
        lengths = torch.randint(1, shape[-1] + 1, [*shape[:-1], 1], generator=generator)
        return torch.arange(shape[-1]).expand(shape) < lengths
    if kind.is_floating_point:
        return torch.randn(shape, generator=generator).to(kind)
    return torch.randint(0, count, shape, generator=generator).to(kind)


@torch.no_grad()
def expected(
    network: Network, names: Sequence[str], exit: int | None, batches: Sequence[Sequence[Tensor]]
) -> list[list[Tensor]]:
    """What the run itself answers, in the form of `Exits`."""
    answers = []
    for batch in batches:
        tensors = dict(zip(names, batch, strict=True))
        exits = range(1, len(network.components) + 1) if exit is None else [exit]
        outputs = [network({name: tensor.clone() for name, tensor in tensors.items()}, number) for number in exits]
        kinds = [outputs]
        if network.target.named:
            kinds.append([network.objective.probabilities(output) for output in outputs])
        answers.append([torch.stack(each, dim=1) if exit is None else each[0] for each in kinds])
    return answers


def largest_difference(answers: Sequence[Sequence[Tensor]], wanted: Sequence[Sequence[Tensor]]) -> float:
    """The largest difference of an output, as a share of the largest output or of 1.

    Raises:
        UserError: when it is above LIMIT, or the outputs are of other shapes, or not finite.
    """
    largest = 0.0
    for own, run in zip(answers, wanted, strict=True):
        if [each.shape for each in own] != [each.shape for each in run]:
            raise UserError("the export gives outputs of other shapes than the run; nothing is left of it")
        for given, right in zip(own, run, strict=True):
            difference = (given.double() - right.double()).abs().max() / max(1.0, right.abs().max().item())
            largest = max(largest, difference.nan_to_num(nan=torch.inf).item())
    if largest > LIMIT:
        raise UserError(
            f"the export answers otherwise than the run, by {largest:.1e}; it may be {LIMIT:g}; nothing is left of it"
        )
    return largest
