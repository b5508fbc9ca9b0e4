"""A small real index, the real service over it, and pages of a real browser that are watched for errors."""

from __future__ import annotations

import importlib.util
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from .browsing import CHROMIUM, MICROPHONE, chromium, serving

WORDS = ("red", "green", "blue", "square", "tone", "dog")
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


def load_module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"of_{path.parent.name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def render() -> Callable[..., Path]:
    """The writer of little clips that the tests of the index use."""
    return load_module(Path(__file__).parents[2] / "retrieval" / "conftest.py").render


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with random weights and word vectors."""
    import torch
    from gensim.models import KeyedVectors

    from eao.checkpoint import save_native
    from eao.config import Config, DataConfig, FeaturesConfig, ModelConfig, StreamConfig, TextConfig
    from eao.model import build_model

    folder = tmp_path_factory.mktemp("model")
    vectors = KeyedVectors(vector_size=6)
    vectors.add_vectors(list(WORDS), np.random.default_rng(0).normal(size=(len(WORDS), 6)).astype(np.float32))
    vectors.save_word2vec_format(str(folder / "words.bin"), binary=True)
    config = Config(
        model=ModelConfig(
            text_dim=6,
            video_dim=98,
            embedding_dim=32,
            fusion={"embed_dim": 32, "num_heads": 4},
            audio={"version": "v2", "channels": (8, 8, 16, 16, 32, 32, 64)},
        ),
        data=DataConfig(text=TextConfig(path=str(folder / "words.bin"), max_words=5), video_tokens=4, audio_frames=192),
        features=FeaturesConfig(video_2d=None, video_3d=StreamConfig(backbone="activation-motion", rate=2.0)),
    )
    torch.manual_seed(0)
    save_native(folder / "checkpoint", build_model(config.model).eval(), config)
    return folder / "checkpoint"


@pytest.fixture(scope="session")
def index(tmp_path_factory: pytest.TempPathFactory, model: Path, render: Callable[..., Path]) -> Any:
    """The opened index of `CLIPS`."""
    from eao.retrieval.index import Index

    folder = tmp_path_factory.mktemp("library")
    for name, (seconds, colour, hertz) in CLIPS.items():
        render(folder / "clips" / name, seconds, colour, hertz)
    index = Index(folder / "index", model)
    index.add(folder / "clips")
    return index


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory, index: Any) -> Iterator[str]:
    """The address of `eao serve` over the index."""
    with serving("--index", index.path, log=tmp_path_factory.mktemp("log") / "serve.log") as address:
        yield address


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
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
        context.set_default_timeout(20_000)
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
    """The page before anything is looked for."""
    return open_page()


@pytest.fixture
def found(open_page: Callable[..., Any]) -> Any:
    """The page with the results of "red square"."""
    page = open_page("?q=red+square")
    page.wait_for_selector(".card")
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
