"""Rows of work done in several ways, and the page that shows them."""

import pytest
import torch

from eao.bench.latency import Latency
from eao.bench.ways import Row, WaysReport, measure_ways, table

OPTIONS = {"max_seconds": 0, "rounds": 1}


def row(**changes):
    latencies = {"first": Latency.of([2.0]), "second": Latency.of([0.5])}
    values = {"speedups": {"first": 1, "second": 4}, "noise": {"first": 0, "second": 0.1}}
    gflop = {"first": 10, "second": 5}
    return Row(work="work", size="small", latencies=latencies, gflop=gflop, **values, **changes)


def test_results_are_compared_with_those_of_the_first_way():
    ways = {"zeros": lambda: torch.zeros(3), "tenths": lambda: torch.full((3,), 0.1)}
    measured = measure_ways("work", "3", ways, 2.0, OPTIONS)
    assert measured.deviations == {"zeros": 0.0, "tenths": pytest.approx(0.1)}
    assert measured.gflop == {"zeros": 2.0, "tenths": 2.0} and measured.memory_mb == {}


def test_only_what_is_selected_is_compared():
    ways = {"short": lambda: torch.ones(2), "long": lambda: torch.tensor([1.0, 1.0, 9.0])}
    measured = measure_ways("work", "2", ways, 1.0, OPTIONS, select=lambda way, result: result[:2])
    assert measured.deviations["long"] == 0
    assert measure_ways("work", "2", ways, 1.0, OPTIONS, select=None).deviations == {}


def test_memory_is_that_of_a_call():
    ways = {"large": lambda: torch.ones(10_000_000).sum(), "small": lambda: torch.ones(1).sum()}
    measured = measure_ways("work", "", ways, 1.0, OPTIONS, select=None, memory=True)
    assert measured.memory_mb["large"] > 35 > measured.memory_mb["small"]


def test_rates_are_work_over_the_median_time():
    assert row().gflops("first") == 5 and row().gflops("second") == 10


def test_a_table_has_the_columns_that_were_measured():
    header, _, first, second = table([row()])
    assert header == "| work | size | way | ms | GFLOP/s | speed-up | largest difference |"
    assert first == "| work | small | first | 2,000 | 5 |  |  |"
    assert second == "| work | small | second | 500 | 10 | 4.00x ± 10 % |  |"
    full = row(gbyte=3.0, memory_mb={"first": 7, "second": 8}, deviations={"first": 0, "second": 1e-3})
    header, _, first, second, *others = table([full, row()])
    assert "| ms | GFLOP/s | GB/s | memory MB |" in header
    assert second == "| work | small | second | 500 | 10 | 6.0 | 8 | 4.00x ± 10 % | 1.0e-03 |"
    assert all(line.count("|") == header.count("|") for line in (first, second, *others))


def test_a_page_has_what_is_said_and_the_conditions():
    report = WaysReport.of(lambda device: [row()])
    text = report.page("Introduction.", "Remark.")
    assert text.startswith("Introduction. Measured in turns") and "\n\nRemark.\n\n" in text
    assert report.hardware.cpu in text and report.ceiling.gflops > 0
