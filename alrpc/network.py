"""A network: components in order, predicted from by any exit; and how one is built from blocks or from a configuration.

Every process of a run builds the same network from the same configuration.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from alrpc.config import Config, Train, check_config, user_code_fields
from alrpc.config.own_code import import_function
from alrpc.data import check_data
from alrpc.data.dataset import WordVectors
from alrpc.errors import UsageError, UserError
from alrpc.models import OBJECTIVES, check_model, check_weights, common_fields
from alrpc.models.build import build_parts, resolve_model
from alrpc.models.parts import Parts
from alrpc.models.weights import load_weights
from alrpc.objectives.associated import AssociatedLearning
from alrpc.objectives.base import Component, Objective, Tensors, as_tensors, eval_mode
from alrpc.objectives.build import build_components, check_class_weights, make_objective, warn_of_idle_blocks
from alrpc.objectives.handover import check_handover
from alrpc.objectives.targets import Target
from alrpc.system import peak_memory


class Network(nn.Module):
    """L components with one objective. `components[l - 1]` is component l."""

    def __init__(self, components: Iterable[Component]):
        super().__init__()
        self.components = nn.ModuleList(components)
        self.objective = self.components[0].objective
        self.target = self.objective.target

    def aim(self, target: Target) -> None:
        """Learn from now on as the classes of this target, equal to the network's but for their weights, count.

        Raises:
            UsageError: when no loss of the objective heeds weights of classes.
        """
        check_class_weights(self.objective, target)
        self.target = self.objective.target = target

    def forward(self, inputs: Tensor | Tensors, exit: int | None = None) -> Tensor:
        """The output of an exit, in the space of the labels: (N, classes) scores, also of labels, or (N, width) values.

        Args:
            inputs: (N, ...) as the sample given to `associate`, or named tensors.
            exit: l for the prediction after l components; None for the full path (l = L).
        """
        depth = len(self.components) if exit is None else exit
        if not 1 <= depth <= len(self.components):
            raise ValueError(f"exit: got {exit}, but the network has exits 1 to {len(self.components)}")
        tensors = as_tensors(inputs)
        used, outputs = list(self.components[:depth]), []
        for component in used:
            tensors = component.activate(tensors)
            if self.objective.combines_exits or component is used[-1]:
                outputs.append(component.read_exit(tensors))
            if not torch.is_grad_enabled():  # as the next component gets them in an evaluation, so that both give the same bits
                tensors = component.hand_over(tensors)
        return self.objective.decode([component.exit_parts() for component in used], outputs)

    @torch.no_grad()
    def predict(self, inputs: Tensor | Tensors, exit: int | None = None) -> Tensor:
        """What an exit predicts: the class index, (N,), whether a sample has each label, (N, count) bool, or the values, (N, width); in
        evaluation mode, on the inputs' device."""
        tensors = as_tensors(inputs)
        device = next(iter(self.parameters())).device
        with eval_mode(self):
            output = self({name: tensor.to(device) for name, tensor in tensors.items()}, exit)
        return self.target.decide(output).to(next(iter(tensors.values())).device)

    def count_parameters(self) -> dict[str, int]:
        """`effective`: what the full path's prediction uses; `affiliated`: what only training uses."""
        return count_parameters(self.components, has_last=True)

    def digest(self) -> str:
        """SHA-256 over every parameter and buffer of every component, in order."""
        return combine_digests(component_digest(component) for component in self.components)


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
    """Turn a list of ordinary blocks into a network of associated-learning components; `alrpc.cut` makes blocks of a model.

    Every size is found by running `sample_input` through the blocks in evaluation mode; lazy modules
    (`nn.LazyLinear` and its kin) take their sizes from it too. New parameters are drawn from torch's global generator.

    Args:
        blocks: f_1 … f_L, each an `nn.Module`.
        sample_input: a micro-batch of at least one sample, (N, ...), or named tensors.
        target: `Classes(count)`, `Labels(count)` or `Values(width)`.
        target_width: width of t_l for every l ≥ 1.
        bridge_widths: hidden widths of each bridge; the last layer, to `target_width`, is added.
        activation: after each layer of a bridge or an encoder: sigmoid, tanh, relu, gelu or none.
        decoder_activation: after each decoder, but never after h_1 of labels or of a regression.
        pooling: how a bridge makes one vector of a block's output: `flatten`; `mean` over tokens or pixels (only those
            where a tensor named "mask" is true, for sequences); `grid`, a 4 × 4 average pool, then flatten; or `auto`:
            vectors as they are, `mean` for sequences (N, T, C), `grid` for images (N, C, H, W).
        associated_loss: mse or smooth_l1.
        autoencoder_loss: mse, or cross_entropy for the first component of a classification (mse for the others); labels always have it there.
        bridges, encoders, decoders: one's own b, g or h for each component; None in a place builds the default there.
        pools: one's own first module of each default bridge, which makes a vector of what its `takes` names; None in a
            place does what `pooling` says there.

    Raises:
        UserError: naming the argument or the component whose parts do not fit together.

    Warns:
        Advice: of blocks without parameters, which are components that train no block.
    """
    objective = AssociatedLearning(
        target,
        target_width=target_width,
        bridge_widths=bridge_widths,
        activation=activation,
        decoder_activation=decoder_activation,
        pooling=pooling,
        associated_loss=associated_loss,
        autoencoder_loss=autoencoder_loss,
    )
    own = {"bridges": bridges, "encoders": encoders, "decoders": decoders, "pools": pools}
    return _network_of(blocks, sample_input, objective, own)


def decouple(
    blocks: Sequence[nn.Module],
    sample_input: Tensor | Tensors,
    target: Target,
    objective: str | Callable[..., Objective] = "classifier",
    *,
    heads: Sequence[nn.Module | None] | None = None,
    pools: Sequence[nn.Module | None] | None = None,
    **options: Any,
) -> Network:
    """Turn a list of ordinary blocks into a network whose blocks learn by themselves, by any objective.

    Sizes and parameters are found and drawn as by `associate`, which has the own parts of associated learning.

    Args:
        blocks: f_1 … f_L, each an `nn.Module`.
        sample_input: a micro-batch of at least one sample, (N, ...), or named tensors.
        target: `Classes(count)`, `Labels(count)` or `Values(width)`; some objectives learn from classes alone.
        objective: the name of an objective (`alrpc list`); or one's own `alrpc.Objective`, a class or function that is called with
            the target and the options.
        heads: one's own head for each component, for the objectives that classify by one; None in a place builds the default.
        pools: one's own first module of each default head, which makes a vector of what its `takes` names; None in a place does
            what the option `pooling` says.
        options: the fields of the objective in the configuration's section `objective` (`alrpc config objective`).

    Raises:
        UserError: naming the argument, the option or the component that is wrong.

    Warns:
        Advice: of blocks without parameters, which are components that train no block.
    """
    made = make_objective(objective, target, options)
    return _network_of(blocks, sample_input, made, {"heads": heads, "pools": pools})


def _network_of(
    blocks: Sequence[nn.Module],
    sample_input: Tensor | Tensors,
    objective: Objective,
    own: dict[str, Sequence[nn.Module | None] | None],
) -> Network:
    network = Network(build_components(blocks, sample_input, objective, own))
    of_blocks = sum(parameter.numel() for block in blocks for parameter in block.parameters())
    added = sum(parameter.numel() for parameter in network.parameters()) - of_blocks
    more = f" (all components add {added:,} parameters to the {of_blocks:,} of the blocks)"
    warn_of_idle_blocks(blocks, more, stacklevel=4)
    return network


def resolve(config: Config) -> tuple[Config, int]:
    """Check what can be checked without the data; fill in the model's own defaults.

    Returns:
        The resolved configuration and the number of components.

    Raises:
        UsageError: naming the field, what was given and what would be right.
    """
    check_config(config)
    check_model(config.model)
    check_data(config.data)
    for field, value in user_code_fields(config).items():
        for name in value.strip("[]").split(","):
            if ":" in name:
                import_function(name, field)
    model = resolve_model(config)
    objective = config.objective.model_dump(exclude_unset=True)
    if config.objective.name == "associated":
        objective = {**OBJECTIVES.get(config.model.name, {}), **objective}
    config = Config.model_validate({**config.model_dump(), "model": model, "objective": objective})
    with torch.random.fork_rng(devices=[]):
        blocks = build_parts(config.model, config.train.seed).blocks
    check_handover(common_fields(config.model).handover, getattr(config.objective, "delay", 0))
    frozen = common_fields(config.model).freeze
    if frozen > len(blocks):
        raise UsageError(f"model.freeze: got {frozen}, but the model has {len(blocks)} blocks; use 0 to {len(blocks)}")
    warn_of_idle_blocks(blocks)
    return config, len(blocks)


def configured_objective(config: Config, target: Target) -> Objective:
    """The objective of a configured network; raises as `make_objective`."""
    return make_objective(config.objective.name, target, config.objective.model_dump(exclude={"name"}))


def build_network(config: Config, sample: Tensors, target: Target) -> Network:
    """The network on the CPU, with random parameters, a function of the arguments alone; torch's generator is left as it was.

    Raises:
        UserError: when the blocks do not fit the data.
    """
    return _build(config, sample, target)[0]


def begin_network(config: Config, sample: Tensors, target: Target, word_vectors: WordVectors | None = None) -> Network:
    """The network with which a run begins: as `build_network`, with the parameters of `model.weights`, and word vectors.

    Raises:
        UserError: when the blocks do not fit the data, the weights the blocks, or the word vectors the first block.
    """
    network, parts = _build(config, sample, target)
    begin_parts(parts, config, word_vectors)
    return network


def begin_parts(parts: Parts, config: Config, word_vectors: WordVectors | None) -> None:
    """Load the trained parameters with which a run begins into a model whose lazy modules have their sizes; raises UserError."""
    weights = common_fields(config.model).weights
    if weights is not None:
        check_weights(weights)
        load_weights(parts, weights)
    if word_vectors is not None:
        load_word_vectors(parts.blocks[0], word_vectors)


def _build(config: Config, sample: Tensors, target: Target) -> tuple[Network, Parts]:
    with torch.random.fork_rng(devices=[]):
        parts = build_parts(config.model, config.train.seed, sample)
        network = Network(build_components(parts.blocks, sample, configured_objective(config, target), parts.own))
    common = common_fields(config.model)
    check_handover(common.handover, network.objective.delay)
    for component in network.components:
        component.handover = common.handover
    for component in network.components[: common.freeze]:
        component.freeze()
    check_rates(network, config.train)
    return network, parts


def check_rates(network: Network, train: Train) -> None:
    """Refuse, with a UsageError, learning rates of groups of parameters that no component has."""
    groups = {name for component in network.components for name in component.trained_groups()}
    for name in sorted(train.group_lr.keys() - groups):
        raise UsageError(
            f"train.group_lr: got {name}, but the objective's groups of parameters are {', '.join(sorted(groups))}"
        )


@torch.no_grad()
def load_word_vectors(block: nn.Module, vectors: WordVectors) -> None:
    """Put word vectors into the block's embedding; words that have none keep their random ones.

    Raises:
        UserError: when there is no embedding, or it has another width.
    """
    embedding = next((module for module in block.modules() if isinstance(module, nn.Embedding)), None)
    if embedding is None:
        raise UserError("data.word_vectors: the model's first block has no nn.Embedding to put them into")
    if embedding.embedding_dim != vectors.values.shape[1]:
        raise UserError(
            f"data.word_vectors: got vectors of {vectors.values.shape[1]} numbers, but the model's embedding has "
            f"{embedding.embedding_dim}; set model.width to the vectors'"
        )
    embedding.weight[vectors.rows] = vectors.values


def count_parameters(components: Sequence[Component], has_last: bool) -> dict[str, int]:
    """Effective and affiliated parameters of consecutive components.

    Args:
        has_last: whether the network's last component is among them.
    """
    affiliated = 0
    for component in components:
        modules = component.objective.training_only(component, has_last and component is components[-1])
        affiliated += sum(parameter.numel() for module in modules for parameter in module.parameters())
    everything = sum(parameter.numel() for component in components for parameter in component.parameters())
    return {"effective": everything - affiliated, "affiliated": affiliated}


def describe_components(components: Sequence[Component], has_last: bool, device: torch.device) -> dict:
    """What a process says of its trained components at the end: digests, parameter counts, peak memory in bytes."""
    return {
        "digests": [component_digest(component) for component in components],
        "parameters": count_parameters(components, has_last),
        "peak_memory": peak_memory(device),
    }


def component_digest(component: nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of a component's parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in component.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def combine_digests(digests: Iterable[str]) -> str:
    """The network's digest from its components', so that no process needs all the parameters."""
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()
