"""The script that proves everything on GPUs leaves no process behind; that it runs is shown by CI."""

import argparse
import os
import signal
import threading

import prove
import psutil
import pytest

SLEEPS = """
import os, pathlib, time

def test_that_sleeps():
    pathlib.Path(__file__).with_name("pid").write_text(str(os.getpid()))
    time.sleep(60)
"""


def test_a_command_ends_with_the_script(tmp_path, until):
    (tmp_path / "test_sleep.py").write_text(SLEEPS)
    pid = tmp_path / "pid"

    def interrupt():
        until(lambda: pid.exists() and pid.read_text())
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        prove.run(
            prove.Part("part", ""), argparse.Namespace(out=tmp_path), "pytest", "--noconftest", str(tmp_path / "test_sleep.py")
        )
    assert not psutil.pid_exists(int(pid.read_text()))
