"""The quality of a trained network, layer by layer: accuracy of every exit, distances between and within classes, confusions.

The distances are those of the activations s_l, which the accuracy of an exit does not show: a block that learns from a local
objective should bring the samples of a class together and take the classes apart, and later blocks should continue that.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from alrpc import rundir
from alrpc.checkpoint.carried import read_carried
from alrpc.checkpoint.changes import check_overrides, check_own_code, config_path
from alrpc.checkpoint.manifest import Manifest
from alrpc.checkpoint.resume import load_trained, trained_on
from alrpc.config import Config, load_config
from alrpc.config.own_code import check_choice
from alrpc.data import read_data
from alrpc.data.dataset import Dataset, shuffled
from alrpc.data.loader import Request, epoch_size, load_micro_batches
from alrpc.errors import UserError
from alrpc.models.pooling import choose_pool
from alrpc.network import Network
from alrpc.objectives.base import Component, Tensors, call, eval_mode, gives
from alrpc.objectives.targets import Classes, Target
from alrpc.system import local_device, use_deterministic_kernels
from alrpc.training.meters import ExitScores
from alrpc.training.step import autocast

MAY_CHANGE = ("data.root", "data.file", "data.test_file")
LARGEST = 2048  # most numbers kept of a sample's activation; a larger activation is projected to this size
PERPLEXITY = 30  # perplexity of t-SNE, scikit-learn's default; lower for few samples


def inspect_run(
    run: Path,
    samples: int,
    projection: str = "pca",
    model: str | None = None,
    objective: str | None = None,
    data: str | None = None,
    overrides: Sequence[str] = (),
) -> dict:
    """Measure the network of a run's last checkpoint on samples of its test split.

    Args:
        run: the run's directory.
        samples: most samples of the test split to measure.
        projection: `pca` or `tsne`.
        model, objective, data: `package.module:function`, needed when the run's blocks, objective or data are the user's own.
        overrides: `data.root=…`, `data.file=…`, `data.test_file=…`, for data that was moved since.

    Returns:
        The contents of quality.json; see `measure`.

    Raises:
        UserError: naming what is missing or does not fit the run.
    """
    check_choice("projection", projection, ("pca", "tsne"))
    config, network, dataset, step = open_run(run, model, objective, data, overrides)
    result = measure(network, dataset, choose_samples(len(dataset.test), samples), config, projection)
    return {"run": rundir.run_name(run), "step": step, **result}


def open_run(
    run: Path, model: str | None, objective: str | None, data: str | None, overrides: Sequence[str]
) -> tuple[Config, Network, Dataset, int]:
    """Load a run's configuration, trained network, data set, and the step of its checkpoint; raises as `inspect_run`."""
    path = config_path(run)
    check_overrides(overrides, MAY_CHANGE, "inspected")
    config = load_config(path, overrides)
    check_own_code(run, config, {"model.name": model, "objective.name": objective, "data.name": data})
    trained = load_trained(run, model, objective)
    network, manifest = trained.network, trained.manifest
    dataset = read_data(config.data, config.train)
    check_trained_on(dataset, network.target, config, manifest)
    if "carried" in manifest and read_carried(run, config, manifest).classes != dataset.class_names:
        raise UserError(
            f"data: the names of its classes are not those of {run / rundir.LABELS}; give it the data of the training"
        )
    return config, network, dataset, manifest["step"]


def check_trained_on(dataset: Dataset, target: Target, config: Config, manifest: Manifest) -> None:
    """Refuse, with a UserError, a data set that is not the one that a run was trained on, as far as its manifest tells."""
    size = epoch_size(dataset, config.data.batch_size, config.train)
    if dataset.target != target or size.micro_batches != manifest["micro_batches"]:
        raise UserError(
            f"data: {size.micro_batches} micro-batches an epoch and {dataset.target}, but the run was trained with "
            f"{manifest['micro_batches']} and {target}; give it the data that it was trained with"
        )
    if size.of_pass != manifest.get("samples", size.of_pass):
        raise UserError(
            f"data: {trained_on(size.of_pass)} to train on, but the run was trained with {trained_on(manifest['samples'])}; give it the data "
            "that it was trained with"
        )


def choose_samples(available: int, wanted: int) -> Tensor:
    """Draw `wanted` samples of a split with a fixed seed, since some splits are sorted by class; indices ascend."""
    return shuffled(available, 0, 0)[:wanted].sort().values


def measure(network: Network, dataset: Dataset, indices: Tensor, config: Config, projection: str = "pca") -> dict:
    """Measure a network on these samples of the test split.

    Returns:
        A dictionary for JSON: `metric`, `samples`, `test_samples`; `components`, each with its `component` number and the
        score of its exit under the metric's name. For classes also `projection`, `classes` (their names), `labels` (the class of
        each sample, by index), `confusion` (counts; a row for each class, a column for each class predicted by the last exit), and in each component
        `width` (numbers in a sample's activation), `intra`, `inter`, `ratio` (see `distances`; null where undefined),
        `explained` (share of the variance that the two coordinates hold; null for t-SNE) and `coordinates`.

    Raises:
        UserError: for activations that are not finite.
    """
    exits, labels, predicted, activations, widths = observe(network, dataset, indices, config)
    metric = network.target.metric
    components = [{"component": number, metric: score} for number, score in enumerate(exits, 1)]
    result = {"metric": metric, "samples": len(indices), "test_samples": len(dataset.test), "components": components}
    if not isinstance(network.target, Classes):
        return result
    from sklearn.metrics import confusion_matrix

    for described, of_component, width in zip(components, activations, widths, strict=True):
        normalised = normalise(of_component)
        coordinates, explained = project(normalised, projection)
        described |= {"width": width, **distances(normalised, labels), "explained": explained}
        described["coordinates"] = [[float(f"{value:.4g}") for value in point] for point in coordinates.tolist()]
    confusion = confusion_matrix(labels.numpy(), predicted.numpy(), labels=list(range(network.target.count)))
    return {
        **result,
        "projection": projection,
        "classes": [name.encode(errors="backslashreplace").decode() for name in dataset.class_names],
        "labels": labels.tolist(),
        "confusion": confusion.tolist(),
    }


def observe(
    network: Network, dataset: Dataset, indices: Tensor, config: Config
) -> tuple[list[float], Tensor, Tensor, list[Tensor], list[int]]:
    """Run samples of the test split through the network, micro-batch by micro-batch, as the evaluation in training does.

    Activations are kept as `shrink` leaves them: at most 8 KiB per sample and component.

    Returns:
        The score of each exit; the labels; the predictions of the last exit; and for classes each component's activations,
        (N, D) float32 on the CPU, and their widths before they were shrunk.

    Raises:
        UserError: for activations that are not finite.
    """
    device = local_device("cpu" if config.device == "cpu" else "auto")
    use_deterministic_kernels(device)
    torch.set_num_threads(config.threads)  # with the threads of the training an exit's accuracy equals that of the summary
    network.to(device)
    parts = [component.exit_parts() for component in network.components]
    scores = ExitScores(network.objective, parts)
    compares = isinstance(network.target, Classes)
    all_labels, predicted, widths = [], [], [0] * len(parts)
    activations: list[list[Tensor]] = [[] for _ in parts]
    wanted = (Request("test", 0, part) for part in indices.split(config.data.batch_size))
    with eval_mode(network), autocast(device, config.precision), torch.no_grad():
        for _, _, tensors, labels in load_micro_batches(dataset, wanted, config.train.seed):
            tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
            exits = []
            for index, component in enumerate(network.components):
                tensors, output = component.evaluate(tensors)
                exits.append(output)
                if compares:
                    activation = vectors(component, tensors)
                    if not activation.isfinite().all():
                        raise UserError(f"component {index + 1}: its activations on the test samples are not all finite")
                    widths[index] = activation.shape[1]
                    activations[index].append(shrink(activation))
            scores.add(exits, labels.to(device))
            all_labels.append(labels)
            predicted.append(network.target.decide(network.objective.decode(parts, exits)).cpu())
    joined = [torch.cat(of_component) for of_component in activations] if compares else []
    return scores.mean(), torch.cat(all_labels), torch.cat(predicted), joined, widths


def vectors(component: Component, tensors: Tensors) -> Tensor:
    """A component's activation as a vector for each sample, (N, width) float32 on the CPU.

    A sequence, (N, T, C), is averaged over its positions, or over those where the tensor "mask" is true if there is one, as
    the default bridges do. Anything else is flattened.

    Args:
        tensors: the component's named output tensors, (N, ...) each.
    """
    name = gives(component.block)[0]
    activation = tensors[name]
    if activation.ndim == 3:
        activation = call(choose_pool(tensors, name, "mean"), tensors, takes=(name,))
    return activation.float().cpu().reshape(len(activation), -1)


def shrink(activation: Tensor) -> Tensor:
    """Project (N, width) to (N, at most LARGEST), so that the feature maps of all samples and components fit into memory.

    A random projection keeps distances (Johnson & Lindenstrauss, 1984): the squared distance of two samples has a standard
    error of about √(2 / LARGEST) = 3 %, and means over many pairs a much smaller one.
    """
    if activation.shape[1] <= LARGEST:
        return activation
    return torch.from_numpy(projector(activation.shape[1]).transform(activation.numpy())).float()


@cache
def projector(width: int):
    """scikit-learn's sparse random projection (Li, Hastie & Church, 2006) from `width` numbers to LARGEST, with fixed seed."""
    import numpy
    from sklearn.random_projection import SparseRandomProjection

    return SparseRandomProjection(LARGEST, random_state=0).fit(numpy.zeros((1, width), dtype=numpy.float32))


def normalise(activations: Tensor) -> Tensor:
    """Move activations, (N, D), to mean 0 and scale them to a mean squared length of 1.

    Distances grow with the width of a layer and with the size of its activations, neither of which depends on the classes.
    One factor for all dimensions makes layers comparable and keeps the shape of the cloud, and with it inter / intra.
    Activations that are all equal become 0.
    """
    centred = activations - activations.mean(dim=0)
    scale = centred.square().sum(dim=1).mean().sqrt()
    return centred / scale if scale > 0 else torch.zeros_like(centred)


def distances(activations: Tensor, labels: Tensor) -> dict[str, float | None]:
    """Distances of the samples within their classes, and of the classes from each other.

    With μ_c the mean of the activations of class c, over the classes that have at least two samples:

        intra   mean over classes of the mean over their samples of ‖x - μ_c‖
        inter   mean over pairs of classes of ‖μ_c - μ_c'‖
        ratio   inter / intra: larger is better

    Every class has the same weight, whatever its number of samples. A class of one sample has no distance from its mean.

    Args:
        activations: (N, D), from `normalise`.
        labels: (N,) class indices.

    Returns:
        `intra`, `inter`, `ratio`; None where too few classes have two samples, and for the ratio where intra is 0.
    """
    classes = [chosen for label in labels.unique() if len(chosen := activations[labels == label]) > 1]
    means = [of_class.mean(dim=0) for of_class in classes]
    spreads = [(of_class - mean).norm(dim=1).mean() for of_class, mean in zip(classes, means, strict=True)]
    intra = torch.stack(spreads).mean().item() if spreads else None
    inter = torch.pdist(torch.stack(means)).mean().item() if len(means) > 1 else None
    return {"intra": intra, "inter": inter, "ratio": inter / intra if intra and inter is not None else None}


def project(activations: Tensor, method: str) -> tuple[Tensor, float | None]:
    """Project activations to two coordinates for each sample, (N, 2), by scikit-learn; the result is deterministic.

    `pca` projects to the two directions of the largest variance, and returns the share of the variance that they hold. `tsne`
    keeps neighbours together (van der Maaten & Hinton, 2008); its distances between groups have no meaning, nor has it a share.

    Args:
        activations: (N, D), from `normalise`.
    """
    if len(activations) < 2 or not activations.any():
        return torch.zeros(len(activations), 2), None
    if activations.shape[1] == 1:
        activations = torch.nn.functional.pad(activations, (0, 1))
    if method == "tsne":
        from sklearn.manifold import TSNE

        perplexity = min(PERPLEXITY, (len(activations) - 1) / 3)
        return torch.from_numpy(TSNE(perplexity=perplexity, random_state=0).fit_transform(activations.numpy())), None
    from sklearn.decomposition import PCA

    pca = PCA(2, random_state=0)
    coordinates = torch.from_numpy(pca.fit_transform(activations.numpy()))
    return coordinates, float(pca.explained_variance_ratio_.sum())


def write_quality(run: Path, result: dict) -> None:
    """Write quality.json and quality.png into a run's directory; older files stay until both are complete.

    Raises:
        UserError: when they cannot be written.
    """

    from alrpc.analysis.quality_plots import draw

    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in result.items())  # one field per line
    try:
        with (
            rundir.partial_file(run / rundir.QUALITY) as numbers,
            rundir.partial_file(run / "quality.png") as picture,
        ):
            numbers.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
            draw(result, picture)
    except OSError as error:
        raise UserError(f"{run}: quality.json and quality.png cannot be written: {error.strerror}") from error
