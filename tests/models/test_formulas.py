"""The updates of each network against the formulas of associated learning, written out plainly."""

import copy

import pytest
import torch
from torch import nn

import alrpc
from alrpc.config import Train, load_config
from alrpc.network import build_network, resolve
from alrpc.objectives.base import Microbatch, eval_mode
from alrpc.training.optimizer import Recipe
from alrpc.training.step import forward, make_trainer, make_trainers, seed_step, update

CPU = torch.device("cpu")
NETWORKS = {
    "mlp": ["model.name=mlp", "model.widths=[8,8]", "model.batch_norm=true", "model.dropout=0.1"],
    "vgg": ["model.name=vgg", "model.channels=[[4,M],[6,M]]", "objective.bridge_widths=[10]", "objective.target_width=7"],
    "resnet": ["model.name=resnet", "model.width=4", "model.depths=[1,1]", "objective.bridge_widths=[10]"],
    "lstm": ["model.name=lstm", "model.vocabulary=20", "model.width=8", "model.hidden=6"],
    "transformer": ["model.name=transformer", "model.vocabulary=20", "model.width=8", "model.heads=2", "model.layers=2"],
}


def micro_batch(name):
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(0, 3, (5,), generator=generator)
    if name in ("lstm", "transformer"):
        mask = torch.arange(6) < torch.tensor([6, 2, 4, 1, 5]).unsqueeze(1)
        return {"x": torch.randint(2, 20, (5, 6), generator=generator) * mask, "mask": mask}, labels
    return {"x": torch.randn(5, 3, 8, 8, generator=generator)}, labels


def plain_block(block, tensors):
    """s_l = f_l(s_{l-1}), and what travels beside it."""
    takes, names = getattr(block, "takes", ("x",)), getattr(block, "gives", ("x",))
    output = block(*(tensors[name] for name in takes))
    return {**tensors, **dict(zip(names, output if isinstance(output, tuple) else (output,), strict=True))}


def plain_bridge_input(name, number, tensors):
    """What the thesis puts into b_l: a flattened image; the mean over the words; the sum of both last hidden states."""
    if name == "lstm" and number > 1:
        return tensors["h"][:, 0] + tensors["h"][:, 1]
    if name in ("lstm", "transformer"):
        rows = [x[: int(mask.sum())].mean(dim=0) for x, mask in zip(tensors["x"], tensors["mask"], strict=True)]
        return torch.stack(rows)
    return tensors["x"].reshape(len(tensors["x"]), -1)


def plain_losses(config, component, number, s, t):
    """What leaves the block, t_l, and the two losses of component `number`, from the reference page's formulas."""
    sigma = torch.sigmoid if config.objective.activation == "sigmoid" else torch.tanh
    out = plain_block(component.block, s)
    bridged = plain_bridge_input(config.model.name, number, out)
    for layer in component.bridge.modules():
        if isinstance(layer, nn.Linear):
            bridged = sigma(bridged @ layer.weight.T + layer.bias)
    g, h = (next(m for m in part.modules() if isinstance(m, nn.Linear)) for part in (component.encoder, component.decoder))
    encoded = sigma(t @ g.weight.T + g.bias)
    decoded = encoded @ h.weight.T + h.bias
    if config.objective.decoder_activation == "sigmoid":
        decoded = torch.sigmoid(decoded)
    associated = ((bridged - encoded.detach()) ** 2).mean()
    if config.objective.autoencoder_loss == "cross_entropy" and number == 1:
        autoencoder = -(t * torch.log_softmax(decoded, dim=1)).sum(dim=1).mean()
    else:
        autoencoder = ((decoded - t) ** 2).mean()
    return {key: value.detach() for key, value in out.items()}, encoded.detach(), associated, autoencoder


@pytest.mark.parametrize("name", NETWORKS)
def test_losses_and_gradients_of_the_first_update_are_those_of_the_formulas(name):
    config, _ = resolve(load_config(None, NETWORKS[name]))
    tensors, labels = micro_batch(name)
    network = build_network(config, tensors, alrpc.Classes(3))
    plain = copy.deepcopy(network)
    # One step of plain gradient descent with rate 1 moves each parameter by its gradient.
    recipe = Recipe(Train(optimizer="sgd", momentum=0, lr=1.0, schedule="constant"), 1)
    s, t = tensors, torch.eye(3)[labels]
    plain_s, plain_t = tensors, torch.eye(3)[labels]
    for number, (component, reference) in enumerate(zip(network.components, plain.components, strict=True), 1):
        before = copy.deepcopy(component.state_dict())
        trainer = make_trainer(component, recipe, CPU)
        output = forward(trainer, Microbatch(s, {"target": t}), 0)
        losses, _ = update(trainer, output, 0)
        s, t = output.batch.tensors, output.batch.beside["target"]

        reference.train()
        seed_step(CPU, config.train.seed, number, 0)  # the same dropout
        plain_s, plain_t, associated, autoencoder = plain_losses(config, reference, number, plain_s, plain_t)
        names, parameters = zip(*reference.named_parameters(), strict=True)
        gradients = torch.autograd.grad(associated + autoencoder, parameters, allow_unused=True)

        assert losses[0].item() == pytest.approx(associated.item(), abs=1e-6)
        assert losses[1].item() == pytest.approx(autoencoder.item(), abs=1e-6)
        after = dict(component.named_parameters())
        for parameter, gradient in zip(names, gradients, strict=True):
            moved = before[parameter] - after[parameter]
            wanted = torch.zeros_like(moved) if gradient is None else gradient
            torch.testing.assert_close(moved, wanted, atol=1e-6, rtol=1e-5, msg=lambda text, p=parameter: f"{p}: {text}")
        assert any(gradient is not None and gradient.abs().max() > 0 for gradient in gradients)
        for key, value in plain_s.items():
            torch.testing.assert_close(s[key], value, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_thirty_updates_with_adam_learn_what_a_plain_loop_learns(name):
    config, _ = resolve(load_config(None, NETWORKS[name]))
    tensors, labels = micro_batch(name)
    network = build_network(config, tensors, alrpc.Classes(3))
    plain = copy.deepcopy(network)
    recipe = Recipe(Train(lr=1e-3, target_lr=5e-4, schedule="constant"), 30)
    trainers = make_trainers(network.components, recipe, CPU)
    one_hot = torch.eye(3)[labels]
    losses = []
    for step in range(30):
        batch, of_components = Microbatch(tensors, {"target": one_hot}), []
        for trainer in trainers:
            output = forward(trainer, batch, step)
            of_components += update(trainer, output, step)[0]
            batch = output.batch
        losses.append([loss.item() for loss in of_components])

    optimizers = [
        (
            torch.optim.Adam([*component.block.parameters(), *component.bridge.parameters()], lr=1e-3),
            torch.optim.Adam([*component.encoder.parameters(), *component.decoder.parameters()], lr=5e-4),
        )
        for component in plain.components
    ]
    plain_loss = []
    for step in range(30):
        s, t, of_step = tensors, one_hot, []
        for number, (component, pair) in enumerate(zip(plain.components, optimizers, strict=True), 1):
            seed_step(CPU, config.train.seed, number, step)  # the same dropout
            s, t, *both = plain_losses(config, component.train(), number, s, t)
            for optimizer, loss in zip(pair, both, strict=True):
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            of_step += [loss.item() for loss in both]
        plain_loss.append(of_step)
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(plain_loss), atol=1e-4, rtol=1e-3)
    assert losses[-1][0] < losses[0][0] and losses[-1][1] < losses[0][1]
    for depth in range(1, len(plain.components) + 1):
        with eval_mode(network), eval_mode(plain), torch.no_grad():
            torch.testing.assert_close(network(tensors, depth), plain(tensors, depth), atol=1e-3, rtol=1e-3)
