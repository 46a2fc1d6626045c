"""A run's configuration: read from YAML and typed; every field is documented where it is declared.

This module never imports torch, so that a mistake in a configuration file is reported at once.
"""

from __future__ import annotations

import difflib
import importlib.util
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from alrpc import rundir
from alrpc.config.data import Data
from alrpc.config.model import Model
from alrpc.config.objectives import SECTIONS, Associated, Classifier, Objective
from alrpc.config.own_code import did_you_mean
from alrpc.config.section import Section, name_or_own
from alrpc.errors import UsageError, UserError
from alrpc.reading import documents

DEFAULT = "digits-mlp"
EVALUATE_EVERY = 1000  # steps, where train.evaluate_every is null
LARGEST = (1 << 31) - 1  # of a configuration's numbers: what sizes and times beyond it ask for is never there
NAMES = {"model.name": "mlp", "objective.name": "associated"}
"""The names that decide which other fields a section has, and their defaults."""
METRICS = ("macro_f1", "micro_f1", "balanced_accuracy", "average_precision", "auroc", "log_loss", "top3", "top5", "mae", "r2")
PYTHON = "python"  # names the model and the data of a run whose network and data set a caller of `alrpc.train` has made


def _say(right: str) -> WrapValidator:
    """Validates a union of types, with one message for all of its members: what it should be."""

    def check(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
        try:
            return validate(value)
        except ValidationError as error:
            raise PydanticCustomError("union", "it should be {right}", {"right": right}) from error

    return WrapValidator(check)


class Train(Section):
    epochs: PositiveInt = 30
    """Passes over the training data; an evaluation follows each pass."""
    steps: PositiveInt | None = None
    """Micro-batches to train on in all, in place of train.epochs: those of pass after pass, or of a stream, which has no passes; null to
    count passes. Whatever is told or set by epochs then counts parts of train.evaluate_every steps."""
    evaluate_every: PositiveInt | None = None
    """Steps between two evaluations of a run by train.steps, of which it is a divisor; null for 1,000, or all if they are fewer."""
    patience: PositiveInt | None = None
    """Epochs without a better score of the last exit on the validation split (data.validation) after which training ends, before
    train.epochs; null to train all of them. The next epoch then begins only when the score of the last one is known, so a
    pipeline empties and fills again once an epoch."""
    seed: int = 0
    """Seed of the initial parameters, the order of samples and every random number."""
    optimizer: Annotated[str, *name_or_own("adam", "adamw", "sgd", "lars")] = "adam"
    """Optimizer; each component has its own instance. lars is sgd whose rate is adapted to each tensor (You et al., 2017). A function
    of your own is called with the parameter groups, lr and weight_decay, and gives a torch.optim.Optimizer."""
    lr: PositiveFloat = 1e-3
    """Learning rate at the first step of the blocks and of what trains them, such as bridges, heads and projectors."""
    target_lr: PositiveFloat | None = None
    """Learning rate at the first step of what trains no block: target encoders and decoders, or a predictor of an exit; null for
    the same as lr."""
    group_lr: dict[str, PositiveFloat] = {}  # noqa: RUF012
    """Learning rates at the first step of further groups of parameters, by the names that an objective of your own gives them."""
    end_lr: PositiveFloat | None = None
    """Value of lr at the last step, with the other rates in proportion; null for a hundredth of lr. A constant schedule ignores it."""
    schedule: Annotated[str, *name_or_own("constant", "linear", "cosine")] = "cosine"
    """How the learning rates change from the first step to the last. A function of your own is called with the first and the last
    rate, the step, from 0, and the number of steps, and gives the rate."""
    warmup: NonNegativeFloat = 0.0
    """Epochs in which the learning rates rise in equal steps from 0 to their first values; the schedule follows."""
    weight_decay: float = Field(0.0, ge=0)
    """L2 penalty for adam, sgd and lars, decoupled for adamw."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum of sgd and lars; the other optimizers ignore it."""
    nesterov: bool = False
    """Whether the momentum of sgd is Nesterov's; the other optimizers ignore it."""
    betas: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)] = [0.9, 0.999]  # noqa: RUF012
    """Decay rates of the running means of gradients and of their squares in adam and adamw; the other optimizers ignore them."""
    clip_norm: PositiveFloat | None = None
    """Largest gradient norm; each of a component's parameter groups is clipped by itself; null for no clipping."""
    accumulate: PositiveInt = 1
    """Micro-batches whose gradients are averaged before one optimizer step."""
    class_weights: Annotated[
        list[PositiveFloat] | Literal["balanced"] | None, _say("the weights of the classes, or balanced, or null")
    ] = None
    """What the samples of each class count in cross entropies, in the order of the classes' indices; balanced: in inverse proportion to
    their number in the training split, 1 on average; null for 1 each. Evaluations count every sample alike."""
    nonfinite: Literal["stop", "skip"] = "stop"
    """What to do when a loss or gradient is infinite or not a number: stop the run, or skip that component's update and count it."""
    metrics: list[Annotated[str, *name_or_own(*METRICS)]] = []  # noqa: RUF012
    """Metrics of every exit beside accuracy, label_accuracy or mse, by scikit-learn. A function of your own is called with the labels,
    (N,), or (N, width), and the outputs, (N, width) probabilities, or values, as numpy arrays, and gives a number."""
    log_every: PositiveInt = 50
    """Steps over which one line of losses in metrics.jsonl averages."""


class Pipeline(Section):
    stages: PositiveInt = 1
    """Number of processes that train; at most the number of components."""
    split: Annotated[
        list[PositiveInt] | Literal["auto"] | None,
        _say("the number of components of each stage, such as [1, 2, 1], or auto, or null"),
    ] = None
    """Number of components of each stage, such as [1, 2, 1]; null for an even split; auto for the best split by measured costs."""
    window: PositiveInt = 2
    """Packets that a stage may receive ahead of their use, and packets it may have sent that the next stage has not yet taken."""
    pin_cores: Literal["auto", "always", "never"] = "auto"
    """Pin each stage on a CPU to cores of its own; auto: only when the stages together fill the machine's cores exactly."""
    port: int = Field(0, ge=0, le=65535)
    """Has no effect any more: the processes of `alrpc launch` meet through a file, not at a port. Configurations of 0.1 may have it."""


class Checkpoint(Section):
    every: PositiveInt | None = None
    """Number of steps between two checkpoints within an epoch; null for no checkpoints by steps."""
    seconds: PositiveFloat | None = None
    """Seconds between two checkpoints within an epoch; null for no checkpoints by time."""
    epoch: bool = True
    """Whether to take a checkpoint after every epoch. The end of a run always takes one."""
    best: bool = True
    """With a validation split: take a checkpoint after every epoch, keep that of the best one beside the last `keep`, and evaluate
    the test split with its parameters, which also are those of the run's summary and of the network that `alrpc.train` leaves; false
    for those of the last epoch. The best epoch has the best score of the last exit, the earliest of several."""
    keep: PositiveInt = 2
    """Number of complete checkpoints to keep; hosts that do not share a disk with the coordinator keep one more."""
    grace: PositiveFloat = 25.0
    """Seconds that a run has for a last checkpoint after SIGTERM."""


class Health(Section):
    timeout: float = Field(30.0, ge=5)
    """Seconds within which a frozen process, a hung data loader or a lost network is detected and the run is ended. A stage that
    computes for longer than this, or whose interpreter lock some code keeps, is reported as slow, but the run waits for it."""


class Observe(Section):
    tensorboard: bool = False
    """Write the scalars of every component and stage, and the timeline, for TensorBoard; needs the extra `tensorboard`."""
    loggers: list[Literal["wandb", "trackio", "mlflow"]] = []  # noqa: RUF012
    """Other loggers of these scalars and of the configuration: Weights & Biases, trackio, MLflow; each needs the extra of its name."""


class Config(Section):
    model: Model = Model()
    objective: Objective = Associated()
    data: Data = Data()
    train: Train = Train()
    pipeline: Pipeline = Pipeline()
    checkpoint: Checkpoint = Checkpoint()
    health: Health = Health()
    observe: Observe = Observe()
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: GPUs if every stage's host has at least one (stages share them if necessary), else the CPU."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: forward passes and losses in bfloat16 where torch.autocast allows it, also on a CPU; parameters stay float32."""
    compile: bool = False
    """Compile each component's forward and backward pass with torch.compile; on a CPU this needs a C++ compiler. Baselines compile
    their layers."""
    channels_last: bool = False
    """Keep the weights of convolutions, and so the images between them, with the channels last in memory, which convolutions on a
    CPU, and in bf16 on a GPU, are often faster with. Baselines do so too."""
    threads: PositiveInt = 1
    """CPU threads for the arithmetic of one component, in either engine. Results are equal only with equal numbers of threads."""


def load_config(source: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Read and validate a configuration.

    Args:
        source: a YAML file, or the name of a configuration that ships with the package; None for digits-mlp.
        overrides: `section.field=value`, each value parsed as YAML.

    Raises:
        UsageError: one line that names the field, what was given and what would be right.
    """
    path = find_config(source)
    try:
        tree = documents.read_yaml(path)
    except UserError as error:
        raise UsageError(str(error)) from error
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise UsageError(
            f"{path}: got a {type(tree).__name__} at the top; it must be a mapping of {', '.join(Config.model_fields)}"
        )
    if any(override.startswith("train.steps=") for override in overrides) and isinstance(tree.get("train"), dict):
        tree["train"].pop("epochs", None)  # steps take their place
    for override in sorted(overrides, key=lambda text: text.partition("=")[0] not in NAMES):  # these before the other fields
        _apply(tree, override)
    return parse_config(tree)


def parse_config(tree: dict[str, Any]) -> Config:
    """Validate a configuration given as nested dictionaries.

    Raises:
        UsageError: one line that names the field, what was given and what would be right.
    """
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        raise UsageError(_one_line(error)) from error
    config = _counted(config)
    free = (
        ("train.seed", "model.") if config.model.is_own else ("train.seed",)
    )  # one's own function knows what its fields may be
    for name, value in flat_fields(config.model_dump()):
        largest = max(map(abs, _numbers(value)), default=0)
        if largest > LARGEST and not name.startswith(free):
            raise UsageError(f"{name}: got {documents.shown(largest)}; the largest number of a configuration is {LARGEST:,}")
    return config


def _counted(config: Config) -> Config:
    """The configuration of a run by steps with the number of its parts as that of epochs."""
    train = config.train
    if train.steps is None:
        if train.evaluate_every is not None:
            raise UsageError(
                f"train.evaluate_every: got {train.evaluate_every} without train.steps; a run by epochs is evaluated after each of them, so "
                "leave it out"
            )
        return config
    every = min(train.evaluate_every or EVALUATE_EVERY, train.steps)
    if train.steps % every:
        below = train.steps // every * every
        raise UsageError(
            f"train.steps: got {train.steps}, which is no multiple of train.evaluate_every, {every}; give {below} or {below + every}, "
            "or, to a new run, another train.evaluate_every"
        )
    if every % train.accumulate:
        raise UsageError(
            f"train.accumulate: got {train.accumulate}, of which train.evaluate_every, {every}, is no multiple; no evaluation may come "
            "between the micro-batches of one update"
        )
    if "epochs" in train.model_fields_set and train.epochs != train.steps // every:
        raise UsageError(f"train.epochs: got {train.epochs} beside train.steps, {train.steps}; give one of the two")
    counted = {"epochs": train.steps // every, "evaluate_every": every}
    return config.model_copy(update={"train": train.model_copy(update=counted)})


def parse_section(name: str, fields: dict[str, Any]) -> Any:
    """Validate one section, given as a dictionary; raises like `parse_config`."""
    return getattr(parse_config({name: fields}), name)


def run_name(config: Config) -> str:
    """The name of a run's directory where none is given: its model and its data, as a name that every file system takes."""
    return re.sub(r"[^\w.-]+", "-", f"{config.model.name}-{config.data.name}")


def find_config(source: str | Path | None) -> Path:
    """The file of a configuration that is given by path or by the name under which it ships."""
    path = Path(source or DEFAULT)
    if path.is_file():
        return path
    shipped = shipped_configs()
    if str(path) in shipped:
        return shipped[str(path)]
    raise UsageError(
        f"--config: no file {path}{did_you_mean(str(path), shipped)}; give a YAML file, or one of those that ship with alrpc: "
        f"{', '.join(shipped)}"
    )


def shipped_configs() -> dict[str, Path]:
    """The configurations that ship with the package: for each name its file."""
    package = Path(__file__).resolve().parents[1]
    folder = next((folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir()), None)
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))} if folder else {}


def save_config(config: Config, path: Path) -> None:
    """Write the resolved configuration in a form that --config accepts."""
    rundir.write_atomically(path, to_yaml(config))


def to_yaml(config: Config) -> str:
    """A configuration as YAML that --config accepts."""
    unknown = {"objective"} if config.model.name == PYTHON else None
    return yaml.safe_dump(config.model_dump(mode="json", exclude=unknown), sort_keys=False)


def check_config(config: Config) -> None:
    """Refuse a configuration whose fields contradict each other, or that needs a package which is not installed.

    Raises:
        UsageError: naming the field, and what would be right.
    """
    if config.train.end_lr is not None and config.train.end_lr > config.train.lr:
        raise UsageError(f"train.end_lr: got {config.train.end_lr}, above train.lr, {config.train.lr}; rates only fall")
    for name in {"lr", "target_lr"} & config.train.group_lr.keys():
        raise UsageError(f"train.group_lr: got {name}, which is a field of its own: train.{name}")
    if config.train.warmup >= config.train.epochs and config.train.warmup:
        raise UsageError(f"train.warmup: got {config.train.warmup} of {config.train.epochs} epochs; it must end before the run")
    if config.train.nesterov and config.train.optimizer == "sgd" and not config.train.momentum:
        raise UsageError("train.nesterov: needs a train.momentum above 0")
    wanted = {name: f"observe.loggers: {name}" for name in config.observe.loggers}
    if config.observe.tensorboard:
        wanted["tensorboard"] = "observe.tensorboard:"
    for name, what in wanted.items():
        if importlib.util.find_spec(name) is None:
            raise UsageError(f"{what} needs the extra: pip install 'alrpc[{name}]' ({name} is missing)")


def user_code_fields(config: Config) -> dict[str, str]:
    """The fields that name the user's own code. Such code is imported only when the user asks for it, never because a run's file
    names it."""
    names = {
        "model.name": config.model.name if config.model.is_own else "",
        "objective.name": config.objective.name,
        "objective.loss": config.objective.loss if isinstance(config.objective, Classifier) else "",
        "data.name": config.data.name if config.data.is_own else "",
        "train.optimizer": config.train.optimizer,
        "train.schedule": config.train.schedule,
        "train.metrics": f"[{','.join(config.train.metrics)}]",
    }
    return {field: name for field, name in names.items() if ":" in name}


def flat_fields(tree: dict[str, Any], within: str = "") -> Iterator[tuple[str, Any]]:
    """The fields of a configuration as pairs of `section.field` and value."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from flat_fields(value, f"{within}{name}.")
        else:
            yield f"{within}{name}", value


def _numbers(value: Any) -> Iterator[int | float]:
    if isinstance(value, list | tuple):
        for each in value:
            yield from _numbers(each)
    elif isinstance(value, int | float):
        yield value


def _apply(tree: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    if not equals or not all(name.split(".")):
        raise UsageError(f"--set: got {override!r}; write section.field=value, such as train.epochs=5")
    try:
        value = documents.parse_yaml(text)
    except ValueError as error:
        raise UsageError(f"--set: {name}: {documents.shown(text)} is not a YAML value") from error
    *sections, field = name.split(".")
    for section in sections:
        tree[section] = tree.get(section) if tree.get(section) is not None else {}
        tree = tree[section]
        if not isinstance(tree, dict):
            raise UsageError(f"--set: {name}: {section} is not a section")
    if name in NAMES and tree.get("name", NAMES[name]) != value:
        tree.clear()  # the fields in the file belong to another model or objective
    tree[field] = value


def _one_line(error: ValidationError) -> str:
    """The first error, and how many more there are."""
    first, *others = error.errors()
    place = [str(part) for part in first["loc"]]
    objective = place.pop(1) if place[0] == "objective" and len(place) > 1 else ""
    name = documents.field_name(place)
    more = f" (and {len(others)} more)" if others else ""
    if first["type"] == "extra_forbidden":
        known = _fields(place[:-1], objective)
        close = difflib.get_close_matches(place[-1], known, n=1)
        hint = f"did you mean {'.'.join([*place[:-1], close[0]])}?" if close else f"known here: {', '.join(known)}"
        return f"{name}: unknown field; {hint}{more}"
    return f"{name}: {complaint(first)}{more}"


def complaint(error: ErrorDetails) -> str:
    """Say what was given and what would be right, from one pydantic error."""
    known = re.findall("'([^']+)'", error["ctx"]["expected"]) if error["type"] == "literal_error" else []
    return f"{documents.complaint(error)}{did_you_mean(str(error['input']), known) if known else ''}"


def _fields(place: Sequence[str], objective: str) -> list[str]:
    section: type[BaseModel] = Config
    for part in place:
        section = SECTIONS[objective] if part == "objective" else section.model_fields[part].annotation
    return list(section.model_fields)
