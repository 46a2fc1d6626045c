"""`alrpc serve`."""

from __future__ import annotations

from pathlib import Path

import click

from alrpc.cli.exits import ChosenExit, exit_options
from alrpc.cli.options import (
    Number,
    carried_options,
    checkpoint_option,
    device_option,
    heavy_imports,
    own_options,
    plain_endings,
)


@click.command(short_help="Answer over HTTP by a run.")
@click.argument("run", type=click.Path(readable=False, path_type=Path))
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="The address to listen at; 0.0.0.0 for all of this machine's."
)
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Its port; 0 for a free one.")
@click.option("--max-batch", type=click.IntRange(min=1), help="How many to compute at once at most.  [default: as in training]")
@click.option(
    "--wait-ms",
    type=Number(min=0, max=10_000),
    default=2.0,
    show_default=True,
    help="Milliseconds that a request waits for others, to be computed with them.",
)
@exit_options(
    "The exit to predict by: after how many components; or auto, for each sample the first one that is sure enough of it, once "
    "`alrpc calibrate` has measured them; or agree, the first one that agrees with that before it.  [default: the last]"
)
@device_option
@checkpoint_option
@carried_options
@own_options("model", "objective")
def serve(
    run: Path,
    host: str,
    port: int,
    max_batch: int | None,
    wait_ms: float,
    exit: ChosenExit,
    device: str | None,
    step: int | str | None,
    labels: Path | None,
    tokenizer: Path | None,
    model: str | None,
    objective: str | None,
) -> None:
    """Answer over HTTP by a run: plain JSON, the Open Inference Protocol, and a page to try it by hand.

    RUN is the directory of a run, and needs nothing else of its training. Ctrl-C or SIGTERM ends the server.

    \b
    Examples:
        alrpc serve runs/imdb
        curl localhost:8000/predict --json '{"input": "A wonderful film"}'
        curl localhost:8000/predict --json '{"inputs": ["A wonderful film", "Never again"]}'
        alrpc serve runs/flowers --port 8001 --exit auto --max-batch 64 --wait-ms 5
        curl "localhost:8001/predict?top_k=3" -H "Content-Type: image/jpeg" --data-binary @rose.jpg

    The page is at / of the server, figures for Prometheus at /metrics, the protocol at /v2.
    """
    from alrpc.inference.serve.server import address_of, bind, check_extra, is_loopback

    with plain_endings():
        check_extra()
        exit.check()
        with bind(host, port) as listener:
            if not is_loopback(listener):
                click.echo(
                    f"alrpc: --host: whoever reaches {host} can use this server, which knows neither passwords nor encryption; "
                    "give 127.0.0.1, or put a proxy that does before it",
                    err=True,
                )
            with heavy_imports():
                from alrpc.inference.predictor import load_run
                from alrpc.inference.serve.server import serve as serve_run
                from alrpc.system import local_device

            predictor = load_run(run, model, objective=objective, labels=labels, tokenizer=tokenizer, step=step)
            predictor.to(local_device(device or predictor.config.device))
            chosen_exit = predictor.check_exit(exit.of(predictor))
            kind, address = predictor.carried.preprocessing.kind, address_of(listener)
            serve_run(
                predictor,
                listener,
                exit=chosen_exit,
                max_batch=max_batch or predictor.config.data.batch_size,
                wait=wait_ms / 1000,
                ready=lambda: click.echo(f"serving {run}, which takes {kind}, at {address}; Ctrl-C ends it"),
            )
