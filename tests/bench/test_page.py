from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest

from eao.bench.page import recommendations, render_page
from eao.bench.plots import pareto_front

from .reports import FP32, INT8, make_entry, make_report

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def page() -> str:
    sizes = [(1, 0.5), (1, 1.0), (8, 0.5), (8, 1.0)]
    entries = [make_entry(encoder=e, batch=b, length=n) for e in ("text", "video<audio") for b, n in sizes]
    return render_page(make_report(*entries))


def test_the_page_needs_no_other_file(page: str) -> None:
    assert page.startswith("<!DOCTYPE html>")
    links = re.findall(r'\b(?:src|href)="([^"]*)"', page)
    assert links and all(link.startswith("#") for link in links)


def test_every_encoder_has_a_plot_of_its_own_with_all_ways(page: str) -> None:
    drawings = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]
    assert len(drawings) == 2
    ids = [[element.get("id") for element in drawing.iter() if element.get("id")] for drawing in drawings]
    assert not set(ids[0]) & set(ids[1])
    for drawing in drawings:
        text = " ".join("".join(element.itertext()) for element in drawing.iter() if element.tag.endswith("text"))
        assert all(way in text for way in ("torch", FP32, INT8))


def test_names_are_escaped_and_tables_are_there(page: str) -> None:
    assert "<h3>video&lt;audio</h3>" in page
    assert page.count("<table>") == 3  # recommended, latencies, engines


def test_where_no_engine_is_faster_that_is_said() -> None:
    report = make_report(make_entry({FP32: 0.5}), make_entry({FP32: 3.0}, foreign=1.0), make_entry({FP32: 3.0}))
    assert [row[3] for row in recommendations(report).rows] == [
        "none is faster than PyTorch",
        "the machine was busy: measure again",
        FP32,
    ]


def test_a_point_that_another_beats_in_both_is_not_on_the_front() -> None:
    assert pareto_front([(2, 2), (1, 1), (3, 0.5), (1, 2)]) == [(1, 1), (3, 0.5)]
