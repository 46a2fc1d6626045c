"""Predictions by a pipeline of processes on this machine: each has some of the components, and all of them work at once."""

from __future__ import annotations

import multiprocessing
import queue
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import safetensors.torch
import torch

from alrpc.errors import UserError
from alrpc.inference.early_exit import step
from alrpc.inference.flops import count_flops
from alrpc.inference.predictor import Answer, Predictor, told_by_name
from alrpc.models.graph import split_consecutive
from alrpc.objectives.base import Tensors
from alrpc.pipeline.placement import split_components
from alrpc.posix.forks import ensure_server
from alrpc.posix.parent import Parent
from alrpc.system import own_arithmetic
from alrpc.training.step import autocast

T = TypeVar("T")
AHEAD = 2  # micro-batches that wait before each stage
LOOK = 1.0  # seconds between two looks whether all processes live
EXIT = "exit."  # begins the names of exits' outputs among a micro-batch's tensors; those of activations have no dot


def answer_in_stages(
    predictor: Predictor,
    load: Callable[[], Predictor],
    stages: int,
    micro_batches: Iterable[tuple[T, Sequence[Any]]],
    exit: int,
    top_k: int,
) -> Iterator[tuple[T, list[Answer] | UserError]]:
    """Answer micro-batches of prepared examples, each with a name, in their order, by a process for each stage.

    The answers are those of `Predictor.answer_prepared`, or the UserError that it raises. The processes live as long as the
    iterator, which works some micro-batches ahead of what is taken from it.

    Args:
        predictor: the run, of which this process uses the preprocessing and the names of the classes.
        load: loads it anew in each process; it is pickled.
        exit: the number of the exit; only the components up to it are used, split by their operations.

    Raises:
        UserError: when there are fewer components than stages, or when a process is killed.
    """
    split_components(exit, stages, None)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    ensure_server()
    links = [context.Queue(AHEAD) for _ in range(stages + 1)]
    processes: list[multiprocessing.process.BaseProcess] = []
    under_way: deque[T] = deque()
    given, bad, device = iter(micro_batches), None, next(predictor.parameters()).device

    def take() -> tuple[T, list[Answer] | UserError]:
        message = _patiently(links[-1].get, processes)
        if isinstance(message, str):
            return under_way.popleft(), UserError(message)
        return under_way.popleft(), predictor.answers_of(safetensors.torch.load(message)[f"{EXIT}{exit}"], exit, top_k)

    try:
        while True:
            try:
                name, prepared = next(given)
            except StopIteration:
                break
            except UserError as error:  # about an example, which comes after the answers to those before it
                bad = error
                break
            tensors = predictor.carried.preprocessing.collate(prepared)
            if not processes:
                for number, components in enumerate(_split(predictor, tensors, exit, stages)):
                    arguments = (load, components, exit, device, links[number], links[number + 1])
                    processes.append(context.Process(target=work, args=arguments, daemon=True))
                    processes[-1].start()
            _patiently(partial(links[0].put, safetensors.torch.save(tensors)), processes)
            under_way.append(name)
            if len(under_way) > AHEAD * stages:
                yield take()
        while under_way:
            yield take()
        if bad is not None:
            raise bad
    finally:
        for process in processes:
            process.kill()
            process.join()
        for link in links:  # what nobody reads any more must not keep this process at its end
            link.cancel_join_thread()
            link.close()


def work(load: Callable[[], Predictor], numbers: list[int], exit: int, device: torch.device, inbox: Any, outbox: Any) -> None:
    """A stage: run the components of these numbers on each micro-batch that comes; the last one decodes the exit."""
    Parent().watch()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # from the terminal, for the command, which ends this process
    predictor = load()
    config, objective = predictor.config, predictor.objective
    predictor.to(device)
    parts = [component.exit_parts() for component in predictor.components[:exit]]
    with own_arithmetic(device, config.threads), torch.no_grad(), autocast(device, config.precision):
        while True:
            message = inbox.get()
            if isinstance(message, str):  # why an earlier stage refuses the micro-batch
                outbox.put(message)
                continue
            tensors = {name: tensor.to(device) for name, tensor in safetensors.torch.load(message).items()}
            outputs = {name: tensors.pop(name) for name in list(tensors) if name.startswith(EXIT)}
            try:
                with told_by_name():
                    for number in numbers:
                        is_wanted = number == exit or objective.combines_exits
                        tensors, output = step(predictor.components[number - 1], tensors, is_wanted)
                        if output is not None:
                            outputs[f"{EXIT}{number}"] = output
                    if numbers[-1] == exit:
                        decoded = objective.decode(parts, [outputs[name] for name in sorted(outputs, key=_number)])
                        tensors, outputs = {}, {f"{EXIT}{exit}": decoded.contiguous()}
            except UserError as error:
                outbox.put(str(error))
                continue
            outbox.put(safetensors.torch.save({name: tensor.cpu() for name, tensor in {**tensors, **outputs}.items()}))


def _split(predictor: Predictor, tensors: Tensors, exit: int, stages: int) -> list[list[int]]:
    """The numbers of each stage's components, of which the slowest stage has as few operations as possible, or, where the network
    refuses the tensors, as many components as the others."""
    device = next(predictor.parameters()).device
    first = {name: tensor[:1].to(device) for name, tensor in tensors.items()}
    try:
        with told_by_name():
            costs, _ = count_flops(predictor, first)
    except UserError:  # which its stage tells
        return split_components(exit, stages, None)
    sizes = split_consecutive([float(cost) + 1 for cost in costs[:exit]], stages)
    return split_components(exit, stages, sizes)


def _patiently(act: Callable[..., T], processes: Sequence[multiprocessing.process.BaseProcess]) -> T:
    """Put or get, which waits until the stages have come to it; raises UserError when one of them has ended."""
    while True:
        try:
            return act(timeout=LOOK)
        except (queue.Empty, queue.Full):
            for number, process in enumerate(processes, 1):
                if process.exitcode is not None:
                    raise UserError(f"stage {number} of the prediction has ended with exit code {process.exitcode}") from None


def _number(name: str) -> int:
    return int(name.removeprefix(EXIT))
