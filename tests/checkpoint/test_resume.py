"""A run that was stopped goes on from its checkpoint and ends with the bits that it would have had anyway."""

import json
import re
import shutil
import signal
import socket
import time

import pytest
from conftest import ALRPC, LIMIT, Commands, read_summary
from small_data import write_texts

FIELDS = ("--set", "train.epochs=3", "--set", "checkpoint.every=10", "--set", "checkpoint.keep=100", "--quiet")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of three epochs on two stages that nothing has stopped, with all its checkpoints."""
    commands = Commands(tmp_path_factory.mktemp("whole"))
    done = commands.alrpc("launch", "--stages", "2", *FIELDS, "--out", "whole")
    assert done.returncode == 0, done.stderr
    return commands.folder / "whole"


def stopped_at(whole, step, folder):
    """A copy of the run as it would be left by whatever stopped it after the checkpoint of a step."""
    run = folder / "run"
    shutil.copytree(whole, run)
    (run / "summary.json").unlink()
    for directory in (run / "checkpoints").iterdir():
        if int(directory.name.removeprefix("step-")) > step:
            shutil.rmtree(directory)
    return run


def test_checkpoints_are_taken_by_steps_and_after_each_epoch(whole):
    steps = sorted(int(path.parent.name.removeprefix("step-")) for path in whole.glob("checkpoints/*/manifest.json"))
    assert steps == [10, 20, 23, 30, 40, 46, 50, 60, 69]
    assert not list(whole.glob("checkpoints/*/*.partial"))


@pytest.mark.parametrize(
    ("step", "command"),
    [(10, ["launch", "--stages", "4"]), (46, ["launch", "--stages", "3"]), (60, ["train"])],
    ids=["four-stages", "three-stages-at-an-epochs-end", "sequential"],
)
def test_a_stopped_run_goes_on_to_the_same_bits(whole, commands, step, command):
    run = stopped_at(whole, step, commands.folder)
    done = commands.alrpc(*command, "--resume", "run", "--quiet")
    assert done.returncode == 0, done.stderr
    one, other = read_summary(whole), read_summary(run)
    assert other["parameters_sha256"] == one["parameters_sha256"] and other["exits"] == one["exits"]
    assert other["resumed_at_step"] == step and other["steps"] == 69
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [event["epoch"] for event in events if event["event"] == "evaluation"][-1] == 3
    assert (run / "checkpoints" / "step-00000069" / "manifest.json").is_file()


@pytest.mark.parametrize("command", ["launch", "train"])
def test_a_run_that_ended_between_its_last_checkpoint_and_its_summary_is_evaluated_again(whole, commands, command):
    run = stopped_at(whole, 69, commands.folder)
    for directory in (run / "checkpoints").iterdir():
        if directory.name != "step-00000069":  # as with checkpoint.keep=1
            shutil.rmtree(directory)
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    evaluation = max(number for number, line in enumerate(lines) if '"evaluation"' in line)
    (run / "metrics.jsonl").write_text("".join(lines[:evaluation]))
    before = {path: path.read_bytes() for path in (run / "checkpoints").rglob("*") if path.is_file()}
    done = commands.alrpc(command, "--resume", "run", "--quiet")
    assert done.returncode == 0, done.stderr
    one, other = read_summary(run), read_summary(whole)
    same = ("test_accuracy", "exits", "parameters_sha256", "steps", "epochs", "parameters")
    assert {name: one[name] for name in same} == {name: other[name] for name in same}
    assert one["resumed_at_step"] == 69
    assert {path: path.read_bytes() for path in (run / "checkpoints").rglob("*") if path.is_file()} == before
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [event["exits"] for event in events if event["event"] == "evaluation"][-1] == other["exits"]


def test_gradients_that_wait_for_their_optimizer_step_are_not_lost(commands):
    fields = ("--set", "train.epochs=1", "--set", "train.accumulate=4", "--set", "checkpoint.every=10", "--quiet")
    own = "own_recipe:rmsprop"
    for optimizer, out in (("adam", "a"), ("sgd", "s"), (own, "o")):
        options = (*fields, "--set", f"train.optimizer={optimizer}", "--set", "checkpoint.keep=9")
        assert commands.alrpc("train", *options, "--out", out).returncode == 0
        whole = read_summary(commands.folder / out)
        asked = ("--set", f"train.optimizer={own}") if optimizer == own else ()  # code is imported on the user's word alone
        done = commands.alrpc(
            "train", "--resume", stopped_at(commands.folder / out, 10, commands.folder).name, "--quiet", *asked
        )
        assert done.returncode == 0, done.stderr
        assert read_summary(commands.folder / "run")["parameters_sha256"] == whole["parameters_sha256"]
        shutil.rmtree(commands.folder / "run")


def test_a_finished_run_goes_on_only_for_more_epochs(whole, commands):
    shutil.copytree(whole, commands.folder / "run")
    refused = commands.alrpc("launch", "--resume", "run")
    assert refused.returncode == 2 and "has finished its 3 epochs; for more of them add --set train.epochs=N" in refused.stderr
    done = commands.alrpc("launch", "--resume", "run", "--set", "train.epochs=4", "--quiet")
    assert done.returncode == 0, done.stderr
    summary = read_summary(commands.folder / "run")
    assert (summary["epochs"], summary["steps"], summary["resumed_at_step"]) == (4, 92, 69)


def damage_a_byte(run):
    path = run / "checkpoints" / "step-00000020" / "component-002.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(run):
    path = run / "checkpoints" / "step-00000020" / "component-001.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def remove_a_file(run):
    (run / "checkpoints" / "step-00000020" / "component-004.safetensors").unlink()


def keep_some_on_another_host(run):
    """As when the hosts of a run have disks of their own, and only those of node 0 are here."""
    directory = run / "checkpoints" / "step-00000020"
    manifest = json.loads((directory / "manifest.json").read_text())
    for name in ("component-003.safetensors", "component-004.safetensors"):
        assert manifest["files"][name]["host"] == socket.gethostname()
        manifest["files"][name]["host"] = "far"
        (directory / name).unlink()
    (directory / "manifest.json").write_text(json.dumps(manifest))


def swap_components(run):
    directory = run / "checkpoints" / "step-00000020"
    manifest = json.loads((directory / "manifest.json").read_text())
    first, last = "component-001.safetensors", "component-004.safetensors"
    (directory / first).rename(directory / "x")
    (directory / last).rename(directory / first)
    (directory / "x").rename(directory / last)
    files = manifest["files"]
    files[first], files[last] = files[last], files[first]
    (directory / "manifest.json").write_text(json.dumps(manifest))


def age(run):
    path = run / "checkpoints" / "step-00000020" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))


@pytest.mark.parametrize(
    ("command", "harm", "message"),
    [
        ("launch", damage_a_byte, "component-002.safetensors: is damaged: its checksum is not the manifest's"),
        ("train", cut, "component-001.safetensors: has "),
        ("launch", remove_a_file, "component-004.safetensors: cannot be read: No such file"),
        (
            "launch",
            keep_some_on_another_host,
            f"not on this host, {socket.gethostname()}: component-003.safetensors, component-004.safetensors (written on host far)",
        ),
        ("train", swap_components, "component-001.safetensors: does not fit component 1 of this configuration"),
        ("train", age, "manifest.json: format 99 is newer than this alrpc's"),
    ],
)
def test_a_bad_checkpoint_is_refused_by_name_and_the_one_before_it_offered(whole, commands, command, harm, message):
    run = stopped_at(whole, 20, commands.folder)
    harm(run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    refused = commands.alrpc(command, "--resume", "run")
    assert refused.returncode == 1 and message in refused.stderr and refused.stderr.count("\n") == 1, refused.stderr
    assert "the checkpoint before it is that of step 10: add --step 10" in refused.stderr
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_the_checkpoint_before_a_bad_one_leads_to_the_same_bits(whole, commands):
    run = stopped_at(whole, 20, commands.folder)
    damage_a_byte(run)
    done = commands.alrpc("train", "--resume", "run", "--step", "10", "--quiet")
    assert done.returncode == 0, done.stderr
    assert read_summary(run)["parameters_sha256"] == read_summary(whole)["parameters_sha256"]


def test_checkpoints_after_the_one_to_go_on_from_do_not_outlive_it(whole, commands):
    run = stopped_at(whole, 60, commands.folder)
    launched = commands.start(ALRPC, "train", "--resume", "run", "--step", "10", "--set", "train.epochs=200", "--quiet")
    end = time.monotonic() + LIMIT
    while (run / "checkpoints" / "step-00000060" / "manifest.json").exists() and time.monotonic() < end:
        time.sleep(0.02)
    launched.kill()
    steps = [int(path.parent.name.removeprefix("step-")) for path in run.glob("checkpoints/*/manifest.json")]
    assert 10 in steps and 60 not in steps


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "train.lr=0.5"], "--set: train.lr was 0.002 and cannot become 0.5"),
        (["--config", "digits-mlp"], "--config: a run that goes on has its own configuration"),
        (["--out", "elsewhere"], "--out: a run that goes on has its own directory"),
        (["--step", "11"], "--step: run has no complete checkpoint of step 11; it has 10, 20"),
        (["--stages", "9"], "pipeline.stages: got 9, but the model has 4 components"),
        (["--set", "data.name=nothing"], "--set: data.name was digits and cannot become nothing"),
    ],
)
def test_what_cannot_go_on_is_refused_and_nothing_is_changed(whole, commands, options, message):
    run = stopped_at(whole, 20, commands.folder)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    refused = commands.alrpc("launch", "--resume", "run", *options)
    assert refused.returncode == 2 and refused.stderr.startswith(f"alrpc: {message}"), refused.stderr
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_run_does_not_go_on_with_other_data_than_it_began_with(commands):
    write_texts(commands.folder / "texts.jsonl")
    fields = ["model.name=lstm", "model.width=8", "model.hidden=8", "data.name=text-file", "data.file=texts.jsonl"]
    options = [part for field in (*fields, "data.batch_size=16", "train.epochs=1") for part in ("--set", field)]
    done = commands.alrpc("train", *options, "--out", "run", XDG_CACHE_HOME=str(commands.folder / "cache"))
    assert done.returncode == 0, done.stderr
    with (commands.folder / "texts.jsonl").open("a") as file:
        file.writelines('{"text": "good", "label": "good"}\n' for _ in range(40))
    before = {path: path.read_bytes() for path in (commands.folder / "run").rglob("*") if path.is_file()}
    for command in (["train"], ["launch", "--stages", "2"]):
        options = ("--resume", "run", "--set", "train.epochs=2")
        refused = commands.alrpc(*command, *options, XDG_CACHE_HOME=str(commands.folder / "cache"))
        assert refused.returncode == 1 and refused.stderr.count("\n") == 1, refused.stderr
        assert re.search(
            r"^alrpc: data: \d+ micro-batches an epoch, but the run began with \d+; give it the data", refused.stderr
        )
    assert {path: path.read_bytes() for path in before} == before


def test_a_checkpoint_that_cannot_be_written_is_told_and_training_goes_on(commands):
    launched = commands.start(ALRPC, "launch", "--stages", "2", "--set", "train.epochs=12", "--out", "run")
    metrics, places = commands.folder / "run" / "metrics.jsonl", commands.folder / "run" / "checkpoints"
    end = time.monotonic() + LIMIT
    while not (metrics.exists() and '"start"' in metrics.read_text()) and time.monotonic() < end:
        time.sleep(0.02)
    places.mkdir(exist_ok=True)
    for step in (184, 276):  # the last of which is the end
        (places / f"step-{step:08d}").write_text("in the way")
    out, errors = launched.communicate(timeout=LIMIT)
    assert "no checkpoint of step 184: run/checkpoints/step-00000184: File exists" in out
    assert launched.returncode == 1 and errors.count("\n") == 1
    assert "the trained parameters could not be written: no checkpoint of step 276" in errors
    assert "its last complete checkpoint is that of step 253; --resume run goes on from it" in errors
    assert not (commands.folder / "run" / "summary.json").exists()
    (places / "step-00000276").unlink()
    done = commands.alrpc("launch", "--resume", "run", "--quiet")
    assert done.returncode == 0, done.stderr
    assert read_summary(commands.folder / "run")["resumed_at_step"] == 253


def test_a_run_that_is_under_way_is_not_taken_from_its_processes(commands):
    launched = commands.start(ALRPC, "launch", "--stages", "2", "--set", "train.epochs=200", "--out", "run")
    end = time.monotonic() + LIMIT
    while not list(commands.folder.glob("run/checkpoints/*/manifest.json")) and time.monotonic() < end:
        time.sleep(0.02)
    for command in ("launch", "train"):
        refused = commands.alrpc(command, "--resume", "run")
        assert refused.returncode == 1 and "run: a training is under way in it" in refused.stderr
    assert launched.poll() is None
    launched.send_signal(signal.SIGINT)
    launched.communicate(timeout=LIMIT)
    done = commands.alrpc("launch", "--resume", "run", "--set", "train.epochs=1")
    assert done.returncode == 2 and "has finished its 1 epochs" in done.stderr
