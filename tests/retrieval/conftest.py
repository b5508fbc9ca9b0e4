"""Real little clips, and a small real model with its word vectors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from eao.backend import TorchBackend
from eao.config import Config, DataConfig, FeaturesConfig, ModelConfig, StreamConfig, TextConfig
from eao.embedder import Embedder
from eao.features.extractor import ClipFeatures, FeatureExtractor
from eao.model import build_model

WORDS = ("red", "green", "blue", "square", "tone", "it's")
RATE = 16_000
SIZE = 64


def render(path: Path, seconds: float, colour: tuple[int, int, int], hertz: float | None) -> Path:
    """A square of one colour that moves over grey, with a tone or without sound."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=10, options={"preset": "ultrafast"})
        video.width = video.height = SIZE
        video.pix_fmt = "yuv420p"
        sound = container.add_stream("aac", rate=RATE, layout="mono") if hertz else None
        for i in range(round(10 * seconds)):
            image = np.full((SIZE, SIZE, 3), 110, np.uint8)
            left = 4 * i % (SIZE - 16)
            image[20:44, left : left + 16] = colour
            container.mux(video.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(video.encode(None))
        if sound is not None:
            time = np.arange(round(RATE * seconds)) / RATE
            wave = (np.sin(2 * np.pi * (hertz or 0) * time) * (0.2 + 0.2 * np.sin(6 * time))).astype(np.float32)
            for begin in range(0, len(wave), 1024):
                frame = av.AudioFrame.from_ndarray(wave[None, begin : begin + 1024], "fltp", "mono")
                frame.rate, frame.pts = RATE, begin
                container.mux(sound.encode(frame))
            container.mux(sound.encode(None))
    return path


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two short clips, one without sound (in a subfolder) and one of three windows."""
    folder = tmp_path_factory.mktemp("clips")
    render(folder / "red.mp4", 1.5, (220, 20, 20), 440)
    render(folder / "it's green.mp4", 1.0, (20, 220, 20), 1200)
    render(folder / "quiet" / "blue.mp4", 1.2, (20, 20, 220), None)
    render(folder / "long.mp4", 5.0, (200, 200, 20), 300)
    return folder


@pytest.fixture(scope="session")
def word_vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from gensim.models import KeyedVectors

    vectors = KeyedVectors(vector_size=6)
    vectors.add_vectors(list(WORDS), np.random.default_rng(0).normal(size=(len(WORDS), 6)).astype(np.float32))
    path = tmp_path_factory.mktemp("words") / "vectors.bin"
    vectors.save_word2vec_format(str(path), binary=True)
    return path


class RememberingExtractor(FeatureExtractor):
    """The real extractor, which computes no file twice: the tests index the same clips again and again."""

    known: dict[bytes, ClipFeatures] = {}

    def extract(self, path: str | Path) -> ClipFeatures:
        content = Path(path).read_bytes()
        if content not in self.known:
            self.known[content] = super().extract(path)
        return self.known[content]


@pytest.fixture(scope="session")
def make_embedder(word_vectors: Path) -> Callable[[int], Embedder]:
    """`make_embedder(seed)`: random weights, windows of 1.92 s (192 frames; 4 tokens at 2/s would be longer)."""

    def make(seed: int) -> Embedder:
        torch.manual_seed(seed)
        model = ModelConfig(
            text_dim=6,
            video_dim=98,
            embedding_dim=32,
            fusion={"embed_dim": 32, "num_heads": 4},
            audio={"version": "v2", "channels": (8, 8, 16, 16, 32, 32, 64)},
        )
        config = Config(
            model=model,
            data=DataConfig(text=TextConfig(path=str(word_vectors), max_words=5), video_tokens=4, audio_frames=192),
            features=FeaturesConfig(video_2d=None, video_3d=StreamConfig(backbone="activation-motion", rate=2.0)),
        )
        embedder = Embedder(TorchBackend(build_model(model), config))
        embedder._extractor = RememberingExtractor(config.features)
        return embedder

    return make


@pytest.fixture(scope="session")
def embedder(make_embedder: Callable[[int], Embedder]) -> Embedder:
    return make_embedder(0)
