"""The precision in which components hand their activations on; that it is the same in a pipeline is shown in pipeline/test_equality."""

import pytest
import torch

import alrpc
from alrpc.config import parse_config
from alrpc.network import build_network, resolve
from alrpc.objectives.base import Microbatch, eval_mode
from alrpc.objectives.handover import pack, unpack

MASK = torch.tensor([[True, False, True], [True, True, True]])


@pytest.mark.parametrize(
    ("shape", "of_row"),
    [((4, 8), (4, 1)), ((2, 3, 8), (2, 3, 1)), ((2, 3, 4, 5), (2, 3, 1, 1)), ((0, 8), None)],
    ids=["vectors", "tokens", "images", "none"],
)
def test_int8_is_within_half_a_step_of_each_row(shape, of_row):
    x = torch.randn(shape) * torch.logspace(-3, 3, shape[0] or 1).view(-1, *[1] * (len(shape) - 1))
    packed = pack({"x": x, "mask": MASK}, "int8")
    assert packed["x"].dtype is torch.int8 and packed["mask"] is MASK
    back = unpack(packed, "int8")
    assert back.keys() == {"x", "mask"} and back["x"].dtype is torch.float32 and back["x"].shape == x.shape
    if of_row:
        assert packed["x-scale"].shape == of_row and packed["x"].abs().amax() == 127
        assert ((back["x"] - x).abs() <= packed["x-scale"] * 0.501).all()


def test_what_a_sample_hands_over_is_a_matter_of_its_own():
    """In the same packet as others or alone, as its early exit leaves it; a number a sample would share its scale with the others'."""
    together = {"x": torch.randn(3, 8), "weight": torch.tensor([0.001, 1.0, 1000.0])}
    whole = unpack(pack(together, "int8"), "int8")
    for row in range(3):
        alone = unpack(pack({name: tensor[row : row + 1] for name, tensor in together.items()}, "int8"), "int8")
        assert all(torch.equal(alone[name], tensor[row : row + 1]) for name, tensor in whole.items())


def test_a_row_of_zeros_and_one_that_is_not_finite_stay_so():
    back = unpack(pack({"x": torch.tensor([[0.0, 0.0], [1.0, torch.inf], [torch.nan, 1.0]])}, "int8"), "int8")["x"]
    assert back[0].tolist() == [0.0, 0.0] and not back[1:].isfinite().all(dim=1).any()


def test_bf16_keeps_eight_bits_and_fp32_all():
    x = torch.randn(5, 7)
    assert torch.equal(unpack(pack({"x": x}, "bf16"), "bf16")["x"], x.bfloat16().float())
    assert pack({"x": x}, "fp32")["x"] is x


@pytest.mark.parametrize(("handover", "bytes_of_x"), [("fp32", 4), ("bf16", 2), ("int8", 1)])
def test_what_leaves_a_component_is_small_and_a_prediction_has_it_too(handover, bytes_of_x):
    config = parse_config({"model": {"name": "mlp", "widths": [16, 16], "handover": handover}, "data": {"name": "digits"}})
    x = torch.rand(6, 64)
    network = build_network(config, {"x": x}, alrpc.Classes(10))
    first, second, *_ = network.components
    leaving, _ = first(Microbatch({"x": x}, network.objective.begin(torch.arange(6))))
    assert leaving.tensors["x"].element_size() == bytes_of_x
    with torch.no_grad(), eval_mode(network):
        travelled, _ = first.evaluate({"x": x})
        _, output = second.evaluate(travelled)
        parts = [component.exit_parts() for component in (first, second)]
        assert torch.equal(network(x, exit=2), network.objective.decode(parts, [output]))


@pytest.mark.parametrize("objective", ["synthetic", "target_propagation"])
def test_an_objective_that_hears_of_its_activations_is_refused_before_anything_begins(objective):
    config = parse_config({"model": {"name": "mlp", "handover": "int8"}, "objective": {"name": objective}})
    message = r"model\.handover: got int8, but the objective sends gradients or targets back"
    with pytest.raises(alrpc.UserError, match=message):
        resolve(config)
    with pytest.raises(alrpc.UserError, match=message):
        build_network(config, {"x": torch.rand(2, 64)}, alrpc.Classes(10))
