"""docker/compose.yaml: valid by the Compose specification, and its commands train when run as plain processes."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import yaml
from conftest import LIMIT, PATH, free_port, read_summary

COMPOSE = Path(__file__).parents[2] / "docker" / "compose.yaml"


def interpolated(text: str, **variables: str) -> str:
    """Compose's ${NAME:-default}."""
    return re.sub(r"\$\{(\w+):-(.*?)\}", lambda match: variables.get(match[1]) or match[2], text)


def services(profile: str) -> dict[str, dict]:
    return {name: each for name, each in yaml.safe_load(COMPOSE.read_text())["services"].items() if profile in each["profiles"]}


def test_it_is_valid_by_the_compose_specification():
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(COMPOSE)]
    checked = subprocess.run(check, capture_output=True, text=True, timeout=LIMIT)
    assert checked.returncode == 0, checked.stdout


def test_each_stage_has_a_gpu_of_its_own_and_the_coordinator_none():
    devices = {}
    for name, service in services("gpu").items():
        for device in service.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices", []):
            assert device["driver"] == "nvidia" and device["capabilities"] == ["gpu"]
            devices[name] = device["device_ids"]
    assert devices == {f"stage-{number}": [str(number - 1)] for number in range(1, 5)}
    assert not any("deploy" in service for service in services("cpu").values())


def test_both_profiles_start_the_same_processes():
    commands = [sorted(" ".join(each["command"].split()) for each in services(profile).values()) for profile in ("gpu", "cpu")]
    assert commands[0] == commands[1] and len(commands[0]) == 5


def test_its_commands_train(commands):
    port = free_port()
    processes = []
    for service in services("cpu").values():
        text = interpolated(service["command"], ALRPC_ARGS="--set train.epochs=1 --quiet --out run")
        text = text.replace("--master-addr coordinator", "--master-addr 127.0.0.1").replace("29500", port)
        shared = {name: path.replace("/work/runs", ".") for name, path in service["environment"].items()}
        own = {"PATH": PATH, "GLOO_SOCKET_IFNAME": "lo", "TP_SOCKET_IFNAME": "lo", **shared}
        processes.append(commands.start(*shlex.split(text), **own))
    for process in processes:
        _, errors = process.communicate(timeout=LIMIT)
        assert process.returncode == 0, errors
    summary = read_summary(commands.folder / "run")
    assert summary["stages"] == 4 and summary["test_accuracy"] > 0
