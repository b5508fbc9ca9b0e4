"""A small real index, the real service over it, and pages of a real browser that are watched for errors."""

from __future__ import annotations

import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eao.retrieval.index import Index

from ...retrieval.conftest import render
from .browsing import CHROMIUM, MICROPHONE, PATIENCE, chromium, serving

CLIPS: dict[str, tuple[float, tuple[int, int, int], float | None]] = {
    # name: seconds, colour, hertz
    "red.mp4": (1.6, (220, 20, 20), 440),
    "day/green.mp4": (1.7, (20, 220, 20), 1200),
    "day/sea blue.mp4": (1.8, (20, 20, 220), 700),
    "day/yellow.mp4": (1.6, (220, 220, 20), 250),
    "night/quiet.mp4": (1.9, (200, 20, 200), None),
    "night/it's <i>odd.mp4": (1.5, (20, 200, 200), 2000),
    "night/white.mp4": (1.6, (250, 250, 250), 330),
    "long.mp4": (6.0, (240, 130, 20), 550),
}

LEARNT = "text=clips of"
"""Selector of what the empty page shows once it knows the index."""
ANSWERED = '#results[aria-busy="false"] .card'
"""Selector of results while no search is under way."""


@pytest.fixture(scope="session")
def index(tmp_path_factory: pytest.TempPathFactory, bundle: Path) -> Index:
    """Of `CLIPS`."""
    folder = tmp_path_factory.mktemp("library")
    for name, (seconds, colour, hertz) in CLIPS.items():
        render(folder / "clips" / name, seconds, colour, hertz)
    index = Index(folder / "index", bundle)
    index.add(folder / "clips")
    return index


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory, index: Index) -> Iterator[str]:
    """The address of `eao serve` over the index."""
    with serving(
        "--index", index.path, "--timeout", f"{PATIENCE:g}s", log=tmp_path_factory.mktemp("log") / "serve.log"
    ) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Of one module: while Playwright is open, its event loop runs in this thread, and no other can."""
    if not CHROMIUM:
        pytest.skip("Chromium is not installed: apt install chromium")
    with chromium(*MICROPHONE) as browser:
        yield browser


@pytest.fixture
def console() -> list[str]:
    """Errors and warnings of the page's console. What a test leaves in it fails the test."""
    return []


@pytest.fixture
def open_page(browser: Any, site: str, console: list[str]) -> Iterator[Callable[..., Any]]:
    """`open_page("?q=red", **context_options)`: a page of the site. None of them may ask another host for anything."""
    contexts = []
    requests: list[str] = []

    def open_it(address: str = "", before: Callable[[Any], None] | None = None, **options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        context.set_default_timeout(1000 * PATIENCE)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda m: console.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: console.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        if before:
            before(page)
        page.goto(site + address)
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert [url for url in requests if not url.startswith((site, "blob:", "data:"))] == []
    assert console == []


@pytest.fixture
def page(open_page: Callable[..., Any]) -> Any:
    """The page before anything is looked for, once it has said how much there is."""
    page = open_page()
    page.wait_for_selector(LEARNT)
    return page


@pytest.fixture
def found(open_page: Callable[..., Any]) -> Any:
    """The page with the results of "red dog" as they stay: in their pictures' shape, with all that can be chosen."""
    page = open_page("?q=red+dog")
    page.wait_for_selector(".card")
    page.wait_for_selector("#balance")
    page.wait_for_selector("#results[style*='--ratio']")
    return page


def names(page: Any) -> list[str]:
    """What the shown results are called, best first."""
    return page.eval_on_selector_all(".card .name", "all => all.map(e => e.textContent)")


def write_sound(path: Path, seconds: float = 1.5) -> Path:
    """A tone as a WAV file."""
    samples = (9000 * np.sin(2 * np.pi * 440 * np.arange(round(16_000 * seconds)) / 16_000)).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(samples.tobytes())
    return path
