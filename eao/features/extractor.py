"""From one video file to features: decoding, networks and the spectrogram."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from eao.config import FeaturesConfig
from eao.errors import MediaError
from eao.features.backbones import Backbone, Forward, Network, Outputs, get_backbone
from eao.features.fingerprint import fingerprint
from eao.features.frames import SampledFrame, View
from eao.features.media import ClipReader
from eao.features.sound import SAMPLE_RATE
from eao.features.spectrogram import log_mel

STREAMS = ("video_2d", "video_3d")


@dataclass(frozen=True)
class ClipFeatures:
    """Features of one clip.

    Attributes:
        video_2d: (n, d) float32, None if the configuration has no such stream.
        video_3d: likewise.
        audio: (40, T) float32 dB in [-80, 0], None if the clip has no sound.
        duration: seconds.
    """

    video_2d: NDArray[np.float32] | None
    video_3d: NDArray[np.float32] | None
    audio: NDArray[np.float32] | None
    duration: float


class Reader(Protocol):
    """A file being decoded: iterate over its frames, then read `audio` and `duration`. See `ClipReader`."""

    @property
    def audio(self) -> NDArray[np.float32] | None: ...

    @property
    def duration(self) -> float: ...

    def __iter__(self) -> Iterator[SampledFrame]: ...


OpenClip = Callable[[str | Path, list[View]], Reader]
Compute = Callable[[Forward, NDArray[np.uint8], int], Callable[[], Outputs]]
"""Begins to compute a batch, which may hold fewer rows than the size given; what it gives waits for the outputs."""


def compute_now(forward: Forward, images: NDArray[np.uint8], size: int) -> Callable[[], Outputs]:
    """Compute a batch at once."""
    outputs = forward(images)
    return lambda: outputs


class Stream(NamedTuple):
    """One configured stream.

    Attributes:
        name: as in `features.<name>`.
        backbone: how its rows are made.
        rate: of its rows, in 1/s.
        weights: the configured file or folder of the network's weights.
    """

    name: str
    backbone: Backbone
    rate: float
    weights: str | None

    @property
    def network(self) -> Network:
        """What looks at its frames."""
        return self.backbone.network

    @property
    def view(self) -> View:
        """The frames that its network is shown."""
        network = self.network
        return View(self.rate * network.chunk, network.side, network.crop)

    def find_weights(self) -> Path:
        """The file or folder of the weights. Errors: as `Network.find_weights`."""
        return self.network.find_weights(self.weights, f"features.{self.name}.weights")


class FeatureExtractor:
    """Turns a video file into features. Networks are loaded on first use; streams of one network at one rate share it.

    Args:
        config: which streams, and their rates.
        device: a torch device for the networks.

    Raises:
        ConfigError: if a backbone is unknown.

    Example:
        >>> FeatureExtractor(FeaturesConfig()).dims
        {'video_2d': 1280, 'video_3d': 98}
    """

    def __init__(self, config: FeaturesConfig, device: str = "cpu") -> None:
        self.config = config
        self.device = device
        streams = {name: getattr(config, name) for name in STREAMS}
        self.streams: dict[str, Stream] = {
            name: Stream(name, get_backbone(stream.backbone), stream.rate, stream.weights)
            for name, stream in streams.items()
            if stream is not None
        }
        self._loaded: dict[tuple[str, Path], Forward] = {}

    @property
    def dims(self) -> dict[str, int]:
        """Width of the rows of each configured stream."""
        return {name: stream.backbone.dim for name, stream in self.streams.items()}

    def load(self) -> None:
        """Load every network now.

        Raises:
            ConfigError: if weights are not given, or do not exist.
            MissingDependencyError: if weights that a package ships, or what runs an engine, are not installed.
            CheckpointError: if weights cannot be read or are of another network.
        """
        for stream in self.streams.values():
            self.forward(stream)

    def fingerprints(self) -> dict[str, str]:
        """The SHA-256 of each stream's weights, by the name of the stream. Nothing is loaded.

        Raises:
            ConfigError, MissingDependencyError: as for `load`.
        """
        return {name: fingerprint(stream.find_weights()) for name, stream in self.streams.items()}

    def extract(
        self,
        path: str | Path,
        check: Callable[[], None] | None = None,
        open_clip: OpenClip = ClipReader,
        compute: Compute = compute_now,
    ) -> ClipFeatures:
        """Features of one video file (of the sound alone, if the configuration has no video stream).

        Memory does not grow with the number of frames beyond their features. Threads may share one extractor.

        Args:
            path: the file.
            check: called before each batch; what it raises ends the work.
            open_clip: what decodes it.
            compute: what computes the batches of its frames.

        Raises:
            MediaError: if the file cannot be decoded, or holds nothing that the configuration asks for.
        """
        if not self.streams:
            return ClipFeatures(None, None, *self.decode_sound(path, open_clip))
        # Streams of one network, with the same weights and frames, share what it computes.
        runs = {(s.network.name, s.weights, s.view): s for s in self.streams.values()}
        pending = [_Pending(self.forward(s), s.network, s.network.size_on(self.device), compute) for s in runs.values()]
        reader = open_clip(path, [stream.view for stream in runs.values()])
        for frame in reader:
            if pending[frame.view].add(frame.image) and check is not None:
                check()
        outputs = {key: run.finish() for key, run in zip(runs, pending, strict=True)}
        features = {
            name: s.backbone.rows(outputs[s.network.name, s.weights, s.view]) for name, s in self.streams.items()
        }
        spectrogram = log_mel(reader.audio) if self.config.audio and reader.audio is not None else None
        return ClipFeatures(features.get("video_2d"), features.get("video_3d"), spectrogram, reader.duration)

    @staticmethod
    def decode_sound(path: str | Path, open_clip: OpenClip = ClipReader) -> tuple[NDArray[np.float32], float]:
        """The spectrogram (40, T) of the sound of an audio or video file, and its length in seconds.

        Raises:
            MediaError: if the file cannot be decoded or has no sound.
        """
        reader = open_clip(path, [])
        for _ in reader:
            pass
        samples = reader.audio
        if samples is None:
            raise MediaError(f"{path} has no sound", "give a file with an audio stream", "no-sound")
        return log_mel(samples), samples.size / SAMPLE_RATE

    def forward(self, stream: Stream) -> Forward:
        """The network of a stream, loaded. Errors: as for `load`."""
        weights = stream.find_weights()
        key = (stream.network.name, weights)
        if key not in self._loaded:
            self._loaded[key] = stream.network.load(weights, self.device)
        return self._loaded[key]


@dataclass
class _Pending:
    """Frames on their way through one network: gathered into chunks, and chunks into batches."""

    forward: Forward
    network: Network
    size: int
    compute: Compute
    frames: list[NDArray[np.uint8]] = field(default_factory=list)
    outputs: list[Callable[[], Outputs]] = field(default_factory=list)

    def add(self, image: NDArray[np.uint8]) -> bool:
        """Take a frame. Returns whether a batch was computed."""
        self.frames.append(image)
        if len(self.frames) < self.size * self.network.chunk:
            return False
        self._compute()
        return True

    def finish(self) -> Outputs:
        """The outputs for all frames; the last chunk is filled up with black."""
        if lacking := -len(self.frames) % self.network.chunk:
            self.frames += [np.zeros_like(self.frames[0])] * lacking
        if self.frames:
            self._compute()
        return np.concatenate([wait() for wait in self.outputs])

    def _compute(self) -> None:
        images = np.stack(self.frames)
        if self.network.chunk > 1:
            images = images.reshape(-1, self.network.chunk, *images.shape[1:])
        self.outputs.append(self.compute(self.forward, images, self.size))
        self.frames.clear()
