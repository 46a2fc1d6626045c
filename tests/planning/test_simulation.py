"""The simulation's recursions agree with a simulation event by event, and with what formulas say of simple settings."""

import heapq
import itertools
import random
import time
from collections import deque
from dataclasses import replace

import numpy
import pytest

from alrpc.pipeline.wire import INLINE_BYTES
from alrpc.planning.simulation import (
    APART,
    FORWARD,
    METHODS,
    Setting,
    gpipe_schedule,
    one_f_one_b_schedule,
    run_local,
    run_schedule,
    simulate,
    simulate_1f1b,
    simulate_gpipe,
    simulate_local,
    simulate_pipedream,
)

MIB = 1 << 20


def even(stages, packets=400, **changes):
    """Equal stages of 20 ms that exchange packets of 1 MiB over fast links without latency."""
    one = numpy.ones(stages)
    setting = Setting(0.02 * one, 0.02 / 3 * one, MIB * one, one, MIB * one, 1e12, 0.0, 0.0, 2, 8, packets)
    return replace(setting, **changes)


class Events:
    """Runs callbacks in the order of their times."""

    def __init__(self):
        self.heap, self.numbers, self.now = [], itertools.count(), 0.0

    def after(self, seconds, callback):
        self.at(self.now + seconds, callback)

    def at(self, moment, callback):
        heapq.heappush(self.heap, (moment, next(self.numbers), callback))

    def run(self):
        while self.heap:
            self.now, _, callback = heapq.heappop(self.heap)
            callback()


class Wire:
    """Carries one message at a time, in order, and delivers each a latency later."""

    def __init__(self, events):
        self.events, self.waiting, self.busy, self.delivered = events, deque(), False, 0.0

    def put(self, seconds, latency, left, arrive):
        self.waiting.append((seconds, latency, left, arrive))
        self.go()

    def go(self):
        if self.busy or not self.waiting:
            return
        self.busy = True
        seconds, latency, left, arrive = self.waiting.popleft()

        def done():
            self.busy = False
            left()
            self.delivered = max(self.delivered, self.events.now + latency)  # none overtakes another
            self.events.at(self.delivered, arrive)
            self.go()

        self.events.after(seconds, done)


class Link:
    """A link of the engine: credits at the sender; at the receiver, receives posted ahead, for headers and for large tensors.

    A receive is known to the sender a latency after it was posted. A message that is inline renews its receive when it is taken, a
    header whose tensors follow when it is read; then its tensors are received once there is room.
    """

    def __init__(self, events, window, delay, apart):
        self.events, self.delay, self.apart = events, delay, apart
        self.credits = self.posted = self.room = window
        self.blocked, self.leaving, self.asking, self.unread = deque(), deque(), deque(), deque()
        self.wire = Wire(events)

    def send(self, message, accepted):
        self.blocked.append((message, accepted))
        self.accept()

    def accept(self):
        while self.credits and self.blocked:
            self.credits -= 1
            message, accepted = self.blocked.popleft()
            self.leaving.append(message)
            accepted()
        self.leave()

    def leave(self):
        """First messages leave, for which receives are posted."""
        while self.posted and self.leaving:
            self.posted -= 1
            message = self.leaving.popleft()
            if self.apart:
                self.asking.append(message)
                self.events.after(self.delay, self.arrive)
            else:
                self.put(message)

    def arrive(self):
        self.unread.append(self.asking.popleft())
        if len(self.unread) == 1:
            self.read()

    def read(self):
        """Read the first header; while there is no room for its tensors, no other one is read."""
        self.post()
        self.ask()

    def ask(self):
        if self.unread and self.room:
            self.room -= 1
            message = self.unread.popleft()
            self.events.after(self.delay, lambda: self.put(message))
            if self.unread:
                self.read()

    def put(self, message):
        seconds, latency, arrive = message
        self.wire.put(seconds, latency, self.release, arrive)

    def release(self):
        self.credits += 1
        self.accept()

    def post(self):
        def learn():
            self.posted += 1
            self.leave()

        self.events.after(self.delay, learn)

    def take(self):
        """The receiver has taken a packet."""
        if self.apart:
            self.room += 1
            self.ask()
        else:
            self.post()


def local_by_events(setting):
    """What `run_local` computes: every stage and every link is a state machine."""
    events, generator = Events(), numpy.random.default_rng(setting.seed)
    stages, packets = setting.stages, setting.packets
    factors, latencies = [], []
    for _ in range(packets):
        factors.append(numpy.ones(stages) * setting.vary(generator, (stages,)))
        latencies.append(setting.delay * numpy.ones(stages - 1) * setting.vary(generator, (stages - 1,)))
    links = [Link(events, setting.window, setting.delay, setting.packet_bytes[stage] > APART) for stage in range(stages - 1)]
    inbox = [deque() for _ in range(stages)]
    inbox[0].extend(range(packets))
    busy = [False] * stages
    entered, learned = numpy.empty(packets), numpy.empty(packets)

    def take(stage):
        if busy[stage] or not inbox[stage]:
            return
        busy[stage] = True
        packet = inbox[stage].popleft()
        if stage:
            links[stage - 1].take()
        else:
            entered[packet] = events.now
        pace = setting.slowdown[stage] * factors[packet][stage]
        rest = (setting.seconds[stage] - setting.ahead[stage]) * pace

        def hand_on():
            if stage == stages - 1:
                finish_later()
            else:
                message = (setting.transfer[stage], latencies[packet][stage], lambda: arrive(stage + 1, packet))
                links[stage].send(message, finish_later)

        def finish_later():
            events.after(rest, finish)

        def finish():
            busy[stage] = False
            if stage == stages - 1:
                learned[packet] = events.now
            take(stage)

        events.after(setting.ahead[stage] * pace, hand_on)

    def arrive(stage, packet):
        inbox[stage].append(packet)
        take(stage)

    take(0)
    events.run()
    return entered, learned


def schedule_by_events(setting, orders):
    """Each stage runs its list of ("forward" or "backward", packet) in order, as soon as the input is there.

    Returns:
        For each packet the begin of its forward pass and the end of its backward pass at the first stage.
    """
    events, stages = Events(), setting.stages
    forth, back = ([Wire(events) for _ in range(stages)] for _ in range(2))
    todo = [deque(order) for order in orders]
    there, busy = {("forward", packet, 0) for _, packet in orders[0]}, [False] * stages
    begins, ends = {}, {}

    def go(stage):
        if busy[stage] or not todo[stage] or (*todo[stage][0], stage) not in there:
            return
        busy[stage] = True
        way, packet = todo[stage].popleft()
        share = FORWARD if way == "forward" else 1 - FORWARD
        begins.setdefault(packet, events.now)

        def done():
            busy[stage] = False
            ends[packet] = events.now
            after = stage + 1 if way == "forward" else stage - 1
            if way == "forward" and after == stages:
                arrive("backward", packet, stage)
            elif after >= 0:
                wire, transfer = (forth if way == "forward" else back)[stage], setting.transfer[min(stage, after)]
                wire.put(transfer, setting.delay, lambda: None, lambda: arrive(way, packet, after))
            go(stage)

        events.after(share * setting.seconds[stage] * setting.slowdown[stage], done)

    def arrive(way, packet, stage):
        there.add((way, packet, stage))
        go(stage)

    go(0)
    events.run()
    assert not any(todo)
    return numpy.array([begins[packet] for packet in sorted(begins)]), numpy.array([ends[packet] for packet in sorted(ends)])


def batches_in_order(name, stages, lengths):
    """What each stage runs, one operation after another, for batches of these lengths."""
    orders = [[] for _ in range(stages)]
    for length, end in zip(lengths, itertools.accumulate(lengths), strict=True):
        packets = range(end - length, end)
        forward, backward = ([(way, packet) for packet in packets] for way in ("forward", "backward"))
        for stage, order in enumerate(orders):
            warm = length if name == "gpipe" else min(stages - 1 - stage, length)
            steady = itertools.chain.from_iterable(zip(forward[warm:], backward, strict=False))
            order += [*forward[:warm], *steady, *backward[length - warm :]]
    return orders


def uneven(seed):
    """A small setting drawn at random, in which windows, links and stages limit in turn."""
    draw = random.Random(seed)
    stages, packets = draw.randint(1, 6), draw.randint(1, 25)
    generator = numpy.random.default_rng(seed)
    seconds = generator.uniform(0.5, 2, stages)
    return Setting(
        seconds=seconds,
        ahead=seconds * generator.uniform(0, 1, stages),
        packet_bytes=generator.choice([APART / 4, APART, 2 * APART, 8 * APART], stages),
        slowdown=generator.choice([1.0, 1.5], stages),
        gradient_bytes=None,
        rate=draw.choice([APART / 4, APART, 100 * APART, numpy.inf]),
        delay=draw.choice([0.0, 0.1, 1.0, 5.0]),
        jitter=draw.choice([0.0, 0.0, 0.3]),
        window=draw.randint(1, 5),
        micro_batches=draw.randint(1, 8),
        packets=packets,
        seed=seed,
    )


@pytest.mark.parametrize("seed", range(150))
def test_the_engine_simulated_at_once_and_event_by_event_has_the_same_moments(seed):
    setting = uneven(seed)
    entered, learned = local_by_events(setting)
    moments = run_local(setting)
    numpy.testing.assert_allclose(moments.entered, entered, rtol=1e-9, atol=1e-9)
    numpy.testing.assert_allclose(moments.learned, learned, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("name", ["gpipe", "1f1b"])
def test_schedules_simulated_in_slots_and_event_by_event_have_the_same_moments(name, seed):
    """Two batches, the second of which no stage waits for but by its order: it begins when the first stage has ended the first."""
    setting = replace(uneven(seed), jitter=0.0)
    stages, length = setting.stages, setting.micro_batches
    schedule = gpipe_schedule(stages, length) if name == "gpipe" else one_f_one_b_schedule(stages)
    begun, ended = run_schedule(setting, schedule, length)
    found = [numpy.concatenate([each[0], each[0] + ended[0, -1]]) for each in (begun, ended)]
    expected = schedule_by_events(setting, batches_in_order(name, stages, [length, length]))
    numpy.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("name", ["gpipe", "1f1b"])
def test_all_packets_take_as_long_as_their_batches_the_last_of_which_may_be_shorter(name, seed):
    setting = replace(uneven(seed), jitter=0.0)
    full, rest = divmod(setting.packets, setting.micro_batches)
    lengths = [*[setting.micro_batches] * full, *([rest] if rest else [])]
    _, ended = schedule_by_events(setting, batches_in_order(name, setting.stages, lengths))
    assert METHODS[name](setting).seconds == pytest.approx(ended[-1], rel=1e-9)


@pytest.mark.parametrize("window", [1, 2, 4, 5, 6, 16])
@pytest.mark.parametrize("megabytes", [0.25, 1])
def test_over_a_slow_link_the_period_is_the_stage_or_the_round_trip_over_the_window(window, megabytes):
    """Inline, and with tensors that are asked for."""
    setting = even(8, delay=0.05, window=window, packet_bytes=numpy.full(8, megabytes * MIB), rate=numpy.inf)
    assert setting.enough_window() == 5
    assert 1 / simulate_local(setting).packets_per_second == pytest.approx(max(0.02, 0.1 / window), rel=1e-2)


@pytest.mark.parametrize("seed", range(30))
def test_the_window_that_is_said_to_do_does_and_a_smaller_one_does_not(seed):
    setting = replace(uneven(seed), jitter=0.0, packets=600)
    enough = setting.enough_window()
    full = 1 / max([setting.slowest, *setting.transfer[:-1]])
    assert simulate_local(replace(setting, window=enough)).packets_per_second == pytest.approx(full, rel=1e-2)
    if enough > 1:
        assert simulate_local(replace(setting, window=enough - 1)).packets_per_second < full * (1 - 1e-6)


def test_a_thin_link_sets_the_pace_whatever_the_window():
    setting = even(4, rate=MIB / 0.05, window=8)
    assert simulate_local(setting).packets_per_second == pytest.approx(20, rel=1e-6)


def test_without_latency_schedules_have_the_bubbles_that_their_authors_name():
    for figures in (simulate_gpipe(even(8)), simulate_1f1b(even(8))):
        assert figures.efficiency == pytest.approx(8 / (8 + 7), rel=1e-3)
    assert simulate_pipedream(even(8)).efficiency == pytest.approx(1, rel=1e-3)
    assert simulate_local(even(8)).efficiency == pytest.approx(1, rel=1e-3)


def test_pipedream_waits_for_its_round_trips_where_one_way_traffic_does_not():
    setting = even(8, delay=0.05, window=6)
    assert 1 / simulate_pipedream(setting).packets_per_second == pytest.approx(0.02 + 2 * 0.05 * 7 / 8, rel=1e-3)
    assert 1 / simulate_local(setting).packets_per_second == pytest.approx(0.02, rel=1e-3)


def test_what_devices_hold():
    held = {name: (f.activation_sets, f.weight_sets, f.window_packets) for name, f in simulate(even(16)).items()}
    assert held == {
        "al": (1, 1, 4),
        "gpipe": (8, 1, 0),
        "1f1b": (8, 1, 0),
        "pipedream": (16, 16, 0),
        "ddp": (16, 16, 0),
    }


def test_one_slow_stage_sets_the_pace_of_all_methods_and_is_never_idle_in_the_engine():
    slowdown = numpy.ones(8)
    slowdown[3] = 1.5
    setting = even(8, slowdown=slowdown)
    for name, figures in simulate(setting).items():
        assert figures.packets_per_second <= 1 / 0.03 * (1 + 1e-9), name
    assert simulate_local(setting).efficiency == pytest.approx(1, rel=1e-3)


def test_data_parallel_training_pays_for_its_gradients_where_they_take_longer_than_the_backward_pass():
    setting = even(8)
    assert simulate(setting)["ddp"].efficiency == pytest.approx(1)
    thin = replace(setting, rate=8 * MIB / 1.0)  # the network's gradients pass a link in a second
    assert simulate(thin)["ddp"].packets_per_second == pytest.approx(8 / (8 * 0.02 / 3 + 2 * 7 / 8))
    assert "ddp" not in simulate(replace(setting, gradient_bytes=None))


def test_jitter_costs_less_where_packets_wait_in_windows():
    narrow, wide = (simulate_local(even(16, 2000, jitter=0.3, window=window)) for window in (1, 16))
    assert narrow.efficiency < wide.efficiency < 1
    assert simulate_local(even(16, 2000, jitter=0.3, window=1)) == narrow  # drawn from the seed


def test_a_thousand_stages_and_ten_thousand_packets_take_seconds():
    setting = even(1000, 10_000, delay=1e-4, micro_batches=4000)
    began = time.process_time()
    for method in METHODS.values():
        method(setting)
    assert time.process_time() - began < 30  # two on an idle core


def test_packets_travel_apart_from_the_size_on_that_the_engine_says():
    assert APART == INLINE_BYTES
