from __future__ import annotations

import pytest

from eao.bench.arrivals import measure_arrivals, parse_milliseconds, parse_rate
from eao.errors import ConfigError

from .conftest import Clock


def test_latency_includes_the_wait_in_the_queue(clock: Clock) -> None:
    # About ten requests, one every 10 ms, of 20 ms each: the eighth waits for some 80 ms.
    found = measure_arrivals(lambda: clock.sleep(0.02), rate=100, seconds=0.1)
    assert found.requests >= 5
    assert found.latency.min_ms == pytest.approx(20)
    assert found.latency.p99_ms > 50


def test_an_idle_server_answers_at_once_and_is_told_to_be_idle(clock: Clock) -> None:
    found = measure_arrivals(lambda: clock.sleep(0.001), rate=20, seconds=0.5, deadline_ms=3, items=3)
    assert not found.overloaded
    assert found.missed == 0
    assert found.utilization == pytest.approx(found.requests * 0.001 / clock.now, rel=0.01)
    assert found.latency.throughput == pytest.approx(3 * found.requests / clock.now, rel=0.01)


def test_an_overloaded_server_is_left_and_what_it_did_not_answer_counts_as_missed(clock: Clock) -> None:
    found = measure_arrivals(lambda: clock.sleep(0.02), rate=500, seconds=0.1, deadline_ms=30)
    assert clock.now < 0.5  # not the second that all requests would take
    assert found.overloaded
    assert found.missed is not None and found.missed > 0.8
    assert found.utilization > 0.9


def test_the_same_requests_come_to_everything_that_is_compared() -> None:
    counts = {measure_arrivals(lambda: None, rate=300, seconds=0.1).requests for _ in range(3)}
    assert len(counts) == 1
    assert 10 < counts.pop() < 60  # 30 on average


@pytest.mark.parametrize(("text", "rate"), [("50/s", 50), ("600/min", 10), ("7", 7), ("2.5 /s", 2.5)])
def test_rates(text: str, rate: float) -> None:
    assert parse_rate(text) == pytest.approx(rate)


@pytest.mark.parametrize(("text", "ms"), [("20ms", 20), ("0.5s", 500), ("800us", 0.8), ("15", 15)])
def test_durations(text: str, ms: float) -> None:
    assert parse_milliseconds(text) == pytest.approx(ms)


@pytest.mark.parametrize("text", ["", "fast", "0/s", "-5/s", "5/h", "5ms"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="50/s"):
        parse_rate(text)


@pytest.mark.parametrize("text", ["", "soon", "0ms", "5h", "5/s"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="20ms"):
        parse_milliseconds(text)
