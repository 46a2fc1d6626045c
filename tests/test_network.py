import copy

import pytest
import torch
from torch import nn

import alrpc


@pytest.fixture
def network() -> alrpc.Network:
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5)), nn.Linear(5, 4), nn.Linear(4, 3)]
    return alrpc.associate(blocks, torch.zeros(1, 6), alrpc.Classes(7), target_width=8, bridge_widths=[9])


def test_exit_l_is_the_bridge_of_l_decoded_by_h_l_to_h_1(network):
    x = torch.randn(5, 6)
    network.eval()
    one, two, three = network.components
    s2 = two.block(one.block(x))
    torch.testing.assert_close(network(x, exit=2), one.decoder(two.decoder(two.bridge(s2))))
    s3 = three.block(s2)
    torch.testing.assert_close(network(x), one.decoder(two.decoder(three.decoder(three.bridge(s3)))))
    with pytest.raises(ValueError, match="exits 1 to 3"):
        network(x, exit=4)


def test_prediction_is_in_evaluation_mode_and_leaves_the_mode_alone(network):
    network.train()
    network.components[1].eval()
    before = network.digest()
    classes = network.predict(torch.randn(5, 6))
    assert classes.shape == (5,) and classes.dtype == torch.int64
    assert network.digest() == before  # batch norm saw nothing
    assert network.components[0].training and not network.components[1].training


def test_effective_parameters_are_all_f_all_h_and_the_last_b(network):
    def size(*modules):
        return sum(p.numel() for module in modules for p in module.parameters())

    one, two, three = network.components
    effective = size(one.block, two.block, three.block, one.decoder, two.decoder, three.decoder, three.bridge)
    assert network.count_parameters() == {"effective": effective, "affiliated": size(network) - effective}


def test_the_digest_is_over_every_parameter_and_buffer(network):
    for name in network.state_dict():
        other = copy.deepcopy(network)
        other.state_dict()[name].add_(1)
        assert other.digest() != network.digest(), name
    assert copy.deepcopy(network).digest() == network.digest()
