"""`alrpc.associate`: sizes are found, parts can be one's own, misfits are named."""

import pytest
import torch
from torch import nn

import alrpc


def shapes(network: alrpc.Network, sample) -> list[tuple]:
    """Shape of every exit's output."""
    return [tuple(network(sample, exit).shape) for exit in range(1, len(network.components) + 1)]


@pytest.mark.parametrize(
    ("blocks", "sample"),
    [
        ([nn.Linear(6, 5), nn.Linear(5, 4)], torch.zeros(3, 6)),
        ([nn.Conv2d(3, 4, 3), nn.Sequential(nn.Conv2d(4, 2, 3), nn.MaxPool2d(2))], torch.zeros(3, 3, 16, 16)),
        ([nn.Embedding(9, 6), nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)], torch.zeros(3, 7, dtype=torch.int64)),
        ([nn.Conv3d(1, 2, 3), nn.Conv3d(2, 2, 1)], torch.zeros(3, 1, 4, 4, 4)),
    ],
    ids=["vectors", "images", "sequences", "volumes"],
)
@pytest.mark.parametrize("target", [alrpc.Classes(10), alrpc.Values(2)])
def test_every_exit_leads_back_to_the_labels(blocks, sample, target):
    network = alrpc.associate(blocks, sample, target, target_width=12, bridge_widths=[20])
    assert shapes(network, sample) == [(3, target.width)] * 2
    assert network.components[1].encoder(torch.zeros(3, 12)).shape == (3, 12)


def test_lazy_modules_take_their_sizes_from_the_sample():
    network = alrpc.associate([nn.LazyLinear(5), nn.LazyLinear(4)], torch.zeros(2, 9), alrpc.Classes(3))
    assert network.components[0].block.weight.shape == (5, 9)
    assert network.components[1].block.weight.shape == (4, 5)


def test_the_sample_moves_no_buffer_and_no_mode():
    norm = nn.BatchNorm1d(4)
    network = alrpc.associate([nn.Sequential(norm, nn.Dropout())], torch.full((8, 4), 7.0), alrpc.Classes(2))
    assert norm.running_mean.abs().sum() == 0 and norm.num_batches_tracked == 0
    assert norm.training and network.components[0].block[1].training


def test_tokens_that_the_mask_hides_do_not_count():
    network = alrpc.associate([nn.Identity()], {"x": torch.zeros(1, 4, 3), "mask": torch.ones(1, 4) > 0}, alrpc.Classes(2))
    x, mask = torch.randn(1, 4, 3), torch.tensor([[True, True, False, False]])
    changed = x.clone()
    changed[:, 2:] = 99
    torch.testing.assert_close(network({"x": x, "mask": mask}), network({"x": changed, "mask": mask}))
    torch.testing.assert_close(network({"x": x, "mask": mask}), network({"x": x[:, :2], "mask": mask[:, :2]}))


def test_a_small_image_is_flattened_and_a_large_one_pooled_to_a_grid():
    small = alrpc.associate([nn.Identity()], torch.zeros(1, 2, 4, 4), alrpc.Classes(2))
    large = alrpc.associate([nn.Identity()], torch.zeros(1, 2, 64, 64), alrpc.Classes(2))
    assert small.components[0].bridge[1].in_features == large.components[0].bridge[1].in_features == 2 * 4 * 4
    flat = alrpc.associate([nn.Identity()], torch.zeros(1, 2, 64, 64), alrpc.Classes(2), pooling="flatten")
    assert flat.components[0].bridge[1].in_features == 2 * 64 * 64


def test_parts_of_ones_own_are_used_as_they_are():
    bridge, encoder, decoder = nn.Linear(5, 3), nn.Linear(10, 3), nn.Linear(3, 10)
    nothing = nn.Sequential()  # an empty module is a module too
    network = alrpc.associate(
        [nn.Linear(6, 5), nn.Linear(5, 4)],
        torch.zeros(2, 6),
        alrpc.Classes(10),
        bridges=[bridge, None],
        encoders=[encoder, nothing],
        decoders=[decoder, None],
    )
    first, second = network.components
    assert (first.bridge, first.encoder, first.decoder) == (bridge, encoder, decoder)
    assert second.encoder is nothing
    assert second.bridge[-2].out_features == second.decoder[0].out_features == 3  # found from the encoders


def test_a_regression_is_not_squashed_by_its_last_decoder():
    network = alrpc.associate([nn.Linear(2, 2)], torch.zeros(1, 2), alrpc.Values(1), decoder_activation="sigmoid")
    assert isinstance(network.components[0].decoder[-1], nn.Identity)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"blocks": []}, "at least one block"),
        ({"blocks": [nn.Linear(6, 5), nn.Linear(4, 4)]}, r"block 2 \(Linear\) fails on x \(2, 5\)"),
        ({"bridges": [nn.Linear(5, 7)]}, r"bridge of component 1 gives \(2, 7\), its encoder \(2, 128\)"),
        ({"decoders": [nn.Linear(128, 9)]}, r"decoder of component 1 gives \(2, 9\)"),
        ({"encoders": [nn.Linear(9, 9)]}, r"the encoder of component 1 .* fails"),
        ({"bridges": [None, None]}, "bridges: got 2 for 1 blocks"),
        ({"bridges": nn.Linear(5, 7)}, "bridges: got Linear; give a list of modules"),
        ({"pools": ["mean"]}, "pools: number 1 is str; each must be an nn.Module"),
        ({"blocks": nn.Linear(6, 5)}, "blocks: got Linear; give a list of modules"),
        ({"blocks": [nn.Linear(6, 5), torch.relu]}, "blocks: number 2 is relu; each must be an nn.Module"),
        ({"sample_input": [1.0, 2.0]}, "sample_input: got list; give a tensor"),
        ({"sample_input": {}}, "sample_input: got dict; give a tensor"),
        ({"sample_input": torch.zeros(0, 6)}, r"sample_input: got a tensor \(0, 6\); give a tensor of at least one sample"),
        ({"target": 10}, r"target: got 10; give alrpc.Classes\(count\)"),
        ({"pooling": "maen"}, r"objective\.pooling: got 'maen'; it should be 'auto', 'flatten', 'mean' or 'grid'"),
        (
            {"activation": "rule"},
            r"objective\.activation: got 'rule'; it should be 'sigmoid', 'tanh', 'relu', 'gelu' or 'none'",
        ),
        ({"decoder_activation": "softmax"}, r"objective\.decoder_activation: got 'softmax'; it should be"),
        ({"associated_loss": "l1"}, r"objective\.associated_loss: got 'l1'; it should be 'mse' or 'smooth_l1'"),
        ({"autoencoder_loss": "crossentropy"}, r"objective\.autoencoder_loss: got 'crossentropy'; it should be 'mse' or"),
        ({"target_width": 0}, r"objective\.target_width: got 0; it should be greater than 0"),
        ({"bridge_widths": [20, -1]}, r"objective\.bridge_widths\.1: got -1; it should be greater than 0"),
    ],
)
def test_what_does_not_fit_is_named(arguments, message):
    with pytest.raises(alrpc.UserError, match=message):
        alrpc.associate(
            **{"blocks": [nn.Linear(6, 5)], "sample_input": torch.zeros(2, 6), "target": alrpc.Classes(10), **arguments}
        )


def test_a_parameter_of_two_components_is_refused():
    shared = nn.Linear(4, 4)
    with pytest.raises(alrpc.UserError, match="components 1 and 2 share"):
        alrpc.associate([shared, nn.Sequential(shared, nn.ReLU())], torch.zeros(1, 4), alrpc.Classes(2))


def test_a_block_that_gives_its_own_parameter_is_refused():
    class Leaky(nn.Linear):
        gives = ("x", "weight")

        def forward(self, x):
            return super().forward(x), self.weight

    with pytest.raises(alrpc.UserError, match="block 1 gives one of its own parameters or buffers as 'weight'"):
        alrpc.associate([Leaky(4, 4)], torch.zeros(1, 4), alrpc.Classes(2))


def test_a_tensor_with_a_name_of_the_engines_is_refused():
    with pytest.raises(alrpc.UserError, match="the sample gives a tensor 'label'"):
        alrpc.associate([nn.Identity()], {"x": torch.zeros(1, 4), "label": torch.zeros(1)}, alrpc.Classes(2))


def test_a_block_that_gives_other_than_it_says_is_named():
    class Pair(nn.Module):
        def forward(self, x):
            return x, x

    with pytest.raises(alrpc.UserError, match=r"block 1 .* not one tensor"):
        alrpc.associate([Pair()], torch.zeros(1, 4), alrpc.Classes(2))
