"""What lies beside the checkpoints and is none: a copy that a user keeps, a file, a link."""

import shutil

import alrpc
from alrpc.analysis.quality import inspect_run
from alrpc.analysis.rundata import read_run
from alrpc.checkpoint.commit import MANIFEST, commit, complete_checkpoints
from alrpc.checkpoint.files import checkpoint_directory
from alrpc.runtime.run import resume_sequentially, run_sequentially

FIELDS = ["model.widths=[16]", "pipeline.stages=1", "train.epochs=1", "checkpoint.keep=1"]


def lay_beside(folder, checkpoint):
    """Lay down what is no checkpoint; returns a description of it, to be compared later."""
    for name in (f"{checkpoint.name}.keep", "step-final", "step-12", "step-000000001", "step-00000005.partial"):
        shutil.copytree(checkpoint, folder / name)
    (folder / "step-00000001").write_text("a file")
    (folder / "step-00000002").symlink_to("nowhere")
    shutil.copytree(checkpoint, folder.parent / "elsewhere")
    (folder / "step-00000003").symlink_to("../elsewhere")
    return describe_others(folder)


def describe_others(folder):
    real = [each for each in folder.iterdir() if not (each.name.startswith("step-000000") and len(each.name) == 13)]
    links = [folder / f"step-0000000{number}" for number in (1, 2, 3)]
    inside = [sorted(path.name for path in each.iterdir()) for each in [*sorted(real), folder.parent / "elsewhere"]]
    return sorted(each.name for each in real), [each.is_symlink() for each in links], inside


def test_it_is_neither_read_nor_removed(tmp_path):
    run = tmp_path / "run"
    run_sequentially(alrpc.load_config(None, FIELDS), "digits-mlp", run, quiet=True)
    before = lay_beside(run / "checkpoints", checkpoint_directory(run, 23))
    assert list(complete_checkpoints(run)) == [23]

    summary, _ = resume_sequentially(run, ["train.epochs=3"], None, quiet=True)
    assert summary["resumed_at_step"] == 23 and summary["checkpoint_failures"] == []
    assert list(complete_checkpoints(run)) == [69]  # the others are pruned
    assert describe_others(run / "checkpoints") == before
    assert [each.step for each in read_run(run).checkpoints] == [69]
    assert inspect_run(run, 100, "pca")["step"] == 69


def test_checkpoints_are_in_the_order_of_their_steps_however_many_digits_they_have(tmp_path):
    steps = (99_999_998, 99_999_999, 100_000_000)
    for step in steps:
        kept = commit(tmp_path, step, {}, {}, keep=2)
    assert kept == list(complete_checkpoints(tmp_path)) == list(steps[1:])
    assert (checkpoint_directory(tmp_path, steps[2]) / MANIFEST).is_file()
