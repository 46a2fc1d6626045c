"""A stage with neither processes nor links: what it does with packets, and that two of them equal one."""

import torch
from torch import nn

import alrpc
from alrpc.config import Train
from alrpc.events import Evaluation, Finished, Losses, StageTimes
from alrpc.timing import Timing
from alrpc.training.optimizer import Recipe
from alrpc.training.packet import Kind, Packet
from alrpc.training.stage import Stage

CPU = torch.device("cpu")


def make_network() -> alrpc.Network:
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.3)) for _ in range(4)]
    return alrpc.associate(blocks, torch.zeros(2, 6), alrpc.Classes(3), target_width=4, bridge_widths=[8])


def make_stage(network, number, components, send, events, saved=None) -> Stage:
    return Stage(
        number,
        network,
        components,
        Recipe(Train(lr=0.05), micro_batches=3),
        CPU,
        log_every=2,
        send=send,
        emit=events.append,
        save=lambda step, trainers: (saved if saved is not None else []).append((step, [each.number for each in trainers])),
        timing=Timing(),
    )


def stream() -> list[Packet]:
    generator = torch.Generator().manual_seed(1)

    def batch(kind, step):
        labels = torch.randint(0, 3, (8,), generator=generator)
        return Packet(kind, 1, step, {"x": torch.randn(8, 6, generator=generator), "label": labels})

    markers = [Packet(kind, 1, 3) for kind in (Kind.EPOCH, Kind.EVALUATE)]
    tests = [batch(Kind.TEST, 3) for _ in range(2)]
    after = [Packet(kind, 1, 3) for kind in (Kind.EVALUATED, Kind.CHECKPOINT, Kind.END)]
    return [*(batch(Kind.TRAIN, step) for step in range(3)), *markers, *tests, *after]


def test_two_stages_handed_each_others_packets_equal_one():
    one, two = make_network(), make_network()
    of_one, of_two = [], []
    alone = make_stage(one, 1, [1, 2, 3, 4], None, of_one)
    last = make_stage(two, 2, [3, 4], None, of_two)
    first = make_stage(two, 1, [1, 2], last.handle, of_two)
    for packet in stream():
        alone.handle(packet)
        first.handle(packet)
    assert one.digest() == two.digest()
    (scores,), (same) = ([e.exits for e in events if isinstance(e, Evaluation)] for events in (of_one, of_two))
    assert [scores] == same and len(scores) == 4

    def losses(events):
        return sorted((e.step, e.component, e.losses) for e in events if isinstance(e, Losses))

    assert losses(of_one) == losses(of_two) and len(losses(of_one)) == 8  # after two steps, and at the epoch's end


def test_a_packet_leaves_before_its_stage_learns_from_it():
    network = make_network()
    before = {name: value.clone() for name, value in network.named_parameters()}
    sent = []

    def send(packet):
        if packet.kind is Kind.TRAIN:
            own = dict(network.components[1].named_parameters(prefix="components.1"))
            sent.append(all(torch.equal(value, before[name]) for name, value in own.items()))

    make_stage(network, 1, [1, 2], send, []).handle(stream()[0])
    assert sent == [True]
    assert not torch.equal(
        dict(network.named_parameters())["components.1.block.0.weight"], before["components.1.block.0.weight"]
    )


def test_what_a_stage_reports_and_saves():
    events, saved = [], []
    stage = make_stage(make_network(), 1, [1, 2, 3, 4], None, events, saved)
    for packet in stream():
        stage.handle(packet)
    stage.finish()
    assert saved == [(3, [1, 2, 3, 4])]
    assert [type(event) for event in events if isinstance(event, (StageTimes, Evaluation, Finished))] == [
        *(StageTimes, Evaluation, Finished),
    ]
    status = stage.status()
    assert (status.step, status.received, status.sent, status.packet) == (3, 10, 0, ("end", 1, 3))
    assert len(events[-1].digests) == 4 and set(events[-1].parameters) == {"effective", "affiliated"}
