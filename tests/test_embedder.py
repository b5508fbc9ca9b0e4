"""From sentences and files to embeddings, with a real small model and real little clips."""

from __future__ import annotations

import logging
import wave
from pathlib import Path

import av
import numpy as np
import pytest
import torch

import eao
from eao.backend import TorchBackend
from eao.config import Config, DataConfig, FeaturesConfig, ModelConfig, StreamConfig, TextConfig
from eao.data.text import TextEncoder
from eao.embedder import Embedder
from eao.errors import CheckpointError, ConfigError, DataError, MediaError
from eao.features.extractor import ClipFeatures
from eao.model import Batch, build_model
from eao.model.weights import hash_weights

RATE = 16_000
MODEL = ModelConfig(
    text_dim=6,
    video_dim=98,
    embedding_dim=32,
    fusion={"embed_dim": 32, "num_heads": 4},
    audio={"version": "v2", "channels": (8, 8, 16, 16, 32, 32, 64)},
)


def tone(seconds: float) -> np.ndarray:
    time = np.arange(round(RATE * seconds)) / RATE
    return (0.4 * np.sin(2 * np.pi * 500 * time) * np.abs(np.sin(5 * time))).astype(np.float32)


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip of a second with sound, one without, and a sound of three seconds."""
    folder = tmp_path_factory.mktemp("media")
    for name, has_sound in (("clip", True), ("quiet", False)):
        with av.open(str(folder / f"{name}.mp4"), "w") as container:
            video = container.add_stream("libx264", rate=5, options={"preset": "ultrafast"})
            video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
            sound = container.add_stream("aac", rate=RATE, layout="mono") if has_sound else None
            for i in range(5):
                image = np.full((64, 64, 3), 60, np.uint8)
                image[10:40, 5 * i : 5 * i + 20] = (200, 40, 10) if has_sound else (10, 40, 200)
                container.mux(video.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
            container.mux(video.encode(None))
            if sound is not None:
                for begin in range(0, RATE, 1024):
                    frame = av.AudioFrame.from_ndarray(tone(1)[None, begin : begin + 1024], "fltp", "mono")
                    frame.rate, frame.pts = RATE, begin
                    container.mux(sound.encode(frame))
                container.mux(sound.encode(None))
    with wave.open(str(folder / "tone.wav"), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes((tone(3) * 32767).astype("<i2").tobytes())
    return folder


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    from gensim.models import KeyedVectors

    vectors = KeyedVectors(vector_size=6)
    vectors.add_vectors(["red", "box", "beep"], np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32))
    path = tmp_path_factory.mktemp("words") / "vectors.bin"
    vectors.save_word2vec_format(str(path), binary=True)
    return Config(
        model=MODEL,
        data=DataConfig(text=TextConfig(path=str(path), max_words=4), video_tokens=4, audio_frames=192),
        features=FeaturesConfig(video_2d=None, video_3d=StreamConfig(backbone="activation-motion", rate=2.0)),
    )


@pytest.fixture(scope="module")
def embedder(config: Config) -> Embedder:
    torch.manual_seed(0)
    return Embedder(TorchBackend(build_model(MODEL), config))


def features(seconds: float, seed: int = 0, has_sound: bool = True) -> ClipFeatures:
    random = np.random.default_rng(seed)
    rows = random.normal(size=(round(2 * seconds), 98)).astype(np.float32)
    audio = random.uniform(-80, 0, (40, round(100 * seconds))).astype(np.float32)
    return ClipFeatures(None, rows, audio if has_sound else None, seconds)


def test_what_is_given_decides_the_encoder(embedder: Embedder, media: Path) -> None:
    clip = media / "clip.mp4"
    text, both = ["red box"], {"video": [clip], "audio": [clip]}
    batch = embedder.batch(text, [embedder.extractor.extract(clip)])
    for given, encoder in (
        ({"text": text}, "text"),
        (both, "video-audio"),
        ({"video": clip}, "video"),
        ({"text": "red box", **both}, "text-video-audio"),
    ):
        rows = embedder.embed(**given)
        assert rows.dtype == np.float32
        assert rows.shape == (1, 32)
        assert np.linalg.norm(rows) == pytest.approx(1, abs=1e-5)
        np.testing.assert_allclose(rows, embedder.backend.encode(batch, encoder), atol=1e-5)


def test_rows_do_not_depend_on_the_batch_size(embedder: Embedder) -> None:
    sentences = ["red", "a red box", "beep", "box red box red box", "beep box"]
    together = embedder.embed(text=sentences)
    assert together.shape == (5, 32)
    np.testing.assert_allclose(embedder.embed(text=sentences, batch_size=2), together, atol=1e-5)


def test_a_clip_without_sound_takes_the_empty_path(embedder: Embedder, media: Path) -> None:
    quiet = media / "quiet.mp4"
    batch = embedder.batch(clips=[embedder.extractor.extract(quiet)], encoder="video-audio")
    assert batch.audio_mask is not None
    assert not batch.audio_mask.any()
    rows = embedder.embed(video=quiet, audio=quiet)
    np.testing.assert_allclose(rows, embedder.backend.encode(batch, "video-audio"), atol=1e-5)
    assert np.isfinite(rows).all()


def test_sound_that_is_asked_for_must_be_there(embedder: Embedder, media: Path) -> None:
    with pytest.raises(MediaError, match="no sound"):
        embedder.embed(audio=media / "quiet.mp4")
    with pytest.raises(MediaError, match="no sound"):
        embedder.embed(video=media / "clip.mp4", audio=media / "quiet.mp4")


def test_a_sound_file_is_embedded_and_may_be_paired_with_a_video(
    embedder: Embedder, media: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        alone = embedder.embed(audio=media / "tone.wav")
    assert "lasts 3.0 s: only its first 1.9 s are embedded" in caplog.text
    assert alone.shape == (1, 32)
    own = embedder.embed(video=media / "clip.mp4", audio=media / "clip.mp4")
    other = embedder.embed(video=media / "clip.mp4", audio=media / "tone.wav")
    assert float((own * other).sum()) < 1 - 1e-6


def test_input_that_makes_no_sense_is_an_error(embedder: Embedder, media: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to embed"):
        embedder.embed()
    with pytest.raises(DataError, match="empty list of text"):
        embedder.embed(text=[])
    with pytest.raises(DataError, match="2 text, 1 video"):
        embedder.embed(text=["red", "box"], video=media / "clip.mp4")
    with pytest.raises(DataError, match="no words"):
        embedder.embed(text=["red", " ... "])
    with pytest.raises(DataError, match="vocabulary"):
        embedder.embed(text="zebra")
    with pytest.raises(MediaError, match=r"nothing\.mp4"):
        embedder.embed(video=media / "nothing.mp4")
    with pytest.raises(ConfigError, match="no encoder 'smell'"):
        embedder.embed_features([features(1)], "smell")


def test_features_of_another_width_are_refused_before_decoding(config: Config, media: Path) -> None:
    model = MODEL.model_copy(update={"video_dim": 100, "text_dim": 7})
    embedder = Embedder(TorchBackend(build_model(model), config.model_copy(update={"model": model})))
    with pytest.raises(ConfigError, match="video features are 98 wide, but the model was trained on 100"):
        embedder.embed(video=media / "nothing.mp4")
    with pytest.raises(ConfigError, match="text features are 6 wide, but the model was trained on 7"):
        embedder.embed(text="red")


@pytest.mark.parametrize(
    ("duration", "expected"),
    [
        (0.4, [(0, 0.4)]),
        (1.92, [(0, 1.92)]),
        (2.0, [(0, 2.0)]),  # a rest under 5 % of a window is left out
        (2.2, [(0, 1.92), (0.28, 2.2)]),
        (3.84, [(0, 1.92), (1.92, 3.84)]),
        (5.0, [(0, 1.92), (1.92, 3.84), (3.08, 5)]),
    ],
)
def test_windows_cover_a_file(embedder: Embedder, duration: float, expected: list[tuple[float, float]]) -> None:
    windows = embedder.windows(duration)
    assert [(round(start, 3), round(end, 3)) for start, end in windows] == expected


def test_a_window_is_embedded_as_if_it_were_a_file(embedder: Embedder) -> None:
    whole = features(8)
    (clips,) = embedder.embed_windows([(whole, [(2.0, 3.5), (6.0, 7.5)])])
    rows = whole.video_3d[12:15]  # 6.0 to 7.5 s at 2 a second
    audio = whole.audio[:, 598:748]  # by the frame that is whole at a time, the authors' rule
    expected = ClipFeatures(None, rows, audio, 1.5)
    for encoder in ("video-audio", "video", "audio"):
        direct = embedder.embed_features([expected], encoder)[0]
        np.testing.assert_allclose(clips[1].vectors[encoder], direct, atol=1e-5)
    assert (clips[1].start, clips[1].end) == (6.0, 7.5)


def test_windows_without_sound_have_no_audio_vector(embedder: Embedder) -> None:
    early = ClipFeatures(None, features(6).video_3d, features(2).audio, 6.0)  # the sound ends after 2 s
    silent = features(1, seed=3, has_sound=False)
    first, second = embedder.embed_windows([(early, [(0.0, 1.9), (4.0, 5.9)]), (silent, [(0.0, 1.0)])])
    assert [set(clip.vectors) for clip in [*first, *second]] == [
        {"video-audio", "video", "audio"},
        {"video-audio", "video"},
        {"video-audio", "video"},
    ]


def test_calling_gives_the_models_raw_outputs(embedder: Embedder) -> None:
    batch = embedder.batch(["red box", "beep"], [features(1), features(2, seed=1)])
    with torch.no_grad():
        outputs = embedder(batch, ["text", "video-audio"])
    raw = embedder.backend.encode_raw(batch, ["text", "video-audio"])
    for encoder, rows in outputs.items():
        np.testing.assert_array_equal(rows.numpy(), raw[encoder])
    assert not np.allclose(np.linalg.norm(raw["text"], axis=1), 1)


def test_engines_cannot_be_called(embedder: Embedder) -> None:
    class Engines:
        config = embedder.config
        encoders = ("text",)

        def encode(self, batch: Batch, encoder: str) -> np.ndarray:
            return embedder.backend.encode(batch, encoder)

        def text_encoder(self, config: TextConfig) -> TextEncoder:
            return embedder.backend.text_encoder(config)

    engines = Embedder(Engines())
    np.testing.assert_array_equal(engines.embed(text="red"), embedder.embed(text="red"))
    with pytest.raises(ConfigError, match="engines"):
        engines(Batch())
    with pytest.raises(ConfigError, match=r"no encoder 'video'"):
        engines.embed(video="clip.mp4")


def test_the_hash_names_the_weights(embedder: Embedder) -> None:
    model = embedder.backend.model
    torch.manual_seed(1)
    twin = build_model(MODEL)
    assert hash_weights(twin) != hash_weights(model)
    twin.load_state_dict(model.state_dict())
    assert hash_weights(twin) == hash_weights(model) == embedder.model_hash


def test_a_saved_model_embeds_the_same(tmp_path: Path, embedder: Embedder) -> None:
    from eao.checkpoint import save_native

    save_native(tmp_path / "run" / "best", embedder.backend.model, embedder.config)
    for path in (tmp_path / "run" / "best", tmp_path / "run"):
        loaded = eao.load(path, device="cpu")
        assert loaded.encoders == embedder.encoders
        assert loaded.model_hash == embedder.model_hash
        np.testing.assert_allclose(loaded.embed(text="red box"), embedder.embed(text="red box"), atol=1e-6)
    changed = eao.load(tmp_path / "run", overrides=["data.text.max_words=1"])
    np.testing.assert_allclose(changed.embed(text="red box"), embedder.embed(text="red"), atol=1e-6)


def test_what_cannot_be_loaded_is_an_error(tmp_path: Path, embedder: Embedder) -> None:
    from eao.checkpoint import save_native

    save_native(tmp_path / "model", embedder.backend.model, embedder.config)
    with pytest.raises(ConfigError, match=r"cannot be changed: model\.embedding_dim is 32 there"):
        eao.load(tmp_path / "model", overrides=["model.embedding_dim=64"])
    with pytest.raises(ConfigError, match="unknown device"):
        eao.load(tmp_path / "model", device="quantum")
    with pytest.raises(ConfigError, match="no device cuda:99"):
        eao.load(tmp_path / "model", device="cuda:99")
    with pytest.raises(CheckpointError, match="nowhere"):
        eao.load(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        eao.load(tmp_path)
