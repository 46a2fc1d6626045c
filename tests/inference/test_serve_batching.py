"""The batches of `alrpc serve`, without a server: what is computed together, and what fails alone."""

import asyncio
from types import SimpleNamespace

import pytest

import alrpc
from alrpc.inference.predictor import Answer

pytest.importorskip("starlette")
pytest.importorskip("prometheus_client")

from starlette.exceptions import HTTPException

from alrpc.inference.serve import app as serving
from alrpc.inference.serve.batching import Sample, Waiting, answer_batches, batches


def test_a_batch_takes_what_waits_and_no_more_than_it_may():
    waiting = Waiting()
    for number in range(5):
        waiting.put(Sample(number, 1))
    waiting.put(None)
    assert [[sample.prepared for sample in batch] for batch in batches(waiting, 3, 0)] == [[0, 1, 2], [3, 4]]


def test_a_sample_that_the_network_cannot_compute_fails_no_other():
    def answer_prepared(prepared: list[int], exit: int | None, top_k: int) -> list[Answer]:
        if 13 in prepared:
            raise alrpc.UserError("no 13")
        if 99 in prepared:
            raise ZeroDivisionError
        return [Answer(1, values=(float(each),)) for each in prepared]

    waiting, samples, counted = Waiting(), [Sample(number, 1) for number in (1, 13, 3, 4, 99)], []
    samples[3].answer.cancel()
    for sample in samples:
        waiting.put(sample)
    waiting.put(None)
    answer_batches(SimpleNamespace(answer_prepared=answer_prepared), waiting, None, 4, 0, counted.extend)
    assert samples[0].answer.result(0).values == (1,) and samples[2].answer.result(0).values == (3,)
    assert str(samples[1].answer.exception(0)) == "no 13" and samples[3].answer.cancelled()
    assert isinstance(samples[4].answer.exception(0), ZeroDivisionError) and len(counted) == 2


def test_what_cannot_wait_is_refused():
    waiting = Waiting()
    for _ in range(serving.MOST):
        waiting.put(None)
    with pytest.raises(HTTPException) as refused:
        asyncio.run(serving.answer(serving.Served(None, "run", waiting, None), [None], 1))
    assert refused.value.status_code == 503 and refused.value.headers == {"Retry-After": "1"}
