"""System settings and figures of a process: memory, cores, device, reproducible arithmetic.

Importing this module does not import torch, so that a process can configure its memory first.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from alrpc.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import nn

FUSED_ATTENTION = ("flash", "mem_efficient", "cudnn")  # kernels whose backward pass may add up in any order
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_memory() -> None:
    """Keep freed memory in the process for the next step.

    Otherwise glibc returns the memory of a step's activations to the system and requests it again, with a page fault for every
    4 KiB. How often depends on the layout of the heap and so differs at random between processes.
    """
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


def command_line() -> list[str]:
    """The command of this process, or of the launcher that started it, and its arguments."""
    if "ALRPC_COMMAND" in os.environ:
        return json.loads(os.environ["ALRPC_COMMAND"])
    return [Path(sys.argv[0]).name, *sys.argv[1:]]


def working_commit() -> str | None:
    """The commit that is checked out in the working directory; None where there is no git repository, or no git."""
    import subprocess

    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def peak_memory(device: torch.device) -> int:
    """Peak memory in bytes: the peak allocation on the GPU, or the peak resident size of a process that computes on the CPU."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError):  # unlike getrusage's, it starts from what the process has, not from its parent's peak
        for line in Path("/proc/self/status").read_text(errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reset_peak_memory(device: torch.device) -> None:
    """Reset the peak memory, where the system supports it."""
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux resets VmHWM to the current resident size


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def local_device(wanted: str) -> torch.device:
    """The device of a process that has the machine to itself.

    Raises:
        UserError: when a GPU is wanted and there is none.
    """
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        raise UsageError("device: got cuda, but this machine has no GPU that torch can use; use cpu or auto")
    return torch.device("cuda", 0) if wanted != "cpu" and torch.cuda.is_available() else torch.device("cpu")


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished all queued kernels; does nothing on a CPU."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


def use_deterministic_kernels(device: torch.device) -> None:
    """Select deterministic kernels on a GPU; a CPU only needs equal numbers of threads.

    For an operation without a deterministic kernel, torch issues a warning and uses another kernel. Its fused attention kernels
    do so too, as long as it only warns, so attention is computed by separate operations.
    """
    if device.type == "cuda":
        import torch

        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # nothing reads what it has not written
        _enable_fused_attention(dict.fromkeys(FUSED_ATTENTION, False))


def _enable_fused_attention(enabled: dict[str, bool]) -> None:
    import torch

    for name, value in enabled.items():
        getattr(torch.backends.cuda, f"enable_{name}_sdp")(value)


@contextlib.contextmanager
def own_arithmetic(device: torch.device, threads: int) -> Iterator[None]:
    """Use deterministic kernels and so many CPU threads; these settings and the random generators are the caller's at the end."""
    import torch

    before, deterministic = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    benchmark, cudnn_deterministic = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    fill = torch.utils.deterministic.fill_uninitialized_memory
    attention = {name: getattr(torch.backends.cuda, f"{name}_sdp_enabled")() for name in FUSED_ATTENTION}
    torch.set_num_threads(threads)
    use_deterministic_kernels(device)
    try:
        with torch.random.fork_rng(devices=[device.index] if device.type == "cuda" else []):
            yield
    finally:
        torch.set_num_threads(before)
        if device.type == "cuda":
            torch.set_deterministic_debug_mode(deterministic)
            torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = benchmark, cudnn_deterministic
            torch.utils.deterministic.fill_uninitialized_memory = fill
            _enable_fused_attention(attention)


def move(module: nn.Module, device: torch.device, channels_last: bool) -> nn.Module:
    """Move a module to a device, where the weights of its two-dimensional convolutions may have their channels last in memory."""
    import torch

    module.to(device)
    for parameter in module.parameters() if channels_last else ():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return module


def derive_seed(*purpose: int | str) -> int:
    """A 63-bit seed, derived from the run's seed and a purpose, so that no process depends on numbers that another one drew."""
    text = "/".join(str(part) for part in purpose)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
