import torch

from alrpc.pipeline.packet import HEADER_BYTES, Header, Packet, decode_header, encode_header, header_rest


def roundtrip(packet: Packet) -> tuple[Header, int]:
    messages = encode_header(packet)
    assert messages[0].numel() == HEADER_BYTES
    assert header_rest(messages[0]) == sum(message.numel() for message in messages[1:])
    return decode_header(messages[0], messages[1] if len(messages) > 1 else None), len(messages)


def test_a_header_tells_kind_place_and_layout():
    tensors = {"x": torch.zeros(3, 0, 2, dtype=torch.bfloat16), "mask": torch.zeros(3) > 0, "n": torch.tensor(4)}
    header, messages = roundtrip(Packet("train", epoch=2, step=70, tensors=tensors))
    assert header == Header("train", 2, 70, [["x", "bfloat16", [3, 0, 2]], ["mask", "bool", [3]], ["n", "int64", []]])
    assert messages == 1


def test_a_header_of_any_length_arrives_whole():
    for count in (0, 1, 30, 31, 32, 33, 34, 35, 36, 400):
        tensors = {f"tensor-number-{index}": torch.zeros(index) for index in range(count)}
        header, messages = roundtrip(Packet("evaluate", 1, 1, tensors))
        assert [name for name, _, _ in header.layout] == list(tensors)
    assert messages == 2
