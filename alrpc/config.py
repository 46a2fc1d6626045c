"""A run's configuration: YAML, typed, every field documented where it is declared.

This module never imports torch, so that a mistake in a file is reported at once.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from alrpc import rundir
from alrpc.errors import UserError

DEFAULT = "digits-mlp"
S = TypeVar("S", bound=BaseModel)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class Model(Section):
    """Which blocks. The other fields of this section are the arguments of the model's function."""

    model_config = ConfigDict(extra="allow")

    name: str = "mlp"
    """mlp, vgg, resnet, lstm or transformer; or package.module:function for a function of your own that returns a list of modules."""

    @property
    def fields(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Objective(Section):
    """What every component learns; see `alrpc.associate`. vgg, resnet, lstm and transformer have the thesis' values as defaults."""

    target_width: PositiveInt = 128
    """Width of the target representations t_1 … t_L."""
    bridge_widths: list[PositiveInt] = [256]
    """Hidden widths of each bridge; its last layer, to target_width, is added."""
    activation: Literal["sigmoid", "tanh", "relu", "gelu", "none"] = "tanh"
    """After each layer of a bridge or target encoder."""
    decoder_activation: Literal["sigmoid", "tanh", "relu", "gelu", "none"] = "none"
    """After each target decoder (never after a regression's first)."""
    pooling: Literal["auto", "flatten", "mean", "grid"] = "auto"
    """How a bridge makes a vector of a block's output; auto: vectors as they are, mean over tokens, a 4 x 4 grid of an image."""
    associated_loss: Literal["mse", "smooth_l1"] = "mse"
    """Between the bridge's output and the target representation."""
    autoencoder_loss: Literal["mse", "cross_entropy"] = "mse"
    """Between decoded and given target; cross_entropy applies to the first component of a classification only."""


class Data(Section):
    name: str = "digits"
    """digits; mnist, fashion-mnist, cifar10, cifar100, tiny-imagenet, image-folder; ag_news, dbpedia_14, imdb, sst2, text-file;
    synthetic-text (random words, for measuring speed);
    or package.module:function for a function of your own that returns an alrpc.Dataset."""
    root: Path | None = None
    """Directory that holds the data or receives its download; null for ~/.cache/alrpc."""
    batch_size: PositiveInt = 64
    """Samples in a micro-batch, in training and in evaluation."""
    workers: NonNegativeInt = 0
    """Processes that read and augment micro-batches ahead; 0 to do it where they are fed from."""
    augmentation: Literal["none", "basic", "strong"] = "none"
    """Of training images; basic: random crop and horizontal flip; strong: colour jitter and random grayscale too."""
    image_size: PositiveInt = 32
    """Height and width that the images of tiny-imagenet and image-folder are brought to."""
    file: Path | None = None
    """text-file: the CSV or JSON-lines file to train on, and to test on if there is no test_file."""
    test_file: Path | None = None
    """text-file: the file to test on; null to hold test_share of `file` back."""
    test_share: float = Field(0.2, gt=0, lt=1)
    """text-file: share of each class that is held back for testing when there is no test_file."""
    text_column: str = "text"
    """text-file: the column (CSV) or key (JSON lines) of the text."""
    label_column: str = "label"
    """text-file: the column or key of the label, a name or a number."""
    vocabulary: int = Field(30_000, ge=3)
    """Text: the most frequent words of the training texts that are told apart, padding and the unknown word included."""
    max_tokens: PositiveInt = 128
    """Text: a text is cut off after so many words."""
    bucket: bool = False
    """Text: put texts of similar length into one micro-batch, for less padding."""
    word_vectors: Path | None = None
    """Text: a file of word vectors as GloVe's (a word and its numbers a line) that the embedding starts from."""


class Train(Section):
    epochs: PositiveInt = 30
    """Passes over the training data; an evaluation follows each."""
    seed: int = 0
    """Of parameters, order of samples and every random number."""
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    """Of every component, one for itself."""
    lr: PositiveFloat = 1e-3
    """Learning rate of blocks and bridges (f, b) at the first step."""
    target_lr: PositiveFloat | None = None
    """Learning rate of target encoders and decoders (g, h) at the first step; null for the same as lr."""
    end_lr: PositiveFloat | None = None
    """What lr becomes by the last step, target_lr in proportion; null for a hundredth of lr. A constant schedule ignores it."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """How the learning rates go from first to last, step by step."""
    weight_decay: float = Field(0.0, ge=0)
    """L2 penalty for adam and sgd, decoupled for adamw."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Of sgd."""
    clip_norm: PositiveFloat | None = None
    """Largest norm of the gradient of each of a component's two losses; null for no clipping."""
    accumulate: PositiveInt = 1
    """Micro-batches whose gradients are averaged before one optimizer step."""
    nonfinite: Literal["stop", "skip"] = "stop"
    """What follows when a loss or a gradient is infinite or not a number: stop; or skip that component's update, and count it."""
    log_every: PositiveInt = 50
    """Steps that one line of losses in metrics.jsonl averages over."""


def _say_split(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    """One message for a type that is one of several."""
    try:
        return validate(value)
    except ValidationError as error:
        raise PydanticCustomError(
            "split", "it should be the number of components of each stage, such as [1, 2, 1], or auto, or null"
        ) from error


class Pipeline(Section):
    stages: PositiveInt = 1
    """Processes that train; at most one a component."""
    split: Annotated[list[PositiveInt] | Literal["auto"] | None, WrapValidator(_say_split)] = None
    """Components of each stage, such as [1, 2, 1]; null for as even as can be; auto for the best by what each is measured to take."""
    window: PositiveInt = 2
    """Packets that a stage may have received ahead, and packets that it may have sent and not yet seen taken."""
    pin_cores: Literal["auto", "always", "never"] = "auto"
    """Give each stage on a CPU cores of its own; auto: when the stages together fill the machine's cores exactly."""
    port: int = Field(0, ge=0, le=65535)
    """Loopback port where `alrpc launch` lets its processes meet; 0 for any free one."""


class Checkpoint(Section):
    every: PositiveInt | None = None
    """Steps between two checkpoints within an epoch; null for none by steps."""
    seconds: PositiveFloat | None = None
    """A checkpoint is due when so many seconds have passed since the last; null for none by time."""
    epoch: bool = True
    """A checkpoint after every epoch. The end of a run has one in any case."""
    keep: PositiveInt = 2
    """Of the complete checkpoints, the latest so many stay; where disks are not shared, one more on hosts other than the coordinator's."""
    grace: PositiveFloat = 25.0
    """Seconds that a run which is told to end by SIGTERM has for a last checkpoint."""


class Health(Section):
    timeout: float = Field(30.0, ge=5)
    """Seconds within which a frozen process, a hung loader of data or a lost network is found out, and the run ended. A stage
    that computes for longer is named, and waited for."""


class Observe(Section):
    tensorboard: bool = False
    """Write scalars of every component and stage, and the timeline, for TensorBoard; needs the extra `tensorboard`."""


class Config(Section):
    model: Model = Model()
    objective: Objective = Objective()
    data: Data = Data()
    train: Train = Train()
    pipeline: Pipeline = Pipeline()
    checkpoint: Checkpoint = Checkpoint()
    health: Health = Health()
    observe: Observe = Observe()
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: GPUs if every stage's host has one (stages share them if need be), else the CPU."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: forward passes and losses in bfloat16 where torch's autocast finds it safe, on a CPU too; parameters stay float32."""
    compile: bool = False
    """torch.compile each component's forward and backward pass; needs a C++ compiler on a CPU. Baselines compile their layers."""
    threads: PositiveInt = 1
    """CPU threads that one component's arithmetic uses, in either engine. Equal results need equal threads."""


def load_config(source: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Read and validate a configuration.

    Args:
        source: a YAML file; or the name of a configuration that ships with the package; None for digits-mlp.
        overrides: `section.field=value`, each value read as YAML.

    Raises:
        UserError: one line that names the field, what was given and what would be right.
    """
    path = find_config(source)
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise UserError(
            f"{path}: got a {type(tree).__name__} at the top; it must be a mapping of {', '.join(Config.model_fields)}"
        )
    for override in sorted(overrides, key=lambda text: not text.startswith("model.name=")):  # before that model's fields
        _apply(tree, override)
    return parse_config(tree)


def parse_config(tree: dict[str, Any]) -> Config:
    """Validate a configuration given as nested dictionaries.

    Raises:
        UserError: one line that names the field, what was given and what would be right.
    """
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UserError(_one_line(error, [])) from error


def parse_section(section: type[S], name: str, fields: dict[str, Any]) -> S:
    """Validate one section, given as a dictionary; raises as `parse_config` does."""
    try:
        return section.model_validate(fields)
    except ValidationError as error:
        raise UserError(_one_line(error, [name])) from error


def config_name(source: str | Path | None) -> str:
    """What a run's directory is named after."""
    return Path(source).stem if source else DEFAULT


def find_config(source: str | Path | None) -> Path:
    """The file of a configuration given by path or by the name under which it ships."""
    path = Path(source or DEFAULT)
    if path.is_file():
        return path
    here = Path(__file__).resolve().parent
    shipped = next((folder for folder in (here / "configs", here.parent / "configs") if folder.is_dir()), None)
    names = sorted(file.stem for file in shipped.glob("*.yaml")) if shipped else []
    if str(path) in names:
        return shipped / f"{path}.yaml"
    raise UserError(f"--config: no file {path}; give a YAML file, or one of those that ship with alrpc: {', '.join(names)}")


def save_config(config: Config, path: Path) -> None:
    """Write the resolved configuration, so that it can be given to --config again."""
    rundir.write_atomically(path, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


def check_extras(config: Config) -> None:
    """Refuse what needs a package that is not installed.

    Raises:
        UserError: naming the field, and the extra to install.
    """
    if config.observe.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise UserError("observe.tensorboard: needs the extra: pip install 'alrpc[tensorboard]' (tensorboard is missing)")


# ---- the user's own code, named as package.module:function

MOVED = {"alrpc.bench.tokens": "alrpc.data.synthetic_text"}  # what the configurations of 0.1 name


def user_code_fields(config: Config) -> dict[str, str]:
    """The fields that name code of the user's own. It is imported on the user's word, never on that of a file in a run."""
    names = {"model.name": config.model.name, "data.name": config.data.name}
    return {field: name for field, name in names.items() if ":" in name}


def import_function(name: str, field: str) -> Callable:
    """Import `package.module:function`; modules in the working directory are found too.

    Raises:
        UserError: naming the configuration's field and what could not be imported.
    """
    module_name, _, attribute = name.partition(":")
    module_name = MOVED.get(module_name, module_name)
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        function = getattr(importlib.import_module(module_name), attribute)
    except ModuleNotFoundError as error:
        raise UserError(
            f"{field}: {name}: no module named {error.name!r} in the working directory or in Python's path"
        ) from error
    except AttributeError as error:
        raise UserError(f"{field}: {name}: module {module_name!r} has no {attribute!r}") from error
    except Exception as error:
        raise UserError(f"{field}: importing {module_name} raised {type(error).__name__}: {error}") from error
    if not callable(function):
        raise UserError(f"{field}: {name} is a {type(function).__name__}; it must be a function")
    return function


def flat_fields(tree: dict[str, Any], within: str = "") -> Iterator[tuple[str, Any]]:
    """A configuration's fields as `section.field` and value."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from flat_fields(value, f"{within}{name}.")
        else:
            yield f"{within}{name}", value


def _apply(tree: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    if not equals or not all(name.split(".")):
        raise UserError(f"--set: got {override!r}; write section.field=value, such as train.epochs=5")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"--set: {name}: {text!r} is not a YAML value") from error
    *sections, field = name.split(".")
    for section in sections:
        tree[section] = tree.get(section) if tree.get(section) is not None else {}
        tree = tree[section]
        if not isinstance(tree, dict):
            raise UserError(f"--set: {name}: {section} is not a section")
    if name == "model.name" and tree.get("name") != value:
        tree.clear()  # another model: the fields in the file are not its own
    tree[field] = value


def _one_line(error: ValidationError, within: list[str]) -> str:
    """The first thing wrong, and how many more there are."""
    first, *others = error.errors()
    place = within + [str(part) for part in first["loc"]]
    name = ".".join(place)
    more = f" (and {len(others)} more)" if others else ""
    if first["type"] == "extra_forbidden":
        known = _fields(place[:-1])
        close = difflib.get_close_matches(place[-1], known, n=1)
        hint = f"did you mean {'.'.join([*place[:-1], close[0]])}?" if close else f"known here: {', '.join(known)}"
        return f"{name}: unknown field; {hint}{more}"
    return f"{name}: {complaint(first)}{more}"


def complaint(error: ErrorDetails) -> str:
    """What was given and what would be right, from one of pydantic's errors."""
    if error["type"].startswith("missing"):
        return "not given, but needed"
    reason = error["msg"][0].lower() + error["msg"][1:]
    return f"got {error['input']!r}; {reason.replace('input should', 'it should')}"


def _fields(place: Sequence[str]) -> list[str]:
    section: type[BaseModel] = Config
    for part in place:
        section = section.model_fields[part].annotation
    return list(section.model_fields)
