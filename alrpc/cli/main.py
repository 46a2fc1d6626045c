"""`alrpc`: the group of commands."""

from __future__ import annotations

import errno
import signal
import sys

import click

from alrpc import __version__
from alrpc.cli.bench import bench
from alrpc.cli.calibrate import calibrate
from alrpc.cli.compare import compare
from alrpc.cli.config import config
from alrpc.cli.evaluate import evaluate
from alrpc.cli.export import export
from alrpc.cli.inspect import inspect
from alrpc.cli.launch import launch
from alrpc.cli.list import list_names
from alrpc.cli.options import exit_with
from alrpc.cli.plan import plan
from alrpc.cli.predict import predict
from alrpc.cli.profile import profile
from alrpc.cli.report import report
from alrpc.cli.serve import serve
from alrpc.cli.simulate import simulate
from alrpc.cli.timeline import timeline
from alrpc.cli.train import train
from alrpc.errors import FAILED, UsageError, command_code, show_advice_as_lines
from alrpc.posix.streams import begin_streams, unwritten
from alrpc.posix.utf8 import check_utf8, use_utf8
from alrpc.system import keep_memory


class Program(click.Group):
    """The commands, as a program of which a failure to print is told, except where the command trains."""

    def __call__(self, *arguments, **settings):
        begin_streams()
        use_utf8()
        try:
            for argument in sys.argv:
                check_utf8(argument)
            return super().__call__(*arguments, **settings)
        except UsageError as error:
            exit_with(str(error), command_code(error))
        finally:
            if lost := unwritten():
                if lost.errno == errno.EPIPE:
                    sys.exit(128 + signal.SIGPIPE)
                exit_with(f"standard output cannot be written to: {lost.strerror}", FAILED)


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="alrpc")
def main() -> None:
    """Train a network with every block in its own process, by associated learning or another local objective.

    \b
    Learn handwritten digits on four processes, which takes seconds and no download:
        alrpc launch --stages 4
    Learn the same in this process, which ends with the same parameters, bit for bit:
        alrpc train
    Compare both with back-propagation on the same blocks:
        alrpc compare --stages 2
    Look at the last run: how good its network is at each depth, and a page with all about it:
        alrpc inspect
        alrpc report
    Predict by a run what it has not seen, and read the answers as JSON lines, or over HTTP:
        alrpc predict RUN images/
        alrpc serve RUN
    Give its network to others, as files that need nothing of alrpc:
        alrpc export RUN --to onnx
    Find the names and the fields of the configuration, and change some of them:
        alrpc list
        alrpc config train
        alrpc launch --config mnist-mlp --set train.epochs=2 --set data.root=DIR
    Continue the last run if it was stopped:
        alrpc launch --resume

    The exit code is 0 if all went well, 2 for a mistake in the words of the command or in the configuration, 1 for any other
    failure, 75 if SIGTERM has ended a run that --resume can continue, and 128 + n if signal n has ended the command.
    """
    show_advice_as_lines()
    keep_memory()  # `train`, `plan` and `inspect` compute in this process


main.add_command(bench)
main.add_command(calibrate)
main.add_command(compare)
main.add_command(config)
main.add_command(evaluate)
main.add_command(export)
main.add_command(inspect)
main.add_command(launch)
main.add_command(list_names)
main.add_command(plan)
main.add_command(predict)
main.add_command(profile)
main.add_command(report)
main.add_command(serve)
main.add_command(simulate)
main.add_command(timeline)
main.add_command(train)
