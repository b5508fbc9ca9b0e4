"""A miniature stamps folder, laid out as the Debian package lays out the real one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageDraw

NOUNS = {
    "animals": ("bull", "cow", "dog", "fox", "owl", "hen", "crow", "yak"),
    "food": ("apple", "pear", "lemon", "carrot", "onion", "walnut", "cheese", "mango"),
}


def _write_tone(path: Path, frequency: float = 440.0, seconds: float = 0.5, gain: float = 0.4) -> None:
    """A sine at 48 kHz in an Ogg file, as the recordings are (Opus for Vorbis, which PyAV cannot write)."""
    times = np.arange(round(48_000 * seconds)) / 48_000
    samples = (gain * np.sin(2 * np.pi * frequency * times)).astype(np.float32)
    with av.open(str(path), "w", format="ogg") as container:
        stream = container.add_stream("libopus", rate=48_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        frame.sample_rate = 48_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _write_stamp(folder: Path, name: str, text: str, speech: tuple[str, ...] = ("fr",)) -> None:
    """A red ellipse on a transparent ground, its text and its recordings."""
    folder.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGBA", (90, 70), (0, 0, 0, 0))
    ImageDraw.Draw(picture).ellipse((20, 15, 69, 54), fill=(200, 20, 20, 255))
    picture.save(folder / f"{name}.png")
    (folder / f"{name}.txt").write_text(f"{text}\nfr.utf8=Un mot.\n", encoding="utf-8")
    for language in speech:
        _write_tone(folder / f"{name}_desc_{language}.ogg")


@pytest.fixture(scope="session")
def write_tone() -> Callable[..., None]:
    return _write_tone


@pytest.fixture(scope="session")
def write_stamp() -> Callable[..., None]:
    return _write_stamp


@pytest.fixture(scope="session")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 stamps of 16 nouns in two categories, beside some that are unusable. Read only."""
    package = tmp_path_factory.mktemp("package")
    root = package / "usr/share/tuxpaint/stamps"
    for category, nouns in NOUNS.items():
        for index, word in enumerate(nouns):
            folder = root / category / "cartoon" if index % 3 == 0 else root / category
            _write_stamp(folder, word, f"A {word}.", ("es", "ru") if word == "owl" else ("fr", "es"))
    _write_tone(root / "animals/dog.ogg", 300.0, 0.3)
    _write_stamp(root / "symbols/alphabets/english", "a", "The letter A.")
    _write_stamp(root / "food", "toast", "Eat your toast!")
    (root / "food/ghost.txt").write_text("A stamp without a picture.\n", encoding="utf-8")
    licence = package / "usr/share/doc/tuxpaint-stamps-default/copyright"
    licence.parent.mkdir(parents=True)
    licence.write_text("Copyright of the stamps\n", encoding="utf-8")
    return root
