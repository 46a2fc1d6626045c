"""What the first message of a packet holds, and what travels apart."""

import torch

from alrpc.pipeline.packet import FIRST_BYTES, INLINE_BYTES, Packet, decode, encode, rest_of

CPU = torch.device("cpu")


def roundtrip(packet: Packet) -> tuple[dict[str, torch.Tensor], list[torch.Tensor], int]:
    """The tensors that arrived with the header, those that come apart, and how many messages there were before them."""
    messages, apart = encode(packet)
    first = torch.full((FIRST_BYTES,), 255, dtype=torch.uint8)  # longer than what is sent, as the receiver's
    first[: len(messages[0])] = messages[0]
    assert rest_of(first) == sum(message.numel() for message in messages[1:])
    header = decode(first, messages[1] if len(messages) > 1 else None)
    assert (header.kind, header.epoch, header.step) == (packet.kind, packet.epoch, packet.step)
    tensors, coming = header.place(pinned=False, device=CPU)
    assert list(tensors) == list(packet.tensors)
    assert [tensor.shape for tensor in coming] == [tensor.shape for tensor in apart]
    for name, tensor in packet.tensors.items():
        assert tensors[name].dtype == tensor.dtype and tensors[name].shape == tensor.shape
        if not any(tensors[name] is other for other in coming):
            assert torch.equal(tensors[name], tensor) and tensors[name].data_ptr() % 64 == 0
    return tensors, coming, len(messages)


def test_small_tensors_of_any_kind_arrive_with_the_header():
    tensors = {
        "x": torch.zeros(3, 0, 2, dtype=torch.bfloat16),
        "mask": torch.tensor([True, False, True]),
        "n": torch.tensor(4),
        "half": torch.randn(5, 3).bfloat16(),
        "target": torch.randn(7, 9),
    }
    _, coming, messages = roundtrip(Packet("train", epoch=2, step=70, tensors=tensors))
    assert (coming, messages) == ([], 1)


def test_large_tensors_travel_apart():
    tensors = {"x": torch.zeros(INLINE_BYTES // 4 + 1), "target": torch.ones(INLINE_BYTES // 4), "label": torch.ones(2)}
    _, coming, messages = roundtrip(Packet("train", 1, 1, tensors))
    assert [tensor.numel() for tensor in coming] == [INLINE_BYTES // 4 + 1] and messages == 1


def test_as_many_small_tensors_as_there_are_arrive_whole():
    for count in (0, 1, 40, 400, 2000):
        tensors = {f"tensor-number-{index}": torch.full((index,), float(index)) for index in range(count)}
        _, coming, messages = roundtrip(Packet("evaluate", 1, 1, tensors))
    assert messages == 2 and len(coming) > 0
