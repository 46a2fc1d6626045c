"""From a configuration to the things it names: network, recipe, device. Every process builds the same from the same."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from alrpc.association import associate
from alrpc.component import Target
from alrpc.config import Config, Train
from alrpc.data import check_data
from alrpc.data.dataset import WordVectors
from alrpc.errors import UserError
from alrpc.models import OBJECTIVES, build_parts, resolve_fields
from alrpc.network import Network
from alrpc.observe.tensorboard import check_tensorboard
from alrpc.pipeline.topology import split_components
from alrpc.training.optimizer import Recipe


def resolve(config: Config) -> tuple[Config, int]:
    """Check what can be checked without the data; fill in the model's own defaults.

    Returns:
        The resolved configuration and the number of components.

    Raises:
        UserError: naming the field, what was given and what would be right.
    """
    check_data(config.data)
    if config.observe.tensorboard:
        check_tensorboard()
    if config.train.end_lr is not None and config.train.end_lr > config.train.lr:
        raise UserError(f"train.end_lr: got {config.train.end_lr}, above train.lr, {config.train.lr}; rates only fall")
    model = {"name": config.model.name, **resolve_fields(config.model.name, config.model.fields)}
    if "vocabulary" in model and "vocabulary" not in config.model.fields:
        model["vocabulary"] = config.data.vocabulary
    objective = {**OBJECTIVES.get(config.model.name, {}), **config.objective.model_dump(exclude_unset=True)}
    config = Config.model_validate({**config.model_dump(), "model": model, "objective": objective})
    with torch.random.fork_rng(devices=[]):
        parts, _ = build_parts(config.model.name, config.model.fields, config.train.seed)
    return config, len(parts["blocks"])


def check_pipeline(config: Config, components: int) -> None:
    """Refuse a pipeline that the network does not fill.

    Raises:
        UserError: naming pipeline.stages or pipeline.split.
    """
    split = config.pipeline.split
    split_components(components, config.pipeline.stages, None if split == "auto" else split)


def build_network(
    config: Config, sample: dict[str, Tensor], target: Target, word_vectors: WordVectors | None = None
) -> Network:
    """The network on the CPU, its parameters a function of the arguments alone; torch's generator is left as it was.

    Raises:
        UserError: when the blocks do not fit the data, or the word vectors do not fit the first block.
    """
    with torch.random.fork_rng(devices=[]):
        parts, _ = build_parts(config.model.name, config.model.fields, config.train.seed)
        network = associate(sample_input=sample, target=target, **config.objective.model_dump(), **parts)
    if word_vectors is not None:
        start_from_word_vectors(network.components[0].block, word_vectors)
    return network


@torch.no_grad()
def start_from_word_vectors(block: nn.Module, vectors: WordVectors) -> None:
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


def recipe_for(config: Config, micro_batches: int) -> Recipe:
    """How every component of a configured run learns, in numbers, with so many micro-batches in an epoch."""
    return make_recipe(config.train, micro_batches, config.precision, config.compile)


def make_recipe(train: Train, micro_batches: int, precision: str = "fp32", compile: bool = False) -> Recipe:
    """How every component learns, in numbers."""
    return Recipe(
        optimizer=train.optimizer,
        lr=train.lr,
        target_lr=train.target_lr or train.lr,
        end_lr_ratio=train.end_lr / train.lr if train.end_lr else 0.01,
        schedule=train.schedule,
        weight_decay=train.weight_decay,
        momentum=train.momentum,
        clip_norm=train.clip_norm,
        accumulate=train.accumulate,
        nonfinite=train.nonfinite,
        seed=train.seed,
        epochs=train.epochs,
        micro_batches=micro_batches,
        precision=precision,
        compile=compile,
    )


def local_device(wanted: str) -> torch.device:
    """The device of a process that has the machine to itself.

    Raises:
        UserError: when a GPU is wanted and there is none.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("device: got cuda, but this machine has no GPU that torch can use; use cpu or auto")
    return torch.device("cuda", 0) if wanted != "cpu" and torch.cuda.is_available() else torch.device("cpu")
