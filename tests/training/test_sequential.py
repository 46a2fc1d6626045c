"""The sequential engine from Python, on real data."""

import pytest
import torch
from torch import nn

import alrpc


def digits_network(dataset: alrpc.Dataset) -> alrpc.Network:
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU()), nn.Sequential(nn.Linear(128, 128), nn.ReLU())]
    return alrpc.associate(blocks, dataset.sample, dataset.target)


def test_a_network_of_ones_own_blocks_learns_digits_and_predicts_by_every_exit():
    dataset = alrpc.load_data("digits")
    network = digits_network(dataset)
    exits = alrpc.train(network, dataset, epochs=12, lr=2e-3, target_lr=1e-3)
    assert min(exits) > 0.9
    for number, accuracy in enumerate(exits, 1):
        right = network.predict(dataset.test.inputs, exit=number) == dataset.test.labels
        assert right.float().mean().item() == pytest.approx(accuracy)


def test_a_regression_explains_more_than_its_mean():
    import own_blocks

    dataset = own_blocks.regression()
    network = alrpc.associate(own_blocks.build_for_regression(), dataset.sample, dataset.target)
    exits = alrpc.train(network, dataset, epochs=20, batch_size=32, lr=1e-3)
    variance = dataset.test.labels.var().item()
    assert all(error < 0.75 * variance for error in exits)
    error = (network.predict(dataset.test.inputs) - dataset.test.labels).square().mean().item()
    assert error == pytest.approx(exits[-1], rel=1e-5)


def test_training_twice_gives_the_same_bits_and_leaves_the_callers_generator_alone():
    dataset = alrpc.load_data("digits")
    digests = set()
    for _ in range(2):
        network = digits_network(dataset)
        before = torch.get_rng_state()
        alrpc.train(network, dataset, epochs=1)
        assert torch.equal(torch.get_rng_state(), before)
        digests.add(network.digest())
    assert len(digests) == 1


def test_an_unknown_field_is_named():
    dataset = alrpc.load_data("digits")
    with pytest.raises(alrpc.UserError, match=r"train\.epoch: unknown field; did you mean train\.epochs\?"):
        alrpc.train(digits_network(dataset), dataset, epoch=1)
