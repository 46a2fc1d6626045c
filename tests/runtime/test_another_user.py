"""Another user of the same machine reaches none of a run's processes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from conftest import ALRPC, LIMIT, PATH, free_port

SCRIPT = Path(__file__).parents[2] / "launch" / "torchrun.sh"
SMALL = ("--set", "model.widths=[16,16]")
COMMANDS = {
    "launch": ("launch", "--stages", "2", *SMALL, "--set", "train.epochs=2", "--out", "run", "--quiet"),
    "compare": ("compare", *SMALL, "--methods", "al,gpipe", "--stages", "2", "--set", "train.epochs=1", "--out", "run"),
    "bench": ("bench", "ceiling", "--config", "digits-mlp", *SMALL, "--stages", "2", "--steps", "200", "--rounds", "1"),
    "profile": ("profile", *SMALL, "--stages", "2", "--methods", "al,gpipe", "--steps", "2", "--out", "run"),
}
pytestmark = [
    pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root on Linux can become another user"),
]
needs_namespaces = pytest.mark.skipif(
    sys.platform == "linux" and subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode != 0,
    reason="this machine makes no network namespaces",
)
NETWORK = Path("/proc/self/ns/net").stat().st_ino if sys.platform == "linux" else 0


def listening(process: psutil.Process) -> dict[int, set[int]]:
    """The ports at which a process listens, by the network namespace in which they are."""
    found: dict[int, set[int]] = {}
    root = Path(f"/proc/{process.pid}")
    try:
        sockets = {str(entry.readlink()) for entry in (root / "fd").iterdir()}
        for thread in (root / "task").iterdir():
            for table in ("tcp", "tcp6"):
                for line in (thread / "net" / table).read_text().splitlines()[1:]:
                    _, local, _, state, *_, inode = line.split()[:10]
                    if state == "0A" and f"socket:[{inode}]" in sockets:
                        found.setdefault((thread / "ns" / "net").stat().st_ino, set()).add(int(local.rpartition(":")[2], 16))
    except (FileNotFoundError, ProcessLookupError):
        pass  # it has ended meanwhile
    return found


@needs_namespaces
@pytest.mark.parametrize("name", COMMANDS)
def test_a_run_listens_nowhere_but_in_a_network_of_its_own(commands, name):
    process = commands.start(ALRPC, *COMMANDS[name])
    seen: dict[int, set[int]] = {}
    while process.poll() is None:
        try:
            for each in psutil.Process(process.pid).children(recursive=True):
                for network, ports in listening(each).items():
                    seen.setdefault(network, set()).update(ports)
        except psutil.NoSuchProcess:
            break
        try:
            process.wait(0.05)
        except subprocess.TimeoutExpired:
            continue
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert len(seen) >= 1 and NETWORK not in seen, seen


ATTACKER = """
import datetime, os, sys
import torch.distributed as dist
from torch._C._distributed_rpc import TensorPipeAgent
from torch.distributed import autograd, rpc
from torch.distributed.rpc import api
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
port, mark = int(sys.argv[1]), sys.argv[2]
store = dist.TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False, timeout=datetime.timedelta(seconds=5))
theirs, mine = dist.PrefixStore("alrpc-0/rpc_prefix_0", store), dist.HashStore()
names = [theirs.get(f"names/{rank}").decode() for rank in range(3)]
for rank, name in enumerate(names):
    mine.set(f"names/{rank}", name)
    mine.set(f"addrs/{name}", theirs.get(f"addrs/{name}").decode())
os.environ["TP_SOCKET_IFNAME"] = "lo"
options = rpc.TensorPipeRpcBackendOptions(rpc_timeout=3, _transports=["uv"], _channels=["basic"])
autograd._init(3)
mine.set("rpcIsStaticGroup", "true")
agent = TensorPipeAgent(mine, "attacker", 3, 4, options, {}, [])
rpc._set_and_start_rpc_agent(agent)
api._init_rpc_states(agent)
import subprocess, torch
for name in names:
    for function, arguments in ((subprocess.getoutput, (f"id > {mark}-{name}",)), (torch.add, (torch.ones(1), torch.ones(1)))):
        try:
            print(name, "did", function.__name__, rpc.rpc_sync(name, function, args=arguments, timeout=3), flush=True)
        except Exception as error:
            print(name, "refused", function.__name__, str(error).partition(chr(10))[0], flush=True)
os._exit(0)
"""


def test_under_torchrun_another_user_can_neither_connect_nor_call(commands, until):
    port, folder = free_port(), commands.folder
    run = commands.start(SCRIPT, "2", *SMALL, "--set", "train.epochs=5000", "--out", "run", "--quiet", PATH=PATH, PORT=port)
    until(lambda: list(folder.glob("run/checkpoints/*/manifest.json")))
    mark = folder.parent / f"mark-{port}"
    attack = commands.run(sys.executable, "-c", ATTACKER, port, str(mark), GLOO_SOCKET_IFNAME="lo")
    assert attack.stdout.count(" refused ") == 6 and " did " not in attack.stdout, attack.stdout + attack.stderr
    assert not list(mark.parent.glob(f"{mark.name}*"))
    for each in commands.workers().values():
        for ports in listening(each).values():
            for number in ports:
                with socket.socket() as other:
                    other.settimeout(0.5)
                    with pytest.raises(TimeoutError):
                        other.connect(("127.0.0.1", number))
    assert run.poll() is None
    run.terminate()
    run.communicate(timeout=LIMIT)
