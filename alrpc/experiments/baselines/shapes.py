"""The shapes of what travels between the processes of a pipeline, which torch's schedules must know beforehand."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, distributed
from torch.nn import functional

from alrpc.experiments.baselines.model import ModelPart
from alrpc.pipeline.failures import log_line
from alrpc.training.step import autocast

HEADER = 64  # numbers in a message about tensors
Sizes = tuple[tuple[int, ...], ...]
"""The sizes of one sample of each of some tensors: their shapes without the first dimension."""


def pack(numbers: Sequence[int], sizes: Sizes) -> Tensor:
    """Write a message, (HEADER,) int64: some numbers, then how many tensors there are, and each one's rank and sizes."""
    written = [*numbers, len(sizes), *(number for each in sizes for number in (len(each), *each))]
    return functional.pad(torch.tensor(written), (0, HEADER - len(written)))


def unpack(message: Tensor, count: int) -> tuple[list[int], Sizes]:
    """Read a message that begins with `count` numbers."""
    numbers = iter(message.tolist())
    first = [next(numbers) for _ in range(count)]
    return first, tuple(tuple(next(numbers) for _ in range(next(numbers))) for _ in range(next(numbers)))


def find_sizes(module: ModelPart, precision: str, sizes: Sizes) -> list[Sizes] | None:
    """The sizes of what the first process takes, as given, then of what each process gives; None where a block raises.

    Called in all processes, which run a forward pass of one sample, of ones, one after the other; all find the same.
    """
    found = [sizes]
    for source in range(distributed.get_world_size()):
        message = torch.zeros(HEADER, dtype=torch.int64)
        if source == distributed.get_rank():
            message = pack((), run_one_sample(module, precision, found[-1]))
        distributed.broadcast(message, src=source)
        _, given = unpack(message, 0)
        if not given:
            return None
        found.append(given)
    return found


def run_one_sample(module: ModelPart, precision: str, sizes: Sizes) -> Sizes:
    """The sizes of what a part gives for what it takes; none if it raises."""
    device, training = next(module.parameters()).device, module.training
    inputs = [torch.ones(1, *each, dtype=dtype, device=device) for each, dtype in zip(sizes, taken_types(module), strict=True)]
    module.eval()
    try:
        with torch.no_grad(), autocast(device, precision):
            output = module.forward(*inputs)  # as it is before it is compiled, which is not worth it for one sample
    except Exception as error:  # a block of the user's own may raise anything
        log_line(f"a forward pass of one sample failed, so torch finds the shapes with all samples: {error}")
        return ()
    finally:
        module.train(training)
    return tuple(tuple(tensor.shape[1:]) for tensor in (output if isinstance(output, tuple) else (output,)))


def taken_types(module: ModelPart) -> list[torch.dtype]:
    """The types of the tensors that a part is called with: between two parts all of them are float32."""
    return [module.types[name] if module.is_first else torch.float32 for name in module.takes]


def static_arguments(module: ModelPart, rank: int, samples: int, found: list[Sizes] | None) -> dict[str, tuple[Tensor, ...]]:
    """What a PipelineStage is told of the shapes: tensors without values, of so many samples; nothing where none were found.

    Then torch finds them by a forward and a backward pass of all samples through one process after the other, for each schedule.
    """
    if found is None:
        return {}
    types = taken_types(module)
    taken = [torch.empty(samples, *each, dtype=dtype, device="meta") for each, dtype in zip(found[rank], types, strict=True)]
    given = [torch.empty(samples, *each, device="meta", requires_grad=True) for each in found[rank + 1]]
    return {"input_args": tuple(each.requires_grad_(not module.is_first) for each in taken), "output_args": tuple(given)}
