"""A stage: one process, one device, one or more consecutive components."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from alrpc.checkpoint import component_file, load_learners, snapshot, write_files
from alrpc.component import Step, Target
from alrpc.config import Config
from alrpc.data.dataset import WordVectors
from alrpc.errors import UserError
from alrpc.network import Network, describe_components, evaluating
from alrpc.pipeline import control, mailbox
from alrpc.pipeline.channel import Link, PeerLost, Receiver, Sender, close_data_plane, open_data_plane
from alrpc.pipeline.mailbox import Plan, status, tell
from alrpc.pipeline.packet import Packet
from alrpc.pipeline.topology import Place, choose_cores, settle
from alrpc.precision import computing
from alrpc.process import ending, log_line
from alrpc.timing import peak_memory
from alrpc.training.evaluation import ExitScores
from alrpc.training.losses import LossMeter
from alrpc.training.update import make_learner, update

LAST_WORDS = 5.0  # seconds that a failed stage waits for the coordinator to hear why
AFTERMATH = 6.0  # seconds that a stage which lost its neighbour waits to be ended, before it ends by itself

Build = Callable[[Config, dict[str, Tensor], Target, WordVectors | None], Network]
MakeStage = Callable[[int, Plan, Network, torch.device], "Stage"]


def run_stage(place: Place, world_size: int, build: Build, make: MakeStage | None = None) -> int:
    """Be a stage until the end of the run; returns the process' exit code.

    Args:
        build: (configuration, sample, target, word vectors) -> the whole network, the same in every process; the stage keeps its part.
        make: the stage's constructor; None for one that trains.
    """
    status.place = place
    ending.told = mailbox.told_to_end
    try:
        control.join(place.stage, world_size)
        mailbox.watch_coordinator()
        plan = mailbox.await_plan()
        device = settle(plan.device, plan.config.threads)
        stage = (make or Stage)(place.stage, plan, build(plan.config, plan.sample, plan.target, plan.word_vectors), device)
        tell("ready", pid=place.pid, host=place.host, device=plan.device, components=plan.components)
        groups = open_data_plane(place.stage, plan.stages, plan.transport, device)
        stage.run(groups, choose_cores(place, plan.config.threads, plan.config.pipeline.pin_cores))
        mailbox.dismissed.wait()
        close_data_plane()
        control.leave(status.patience)
    except (PeerLost, control.Disconnected) as error:
        log_line(f"stage {place.stage}: {error}")
        if not status.told_to_end:
            time.sleep(AFTERMATH)  # whoever failed is named by the coordinator or the launcher, which then end this process
        return 1
    except Exception as error:
        log_line(traceback.format_exc())
        cause = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        tell("failure", cause=" ".join(cause.split()), again=not isinstance(error, UserError))
        time.sleep(LAST_WORDS)
        return 1
    return 0


class Stage:
    """A stage's components, and what it does with each packet of the stream; see `alrpc.pipeline.packet` for the kinds."""

    def __init__(self, number: int, plan: Plan, network: Network, device: torch.device):
        self.number = number
        self.plan = plan
        self.device = device
        self.target = network.target
        self.learners = [make_learner(n, network.components[n - 1], plan.recipe, device) for n in plan.components]
        if plan.resume is not None:
            load_learners(plan.resume.directory, self.learners, plan.resume.files)
            status.step = plan.resume.step
        self.writer = ThreadPoolExecutor(1, "write-checkpoint")
        self.writer.submit(int).result()  # its thread begins now, before this one is bound to a core
        self.writing: Future | None = None
        self.meters = [LossMeter(learner.number, plan.recipe.nonfinite) for learner in self.learners]
        self.sender: Sender | None = None
        status.device = device
        status.timing.moments.watch(device)
        self.modes = ExitStack()  # holds the components in evaluation mode between two markers
        # The last stage decodes every exit, so it keeps a copy of each decoder. A marker brings the parameters.
        self.is_last = number == plan.stages
        self.decoders = [component.decoder.to(device) for component in network.components] if self.is_last else []
        for component in network.components[: plan.components[0] - 1] if self.is_last else ():
            component.decoder.eval()
        self.scores: ExitScores | None = None
        self.began: float | None = None  # when the epoch under way did
        self.actions: dict[str, Callable[[Packet], None]] = {
            "train": self.train,
            "epoch": self.end_epoch,
            "evaluate": self.begin_evaluation,
            "test": self.test,
            "evaluated": self.end_evaluation,
            "checkpoint": self.take_checkpoint,
            "end": self.finish,
        }

    def run(self, groups: dict[int, ProcessGroup], cores: list[int] | None) -> None:
        """Work through the stream until its end, on these cores if the device is the CPU.

        `groups` are NCCL's by the neighbour's rank; gloo carries the rest.
        """
        window = self.plan.config.pipeline.window
        source, destination = (
            Link(rank, self.device if rank in groups else torch.device("cpu"), groups.get(rank))
            for rank in (self.number - 1, self.number + 1)
        )
        if not self.is_last:
            self.sender = Sender(destination, window, status.timing, self.device)
        packets = Receiver(source, window, self.device, status.timing)
        if cores is not None and self.device.type == "cpu":
            os.sched_setaffinity(0, cores)  # this thread's alone: those that carry packets may use any core
        for packet in packets:
            status.received += 1
            status.packet = packet.kind, packet.epoch, packet.step
            self.actions[packet.kind](packet)
            self.tell_moments()
        status.timing.enter(None)

    def tell_moments(self, last: bool = False) -> None:
        for block in status.timing.moments.take(last):
            tell("moments", **block)

    def hand_on(self, packet: Packet, tensors: dict[str, Tensor]) -> None:
        if self.sender is not None:
            self.sender.send(Packet(packet.kind, packet.epoch, packet.step, tensors))
            status.sent += 1

    def train(self, packet: Packet) -> None:
        self.began = self.began or time.perf_counter()
        self.learn(packet)
        status.step = packet.step + 1
        if status.step % self.plan.config.train.log_every == 0:
            self.tell_losses(packet.epoch)

    def learn(self, packet: Packet) -> None:
        """Train every component on a micro-batch; the packet goes on before the last one's backward pass."""
        tensors = dict(packet.tensors)
        target = self.target.represent(tensors.pop("label")) if self.number == 1 else tensors.pop("target")
        for learner, meter in zip(self.learners, self.meters, strict=True):
            made: list[Step] = []

            def receive(step: Step, is_own_last=learner is self.learners[-1], made=made) -> None:
                made.append(step)
                if is_own_last:
                    self.hand_on(packet, {**step.tensors, "target": step.target})

            meter.add(packet.step, *update(learner, tensors, target, packet.step, receive, status.timing.enter))
            tensors, target = made[0].tensors, made[0].target

    def end_epoch(self, packet: Packet) -> None:
        self.hand_on(packet, {})
        self.tell_losses(packet.epoch)
        tell(
            "stage",
            epoch=packet.epoch,
            step=packet.step,
            epoch_seconds=time.perf_counter() - self.began,
            seconds=status.timing.read(),
            peak_memory=peak_memory(self.device),
        )

    def begin_evaluation(self, packet: Packet) -> None:
        # Copies, since training may go on before they have left.
        own = {
            f"decoder.{learner.number}.{name}": value.detach().clone(memory_format=torch.contiguous_format)
            for learner in self.learners
            for name, value in learner.component.decoder.state_dict().items()
        }
        self.hand_on(packet, {**packet.tensors, **own})
        status.timing.test(True)
        for learner in self.learners:
            self.modes.enter_context(evaluating(learner.component))
        if self.is_last:
            load_decoders(self.decoders, packet.tensors)
            self.scores = ExitScores(self.target, self.decoders)

    def test(self, packet: Packet) -> None:
        status.timing.enter("testing")
        beside = {name: tensor for name, tensor in packet.tensors.items() if name == "label" or name.startswith("exit.")}
        tensors = {name: tensor for name, tensor in packet.tensors.items() if name not in beside}
        with computing(self.device, self.plan.recipe.precision):
            for learner in self.learners:
                tensors, beside[f"exit.{learner.number}"] = learner.component.evaluate(tensors)
            self.hand_on(packet, {**tensors, **beside})
            if self.scores is not None:
                self.scores.add([beside[f"exit.{number}"] for number in range(1, len(self.decoders) + 1)], beside["label"])

    def end_evaluation(self, packet: Packet) -> None:
        self.hand_on(packet, {})
        self.modes.close()
        status.timing.test(False)
        if self.scores is not None:
            tell(**self.scores.event(packet.epoch))
            self.scores = None
        self.began = time.perf_counter()  # of the next epoch, the wait for its first packet included

    def take_checkpoint(self, packet: Packet) -> None:
        """Copy all state and go on; a thread writes it. Waits for its own last checkpoint, for no other stage's."""
        self.hand_on(packet, {})
        status.timing.enter("checkpoint")
        if self.writing is not None:
            self.writing.result()
        states = {component_file(learner.number): snapshot(learner) for learner in self.learners}
        self.writing = self.writer.submit(lambda: tell(**write_files(self.plan.run, packet.step, states)))

    def finish(self, packet: Packet) -> None:
        self.hand_on(packet, {})
        if self.writing is not None:
            self.writing.result()
        if self.sender is not None:
            self.sender.drain()
        self.tell_moments(last=True)
        components = [learner.component for learner in self.learners]
        tell("finished", **describe_components(components, self.is_last, self.device))

    def tell_losses(self, epoch: int) -> None:
        for meter in self.meters:
            if event := meter.event(epoch, status.step):
                tell(**event)


def load_decoders(decoders: list[torch.nn.Module], tensors: dict[str, Tensor]) -> None:
    """Take over the parameters of earlier stages' decoders, named decoder.<number>.<parameter>."""
    states: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        _, number, parameter = name.split(".", 2)
        states.setdefault(int(number), {})[parameter] = tensor
    for number, state in states.items():
        decoders[number - 1].load_state_dict(state)
