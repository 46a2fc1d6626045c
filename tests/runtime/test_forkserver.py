"""The fork server: what it must not do, and what those that it forks must do as if they had been started anew."""

import os
import signal
import sys
import textwrap

import psutil
from conftest import ALRPC, LIMIT, MODULES, patience

from alrpc.pipeline.endpoint import Endpoint

LONG = ["launch", "--stages", "2", "--set", "train.epochs=5000", "--out", "run", "--quiet"]


def fork_server(process) -> psutil.Process:
    """The fork server of a launcher, which forks and waits for the processes of a run."""
    (server,) = (child for child in psutil.Process(process.pid).children() if child.name() == "alrpc-forks")
    return server


def test_it_has_one_thread_and_leaves_its_launchers_session(commands, until):
    process = commands.start(ALRPC, *LONG)
    until(lambda: (commands.folder / "run" / "metrics.jsonl").exists())
    server = fork_server(process)
    assert server.num_threads() == 1  # what else a thread had locked would be locked for ever in what is forked
    assert os.getsid(server.pid) != os.getsid(process.pid)
    assert {each.ppid() for each in commands.workers().values()} == {server.pid}
    process.send_signal(signal.SIGINT)
    _, message = process.communicate(timeout=LIMIT)
    assert process.returncode == 130 and message.startswith("alrpc: ended by SIGINT")
    assert commands.leftovers(patience(10)) == []


def test_a_killed_server_ends_the_run(commands, until):
    process = commands.start(ALRPC, *LONG)
    metrics = commands.folder / "run" / "metrics.jsonl"
    until(lambda: metrics.exists() and metrics.read_text())
    server = fork_server(process)
    server.kill()
    _, message = process.communicate(timeout=LIMIT)
    assert process.returncode == 1 and message.startswith("alrpc: ")
    assert commands.leftovers(patience(10)) == []


def test_a_script_without_a_guard_launches_its_own_modules_twice_in_other_environments(commands):
    (commands.folder / "mine.py").write_text(
        textwrap.dedent("""
        import os
        from torch import nn

        def build():
            print(f"WIDTH is {os.environ['WIDTH']}", flush=True)
            width = int(os.environ["WIDTH"])
            return [nn.Sequential(nn.Flatten(), nn.Linear(64, width)), nn.Linear(width, width)]
        """)
    )
    (commands.folder / "script.py").write_text(
        textwrap.dedent("""
        import os
        import alrpc

        print("once")
        config = alrpc.load_config(None, ["model.name=mine:build", "train.epochs=1"])
        for width in (8, 12):
            os.environ["WIDTH"] = str(width)
            summary, _ = alrpc.launch_pipeline(config, stages=2, out=f"run-{width}")
            print(sum(summary["parameters"].values()))
        """)
    )
    done = commands.run(sys.executable, "script.py", PYTHONPATH=f"{commands.folder}:{MODULES}")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if not line.startswith("test ")]
    assert lines[0] == "once" and lines.count("once") == 1
    for width in (8, 12):
        assert f"WIDTH is {width}" in (commands.folder / f"run-{width}" / "logs" / "stage-1.log").read_text()


def test_what_is_wrong_before_a_run_is_told_without_waiting_for_it(commands):
    done = commands.alrpc("launch", "--stages", "9")
    assert done.returncode == 2 and done.stderr.startswith("alrpc: pipeline.stages: got 9") and done.stderr.count("\n") == 1
    assert list(commands.folder.iterdir()) == []


def test_a_thread_of_the_users_code_keeps_no_run_from_ending(commands):
    options = ["--set", "model.name=own_blocks:build_with_a_thread", "--set", "train.epochs=1", "--out", "run"]
    done = commands.alrpc("launch", "--stages", "2", *options, limit=60)
    assert done.returncode == 0, done.stderr


def test_a_stage_that_has_left_no_longer_watches_the_coordinator():
    own = Endpoint()
    own.left = True
    own._watch_coordinator()  # returns; otherwise it would end this process


def test_a_long_path_for_temporary_files_will_do(commands):
    folder = commands.folder / ("x" * 100)
    folder.mkdir()
    options = ["--set", "train.epochs=1", "--set", "data.workers=1", "--quiet"]
    done = commands.alrpc("launch", "--stages", "2", *options, TMPDIR=str(folder))
    assert done.returncode == 0, done.stderr


def test_a_worker_of_a_pool_launches_after_its_parent_has(commands):
    (commands.folder / "script.py").write_text(
        textwrap.dedent("""
        import multiprocessing
        import alrpc

        def search(lr):
            config = alrpc.load_config(None, ["train.epochs=1", f"train.lr={lr}"])
            return alrpc.launch_pipeline(config, stages=2, out=f"run-{lr}")[0]["engine"]

        print(search(1e-3))
        with multiprocessing.get_context("fork").Pool(1) as pool:
            print(pool.map(search, [2e-3]))
        """)
    )
    done = commands.run(sys.executable, "script.py")
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if "pipeline" in line] == ["pipeline", "['pipeline']"]
