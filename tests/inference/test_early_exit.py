"""Predictions that leave early: the answers are those of the exits by which they leave, and what is left out is not computed."""

import json
import shutil
from itertools import pairwise
from math import hypot
from operator import mul
from pathlib import Path

import numpy
import pytest
import torch
from click.testing import CliRunner, Result
from test_predictor import first_line, train
from torch import nn

import alrpc
from alrpc.analysis.report.page import make_page
from alrpc.analysis.rundata import read as read_directories
from alrpc.cli.main import main
from alrpc.inference.early_exit import Agreement, EarlyExit, predict_early
from alrpc.inference.export.export import export
from alrpc.inference.flops import count_flops

FIELDS = ("data.validation=0.2", "train.epochs=4", "train.schedule=constant", "model.widths=[48,48,48]")
OBJECTIVES = {
    "associated": ("train.lr=0.005", *FIELDS),
    "classifier": ("objective.name=classifier", "objective.ensemble=true", *FIELDS),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Calibrated runs, by their objective."""
    runs = {name: tmp_path_factory.mktemp(name) / "run" for name in OBJECTIVES}
    for name, run in runs.items():
        done = ask("train", *fields(*OBJECTIVES[name]), "--out", run, "--calibrate")
        assert done.exit_code == 0 and "287 validation samples of digits" in done.output, done.output
    return runs


@pytest.fixture(params=OBJECTIVES)
def run(request, trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained[request.param], tmp_path / "run"))


@pytest.fixture
def calibrated(trained, tmp_path) -> Path:
    """A run of associated learning."""
    return Path(shutil.copytree(trained["associated"], tmp_path / "run"))


def fields(*settings: str) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


def ask(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, list(map(str, arguments)))


def test_each_answer_is_that_of_the_exit_by_which_it_left(run):
    predictor, inputs = alrpc.load_run(run), alrpc.load_data("digits").test.inputs
    temperatures = {1: 0.3, 2: 0.2, 3: 0.1}
    with torch.no_grad():
        shares = {exit: (predictor(inputs, exit) / temperature).softmax(dim=1) for exit, temperature in temperatures.items()}
    sure = {exit: of_exit.amax(dim=1) for exit, of_exit in shares.items()}
    limits = {1: sure[1].quantile(0.7).item(), 2: sure[2].median().item(), 3: 0.0}
    answers = list(predictor.answers(inputs, exit=EarlyExit(limits, temperatures), top_k=10, batch_size=50))
    assert {answer.exit for answer in answers} == {1, 2, 3}
    for row, answer in enumerate(answers):
        of_exit = shares[answer.exit][row]
        assert answer.label == str(int(of_exit.argmax()))
        assert torch.allclose(torch.tensor([share for _, share in answer.top]), of_exit.sort(descending=True).values, atol=1e-5)
        gaps = [(sure[exit][row] - limits[exit]).item() for exit in (1, 2)]
        wanted = next((exit for exit, gap in enumerate(gaps, 1) if gap >= 0), 3)
        assert answer.exit == wanted or min(map(abs, gaps)) < 1e-5  # as rounding decides


def test_only_what_stays_is_computed_further(calibrated):
    predictor, inputs = alrpc.load_run(calibrated), alrpc.load_data("digits").test.inputs[:64]
    computed = {}
    for component in predictor.components:
        component.block.register_forward_hook(
            lambda block, taken, given, number=component.number: computed.update({number: len(taken[0])})
        )
    early = EarlyExit({1: 0.9, 3: 0.0}, {1: 0.1, 3: 0.1})
    _, exits = predict_early(predictor, {"x": inputs}, early)
    assert 0 < (stayed := int((exits == 3).sum())) < 64 and computed == {1: 64, 2: stayed, 3: stayed}
    computed.clear()
    _, exits = predict_early(predictor, {"x": inputs}, EarlyExit({1: 0.0, 3: 0.0}, {1: 0.1, 3: 0.1}))
    assert exits.tolist() == [1] * 64 and computed == {1: 64}


@pytest.fixture(params=["associated", "alone", "combined"])
def untrained(request) -> alrpc.Network:
    """A network of five exits that rarely agree."""
    torch.manual_seed(0)
    blocks, sample, classes = [nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(5)], torch.zeros(2, 8), alrpc.Classes(3)
    if request.param == "associated":
        return alrpc.associate(blocks, sample, classes, target_width=6, bridge_widths=[]).eval()
    return alrpc.decouple(blocks, sample, classes, head="linear", ensemble=request.param == "combined").eval()


def leaves_by(outputs: list[list[float]], similarity: float, patience: int) -> int:
    """The exit by which a sample leaves, by its outputs at each of them."""
    agreed = 0
    for number, (before, now) in enumerate(pairwise(outputs), 2):
        cosine = sum(map(mul, before, now)) / (hypot(*before) * hypot(*now))
        agreed += before.index(max(before)) == now.index(max(now)) and cosine > similarity
        if agreed >= patience:
            return number
    return len(outputs)


@pytest.mark.parametrize(("similarity", "patience"), [(0.8, 1), (0.8, 2), (-1.0, 3)])
def test_a_sample_leaves_once_successive_exits_agree_on_it(untrained, similarity, patience):
    inputs = torch.randn(60, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        of_exits = torch.stack([untrained(inputs, exit) for exit in range(1, 6)])
    expected = [leaves_by(of_exits[:, row].tolist(), similarity, patience) for row in range(60)]
    outputs, exits = predict_early(untrained, {"x": inputs}, Agreement(similarity, patience))
    assert exits.tolist() == expected and len(set(expected)) > 1
    assert torch.allclose(outputs, of_exits[exits - 1, torch.arange(60)], atol=1e-5)


def test_whether_a_sample_leaves_is_no_matter_of_the_others_in_its_batch(untrained):
    inputs = torch.randn(60, 8, generator=torch.Generator().manual_seed(1))
    _, together = predict_early(untrained, {"x": inputs}, Agreement())
    alone = [predict_early(untrained, {"x": inputs[row : row + 1]}, Agreement())[1].item() for row in range(60)]
    assert together.tolist() == alone and len(set(alone)) > 1


def test_an_agreement_by_which_nothing_can_leave_is_refused(calibrated):
    predictor = alrpc.load_run(calibrated)
    for similarity in (1.0, -2.0, float("nan")):
        assert "--similarity: got " in first_line(lambda similarity=similarity: predictor.agreement(similarity))
    assert "--patience: got 0; give 1 or more" in first_line(lambda: predictor.agreement(patience=0))


def test_the_commands_predict_and_evaluate_by_agreement_without_a_calibration(run, tmp_path):
    (run / "calibration.json").unlink()
    predictor, test = alrpc.load_run(run), alrpc.load_data("digits").test
    numpy.save(tmp_path / "x.npy", test.inputs.numpy())
    done = ask("predict", run, tmp_path / "x.npy", "--exit", "agree", "--similarity", "0.9")
    assert done.exit_code == 0, done.output
    told = [json.loads(line) for line in done.stdout.splitlines()]
    answers = list(predictor.answers(test.inputs, exit=predictor.agreement(similarity=0.9)))
    assert [(each["label"], each["exit"]) for each in told] == [(answer.label, answer.exit) for answer in answers]
    assert {answer.exit for answer in answers} == {2, 3}
    for exit in (2, 3):
        alone = list(predictor.answers(test.inputs, exit=exit))
        pairs = [(answer, alone[row]) for row, answer in enumerate(answers) if answer.exit == exit]
        assert all(answer.probability == pytest.approx(other.probability, abs=1e-5) for answer, other in pairs)
    done = ask("evaluate", run, "--exit", "agree", "--similarity", "0.9", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["agreement"] == {"similarity": 0.9, "patience": 1} and found["time"] > 0
    right = [answer.label == str(label) for answer, label in zip(answers, test.labels.tolist(), strict=True)]
    assert found["accuracy"] == pytest.approx(sum(right) / 360)
    assert found["full_accuracy"] == json.loads((run / "summary.json").read_text())["exits"][-1]
    blocks, exits = count_flops(predictor, {"x": test.inputs[:1]})
    cost = sum(blocks[: answer.exit].sum() + exits[: answer.exit].sum() for answer in answers)
    assert found["compute"] == pytest.approx(cost / 360 / (blocks.sum() + exits[-1]))
    shown = ask("evaluate", run, "--exit", "agree", "--similarity", "0.9")
    assert f"{found['compute']:.1%} of the full path's operations" in shown.stdout, shown.output
    assert "similarity above 0.9, patience 1" in shown.stdout


def test_a_run_predicts_as_it_was_calibrated_or_as_asked(run):
    predictor, inputs = alrpc.load_run(run), alrpc.load_data("digits").test.inputs
    calibration = json.loads((run / "calibration.json").read_text())
    full = calibration["exits"][-1]["accuracy"]
    assert calibration["split"] == "validation" and calibration["samples"] == len(
        alrpc.load_data("digits", validation=0.2).validation
    )
    for each in calibration["exits"]:
        assert each["ece_calibrated"] < 0.15 and 0.5 < each["failure_auroc"] <= 1 and each["exit_flops"] >= 0
    chosen = next(choice for choice in calibration["choices"] if choice["accuracy"] >= 0.99 * full)
    assert list(predictor.early_exit().thresholds) == chosen["exits"] and chosen["time"] > 0
    answers = list(predictor.answers(inputs, exit="auto"))
    assert answers == list(predictor.answers(inputs, exit=predictor.early_exit(target_accuracy=0.99)))
    assert {answer.exit for answer in answers} <= set(chosen["exits"])
    cheapest = calibration["choices"][0]
    assert list(predictor.early_exit(budget=cheapest["compute"]).thresholds) == cheapest["exits"]
    assert "--budget: got 0.01, but the cheapest" in first_line(lambda: predictor.early_exit(budget=0.01))


def test_the_commands_calibrate_and_predict_early(calibrated, tmp_path):
    shown = ask("calibrate", calibrated, "--budget", "0.9", "--exits", "1")
    assert shown.exit_code == 0 and "chosen: " in shown.output and "287 validation samples of digits" in shown.output
    assert {exit for choice in read(calibrated)["choices"] for exit in choice["exits"]} == {1, 3}
    inputs = alrpc.load_data("digits").test.inputs
    numpy.save(tmp_path / "x.npy", inputs.numpy())
    done = ask("predict", calibrated, tmp_path / "x.npy", "--exit", "auto")
    assert done.exit_code == 0, done.output
    expected = list(alrpc.load_run(calibrated).answers(inputs, exit="auto"))
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(each["label"], each["exit"]) for each in told] == [(answer.label, answer.exit) for answer in expected]
    done = ask("predict", calibrated, tmp_path / "x.npy", "--exit", "auto", "--budget", "5", "--csv")
    assert {line.split(",")[3] for line in done.stdout.splitlines()[1:]} <= {"1", "3"}


def read(run: Path) -> dict:
    return json.loads((run / "calibration.json").read_text())


def test_an_evaluation_of_early_exits_tells_what_they_keep_and_save(run):
    wish = ("--exit", "auto", "--target-accuracy", "0.97")
    done = ask("evaluate", run, *wish, "--json")
    assert done.exit_code == 0, done.output
    told, predictor, test = json.loads(done.stdout), alrpc.load_run(run), alrpc.load_data("digits").test
    early, calibration = predictor.early_exit(target_accuracy=0.97), read(run)
    answers = list(predictor.answers(test.inputs, exit=early))
    right = [answer.label == str(label) for answer, label in zip(answers, test.labels.tolist(), strict=True)]
    assert told["accuracy"] == pytest.approx(sum(right) / 360) and told["samples"] == 360
    assert told["mean_exit"] == pytest.approx(sum(answer.exit for answer in answers) / 360)
    assert told["full_accuracy"] == json.loads((run / "summary.json").read_text())["exits"][-1]
    assert told["kept"] == pytest.approx(told["accuracy"] / told["full_accuracy"]) and told["time"] > 0
    cost, full = 0.0, sum(each["block_flops"] for each in calibration["exits"]) + calibration["exits"][-1]["exit_flops"]
    for answer in answers:
        gone = calibration["exits"][: answer.exit]
        cost += sum(each["block_flops"] + each["exit_flops"] * (each["exit"] in early.thresholds) for each in gone)
    assert told["compute"] == pytest.approx(cost / 360 / full)
    for each in told["exits"]:
        assert each["leaving"] == pytest.approx(sum(answer.exit == each["exit"] for answer in answers) / 360)
    assert {"exits": list(early.thresholds), "accuracy": told["accuracy"], "compute": pytest.approx(told["compute"])} in told[
        "choices"
    ]
    shown = ask("evaluate", run, *wish)
    assert f"mean exit {told['mean_exit']:.2f}; {told['compute']:.1%} of the full path's operations" in shown.stdout, (
        shown.output
    )


def test_the_report_of_a_calibrated_run_draws_accuracy_against_compute_and_time(calibrated):
    page = make_page(*read_directories([calibrated]))
    for part in (
        "<h3>Early exits</h3>",
        '<figure id="run-1-compute"',
        '<figure id="run-1-time"',
        "287 validation samples of digits",
    ):
        assert part in page


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["evaluate", "RUN", "--target-accuracy", "1"], "--target-accuracy: goes with --exit auto; give both"),
        (["train", "--calibrate"], "--calibrate: needs a validation split; add --set data.validation=0.1"),
        (["calibrate", "RUN", "--exits", "3"], "--exits: got 3, but the exits before the last one are 1 to 2"),
        (["calibrate", "RUN", "--exits", "a"], "'a' is no list of numbers of exits"),
        (["calibrate", "RUN", "--budget", "0.01"], "--budget: got 0.01, but the cheapest choice of exits computes"),
        (["calibrate", "RUN", "--budget", "1", "--target-accuracy", "1"], "--budget: got it beside --target-accuracy"),
        (["predict", "RUN", "-", "--budget", "1"], "--budget: goes with --exit auto; give both"),
        (["predict", "RUN", "-", "--exit", "agree", "--budget", "1"], "--budget: goes with --exit auto; give both"),
        (["predict", "RUN", "-", "--exit", "auto", "--patience", "2"], "--patience: goes with --exit agree; give both"),
        (["predict", "RUN", "-", "--exit", "0"], "'0' is neither the number of an exit, from 1, nor auto, nor agree"),
        (["predict", "RUN", "-", "--exit", "agree", "--stages", "2"], "--stages: got it beside --exit agree"),
        (["evaluate", "RUN", "--exit", "agree", "--similarity", "1"], "1.0 is not in the range -1<=x<1"),
        (["evaluate", "RUN", "--exit", "agree", "--patience", "0"], "0 is not in the range x>=1"),
        (
            ["evaluate", "RUN", "--exit", "agree", "--patience", "2"],
            "--patience: got 2, with which nothing can leave before the last of 3 exits; give at most 1",
        ),
    ],
)
def test_what_cannot_be_chosen_is_refused(calibrated, arguments, line):
    before = read(calibrated)
    done = ask(*(calibrated if each == "RUN" else each for each in arguments))
    assert done.exit_code == 2 and line in done.stderr, done.stderr
    assert read(calibrated) == before


def test_a_calibration_that_is_missing_damaged_or_of_another_checkpoint_is_refused(calibrated):
    def told(change=None, step=None) -> str:
        if change is not None:
            (calibrated / "calibration.json").write_text(json.dumps(change))
        return first_line(lambda: list(alrpc.load_run(calibrated, step=step).answers([[0.0] * 64], exit="auto")))

    whole = read(calibrated)
    assert "calibration.json: exits.0.temperature: got 0; it should be greater than 0" in told(
        {**whole, "exits": [{**whole["exits"][0], "temperature": 0}, *whole["exits"][1:]]}
    )
    broken = {**whole["choices"][0], "exits": [2, 1]}
    assert "choices.0.exits: they must ascend to 3" in told({**whole, "choices": [broken]})
    assert "target_accuracy, budget: one of them must be null" in told({**whole, "budget": 1.0})
    assert "is of a checkpoint of other parameters, but" in told({**whole, "parameters_sha256": "0"})
    assert "is of a checkpoint of step 1, but the one that is loaded is of step" in told({**whole, "step": 1})
    (calibrated / "calibration.json").write_text("{")
    assert "calibration.json: is damaged: " in told()
    (calibrated / "calibration.json").unlink()
    assert "its exits are not calibrated: it has no calibration.json; alrpc calibrate" in told()


def test_an_export_has_the_calibration_of_its_own_checkpoint_alone(calibrated, tmp_path):
    whole, files = read(calibrated), {"calibration.json": ""}
    export(alrpc.load_run(calibrated), "pt2", out=tmp_path / "out")
    torch.export.load(tmp_path / "out" / "model.pt2", extra_files=files)
    assert json.loads(files["calibration.json"]) == read(tmp_path / "out") == whole
    (calibrated / "calibration.json").write_text(json.dumps({**whole, "step": 1}))
    export(alrpc.load_run(calibrated), "safetensors", out=tmp_path / "other")
    assert not (tmp_path / "other" / "calibration.json").exists()


def test_a_run_without_a_validation_split_is_calibrated_only_on_data_that_are_named(tmp_path):
    train(tmp_path / "run", "train.epochs=1", "model.widths=[16,16]")
    done = ask("calibrate", tmp_path / "run")
    assert (
        done.exit_code == 2 and "has no validation split to calibrate on; train with --set data.validation=0.1" in done.stderr
    )
    done = ask("calibrate", tmp_path / "run", "--split", "test", "--json")
    assert done.exit_code == 0 and json.loads(done.stdout)["split"] == "test" and read(tmp_path / "run")["samples"] == 360


def test_a_regression_has_no_early_exits(tmp_path):
    settings = fields("data.name=own_blocks:regression", "data.validation=0.2", "train.epochs=1", "model.widths=[16,16]")
    done = ask("train", *settings, "--out", tmp_path / "run", "--calibrate", "--quiet")
    assert done.exit_code == 1 and "the run has ended well, but its exits are not calibrated: " in done.stderr, done.output
    assert (tmp_path / "run" / "summary.json").exists() and len(done.stderr.splitlines()) == 1
    done = ask("calibrate", tmp_path / "run", "--data", "own_blocks:regression")
    assert (
        done.exit_code == 2 and "early exits need the probabilities of classes, but the run's target is Values" in done.stderr
    )
    for exit in ("auto", "agree"):
        assert "early exits need" in first_line(lambda exit=exit: list(alrpc.load_run(tmp_path / "run").answers([], exit=exit)))


def test_operations_are_counted_as_their_formulas_have_them():
    blocks = [nn.Linear(8, 5), nn.Linear(5, 7)]
    x, classes = torch.randn(3, 8), alrpc.Classes(4)
    network = alrpc.decouple(blocks, x, classes, head="linear").eval()
    by_block, by_exit = count_flops(network, {"x": x})
    assert by_block.tolist() == [2 * 8 * 5, 2 * 5 * 7] and by_exit.tolist() == [2 * 5 * 4, 2 * 7 * 4]
    together = alrpc.decouple(blocks, x, classes, head="linear", ensemble=True).eval()
    for_later, answers = count_flops(together, {"x": x})
    assert for_later.tolist() == (by_block + by_exit).tolist() and answers.tolist() == [0, 0]
    associated = alrpc.associate(blocks, x, classes, target_width=9, bridge_widths=[]).eval()
    _, by_exit = count_flops(associated, {"x": x})
    assert by_exit.tolist() == [2 * (5 * 9 + 9 * 4), 2 * (7 * 9 + 9 * 9 + 9 * 4)]  # b_l, then h_l to h_1


def test_operations_of_fused_kernels_are_counted_too():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(8, 6, batch_first=True)

        def forward(self, x):
            return self.lstm(x)[0]

    encoder = nn.TransformerEncoderLayer(6, 2, 12, batch_first=True)
    x = torch.randn(3, 10, 8)
    network = alrpc.decouple([Recurrent(), encoder], x, alrpc.Classes(2)).eval()
    of_lstm, of_encoder = count_flops(network, {"x": x})[0].tolist()
    assert of_lstm == 2 * 10 * (8 * 24 + 6 * 24)
    assert of_encoder == 2 * 10 * (6 * 18 + 6 * 6 + 2 * 6 * 12) + 2 * 2 * 10 * 10 * 6


@pytest.mark.parametrize("share", ["98", "nan", "0", "much"])
def test_a_share_is_above_0_and_up_to_1(share):
    refused = CliRunner().invoke(main, ["calibrate", "run", "--target-accuracy", share])
    assert refused.exit_code == 2 and "is no share above 0 and up to 1" in refused.stderr
