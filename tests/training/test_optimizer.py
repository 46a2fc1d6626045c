import pytest

from alrpc.training.optimizer import learning_rate


def test_schedules_begin_and_end_where_they_should():
    for schedule in ("linear", "cosine"):
        assert learning_rate(schedule, 1.0, 0.1, 0, 11) == pytest.approx(1.0)
        assert learning_rate(schedule, 1.0, 0.1, 10, 11) == pytest.approx(0.1)
        assert learning_rate(schedule, 1.0, 0.1, 5, 11) == pytest.approx(0.55)
    assert learning_rate("linear", 1.0, 0.1, 2, 11) == pytest.approx(0.82)
    assert learning_rate("cosine", 1.0, 0.0, 2, 9) == pytest.approx((1 + 2**-0.5) / 2)  # cos(pi / 4)
    assert learning_rate("constant", 1.0, 0.1, 7, 11) == 1.0
    assert learning_rate("cosine", 1.0, 0.1, 0, 1) == 1.0
