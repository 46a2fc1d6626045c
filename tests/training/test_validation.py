"""A validation split: what is held out, which epoch is the best, when training ends early, and what is tested at the end."""

import json
import math
import threading

import numpy as np
import pytest
import torch
from torch import nn

import alrpc
from alrpc.checkpoint.commit import best_checkpoint
from alrpc.checkpoint.saver import write_files
from alrpc.config import Train, parse_config
from alrpc.data.dataset import hold_out
from alrpc.data.text import Texts
from alrpc.data.vision import Images, Views
from alrpc.events import Checkpoint, Evaluation, Unwritten
from alrpc.training.optimizer import make_recipe
from alrpc.training.packet import Kind
from alrpc.training.program import program
from alrpc.training.validation import Validation, best_epoch, has_stopped

SIGNS = {
    **{"train": "t", "epoch": "|", "evaluate": "<", "test": "e", "evaluated": ">", "validated": "v", "checkpoint": "C"},
    **{"restore": "R", "end": "."},
}


@pytest.mark.parametrize(
    ("metric", "scores", "best"),
    [
        ("accuracy", [0.1, 0.5, 0.5, 0.4], 2),  # the earliest of several
        ("mse", [3.0, 1.0, 2.0], 2),
        ("mse", [math.nan, 9.0, math.inf], 2),
        ("accuracy", [math.nan, 0.0], 2),
        ("accuracy", [math.nan], 1),
    ],
)
def test_the_best_epoch(metric, scores, best):
    assert best_epoch(metric, scores) == best


def test_training_ends_after_as_many_epochs_without_a_better_score_as_it_has_patience():
    scores = [0.1, 0.5, 0.5, 0.4, 0.6]
    assert [has_stopped("accuracy", scores[:epochs], 2) for epochs in range(6)] == [False, False, False, False, True, False]
    assert not has_stopped("accuracy", [0.5, *[0.1] * 99], None)


def labelled(samples: int = 100) -> alrpc.Split:
    """Samples whose input is their number, a tenth of them in class 1."""
    numbers = torch.arange(samples)
    return alrpc.Split(numbers[:, None].float(), (numbers % 10 == 0).long())


def parts(train: alrpc.Split, share: float = 0.2, seed: int = 0, target: alrpc.Classes | alrpc.Values | None = None):
    test = alrpc.Split(train.inputs[:1], train.labels[:1]) if isinstance(train.inputs, torch.Tensor) else train
    dataset = hold_out(alrpc.Dataset(train, test, target or alrpc.Classes(2)), share, Train(seed=seed))
    return dataset.train, dataset.validation


def test_what_is_held_out_is_a_share_of_each_class_that_the_seed_alone_decides():
    train, validation = parts(labelled())
    assert (len(train), len(validation)) == (80, 20)
    assert (train.labels.sum(), validation.labels.sum()) == (8, 2)
    numbers = [split.inputs.flatten().tolist() for split in (train, validation)]
    assert sorted(numbers[0] + numbers[1]) == list(range(100)) and numbers[1] == sorted(numbers[1])
    assert torch.equal(parts(labelled())[1].inputs, validation.inputs)
    assert not torch.equal(parts(labelled(), seed=1)[1].inputs, validation.inputs)


def test_of_each_class_a_sample_is_left_to_train_on():
    labels = torch.tensor([0] * 10 + [1] * 2 + [3])  # none of class 2
    train, validation = parts(alrpc.Split(torch.zeros(13, 1), labels), 0.8, target=alrpc.Classes(4))
    assert [split.labels.bincount(minlength=4).tolist() for split in (train, validation)] == [[2, 1, 0, 1], [8, 1, 0, 0]]


def test_values_are_held_out_without_regard_to_them():
    split = alrpc.Split(torch.zeros(10, 1), torch.arange(10) - 5)
    train, validation = parts(split, 0.25, target=alrpc.Values(1))
    assert (len(train), len(validation)) == (8, 2)


class Lazy(alrpc.Split):
    """Reads its inputs, numbers in a list, one by one."""

    def batch(self, indices):
        return {"x": torch.tensor([[float(self.inputs[index])] for index in indices.tolist()])}, self.labels[indices]


def test_a_split_of_ones_own_and_those_of_texts_keep_what_they_do():
    train, validation = parts(Lazy(list(range(40)), torch.arange(40) % 2))
    assert type(train) is type(validation) is Lazy
    found = torch.cat([split.batch(torch.arange(len(split)))[0]["x"] for split in (train, validation)])
    assert sorted(found.flatten().tolist()) == list(range(40))
    begins = torch.arange(0, 40, 2)
    texts = Texts(torch.stack([begins, begins + 2], 1), torch.arange(20) % 2, tokens=torch.arange(40).int(), bucket=True)
    _, validation = parts(texts)
    assert validation.bucket and validation.batch(torch.tensor([0]))[0]["x"].shape == (1, 2)


class Doubled(Lazy):
    """Cannot be made of its fields."""

    def __init__(self, numbers):
        super().__init__([2 * number for number in numbers], torch.zeros(len(numbers)).long())


class OfArray(alrpc.Split):
    """Reads its inputs, an array, by an array of indices."""

    def batch(self, indices):
        return {"x": torch.from_numpy(self.inputs[indices.numpy()])}, self.labels[indices]


def test_a_split_of_ones_own_is_told_to_override_what_cannot_be_done_for_it_and_an_array_stays_one():
    with pytest.raises(
        alrpc.UserError, match=r"a part of Doubled cannot be made of its fields .*; override its method `part`, or"
    ):
        parts(Doubled(range(10)))
    train, validation = parts(OfArray(np.arange(40.0)[:, None], torch.arange(40) % 2))
    found = torch.cat([split.batch(torch.arange(len(split)))[0]["x"] for split in (train, validation)])
    assert sorted(found.flatten().tolist()) == list(range(40))


def test_of_two_views_of_each_image_the_images_are_held_out_once_and_as_they_are():
    pixels = torch.arange(20, dtype=torch.uint8)[:, None, None, None].expand(20, 1, 8, 8)
    zero, one = torch.zeros(1, 1, 1), torch.ones(1, 1, 1)
    images = Images(pixels, torch.arange(20) % 2, mean=zero, deviation=one)
    dataset = hold_out(alrpc.Dataset(Views.of(images), images, alrpc.Classes(2)), 0.2, Train())
    assert (len(dataset.train), len(dataset.validation)) == (32, 4) and isinstance(dataset.train, Views)
    held = set(dataset.validation.inputs[:, 0, 0, 0].tolist())
    assert held.isdisjoint(dataset.train.weak.inputs[:, 0, 0, 0].tolist())
    assert torch.equal(dataset.validation.during(0, 0).batch(torch.arange(4))[0]["x"] * 255, dataset.validation.inputs.float())


@pytest.mark.parametrize(
    ("share", "patience", "own", "message"),
    [
        (0.001, None, False, r"data\.validation: 0\.001 of 100 training samples holds out 0 and leaves 100 to train on"),
        (
            0.1,
            None,
            True,
            r"data\.validation: got 0\.1, but the data set has a validation split of its own; leave the field out",
        ),
        (0.0, 3, False, r"train\.patience: got 3, but there is no validation split to judge by; set data\.validation"),
    ],
)
def test_a_split_that_cannot_be_is_refused(share, patience, own, message):
    dataset = alrpc.Dataset(labelled(), labelled(2), alrpc.Classes(2), validation=labelled(5) if own else None)
    with pytest.raises(alrpc.UserError, match=message):
        hold_out(dataset, share, Train(patience=patience))


def draw(scores: list[float], start: int = 0, patience: int | None = None, workers: int = 0, **checkpoint) -> str:
    """The stream of three epochs of two micro-batches, with one to validate on and two to test on: a sign a packet.

    The scores are heard as the stages would tell them; every checkpoint is written, and the last is waited for.
    """
    splits = [alrpc.Split(torch.zeros(samples, 1), torch.zeros(samples).long()) for samples in (2, 2, 1)]
    train, test, validation = splits
    dataset = alrpc.Dataset(train, test, alrpc.Classes(2), validation=validation)
    fields = {"train": {"epochs": 3, "patience": patience}, "data": {"batch_size": 1, "workers": workers}}
    config = parse_config({**fields, "checkpoint": checkpoint})
    done = start // 2
    heard = Validation([[score] for score in scores[:done]], start, lambda: 2 * best_epoch("accuracy", heard.scores))
    drawn = ""
    for packet in program(config, dataset, make_recipe(config, 2), start, validation=heard):
        drawn += SIGNS[packet.kind] + (str(packet.step) if packet.kind is Kind.RESTORE else "")
        if packet.kind is Kind.VALIDATED:
            heard.hear(Evaluation(packet.epoch, "accuracy", [scores[packet.epoch - 1]], split="validation"))
        elif packet.kind is Kind.CHECKPOINT:
            heard.hear(Checkpoint(packet.step))
    return drawn


@pytest.mark.parametrize(
    ("scores", "options", "stream"),
    [
        ([0.1, 0.2, 0.3], {}, "tt|<evCtt|<evCtt|<evC<ee>."),  # the last epoch is the best: nothing to restore
        ([0.1, 0.3, 0.2], {}, "tt|<evCtt|<evCtt|<evCR4<ee>."),
        ([0.1, 0.3, 0.2], {"best": False}, "tt|<evCtt|<evCtt|<evC<ee>."),
        ([0.1, 0.3, 0.2], {"best": False, "epoch": False}, "tt|<evtt|<evtt|<evC<ee>."),
        ([0.3, 0.2, 0.1], {"epoch": False}, "tt|<evCtt|<evCtt|<evCR2<ee>."),  # the best needs one after every epoch
        ([0.3, 0.2, 0.1], {"patience": 1}, "tt|<evCtt|<evCR2<ee>."),
        ([0.3, 0.2, 0.1], {"patience": 1, "workers": 1}, "tt|<evCtt|<evCR2<ee>."),
        ([0.3, 0.2, 0.1], {"patience": 1, "best": False, "epoch": False}, "tt|<evtt|<evC<ee>."),
        ([0.3, 0.2, 0.1], {"patience": 1, "start": 3}, "t|<evCR2<ee>."),  # resumed in mid-epoch
        ([0.3, 0.2, 0.1], {"patience": 1, "start": 4}, "R2<ee>."),  # resumed after it had ended early
        ([0.3, 0.2, 0.1], {"start": 6}, "R2<ee>."),  # resumed between its last checkpoint and its summary
    ],
    ids=str,
)
def test_what_comes_when_with_a_validation_split(scores, options, stream):
    assert draw(scores, **options) == stream


def test_what_feeds_waits_for_the_score_and_the_checkpoint_and_for_neither_when_the_run_has_failed(monkeypatch):
    monkeypatch.setattr("alrpc.training.validation.AGAIN", 0.01)
    told, found, waits = [], [], threading.Event()
    heard = Validation(find_best=lambda: told[-1].step, check=waits.set)
    waiting = threading.Thread(target=lambda: found.extend([heard.scores_of(2), heard.best_step(9)]))
    waiting.start()
    for event in (
        Evaluation(1, "accuracy", [0.1, 0.2], split="validation"),
        Evaluation(1, "accuracy", [0.9], split="test"),
        Evaluation(2, "accuracy", [0.3, 0.4], split="validation"),
        Checkpoint(5),
        Unwritten(9, "the disk is full"),
    ):
        waits.clear()
        assert waits.wait(30), "it does not wait for what has not been heard"
        told.append(event)
        heard.hear(event)
    waiting.join(60)
    assert found == [[0.2, 0.4], 9]

    def fail():
        raise RuntimeError("the manifest is odd")

    with pytest.raises(RuntimeError, match="the manifest is odd"):
        Validation(check=fail).scores_of(1)


OPTIONS = {"validation": 0.1, "lr": 0.06, "schedule": "constant"}


def digits_network(dataset: alrpc.Dataset) -> alrpc.Network:
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU()), nn.Sequential(nn.Linear(32, 32), nn.ReLU())]
    return alrpc.decouple(blocks, dataset.sample, dataset.target)


def test_training_that_ends_early_leaves_the_network_of_the_best_epoch_and_its_score_on_the_test_split(tmp_path):
    dataset = alrpc.load_data("digits")
    network, told = digits_network(dataset), []
    exits = alrpc.train(network, dataset, epochs=60, patience=2, callbacks=[told.append], **OPTIONS)
    evaluations = [event for event in told if isinstance(event, Evaluation)]
    *validated, tested = evaluations
    scores = [event.exits[-1] for event in validated]
    best = best_epoch("accuracy", scores)
    assert {event.split for event in validated} == {"validation"} and {event.samples for event in validated} == {142}
    assert (tested.split, tested.samples, tested.epoch, tested.exits) == ("test", 360, best, exits)
    assert best > 1 and len(validated) == best + 2 < 60
    right = network.predict(dataset.test.inputs) == dataset.test.labels
    assert right.float().mean().item() == pytest.approx(exits[-1])
    shorter = digits_network(dataset)
    alrpc.train(shorter, dataset, epochs=best, **OPTIONS)  # its last epoch is its best
    assert shorter.digest() == network.digest()

    again, run = digits_network(dataset), tmp_path / "run"
    assert alrpc.train(again, dataset, out=run, epochs=60, patience=2, **OPTIONS) == exits
    assert again.digest() == network.digest()
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["epochs"], summary["steps"], summary["tested_epoch"]) == (best + 2, (best + 2) * 21, best)
    assert summary["ended_early"] and summary["validation_accuracy"] == scores[best - 1] and summary["exits"] == exits
    assert summary["parameters_sha256"] == network.digest() == alrpc.load_run(run, network=network).digest()
    steps = sorted(int(each.name.removeprefix("step-")) // 21 for each in (run / "checkpoints").iterdir())
    assert steps == sorted({best, best + 1, best + 2}) and best_checkpoint(run) == best * 21
    with pytest.raises(alrpc.UserError, match=f"has ended early, after epoch {best + 2}, since train.patience is 2; to go on"):
        alrpc.train(again, dataset, resume=run)
    longer = alrpc.train(again, dataset, resume=run, patience=3)
    assert json.loads((run / "summary.json").read_text())["epochs"] > best + 2 and len(longer) == 2


class Overflows(nn.Module):
    """Its buffer, which no loss depends on, becomes infinite in the third micro-batch of the training."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 32)
        self.register_buffer("seen", torch.tensor(1e20))

    def forward(self, x):
        if self.training:
            self.seen *= 1e9
        return self.layer(x.flatten(1)).relu()


@pytest.mark.timeout(120)
def test_a_last_checkpoint_that_is_not_finite_ends_the_run_which_waits_for_it(tmp_path):
    dataset = alrpc.load_data("digits")
    network = alrpc.decouple([Overflows(), nn.Linear(32, 32)], dataset.sample, dataset.target)
    with pytest.raises(alrpc.UserError, match=r"seen of component-001 is not finite after step 21; there is no checkpoint"):
        alrpc.train(network, dataset, epochs=1, out=tmp_path / "run", **OPTIONS)


def test_a_run_does_not_go_on_with_another_validation_split_than_it_began_with(tmp_path):
    digits = alrpc.load_data("digits")
    first, rest = (digits.train.part(rows) for rows in torch.arange(len(digits.train)).split([100, 1337]))
    without = alrpc.Dataset(rest, digits.test, digits.target)
    own, larger = (alrpc.Dataset(rest, digits.test, digits.target, validation=split) for split in (first, digits.test))
    for began, other, samples in ((without, own, (100, 0)), (own, without, (0, 100)), (own, larger, (360, 100))):
        run, network = tmp_path / f"{samples}", digits_network(digits)
        alrpc.train(network, began, epochs=1, out=run)
        files = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
        message = f"data: {samples[0]} samples to validate on, but the run began with {samples[1]}; give it the data that it began with"
        with pytest.raises(alrpc.UserError, match=message):
            alrpc.train(network, other, resume=run, epochs=3)
        assert {path: path.read_bytes() for path in files} == files
        alrpc.train(network, began, resume=run, epochs=2)


def test_a_best_epoch_whose_checkpoint_could_not_be_written_is_not_the_one_that_is_tested(monkeypatch, tmp_path):
    dataset, told = alrpc.load_data("digits"), []
    alrpc.train(digits_network(dataset), dataset, epochs=5, callbacks=[told.append], **OPTIONS)
    scores = [event.exits[-1] for event in told if isinstance(event, Evaluation) and event.split == "validation"]
    lost = best_epoch("accuracy", scores[:4])  # without the last one there is no result
    expected = best_epoch("accuracy", [0.0 if epoch == lost else score for epoch, score in enumerate(scores, 1)])

    def write(run, stage, step, states):
        return Unwritten(step, "the disk is full", stage) if step == lost * 21 else write_files(run, stage, step, states)

    monkeypatch.setattr("alrpc.checkpoint.saver.write_files", write)
    network, run = digits_network(dataset), tmp_path / "run"
    alrpc.train(network, dataset, epochs=5, out=run, **OPTIONS)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["tested_epoch"] == expected
    assert summary["checkpoint_failures"] == [f"no checkpoint of step {lost * 21}: the disk is full"]
    assert summary["parameters_sha256"] == network.digest() == alrpc.load_run(run, network=network).digest()
