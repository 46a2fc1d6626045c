"""Local classifiers against loops over samples, their heads, and their terms."""

import math

import pytest
import torch
from torch import nn

import alrpc
from alrpc.errors import UserError
from alrpc.models.resnet import build as build_resnet
from alrpc.objectives.base import Microbatch
from alrpc.objectives.terms import similarity_loss


def made(**options) -> alrpc.Network:
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(6, 5), nn.ReLU()), nn.Linear(5, 4)]
    return alrpc.decouple(blocks, torch.zeros(2, 6), alrpc.Classes(3), "classifier", **options).double()


def cross_entropy(scores: list[list[float]], labels: list[int], smoothing: float) -> float:
    total = 0.0
    for row, label in zip(scores, labels, strict=True):
        log_sum = math.log(sum(math.exp(value) for value in row))
        for index, value in enumerate(row):
            share = smoothing / len(row) + (1 - smoothing if index == label else 0)
            total -= share * (value - log_sum)
    return total / len(labels)


def cosine(one: list[float], other: list[float]) -> float:
    one, other = ([value - sum(each) / len(each) for value in each] for each in (one, other))
    length = math.sqrt(sum(value**2 for value in one) * sum(value**2 for value in other))
    return sum(a * b for a, b in zip(one, other, strict=True)) / length


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_the_cross_entropy_of_the_head(smoothing):
    network = made(label_smoothing=smoothing)
    x, labels = torch.randn(7, 6, dtype=torch.float64), torch.arange(7) % 3
    component = network.components[0]
    _, (loss,) = component(Microbatch({"x": x}, network.objective.begin(labels)))
    head = component.head[-1]
    scores = (torch.relu(x @ component.block[0].weight.T + component.block[0].bias) @ head.weight.T + head.bias).tolist()
    assert loss.item() == pytest.approx(cross_entropy(scores, labels.tolist(), smoothing), rel=1e-6)  # losses are in float32


def test_a_loss_of_ones_own_takes_the_place_of_the_cross_entropy():
    own, usual = (made(**options).float() for options in ({"loss": "own_recipe:hinge"}, {}))
    x, labels = torch.randn(7, 6), torch.arange(7) % 3
    scores = usual.components[0].head(usual.components[0].block(x))
    _, (loss,) = own.components[0](Microbatch({"x": x}, own.objective.begin(labels)))
    rows = zip(scores.tolist(), labels.tolist(), strict=True)
    margins = [sum(max(0, 1 - row[y] + row[i]) for i in range(3) if i != y) / 3 for row, y in rows]
    assert loss.item() == pytest.approx(sum(margins) / 7, rel=1e-5)
    with pytest.raises(UserError, match=r"objective\.label_smoothing: belongs to the cross entropy"):
        made(loss="own_recipe:hinge", label_smoothing=0.1)
    many = made(loss="own_recipe:a_loss_for_each").float()
    with pytest.raises(UserError, match=r"objective\.loss: own_recipe:a_loss_for_each gave a tensor of shape \(7,\)"):
        many.components[0](Microbatch({"x": x}, many.objective.begin(labels)))


def test_similarity_is_the_squared_difference_of_all_cosines():
    features, labels = torch.randn(6, 5, dtype=torch.float64), [0, 1, 2, 0, 1, 1]
    codes = [[float(index == label) for index in range(3)] for label in labels]
    rows = features.tolist()
    expected = sum((cosine(rows[i], rows[j]) - cosine(codes[i], codes[j])) ** 2 for i in range(6) for j in range(6)) / 36
    assert similarity_loss(features, torch.tensor(codes, dtype=torch.float64)).item() == pytest.approx(expected, rel=1e-9)


def test_the_similarity_of_maps_is_that_of_their_channels_deviations():
    maps = torch.randn(4, 3, 2, 2, dtype=torch.float64)
    deviations = maps.flatten(2).std(dim=2, unbiased=False)
    code = torch.eye(4, dtype=torch.float64)
    assert similarity_loss(maps, code).item() == pytest.approx(similarity_loss(deviations, code).item(), rel=1e-6)


def test_the_shares_of_the_loss_are_told_apart():
    network = made(similarity=0.75)
    x, labels = torch.randn(7, 6, dtype=torch.float64), torch.arange(7) % 3
    _, (alone,) = made().components[0](Microbatch({"x": x}, network.objective.begin(labels)))
    _, (classifier, similarity) = network.components[0](Microbatch({"x": x}, network.objective.begin(labels)))
    assert network.objective.losses == ("classifier", "similarity") and 0 < similarity < 0.75 * 4
    assert classifier.item() == pytest.approx(0.25 * alone.item(), rel=1e-6)


def test_an_ensemble_is_the_mean_of_all_heads_up_to_the_exit():
    one, many = made(), made(ensemble=True)
    many.load_state_dict(one.state_dict())
    x = torch.randn(5, 6, dtype=torch.float64)
    probabilities = [torch.softmax(one(x, exit), dim=1) for exit in (1, 2)]
    expected = torch.log(probabilities[0] * probabilities[1]) / 2
    torch.testing.assert_close(many(x).double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(many(x, 1).double(), torch.log(probabilities[0]), rtol=1e-5, atol=1e-6)
    assert many.count_parameters()["affiliated"] == 0 < one.count_parameters()["affiliated"]


def test_transport_is_what_the_residual_branches_add():
    torch.manual_seed(0)
    blocks = build_resnet(width=4, depths=[2, 1])["blocks"]
    network = alrpc.decouple(blocks, torch.zeros(2, 3, 8, 8), alrpc.Classes(3), "classifier", transport=0.5)
    stem, second, _ = network.components
    batch = Microbatch({"x": torch.randn(5, 3, 8, 8)}, network.objective.begin(torch.arange(5) % 3))
    batch, (_, nothing) = stem(batch)
    assert nothing == 0 and not nothing.requires_grad
    x = batch.tensors["x"]
    expected = 0.0
    for block in second.block:
        branch = block.bn2(block.conv2(block.relu(block.bn1(block.conv1(x)))))
        expected += 0.5 * branch.square().mean().item()
        x = torch.relu(x + branch)
    _, (_, transport) = second(batch)
    assert transport.item() == pytest.approx(expected, rel=1e-5) and transport.requires_grad
    network.predict(torch.zeros(2, 3, 8, 8))  # and evaluation keeps nothing
    assert not any("energy" in vars(module) for module in network.modules())


def test_transport_without_residual_branches_is_refused():
    with pytest.raises(UserError, match=r"objective.transport: no block has residual branches"):
        made(transport=1.0)


def test_reconstruction_is_the_error_of_the_input_as_rebuilt_by_all_blocks_but_the_last():
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)) for _ in range(1)]
    blocks = [nn.ReLU(inplace=True), *blocks, nn.Conv2d(4, 4, 3)]
    network = alrpc.decouple(blocks, torch.zeros(2, 3, 8, 8), alrpc.Classes(3), "classifier", reconstruction=2.0)
    image = torch.randn(5, 3, 8, 8)
    batch = Microbatch({"x": image.clone()}, network.objective.begin(torch.arange(5) % 3))
    for component in network.components[:2]:
        batch, (_, loss) = component(batch)
        with torch.no_grad():
            error = (component.reconstructor(batch.tensors["x"]) - image).square().mean()
        assert loss.item() == pytest.approx(2 * error.item(), rel=1e-5) and loss.requires_grad
    _, (_, nothing) = network.components[2](batch)
    assert nothing == 0 and not hasattr(network.components[2], "reconstructor")
    assert network(image).shape == (5, 3)


def test_reconstruction_of_words_is_refused():
    with pytest.raises(
        UserError, match=r"objective.reconstruction: rebuilds an input of numbers, but the network's holds indices"
    ):
        alrpc.decouple([nn.Embedding(9, 4), nn.Linear(4, 4)], torch.zeros(2, 5).long(), alrpc.Classes(2), reconstruction=1.0)


@pytest.mark.parametrize("head", ["linear", "mlp", "conv", "augmented", "auto"])
def test_every_head_classifies_images(head):
    blocks = [nn.Sequential(nn.LazyConv2d(8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)) for _ in range(3)]
    network = alrpc.decouple(blocks, torch.zeros(2, 3, 16, 16), alrpc.Classes(4), "classifier", head=head)
    network.train()
    batch = Microbatch({"x": torch.randn(1, 3, 16, 16)}, network.objective.begin(torch.zeros(1)))
    for component in network.components:  # of one sample, which a batch norm of one pixel cannot normalise
        batch, (loss,) = component(batch)
        assert loss.isfinite() and loss.requires_grad


def test_an_augmented_head_has_the_architecture_of_later_blocks_but_not_their_parameters():
    network = made(head="augmented", layers=5)
    (copied, _, linear), later = network.components[0].head, network.components[1].block
    assert copied.weight.shape == later.weight.shape and not torch.equal(copied.weight, later.weight)
    assert linear.in_features == 4
    assert [type(module) for module in network.components[1].head] == [nn.Flatten, nn.Linear]


def test_a_block_whose_parameters_cannot_be_drawn_anew_is_named():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(5))

        def forward(self, x):
            return x * self.scale

    with pytest.raises(
        UserError, match=r"objective.head: augmented draws parameters anew, but Scale of block 2 has no reset_parameters"
    ):
        alrpc.decouple([nn.Linear(5, 5), Scale()], torch.zeros(2, 5), alrpc.Classes(2), head="augmented")


def test_a_convolution_of_vectors_is_refused():
    with pytest.raises(UserError, match=r"objective.head: conv classifies images, but block 1 gives \(2, 5\)"):
        made(head="conv")


def test_ones_own_heads_and_pools_take_the_place_of_the_defaults():
    blocks = [nn.Linear(6, 5), nn.Linear(5, 4)]
    head = nn.Linear(5, 3, bias=False)
    network = alrpc.decouple(blocks, torch.zeros(2, 6), alrpc.Classes(3), heads=[head, None])
    assert network.components[0].head is head and network.predict(torch.zeros(2, 6), exit=1).shape == (2,)
    with pytest.raises(UserError, match=r"the head of component 1 gives \(2, 7\); it must give \(2, 3\)"):
        alrpc.decouple(blocks, torch.zeros(2, 6), alrpc.Classes(3), heads=[nn.Linear(5, 7), None])
