import math
import re

import pytest
import torch

import alrpc
from alrpc.config import check_config, load_config
from alrpc.errors import UserError
from alrpc.network import check_rates
from alrpc.training.lars import LARS
from alrpc.training.optimizer import learning_rate, make_optimizer, make_recipe


def test_schedules_begin_and_end_where_they_should():
    for schedule in ("linear", "cosine"):
        assert learning_rate(schedule, 1.0, 0.1, 0, 11) == pytest.approx(1.0)
        assert learning_rate(schedule, 1.0, 0.1, 10, 11) == pytest.approx(0.1)
        assert learning_rate(schedule, 1.0, 0.1, 5, 11) == pytest.approx(0.55)
    assert learning_rate("linear", 1.0, 0.1, 2, 11) == pytest.approx(0.82)
    assert learning_rate("cosine", 1.0, 0.0, 2, 9) == pytest.approx((1 + 2**-0.5) / 2)  # cos(pi / 4)
    assert learning_rate("constant", 1.0, 0.1, 7, 11) == 1.0
    assert learning_rate("cosine", 1.0, 0.1, 0, 1) == 1.0


def test_rates_rise_in_equal_steps_and_then_follow_the_schedule():
    rates = [learning_rate("linear", 1.0, 0.1, step, 14, warmup=3) for step in range(14)]
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert rates[3:] == pytest.approx([learning_rate("linear", 1.0, 0.1, step, 11) for step in range(11)])
    config = load_config(None, ["train.warmup=1.5", "train.accumulate=2"])
    assert make_recipe(config, micro_batches=9).warmup == 8  # of 5 optimizer steps an epoch


def test_lars_moves_each_tensor_by_its_own_rate():
    weight, bias = [[3.0, 0.0], [0.0, 4.0]], [1.0, 2.0]
    parameters = [torch.nn.Parameter(torch.tensor(value, dtype=torch.float64)) for value in (weight, bias)]
    optimizer = LARS(parameters, lr=0.5, momentum=0.9, weight_decay=0.1)
    slopes = ([[0.0, 6.0], [8.0, 0.0]], [0.5, -0.5])
    moved = [[[0.0, 0.0], [0.0, 0.0]], [0.0, 0.0]]
    for _ in range(2):
        length = math.sqrt(sum(value**2 for row in weight for value in row))
        rate = 0.001 * length / (10.0 + 0.1 * length)
        for i in range(2):
            for j in range(2):
                moved[0][i][j] = 0.9 * moved[0][i][j] + 0.5 * rate * (slopes[0][i][j] + 0.1 * weight[i][j])
                weight[i][j] -= moved[0][i][j]
            moved[1][i] = 0.9 * moved[1][i] + 0.5 * slopes[1][i]  # neither decay nor a rate of its own
            bias[i] -= moved[1][i]
        for parameter, slope in zip(parameters, slopes, strict=True):
            parameter.grad = torch.tensor(slope, dtype=torch.float64)
        optimizer.step()
    assert parameters[0].flatten().tolist() == pytest.approx([value for row in weight for value in row], rel=1e-12)
    assert parameters[1].tolist() == pytest.approx(bias, rel=1e-12)


def test_lars_takes_tensors_of_zeros():
    parameter = torch.nn.Parameter(torch.zeros(2, 2))
    optimizer = LARS([parameter], lr=0.5)
    for slope, expected in ((0.0, 0.0), (1.0, -0.5)):
        parameter.grad = torch.full((2, 2), slope)
        optimizer.step()
        assert torch.equal(parameter.detach(), torch.full((2, 2), expected))


def made(*fields: str) -> torch.optim.Optimizer:
    recipe = make_recipe(load_config(None, fields), micro_batches=9)
    return make_optimizer({"lr": [torch.nn.Parameter(torch.ones(2))]}, recipe)


def test_what_is_configured_reaches_the_optimizer():
    assert made("train.betas=[0.8, 0.95]").defaults["betas"] == (0.8, 0.95)
    assert made("train.optimizer=sgd", "train.nesterov=true").defaults["nesterov"]
    assert made("train.optimizer=lars", "train.momentum=0.5", "train.weight_decay=1e-4").defaults["weight_decay"] == 1e-4
    own = made("train.optimizer=own_recipe:rmsprop", "train.lr=0.25", "train.weight_decay=0.5")
    assert isinstance(own, torch.optim.RMSprop) and (own.defaults["lr"], own.defaults["weight_decay"]) == (0.25, 0.5)
    assert learning_rate("own_recipe:halved", 1.0, 0.1, 2, 9) == 0.25


def test_groups_of_ones_own_have_rates_of_their_own():
    recipe = make_recipe(load_config(None, ["train.group_lr={gate: 0.25}"]), micro_batches=9)
    groups = {name: [torch.nn.Parameter(torch.ones(2))] for name in ("lr", "gate")}
    assert [group["initial_lr"] for group in make_optimizer(groups, recipe).param_groups] == [2e-3, 0.25]
    with pytest.raises(UserError, match=r"train\.group_lr: got lr, which is a field of its own: train\.lr"):
        check_config(load_config(None, ["train.group_lr={lr: 0.25}"]))
    network = alrpc.decouple([torch.nn.Linear(4, 4)], torch.zeros(2, 4), alrpc.Classes(2))
    with pytest.raises(UserError, match=r"train\.group_lr: got gate, but the objective's groups of parameters are lr"):
        check_rates(network, recipe.train)
    with pytest.raises(UserError, match=r"train\.group_lr: has no dial, a group of parameters of the objective"):
        make_optimizer({"dial": groups["gate"]}, recipe)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_recipe:no_optimizer", "own_recipe:no_optimizer gave int; it must give a torch.optim.Optimizer"),
        ("own_recipe:raises", "own_recipe:raises raised ValueError: no such thing"),
        ("own_recipe:exits", "own_recipe:exits called sys.exit(3)"),
        ("own_recipe:absent", "module 'own_recipe' has no 'absent'"),
    ],
)
def test_an_optimizer_of_ones_own_that_is_none_is_refused(name, message):
    with pytest.raises(UserError, match=re.escape(message)):
        made(f"train.optimizer={name}")
