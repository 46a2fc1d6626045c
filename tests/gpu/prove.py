"""Prove on one machine with GPUs that everything works there, and measure it; see docs/gpu.md.

Every part is command lines that a user could type. OUT/gpu.json and OUT/gpu.md have what each gave, and are written after every part,
so that what is cut off leaves what it had. A part that fails does not end the others; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

import torch

HERE = Path(__file__).resolve().parent
CIFAR10 = "ALRPC_CIFAR10"
WAITS = re.compile(r"Synchronize|^cudaMemcpy$|^aten::(item|_local_scalar_dense)$")  # what makes the CPU wait for the GPU
SIZES = {  # of a stage that holds the eight-layer Transformer: one that fills a GPU, and one to try the script with
    False: ("model.width=1024", "model.heads=16", "model.feed_forward=4096", "data.batch_size=64"),
    True: ("model.width=32", "model.heads=2", "model.feed_forward=64", "model.layers=2", "data.batch_size=8"),
}
CLASSIFIER = ("objective.name=classifier", "objective.head=mlp", "objective.layers=3")
LIMIT = 240  # seconds of a command
GRACE = 30  # seconds that it has to end in order


@dataclass
class Part:
    """A part of the proof, and what it gave."""

    name: str
    about: str
    commands: list[str] = field(default_factory=list)
    figures: dict[str, object] = field(default_factory=dict)
    error: str | None = None
    seconds: float = 0.0


def run(part: Part, asked: argparse.Namespace, *command: str, **environment: str) -> str:
    """Run a command in OUT and note it; returns its output, and raises RuntimeError with its last lines if it fails."""
    part.commands.append(shlex.join(command))
    print(f"$ {part.commands[-1]}", flush=True)
    program = (
        sys.executable,
        *(("-m", "pytest") if command[0] == "pytest" else ("-c", "from alrpc.cli.main import main; main()")),
    )
    path = os.pathsep.join(filter(None, [str(HERE.parents[1]), os.environ.get("PYTHONPATH")]))
    with subprocess.Popen(
        [*program, *command[1:]],
        cwd=HERE.parents[1] if command[0] == "pytest" else asked.out,
        env={**os.environ, "PYTHONPATH": path, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            text, _ = process.communicate(timeout=2 * LIMIT if command[0] == "pytest" else LIMIT)
        except subprocess.TimeoutExpired:
            end(process)
            raise RuntimeError(f"was not done in time: {part.commands[-1]}") from None
        except BaseException:  # Ctrl-C does not reach it, since it has a session of its own
            end(process)
            raise
    with (asked.out / "log.txt").open("a") as log:
        log.write(f"$ {part.commands[-1]}\n{text}\n")
    if process.returncode:
        raise RuntimeError(f"exit code {process.returncode}: {' | '.join(text.strip().splitlines()[-3:])}")
    return text


def end(process: subprocess.Popen) -> None:
    """End a command as Ctrl-C does, so that it ends what it has started, and after a while by force."""
    os.killpg(process.pid, signal.SIGINT)
    try:
        process.communicate(timeout=GRACE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)


def fields(*given: str) -> Iterator[str]:
    """Fields of a configuration as options of a command."""
    for each in given:
        yield from ("--set", each)


def prove_tests(part: Part, asked: argparse.Namespace) -> None:
    """Equality of engines, precisions and objectives, resume, restart, moments, profile: tests/gpu."""
    report = asked.out / "tests.xml"
    short = {"ALRPC_TEST_SHORT": "1"} if asked.short else {}
    workers = "0" if asked.short else "4"
    try:
        run(
            part,
            asked,
            *("pytest", "tests/gpu", "-q", "-n", workers, "--dist", "load", f"--junitxml={report}"),
            ALRPC_TEST_DEVICE=asked.device,
            **short,
        )
    finally:
        if report.is_file():
            cases = list(ElementTree.parse(report).iter("testcase"))
            ends = [
                next((child.tag for child in case if child.tag in ("failure", "error", "skipped")), "passed") for case in cases
            ]
            part.figures |= dict(Counter(ends))
            part.figures["failed"] = [
                case.get("name") for case, end in zip(cases, ends, strict=True) if end in ("failure", "error")
            ]


def prove_busy(part: Part, asked: argparse.Namespace) -> None:
    """The share of its time that the device computes in a stage that it can fill, and what makes the CPU wait for it."""
    for compiled in ("false",) if asked.short else ("false", "true"):
        out = f"profile-compile-{compiled}"
        chosen = fields(*SIZES[asked.short], f"device={asked.device}", "precision=bf16", f"compile={compiled}")
        run(
            part,
            asked,
            "alrpc",
            "profile",
            "--config",
            "transformer-8",
            "--stages",
            "1",
            "--steps",
            "16",
            *chosen,
            "--out",
            out,
        )
        found = read_trace(asked.out / out / "al" / "logs" / "profile-1.json.gz", asked.device)
        part.figures |= {f"{name}, compile {compiled}": value for name, value in found.items()}


def read_trace(path: Path, device: str) -> dict[str, object]:
    """The share of the recorded time that kernels (on a CPU: operators) run, the longest gap, and the calls that wait."""
    with gzip.open(path, "rt") as file:
        events = [each for each in json.load(file)["traceEvents"] if each.get("ph") == "X"]
    kinds = ("kernel", "gpu_memcpy", "gpu_memset") if device == "cuda" else ("cpu_op",)
    spans = sorted((each["ts"], each["ts"] + each["dur"]) for each in events if each.get("cat") in kinds)
    begin, busy, reached, gap = spans[0][0], 0.0, spans[0][0], 0.0
    for start, end in spans:
        gap = max(gap, start - reached)
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    waits = Counter(each["name"] for each in events if WAITS.search(each["name"]))
    copies = Counter(each["name"] for each in events if each.get("cat") == "gpu_memcpy")
    return {
        "busy": round(busy / (reached - begin), 4),
        "longest gap, ms": round(gap / 1000, 3),
        "calls that wait": dict(waits),
        "copies": dict(copies),
    }


def prove_methods(part: Part, asked: argparse.Namespace) -> None:
    """al beside back-propagation's methods, where the devices allow them."""
    several = asked.device == "cpu" or torch.cuda.device_count() > 1
    methods = "al,bp" if asked.short else "al,bp,gpipe,1f1b,ddp" if several else "al,al-sequential,bp"
    config = ("digits-mlp", ("train.epochs=2",)) if asked.short else ("transformer-8", (*SIZES[False], "train.epochs=4"))
    chosen = fields(*config[1], f"device={asked.device}", *(() if asked.short else ("precision=bf16",)))
    options = ("--methods", methods, "--stages", "2", "--repeat", "1" if asked.short else "3", "--quiet")
    run(part, asked, "alrpc", "compare", "--config", config[0], *options, *chosen, "--out", "compare")
    part.figures |= compared(asked.out / "compare")


def compared(directory: Path) -> dict[str, object]:
    """Each method's samples a second, from the fastest to the slowest round."""
    runs = json.loads((directory / "comparison.json").read_text())["runs"]
    found: dict[str, list[float]] = {}
    for each in runs:
        found.setdefault(f"{each['method']}, samples/s", []).append(round(each["samples_per_second"], 1))
    return {method: sorted(speeds, reverse=True) for method, speeds in found.items()}


def prove_images(part: Part, asked: argparse.Namespace) -> None:
    """The thesis' VGG and ResNet-18 on CIFAR-10: as many epochs as the time allows, by AL, local classifiers and BP."""
    root = Path(os.environ.get(CIFAR10, ""))
    if asked.short:
        sys.path.insert(0, str(HERE.parent / "modules"))
        from small_data import write_images

        root = asked.out / "images"
        if not root.is_dir():
            write_images(root)
    elif not (root / "train").is_dir():
        raise RuntimeError(f"{CIFAR10}: names no folder with train/ and test/; left out")
    small = ("model.channels=[[4,M],[6,M]]", "data.workers=0") if asked.short else ("precision=bf16", "channels_last=true")
    for config in ("cifar10-vgg",) if asked.short else ("cifar10-vgg", "cifar10-resnet"):
        data = (
            "data.name=image-folder",
            f"data.root={root}",
            "train.lr=1e-3",
            "pipeline.stages=1",
            f"device={asked.device}",
            *small,
        )
        ways = {"associated": (), "classifier": CLASSIFIER, "bp": None}
        for name, objective in {"bp": None}.items() if asked.short else ways.items():
            out, chosen = f"{config}-{name}", (*data, *(objective or ()))

            def train(
                epochs: int, out: str, chosen: tuple[str, ...] = chosen, bp: bool = objective is None, config=config
            ) -> Path:
                way = ("compare", "--methods", "bp", "--repeat", "1") if bp else ("train",)
                options = fields(*chosen, f"train.epochs={epochs}")
                run(part, asked, "alrpc", *way, "--config", config, *options, "--quiet", "--out", out)
                return next((asked.out / out).rglob("metrics.jsonl"))

            epochs = 2
            if not asked.short:
                times, _ = epochs_of(train(2, f"{out}-tried"))
                epochs = max(2, int(asked.seconds / times[-1]))
            times, scores = epochs_of(train(epochs, out))
            part.figures[f"{config}, {name}"] = {
                "epochs": epochs,
                "seconds an epoch": round(times[-1], 2),
                "test accuracy": scores[-1],
            }


def epochs_of(metrics: Path) -> tuple[list[float], list[float]]:
    """The seconds of every epoch of a run in one process, and its last exit's score after it."""
    events = [json.loads(line) for line in metrics.read_text().splitlines()]
    times = [event["epoch_seconds"] for event in events if event["event"] == "stage"]
    return times, [event["exits"][-1] for event in events if event["event"] == "evaluation"]


def machine(device: str) -> dict[str, object]:
    """What the figures were measured on."""
    about: dict[str, object] = {"date": datetime.now(UTC).strftime("%Y-%m-%d"), "python": platform.python_version()}
    about |= {"torch": torch.__version__, "cores": len(os.sched_getaffinity(0))}
    if device == "cuda":
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        about["cards"] = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip().splitlines()
        about |= {"cuda": torch.version.cuda, "nccl": ".".join(map(str, torch.cuda.nccl.version()))}
    return about


def write(out: Path, about: dict[str, object], parts: list[Part]) -> None:
    tree = {"machine": about, "parts": [vars(part) for part in parts]}
    (out / "gpu.json").write_text(json.dumps(tree, indent=2) + "\n")
    lines = ["# What was proved", "", *(f"- {name}: {value}" for name, value in about.items())]
    for part in parts:
        lines += ["", f"## {part.name}: {'failed' if part.error else 'done'} in {part.seconds:.0f} s", "", part.about, ""]
        lines += [f"Failed: {part.error}", ""] if part.error else []
        lines += ["```sh", *part.commands, "```", "", "| figure | value |", "|---|---|"]
        lines += [
            f"| {name} | {value if isinstance(value, str | float | int) else json.dumps(value)} |"
            for name, value in part.figures.items()
        ]
    (out / "gpu.md").write_text("\n".join(lines) + "\n")


PARTS: dict[str, Callable[[Part, argparse.Namespace], None]] = {
    "tests": prove_tests,
    "busy": prove_busy,
    "methods": prove_methods,
    "images": prove_images,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="run.sh", description=__doc__.split("\n\n")[0])
    parser.add_argument("out", metavar="OUT", type=Path, help="the directory to make")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu tries the script where there is no GPU")
    parser.add_argument("--short", action="store_true", help="tiny networks and few tests, to try the script itself")
    parser.add_argument("--seconds", type=float, default=20, help="of each training on CIFAR-10 [default: 20]")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"some of {', '.join(PARTS)} [default: all]")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    chosen = asked.parts.split(",")
    if unknown := set(chosen) - PARTS.keys():
        parser.error(f"--parts: got {', '.join(sorted(unknown))}; use some of {', '.join(PARTS)}")
    if asked.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device: torch finds no GPU; use --device cpu --short to try the script without one")
    asked.out = asked.out.absolute()
    try:
        asked.out.mkdir(parents=True)
    except OSError as error:
        parser.error(f"OUT: {asked.out}: {error.strerror}; give a directory to make")
    about, parts = machine(asked.device), []
    for name in chosen:
        part = Part(name, (PARTS[name].__doc__ or "").strip())
        parts.append(part)
        began = time.monotonic()
        try:
            PARTS[name](part, asked)
        except Exception as error:  # the other parts are still worth their time
            part.error = f"{type(error).__name__}: {error}" if not isinstance(error, RuntimeError) else str(error)
        part.seconds = round(time.monotonic() - began, 1)
        write(asked.out, about, parts)
        print(f"{name}: {part.error or 'done'}, {part.seconds:.0f} s", flush=True)
    print(f"all figures: {asked.out / 'gpu.md'}")
    return 1 if any(part.error for part in parts) else 0


if __name__ == "__main__":
    sys.exit(main())
