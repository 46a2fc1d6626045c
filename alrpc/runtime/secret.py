"""The secret of a run, which only its processes know."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from alrpc.errors import UserError
from alrpc.reading.regular import open_regular

SECRET = "ALRPC_SECRET"
SECRET_FILE = "ALRPC_SECRET_FILE"
SHORTEST = 16  # bytes


def new_secret() -> str:
    return secrets.token_hex(32)


def take_secret() -> bytes:
    """The secret of this process' run. The environment variable is removed, so that no other program inherits it.

    It is in ALRPC_SECRET, or in the file that ALRPC_SECRET_FILE names, which the first process makes if it does not exist. If
    neither is set and torchrun runs on one host only, the file is in the directory that torchrun has made for its processes.

    Raises:
        UserError: when there is none, it is too short, or others may read or write its file.
    """
    secret, source = os.environ.pop(SECRET, None), SECRET
    if secret is None:
        source = os.environ.get(SECRET_FILE) or _torchrun_file()
        if source is None:
            raise UserError(
                f"{SECRET}: not set; processes on several hosts need a secret that is the same on each: "
                f"export {SECRET}=$(openssl rand -hex 32), or {SECRET_FILE}=FILE on a directory that all hosts share"
            )
        secret = _read_or_make(Path(source))
    if len(secret.strip()) < SHORTEST:
        raise UserError(f"{source}: got a secret of {len(secret.strip())} characters; it should have {SHORTEST} at least")
    return secret.strip().encode()


def _torchrun_file() -> str | None:
    """The secret's file in torchrun's private directory; None if there are other hosts, or if it cannot be private."""
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if error_file is None or os.environ.get("GROUP_WORLD_SIZE") != "1":
        return None
    return str(Path(error_file).parents[1] / "secret")  # <directory>/attempt_<n>/<rank>/error.json


def _read_or_make(path: Path) -> str:
    """The contents of a private file; makes it with a new secret if it does not exist."""
    own = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    try:
        if not path.exists():
            descriptor = os.open(own, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(descriptor, "w", encoding="ascii") as file:
                file.write(new_secret())
            try:
                os.link(own, path)  # fails if another process was faster, whose file is then whole
            except FileExistsError:
                pass
            finally:
                own.unlink()
        with open_regular(path) as file:
            status = os.fstat(file.fileno())
            if status.st_uid != os.geteuid() or status.st_mode & 0o077:
                raise UserError(f"{path}: only its owner, who runs this, may read and write a secret's file: chmod 600 {path}")
            return file.read(4096).decode("ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: the secret cannot be read or made: {getattr(error, 'strerror', None) or error}") from error
