"""The contents of summary.json, comparison.json, quality.json and calibration.json, as types; other keys, of another alrpc, are kept."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from pydantic import AfterValidator, ConfigDict, FailFast, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from alrpc.reading.documents import Amount, Count, Few, Moment, Name, Score, Value, describe
from alrpc.timing import STATES

OTHERS = ConfigDict(extra="allow")
Components = Annotated[list[Few], Field(max_length=10_000)]
Number = Annotated[int, Field(ge=1, le=10_000)]
"""The number of a component or an exit."""
Flops = Annotated[float, Field(ge=0, lt=1e18, allow_inf_nan=False)]
Scores = Annotated[list[Score], Field(min_length=1, max_length=10_000)]
Folder = Annotated[str, Field(pattern=r"^[^/.\x00][^/\x00]{0,254}$")]
"""The name of a directory within another."""


class Parameters(TypedDict):
    """Numbers of parameters."""

    __pydantic_config__ = OTHERS

    effective: Count
    affiliated: Count


class StageSummary(TypedDict):
    """A training process of a run. `seconds_<state>` are there for each of `alrpc.timing.STATES`."""

    __pydantic_config__ = OTHERS

    stage: Few
    components: Components
    host: Name
    device: Name
    peak_memory_bytes: Count


def _check_seconds(stage: StageSummary) -> StageSummary:
    return stage | _SECONDS.validate_python({f"seconds_{state}": stage.get(f"seconds_{state}") for state in STATES})


_SECONDS = TypeAdapter(dict[str, Moment])


class Summary(TypedDict):
    """The contents of summary.json."""

    __pydantic_config__ = OTHERS

    alrpc: Name
    torch: Name
    engine: Name
    epochs: Count
    steps: Count
    samples: Count
    exits: Scores
    parameters: Parameters
    parameters_sha256: Name
    samples_per_second: Amount
    resumed_at_step: NotRequired[Count]
    checkpoint_failures: list[str]
    wall_seconds: Amount
    coordinator_peak_memory_bytes: Count
    chosen: dict[str, Any]
    per_stage: Annotated[list[Annotated[StageSummary, AfterValidator(_check_seconds)]], Field(min_length=1, max_length=10_000)]


class Machine(TypedDict):
    """Where a comparison was run."""

    __pydantic_config__ = OTHERS

    host: Name
    cores: Count
    processor: Name


class Named(TypedDict):
    __pydantic_config__ = OTHERS

    name: Name


class Epochs(TypedDict, total=False):
    __pydantic_config__ = OTHERS

    epochs: Count


class Objective(TypedDict):
    __pydantic_config__ = OTHERS

    name: NotRequired[Name]


class RunConfig(TypedDict):
    """What is read of a run's config.yaml without importing or checking what it names."""

    __pydantic_config__ = OTHERS

    model: Named
    data: Named
    objective: NotRequired[Objective]
    train: NotRequired[Epochs]


class Chosen(TypedDict):
    """How a method was run."""

    __pydantic_config__ = OTHERS

    threads: Count
    device: Name
    micro_batches: NotRequired[Count]
    tried_threads: NotRequired[dict[Name, Amount]]
    tried_micro_batches: NotRequired[dict[Name, Amount]]


class Row(TypedDict):
    """A method's row in the table of a comparison; see `alrpc.analysis.comparison.summary.summarise`."""

    __pydantic_config__ = OTHERS

    method: Name
    runs: Count
    split: NotRequired[Literal["test", "validation"]]
    test_samples: NotRequired[Count | None]
    best_mean: Score
    best_deviation: Score | None
    final_mean: Score
    final_deviation: Score | None
    epoch_seconds: Amount
    samples_per_second: Amount
    speed_over_bp: Amount | None
    seconds_to_goal: Amount | None
    peak_memory_largest: Count
    peak_memory_all: Count
    idle: Value
    chosen: Chosen
    processes: Count
    parameters: NotRequired[dict[Name, Count]]


class ComparedRun(TypedDict):
    """A run of a comparison; see `alrpc.analysis.comparison.summary.read_run`."""

    __pydantic_config__ = OTHERS

    method: Name
    directory: Folder
    samples_per_second: Amount
    split: NotRequired[Literal["test", "validation"]]
    test_samples: NotRequired[Count | None]
    validation_samples: NotRequired[Count | None]
    chance: NotRequired[Score | None]
    curve: Annotated[list[tuple[Amount, Count, Score]], FailFast()]


class ComparisonFile(TypedDict):
    """The contents of comparison.json."""

    __pydantic_config__ = OTHERS

    alrpc: Name
    torch: Name
    machine: Machine
    config: RunConfig
    stages: Count
    repeat: Count
    metric: Name
    goal: Score
    table: Annotated[list[Row], Field(max_length=1000)]
    runs: Annotated[list[ComparedRun], Field(max_length=10_000)]
    failures: list[str]


class Scored(TypedDict):
    """A component whose exit was measured; the score is under the name of the metric."""

    __pydantic_config__ = OTHERS

    component: Few


class Measured(Scored):
    """The same of a classification, with the component's activations."""

    width: NotRequired[Count]
    intra: Score | None
    inter: Score | None
    ratio: Score | None
    explained: Score | None
    coordinates: Annotated[list[tuple[Value, Value]], FailFast()]


class Quality(TypedDict):
    """The contents of quality.json; see `alrpc.analysis.quality.measure`. A regression has no more than `components`."""

    __pydantic_config__ = OTHERS

    run: Name
    step: Count
    metric: Name
    samples: Count
    test_samples: Count
    components: Annotated[list[Scored], FailFast(), Field(min_length=1, max_length=10_000)]
    projection: NotRequired[Literal["pca", "tsne"]]
    classes: NotRequired[Annotated[list[Few | Name], Field(min_length=1, max_length=10_000)]]
    labels: NotRequired[Annotated[list[Few], FailFast(), Field(min_length=1)]]
    confusion: NotRequired[Annotated[list[Annotated[list[Count], FailFast()]], FailFast()]]


def _check_quality(quality: Quality) -> Quality:
    """Check the scores, which are under the metric's name; and that lists of classes and of samples are of equal lengths."""
    of_classes = "confusion" in quality
    if missing := [name for name in ("projection", "classes", "labels") if of_classes and name not in quality]:
        raise ValueError(f"{missing[0]}: not given, but needed")
    components = []
    for number, component in enumerate(quality["components"]):
        try:
            checked = _OF_CLASSES.validate_python(component) if of_classes else component
            score = _SCORE.validate_python(component.get(quality["metric"]))
        except ValidationError as error:
            raise ValueError(f"components.{number}.{describe(error)}") from error
        components.append({**checked, quality["metric"]: score})
    if of_classes:
        classes, samples = len(quality["classes"]), len(quality["labels"])
        if [len(row) for row in quality["confusion"]] != [classes] * classes:
            raise ValueError(f"confusion: it must have a row and a column for each of the {classes} classes")
        if max(quality["labels"]) >= classes:
            raise ValueError(f"labels: got {max(quality['labels'])}, but there are {classes} classes, from 0")
        if any(len(component["coordinates"]) != samples for component in components):
            raise ValueError(f"coordinates: every component must have them of the {samples} samples of labels")
    return {**quality, "components": components}


class CalibratedExit(TypedDict):
    """An exit, measured on held-out samples."""

    __pydantic_config__ = OTHERS

    exit: Number
    temperature: Annotated[float, Field(gt=0, lt=1e12, allow_inf_nan=False)]
    """What the decoded outputs are divided by, for a softmax that gives calibrated probabilities."""
    accuracy: Amount
    ece: Amount
    """The expected calibration error of the objective's own probabilities."""
    ece_calibrated: Amount
    """The same of the calibrated ones."""
    failure_auroc: Amount | None
    """How well the calibrated probability of the likeliest class ranks right answers above wrong ones; None if all are alike."""
    block_flops: Flops
    """Floating-point operations of the component for a sample, without its exit unless later exits need it too."""
    exit_flops: Flops
    """Those of an answer of the exit, beside the blocks'."""


class EarlyExits(TypedDict):
    """A choice of exits that are tried, and what it gave on the held-out samples."""

    __pydantic_config__ = OTHERS

    exits: Annotated[list[Number], Field(min_length=1, max_length=10_000)]
    """Those that are tried, ascending, to the network's last one."""
    thresholds: list[Amount]
    """For each of them, the calibrated probability of the likeliest class with which a sample leaves; 0 for the last one."""
    leaving: list[Amount]
    """The share of the samples that leaves by each of them."""
    accuracy: Amount
    compute: Amount
    """Floating-point operations as a share of the full path's, all exits that are tried included."""
    time: Amount | None
    """Wall time as a share of the full path's; None where it was not measured."""


class Calibration(TypedDict):
    """The contents of calibration.json; see `alrpc.inference.calibrate`."""

    __pydantic_config__ = OTHERS

    alrpc: Name
    torch: Name
    step: Count
    """That of the checkpoint."""
    parameters_sha256: Name
    data: Name
    split: Literal["validation", "test"]
    samples: Annotated[Count, Field(ge=1)]
    target_accuracy: Amount | None
    """What was asked for: so much of the full path's accuracy, with as little computing as possible; or None."""
    budget: Amount | None
    """Or this share of the full path's operations at most, with as good an accuracy as possible; or None."""
    exits: Annotated[list[CalibratedExit], Field(min_length=1, max_length=10_000)]
    """All exits of the network, in order."""
    choices: Annotated[list[EarlyExits], Field(min_length=1, max_length=10_000)]
    """The choices of which none is better and cheaper than another, the cheapest first. The last one is the best."""


def _check_calibration(calibration: Calibration) -> Calibration:
    depth = len(calibration["exits"])
    if [each["exit"] for each in calibration["exits"]] != list(range(1, depth + 1)):
        raise ValueError(f"exits: they must be numbered 1 to {depth}")
    if (calibration["target_accuracy"] is None) == (calibration["budget"] is None):
        raise ValueError("target_accuracy, budget: one of them must be null, the other one a number")
    for number, choice in enumerate(calibration["choices"]):
        tried = choice["exits"]
        if tried != sorted(set(tried)) or tried[-1] != depth:
            raise ValueError(f"choices.{number}.exits: they must ascend to {depth}")
        if not len(tried) == len(choice["thresholds"]) == len(choice["leaving"]):
            raise ValueError(f"choices.{number}: thresholds and leaving must have a number for each of {len(tried)} exits")
        if choice["thresholds"][-1] != 0:
            raise ValueError(f"choices.{number}.thresholds: the last one must be 0")
    return calibration


_OF_CLASSES, _SCORE = TypeAdapter(Measured), TypeAdapter(Score)
SUMMARY = TypeAdapter(Summary)
COMPARISON = TypeAdapter(ComparisonFile)
RUN_CONFIG = TypeAdapter(RunConfig)
QUALITY = TypeAdapter(Annotated[Quality, AfterValidator(_check_quality)])
CALIBRATION = TypeAdapter(Annotated[Calibration, AfterValidator(_check_calibration)])
