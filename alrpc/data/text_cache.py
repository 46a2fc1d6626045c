"""Prepared texts on disk: one safetensors file, which is read only if it is complete."""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from alrpc.errors import UserError
from alrpc.reading.tensors import open_tensors


def cache_folder() -> Path | None:
    """The directory of prepared texts, which need not exist; None for a user without a home directory."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "alrpc" / "text"
    except RuntimeError:
        return None


def read_cached(path: Path) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """Read the tensors and strings of a file; None if it is absent, unreadable or damaged."""
    try:
        with open_tensors(path) as file:
            strings = file.metadata() or {}
            names = file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
    except UserError:
        return None
    return (tensors, strings) if strings.pop("digest", None) == _digest(tensors, strings) else None


def write_cached(path: Path, tensors: dict[str, Tensor], strings: dict[str, str]) -> None:
    """Write a file atomically, even if other processes write it too; does nothing where the file cannot be written."""
    partial = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            save_file(tensors, partial, {**strings, "digest": _digest(tensors, strings)})
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except (OSError, SafetensorError):
        pass  # the texts will be prepared again next time


def _digest(tensors: dict[str, Tensor], strings: dict[str, str]) -> str:
    """Digest of the whole content, since after a crash a file may have its full length but blocks of zeros."""
    digest = hashlib.sha256(repr(sorted(strings.items())).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.numpy())
    return digest.hexdigest()
