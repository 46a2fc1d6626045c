"""Networks of torchvision, timm and transformers: their blocks, one after another, compute what they do, bit for bit."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import Tensor

import alrpc
from alrpc.config import load_config, user_code_fields
from alrpc.experiments.baselines.model import ModelPart, build_sequential_model
from alrpc.models.build import build_parts
from alrpc.network import begin_network, build_network, resolve
from alrpc.objectives.base import Microbatch, call

IMAGES = {"x": torch.randn(2, 3, 32, 32)}
WORDS = {"x": torch.randint(0, 100, (2, 7)), "mask": torch.arange(7) < torch.tensor([[7], [4]])}
SIZES = ["model.hidden_size=16", "model.num_hidden_layers=3", "model.num_attention_heads=2", "model.intermediate_size=24"]
BERT = ["model.name=hf:bert", "data.vocabulary=100", *SIZES]
LLAMA = ["model.name=hf:llama", "data.vocabulary=100", *SIZES, "model.num_key_value_heads=2"]
RESNET = ["model.name=torchvision:resnet18", "model.num_classes=4"]
timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")
transformers = pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed")


def configure(*fields: str) -> tuple[alrpc.Config, int]:
    return resolve(load_config(None, list(fields)))


def run(blocks: list[torch.nn.Module], tensors: dict[str, Tensor]) -> Tensor:
    for block in blocks:
        tensors = {**tensors, "x": call(block.eval(), tensors)}
    return tensors["x"]


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        (RESNET, 4),
        ([*RESNET, "model.components=9"], 9),
        ([*RESNET, "model.cut=[layer2, layer4.1]"], 3),
        (["model.name=torchvision:vgg11"], 4),
        (["model.name=torchvision:vit_b_16", "model.image_size=32", "model.cut=[encoder.layers.encoder_layer_6]"], 2),
        pytest.param(["model.name=timm:convnext_atto", "model.components=3"], 3, marks=timm),
    ],
    ids=["resnet18", "resnet18 in 9", "resnet18 at names", "vgg11", "vit_b_16", "convnext_atto"],
)
@torch.no_grad()
def test_blocks_and_classifier_are_the_whole_network(fields, count):
    config, components = configure(*fields)
    parts = build_parts(config.model, 0, IMAGES)
    whole = parts.whole.eval()
    expected = whole(IMAGES["x"])
    assert components == len(parts.blocks) == count
    assert torch.equal(parts.head(expected.shape[1]).eval()(run(parts.blocks, IMAGES)), expected)
    in_blocks = [id(parameter) for block in parts.blocks for parameter in block.parameters()]
    assert len(in_blocks) == len(set(in_blocks)) == len(list(whole.parameters())) - len(list(parts.head(5).parameters()))


@transformers
@pytest.mark.parametrize(
    ("fields", "count"),
    [(BERT, 3), ([*BERT, "model.cut=[encoder.layer.1]"], 2), (LLAMA, 3)],
    ids=["bert", "bert at names", "llama"],
)
@torch.no_grad()
def test_a_transformers_layers_are_the_whole_network(fields, count):
    config, components = configure(*fields)
    parts = build_parts(config.model, 0, WORDS)
    expected = parts.whole.eval()(input_ids=WORDS["x"], attention_mask=WORDS["mask"]).last_hidden_state
    assert components == len(parts.blocks) == count and config.model.fields["vocab_size"] == 100
    assert torch.equal(run(parts.blocks, WORDS), expected)


@pytest.mark.parametrize(
    ("fields", "tensors"), [(RESNET, IMAGES), pytest.param(BERT, WORDS, marks=transformers)], ids=["resnet18", "bert"]
)
def test_every_component_learns_and_back_propagation_has_the_same_blocks(fields, tensors):
    config, _ = configure(*fields, "objective.target_width=8")
    network = build_network(config, tensors, alrpc.Classes(4))
    batch = Microbatch(tensors, network.objective.begin(torch.tensor([1, 3])))
    for component in network.train().components:
        batch, losses = component(batch)
        sum(losses).backward()
        assert all(parameter.grad is not None for parameter in component.block.parameters() if parameter.ndim > 1)
    model = build_sequential_model(config, tensors, alrpc.Classes(4))
    assert ModelPart(model, range(len(model.layers))).eval()(*tensors.values()).shape == (2, 4)
    for block, component in zip(model.layers, build_network(config, tensors, alrpc.Classes(4)).components, strict=False):
        for one, other in zip(block.state_dict().values(), component.block.state_dict().values(), strict=True):
            assert torch.equal(one, other)


@transformers
def test_a_directorys_configuration_is_the_runs_own(tmp_path):
    from transformers import BertConfig

    BertConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, vocab_size=50).save_pretrained(
        tmp_path
    )
    config, components = configure(f"model.name=hf:{tmp_path}", "model.hidden_dropout_prob=0.3")
    (tmp_path / "config.json").unlink()
    assert config.model.name == "hf:bert" and components == 2
    assert config.model.fields["vocab_size"] == 50 and config.model.fields["hidden_dropout_prob"] == 0.3
    again, _ = resolve(alrpc.Config.model_validate(config.model_dump()))
    assert again == config
    with pytest.raises(alrpc.UserError, match=r"^model\.name: .* has no config\.json that transformers reads"):
        configure(f"model.name=hf:{tmp_path}")


@transformers
def test_a_directory_of_a_types_name_is_not_the_type(tmp_path, monkeypatch):
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "roberta", "num_hidden_layers": 2}')
    monkeypatch.chdir(tmp_path)
    assert configure(*BERT)[0].model.name == "hf:bert"
    assert configure("model.name=hf:./bert", *BERT[1:])[0].model.name == "hf:roberta"
    with pytest.raises(alrpc.UserError, match=r"^model\.name: no directory other/bert; "):
        configure("model.name=hf:other/bert")


def test_what_is_of_a_library_is_no_code_of_the_users():
    config, _ = configure(*RESNET)
    assert user_code_fields(config) == {}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (["model.name=torchvision:resnet19"], r"model\.name: torchvision has no network 'resnet19' \(did you mean resnet1"),
        (
            [*RESNET, "model.components=40"],
            r"model\.components: got 40, but torchvision:resnet18 can be cut into 9 blocks at most",
        ),
        ([*RESNET, "model.components=0"], r"model\.components: got 0"),
        ([*RESNET, "model.cut=[layr2]"], r"model\.cut: torchvision:resnet18 runs no module 'layr2' \(did you mean layer2\?\)"),
        ([*RESNET, "model.cut=[layer2.0.conv2]"], r"cannot be cut before layer2\.0\.conv2: 2 values pass there"),
        ([*RESNET, "model.cut=[layer3, layer2]"], r"cannot be cut before layer2: the modules must be in order"),
        (
            [*RESNET, "model.cut=[layer3]", "model.components=4"],
            r"model\.components: got 4 beside model\.cut, .*; give one of them",
        ),
        ([*RESNET, "model.cut=[conv1]"], r"cannot be cut before conv1: it is the first module"),
        ([*RESNET, "model.cut=[fc]"], r"cannot be cut before fc: it is of the classifier"),
        (
            [*RESNET, "model.weights_backbone=x"],
            r"model\.weights_backbone: alrpc downloads no weights; give model\.weights a file",
        ),
        ([*RESNET, "model.widht=3"], r"model\.name: torchvision:resnet18 raised TypeError: .*'widht'"),
        (
            ["model.name=torchvision:googlenet", "model.init_weights=false"],
            "cannot be cut: it does other things in training than in evaluation",
        ),
        (["model.name=torchvision:alexnet", "model.freeze=9"], r"model\.freeze: got 9, but the model has 4 blocks; use 0 to 4"),
        pytest.param(["model.name=timm:convnext_ato"], r"timm has no network 'convnext_ato' \(did you mean", marks=timm),
        pytest.param(["model.name=timm:hf-hub:a/b"], r"timm has no network 'hf-hub:a/b'", marks=timm),
        pytest.param(
            [*BERT, "model.hidden_sise=3"],
            r"model\.hidden_sise: unknown field \(did you mean hidden_size\?\)",
            marks=transformers,
        ),
        pytest.param(["model.name=hf:brt"], r"model\.name: transformers has no type 'brt' \(did you mean", marks=transformers),
        pytest.param(
            ["model.name=hf:t5"], r"hf:t5 cannot be cut: it has 2 lists of num_hidden_layers layers", marks=transformers
        ),
        pytest.param(
            [*BERT, "model.cut=[encoder.layer.1]", "model.components=2"],
            r"model\.components: got 2 beside model\.cut",
            marks=transformers,
        ),
        pytest.param(
            [*BERT, "model.cut=[encoder.layer.9]"],
            r"model\.cut: got 'encoder\.layer\.9'.* can be cut before",
            marks=transformers,
        ),
    ],
)
def test_what_cannot_be_is_refused_by_name(fields, message):
    with pytest.raises(alrpc.UserError, match=message):
        configure(*fields)


def test_no_backbone_is_downloaded(monkeypatch):
    """By default the builders of networks for segmentation and for detection load a trained backbone."""
    monkeypatch.setattr(
        "torchvision.models._api.load_state_dict_from_url", lambda url, *_, **__: pytest.fail(f"asked for {url}")
    )
    for name in ("lraspp_mobilenet_v3_large", "ssdlite320_mobilenet_v3_large"):
        with pytest.raises(alrpc.UserError, match=f"torchvision:{name} cannot be cut: "):
            configure(f"model.name=torchvision:{name}")


def test_a_missing_library_is_told_with_its_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(alrpc.UserError, match=r"model\.name: hf:bert needs the extra: pip install 'alrpc\[transformers\]'"):
        configure("model.name=hf:bert")


@transformers
def test_a_file_of_transformers_with_a_head_has_the_networks_own_parameters(tmp_path):
    """The tensors of the head, and of the pooler that alrpc's blocks have not, are left aside."""
    from transformers import BertConfig, BertForMaskedLM

    sizes = {field.removeprefix("model."): int(value) for field, value in (each.split("=") for each in SIZES)}
    model = BertForMaskedLM(BertConfig(vocab_size=100, **sizes)).eval()
    torch.save(model.state_dict(), tmp_path / "bert.pt")
    config, _ = configure(*BERT, f"model.weights={tmp_path / 'bert.pt'}")
    network = begin_network(config, WORDS, alrpc.Classes(4))
    expected = model.bert(input_ids=WORDS["x"], attention_mask=WORDS["mask"]).last_hidden_state
    assert torch.equal(run([component.block for component in network.components], WORDS), expected)
