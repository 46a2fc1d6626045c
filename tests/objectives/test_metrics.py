"""Metrics of what exits predict, beside accuracy and mse."""

import math

import pytest
import sklearn.metrics
import torch
from torch import nn

import alrpc
from alrpc.config import METRICS
from alrpc.events import Evaluation
from alrpc.objectives.metrics import OF_CLASSES, OF_LABELS, OF_VALUES, check_metrics, measure

LABELS = torch.tensor([0, 0, 1, 2])
SURE = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.2, 0.5, 0.3], [0.4, 0.1, 0.5]])  # the second sample is wrong


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("macro_f1", (2 / 3 + 2 / 3 + 1) / 3),
        ("balanced_accuracy", (1 / 2 + 1 + 1) / 3),
        ("auroc", (2 / 4 + 2 / 3 + 3 / 3) / 3),  # of class 0: 0.7 is above 0.2 and 0.4, 0.1 above neither
        ("log_loss", -math.log(0.7 * 0.1 * 0.5 * 0.5) / 4),
    ],
)
def test_a_metric_of_classes_has_the_value_that_its_definition_gives(name, value):
    assert measure(name, alrpc.Classes(3), LABELS, SURE) == pytest.approx(value)


def test_the_true_class_is_counted_among_the_likeliest():
    likely = torch.eye(6) + torch.arange(6) / 10
    assert measure("top3", alrpc.Classes(6), torch.tensor([0, 1, 2, 5, 0, 0]), likely) == pytest.approx(4 / 6)


def test_metrics_of_values():
    labels, outputs = torch.tensor([[0.0], [2.0], [4.0]]), torch.tensor([[1.0], [2.0], [4.0]])
    assert measure("mae", alrpc.Values(1), labels, outputs) == pytest.approx(1 / 3)
    assert measure("r2", alrpc.Values(1), labels, outputs) == pytest.approx(1 - 1 / 8)


def test_what_is_not_defined_is_nan():
    two = alrpc.Classes(2)
    assert math.isnan(measure("auroc", two, torch.zeros(3).long(), torch.full((3, 2), 0.5)))
    assert math.isnan(measure("macro_f1", two, torch.zeros(1).long(), torch.tensor([[math.nan, 0.5]])))


def test_each_metric_of_several_labels_is_that_of_scikit_learn():
    labels, outputs = torch.randint(0, 2, (40, 3)).float(), torch.rand(40, 3)
    of_all = labels.numpy().astype(int), (outputs > 0.5).numpy()
    for average in ("micro", "macro"):
        wanted = sklearn.metrics.f1_score(*of_all, average=average)
        assert measure(f"{average}_f1", alrpc.Labels(3), labels, outputs) == pytest.approx(wanted)
    labels[:, 2] = 0  # never occurs, so that it has neither
    known = labels[:, :2].numpy(), outputs[:, :2].numpy()
    wanted = sklearn.metrics.average_precision_score(*known)
    assert measure("average_precision", alrpc.Labels(3), labels, outputs) == pytest.approx(wanted)
    assert measure("auroc", alrpc.Labels(3), labels, outputs) == pytest.approx(sklearn.metrics.roc_auc_score(*known))


def test_the_configuration_names_all_metrics():
    assert set(METRICS) == {*OF_CLASSES, *OF_LABELS, *OF_VALUES}


@pytest.mark.parametrize(
    ("names", "target", "samples", "message"),
    [
        (["mae"], alrpc.Classes(10), 9, r"train\.metrics: got mae, which Classes\(count=10\) does not have; use macro_f1, "),
        (["macro_f1"], alrpc.Values(1), 9, r"train\.metrics: got macro_f1, which Values\(width=1\) does not have; use mae, r2"),
        (["top3"], alrpc.Labels(5), 9, r"got top3, which Labels\(count=5\) does not have; use micro_f1, macro_f1, "),
        (["top5"], alrpc.Classes(5), 9, r"train\.metrics: got top5, but there are 5 classes, so it would always be 1"),
        (["auroc"], alrpc.Classes(1000), 100_000, r"381 MiB for 100,000 samples of Classes\(count=1000\); at most 256 MiB"),
        (
            ["own_metrics:absent"],
            alrpc.Classes(3),
            9,
            r"train\.metrics: own_metrics:absent: module 'own_metrics' has no 'absent'",
        ),
    ],
)
def test_a_metric_that_does_not_fit_is_refused(names, target, samples, message):
    with pytest.raises(alrpc.UserError, match=message):
        check_metrics(names, target, samples)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_metrics:nothing", r"train\.metrics: own_metrics:nothing gave NoneType; it must give a number"),
        ("own_metrics:fails", r"train\.metrics: own_metrics:fails raised ValueError: odd"),
    ],
)
def test_a_function_of_ones_own_that_goes_wrong_is_named(name, message):
    with pytest.raises(alrpc.UserError, match=message):
        measure(name, alrpc.Classes(3), LABELS, SURE)


def test_every_exit_is_measured_at_every_evaluation():
    dataset, told = alrpc.load_data("digits"), []
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU()), nn.Sequential(nn.Linear(32, 32), nn.ReLU())]
    network = alrpc.decouple(blocks, dataset.sample, dataset.target)
    metrics = ["macro_f1", "own_metrics:brier"]
    alrpc.train(network, dataset, epochs=1, metrics=metrics, validation=0.1, callbacks=[told.append])
    validated, tested = (event for event in told if isinstance(event, Evaluation))
    assert list(validated.metrics) == list(tested.metrics) == metrics
    for number in (1, 2):
        with torch.no_grad():
            probabilities = network.eval()(dataset.test.inputs, exit=number).softmax(1)
        for name in metrics:
            value = measure(name, dataset.target, dataset.test.labels, probabilities)
            assert tested.metrics[name][number - 1] == pytest.approx(value, abs=1e-5)
