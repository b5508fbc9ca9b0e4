"""From sentences, videos and sounds to embeddings, whatever computes them: the PyTorch model or a bundle of engines."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from eao.backend import Backend, Floats, SentenceBackend, TorchBackend
from eao.config import Config
from eao.data.sampling import create_audio, create_video
from eao.errors import ConfigError, DataError
from eao.evaluation.metrics import unit_norm
from eao.model.batch import MODALITIES, Batch, encoder_modalities

if TYPE_CHECKING:
    from eao.data.text import TextEncoder
    from eao.features.extractor import ClipFeatures, FeatureExtractor

# B rows, N tokens, D width of a modality's raw tokens, T spectrogram frames, E embedding

log = logging.getLogger(__name__)

CLIP_ENCODERS = ("video-audio", "video", "audio")
"""What can be said of a clip without words."""
BATCH_SIZE = 16
_MEL_BANDS = 40


@dataclass(frozen=True)
class Clip:
    """A window of a file and its embeddings.

    Attributes:
        start: seconds.
        end: seconds.
        vectors: encoder -> (E,) float32, unit norm; without "audio" if no sound was there.
    """

    start: float
    end: float
    vectors: Mapping[str, Floats]


class Embedder:
    """Embeds sentences, videos, sounds and their combinations into one space.

    Files go through the features that the model was trained on. A file longer than the model's training length is
    represented by its beginning (with a warning) in `embed`, and by consecutive windows in `embed_clips`.

    Args:
        backend: the model or the engines.
        source: where it was loaded from, for messages and for an index that wants to find it again.
        config: the backend's configuration with settings changed, such as `data.text.path`.
        device: for the feature extractor.

    Example:
        model = eao.load("runs/demo/best")
        rows = model.embed(text=["a dog barks"]) @ model.embed(video=["dog.mp4"], audio=["dog.mp4"]).T
    """

    def __init__(
        self,
        backend: Backend,
        source: str | Path = "",
        config: Config | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        self.backend = backend
        self.source = str(source)
        self.config = backend.config if config is None else config
        self.device = torch.device(device)
        self._lock = threading.Lock()
        self._text_encoder: TextEncoder | None = None
        self._extractor: FeatureExtractor | None = None

    @property
    def encoders(self) -> tuple[str, ...]:
        """The encoders this model offers, such as ("text", "video", "audio", "video-audio")."""
        return self.backend.encoders

    @property
    def embedding_dim(self) -> int:
        """E, the width of every embedding."""
        model = self.config.model
        has_head = model.output_projection != "none" or model.architecture == "avlnet"
        return model.embedding_dim if has_head else model.fusion.embed_dim

    @property
    def model_hash(self) -> str:
        """Identifies the weights: two models with the same hash embed into the same space."""
        return str(getattr(self.backend, "model_hash", ""))

    @property
    def clip_seconds(self) -> float:
        """The longest stretch of a video that the model sees at once."""
        data, features = self.config.data, self.config.features
        seconds = data.audio_frames * 0.01
        stream = features.video_3d or features.video_2d
        if stream is not None and data.sampling == "clip":  # the other samplings spread the tokens over any length
            seconds = min(seconds, data.video_tokens / stream.rate)
        return seconds

    @property
    def text_encoder(self) -> TextEncoder:
        """The encoder of words, loaded at first use."""
        with self._lock:
            if self._text_encoder is None:
                encoder = self.backend.text_encoder(self.config.data.text)
                _check_width("text", encoder.dim, self.config.model.text_dim, "data.text.encoder")
                self._text_encoder = encoder
            return self._text_encoder

    @property
    def extractor(self) -> FeatureExtractor:
        """The feature extractor, loaded at first use."""
        from eao.features.extractor import FeatureExtractor

        with self._lock:
            if self._extractor is None:
                extractor = FeatureExtractor(self.config.features, device=str(self.device))
                width = sum(extractor.dims.values())
                _check_width("video", width, self.config.model.video_dim, "features.video_2d, features.video_3d")
                self._extractor = extractor
            return self._extractor

    def __call__(self, batch: Batch, encoders: Sequence[str] | None = None) -> dict[str, Tensor]:
        """The PyTorch model's raw outputs for prepared tensors: encoder -> (B, E). Not available from engines."""
        if not isinstance(self.backend, TorchBackend):
            raise ConfigError(
                "engines give finished embeddings only, not the model's raw outputs",
                "load the checkpoint instead of the bundle, or use embed()",
            )
        return self.backend.model(batch.to(self.backend.device), encoders)

    def embed(
        self,
        text: str | Sequence[str] | None = None,
        video: str | Path | Sequence[str | Path] | None = None,
        audio: str | Path | Sequence[str | Path] | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> Floats:
        """Embed rows of sentences, videos, sounds or combinations; what is given decides the encoder.

        Args:
            text: a sentence or a list of them.
            video: a video file, or a list: what is seen.
            audio: a video or sound file, or a list: what is heard. Where it is the same file as `video` and has no
                sound, the row is embedded as a clip without sound.
            batch_size: rows computed at once.

        Returns:
            (B, E) float32, unit norm.

        Raises:
            ConfigError: nothing given, or a combination the model has no encoder for.
            DataError: lists of different length, an empty list, a sentence without a known word.
            MediaError: a file that cannot be read, or sound asked of one that has none.
        """
        sentences, videos, audios = _as_list(text), _as_list(video), _as_list(audio)
        given = {
            name: rows for name, rows in zip(MODALITIES, (sentences, videos, audios), strict=True) if rows is not None
        }
        if not given:
            raise ConfigError("nothing to embed", "give text, video or audio")
        encoder = self._check_encoder("-".join(given))
        sizes = {name: len(rows) for name, rows in given.items()}
        if len(set(sizes.values())) > 1:
            shown = ", ".join(f"{count} {name}" for name, count in sizes.items())
            raise DataError(f"the rows do not pair up: {shown}", "give as many of each")
        rows = next(iter(sizes.values()))
        if rows == 0:
            raise DataError(f"an empty list of {next(iter(given))}", "give at least one")
        parts = []
        for start in range(0, rows, batch_size):
            chunk = slice(start, start + batch_size)
            clips = None
            if videos is not None or audios is not None:
                clips = self._read(videos and videos[chunk], audios and audios[chunk])
            words = None if sentences is None else [str(s) for s in sentences[chunk]]
            parts.append(self.encode(words, clips, encoder))
        return unit_norm(np.concatenate(parts))

    def embed_features(
        self, clips: Sequence[ClipFeatures], encoder: str = "video-audio", batch_size: int = BATCH_SIZE
    ) -> Floats:
        """Embed clips whose features are there already: (B, E) float32, unit norm."""
        self._check_encoder(encoder)
        batches = (self.batch(None, clips[i : i + batch_size], encoder) for i in range(0, len(clips), batch_size))
        parts = [self.backend.encode(batch, encoder) for batch in batches]
        return unit_norm(np.concatenate(parts)) if parts else np.zeros((0, self.embedding_dim), np.float32)

    def embed_clips(self, path: str | Path, encoders: Sequence[str] | None = None) -> list[Clip]:
        """Embed a whole file as consecutive windows of the model's training length.

        Args:
            path: a video file of any length.
            encoders: by default those of "video-audio", "video" and "audio" that the model offers.
        """
        features = self.extractor.extract(Path(path))
        return self.embed_windows([(features, self.windows(features.duration))], encoders)[0]

    def embed_windows(
        self,
        files: Sequence[tuple[ClipFeatures, Sequence[tuple[float, float]]]],
        encoders: Sequence[str] | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> list[list[Clip]]:
        """Embed windows of several files together, so that many short files fill whole batches.

        Args:
            files: features of a file, and the (start, end) seconds of its windows.
            encoders: see `embed_clips`.
            batch_size: windows computed at once.
        """
        wanted = [e for e in CLIP_ENCODERS if e in self.encoders] if encoders is None else list(encoders)
        cut = [self.cut(features, start, end) for features, windows in files for start, end in windows]
        vectors = {encoder: self.embed_features(cut, encoder, batch_size) for encoder in wanted}
        row = 0
        result = []
        for _, windows in files:
            clips = []
            for start, end in windows:
                silent = not _has_sound(cut[row])
                clips.append(Clip(start, end, {e: x[row] for e, x in vectors.items() if not (silent and e == "audio")}))
                row += 1
            result.append(clips)
        return result

    def windows(self, duration: float) -> list[tuple[float, float]]:
        """(start, end) seconds of the windows that cover a file.

        They follow each other; the last is moved back to end with the file, so that every window is full. A rest of
        under 5 % of a window is left out.
        """
        length = self.clip_seconds
        count = max(1, math.ceil(duration / length - 0.05))
        if count == 1:
            return [(0.0, duration)]
        starts = [min(i * length, max(0.0, duration - length)) for i in range(count)]
        return [(start, min(start + length, duration)) for start in starts]

    def cut(self, features: ClipFeatures, start: float, end: float) -> ClipFeatures:
        """The features of a window of a file, in seconds."""
        from eao.features.segments import cut_features

        return cut_features(features, self.config.features, start, end)

    def batch(
        self,
        text: Sequence[str] | None = None,
        clips: Sequence[ClipFeatures] | None = None,
        encoder: str | None = None,
    ) -> Batch:
        """The tensors a model sees.

        Args:
            text: B sentences.
            clips: B clips' features; a stream longer than the model's tokens is cut or resampled as in training.
            encoder: only the modalities it reads are made; by default all that are given.

        Raises:
            DataError: a sentence without a known word, or clips without the features asked for.
        """
        modalities = MODALITIES if encoder is None else encoder_modalities(encoder)
        batch = Batch()
        if text is not None and "text" in modalities:
            from eao.data.text import require_words

            batch.text, batch.text_mask = self.text_encoder.encode(list(text))
            require_words(text, batch.text_mask)
        if clips is not None and "video" in modalities:
            data = self.config.data
            made = [create_video(c.video_2d, c.video_3d, data.video_tokens, data.sampling) for c in clips]
            batch.video = torch.from_numpy(np.stack([x for x, _ in made]))
            batch.video_mask = torch.from_numpy(np.stack([mask for _, mask in made]))
        if clips is not None and "audio" in modalities:
            silence = np.zeros((_MEL_BANDS, 0), np.float32)
            spectrograms = [silence if c.audio is None else c.audio for c in clips]
            sounds = [create_audio(x, self.config.data.audio_frames) for x in spectrograms]
            batch.audio = torch.from_numpy(np.stack([x for x, _, _ in sounds]))
            batch.audio_mask = torch.from_numpy(np.stack([mask for _, mask, _ in sounds]))
            batch.audio_frames = torch.tensor([frames for _, _, frames in sounds])
        return batch

    def encode(self, words: Sequence[str] | None, clips: Sequence[ClipFeatures] | None, encoder: str) -> Floats:
        """Embed one batch of sentences, of clips' features, or of both together: (B, E) float32, unit norm.

        Args:
            words: B sentences.
            clips: B clips' features.
            encoder: of the model.

        Raises:
            DataError: a sentence without a known word, or clips without the features asked for.
        """
        if words is not None and isinstance(self.backend, SentenceBackend):
            rows = self.backend.encode_sentences(words, clips, encoder)
            if rows is not None:
                return rows
        return self.backend.encode(self.batch(words, clips, encoder), encoder)

    def _read(self, videos: Sequence[str | Path] | None, audios: Sequence[str | Path] | None) -> list[ClipFeatures]:
        """The features of each row, from its files."""
        if videos is None:
            return [self._sound(Path(path)) for path in audios or ()]
        clips = []
        for row, path in enumerate(videos):
            features = self.extractor.extract(Path(path))
            if audios is not None and Path(audios[row]) != Path(path):
                features = replace(features, audio=self._sound(Path(audios[row])).audio)
            self._warn_if_long(path, features.duration)
            clips.append(features)
        return clips

    def _sound(self, path: Path) -> ClipFeatures:
        from eao.features.extractor import ClipFeatures, FeatureExtractor

        spectrogram, duration = FeatureExtractor.decode_sound(path)
        self._warn_if_long(path, duration)
        return ClipFeatures(video_2d=None, video_3d=None, audio=spectrogram, duration=duration)

    def _warn_if_long(self, path: str | Path, duration: float) -> None:
        if len(self.windows(duration)) > 1:
            log.warning(
                "%s lasts %.1f s: only its first %.1f s are embedded; embed_clips() covers all of it",
                path,
                duration,
                self.clip_seconds,
            )

    def _check_encoder(self, encoder: str) -> str:
        if encoder not in self.encoders:
            raise ConfigError(
                f"this model has no encoder {encoder!r}",
                f"it offers {', '.join(self.encoders)} ({self.source or 'in memory'})",
            )
        return encoder


def _has_sound(features: ClipFeatures) -> bool:
    return features.audio is not None and features.audio.shape[1] > 0


def _as_list(value: str | Path | Sequence[str | Path] | None) -> list[str | Path] | None:
    if value is None:
        return None
    return [value] if isinstance(value, str | Path) else list(value)


def _check_width(modality: str, width: int, expected: int, key: str) -> None:
    if width != expected:
        raise ConfigError(
            f"the {modality} features are {width} wide, but the model was trained on {expected}",
            f"set {key} to what it was trained on",
        )
