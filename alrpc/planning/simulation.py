"""SIMULATED training: how fast pipelines with given stages and links are, computed exactly by recursions in (max, +).

Every moment is the latest of earlier moments, plus a duration, as in tandem queues with finite buffers (Krivulin,
arXiv 1211.5811). One step of a recursion computes the moments of all stages at once:

    al                      a packet's way through all stages, x(s + 1) = max(x(s) + c(s), a(s + 1)): one running maximum
    gpipe, 1f1b, pipedream  a slot of the schedule, in which the stages' operations do not depend on each other

Here a packet is a micro-batch, and its moments count from 0. docs/scaling.md says what is modelled, and what is not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy
from numpy.typing import NDArray

Array = NDArray[numpy.float64]
FORWARD = 1 / 3  # share of a stage's work that is its forward pass, where it is not known; `bench hops` sleeps as much
APART = 1 << 20  # bytes beyond which a tensor has a message of its own: alrpc.pipeline.wire.INLINE_BYTES


@dataclass(frozen=True)
class StageCosts:
    """What each stage takes, as it is given or was measured; None for what is not known."""

    seconds: list[float]
    """Of a micro-batch, with its update."""
    ahead: list[float]
    """Of those, the seconds before the activation is handed on."""
    packet_bytes: list[float] | None = None
    """What is handed on."""
    gradient_bytes: list[float] | None = None
    jitter: float = 0.0
    """The standard deviation of the seconds over their mean."""


@dataclass(frozen=True)
class Setting:
    """Stages and links to simulate; S is the number of stages."""

    seconds: Array
    """(S,): what a packet takes each stage, with its update, on a device of usual speed."""
    ahead: Array
    """(S,): how much of that is before the stage of a local objective hands its activation on."""
    packet_bytes: Array
    """(S,): what each stage hands to the next one; that of the last stage does not count."""
    slowdown: Array
    """(S,): how many times slower each device is than usual."""
    gradient_bytes: Array | None
    """(S,): what each stage's gradients take, which data parallel training sums; None where that is not known."""
    rate: float
    """Bytes that a link carries in a second, in each direction; infinite for no limit."""
    delay: float
    """Seconds of a link's latency, one way."""
    jitter: float
    """The standard deviation of a stage's time, and of a link's latency, over its mean; both are gamma distributed."""
    window: int
    micro_batches: int
    """Packets between two flushes of gpipe and 1f1b."""
    packets: int
    seed: int = 0

    @property
    def stages(self) -> int:
        return len(self.seconds)

    @property
    def transfer(self) -> Array:
        """(S,): seconds in which a link carries a packet, behind each stage."""
        return self.packet_bytes / self.rate

    @property
    def slowest(self) -> float:
        """Seconds of the slowest stage."""
        return float(numpy.max(self.seconds * self.slowdown))

    def enough_window(self) -> int:
        """The window from which on no link holds up a stage: its packets cover the way to the next stage and back."""
        transfer = max([0.0, *self.transfer[:-1]])
        round_trip = 2 * self.delay + transfer if self.stages > 1 else 0.0
        return max(1, int(numpy.ceil(round_trip / max(self.slowest, transfer) - 1e-9)))

    def vary(self, generator: numpy.random.Generator, shape: tuple[int, ...]) -> Array | float:
        """Factors with a mean of 1 and the jitter as their standard deviation."""
        if self.jitter < 1e-9:  # which a float hardly shows
            return 1.0
        return generator.gamma(self.jitter**-2, self.jitter**2, shape)


@dataclass(frozen=True)
class Moments:
    """Seconds at which each packet, (packets,), …"""

    entered: Array
    """… was begun by the first stage."""
    learned: Array
    """… had been learned from by all stages."""


@dataclass(frozen=True)
class Figures:
    """What a method reaches, SIMULATED."""

    packets_per_second: float
    """In the steady state, with gpipe's and 1f1b's flushes."""
    efficiency: float
    """The share of that time in which the slowest stage works; of a data parallel device, the slowest one."""
    latency_seconds: float
    """Median from the begin of a packet at the first stage until all stages have learned from it."""
    seconds: float
    """Of all packets, from the first one's begin, so filling and draining the pipeline count."""
    activation_sets: int
    """Most activations that a device holds, in those of one packet at one stage."""
    weight_sets: int
    """Most parameters that a device holds, in those of one stage."""
    window_packets: int
    """Most packets on their way to or from a device that have memory of their own."""


def describe(setting: Setting) -> str:
    """A setting in a sentence."""
    slow = numpy.flatnonzero(setting.slowdown != 1)
    times = f"{setting.seconds.min() * 1000:.4g}"
    if setting.seconds.max() > setting.seconds.min():
        times += f" … {setting.seconds.max() * 1000:.4g}"
    sizes = setting.packet_bytes[: max(1, setting.stages - 1)] / (1 << 20)
    size = f"{sizes.min():.4g}" + (f" … {sizes.max():.4g}" if sizes.max() > sizes.min() else "")
    bandwidth = f"{setting.rate * 8 / 1e6:,.10g} Mbit/s" if numpy.isfinite(setting.rate) else "any bandwidth"
    return (
        f"{setting.stages} stages of {times} ms"
        + "".join(f", stage {index + 1} {setting.slowdown[index]:g} times slower" for index in slow)
        + (f", jitter {setting.jitter:.3g}" if setting.jitter else "")
        + f"; packets of {size} MB; links of {bandwidth} and {setting.delay * 1000:,.4g} ms one way; "
        f"window {setting.window}; {setting.micro_batches} micro-batches between flushes"
    )


def _figures(
    moments: Moments, rate: float, work: float, activations: int, weights: int = 1, packets: int = 0, settled: int | None = None
) -> Figures:
    """The figures of a method.

    Args:
        work: seconds of work a packet of the slowest stage or device.
        settled: the first packet, from 0, whose latency counts; by default that of the second half.
    """
    settled = len(moments.learned) // 2 if settled is None else settled
    latency = float(numpy.median((moments.learned - moments.entered)[settled:]))
    return Figures(rate, rate * work, latency, float(moments.learned[-1]), activations, weights, packets)


def _rate(moments: Array) -> float:
    """Packets a second in the second half."""
    half = len(moments) // 2
    return float((len(moments) - 1 - half) / (moments[-1] - moments[half]))


def run_local(setting: Setting) -> Moments:
    """This engine: activations go forward alone, over links with `window` credits and as many receives posted ahead.

    Tensors that travel apart are asked for: the receiver reads their header, posts their receives, and the sender hears of that.
    """
    generator = numpy.random.default_rng(setting.seed)
    stages, window, delay = setting.stages, min(setting.window, setting.packets), setting.delay
    transfer, apart = setting.transfer[:-1], setting.packet_bytes[:-1] > APART
    asking = numpy.where(apart, 2 * delay, 0.0)
    seconds, ahead = setting.seconds * setting.slowdown, setting.ahead * setting.slowdown
    free, offset = numpy.zeros(stages), numpy.zeros(stages)
    never = numpy.full(stages - 1, -numpy.inf)
    left, asked = never, never  # when the tensors of the packet before had left, and when they were asked for
    # Of the last packets, by their number modulo the window: when they had left and were taken, and when their header was read.
    lefts, takens, reads = numpy.full((3, window, stages - 1), -numpy.inf)
    entered, learned = numpy.empty((2, setting.packets))
    for packet in range(setting.packets):
        place = packet % window
        factor = setting.vary(generator, (stages,))
        before, work = ahead * factor, seconds * factor
        latency = delay * setting.vary(generator, (stages - 1,))
        # The packet leaves when it is handed on and, if need be, asked for; and no earlier than the packets before it allow:
        held = numpy.maximum(lefts[place] + asking, left)
        held = numpy.maximum(held, numpy.maximum(takens[place] + delay, numpy.maximum(reads[place] + 3 * delay, asked + delay)))
        numpy.cumsum(before[:-1] + asking + transfer + latency, out=offset[1:])
        earliest = free.copy()
        earliest[1:] = numpy.maximum(earliest[1:], held + transfer + latency)
        taken = numpy.maximum.accumulate(earliest - offset) + offset
        sent = taken + before
        sent[:-1] = numpy.maximum(sent[:-1], lefts[place])
        free = sent + (work - before)
        left = numpy.maximum(sent[:-1] + asking, held) + transfer
        read = numpy.maximum(numpy.maximum(sent[:-1], reads[place] + delay) + delay, asked)
        read = numpy.where(apart, read, never)
        asked = numpy.where(apart, numpy.maximum(read, takens[place]), never)
        lefts[place], takens[place], reads[place] = left, taken[1:], read
        entered[packet], learned[packet] = taken[0], free[-1]
    return Moments(entered, learned)


@dataclass(frozen=True)
class Schedule:
    """Stage s, from 0, runs packet k's forward pass in slot `pace` · k + s and its backward pass in slot `pace` · k + `turn` - s.

    No two operations of a slot depend on each other, and those that one depends on are in the slots before it. A slot has no
    length: an operation begins as soon as its stage is free and its input is there.
    """

    pace: int
    turn: int


def gpipe_schedule(stages: int, micro_batches: int) -> Schedule:
    """All forward passes of a batch, then all backward passes (Huang et al., 2019)."""
    return Schedule(1, 2 * stages - 2 + micro_batches)


def one_f_one_b_schedule(stages: int) -> Schedule:
    """A forward pass for each later stage, then forward and backward passes in turn (Narayanan et al., 2019)."""
    return Schedule(2, 2 * stages - 1)


def run_schedule(setting: Setting, schedule: Schedule, length: int, batches: int = 1) -> tuple[Array, Array]:
    """Back-propagation in batches of `length` packets, each of which begins when the first stage has ended the one before.

    Since that stage is the last one to end a batch, batches do not overlap, and they are computed side by side. Messages never wait
    for a receive to be posted.

    Returns:
        (batches, length) each: the begin of each packet's forward pass and the end of its backward pass at the first stage, from
        the begin of its batch on.
    """
    generator = numpy.random.default_rng(setting.seed)
    stages, pace, turn = setting.stages, schedule.pace, schedule.turn
    seconds = setting.seconds * setting.slowdown
    free = numpy.zeros((batches, stages))
    # Activations arrive at stage s in column s, and gradients in column s + 1; nobody reads the column that is left over.
    activations, gradients = numpy.zeros((2, batches, stages + 1))
    activation_link, gradient_link = numpy.zeros((2, batches, stages + 1))  # when the link to there is free again
    begun, ended = numpy.empty((2, batches, length))

    def run(at: slice, arrived: Array, work: Array) -> tuple[Array, Array]:
        begins = numpy.maximum(free[:, at], arrived)
        free[:, at] = begins + work[at] * setting.vary(generator, begins.shape)
        return begins, free[:, at]

    def hand_over(ends: Array, link: Array, transfer: Array) -> Array:
        link[:] = numpy.maximum(ends, link) + transfer
        return link + setting.delay * setting.vary(generator, ends.shape)

    ahead, back = FORWARD * seconds, (1 - FORWARD) * seconds
    to_next, to_former = setting.transfer, numpy.roll(setting.transfer, 1)  # a gradient is as large as its activation
    for slot in range(pace * (length - 1) + turn + 1):
        at = _stages_of(slot - pace * (length - 1), slot, pace, stages)
        if at.start < at.stop:
            after = slice(at.start + 1, at.stop + 1, pace)
            begins, ends = run(at, activations[:, at], ahead)
            activations[:, after] = hand_over(ends, activation_link[:, after], to_next[at])
            if at.start == 0:
                begun[:, slot // pace] = begins[:, 0]
        at = _stages_of(turn - slot, turn - slot + pace * (length - 1), pace, stages)
        if at.start < at.stop:
            _, ends = run(at, gradients[:, at.start + 1 : at.stop + 1 : pace], back)
            gradients[:, at] = hand_over(ends, gradient_link[:, at], to_former[at])
            if at.start == 0:
                ended[:, (slot - turn) // pace] = ends[:, 0]
    return begun, ended


def _stages_of(low: int, high: int, pace: int, stages: int) -> slice:
    """The stages low, low + pace, … high, as far as there are such."""
    return slice(low if low >= 0 else low % pace, min(high + 1, stages), pace)


def simulate_local(setting: Setting) -> Figures:
    """This engine; a stage holds the activations of one component, and the packets of both its windows."""
    moments = run_local(setting)
    return _figures(moments, _rate(moments.learned), setting.slowest, 1, packets=2 * setting.window)


def simulate_gpipe(setting: Setting) -> Figures:
    """GPipe: a stage holds the activations of a whole batch."""
    return _simulate_flushed(setting, lambda length: gpipe_schedule(setting.stages, length), setting.packets)


def simulate_1f1b(setting: Setting) -> Figures:
    """1F1B with a flush; the first stage holds the activations of a packet for each stage, if the batch has as many."""
    return _simulate_flushed(setting, lambda length: one_f_one_b_schedule(setting.stages), setting.stages)


def _simulate_flushed(setting: Setting, schedule: Callable[[int], Schedule], most_held: int) -> Figures:
    """The figures of batches that a flush ends; the last one may be shorter, and counts for all but the steady state.

    Args:
        schedule: that of a batch of so many packets.
        most_held: the most activations that a device holds if a batch has as many packets.
    """
    length = min(setting.micro_batches, setting.packets)
    batches, rest = divmod(setting.packets, length)
    begun, ended = run_schedule(
        setting, schedule(length), length, batches if setting.jitter else 1
    )  # without jitter all are alike
    begun, took = numpy.resize(begun, (batches, length)), numpy.resize(ended[:, -1], (batches, 1))
    ends = numpy.cumsum(took, axis=0)
    steady = float(ends[-1, 0])
    entered, learned = (ends - took + begun).ravel(), numpy.repeat(ends, length)
    if rest:
        begun, ended = run_schedule(setting, schedule(rest), rest)
        entered = numpy.append(entered, steady + begun[0])
        learned = numpy.append(learned, numpy.repeat(steady + ended[0, -1], rest))
    return _figures(Moments(entered, learned), batches * length / steady, setting.slowest, min(most_held, length), settled=0)


def simulate_pipedream(setting: Setting) -> Figures:
    """PipeDream: 1F1B without a flush; the first stage holds activations, and versions of its weights, of a packet a stage."""
    begun, ended = run_schedule(setting, one_f_one_b_schedule(setting.stages), setting.packets)
    moments = Moments(begun[0], ended[0])
    return _figures(moments, _rate(moments.entered), setting.slowest, setting.stages, setting.stages)


def simulate_ddp(setting: Setting) -> Figures:
    """Data parallel training with a packet a device; the backward pass hides, at best, that gradients are summed.

    The sum is that of recursive halving and doubling (Rabenseifner, 2004), whose latency grows with the logarithm of the devices.
    """
    stages = setting.stages
    steps = -(-setting.packets // stages)
    factors = setting.slowdown * setting.vary(numpy.random.default_rng(setting.seed), (steps, stages))
    works = numpy.broadcast_to(factors, (steps, stages)).max(axis=1) * setting.seconds.sum()  # of the slowest device
    share = (stages - 1) / stages * float(setting.gradient_bytes.sum())
    summing = 2 * (share / setting.rate + numpy.ceil(numpy.log2(stages)) * setting.delay)
    ends = numpy.cumsum(numpy.maximum(works, FORWARD * works + summing))
    moments = Moments(numpy.repeat(numpy.append(0.0, ends[:-1]), stages), numpy.repeat(ends, stages))
    work = float(setting.slowdown.max() * setting.seconds.sum()) / stages
    return _figures(moments, steps * stages / float(ends[-1]), work, stages, stages)


METHODS: dict[str, Callable[[Setting], Figures]] = {
    "al": simulate_local,
    "gpipe": simulate_gpipe,
    "1f1b": simulate_1f1b,
    "pipedream": simulate_pipedream,
    "ddp": simulate_ddp,
}


def simulate(setting: Setting) -> dict[str, Figures]:
    """The figures of all methods; without those of data parallel training where the gradients' size is not known."""
    known = setting.gradient_bytes is not None
    return {name: method(setting) for name, method in METHODS.items() if known or name != "ddp"}
