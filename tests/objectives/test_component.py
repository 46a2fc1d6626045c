"""One component against the formulas of Kao & Chen (2021), section 3, written out."""

import torch
from torch import nn
from torch.nn import functional

import alrpc
from alrpc.objectives.base import Component, canonical


def make_component() -> Component:
    torch.manual_seed(0)
    return Component(
        block=nn.Sequential(nn.Linear(6, 5), nn.ReLU()),
        bridge=nn.Sequential(nn.Linear(5, 4), nn.Tanh()),
        encoder=nn.Sequential(nn.Linear(3, 4), nn.Tanh()),
        decoder=nn.Linear(4, 3),
    )


def test_losses_and_gradients_are_those_of_the_formulas():
    component = make_component()
    x, t0 = torch.randn(8, 6), torch.randn(8, 3)
    step = component(({"x": x}), t0)
    (step.associated_loss + step.autoencoder_loss).backward()
    gradients = {name: parameter.grad.clone() for name, parameter in component.named_parameters()}

    component.zero_grad()
    f, b, g, h = component.block, component.bridge, component.encoder, component.decoder
    loss_a = ((b(f(x)) - g(t0).detach()) ** 2).mean()
    loss_a.backward()
    loss_r = ((h(g(t0)) - t0) ** 2).mean()
    loss_r.backward()

    torch.testing.assert_close(step.associated_loss, loss_a, atol=1e-6, rtol=0)
    torch.testing.assert_close(step.autoencoder_loss, loss_r, atol=1e-6, rtol=0)
    for name, parameter in component.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-6, rtol=0)


def test_each_loss_trains_its_own_half():
    component = make_component()
    step = component({"x": torch.randn(8, 6)}, torch.randn(8, 3))
    step.associated_loss.backward(retain_graph=True)
    assert all(p.grad is not None for p in component.forward_parameters())
    assert all(p.grad is None for p in component.target_parameters())
    component.zero_grad()
    step.autoencoder_loss.backward()
    assert all(p.grad is None for p in component.forward_parameters())
    assert all(p.grad is not None for p in component.target_parameters())


def test_no_gradient_leaves_a_component():
    step = make_component()({"x": torch.randn(8, 6)}, torch.randn(8, 3))
    assert not step.target.requires_grad
    assert not any(tensor.requires_grad for tensor in step.tensors.values())


def test_cross_entropy_compares_logits_with_the_class_index():
    component = make_component()
    component.autoencoder_loss = "cross_entropy"
    labels = torch.tensor([0, 2, 1, 1])
    target = alrpc.Classes(3).represent(labels)
    step = component({"x": torch.randn(4, 6)}, target)
    expected = functional.cross_entropy(component.decoder(component.encoder(target)), labels)
    torch.testing.assert_close(step.autoencoder_loss, expected)


def test_blocks_name_what_they_take_and_give_and_the_rest_travels_past():
    class Gate(nn.Module):
        takes = ("x", "gate")
        gives = ("x", "share")

        def forward(self, x, gate):
            return x * gate, gate.mean(dim=1, keepdim=True)

    component = Component(Gate(), nn.Identity(), nn.Identity(), nn.Identity())
    inputs = {"x": torch.ones(2, 3), "gate": torch.tensor([[1.0, 0, 0], [1, 1, 1]]), "mask": torch.ones(2, 7)}
    tensors, bridged = component.evaluate(inputs)
    assert list(tensors) == ["x", "gate", "mask", "share"]
    assert tensors["mask"].shape == (2, 7)
    torch.testing.assert_close(bridged, inputs["gate"])


def test_an_exit_is_not_changed_by_a_next_block_that_works_in_place():
    component = Component(nn.Identity(), nn.Identity(), nn.Identity(), nn.Identity())
    tensors, bridged = component.evaluate({"x": -torch.ones(2, 3)})
    tensors["x"].relu_()
    assert (bridged == -1).all()


def test_what_leaves_a_component_looks_as_if_it_came_from_another_process():
    whole = torch.randn(4, 6, requires_grad=True)
    for view in (whole[:, 1:], whole[1:], whole.t(), whole[:, :1].expand(4, 3)):
        sent = canonical(view)
        assert sent.is_contiguous() and sent.storage_offset() == 0 and not sent.requires_grad
        torch.testing.assert_close(sent, view.detach())
