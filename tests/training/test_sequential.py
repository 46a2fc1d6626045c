"""The sequential engine from Python, on real data."""

import threading

import pytest
import torch
from conftest import read_summary
from torch import nn

import alrpc
from alrpc import events
from alrpc.network import build_network, resolve
from alrpc.runtime.run import in_thread, run_sequentially


def digits_network(dataset: alrpc.Dataset) -> alrpc.Network:
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU()), nn.Sequential(nn.Linear(128, 128), nn.ReLU())]
    return alrpc.associate(blocks, dataset.sample, dataset.target)


def test_a_network_of_ones_own_blocks_learns_digits_and_predicts_by_every_exit():
    dataset = alrpc.load_data("digits")
    network = digits_network(dataset)
    exits = alrpc.train(network, dataset, epochs=12, lr=2e-3, target_lr=1e-3)
    assert min(exits) > 0.9
    for number, accuracy in enumerate(exits, 1):
        right = network.predict(dataset.test.inputs, exit=number) == dataset.test.labels
        assert right.float().mean().item() == pytest.approx(accuracy)


def test_a_regression_explains_more_than_its_mean():
    import own_blocks

    dataset = own_blocks.regression()
    network = alrpc.associate(own_blocks.build_for_regression(), dataset.sample, dataset.target)
    exits = alrpc.train(network, dataset, epochs=20, batch_size=32, lr=1e-3)
    variance = dataset.test.labels.var().item()
    assert all(error < 0.75 * variance for error in exits)
    error = (network.predict(dataset.test.inputs) - dataset.test.labels).square().mean().item()
    assert error == pytest.approx(exits[-1], rel=1e-5)


def test_training_twice_gives_the_same_bits_and_leaves_the_callers_generator_alone():
    dataset = alrpc.load_data("digits")
    digests = set()
    for _ in range(2):
        network = digits_network(dataset)
        before = torch.get_rng_state()
        alrpc.train(network, dataset, epochs=1)
        assert torch.equal(torch.get_rng_state(), before)
        digests.add(network.digest())
    assert len(digests) == 1


def test_whatever_goes_wrong_as_a_checkpoint_is_committed_ends_the_run_with_its_cause(monkeypatch, tmp_path):
    def fail(*_):
        raise RuntimeError("the manifest is odd")

    monkeypatch.setattr("alrpc.checkpoint.commit.commit", fail)
    with pytest.raises(RuntimeError, match="the manifest is odd"):
        run_sequentially(alrpc.load_config(None, ["train.epochs=100"]), "run", tmp_path / "run", quiet=True)
    evaluated = [line for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines() if '"evaluation"' in line]
    assert len(evaluated) < 50
    assert not (tmp_path / "run" / "summary.json").exists()


@pytest.mark.parametrize("once", [True, False], ids=["at-the-end", "meanwhile"])
def test_a_thread_of_a_run_passes_on_what_its_functions_raise(once):
    ended = threading.Event()

    def fail():
        raise ValueError("odd")

    with pytest.raises(ValueError, match="odd"), in_thread("any") as (submit, check):
        submit(fail)
        submit(ended.set)
        if not once:
            assert ended.wait(60)
            check()
            pytest.fail("nothing was raised")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epoch": 1}, r"train\.epoch: unknown field; did you mean train\.epochs\?"),
        ({"optimizer": "adm"}, r"train\.optimizer: got 'adm'; it should be 'adam', 'adamw', 'sgd' or 'lars'"),
        ({"schedule": "cosin"}, r"train\.schedule: got 'cosin'; it should be 'constant', 'linear' or 'cosine'"),
        ({"lr": 1e-3, "end_lr": 1e-2}, r"train\.end_lr: got 0\.01, above train\.lr"),
        ({"batch_size": 0}, r"data\.batch_size: got 0; it should be greater than 0"),
        ({"device": "gpu"}, "device: got 'gpu'; it should be 'auto', 'cpu' or 'cuda'"),
        ({"callbacks": ["losses"]}, "callbacks: got 'losses'; give functions that take an event"),
        ({"dataset": "digits"}, r"dataset: got str; give an alrpc\.Dataset"),
        ({"network": nn.Linear(64, 10)}, r"network: got Linear; give an alrpc\.Network"),
    ],
)
def test_an_argument_that_is_wrong_is_named(arguments, message):
    dataset = alrpc.load_data("digits")
    with pytest.raises(alrpc.UserError, match=message):
        alrpc.train(**{"network": digits_network(dataset), "dataset": dataset, **arguments})


def test_data_of_another_target_than_the_networks_is_refused():
    dataset = alrpc.load_data("digits")
    values = [alrpc.Split(split.inputs, split.labels.float()) for split in (dataset.train, dataset.test)]
    with pytest.raises(alrpc.UserError, match=r"its target is Values\(width=1\), but the network was built for Classes"):
        alrpc.train(digits_network(dataset), alrpc.Dataset(*values, alrpc.Values(1)))


def test_a_function_given_alone_as_callbacks_is_refused():
    dataset = alrpc.load_data("digits")
    with pytest.raises(alrpc.UserError, match="callbacks: got a function; give a list of functions"):
        alrpc.train(digits_network(dataset), dataset, callbacks=print)


# ---- as the command `alrpc train` does it

CONFIG = ["train.epochs=2", "train.log_every=10"]


@pytest.mark.parametrize(("precision", "threads"), [("fp32", 1), ("bf16", 2)])
def test_a_call_with_a_directory_writes_what_the_command_writes(tmp_path, precision, threads):
    config, _ = resolve(alrpc.load_config(None, [*CONFIG, f"precision={precision}", f"threads={threads}"]))
    commands, _ = run_sequentially(config, "digits", tmp_path / "command", quiet=True)
    dataset = alrpc.load_data("digits")
    network = build_network(config, dataset.sample, dataset.target)
    fields = {**config.train.model_dump(), "batch_size": config.data.batch_size}
    exits = alrpc.train(network, dataset, out=tmp_path / "call", precision=precision, threads=threads, **fields)
    calls = read_summary(tmp_path / "call")
    assert calls["parameters_sha256"] == commands["parameters_sha256"] == network.digest() and calls["exits"] == exits
    files = [{path.relative_to(run) for path in run.rglob("*")} for run in (tmp_path / "call", tmp_path / "command")]
    assert files[0] == files[1] and calls.keys() == commands.keys()


@pytest.mark.parametrize(("given", "threads"), [({}, 1), ({"threads": 3}, 3)])
def test_a_call_has_as_many_threads_as_the_command_and_gives_the_caller_his_back(given, threads):
    dataset = alrpc.load_data("digits")
    torch.set_num_threads(2)
    seen = set()
    alrpc.train(digits_network(dataset), dataset, epochs=1, callbacks=[lambda _: seen.add(torch.get_num_threads())], **given)
    assert seen == {threads} and torch.get_num_threads() == 2


def test_callbacks_are_told_every_event_in_the_callers_thread(tmp_path):
    dataset = alrpc.load_data("digits")
    told, threads = [], set()
    callbacks = [told.append, lambda _: threads.add(threading.current_thread())]
    exits = alrpc.train(digits_network(dataset), dataset, epochs=2, out=tmp_path / "run", callbacks=callbacks)
    assert threads == {threading.current_thread()}
    assert [event.exits for event in told if isinstance(event, events.Evaluation)][-1] == exits
    assert [event.step for event in told if isinstance(event, events.Checkpoint)] == [23, 46]
    assert {type(event) for event in told} >= {events.Job, events.Ready, events.Start, events.Losses, events.Finished}


class Enough(Exception):
    pass


def test_a_run_that_a_callback_ended_goes_on_to_the_same_bits(tmp_path):
    dataset = alrpc.load_data("digits")
    fields = {"epochs": 3, "lr": 2e-3}
    whole = digits_network(dataset)
    alrpc.train(whole, dataset, **fields)

    def stop(event: events.Event) -> None:
        if isinstance(event, events.Checkpoint):
            raise Enough

    with pytest.raises(Enough):
        alrpc.train(digits_network(dataset), dataset, out=tmp_path / "run", callbacks=[stop], **fields)
    resumed = digits_network(dataset)
    before = resumed.digest()
    with pytest.raises(alrpc.UserError, match=r"train\.lr was 0\.002 and cannot become 1\.0"):
        alrpc.train(resumed, dataset, resume=tmp_path / "run", lr=1.0)
    assert resumed.digest() == before
    alrpc.train(resumed, dataset, resume=tmp_path / "run")
    assert resumed.digest() == whole.digest() and read_summary(tmp_path / "run")["resumed_at_step"] > 0
    assert alrpc.load_run(tmp_path / "run", network=digits_network(dataset)).digest() == whole.digest()
    with pytest.raises(alrpc.UserError, match=r"load with alrpc\.load_run\(DIR, network=network\)"):
        alrpc.load_run(tmp_path / "run")


def test_a_checkpoint_of_another_network_is_refused_and_leaves_the_network_alone(tmp_path):
    dataset = alrpc.load_data("digits")
    alrpc.train(digits_network(dataset), dataset, epochs=1, out=tmp_path / "run")
    blocks = [nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU()), nn.Sequential(nn.Linear(128, 64), nn.ReLU())]
    for some, fault in ((blocks, "component-002.safetensors: does not fit"), (blocks[:1], "of a network of 2 components")):
        network = alrpc.associate(some, dataset.sample, dataset.target)
        before = network.digest()
        with pytest.raises(alrpc.UserError, match=fault):
            alrpc.train(network, dataset, resume=tmp_path / "run", epochs=2)
        assert network.digest() == before
