from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import pytest

from eao.bench.latency import Latency, compare, foreign_load, peak_memory

from .conftest import Clock


def test_percentiles_and_throughput_of_known_times() -> None:
    latency = Latency.of([i / 1000 for i in range(1, 101)], items=4)
    assert (latency.runs, latency.min_ms, latency.mean_ms, latency.median_ms) == (100, 1.0, 50.5, 50.5)
    assert latency.p90_ms == pytest.approx(90.1)
    assert latency.p99_ms == pytest.approx(99.01)
    assert latency.throughput == pytest.approx(4 / 0.0505)


def test_no_runs_are_no_latency() -> None:
    with pytest.raises(ValueError, match="no runs"):
        Latency.of([])


def test_runs_are_bounded_by_count_and_by_time(clock: Clock) -> None:
    counted = compare({"a": lambda: clock.sleep(1e-6)}, warmup_seconds=0, max_runs=8, rounds=4)
    assert counted.latencies["a"].runs == 8
    timed = compare({"a": lambda: clock.sleep(0.01)}, warmup_seconds=0, max_seconds=0.18, max_runs=10_000, rounds=4)
    assert timed.latencies["a"].runs == 4 * 5  # in each round the fifth ends after 45 ms
    assert clock.now == pytest.approx(0.01 * 4 * 6, rel=1e-3)
    assert timed.latencies["a"].min_ms == pytest.approx(10)


def test_a_comparison_of_real_calls_finds_the_longer_one() -> None:
    functions = {"slow": lambda: time.sleep(0.02), "fast": lambda: None}
    found = compare(functions, warmup_seconds=0, max_seconds=0.2, rounds=6)
    assert found.speedups["fast"] > 2
    assert found.latencies["slow"].min_ms >= 20


def test_a_comparison_finds_the_ratio_of_two_sleeps(clock: Clock) -> None:
    functions = {"slow": lambda: clock.sleep(0.008), "fast": lambda: clock.sleep(0.002)}
    found = compare(functions, warmup_seconds=0, max_seconds=0.3, rounds=6, items=2)
    assert found.speedups == {"slow": 1, "fast": pytest.approx(4)}
    assert found.latencies["fast"].throughput == pytest.approx(2 / 0.002)
    assert found.noise == {"slow": 0, "fast": pytest.approx(0, abs=1e-9)}


def test_every_function_runs_in_every_round() -> None:
    calls: list[str] = []
    compare({n: (lambda n=n: calls.append(n)) for n in "ab"}, warmup_seconds=0, max_seconds=0, rounds=3)
    assert calls.count("a") == calls.count("b") == 3  # a call fills its slice


def test_the_first_call_of_a_slice_is_not_counted_unless_it_fills_the_slice(clock: Clock) -> None:
    calls: list[None] = []
    found = compare({"a": lambda: calls.append(clock.sleep(0.001))}, warmup_seconds=0, max_seconds=0.06, rounds=3)
    assert found.latencies["a"].runs == len(calls) - 3


def test_a_warm_up_makes_a_call_however_short_it_is() -> None:
    calls: list[str] = []
    compare({"a": lambda: calls.append("a")}, warmup_seconds=1e-9, max_seconds=0, rounds=1)
    assert len(calls) == 2


def test_the_number_of_calls_is_bounded_over_all_rounds() -> None:
    found = compare({"a": lambda: None}, warmup_seconds=0, max_seconds=5, max_runs=30, rounds=6)
    assert found.latencies["a"].runs == 30


def test_long_calls_need_only_four_rounds(clock: Clock) -> None:
    calls: list[None] = []
    functions = {"a": lambda: calls.append(clock.sleep(0.01)), "b": lambda: clock.sleep(0.01)}
    compare(functions, warmup_seconds=0, max_seconds=0.02, rounds=50)
    assert len(calls) == 4


def test_times_that_vary_from_round_to_round_have_a_spread(clock: Clock) -> None:
    waits = iter([0.01, 0.02, 0.03, 0.04])
    found = compare({"a": lambda: clock.sleep(next(waits))}, warmup_seconds=0, max_seconds=0.001, rounds=4)
    assert found.spreads["a"] == pytest.approx((32.5 - 17.5) / 2 / 25)  # by the quartiles of 10, 20, 30 and 40 ms


def test_nothing_to_compare_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing to compare"):
        compare({})


def test_peak_memory_sees_a_block_that_is_already_gone() -> None:
    with peak_memory() as memory:
        block = np.ones(8_000_000)  # 64 MB
        del block
    assert 60e6 < memory.growth < 200e6
    with peak_memory() as later:
        pass
    assert later.growth < 30e6  # an earlier peak is not counted again


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/stat")
def test_a_busy_neighbour_is_noticed_and_own_work_is_not_taken_for_one() -> None:
    def work(seconds: float) -> None:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            pass

    with foreign_load() as before:
        time.sleep(0.5)
    neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        with foreign_load() as during:
            work(1.0)
    finally:
        neighbour.kill()
        neighbour.wait()
    assert during.cores is not None
    assert before.cores is not None
    assert during.cores > 0.3  # the neighbour had a core, or on a full machine its share of one
