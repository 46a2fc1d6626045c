"""`alrpc.cut`: blocks of a model, and the warning of blocks that have nothing to learn."""

import itertools
import random
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional

import alrpc
from alrpc.errors import Advice
from alrpc.models.graph import split_consecutive


def features(*channels: int) -> nn.Sequential:
    """Convolutions as in VGG, each with batch norm, ReLU and a max pool."""
    layers = []
    for before, after in itertools.pairwise((3, *channels)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    return nn.Sequential(*layers)


def through(blocks: list[nn.Sequential], x: torch.Tensor) -> torch.Tensor:
    for block in blocks:
        x = block(x)
    return x


def shapes(blocks: list[nn.Sequential]) -> list[list[int]]:
    """The output channels of the convolutions of each block."""
    return [[layer.out_channels for layer in block if isinstance(layer, nn.Conv2d)] for block in blocks]


IMAGES = torch.randn(2, 3, 32, 32)


def test_a_convolutional_network_is_cut_where_its_convolutions_begin():
    model = features(8, 16, 16, 32).eval()
    for count in (1, 2, 3, 4):
        blocks = alrpc.cut(model, count, IMAGES)
        assert len(blocks) == count and all(isinstance(block[0], nn.Conv2d) for block in blocks)
        assert torch.equal(through(blocks, IMAGES), model(IMAGES))
        assert {id(p) for block in blocks for p in block.parameters()} == {id(p) for p in model.parameters()}


def test_a_sample_tells_what_is_expensive():
    """The first convolutions have few parameters, but large images."""
    assert shapes(alrpc.cut(features(8, 16, 16, 32), 3)) == [[8, 16], [16], [32]]
    assert shapes(alrpc.cut(features(8, 16, 16, 32), 3, IMAGES)) == [[8], [16], [16, 32]]


def test_named_children_are_cut_apart_within_each_other():
    def model():
        head = nn.Sequential(nn.Flatten(), nn.LazyLinear(32), nn.ReLU(), nn.LazyLinear(3))
        return {"stem": nn.Conv2d(3, 4, 3), "body": nn.Sequential(features(3, 6), nn.Sequential(head))}

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            for name, child in model().items():
                self.add_module(name, child)

        def forward(self, x):
            return self.body(self.stem(x))

    for whole in (nn.Sequential(*model().values()), Net()):
        whole.get_submodule("1.0" if isinstance(whole, nn.Sequential) else "body.0")[0] = nn.Conv2d(4, 3, 3)
        blocks = alrpc.cut(whole, 5, {"x": IMAGES})
        assert [type(block[0]) for block in blocks] == [nn.Conv2d] * 3 + [nn.Linear] * 2  # Flatten is with the last convolution
        whole.eval()
        assert torch.equal(through(blocks, IMAGES), whole(IMAGES))


def test_a_module_that_is_used_twice_stays_in_both_places():
    relu = nn.ReLU()
    model = nn.Sequential(nn.Linear(4, 4), relu, nn.Linear(4, 4), relu)
    assert [len(block) for block in alrpc.cut(model, 2)] == [2, 2]


def test_a_split_has_the_cheapest_most_expensive_part():
    draw = random.Random(0)
    for count, parts in itertools.product((1, 4, 7), (1, 2, 3, 4)):
        costs = [draw.randint(0, 9) for _ in range(count)]
        sizes = split_consecutive(costs, parts)
        cuts = [(0, *cut, count) for cut in itertools.combinations(range(1, count), parts - 1)]
        if not cuts:
            assert sizes == []
            continue
        ends = (0, *itertools.accumulate(sizes))
        assert len(sizes) == parts and ends[-1] == count and min(sizes) > 0
        largest = [max(sum(costs[first:end]) for first, end in itertools.pairwise(cut)) for cut in (ends, *cuts)]
        assert largest[0] == min(largest)
    assert split_consecutive([9, 1, 1, 1, 1], 3) == [1, 2, 2]


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return x + self.other(self.one(x))


class Dropping(Residual):
    def forward(self, x):
        return self.other(functional.dropout(self.one(x), training=self.training))


class Noisy(Residual):
    def forward(self, x):
        return self.other(self.one(x)) + torch.randn(4)


class Branching(Residual):
    def forward(self, x):
        return self.one(x) if x.sum() > 0 else self.other(x)


class Named(Residual):
    def forward(self, x):
        return {"x": self.one(x)}


class Net(nn.Module):
    """Residuals one after another, with functions between them and with an argument that is never given."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = Residual(), nn.Sequential(Residual(), Residual()), nn.Linear(4, 2)
        self.scale = nn.Parameter(torch.rand(4))

    def forward(self, x, noise=None):
        if noise is not None:
            x = x + noise
        return self.head(torch.relu(self.second(self.first(x).flatten(1)) * self.scale))


def test_a_model_of_more_than_children_is_cut_where_one_tensor_passes():
    model, x = Net(), torch.randn(3, 4)
    before = torch.get_rng_state()
    for sample in (None, x):
        blocks = alrpc.cut(model, 4, sample)
        assert torch.equal(through(blocks, x), model(x))
        assert [{name.partition(".")[0] for name in block.state_dict()} for block in blocks] == [
            {"first"},
            {"second"},
            {"second", "scale"},
            {"head"},
        ]
    assert torch.equal(torch.get_rng_state(), before) and all(module.training for module in model.modules())
    model.second[1] = model.first
    assert len(alrpc.cut(model, 2)) == 2  # the residual that is used twice stays in one block
    with pytest.raises(alrpc.UserError, match="n: got 3; the model can be cut into 1 to 2 blocks"):
        alrpc.cut(model, 3)


@pytest.mark.parametrize(
    ("model", "n", "sample", "message"),
    [
        (features(8, 8), 3, None, "n: got 3; the model has 2 children with weights, use 1 to 2"),
        (features(8, 8), 0, None, "n: got 0; "),
        (features(8, 8), "2", None, "n: got '2'; "),
        (features(8, 8), 2, torch.zeros(1, 4, 8, 8), r"group 1 of the model's children .* fails on x \(1, 4, 8, 8\)"),
        (features(8, 8), 2, [1, 2], "sample: got list; give a tensor"),
        (features(8, 8), 2, {"words": IMAGES}, "sample: has no tensor 'x'"),
        (nn.Sequential(nn.ReLU()), 1, None, "model: none of its children has weights"),
        (nn.Sequential(nn.LazyLinear(2)), 1, None, "model: has lazy modules, whose sizes are not known yet; give cut a sample"),
        ([nn.Linear(2, 2)], 1, None, "model: got list; give an nn.Sequential"),
        (Residual(), 2, None, "n: got 2; the model can be cut into 1 to 1 blocks, where one tensor passes"),
        (
            Dropping(),
            2,
            torch.randn(1, 4),
            "model: Dropping cannot be cut: it does other things in training .* from dropout on",
        ),
        (Noisy(), 1, None, "model: Noisy cannot be cut: its forward draws random numbers outside its modules"),
        (Branching(), 1, torch.randn(1, 4), "model: Branching cannot be cut: .* torch.fx can trace: TraceError: "),
        (Named(), 1, torch.randn(1, 4), "model: Named cannot be cut: it gives several tensors; it must give one"),
        (nn.ModuleList([nn.Linear(4, 4)]), 1, torch.randn(1, 4), "model: ModuleList cannot be cut: "),
    ],
)
def test_what_cannot_be_cut_is_told(model, n, sample, message):
    with pytest.raises(alrpc.UserError, match=message):
        alrpc.cut(model, n, sample)


def test_a_check_of_the_order_leaves_the_model_and_the_generator_alone():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 4))
    whole = nn.Module()
    whole.inner = model
    whole.forward = model.forward
    before, state = {name: value.clone() for name, value in whole.state_dict().items()}, torch.get_rng_state()
    alrpc.cut(whole, 2, torch.randn(1, 4, generator=torch.Generator().manual_seed(0)))
    assert all(torch.equal(before[name], value) for name, value in whole.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_blocks_that_have_nothing_to_learn_are_told_in_one_line():
    with pytest.warns(Advice) as told:
        alrpc.associate(list(features(8, 8)), IMAGES, alrpc.Classes(2))
    message = str(told[0].message)
    assert len(told) == 1 and "\n" not in message and told[0].filename == __file__
    assert message.startswith("blocks without parameters: 3 (ReLU), 4 (MaxPool2d), 7 (ReLU) and 1 more, of 8; each")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        alrpc.associate(alrpc.cut(features(8, 8), 2, IMAGES), IMAGES, alrpc.Classes(2))
