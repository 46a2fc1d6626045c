"""Every event that a file keeps is read back as it was written."""

import json

import pytest

from alrpc import events
from alrpc.timing import STATES

SECONDS = {state: 0.5 * place for place, state in enumerate(STATES)}
EXAMPLES = [
    events.Run("mlp on digits, 2 stages", "pipeline", 2),
    events.Ready(2, [3, 4], "cpu", "host", pid=7),
    events.Ready(1, [1], "cuda:0", "host"),
    events.Start(),
    events.Losses(3, 1, 20, {"associated": 0.25, "autoencoder": None}, stage=2, skipped_updates=4),
    events.Losses(1, 1, 20, {"classification": 2.5}),
    events.StageTimes(1, 2, 46, 1.5, SECONDS, 1 << 30),
    events.Evaluation(2, "accuracy", [0.5, 0.75], stage=2),
    events.Evaluation(2, "mse", [0.5]),
    events.Spans(1, 4, 100.5, [("train", 1, 0, 582, 1)], [("forward", 3, 600)], 900, [("backward", 3, 700, 800)]),
    events.Spans(0, 0, 100.5, [("end", 1, 3, 0, 0)], [(None, 0, 0), ("handling", 0, 2)], 3),
    events.Clock(2, 100.0, -0.25, 0.001),
    events.Slow(2, "host", 12.0, 40, "training micro-batch 40 of epoch 1"),
    events.Unwritten(23, "no space left on device", stage=1),
    events.Unwritten(23, "no space left on device"),
    events.Checkpoint(23),
    events.Chosen({"threads": 2, "tried_threads": {"1": 0.5, "2": 0.25}, "device": "cpu"}),
    events.Coordinator(1 << 29),
    events.Profile(22, 5),
    events.Operators(1, 100.25, "alrpc.align.3", "profile-1.json.gz"),
]


def through_a_file(event: events.Event) -> dict:
    return json.loads(json.dumps(events.to_json(event)))


@pytest.mark.parametrize("event", EXAMPLES, ids=lambda event: event.kind)
def test_an_event_is_read_back_as_it_was_written(event):
    assert events.from_json(events.to_json(event)) == event
    assert events.from_json({**through_a_file(event), "time": 3.25}) == event


def test_there_is_an_example_of_every_event_that_a_file_keeps():
    assert {type(event) for event in EXAMPLES} == {*events.METRICS, *events.TIMINGS}


def test_losses_and_choices_are_fields_of_their_line():
    losses = events.Losses(3, 1, 20, {"associated": 0.25, "autoencoder": None}, stage=2)
    assert through_a_file(losses) == {
        **{"event": "losses", "stage": 2, "component": 3, "epoch": 1, "step": 20},
        **{"associated_loss": 0.25, "autoencoder_loss": None},
    }
    assert through_a_file(events.Chosen({"threads": 2})) == {"event": "chosen", "threads": 2}


def test_what_another_alrpc_has_added_is_skipped_and_what_is_missing_is_named():
    assert events.from_json({"event": "of-another-version"}) is None
    assert events.from_json({"event": "checkpoint", "step": 23, "more": 1}) == events.Checkpoint(23)
    with pytest.raises(ValueError, match="epoch"):
        events.from_json({"event": "evaluation", "metric": "accuracy", "exits": [0.5]})
