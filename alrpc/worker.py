"""The entry for torchrun: one process of a pipeline. See `alrpc.runtime.worker`."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import click

from alrpc.cli.options import out_option, quiet_option, source_options, step_option
from alrpc.errors import REFUSED, UserError, show_advice_as_lines
from alrpc.pipeline.failures import hard_exit, write_error_file
from alrpc.posix.streams import begin_streams
from alrpc.posix.utf8 import check_utf8, use_utf8
from alrpc.runtime.interface import choose_interface
from alrpc.runtime.process import begin_process

GIVEN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun puts into the environment."""


@click.command()
@source_options
@out_option("runs/<model>-<data>-<time>")
@quiet_option
@click.option(
    "--resume",
    metavar="DIR",
    type=click.Path(readable=False, path_type=Path),
    help="Continue this run from its last checkpoint.",
)
@step_option
def main(**options) -> None:
    """Run one process of a pipeline. torchrun starts it:

    \b
        torchrun --nproc-per-node 5 -m alrpc.worker --config FILE

    Rank 0 is the coordinator, rank n is stage n, so --nproc-per-node is the number of stages plus one. The number of
    stages is taken from there. Only the coordinator reads the configuration; it tells the stages what they need.
    """
    begin_streams()
    use_utf8()
    missing = [name for name in GIVEN if name not in os.environ]
    if missing:
        print(f"alrpc: {missing[0]} is not set; start this with torchrun, or use alrpc launch", file=sys.stderr)
        sys.exit(2)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # torch's own warnings are not about the run
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")  # the control plane tells who died; no watchdog need abort
    warnings.filterwarnings("ignore", module="torch.distributed")
    show_advice_as_lines()
    try:
        for argument in sys.argv:
            check_utf8(argument)
        process = begin_process()  # the watch over the launcher begins before the long import of torch
        choose_interface()
    except UserError as error:
        print(f"alrpc: {error}", file=sys.stderr, flush=True)
        write_error_file(str(error), REFUSED)
        hard_exit(REFUSED)
    from alrpc.pipeline.seal import seal_pickles
    from alrpc.runtime.worker import Options, run_rank

    seal_pickles(process.secret)
    run_rank(process, Options(**options))
    hard_exit(0)


if __name__ == "__main__":
    main()
