"""From video files to features: `FeatureExtractor` for one file, `extract_folder` for many, onto disk and resumable.

The layout on disk, read by `eao.data.folder`:

    features.yaml     the configuration; another one is refused
    manifest.jsonl    a line for each finished clip: id, file, start, end, duration, rows of each stream
    failed.jsonl      a line for each file that could not be read: file, reason; tried again by the next run
    <id>_2d.npz       `features` (n, d) float16; likewise <id>_3d.npz
    <id>_spec.npz     `arr_0` (40, T) float16; absent when the clip has no sound

The id of a clip is its path below the input folder without the suffix, for example `cooking/0001`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eao.config import FeaturesConfig
from eao.errors import ConfigError, DataError, MediaError
from eao.features.backbones import FRAME_SIZE, Backbone, FrameNetwork, FrameOutputs, get_backbone
from eao.features.media import AUDIO_SUFFIXES, SAMPLE_RATE, VIDEO_SUFFIXES, ClipReader, SampledFrame, read_audio
from eao.features.pipeline import extract_side_by_side
from eao.features.spectrogram import log_mel
from eao.features.store import FeatureStore

STREAMS = ("video_2d", "video_3d")

Progress = Callable[[int, int, str], None]
"""Called after each clip with (done, total, id)."""


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


@dataclass(frozen=True)
class ExtractionReport:
    """What a run of `extract_folder` did, or would do.

    Attributes:
        extracted: ids of the clips that were extracted (of those that would be, for a dry run).
        skipped: ids that were there already.
        failed: {"file", "reason"} of each file that could not be read.
        seconds: wall-clock time.
    """

    extracted: list[str]
    skipped: list[str]
    failed: list[dict[str, str]]
    seconds: float


class FeatureExtractor:
    """Turns a video file into features. The network is loaded on first use and shared by both streams.

    Args:
        config: which streams, and their rates.
        device: a torch device for the network.

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
        self.streams: dict[str, tuple[Backbone, float]] = {
            name: (get_backbone(stream.backbone), stream.rate) for name, stream in streams.items() if stream is not None
        }
        # A CPU does 41 frames/s a core at 4, 34 at 8 and 30 at 32: larger batches outgrow its caches.
        self.batch_size = 4 if device == "cpu" else 64
        self._network: FrameNetwork | None = None

    @property
    def dims(self) -> dict[str, int]:
        """Width of the rows of each configured stream."""
        return {name: backbone.dim for name, (backbone, _) in self.streams.items()}

    @property
    def rates(self) -> list[float]:
        """Rows per second of each configured stream, in the order of `dims`."""
        return [rate for _, rate in self.streams.values()]

    @property
    def network(self) -> FrameNetwork:
        """The image network.

        Raises:
            MissingDependencyError: if its weights are not installed.
        """
        if self._network is None:
            self._network = FrameNetwork(self.device)
        return self._network

    def extract(self, path: str | Path, check: Callable[[], None] | None = None) -> ClipFeatures:
        """Features of one video file (of the sound alone, if the configuration has no video stream).

        Memory does not grow with the number of frames beyond their features. Threads may share one extractor.

        Args:
            path: the file.
            check: called before each batch; what it raises ends the work.

        Raises:
            MediaError: if the file cannot be decoded, or holds nothing that the configuration asks for.
        """
        if not self.streams:
            return ClipFeatures(None, None, *self.decode_sound(path))
        reader = ClipReader(path, self.rates, FRAME_SIZE)
        outputs: list[FrameOutputs] = []
        rows: list[tuple[bool, ...]] = []
        for batch in _batched(reader, self.batch_size):
            if check is not None:
                check()
            outputs.append(self.network(np.stack([frame.image for frame in batch])))
            rows.extend(frame.rows for frame in batch)
        all_frames = FrameOutputs.concatenate(outputs)
        features: dict[str, NDArray[np.float32]] = {}
        for (name, (backbone, _)), sampled in zip(self.streams.items(), np.array(rows).T, strict=True):
            features[name] = backbone.rows(all_frames.select(np.flatnonzero(sampled)))
        spectrogram = log_mel(reader.audio) if reader.audio is not None else None
        return ClipFeatures(features.get("video_2d"), features.get("video_3d"), spectrogram, reader.duration)

    def extract_audio(self, path: str | Path) -> NDArray[np.float32]:
        """The spectrogram (40, T) of an audio file, or of the sound of a video file.

        Raises:
            MediaError: if the file cannot be decoded or has no sound.
        """
        return self.decode_sound(path)[0]

    @staticmethod
    def decode_sound(path: str | Path) -> tuple[NDArray[np.float32], float]:
        """The spectrogram (40, T) of a file's sound, and its length in seconds. Errors: as for `extract_audio`."""
        samples = read_audio(path)
        if samples is None:
            raise MediaError(f"{path} has no sound", "give a file with an audio stream")
        return log_mel(samples), samples.size / SAMPLE_RATE


def find_clips(inputs: Iterable[str | Path], audio_only: bool = False) -> dict[str, Path]:
    """The clips in files and folders as {id: absolute path}, sorted by id.

    Folders are searched recursively for the usual video suffixes; hidden files and folders are passed over. A file
    that is reached twice counts once.

    Args:
        inputs: files and folders.
        audio_only: also take audio files.

    Raises:
        DataError: if an input does not exist, a folder holds no clip, or two files would have the same id (`a.mp4` and
            `a.mkv`): guessing which is meant, or numbering them, would tie captions to the wrong file.
    """
    suffixes = VIDEO_SUFFIXES | AUDIO_SUFFIXES if audio_only else VIDEO_SUFFIXES
    clips: dict[str, Path] = {}
    seen: set[Path] = set()
    for given in map(Path, inputs):
        if given.is_dir():
            found: dict[str, list[Path]] = {}
            for path in sorted(given.rglob("*")):
                relative = path.relative_to(given)
                hidden = any(part.startswith(".") for part in relative.parts)
                if not hidden and path.suffix.lower() in suffixes and path.is_file():
                    found.setdefault(relative.with_suffix("").as_posix(), []).append(path)
            if not found:
                kinds = ", ".join(sorted(suffixes))
                raise DataError(f"the folder {given} holds no video", f"looked for files ending in {kinds}")
        elif given.exists():
            found = {given.stem: [given]}
        else:
            raise DataError(f"no such file or folder: {given}", "check the path")
        for clip_id, paths in found.items():
            for path in paths:
                resolved = path.resolve()
                if resolved in seen:
                    continue
                seen.add(resolved)
                if clip_id in clips:
                    raise DataError(
                        f"{clips[clip_id]} and {path.absolute()} would both be the clip {clip_id!r}",
                        "rename one of them, or extract them into two folders",
                    )
                clips[clip_id] = path.absolute()
    return dict(sorted(clips.items()))


def find_videos(inputs: Iterable[str | Path]) -> list[Path]:
    """The video files in files and folders, for indexing: clips of one name in two inputs are different clips here.

    Raises:
        DataError: as for `find_clips` of each input.
    """
    return list(dict.fromkeys(path for given in inputs for path in find_clips([given]).values()))


def extract_folder(
    inputs: Sequence[str | Path],
    out: str | Path,
    config: FeaturesConfig,
    *,
    device: str = "cpu",
    progress: Progress | None = None,
    dry_run: bool = False,
    workers: int | None = None,
    extractor: FeatureExtractor | None = None,
) -> ExtractionReport:
    """Extract the features of all clips in `inputs` into the folder `out`.

    The run can be broken off at any time and repeated: finished clips are skipped, files that failed are tried again.
    Files that cannot be read are written to `failed.jsonl`, and the rest goes on.

    Args:
        inputs: files and folders, see `find_clips`.
        out: the folder to write.
        config: which features.
        device: a torch device for the network.
        progress: called after each clip.
        dry_run: only say what would be done; nothing is written or decoded.
        workers: clips at a time; by default as many as torch has threads, which they share.
        extractor: a loaded extractor of the same configuration to use again.

    Raises:
        DataError: for no clips, clashing ids, an output that another run is writing, or a disk that takes no more.
        ConfigError: if `out` holds features of another configuration, or a backbone is unknown.
        MissingDependencyError: if the weights of the network are not installed.
    """
    begin = time.perf_counter()
    extractor = extractor if extractor is not None else FeatureExtractor(config, device)
    if extractor.config != config:
        raise ConfigError("the extractor was built for another features configuration", "give both the same one")
    clips = find_clips(inputs, audio_only=not extractor.streams)
    store = FeatureStore(Path(out), config)
    done = store.finished(clips)
    todo = {clip_id: path for clip_id, path in clips.items() if clip_id not in done}
    if dry_run or not (todo or store.has_moved_clips):
        return ExtractionReport(list(todo), sorted(done), [], time.perf_counter() - begin)
    if extractor.streams and todo:
        _ = extractor.network  # missing weights are to be noticed before the first clip is decoded
    extracted: list[str] = []
    failed: list[dict[str, str]] = []
    with store.writing(clips), extract_side_by_side(todo, extractor, workers) as results:
        for clip_id, result in results:
            if isinstance(result, MediaError):
                reason = " ".join(result.message.split())
                failed.append({"file": str(todo[clip_id]), "reason": reason})
                store.add_failure(todo[clip_id], reason)
            else:
                store.add(clip_id, todo[clip_id], result)
                extracted.append(clip_id)
            if progress is not None:
                progress(len(extracted) + len(failed), len(todo), clip_id)
    return ExtractionReport(sorted(extracted), sorted(done), failed, time.perf_counter() - begin)


def _batched(frames: Iterable[SampledFrame], size: int) -> Iterator[list[SampledFrame]]:
    batch: list[SampledFrame] = []
    for frame in frames:
        batch.append(frame)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
