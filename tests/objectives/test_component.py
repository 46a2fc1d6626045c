"""One component against the formulas of Kao & Chen (2021), section 3, written out."""

import torch
from torch import nn
from torch.nn import functional

import alrpc
from alrpc.objectives.associated import AssociatedLearning
from alrpc.objectives.base import Component, Microbatch, canonical


def make_component(**options) -> Component:
    torch.manual_seed(0)
    parts = {
        "bridge": nn.Sequential(nn.Linear(5, 4), nn.Tanh()),
        "encoder": nn.Sequential(nn.Linear(3, 4), nn.Tanh()),
        "decoder": nn.Linear(4, 3),
    }
    objective = AssociatedLearning(alrpc.Classes(3), **options)
    return Component(1, nn.Sequential(nn.Linear(6, 5), nn.ReLU()), objective, parts)


def run(component: Component, x: torch.Tensor, target: torch.Tensor):
    """What leaves the component, t_l, and its two losses."""
    batch, (associated, autoencoder) = component(Microbatch({"x": x}, {"target": target}))
    return batch.tensors, batch.beside["target"], associated, autoencoder


def bare(block: nn.Module) -> Component:
    """A component whose other parts do nothing."""
    parts = {name: nn.Identity() for name in ("bridge", "encoder", "decoder")}
    return Component(1, block, AssociatedLearning(alrpc.Classes(3)), parts)


def test_losses_and_gradients_are_those_of_the_formulas():
    component = make_component()
    x, t0 = torch.randn(8, 6), torch.randn(8, 3)
    _, _, associated, autoencoder = run(component, x, t0)
    (associated + autoencoder).backward()
    gradients = {name: parameter.grad.clone() for name, parameter in component.named_parameters()}

    component.zero_grad()
    f, b, g, h = component.block, component.bridge, component.encoder, component.decoder
    loss_a = ((b(f(x)) - g(t0).detach()) ** 2).mean()
    loss_a.backward()
    loss_r = ((h(g(t0)) - t0) ** 2).mean()
    loss_r.backward()

    torch.testing.assert_close(associated, loss_a, atol=1e-6, rtol=0)
    torch.testing.assert_close(autoencoder, loss_r, atol=1e-6, rtol=0)
    for name, parameter in component.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-6, rtol=0)


def test_each_loss_trains_its_own_half():
    component = make_component()
    groups = component.objective.parameter_groups(component)
    _, _, associated, autoencoder = run(component, torch.randn(8, 6), torch.randn(8, 3))
    associated.backward(retain_graph=True)
    assert all(p.grad is not None for p in groups["lr"])
    assert all(p.grad is None for p in groups["target_lr"])
    component.zero_grad()
    autoencoder.backward()
    assert all(p.grad is None for p in groups["lr"])
    assert all(p.grad is not None for p in groups["target_lr"])


def test_no_gradient_leaves_a_component():
    tensors, target, _, _ = run(make_component(), torch.randn(8, 6), torch.randn(8, 3))
    assert not target.requires_grad
    assert not any(tensor.requires_grad for tensor in tensors.values())


def test_cross_entropy_compares_logits_with_the_class_index():
    component = make_component(autoencoder_loss="cross_entropy")
    labels = torch.tensor([0, 2, 1, 1])
    target = alrpc.Classes(3).represent(labels)
    _, _, _, autoencoder = run(component, torch.randn(4, 6), target)
    expected = functional.cross_entropy(component.decoder(component.encoder(target)), labels)
    torch.testing.assert_close(autoencoder, expected)


def test_blocks_name_what_they_take_and_give_and_the_rest_travels_past():
    class Gate(nn.Module):
        takes = ("x", "gate")
        gives = ("x", "share")

        def forward(self, x, gate):
            return x * gate, gate.mean(dim=1, keepdim=True)

    component = bare(Gate())
    inputs = {"x": torch.ones(2, 3), "gate": torch.tensor([[1.0, 0, 0], [1, 1, 1]]), "mask": torch.ones(2, 7)}
    tensors, bridged = component.evaluate(inputs)
    assert list(tensors) == ["x", "gate", "mask", "share"]
    assert tensors["mask"].shape == (2, 7)
    torch.testing.assert_close(bridged, inputs["gate"])


def test_an_exit_is_not_changed_by_a_next_block_that_works_in_place():
    component = bare(nn.Identity())
    tensors, bridged = component.evaluate({"x": -torch.ones(2, 3)})
    tensors["x"].relu_()
    assert (bridged == -1).all()


def test_what_leaves_a_component_looks_as_if_it_came_from_another_process():
    whole = torch.randn(4, 6, requires_grad=True)
    for view in (whole[:, 1:], whole[1:], whole.t(), whole[:, :1].expand(4, 3)):
        sent = canonical(view)
        assert sent.is_contiguous() and sent.storage_offset() == 0 and not sent.requires_grad
        torch.testing.assert_close(sent, view.detach())
