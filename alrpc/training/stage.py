"""A stage: consecutive components, and its action for each kind of packet. It is independent of processes and links."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack

import torch
from torch import nn

from alrpc.events import Event, Finished, Spans, StageTimes, Status
from alrpc.network import Network, describe_components
from alrpc.objectives.base import Microbatch, Tensors, eval_mode
from alrpc.system import peak_memory
from alrpc.timing import Timing
from alrpc.training.feedback import connect
from alrpc.training.meters import ExitScores, LossMeter
from alrpc.training.optimizer import Recipe
from alrpc.training.packet import EXIT, LABEL, PART, Kind, Packet
from alrpc.training.step import Trainer, autocast, forward, make_trainers, update


class Stage:
    """Trains its components on packets, in order; see `alrpc.training.packet` for the kinds.

    Args:
        number: the stage's number, from 1.
        network: the whole network; the stage keeps its own components and, in the last stage, the modules that decode the
            exits.
        components: the numbers of the stage's components, from 1.
        log_every: number of steps over which one event of losses averages.
        send: sends a packet to the next stage, without waiting for this stage's backward pass; None in the last stage.
        send_back: sends feedback to the stage before; None in stage 1, and for an objective without feedback.
        receive_back: waits for the next feedback from the next stage; None in the last stage, and for such an objective.
        emit: receives each event.
        save: receives the number of steps and all trainers, and saves a copy of their state.
        restore: receives the number of steps and all trainers, and gives them the parameters and buffers that they had then.
        timing: the clock to which the stage's time is charged.
    """

    def __init__(
        self,
        number: int,
        network: Network,
        components: list[int],
        recipe: Recipe,
        device: torch.device,
        *,
        log_every: int,
        send: Callable[[Packet], None] | None,
        send_back: Callable[[Packet], None] | None = None,
        receive_back: Callable[[], Packet] | None = None,
        emit: Callable[[Event], None],
        save: Callable[[int, list[Trainer]], None],
        restore: Callable[[int, list[Trainer]], None] = lambda step, trainers: None,
        timing: Timing,
    ):
        self.number, self.recipe, self.device, self.log_every = number, recipe, device, log_every
        self.send_on, self.emit, self.save, self.restore, self.timing = send, emit, save, restore, timing
        self.timing.spans.watch(device)
        self.objective = network.objective
        self.trainers = make_trainers([network.components[n - 1] for n in components], recipe, device, timing)
        self.rings = [trainer.ring for trainer in self.trainers if trainer.ring is not None]
        self.send_back, self.receive_back = send_back, receive_back
        connect(self.rings, self.reply if send_back is not None else None, self.hear if receive_back is not None else None)
        self.meters = [LossMeter(n, self.objective.losses, recipe.train.nonfinite) for n in components]
        self.is_last = components[-1] == len(network.components)
        self.parts = [component.exit_parts().to(device) for component in network.components] if self.is_last else []
        for parts in self.parts[: components[0] - 1]:
            parts.eval()  # parts of earlier stages are never trained here; a marker carries their parameters
        self.modes = ExitStack()  # keeps the components in evaluation mode between the markers of an evaluation
        self.scores: ExitScores | None = None
        self.epoch_began: float | None = None
        self.step = self.received = self.sent = 0
        self.packet: tuple[str, int, int] | None = None
        self.actions: dict[Kind, Callable[[Packet], None]] = {
            Kind.TRAIN: self.train,
            Kind.EPOCH: self.end_epoch,
            Kind.EVALUATE: self.begin_evaluation,
            Kind.TEST: self.test,
            Kind.EVALUATED: self.end_evaluation,
            Kind.VALIDATED: self.end_evaluation,
            Kind.CHECKPOINT: self.take_checkpoint,
            Kind.RESTORE: self.restore_checkpoint,
            Kind.END: self.send,
        }

    def handle(self, packet: Packet) -> None:
        """Do the action of the next packet, whose tensors are on the stage's device."""
        self.received += 1
        self.packet = packet.kind.value, packet.epoch, packet.step
        self.actions[packet.kind](packet)
        self.emit_spans()

    def send(self, packet: Packet) -> None:
        """Send a packet to the next stage, if there is one."""
        if self.send_on is not None:
            self.send_on(packet)
            self.sent += 1

    def reply(self, message: Tensors) -> None:
        """Send the first component's feedback to the stage before."""
        self.send_back(Packet(Kind.FEEDBACK, *self.packet[1:], message))

    def hear(self) -> Tensors:
        """Wait for the next feedback to the last component; like a wait for room, it is a wait for the next stage."""
        before = self.timing.enter("waiting_to_send")
        message = self.receive_back().tensors
        self.timing.enter(before)
        return message

    def train(self, packet: Packet) -> None:
        """Train every component on a micro-batch, and emit the losses when they are due."""
        self.epoch_began = self.epoch_began or time.perf_counter()
        self.train_components(packet)
        self.step = packet.step + 1
        if self.step % self.log_every == 0:
            self.emit_losses(packet.epoch)

    def train_components(self, packet: Packet) -> None:
        batch = self.entering(packet)
        for trainer, meter in zip(self.trainers, self.meters, strict=True):
            output = forward(trainer, batch, packet.step)
            if trainer is self.trainers[-1]:
                self.send(packet.with_microbatch(output.batch))  # leaves before the backward pass
            meter.add(packet.step, *update(trainer, output, packet.step))
            batch = output.batch

    def entering(self, packet: Packet) -> Microbatch:
        """The micro-batch that enters the first component; in stage 1 the objective derives its tensors from the label."""
        if LABEL not in packet.tensors:
            return packet.microbatch
        return Microbatch(packet.activations, self.objective.begin(packet.tensors[LABEL]))

    def end_epoch(self, packet: Packet) -> None:
        self.send(packet)
        self.emit_losses(packet.epoch)
        seconds = time.perf_counter() - self.epoch_began
        times = self.timing.read()
        self.emit(StageTimes(self.number, packet.epoch, packet.step, seconds, times, peak_memory(self.device)))

    def begin_evaluation(self, packet: Packet) -> None:
        """Send the parameters that decoding needs from the stage's components, and switch the components to evaluation mode."""
        own = {
            f"{PART}{trainer.number}.{name}": value.detach().clone(memory_format=torch.contiguous_format)
            for trainer in self.trainers
            for name, value in trainer.component.exit_parts().state_dict().items()
        }  # copies, since training may continue before they have been sent
        self.send(packet.with_tensors({**packet.tensors, **own}))
        self.timing.test(True)
        for trainer in self.trainers:
            self.modes.enter_context(eval_mode(trainer.component))
        if self.is_last:
            load_parts(self.parts, packet)
            self.scores = ExitScores(self.objective, self.parts, self.recipe.train.metrics)

    def test(self, packet: Packet) -> None:
        """Run the components on a test micro-batch and add their exits to it."""
        self.timing.enter("testing")
        tensors = packet.activations
        beside = {name: tensor for name, tensor in packet.tensors.items() if name not in tensors}
        with autocast(self.device, self.recipe.precision):
            for trainer in self.trainers:
                tensors, beside[f"{EXIT}{trainer.number}"] = trainer.component.evaluate(tensors)
            self.send(packet.with_tensors({**tensors, **beside}))
            if self.scores is not None:
                self.scores.add([beside[f"{EXIT}{n}"] for n in range(1, len(self.parts) + 1)], beside[LABEL])

    def end_evaluation(self, packet: Packet) -> None:
        self.send(packet)
        self.modes.close()
        self.timing.test(False)
        if self.scores is not None:
            split = "validation" if packet.kind is Kind.VALIDATED else "test"
            self.emit(self.scores.event(packet.epoch, split, self.number))
            self.scores = None
        self.epoch_began = time.perf_counter()  # the next epoch includes the wait for its first packet

    def take_checkpoint(self, packet: Packet) -> None:
        self.send(packet)
        for ring in self.rings:
            ring.settle()
        self.timing.enter("checkpoint")
        self.save(packet.step, self.trainers)

    def restore_checkpoint(self, packet: Packet) -> None:
        self.send(packet)
        self.timing.enter("checkpoint")
        self.restore(packet.step, self.trainers)

    def finish(self) -> None:
        """Emit the last spans and the `Finished` event, after the stream has ended and all checkpoints are written."""
        self.timing.enter(None)
        self.emit_spans(last=True)
        described = describe_components([trainer.component for trainer in self.trainers], self.is_last, self.device)
        self.emit(Finished(self.number, **described))

    def emit_losses(self, epoch: int) -> None:
        for meter in self.meters:
            if event := meter.take(self.number, epoch, self.step):
                self.emit(event)

    def emit_spans(self, last: bool = False) -> None:
        """Emit the blocks of packets that have ended and are kept."""
        for block in self.timing.spans.take(last):
            self.emit(Spans(self.number, **block))

    def status(self) -> Status:
        """The stage's current status; may be called from another thread."""
        state, in_state = self.timing.state()
        return Status(
            self.number,
            self.step,
            self.packet,
            self.received,
            self.sent,
            state,
            in_state,
            self.timing.read(),
            peak_memory(self.device),
        )


def load_parts(parts: list[nn.ModuleDict], packet: Packet) -> None:
    """Load the parameters of earlier stages, which are named part.<component>.<parameter>."""
    states: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in packet.named(PART).items():
        number, parameter = name.split(".", 1)
        states.setdefault(int(number), {})[parameter] = tensor
    for number, state in states.items():
        parts[number - 1].load_state_dict(state)
