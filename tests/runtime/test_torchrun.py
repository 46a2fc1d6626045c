"""The pipeline started by torchrun: by hand, by launch/torchrun.sh, on two hosts."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import LIMIT, PATH, free_port, patience, read_summary

from alrpc.analysis.aligned import align_timings

SCRIPT = Path(__file__).parents[2] / "launch" / "torchrun.sh"


def test_the_script_runs_one_node_with_the_bits_of_the_sequential_reference(commands):
    options = ["--set", "train.epochs=1", "--quiet"]
    started = commands.run(SCRIPT, "2", *options, "--out", "run", PATH=PATH, PORT=free_port())
    assert started.returncode == 0, started.stderr
    assert commands.alrpc("train", *options, "--out", "reference").returncode == 0
    one, other = (read_summary(commands.folder / name) for name in ("run", "reference"))
    assert one["stages"] == 2 and one["parameters_sha256"] == other["parameters_sha256"]


def test_torchruns_own_restarts_go_on_from_the_last_checkpoint(commands, until):
    options = ["--set", "train.epochs=6", "--quiet"]
    started = commands.start(SCRIPT, "2", *options, "--out", "run", PATH=PATH, PORT=free_port(), RESTARTS="1")
    until(lambda: list(commands.folder.glob("run/checkpoints/*/manifest.json")))
    commands.workers()[2].send_signal(signal.SIGKILL)
    _, errors = started.communicate(timeout=LIMIT)
    assert started.returncode == 0, errors
    assert commands.alrpc("train", *options, "--out", "reference").returncode == 0
    one, other = (read_summary(commands.folder / name) for name in ("run", "reference"))
    assert one["parameters_sha256"] == other["parameters_sha256"] and one["resumed_at_step"] > 0
    assert [restart["cause"] for restart in one["restarts"]] == ["torchrun started the processes again"]


def test_a_directory_of_others_stays_as_it_is_however_often_torchrun_starts_again(commands):
    kept = commands.folder / "run" / "precious.txt"
    kept.parent.mkdir()
    kept.write_text("mine")
    refused = commands.run(SCRIPT, "2", "--out", "run", PATH=PATH, PORT=free_port(), RESTARTS="1")
    assert (
        refused.returncode == 1 and refused.stderr.count("alrpc: --out: run is not empty") == 2 + 1
    )  # two attempts, last line
    assert kept.read_text() == "mine" and list(kept.parent.iterdir()) == [kept]


def test_the_script_explains_itself(commands):
    explained = commands.run(SCRIPT)
    assert explained.returncode == 2 and "launch/torchrun.sh STAGES" in explained.stderr
    lacking = commands.run(SCRIPT, "1", NODES="2")
    assert lacking.returncode == 2 and "MASTER is not set" in lacking.stderr
    open_to_all = commands.run(SCRIPT, "1", NODES="2", MASTER="10.0.0.1")
    assert open_to_all.returncode == 2 and "ALRPC_SECRET is not set" in open_to_all.stderr


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_machine_that_never_begins_is_not_waited_for_longer_than_told(commands, rank):
    several = {
        "NODES": "2",
        "NODE_RANK": rank,
        "MASTER": "127.0.0.1",
        "PORT": free_port(),
        "WAIT": "3",
        "ALRPC_SECRET": "s" * 32,
    }
    alone = commands.run(SCRIPT, "1", PATH=PATH, **several)
    assert alone.returncode == 1
    assert alone.stderr.splitlines()[-1].startswith("alrpc: the machines did not meet; start launch/torchrun.sh on each, ")


def test_a_mistake_is_told_by_the_coordinator_and_by_torchrun(commands):
    refused = commands.run(SCRIPT, "5", "--out", "run", PATH=PATH, PORT=free_port())
    message = "pipeline.stages: got 5, but the model has 4 components; use 1 to 4"
    assert refused.returncode == 1 and f"\nalrpc: {message}" in f"\n{refused.stderr}"
    assert f"traceback : {message}" in refused.stderr  # torchrun's own report
    assert not (commands.folder / "run").exists()


def test_without_torchrun_the_worker_says_what_to_do(commands):
    lone = commands.run(sys.executable, "-m", "alrpc.worker")
    assert lone.returncode == 2 and "start this with torchrun, or use alrpc launch" in lone.stderr


@pytest.fixture
def hosts(tmp_path):
    """Two hosts joined by a wire: network namespaces. In each the host's own name stands for 127.0.1.1, as in many an /etc/hosts."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need root and iproute2")
    names = [f"alrpc-{os.getpid()}-{side}" for side in "ab"]

    def ip(*arguments: str) -> int:
        return subprocess.run(["ip", *arguments], capture_output=True, timeout=20).returncode

    try:
        if any(ip("netns", "add", name) for name in names):
            pytest.skip("this machine makes no network namespaces")
        ip("link", "add", "wire-a", "netns", names[0], "type", "veth", "peer", "name", "wire-b", "netns", names[1])
        for number, (name, wire) in enumerate(zip(names, ("wire-a", "wire-b"), strict=True), 1):
            ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", wire)
            ip("-n", name, "link", "set", wire, "up")
            ip("-n", name, "link", "set", "lo", "up")
            known = Path("/etc/netns", name, "hosts")  # ip puts it in the place of /etc/hosts
            known.parent.mkdir(parents=True)
            known.write_text(f"127.0.0.1 localhost\n127.0.1.1 {socket.gethostname()}\n")
        yield [(name, wire) for name, wire in zip(names, ("wire-a", "wire-b"), strict=True)]
    finally:
        for name in names:
            ip("netns", "del", name)
            shutil.rmtree(f"/etc/netns/{name}", ignore_errors=True)


def start_on(
    commands, hosts, *options: str, ahead: int = 0, other: Path | None = None, secret: str = "of this test, and long"
) -> list[subprocess.Popen]:
    """The coordinator and stage 1 on the first host, stages 2 and 3 on the second, whose clock is ahead by so many seconds.

    The second one's working directory is `other` where that is given.
    """
    processes = []
    for rank, ((name, _), stages) in enumerate(zip(hosts, ("1", "2"), strict=True)):
        own = {
            "NODES": "2",
            "NODE_RANK": str(rank),
            "MASTER": "10.77.0.1",
            "PATH": PATH,
            "ALRPC_SECRET": secret,
        }
        clock = ["unshare", "--time", "--monotonic", str(ahead), "--fork"] if rank and ahead else []
        place = ["env", "-C", str(other)] if rank and other else []
        processes.append(commands.start(*place, *clock, "ip", "netns", "exec", name, SCRIPT, stages, *options, **own))
    return processes


def test_two_hosts_give_the_bits_of_one(commands, hosts):
    options = ["--set", "train.epochs=5", "--quiet"]
    elsewhere = commands.folder / "elsewhere"  # the disks are not shared
    elsewhere.mkdir()
    ahead = 5000 if subprocess.run(["unshare", "--time", "true"], capture_output=True).returncode == 0 else 0
    for process in start_on(commands, hosts, *options, "--out", "run", ahead=ahead, other=elsewhere):
        _, errors = process.communicate(timeout=LIMIT)
        assert process.returncode == 0, errors
    assert commands.alrpc("train", *options, "--out", "reference").returncode == 0
    one, other = (read_summary(commands.folder / name) for name in ("run", "reference"))
    assert one["stages"] == 3 and one["parameters_sha256"] == other["parameters_sha256"]

    kept, there = (set(folder.glob("run/checkpoints/step-*")) for folder in (commands.folder, elsewhere))
    names, parts = {step.name for step in kept}, {part.name for step in kept for part in step.glob("component-*")}
    assert len(names) == 2 and parts == {"component-001.safetensors", "component-002.safetensors"}
    assert names <= {step.name for step in there} and len(there) <= 3  # the one that went last may stay there

    record = align_timings(commands.folder / "run")
    offsets = {stage: estimates[0][1] for stage, estimates in record.clocks.items()}
    assert offsets == pytest.approx({1: 0, 2: ahead, 3: ahead}, abs=0.05)
    packets = {(block.stage, each.number): each for block in record.blocks for each in block.packets}
    ways = [packets[stage, n].ready - packets[stage - 1, n].sent for stage, n in packets if (stage - 1, n) in packets]
    assert len(ways) > 3 * 23 and min(ways) >= 0 and max(ways) < 60  # on one time axis; a busy machine takes long to start


def test_a_stage_killed_on_another_host_ends_the_run_on_both(commands, hosts, until):
    first, second = start_on(commands, hosts, "--set", "train.epochs=5000", "--out", "run", "--quiet")
    metrics = commands.folder / "run" / "metrics.jsonl"
    until(lambda: metrics.exists() and metrics.read_text())
    commands.workers()[3].send_signal(signal.SIGKILL)
    _, told = first.communicate(timeout=patience(10))
    _, beside = second.communicate(timeout=patience(10))
    cause = (
        rf"alrpc: stage 3 \(rank 3, host {re.escape(socket.gethostname())}\) (was killed by SIGKILL|is gone: connection lost)"
    )
    assert re.match(cause, beside.splitlines()[-1]), beside
    assert re.match(rf"{cause}.*; (there is no|its last complete) checkpoint", told.splitlines()[-1]), told
    assert "SIGKILL" in beside  # the host's own torchrun knows the signal


def test_what_the_coordinator_refuses_is_the_last_line_on_both_hosts(commands, hosts):
    first, second = start_on(commands, hosts, "--set", "data.name=own_blocks:no_dataset", "--out", "run", "--quiet")
    (_, told), (_, beside) = first.communicate(timeout=LIMIT), second.communicate(timeout=LIMIT)
    assert first.returncode == second.returncode == 1
    assert told.splitlines()[-1] == beside.splitlines()[-1], (told, beside)
    assert told.splitlines()[-1].startswith("alrpc: data.name: own_blocks:no_dataset")


def test_an_address_that_other_hosts_cannot_reach_is_refused(commands, hosts):
    lone = {
        "RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "GROUP_WORLD_SIZE": "2",
        "MASTER_PORT": "1",
        "ALRPC_SECRET": "of this test, and long",
    }
    worker = (sys.executable, "-m", "alrpc.worker")
    for master, fault in ((socket.gethostname(), "which is 127.0"), ("10.99.0.1", "Network is unreachable")):
        refused = commands.run("ip", "netns", "exec", hosts[0][0], *worker, MASTER_ADDR=master, **lone)
        assert refused.returncode == 2 and refused.stderr.count("\n") == 1, refused.stderr
        assert refused.stderr.startswith(f"alrpc: MASTER_ADDR: got {master}") and fault in refused.stderr


def test_a_lost_network_is_named_in_time_and_both_hosts_end(commands, hosts, until):
    options = ["--set", "train.epochs=5000", "--set", "health.timeout=6", "--out", "run", "--quiet"]
    first, second = start_on(commands, hosts, *options)
    reached = commands.folder / "run" / "logs" / "reached"
    until(lambda: reached.exists() and "train packet" in reached.read_text())
    name, wire = hosts[1]
    subprocess.run(["ip", "-n", name, "link", "set", wire, "down"], check=True, timeout=20)
    lost = time.monotonic()
    message = next(line for line in first.stderr if line.startswith("alrpc: "))
    assert time.monotonic() - lost < 6 + patience(3)
    assert (
        f"alrpc: stage 2 (rank 2, host {socket.gethostname()}) has not answered for 5 s: it is frozen, or its host" in message
    )
    assert "last packet: " in message
    (_, told), (_, beside) = first.communicate(timeout=LIMIT), second.communicate(timeout=LIMIT)
    assert time.monotonic() - lost < patience(60)
    assert f"the coordinator (rank 0, host {socket.gethostname()}) has not been heard of for 5 s" in beside.splitlines()[-1]
    assert told.splitlines()[-1] == message.rstrip()
    assert first.returncode == second.returncode == 1
