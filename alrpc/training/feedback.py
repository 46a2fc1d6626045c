"""The feedback of the components: what each keeps of micro-batches until it hears of them, and the messages that travel back.

A component hears at step k what the next one has sent at step k - delay, and waits for it if it has not come. Nobody waits in a
circle: component l at step k waits for component l + 1 at an earlier step, for component l - 1 at the same step, and for itself at
an earlier step. docs/failures.md has the links' part of the argument.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from alrpc.objectives.base import Component, Microbatch, Tensors, canonical, eval_mode
from alrpc.objectives.feedback import NOTHING, WithFeedback


class Ring:
    """A component's part in the feedback. `forward` and `update` call `hear`, `run` and `reply` once for each micro-batch."""

    def __init__(self, component: Component):
        self.component = component
        self.objective: WithFeedback = component.objective
        self.lag = self.objective.lag(component)
        self.kept: deque[Tensors] = deque()
        """What is kept of the last `lag` micro-batches, oldest first."""
        self.heard: deque[Tensors] = deque()
        """Messages that have come before their time, oldest first."""
        self.receive: Callable[[], Tensors] | None = None
        """Waits for the next message from another stage; None if the next component is in this one, or there is none."""
        self.send: Callable[[Tensors], None] | None = None
        """Takes a message to the component before; None if there is none."""
        self._due: tuple[Tensors, Tensors] = (NOTHING, NOTHING)
        self._entered: Tensors = {}

    def hear(self) -> None:
        """Take what was kept and what is heard of the micro-batch that is due, if there is one; waits for the message."""
        if self.lag and len(self.kept) == self.lag:
            self._await(1)
            self._due = self.kept.popleft(), self.heard.popleft()

    def run(self, batch: Microbatch) -> tuple[Microbatch, tuple[Tensor, ...]]:
        """The component's forward pass; blocks are given copies, since they may work in place on what is kept."""
        self._entered = {
            name: tensor.detach().requires_grad_(self.send is not None and tensor.is_floating_point())
            for name, tensor in batch.tensors.items()
        }
        copies = {name: tensor.clone() for name, tensor in self._entered.items()}
        left, losses = self.component(Microbatch(copies, batch.beside), *self._due)
        if self.lag:
            self.kept.append(self.objective.keep(self.component, batch.tensors, left))
        return left, losses

    @torch.no_grad()
    def reply(self, accumulated: int) -> None:
        """Send the message to the component before, after a backward pass in which the losses were divided by `accumulated`."""
        entered, due = self._entered, self._due
        self._entered, self._due = {}, (NOTHING, NOTHING)
        if self.send is None:
            return
        gradients = {name: each.grad * accumulated for name, each in entered.items() if each.grad is not None}
        message = self.objective.reply(self.component, entered, gradients, *due)
        if message is not None:
            self.send({name: canonical(tensor) for name, tensor in message.items()})

    def deliver(self, message: Tensors) -> None:
        """Take a message before its time."""
        self.heard.append(message)

    @property
    def under_way(self) -> int:
        """Number of messages that the next component has sent, or will send without another micro-batch, before their time."""
        return max(0, len(self.kept) - (self.lag - self.objective.delay)) if self.lag else 0

    def settle(self) -> None:
        """Wait for all messages under way, so that the ring has all on which further training depends."""
        self._await(self.under_way)

    def _await(self, count: int) -> None:
        while len(self.heard) < count:
            if self.receive is None:
                raise RuntimeError(
                    f"component {self.component.number} hears nothing: the next one has not replied at each step"
                )
            self.deliver(self.receive())

    def state(self) -> Tensors:
        """All that is kept and heard, named kept.<i>.<name> and heard.<i>.<name>, i from 0 for the oldest; of a settled ring."""
        parts = (("kept", self.kept), ("heard", self.heard))
        return {
            f"{part}.{index}.{name}": tensor
            for part, entries in parts
            for index, tensors in enumerate(entries)
            for name, tensor in tensors.items()
        }

    def load(self, state: Tensors) -> None:
        """Load a state onto the component's device; raises ValueError for one that does not fit the component."""
        device = next(self.component.parameters()).device
        entries: dict[str, dict[int, Tensors]] = {"kept": {}, "heard": {}}
        for key, tensor in state.items():
            part, index, name = (*key.split(".", 2), "", "")[:3]
            if part not in entries or not re.fullmatch(r"0|[1-9]\d{0,8}", index) or not name:
                raise ValueError(f"feedback.{key}: it must be left out")
            entries[part].setdefault(int(index), {})[name] = canonical(tensor.to(device))
        kept, heard = entries["kept"], entries["heard"]
        if sorted(kept) != list(range(len(kept))) or len(kept) > self.lag:
            raise ValueError(f"feedback.kept: got micro-batches {sorted(kept)}; it must have 0 to {self.lag} of them, from 0")
        self.kept = deque(kept[index] for index in range(len(kept)))
        if extra := sorted(index for index in heard if index >= self.under_way):
            raise ValueError(f"feedback.heard.{extra[0]}: with {len(kept)} micro-batches kept it must be left out")
        self.heard = deque(heard.get(index, {}) for index in range(self.under_way))
        self._try_out()

    @torch.no_grad()
    def _try_out(self) -> None:
        """Raise ValueError unless the component can learn from what is kept and heard."""
        for index, (kept, heard) in enumerate(zip(self.kept, self.heard, strict=False)):
            try:
                with eval_mode(self.component):
                    self.objective.absorb(self.component, kept, heard)
            except (RuntimeError, KeyError, ValueError, IndexError) as error:
                reason = " ".join(str(error).split())
                raise ValueError(f"feedback.kept.{index} and feedback.heard.{index}: {reason}") from error


def connect(
    rings: Sequence[Ring], send: Callable[[Tensors], None] | None = None, receive: Callable[[], Tensors] | None = None
) -> None:
    """Connect the rings of consecutive components in this process.

    Args:
        send: takes a message of the first component to the one before.
        receive: waits for the next message to the last component.
    """
    for before, after in pairwise(rings):
        after.send = before.deliver
    if rings:
        rings[0].send, rings[-1].receive = send, receive
