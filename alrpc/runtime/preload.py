"""The imports of the fork server, which it does before it forks a run's processes. Only the fork server imports this module.

The fork server has a single thread and never uses a GPU, so that its forks can use both. It leaves the launcher's session, so
that a signal from the terminal reaches only the launcher. It ends when the launcher and all forked processes have ended.
"""

import gc

gc.disable()  # imports create no garbage, and the collector takes a seventh of their time

import os
import warnings

from alrpc.runtime.process import set_name
from alrpc.system import keep_memory

os.setsid()
set_name("alrpc-forks")
keep_memory()
warnings.filterwarnings("ignore", module="torch.distributed")

import torch._dynamo  # noqa: F401  the constructor of every torch optimizer imports it

import alrpc.data.digits
import alrpc.data.synthetic_text
import alrpc.data.text
import alrpc.data.vision
import alrpc.runtime.worker  # noqa: F401

gc.enable()
gc.freeze()  # the collector does not write to frozen objects, so their memory stays shared by all forked processes
