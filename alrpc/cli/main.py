"""`alrpc`: the group of commands."""

from __future__ import annotations

import click

from alrpc import __version__
from alrpc.cli.bench import bench
from alrpc.cli.compare import compare
from alrpc.cli.config import config
from alrpc.cli.inspect import inspect
from alrpc.cli.launch import launch
from alrpc.cli.list import list_names
from alrpc.cli.plan import plan
from alrpc.cli.profile import profile
from alrpc.cli.report import report
from alrpc.cli.timeline import timeline
from alrpc.cli.train import train
from alrpc.system import keep_memory


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="alrpc")
def main() -> None:
    """Train a network with every block in its own process, by associated learning.

    \b
    Learn handwritten digits on four processes (no download, seconds):
        alrpc launch --stages 4
    The same in this process, with the same bits as result:
        alrpc train
    Both beside back-propagation on the same blocks:
        alrpc compare --stages 2
    How good the network of a run is, depth by depth:
        alrpc inspect RUN
    All that a run tells, as one page for a browser:
        alrpc report RUN
    Another configuration, with fields of it changed:
        alrpc launch --config configs/mnist-mlp.yaml --set train.epochs=2 --set data.root=DIR
    """
    keep_memory()  # `train`, `plan` and `inspect` compute in this process


main.add_command(bench)
main.add_command(compare)
main.add_command(config)
main.add_command(inspect)
main.add_command(launch)
main.add_command(list_names)
main.add_command(plan)
main.add_command(profile)
main.add_command(report)
main.add_command(timeline)
main.add_command(train)
