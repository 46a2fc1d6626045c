"""What is unpickled comes from a process of the run, and calls only what the control plane has."""

import io
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import LIMIT
from torch.distributed import distributed_c10d
from torch.distributed.rpc import internal

from alrpc.pipeline import endpoint
from alrpc.pipeline.seal import SealBroken, seal, seal_pickles, unseal

SECRET = b"a secret of sixteen bytes or more"


class Harmful:
    """Its unpickling makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture(params=[internal, distributed_c10d], ids=["rpc", "groups"])
def picklers(request, monkeypatch):
    """Torch's module with the picklers, sealed for one test."""
    for module in (internal, distributed_c10d):
        monkeypatch.setattr(module, "_pickler", module._pickler)
        monkeypatch.setattr(module, "_unpickler", module._unpickler)
    seal_pickles(SECRET)
    return request.param


def sealed(module, value: object) -> bytes:
    file = io.BytesIO()
    module._pickler(file).dump(value)
    return file.getvalue()


def test_what_a_process_of_the_run_sends_arrives(picklers):
    value = {"a": [1, 2.5, None], "b": Path("x")}
    assert picklers._unpickler(io.BytesIO(sealed(picklers, value))).load() == value


@pytest.mark.parametrize("forge", [lambda data: data, lambda data: seal(b"another secret, of another run", data)])
def test_what_others_send_is_not_unpickled(picklers, forge, tmp_path):
    mark = tmp_path / "mark"
    with pytest.raises(SealBroken, match="does not carry the secret of this run"):
        picklers._unpickler(io.BytesIO(forge(pickle.dumps(Harmful(mark))))).load()
    assert not mark.exists()


def test_every_changed_byte_is_noticed():
    message = seal(SECRET, b"poll")
    assert unseal(SECRET, message) == b"poll"
    for place in range(len(message)):
        changed = bytearray(message)
        changed[place] ^= 1
        with pytest.raises(SealBroken):
            unseal(SECRET, bytes(changed))
    for length in range(len(message)):
        with pytest.raises(SealBroken):
            unseal(SECRET, message[:length])


def test_only_the_functions_of_the_control_plane_can_be_called(picklers):
    for function in (subprocess.getoutput, print, endpoint.Path):
        message = sealed(picklers, internal.PythonUDF(function, ("true",), {}))
        with pytest.raises(SealBroken, match="not part of the control plane"):
            picklers._unpickler(io.BytesIO(message)).load()
    call = picklers._unpickler(io.BytesIO(sealed(picklers, internal.PythonUDF(endpoint.poll, (0.5,), {})))).load()
    assert call.func is endpoint.poll


VICTIM = """
import contextlib, os, sys, time
from alrpc.pipeline import door, rpc, seal
rpc.door_closed_after = contextlib.nullcontext  # the door stays open, as it is while the processes of a run meet
seal.seal_pickles(b"the secret of the victim's run")
os.environ.update(RANK="0", WORLD_SIZE="1", TP_SOCKET_IFNAME="lo", GLOO_SOCKET_IFNAME="lo", ALRPC_STORE="store")
rpc.join(0, 1)
print("joined", flush=True)
sys.stdin.read()
print("still there", flush=True)
os._exit(0)
"""

ATTACKER = """
import os, sys
from pathlib import Path
import torch.distributed as dist
from torch._C._distributed_rpc import TensorPipeAgent
from torch.distributed import autograd, rpc
from torch.distributed.rpc import api
theirs, mine = dist.PrefixStore("rpc_prefix_0", dist.FileStore("store")), dist.HashStore()
for key in ("names/0", "addrs/coordinator"):
    mine.set(key, theirs.get(key).decode())
os.environ["TP_SOCKET_IFNAME"] = "lo"
options = rpc.TensorPipeRpcBackendOptions(rpc_timeout=10, _transports=["uv"], _channels=["basic"])
autograd._init(1)
mine.set("rpcIsStaticGroup", "true")
agent = TensorPipeAgent(mine, "attacker", 1, 2, options, {}, [])
rpc._set_and_start_rpc_agent(agent)
api._init_rpc_states(agent)
try:
    rpc.rpc_sync("coordinator", os.mkdir, args=(sys.argv[1],), timeout=10)
except Exception as error:
    print(type(error).__name__, error)
os._exit(0)
"""


def test_a_process_that_does_not_know_the_secret_runs_nothing_in_a_process_of_the_run(commands):
    victim = subprocess.Popen(
        [sys.executable, "-c", VICTIM],
        cwd=commands.folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert victim.stdout.readline() == "joined\n"
        attacker = commands.run(sys.executable, "-c", ATTACKER, str(commands.folder / "mark"))
        assert "does not carry the secret of this run" in attacker.stdout, attacker.stderr
        assert not (commands.folder / "mark").exists()
        said, log = victim.communicate("", timeout=LIMIT)
        assert said == "still there\n" and "refused: a message does not carry the secret" in log
    finally:
        victim.kill()
        victim.communicate()
