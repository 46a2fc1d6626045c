"""A checkpoint that is damaged, or of another network or optimizer, is refused in one line before anything of it is used."""

import hashlib
import json
import os
import struct
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

import alrpc
from alrpc.checkpoint.resume import last_whole_step
from alrpc.cli.main import main
from alrpc.errors import UserError

LAST = "checkpoints/step-00000046"
FIRST = "component-001.safetensors"


def refused(run: Path) -> str:
    """The line with which the run is neither loaded nor resumed."""
    with pytest.raises(UserError) as error:
        alrpc.load_run(run)
    assert not_resumed(run) == str(error.value)
    return str(error.value)


def not_resumed(run: Path) -> str:
    """The line with which the run is not resumed, but for the hint at the checkpoint before."""
    done = CliRunner().invoke(main, ["train", "--resume", str(run), "--set", "train.epochs=3", "--quiet"])
    assert isinstance(done.exception, SystemExit) and done.exit_code == 1, done.output
    told = done.stderr.removeprefix("alrpc: ").removesuffix("; the checkpoint before it is that of step 40: add --step 40\n")
    assert done.stderr == f"alrpc: {told}; the checkpoint before it is that of step 40: add --step 40\n"
    assert last_whole_step(run, 2) in (40, 46)
    return told


def seal(run: Path) -> None:
    """Let the manifest describe the first component's file as it is now."""
    path = run / LAST / "manifest.json"
    manifest, data = json.loads(path.read_text()), (run / LAST / FIRST).read_bytes()
    manifest["files"][FIRST] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "2"}, None),
        ({"format": None}, "format: got None; "),
        ({"format": 3}, "format 3 is newer than this alrpc's, 2; use a newer alrpc"),
        ({"step": -1}, "step: got -1; it should be greater than or equal to 0"),
        ({"step": 40}, "step: got 40, but its directory is step-00000046"),
        ({"components": 10**12}, "components: got 1000000000000; it should be less than or equal to 10000"),
        ({"components": 3}, "files: component-003.safetensors is not given, but needed"),
        ({"components": 1}, "is of a network of 1 components, this one has 2"),
        ({"micro_batches": 0}, "micro_batches: got 0; "),
        ({"sample": {}}, "sample: got {}; "),
        ({"sample": {"x": ["load", [1, 64]]}}, "sample.x.0: got 'load'; it must be a type of torch's tensors"),
        ({"sample": {"x": ["float32", [1, -64]]}}, "sample.x.1.1: got -64; "),
        ({"sample": {"x": ["float32", [1 << 13, 1 << 14]]}}, "a sample has 67,108,864 numbers at most"),
        (
            {"sample": {"x": ["float32", [1, 1 << 24]]}},
            "a tensor of 1,073,741,824 bytes would be needed; no file",
        ),
        (
            {"sample": {"x": ["float32", [1, 65]]}},
            "does not fit component 1 of this configuration: block.1.weight: got float32 (16, 64); it must be float32 (16, 65)",
        ),
        ({"sample": {"x": ["complex64", [1, 64]]}}, "fails on x (1, 64)"),
        ({"target": {"classes": {"count": 1 << 26}}}, "would be needed; no file"),
        ({"target": {"classes": {"count": -10}}}, "target.classes.count: got -10; "),
        ({"target": {"classes": {"width": 10}}}, "target: got {'width': 10}; it must have the fields of classes"),
        ({"target": {"a": {}, "b": {}}}, "target"),
        ({"files": {"../../config.yaml": {"bytes": 5, "sha256": "0" * 64}}}, "files.../../config.yaml"),
        ({"files": {FIRST: {"bytes": -5, "sha256": "0" * 64}}}, f"files.{FIRST}.bytes: got -5; "),
        ({"files": {FIRST: {"bytes": 5, "sha256": 0}}}, f"files.{FIRST}.sha256: got 0; "),
    ],
)
def test_a_manifest_is_refused_by_its_field(run, change, message):
    path = run / LAST / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    if message is None:
        alrpc.load_run(run)
    else:
        assert message in refused(run) and str(run / LAST) in refused(run)


@pytest.mark.parametrize("name", ["manifest.json", FIRST])
@pytest.mark.parametrize("damage", ["pipe", "device", "40 GB", "empty", "nested", "zeros"])
def test_a_file_is_refused_by_its_name(run, name, damage):
    path = run / LAST / name
    if damage in ("pipe", "device"):
        path.unlink()
        os.mkfifo(path) if damage == "pipe" else path.symlink_to("/dev/zero")
    elif damage == "40 GB":
        os.truncate(path, 40 << 30)
    else:
        path.write_bytes({"empty": b"", "nested": b"[" * 100_000, "zeros": bytes(4096)}[damage])
    if name == "manifest.json" and damage in ("pipe", "device"):
        alrpc.load_run(run)  # a checkpoint without a manifest is not complete; that before it is
        return
    assert str(path) in refused(run)
    if name == FIRST and damage in ("empty", "nested", "zeros"):
        seal(run)
        assert f"{path}: is damaged: " in refused(run)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (struct.pack("<Q", 1 << 62), "is damaged: got 8 bytes, with a header of 4,611,686,018,427,387,904"),
        (struct.pack("<Q", 2) + b"{}", "does not fit component 1 of this configuration: it has no "),
        (struct.pack("<Q", 9) + b'{"a": 1} ', "is damaged: "),
        (struct.pack("<Q", 2) + b"\xff\xff", "is damaged: "),
        (struct.pack("<Q", 20 << 20) + b" " * (20 << 20), "got a header of 20,971,520 bytes; it has 16,777,216 at most"),
    ],
    ids=["beyond-the-file", "no-tensors", "no-tensor", "no-text", "far-too-long"],
)
def test_tensors_with_a_header_that_is_none_are_refused(run, header, message):
    (run / LAST / FIRST).write_bytes(header)
    seal(run)
    assert f"{FIRST}: {message}" in refused(run)


@pytest.mark.parametrize(
    ("part", "tensor", "message"),
    [
        ("optimizer.0.exp_avg", torch.zeros(1), "optimizer.0.exp_avg: got float32 (1,); it must be float32 (16, 64)"),
        ("optimizer.0.exp_avg_sq", torch.zeros(16, 64).double(), "got float64 (16, 64); it must be float32 (16, 64)"),
        ("optimizer.0.exp_avg_sq", None, "it has optimizer.0.exp_avg, but no optimizer.0.exp_avg_sq"),
        ("optimizer.0.step", torch.ones(5), "optimizer.0.step: got float32 (5,); it must be float32 ()"),
        ("optimizer.0.step", -torch.ones(()), "optimizer.0.step: got -1.0; an optimizer has taken 1 step or more"),
        ("optimizer.99.step", torch.ones(()), "optimizer.99.step: got float32 (); it must be left out"),
        ("optimizer.x.step", torch.ones(()), "it must be left out"),
        ("optimizer", torch.ones(()), "it must be left out"),
        ("gradient.block.1.weight", torch.zeros(3), "got float32 (3,); it must be float32 (16, 64)"),
        ("gradient.nothing", torch.zeros(3), "it must be left out"),
        ("block.1.weight", torch.zeros(16, 64).half(), "block.1.weight: got float16 (16, 64); it must be float32 (16, 64)"),
        ("block.1.weight", None, "it has no block.1.weight"),
        ("more", torch.zeros(3), "more: got float32 (3,); it must be left out"),
    ],
)
def test_state_of_another_shape_or_type_is_refused_before_it_is_loaded(run, part, tensor, message):
    """A fused optimizer reads beyond the end of a smaller tensor, which once ended the process by SIGSEGV."""
    path = run / LAST / FIRST
    state = load_file(path)
    if tensor is None:
        del state[part]
    else:
        state[part] = tensor
    save_file(state, path)
    seal(run)
    if part.startswith(("optimizer", "gradient")):  # which a prediction does not need
        alrpc.load_run(run)
        told = not_resumed(run)
    else:
        told = refused(run)
    assert f"{FIRST}: does not fit component 1 of this configuration: " in told and message in told
