"""The thesis' networks: their sizes, what travels between their blocks, and what padding must not change."""

import inspect
from pathlib import Path

import pytest
import torch

import alrpc
from alrpc.analysis.quality import inspect_run
from alrpc.config import load_config
from alrpc.data.augmentation import augment
from alrpc.data.dataset import WordVectors
from alrpc.errors import UsageError
from alrpc.models import mlp
from alrpc.models.attention import SelfAttention
from alrpc.models.build import FUNCTIONS
from alrpc.models.dropout import Dropout
from alrpc.models.pooling import choose_pool
from alrpc.models.resnet import build as build_resnet
from alrpc.models.transformer import EncoderLayer
from alrpc.network import begin_network, build_network, resolve
from alrpc.training.step import seed_step

CLASSES = alrpc.Classes(5)


def build(*overrides, sample):
    config, components = resolve(load_config(None, overrides))
    network = build_network(config, sample, CLASSES)
    assert components == len(network.components)
    return network


def words(rows=2, length=7):
    return {"x": torch.randint(2, 50, (rows, length)), "mask": torch.ones(rows, length, dtype=torch.bool)}


def test_the_defaults_are_the_thesis_networks():
    vgg = build("model.name=vgg", sample=torch.zeros(1, 3, 32, 32))
    assert [len([m for m in c.block if isinstance(m, torch.nn.Conv2d)]) for c in vgg.components] == [2, 2, 1, 1]
    assert [tuple(layer.weight.shape) for layer in vgg.components[-1].bridge if hasattr(layer, "weight")] == [
        (1000, 2048),
        (700, 1000),
    ]
    assert vgg.components[0].encoder[0].weight.shape == (700, 5)
    assert isinstance(vgg.components[0].decoder[1], torch.nn.Sigmoid)

    resnet, components = resolve(load_config(None, ["model.name=resnet"]))
    assert components == 5 and resnet.objective.bridge_widths == [1000]

    lstm = build("model.name=lstm", sample=words())
    assert len(lstm.components) == 4 and lstm.components[0].block.weight.shape == (30_000, 300)
    assert [c.block.lstm.input_size for c in lstm.components[1:]] == [300, 512, 512]
    transformer = build("model.name=transformer", sample=words())
    layer = transformer.components[1].block.layer
    assert (layer.self_attn.num_heads, layer.linear1.out_features, layer.norm_first) == (6, 256, True)
    for network in (lstm, transformer):
        assert network.objective.by_cross_entropy
        assert network.components[1].encoder[0].out_features == 128


def test_the_parts_of_a_resnet_are_shared_out_among_components():
    images = torch.randn(2, 3, 16, 16)
    outputs = []
    for components, sizes in ((None, [1, 2, 1]), ([2, 2], [2, 2]), ([4], [4])):
        torch.manual_seed(0)
        blocks = build_resnet(width=4, depths=[2, 1], pool=True, components=components)["blocks"]
        branches = [name for block in blocks for name in getattr(block, "residual_branches", ())]
        assert len(blocks) == len(sizes) and len(branches) == 3
        x = images
        for block in blocks:
            x = block(x)
        outputs.append(x)
    assert outputs[0].shape == (2, 8, 4, 4) and all(torch.equal(outputs[0], output) for output in outputs[1:])
    with pytest.raises(
        UsageError, match=r"model\.components: got \[2, 1\], 3 parts; there are 4, the stem and 3 residual blocks"
    ):
        build_resnet(width=4, depths=[2, 1], components=[2, 1])


def test_what_the_file_says_of_the_objective_beats_the_models_default():
    config, _ = resolve(load_config(None, ["model.name=vgg", "objective.activation=relu"]))
    assert (config.objective.activation, config.objective.target_width) == ("relu", 700)


def test_the_vocabulary_of_the_data_is_the_models_unless_it_has_its_own():
    config, _ = resolve(load_config(None, ["model.name=lstm", "data.vocabulary=100"]))
    assert config.model.fields["vocabulary"] == 100


@pytest.mark.parametrize("name", ["lstm", "transformer"])
def test_padding_changes_no_prediction(name):
    torch.manual_seed(0)
    network = build(f"model.name={name}", "model.vocabulary=50", "model.width=12", sample=words())
    short = words(1, 4)
    padded = {
        "x": torch.cat([short["x"], torch.zeros(1, 5, dtype=torch.long)], dim=1),
        "mask": torch.arange(9).unsqueeze(0) < 4,
    }
    longer = words(1, 9)
    both = {key: torch.cat([padded[key], longer[key]]) for key in padded}
    network.eval()
    for exit in range(1, 5):
        alone = network(short, exit)
        torch.testing.assert_close(network(padded, exit), alone, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(network(both, exit)[:1], alone, atol=1e-6, rtol=1e-5)


def test_an_encoder_layer_whose_input_needs_no_gradient_learns_what_pytorchs_own_does():
    layer = EncoderLayer(width=8, heads=2, feed_forward=12, dropout=0.2).double()
    torch.nn.init.normal_(layer.layer.norm1.weight)
    torch.nn.init.normal_(layer.layer.norm1.bias)
    x, mask = torch.randn(3, 5, 8, dtype=torch.float64), torch.arange(5) < torch.tensor([[5], [2], [4]])
    weights = torch.randn(3, 5, 8, dtype=torch.float64)
    results = []
    for call in (lambda: layer(x, mask), lambda: layer.layer(x, src_key_padding_mask=~mask)):
        seed_step(torch.device("cpu"), 0, 1, 0)  # the same dropout
        layer.zero_grad()
        output = call()
        (output * weights).sum().backward()
        results.append((output, *(parameter.grad for parameter in layer.parameters())))
    torch.testing.assert_close(*results)


def test_an_encoder_layer_is_pytorchs_own():
    theirs = torch.nn.TransformerEncoderLayer(8, 2, 12, dropout=0, batch_first=True, norm_first=True).double()
    own = EncoderLayer(width=8, heads=2, feed_forward=12, dropout=1e-12).double()  # goes its own way and drops nothing
    own.layer.load_state_dict(theirs.state_dict())
    x, mask = torch.randn(3, 5, 8, dtype=torch.float64), torch.arange(5) < torch.tensor([[5], [2], [4]])
    weights = torch.randn(3, 5, 8, dtype=torch.float64)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = own(inputs[0], mask), theirs(inputs[1], src_key_padding_mask=~mask)
    for output in outputs:
        (output * weights).sum().backward()
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
    for parameter, their in zip(own.layer.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, their.grad)
    assert own(x, torch.zeros_like(mask)).isfinite().all()  # samples without a word


def test_attention_drops_weights_and_scales_those_that_it_keeps():
    attention = SelfAttention(width=4, heads=2, dropout=0.25)
    for parameter in attention.parameters():  # all words attended to alike, each with the value 1
        torch.nn.init.zeros_(parameter)
    attention.in_proj_bias.data[8:] = 1
    torch.nn.init.eye_(attention.out_proj.weight)
    x = torch.randn(50, 100, 4)
    kept = attention(x, x, x)[0][..., ::2] * 100 * 0.75  # of the 100 weights of a word, in each of the two heads
    torch.testing.assert_close(kept, kept.round(), rtol=0, atol=0.01)
    assert kept.mean().item() == pytest.approx(75, abs=0.5)
    assert kept.std().item() == pytest.approx((100 * 0.25 * 0.75) ** 0.5, rel=0.1)
    torch.testing.assert_close(attention.eval()(x, x, x)[0], torch.ones_like(x))


def test_dropout_drops_so_many_elements_and_scales_the_others_and_their_gradients():
    x = torch.full((301, 333), 2.0, requires_grad=True)  # not a multiple of four elements
    dropout = Dropout(0.3)
    y = dropout(x)
    y.sum().backward()
    kept = y != 0
    assert (~kept).float().mean().item() == pytest.approx(0.3, abs=0.01)  # its standard deviation is 0.0015
    assert (kept[:, :-1] & kept[:, 1:]).float().mean().item() == pytest.approx(0.7**2, abs=0.01)  # neighbours are independent
    torch.testing.assert_close(y, torch.where(kept, 2 / 0.7, 0.0), rtol=1e-4, atol=0)
    torch.testing.assert_close(x.grad, torch.where(kept, 1 / 0.7, 0.0), rtol=1e-4, atol=0)
    assert dropout(x.bfloat16()).dtype == torch.bfloat16
    assert dropout.eval()(x) is x and Dropout(0.0)(x).equal(x)


def test_each_lstm_starts_from_the_state_in_which_the_one_before_ended():
    network = build("model.name=lstm", "model.vocabulary=50", "model.width=8", "model.hidden=4", sample=words())
    first, second = network.components[1], network.components[2]
    tensors = first.activate(network.components[0].activate(words()))
    changed = second.activate({**tensors, "c": tensors["c"] + 1})
    assert not torch.allclose(second.activate(tensors)["h"], changed["h"])


def test_word_vectors_fill_the_rows_of_their_words_and_must_fit():
    config, _ = resolve(load_config(None, ["model.name=transformer", "model.vocabulary=50", "model.width=6"]))
    vectors = WordVectors(torch.tensor([3, 7]), torch.arange(12.0).view(2, 6))
    weight = begin_network(config, words(), CLASSES, vectors).components[0].block.words.weight
    plain = build_network(config, words(), CLASSES).components[0].block.words.weight
    assert torch.equal(weight[[3, 7]], vectors.values) and torch.equal(weight[10:], plain[10:])
    with pytest.raises(alrpc.UserError, match=r"data\.word_vectors: got vectors of 4 numbers.* has 6"):
        begin_network(config, words(), CLASSES, WordVectors(torch.tensor([3]), torch.zeros(1, 4)))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.name=vgg", "model.channels=[[8,N]]"], r"model\.channels"),
        (["model.name=transformer", "model.width=10", "model.heads=3"], r"model\.width: got 10; it must be a multiple"),
        (["model.name=resnet", "model.depths=[]"], r"model\.depths"),
    ],
)
def test_a_size_that_cannot_be_is_named(overrides, message):
    with pytest.raises(alrpc.UserError, match=message):
        resolve(load_config(None, overrides))


def wrong(build, name):
    """One wrong value for a field of a model: a word where numbers belong, and the other way round."""
    return {name: 0.5 if isinstance(inspect.signature(build).parameters[name].default, str) else "maen"}


@pytest.mark.parametrize(("name", "build"), FUNCTIONS.items(), ids=FUNCTIONS)
def test_every_field_of_every_builder_refuses_what_it_does_not_know(name, build):
    for field in inspect.signature(build).parameters:
        with pytest.raises(alrpc.UserError, match=rf"^model\.{field}.*: got .*; it should be "):
            build(**wrong(build, field))
    with pytest.raises(alrpc.UserError, match=r"^model\.maen: unknown field; model .* has "):
        build(maen=1)


@pytest.mark.parametrize(
    ("option", "call"),
    [
        ("model.activation", lambda: mlp.build([8], "maen")),
        ("pooling", lambda: choose_pool({"x": torch.zeros(2, 3, 4, 4)}, "x", "maen")),
        ("augmentation", lambda: augment(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "maen", 0, 0, torch.tensor([0]))),
        ("projection", lambda: inspect_run(Path("run"), 10, projection="maen")),
        ("objective.pooling", lambda: alrpc.associate([torch.nn.Linear(4, 4)], torch.zeros(1, 4), CLASSES, pooling="maen")),
        ("data.augmentation", lambda: alrpc.load_data("digits", augmentation="maen")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_option_that_is_looked_up_is_refused_with_those_that_there_are(option, call):
    with pytest.raises(UsageError, match=rf"^{option}: got 'maen'.*(use|it should be) .*, "):
        call()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [(16, 16), (8, 12), (9, 16)])
def test_the_mean_over_a_grid_is_torchs_to_the_bit(size, dtype, layout):
    image = torch.randn(3, 5, *size, generator=torch.Generator().manual_seed(0)).to(dtype).to(memory_format=layout)
    weights = torch.randn(3, 5 * 16, generator=torch.Generator().manual_seed(1)).to(dtype)
    pools = choose_pool({"x": image}, "x", "grid"), torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten())
    results = []
    for pool in pools:
        x = image.clone().requires_grad_()
        pooled = pool(x)
        (pooled * weights).sum().backward()
        results.append((pooled, x.grad, pool.eval()(x)))
    for own, torchs in zip(*results, strict=True):
        assert own.dtype == dtype and torch.equal(own, torchs)
