"""`alrpc simulate`: what it reads, what it prints, and what it refuses; the figures themselves are tested in tests/planning."""

import json

import pytest
from click.testing import CliRunner

from alrpc.cli.main import main
from alrpc.errors import UserError

PLAN = {
    "components": [
        {
            "number": n,
            "seconds": ms / 1000,
            "parameter_bytes": 9,
            "activation_bytes": 9,
            "packet_bytes": n << 20,
            "gradient_bytes": 8,
        }
        for n, ms in enumerate((10, 20, 30, 30), 1)
    ],
    "best": {"split": [2, 1, 1]},
}


def run(*arguments):
    return CliRunner().invoke(main, ["simulate", *map(str, arguments)])


def figures(*arguments):
    done = run(*arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.fixture
def plan(tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(PLAN))
    return path


def test_every_table_and_every_json_says_that_it_is_simulated():
    shown = run("--stages", 4)
    assert shown.stdout.splitlines()[0].startswith(
        "SIMULATED: 4 stages of 20 ms; packets of 1 MB; links of 10,000 Mbit/s and 0.1 ms"
    )
    assert shown.stdout.splitlines()[1].startswith("SIMULATED")
    assert [line.split()[0] for line in shown.stdout.splitlines()[2:6]] == ["al", "gpipe", "1f1b", "pipedream"]
    assert "without ddp: give --gradient-mb" in shown.stdout
    assert figures("--stages", 4)["simulated"] is True


def test_a_window_that_holds_the_engine_up_is_told_and_the_one_that_would_do():
    assert "the window of 2 holds al up: from --window 6 on no link does" in run("--delay-ms", 50).stdout
    assert "holds al up" not in run("--delay-ms", 50, "--window", 6).stdout


def test_stages_are_those_of_a_plan_or_of_the_best_split_of_its_components(plan):
    planned = figures("--from", plan)
    assert planned["stage_seconds"] == pytest.approx([0.03, 0.03, 0.03])
    assert planned["packet_bytes"] == [2 << 20, 3 << 20] and "ddp" in planned["methods"]
    assert figures("--from", plan, "--stages", 2)["stage_seconds"] == pytest.approx([0.03, 0.06])
    assert figures("--component-ms", "10,20,30,30", "--stages", 2)["stage_seconds"] == pytest.approx([0.03, 0.06])


def test_links_may_be_without_limit_as_those_of_bench_hops():
    found = figures("--stages", 3, "--rate-mbit", 0, "--delay-ms", 0)
    assert found["bytes_per_second"] is None and found["methods"]["pipedream"]["efficiency"] == pytest.approx(1)
    assert "links of any bandwidth and 0 ms one way" in run("--stages", 3, "--rate-mbit", 0, "--delay-ms", 0).stdout


def test_a_jitter_of_hardly_anything_is_none():
    assert figures("--stages", 3, "--jitter", "1e-200", "--packets", 20)["methods"]["al"]["efficiency"] == pytest.approx(1)


def test_one_slow_stage_and_stages_given_one_by_one():
    assert figures("--stages", 3, "--slow", "2=1.5")["stage_seconds"] == pytest.approx([0.02, 0.03, 0.02])
    assert figures("--stage-ms", "5,7")["stage_seconds"] == pytest.approx([0.005, 0.007])


def test_a_picture_is_drawn(tmp_path, monkeypatch):
    from alrpc.analysis import simulation_plots

    monkeypatch.setattr(simulation_plots, "STAGES", [2, 4])
    path = tmp_path / "simulated.svg"
    done = run("--stages", 2, "--slow", "1=1.5", "--gradient-mb", 1, "--packets", 40, "--picture", path)
    assert done.exit_code == 0 and f"picture: {path}" in done.stdout
    assert "SIMULATED" in path.read_text() and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--slow", "9=2"], "--slow: got stage 9, but there are 8; use 1 to 8"),
        (["--stage-ms", "1,2", "--stages", "3"], "--stage-ms: got 2 times for 3 stages; give one, or one for each"),
        (["--rate-mbit", "1e-305"], "--rate-mbit: got 1e-305; give at least 0.001, or 0 for no limit"),
        (["--packets", "8"], "--packets: got 8, too few to fill a pipeline of 8 stages; give at least 32"),
        (["--stage-ms", "1", "--component-ms", "1"], "--stage-ms, --component-ms, --from: got more than one"),
        (["--picture", "a.txt"], "--picture: got a.txt; give a file in a directory that exists, ending with .png"),
        (["--picture", "absent/a.png"], "--picture: got absent/a.png; give a file in a directory that exists"),
        (["--from", "absent"], "--from: got absent, which is not there; give a file with the JSON of alrpc plan"),
        (["--from", "."], ".: no timings.jsonl in it; give the directory of a run"),
        (["--slow", "x"], "Invalid value for '--slow': got 'x'; give the number of a stage and a factor, such as 4=1.5."),
        (["--stage-ms", "0"], "Invalid value for '--stage-ms': got '0'; give milliseconds above 0"),
        (["--stage-ms", "nan"], "Invalid value for '--stage-ms': got 'nan'"),
    ],
)
def test_a_bad_value_is_told_in_one_line(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    refused = run(*arguments)
    assert refused.exit_code == 2 and refused.stdout == ""
    assert refused.stderr.splitlines()[-1].removeprefix("alrpc: ").removeprefix("Error: ").startswith(message)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"best": {"split": [2, 1]}}, r"plan.json: best.split: got \[2, 1\]; it must add up to the 4 components"),
        ({"components": [{**PLAN["components"][0], "seconds": 0}]}, "plan.json: best.split: "),
        (
            {"components": [{**each, "seconds": 0} for each in PLAN["components"]]},
            "plan.json: components: got one of 0 seconds",
        ),
        ({"components": [{"number": 1}]}, "plan.json: components.0.seconds: not given, but needed"),
    ],
)
def test_a_file_that_is_no_plan_is_refused(plan, change, message):
    from alrpc.analysis.stage_costs import of_plan

    plan.write_text(json.dumps({**PLAN, **change}))
    with pytest.raises(UserError, match=message):
        of_plan(plan, None, 2)
