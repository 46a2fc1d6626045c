"""The seal of a run: whatever torch pickles for another process carries a code made with the run's secret (HMAC-SHA-256, RFC 2104),
and nothing is unpickled before its code is verified.

The control plane may only call the functions in `CALLABLE`.
"""

from __future__ import annotations

import hmac
import io
import pickle
import sys
from functools import partial
from typing import BinaryIO

from torch.distributed import distributed_c10d
from torch.distributed.rpc import internal

from alrpc.pipeline.failures import log_line

CODE_BYTES = 32
CALLABLE = ("alrpc.pipeline.endpoint", "torch.distributed.rpc.api")
"""Modules whose functions may be called: the coordinator's calls, and torch's own for joining and leaving."""


class SealBroken(RuntimeError):
    """A message was not sealed with this run's secret, or calls a function that is not part of the control plane."""


class SealedPickler(pickle.Pickler):
    """A pickler that writes the code in front of the pickle."""

    def __init__(self, secret: bytes, file: BinaryIO):
        self._secret, self._file, self._pickle = secret, file, io.BytesIO()
        super().__init__(self._pickle)

    def dump(self, value: object) -> None:
        super().dump(value)
        self._file.write(seal(self._secret, self._pickle.getvalue()))


class SealedUnpickler(pickle.Unpickler):
    """An unpickler that first verifies the code.

    Raises:
        SealBroken: when the code is not that of the secret, or the function of a call is not one of the control plane.
    """

    def __init__(self, secret: bytes, file: BinaryIO):
        super().__init__(io.BytesIO(unseal(secret, file.read())))

    def load(self) -> object:
        value = super().load()
        if isinstance(value, internal.PythonUDF) and not _is_callable(value.func):
            raise _refusal(f"a call of {value.func!r}, which is not part of the control plane")
        return value


def seal(secret: bytes, data: bytes) -> bytes:
    """The data, with its code in front."""
    return hmac.digest(secret, data, "sha256") + data


def unseal(secret: bytes, sealed: bytes) -> bytes:
    """The data of a sealed message.

    Raises:
        SealBroken: when the code is not that of the secret.
    """
    code, data = sealed[:CODE_BYTES], sealed[CODE_BYTES:]
    if not hmac.compare_digest(code, hmac.digest(secret, data, "sha256")):
        raise _refusal(
            "a message does not carry the secret of this run: it is not from one of its processes, or the hosts have different "
            "secrets in ALRPC_SECRET or ALRPC_SECRET_FILE"
        )
    return data


def seal_pickles(secret: bytes) -> None:
    """Seal all that this process sends as a pickle and verify all that it receives, on the control plane and in process groups.

    Call this before joining the other processes.
    """
    for module in (internal, distributed_c10d):
        if not (hasattr(module, "_pickler") and hasattr(module, "_unpickler")):
            raise RuntimeError(f"this version of torch cannot be made to verify what it unpickles in {module.__name__}")
        module._pickler, module._unpickler = partial(SealedPickler, secret), partial(SealedUnpickler, secret)


def _is_callable(function: object) -> bool:
    module = getattr(function, "__module__", None)
    return module in CALLABLE and getattr(sys.modules[module], getattr(function, "__name__", ""), None) is function


def _refusal(reason: str) -> SealBroken:
    log_line(f"refused: {reason}")
    return SealBroken(reason)
