"""What the fork server imports before it forks a run's processes. Only the fork server imports this module.

It stays single-threaded and never touches a GPU, so that what it forks is as good as new. It leaves its launcher's session, so
that a signal from the terminal reaches the launcher alone; and it ends when its launcher and all that it has forked have.
"""

import gc

gc.disable()  # nothing that is imported is garbage, and looking for it takes a seventh of the time

import os
import warnings

from alrpc.runtime.process import set_name
from alrpc.system import keep_memory

os.setsid()
set_name("alrpc-forks")
keep_memory()
warnings.filterwarnings("ignore", module="torch.distributed")

import torch._dynamo  # noqa: F401  every optimizer of torch's imports it when it is made

import alrpc.runtime.worker  # noqa: F401

gc.enable()
gc.freeze()  # what is here now is not written to by the collector, and stays shared by all that is forked
