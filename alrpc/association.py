"""From ordinary blocks to a network: shapes found by a sample, default bridges, encoders and decoders."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from alrpc.component import Classes, Component, Target, Tensors, as_tensors, call, gives, storage
from alrpc.errors import UserError
from alrpc.network import Network, evaluating

ACTIVATIONS = {"sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "relu": nn.ReLU, "gelu": nn.GELU, "none": nn.Identity}
GRID = 4  # pixels a side that the default bridge of an image keeps


def associate(
    blocks: Sequence[nn.Module],
    sample_input: Tensor | Tensors,
    target: Target,
    *,
    target_width: int = 128,
    bridge_widths: Sequence[int] = (256,),
    activation: str = "tanh",
    decoder_activation: str = "none",
    pooling: str = "auto",
    associated_loss: str = "mse",
    autoencoder_loss: str = "mse",
    bridges: Sequence[nn.Module | None] | None = None,
    encoders: Sequence[nn.Module | None] | None = None,
    decoders: Sequence[nn.Module | None] | None = None,
    pools: Sequence[nn.Module | None] | None = None,
) -> Network:
    """Turn a list of ordinary blocks into a network of associated-learning components.

    Every size is found by running `sample_input` through the blocks in evaluation mode; lazy modules
    (`nn.LazyLinear` and its kin) take their sizes from it too. New parameters are drawn from torch's global generator.

    Args:
        blocks: f_1 … f_L, each an `nn.Module`.
        sample_input: a micro-batch of at least one sample, (N, ...), or named tensors.
        target: `Classes(count)` or `Values(width)`.
        target_width: width of t_l for every l ≥ 1.
        bridge_widths: hidden widths of each bridge; the last layer, to `target_width`, is added.
        activation: after each layer of a bridge or an encoder: sigmoid, tanh, relu, gelu or none.
        decoder_activation: after each decoder, but never after h_1 of a regression.
        pooling: how a bridge makes one vector of a block's output: `flatten`; `mean` over tokens or pixels (only those
            where a tensor named "mask" is true, for sequences); `grid`, a 4 × 4 average pool, then flatten; or `auto`:
            vectors as they are, `mean` for sequences (N, T, C), `grid` for images (N, C, H, W).
        associated_loss: mse or smooth_l1.
        autoencoder_loss: mse, or cross_entropy for the first component of a classification (mse for the others).
        bridges, encoders, decoders: one's own b, g or h for each component; None in a place builds the default there.
        pools: one's own first module of each default bridge, which makes a vector of what its `takes` names; None in a
            place does what `pooling` says there.

    Raises:
        UserError: naming the argument or the component whose parts do not fit together.
    """
    if not blocks:
        raise UserError("blocks: got none; a network needs at least one block")
    for name, given in (("bridges", bridges), ("encoders", encoders), ("decoders", decoders), ("pools", pools)):
        if given is not None and len(given) != len(blocks):
            raise UserError(f"{name}: got {len(given)} for {len(blocks)} blocks; give one for each, None for the default")
    classification = isinstance(target, Classes)
    activations = trace_blocks(blocks, as_tensors(sample_input))
    samples = len(next(iter(activations[0].values())))
    code = torch.zeros(samples, target.width)
    components = []
    for index, (block, tensors) in enumerate(zip(blocks, activations, strict=True)):
        width = code.shape[-1]
        encoder = _own(encoders, index)
        if encoder is None:
            encoder = nn.Sequential(nn.Linear(width, target_width), ACTIVATIONS[activation]())
        encoded = run_sample(encoder, {"x": code}, f"the encoder of component {index + 1}")
        decoder = _own(decoders, index)
        if decoder is None:
            unsquashed = index == 0 and not classification  # a squashed h_1 could not reach every value
            last = ACTIVATIONS["none" if unsquashed else decoder_activation]()
            decoder = nn.Sequential(nn.Linear(encoded.shape[-1], width), last)
        bridge = _own(bridges, index)
        if bridge is None:
            pool = _own(pools, index) or choose_pool(tensors, gives(block)[0], pooling)
            width = run_sample(pool, tensors, f"the pool of component {index + 1}", gives(block)[:1]).shape[-1]
            bridge = _bridge(pool, (width, *bridge_widths, encoded.shape[-1]), activation)
        component = Component(
            block, bridge, encoder, decoder, associated_loss, autoencoder_loss if index == 0 and classification else "mse"
        )
        _check_fit(component, index + 1, tensors, code, encoded)
        components.append(component)
        code = encoded
    _refuse_sharing(components)
    return Network(components, target)


def _own(modules: Sequence[nn.Module | None] | None, index: int) -> nn.Module | None:
    return modules[index] if modules is not None else None


@torch.no_grad()
def run_sample(module: nn.Module, tensors: Tensors, who: str, takes: tuple[str, ...] = ("x",)):
    """The output of a module for the sample, in evaluation mode so that no buffer moves."""
    try:
        with evaluating(module):
            return call(module, tensors, takes)
    except (RuntimeError, ValueError, TypeError, KeyError, IndexError) as error:
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{who} ({type(module).__name__}) fails on {shapes}: {reason}") from error


def trace_blocks(blocks: Sequence[nn.Module], tensors: Tensors) -> list[Tensors]:
    """The named tensors that leave each block, for a sample; lazy modules take their sizes from it.

    Raises:
        UserError: naming the block that fails, or that gives what it must not.
    """
    _refuse_reserved(tensors, "the sample")
    outputs = []
    for number, block in enumerate(blocks, 1):
        output = run_sample(block, tensors, f"block {number}")
        names, given = gives(block), output if isinstance(output, tuple) else (output,)
        if len(names) != len(given) or not all(isinstance(tensor, Tensor) for tensor in given):
            raise UserError(
                f"block {number} ({type(block).__name__}) says it gives {names}, but its output is not "
                f"{'one tensor' if len(names) == 1 else f'a tuple of {len(names)} tensors'}"
            )
        _refuse_reserved(names, f"block {number}")
        own = {storage(tensor) for tensor in (*block.parameters(), *block.buffers())}
        for name, tensor in zip(names, given, strict=True):
            if tensor.numel() and storage(tensor) in own:
                raise UserError(
                    f"block {number} gives one of its own parameters or buffers as {name!r}; give a copy (.clone()), "
                    "since training changes it while it travels"
                )
        tensors = {**tensors, **dict(zip(names, given, strict=True))}
        outputs.append(tensors)
    return outputs


def _refuse_reserved(names: Iterable[str], giver: str) -> None:
    for name in names:
        if name in ("target", "label") or "." in name:
            raise UserError(f"{giver} gives a tensor {name!r}; 'target', 'label' and names with a dot belong to the engine")


class MeanOverTokens(nn.Module):
    """(N, T, C) -> (N, C): the mean over the tokens where the mask, (N, T), is true."""

    def __init__(self, name: str):
        super().__init__()
        self.takes = (name, "mask")

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        weights = mask.to(x.dtype).unsqueeze(-1)
        return (x * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


class MeanOverPositions(nn.Module):
    """(N, T, C) -> (N, C) over tokens, (N, C, ...) -> (N, C) over pixels."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=1) if x.ndim == 3 else x.flatten(2).mean(dim=2)


class Bridge(nn.Sequential):
    """A pool and the layers after it; it takes what its pool takes."""

    def __init__(self, pool: nn.Module, *layers: nn.Module):
        super().__init__(pool, *layers)
        if hasattr(pool, "takes"):
            self.takes = pool.takes

    def forward(self, *inputs: Tensor) -> Tensor:
        pool, *layers = self
        x = pool(*inputs)
        for layer in layers:
            x = layer(x)
        return x


def _bridge(pool: nn.Module, widths: Sequence[int], activation: str) -> nn.Module:
    """The default b: a pool that makes one vector of the block's output, then linear layers."""
    layers = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), ACTIVATIONS[activation]()]
    return Bridge(pool, *layers)


def choose_pool(tensors: Tensors, name: str, pooling: str) -> nn.Module:
    """What makes one vector, (N, C), of the tensor of this name among those that leave a block."""
    shape = tensors[name].shape
    if pooling == "auto":
        pooling = {2: "flatten", 3: "mean", 4: "grid"}.get(len(shape), "flatten")
    if pooling == "mean" and len(shape) == 3 and "mask" in tensors:
        return MeanOverTokens(name)
    if pooling == "mean" and len(shape) > 2:
        return MeanOverPositions()
    if pooling == "grid" and len(shape) == 4 and math.prod(shape[2:]) > GRID * GRID:
        return nn.Sequential(nn.AdaptiveAvgPool2d(GRID), nn.Flatten())
    return nn.Flatten()


def _check_fit(component: Component, number: int, tensors: Tensors, code: Tensor, encoded: Tensor) -> None:
    """b must land where g lands, h must lead back to where g started."""
    bridged = run_sample(component.bridge, tensors, f"the bridge of component {number}", gives(component.block)[:1])
    if bridged.shape != encoded.shape:
        raise UserError(
            f"the bridge of component {number} gives {tuple(bridged.shape)}, its encoder {tuple(encoded.shape)}; "
            "both must be of one shape"
        )
    decoded = run_sample(component.decoder, {"x": encoded}, f"the decoder of component {number}")
    if decoded.shape != code.shape:
        raise UserError(
            f"the decoder of component {number} gives {tuple(decoded.shape)}, but its encoder was given {tuple(code.shape)}; "
            "a decoder leads back to that shape"
        )


def _refuse_sharing(components: Sequence[Component]) -> None:
    """Components update on their own, in their own processes: a tensor in two of them would drift apart."""
    owner: dict[int, int] = {}
    for number, component in enumerate(components, 1):
        for tensor in (*component.parameters(), *component.buffers()):
            first = owner.setdefault(id(tensor), number)
            if first != number:
                raise UserError(f"components {first} and {number} share a parameter or buffer; each must own its own")
