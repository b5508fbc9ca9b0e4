from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from eao.errors import MissingDependencyError
from eao.export.drawing import require_matplotlib
from eao.export.parity_page import render_page
from eao.export.parity_report import BundleParity

from .reports import made_up, make_parity

pytest.importorskip("matplotlib")
VOID = {"meta", "br", "hr", "img", "link"}


class Page(HTMLParser):
    """Checks that tags nest, and keeps text, ids, and whatever points elsewhere."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.count: dict[str, int] = {}
        self.text: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.links += [value or "" for name, value in attrs if name.endswith(("href", "src"))]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(scope="module")
def parity() -> BundleParity:
    return make_parity()


@pytest.fixture(scope="module")
def html(parity: BundleParity) -> str:
    return render_page(parity)


def test_the_page_is_whole_and_needs_no_other_file(html: str) -> None:
    page = Page(html)
    assert html.startswith("<!DOCTYPE html>") and page.open == []
    assert page.links and all(link.startswith("#") for link in page.links)
    assert not re.search(r"url\((?!#)", html) and "<script" not in html
    assert len(set(page.ids)) == len(page.ids)
    assert {link.removeprefix("#") for link in page.links} <= set(page.ids)


def test_the_figures_of_the_report_stand_in_the_page(html: str, parity: BundleParity) -> None:
    text = "\n".join(Page(html).text)
    for line in parity.failures():
        assert line in text
    for report in parity.reports:
        for encoder in report.encoders.values():
            assert f"{encoder.figures.cosine_min:.7f}" in text
        for ranking in report.rankings:
            assert f"{ranking.engine['R5']:.1f}" in text
    assert "node_2 (MatMul, fusion.fc<1>): error 0.4 > 0.14" in text
    assert "its graph" in text and "cannot run on the machine that made it" in text


def test_every_engine_has_its_plots_and_text_in_them_stays_text(html: str) -> None:
    drawings = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", html, re.S)]
    texts = [" ".join("".join(t.itertext()) for t in svg.iter("{http://www.w3.org/2000/svg}text")) for svg in drawings]
    assert len(drawings) == 5  # rankings, the cosines of three engines, the layers of one
    assert sum("1 - cosine with PyTorch" in text and "batch 3, long, full" in text for text in texts) == 3
    assert sum("text -> video" in text and "R@10, points" in text for text in texts) == 1
    assert sum("relative error" in text and "node_2" in text for text in texts) == 1


def test_the_same_report_gives_the_same_page(html: str, parity: BundleParity, tmp_path: Path) -> None:
    parity.save_html(tmp_path / "parity.html")
    assert (tmp_path / "parity.html").read_text() == html


def test_an_engine_that_gives_nan_still_has_a_page() -> None:
    html = render_page(BundleParity(reports=[made_up(np.nan, "int8")]))
    assert Page(html).open == [] and "cosine min nan" in html


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependencyError) as caught:
        require_matplotlib()
    assert ".[report]" in caught.value.hint
