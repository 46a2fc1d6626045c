"""What the first message of a packet holds, and what travels apart."""

import torch

from alrpc.pipeline.wire import FIRST_BYTES, INLINE_BYTES, HeaderSizes, decode, encode, length_of
from alrpc.training.packet import Kind, Packet

CPU = torch.device("cpu")


def roundtrip(packet: Packet) -> list[torch.Tensor]:
    """The tensors that come apart from the header."""
    whole, apart = encode(packet)
    arrived = torch.full((len(whole) + 500,), 255, dtype=torch.uint8)  # longer than what is sent, as the receiver's
    arrived[: len(whole)] = whole
    assert length_of(arrived) == len(whole)
    header = decode(arrived)
    assert (header.kind, header.epoch, header.step) == (packet.kind, packet.epoch, packet.step)
    tensors, coming = header.place(pinned=False, device=CPU)
    assert list(tensors) == list(packet.tensors)
    assert [tensor.shape for tensor in coming] == [tensor.shape for tensor in apart]
    for name, tensor in packet.tensors.items():
        assert tensors[name].dtype == tensor.dtype and tensors[name].shape == tensor.shape
        if not any(tensors[name] is other for other in coming):
            assert torch.equal(tensors[name], tensor) and tensors[name].data_ptr() % 64 == 0
    return coming


def test_small_tensors_of_any_kind_arrive_with_the_header():
    tensors = {
        "x": torch.zeros(3, 0, 2, dtype=torch.bfloat16),
        "mask": torch.tensor([True, False, True]),
        "n": torch.tensor(4),
        "half": torch.randn(5, 3).bfloat16(),
        "target": torch.randn(7, 9),
    }
    assert roundtrip(Packet(Kind.TRAIN, epoch=2, step=70, tensors=tensors)) == []


def test_large_tensors_travel_apart():
    tensors = {"x": torch.zeros(INLINE_BYTES // 4 + 1), "target": torch.ones(INLINE_BYTES // 4), "label": torch.ones(2)}
    (coming,) = roundtrip(Packet(Kind.TRAIN, 1, 1, tensors))
    assert coming.numel() == INLINE_BYTES // 4 + 1


def test_as_many_small_tensors_as_there_are_arrive_whole():
    for count in (0, 1, 40, 400, 3000):
        tensors = {f"tensor-number-{index}": torch.full((index,), float(index)) for index in range(count)}
        coming = roundtrip(Packet(Kind.EVALUATE, 1, 1, tensors))
    assert len(coming) > 0


def test_an_inline_tensor_may_be_changed_while_another_is_kept_for_its_gradient():
    whole, _ = encode(Packet(Kind.TRAIN, 1, 1, {"x": torch.ones(3), "target": torch.full((3,), 2.0)}))
    tensors, _ = decode(whole).place(pinned=False, device=CPU)
    weight = torch.ones(3, requires_grad=True)
    loss = (weight * tensors["target"]).sum()
    tensors["x"].add_(1)
    loss.backward()
    assert weight.grad.tolist() == [2.0, 2.0, 2.0]


def test_the_first_message_is_as_long_as_the_longest_packet_before_it_was_asked_for():
    limits = HeaderSizes(ahead=2)
    asked = []
    for length in (10, 3 * FIRST_BYTES, 20, 2 * FIRST_BYTES):
        asked.append(limits.limit())
        limits.note(length)
    assert [*asked, limits.limit()] == [FIRST_BYTES, FIRST_BYTES, FIRST_BYTES, 3 * FIRST_BYTES, 3 * FIRST_BYTES]
