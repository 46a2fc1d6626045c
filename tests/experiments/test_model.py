"""The blocks and a head: the same first parameters as associated learning's, cut anywhere without a change."""

import pytest
import torch

import alrpc
from alrpc.config import load_config
from alrpc.experiments.baselines.model import ModelPart, build_sequential_model
from alrpc.experiments.baselines.shapes import run_one_sample
from alrpc.network import build_network, resolve

MODELS = {
    "mlp": ["model.name=mlp"],
    "vgg": ["model.name=vgg", "model.channels=[[4],[6,M]]", "model.hidden=9"],
    "resnet": ["model.name=resnet", "model.width=4", "model.depths=[1,1]"],
    "lstm": ["model.name=lstm", "model.vocabulary=50", "model.width=8", "model.hidden=6"],
    "transformer": ["model.name=transformer", "model.vocabulary=50", "model.width=12", "model.dropout=0"],
    "own": ["model.name=own_blocks:build_for_regression"],
}


def sample(name):
    if name in ("lstm", "transformer"):
        mask = torch.arange(6) < torch.tensor([[6], [3], [1]])
        return {"x": torch.randint(2, 50, (3, 6)) * mask, "mask": mask}
    return {"x": torch.randn(3, 3, 8, 8) if name != "own" else torch.randn(3, 10)}


@pytest.mark.parametrize("name", MODELS)
def test_blocks_begin_as_in_associated_learning_and_parts_compute_what_the_whole_does(name):
    config, components = resolve(load_config(None, MODELS[name]))
    tensors, target = sample(name), alrpc.Classes(4)
    model = build_sequential_model(config, tensors, target)
    associated = build_network(config, tensors, target)
    assert len(model.layers) == components + 1
    for block, component in zip(model.layers, associated.components, strict=False):
        for one, other in zip(block.state_dict().values(), component.block.state_dict().values(), strict=True):
            assert torch.equal(one, other)
    whole = ModelPart(model, range(components + 1)).eval()
    expected = whole(*(tensors[key] for key in whole.takes))
    assert expected.shape == (3, 4)
    expected.sum().backward()
    gradients = {id(p): None if p.grad is None else p.grad.clone() for p in whole.parameters()}
    whole.zero_grad()
    for cut in range(1, components + 1):
        first, second = ModelPart(model, range(cut)).eval(), ModelPart(model, range(cut, components + 1)).eval()
        between = first(*(tensors[key] for key in first.takes))
        sizes = tuple(tuple(tensors[key].shape[1:]) for key in first.takes)
        assert run_one_sample(first, "fp32", sizes) == tuple(tuple(tensor.shape[1:]) for tensor in between)
        received = [tensor.detach().requires_grad_() for tensor in between]
        output = second(*received)
        torch.testing.assert_close(output, expected)
        output.sum().backward()
        torch.autograd.backward(
            between, [tensor.grad if tensor.grad is not None else torch.zeros_like(tensor) for tensor in received]
        )
        for parameter in whole.parameters():
            wanted = gradients[id(parameter)]
            if wanted is not None:
                torch.testing.assert_close(parameter.grad, wanted, atol=1e-5, rtol=1e-4)
        whole.zero_grad()
