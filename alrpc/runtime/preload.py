"""The imports of the fork server, which it does before it forks a run's processes. Only the fork server imports this module.

The fork server has a single thread and never uses a GPU, so that its forks can use both. It leaves the launcher's session, so
that a signal from the terminal reaches only the launcher. It ends when the launcher and all forked processes have ended, while it
imports as well: then it does not read the pipe that tells it so, but has the system send a signal.
"""

import gc

gc.disable()  # imports create no garbage, and the collector takes a seventh of their time

import os
import signal
import warnings

from alrpc.errors import Advice
from alrpc.runtime.process import prctl, set_name
from alrpc.system import keep_memory

PR_SET_PDEATHSIG = 1
LAUNCHER = os.getppid()


def end_without_launcher(*_) -> None:
    if os.getppid() != LAUNCHER:  # the system sends the signal as well when the launcher's thread has ended
        os._exit(1)


signal.signal(signal.SIGUSR1, end_without_launcher)
prctl(PR_SET_PDEATHSIG, signal.SIGUSR1)
os.setsid()
set_name("alrpc-forks")
keep_memory()
warnings.filterwarnings("ignore", module="torch.distributed")
warnings.filterwarnings("ignore", category=Advice)  # the launcher has given it

import torch._dynamo  # noqa: F401  the constructor of every torch optimizer imports it

import alrpc.data.digits
import alrpc.data.synthetic_text
import alrpc.data.text
import alrpc.data.vision
import alrpc.runtime.worker  # noqa: F401
from alrpc.pipeline.private_network import make_private_network

make_private_network()

prctl(PR_SET_PDEATHSIG, 0)
signal.signal(signal.SIGUSR1, signal.SIG_DFL)
gc.enable()
gc.freeze()  # the collector does not write to frozen objects, so their memory stays shared by all forked processes
