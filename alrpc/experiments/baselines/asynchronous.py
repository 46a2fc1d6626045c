"""`pipedream` and `pipedream-2bw`: consecutive layers in each process, which never wait for the pipeline to empty within an epoch.

The schedule is PipeDream's (Narayanan et al., SOSP 2019, section 3.2): process r of S, from 0, runs the forward passes of S - 1 - r
micro-batches, then one forward and one backward pass in turn, so that the first process has S micro-batches in flight. A backward
pass uses the parameters of its forward pass, which are stashed (section 3.3); the optimizer applies the gradient to the latest ones:

    pipedream      a forward pass uses the latest parameters of its process, so S - r versions of them are alive
    pipedream-2bw  the forward passes of a group of accumulated micro-batches use the parameters before the update of the group
                   before, in every process, so two versions are alive (Narayanan et al., ICML 2021, section 3.1)

At the end of an epoch the pipeline is drained; the first forward passes of the next one use the latest parameters in both.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call

from alrpc.experiments.baselines.engine import Engine, Role, own_layers
from alrpc.experiments.baselines.model import SequentialModel
from alrpc.experiments.baselines.neighbours import Neighbours, connect, disconnect
from alrpc.experiments.baselines.objective import loss
from alrpc.experiments.baselines.tuning import fastest, thread_choices
from alrpc.objectives.base import Tensors
from alrpc.training.packet import LABEL, Kind, Packet
from alrpc.training.step import accumulation_step, autocast, optimizer_step, seed_step

Version = dict[str, Tensor]
"""The trained parameters of a process, by name, as they were after some update."""
Batch = tuple[Tensors, Tensor] | None
"""A micro-batch in the first process; None in the others."""


class Flight(NamedTuple):
    """A micro-batch between its forward and its backward pass."""

    step: int
    version: Version
    inputs: dict[str, Tensor]
    """The tensors whose gradients go back to the process before; none in the first process."""
    outputs: dict[str, Tensor]
    """What was sent to the process behind, with its graph; in the last process the loss."""


class Asynchronous(Engine):
    """A process of `pipedream` or `pipedream-2bw`."""

    def __init__(self, role: Role, model: SequentialModel):
        super().__init__(role, model, own_layers(role, model))
        self.delays_groups = self.method == "pipedream-2bw"
        self.warm_up = self.world - 1 - self.rank
        self.own = {name: parameter for name, parameter in self.module.named_parameters() if parameter.requires_grad}
        self.neighbours = connect(self.device) if self.world > 1 else Neighbours()
        self.in_flight: deque[Flight] = deque()
        self.newest = self.current = self.copy_parameters()

    def copy_parameters(self) -> Version:
        """The parameters as they are now; where no update comes between a forward and its backward pass, themselves."""
        if self.warm_up == 0 and not self.delays_groups:
            return self.own
        return {name: parameter.detach().clone().requires_grad_() for name, parameter in self.own.items()}

    def choose(self, batch: Batch, processes_here: int) -> dict:
        """Choose the number of threads by trial: of two micro-batches a process, without an update."""

        def trial(threads: int) -> None:
            torch.set_num_threads(threads)
            for _ in range(2 * self.world):
                self.run_forward(batch, 0)
                if len(self.in_flight) > self.warm_up:
                    self.run_backward()
            while self.in_flight:
                self.run_backward()
            self.module.zero_grad(set_to_none=True)

        threads, seconds = fastest(thread_choices(processes_here), trial, self.device)
        torch.set_num_threads(threads)
        return {"threads": threads, "tried_threads": seconds}

    def learn(self, batch: Batch, step: int) -> None:
        """Run the forward pass of one micro-batch, and, once enough are in flight, train on the oldest of them."""
        self.run_forward(batch, step)
        if accumulation_step(step, self.recipe).last:
            self.current = self.newest
        if len(self.in_flight) > self.warm_up:
            self.train_oldest()

    def train_oldest(self) -> None:
        turn = accumulation_step(self.run_backward(), self.recipe)
        if turn.last:
            self.timing.enter("update")
            optimizer_step(self.optimizer, self.recipe, turn.update, clip_norm=None)
            self.newest = self.copy_parameters()
            if not self.delays_groups:
                self.current = self.newest
            self.timing.enter("waiting_to_receive")

    def end_epoch(self) -> None:
        """Train on what is in flight."""
        while self.in_flight:
            self.train_oldest()
        self.current = self.newest

    def run_forward(self, batch: Batch, step: int) -> None:
        self.timing.enter("waiting_to_receive")
        tensors = self.take(batch)
        inputs = {name: tensors[name].to(self.device) for name in self.module.takes}
        if self.rank > 0:
            inputs = {name: tensor.requires_grad_() for name, tensor in inputs.items()}
        self.timing.enter("forward")
        seed_step(self.device, self.recipe.train.seed, self.rank, step)
        with autocast(self.device, self.recipe.precision):
            output = functional_call(self.module, self.current, tuple(inputs.values()))
            if self.module.is_last:
                labels = tensors[LABEL].to(self.device)
                share = 1 / accumulation_step(step, self.recipe).size
                outputs = {"loss": loss(self.target, output, labels, len(labels)) * share}
            else:
                outputs = dict(zip(self.module.gives, output, strict=True))
        self.timing.enter("waiting_to_receive")
        self.in_flight.append(Flight(step, self.current, inputs if self.rank > 0 else {}, outputs))
        self.give(Kind.TRAIN, step, outputs, tensors[LABEL])

    def run_backward(self) -> int:
        """Add the gradients of the oldest micro-batch in flight to those of the parameters; returns its step."""
        flight = self.in_flight.popleft()
        gradients = None if self.module.is_last else [next(self.neighbours.gradients).tensors[name] for name in flight.outputs]
        self.timing.enter("backward")
        torch.autograd.backward(list(flight.outputs.values()), gradients)
        for name, tensor in flight.version.items():
            own = self.own[name]
            if tensor is not own and tensor.grad is not None:
                own.grad = tensor.grad if own.grad is None else own.grad.add_(tensor.grad)
                tensor.grad = None
        self.timing.enter("waiting_to_receive")
        if self.neighbours.backward is not None:
            back = {name: torch.zeros_like(each) if each.grad is None else each.grad for name, each in flight.inputs.items()}
            self.neighbours.backward.send(Packet(Kind.TRAIN, 0, flight.step, back))
        return flight.step

    def score(self, batch: Batch) -> float:
        """The sum of a micro-batch's scores in the last process, 0 in the others."""
        tensors = self.take(batch)
        with autocast(self.device, self.recipe.precision):
            output = self.module(*(tensors[name].to(self.device) for name in self.module.takes))
        if self.module.is_last:
            return self.target.score(output, tensors[LABEL].to(self.device))
        self.give(Kind.TEST, 0, dict(zip(self.module.gives, output, strict=True)), tensors[LABEL])
        return 0.0

    def take(self, batch: Batch) -> Tensors:
        """The tensors of the next micro-batch and its labels: the first process has read them, the others receive them."""
        if batch is None:
            return next(self.neighbours.activations).tensors
        tensors, labels = batch
        return {**tensors, LABEL: labels}

    def give(self, kind: Kind, step: int, outputs: Tensors, labels: Tensor) -> None:
        """Send what this process gives, and the labels, to the process behind, if there is one."""
        if self.neighbours.forward is not None:
            detached = {name: tensor.detach() for name, tensor in outputs.items()}
            self.neighbours.forward.send(Packet(kind, 0, step, {**detached, LABEL: labels}))

    def close(self) -> None:
        disconnect(self.neighbours)
