"""CrossTask and Mining YouTube: instructional videos in one-second segments, with the steps to be found in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from eao.config import CrossTaskData, DataConfig, StepData
from eao.data.arrays import Array, check_finite, check_rows, check_spectrogram, load_array
from eao.data.columns import read_columns
from eao.data.item import Item, clip_shape, make_item
from eao.data.sampling import crop_audio, seconds_to_frames, video_rows
from eao.errors import ConfigError, DataError

# S segments, K steps, D width of a stream

HINT = "take the video out of the list, or complete its files"


class TaskVideo(NamedTuple):
    """A long video with the steps that may be seen in it.

    Attributes:
        id: name of the video.
        task: name of the task it shows; empty in Mining YouTube.
        clips: its S segments, in order; they all have the video's id and no caption.
        steps: K sentences, in order.
        labels: (S, K), nonzero where a segment shows a step; or (S,), the number of the step, counted from 1.
    """

    id: str
    task: str
    clips: list[Item]
    steps: list[str]
    labels: NDArray[Any]


class Segment(NamedTuple):
    """What is seen of a segment, and what the audio network hears around it, in seconds."""

    start: int
    end: int
    audio_start: int
    audio_end: int


class StepDataset:
    """Videos in one-second segments. Segments and steps are embedded apart: there are more of the one than the other.

    Args:
        config: the files; its type tells CrossTask, whose steps go by task, from Mining YouTube, whose go by video.
        data: numbers of tokens and frames, and the sampling.

    Attributes:
        videos: id and task of each video.
        video_dim: width of a video token.

    Raises:
        ConfigError: neither 2-D nor 3-D features are asked for.
        DataError: naming the file, for a malformed list or steps, a video without steps, or missing features of the
            first video.
    """

    is_cached = False
    complete_dataset_size = None

    def __init__(self, config: StepData, data: DataConfig) -> None:
        self.config = config
        self.shape = clip_shape(config, data)
        self.by_task = isinstance(config, CrossTaskData)
        if not (config.use_2d or config.use_3d):
            raise ConfigError("segments are to be read without video features", "set use_2d or use_3d")
        if self.by_task:
            self.videos = [(video, task) for video, task in read_columns(config.csv, ["video_id", "task"])]
        else:
            self.videos = [(video, "") for (video,) in read_columns(config.csv, ["video_id"])]
        self._steps = _read_steps(config.steps)
        for video, task in self.videos:
            if self._steps_key(video, task) not in self._steps:
                raise DataError(f"{config.steps} has no steps of {self._steps_key(video, task)!r}", HINT)
        self.video_dim = sum(x.shape[1] for x in self._streams(self.videos[0][0]) if x is not None)

    def __len__(self) -> int:
        return len(self.videos)

    def video(self, index: int) -> TaskVideo:
        """Video `index` whole.

        Raises:
            DataError: naming the file that is missing or damaged.
        """
        video, task = self.videos[index]
        steps = self._steps[self._steps_key(video, task)]
        labels = self._labels(video, task, len(steps))
        streams = self._streams(video)
        width = sum(x.shape[1] for x in streams if x is not None)
        if width != self.video_dim:
            raise DataError(
                f"{self.config.features}: the features of {video} have {width} columns, those of "
                f"{self.videos[0][0]} {self.video_dim}",
                HINT,
            )
        audio_file = Path(self.config.audio, f"{video}.npz")
        name = f"{audio_file}: 'arr_0'"
        audio = check_finite(check_spectrogram(load_array(audio_file, "arr_0", HINT), name, HINT), name, HINT)
        segments = segment_times(len(labels), self.config.clip_radius, self.config.audio_padding)
        return TaskVideo(video, task, [self._item(video, s, *streams, audio) for s in segments], steps, labels)

    def clips(self, index: int, rng: np.random.Generator) -> list[Item]:
        """The segments of video `index`."""
        return self.video(index).clips

    def _item(self, video: str, segment: Segment, rows_2d: Array | None, rows_3d: Array | None, audio: Array) -> Item:
        video_2d, video_3d = (
            x if x is None else x[video_rows(segment.start, segment.end, rate, accurate=True)]
            for x, rate in ((rows_2d, self.config.rate_2d), (rows_3d, self.config.rate_3d))
        )
        heard = crop_audio(audio, segment.audio_start, segment.audio_end)
        item = make_item(video, "", video_2d, video_3d, heard, self.shape, self.video_dim)
        # The padding is heard by the audio network, but gives no tokens.
        item.audio_mask[: max(0, seconds_to_frames(segment.start - segment.audio_start))] = False
        item.audio_mask[max(0, seconds_to_frames(segment.end - segment.audio_start)) :] = False
        return item

    def _steps_key(self, video: str, task: str) -> str:
        return task if self.by_task else video

    def _labels(self, video: str, task: str, steps: int) -> NDArray[Any]:
        file = Path(self.config.annotations, f"{task}_{video}.npy" if self.by_task else f"{video}.npy")
        labels = load_array(file, None, HINT)
        if labels.dtype.kind not in "biuf" or labels.ndim not in (1, 2) or not len(labels):
            raise DataError(
                f"{file} is {labels.dtype}{labels.shape}, not labels (segments, steps) or (segments,)", HINT
            )
        if labels.ndim == 2 and labels.shape[1] != steps:
            raise DataError(f"{file} has labels of {labels.shape[1]} steps, {self.config.steps} lists {steps}", HINT)
        return check_finite(labels, str(file), HINT)

    def _streams(self, video: str) -> tuple[Array | None, Array | None]:
        folder = Path(self.config.features)
        return (
            _rows(folder / f"{video}_2d.npy") if self.config.use_2d else None,
            _rows(folder / f"{video}_3d.npy", folder / f"{video}.npz") if self.config.use_3d else None,
        )


def segment_times(segments: int, radius: int, padding: int) -> list[Segment]:
    """The one-second segments of a video, each widened by `radius` for all and by `padding` more for the sound."""
    times = []
    for i in range(segments):
        start, end = max(0, i - radius), min(i + radius + 1, segments)
        times.append(Segment(start, end, max(0, start - padding), min(end + padding, segments)))
    return times


def _rows(file: Path, other: Path | None = None) -> Array:
    """The features in a `.npy` file, or in a `.npz` file that stands in its place."""
    if other is not None and not file.is_file() and other.is_file():
        rows, name = load_array(other, "features", HINT), f"{other}: 'features'"
    else:
        rows, name = load_array(file, None, HINT), str(file)
    return check_finite(check_rows(rows, name, HINT), name, HINT)


def _read_steps(path: str) -> dict[str, list[str]]:
    try:
        steps = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"cannot read steps from {path}: {error}", "it must be a JSON file") from None
    if not isinstance(steps, dict):
        raise DataError(f"{path} holds no steps by name", 'for example {"23521": ["add salt", "stir"]}')
    for name, sentences in steps.items():
        if not isinstance(sentences, list) or not sentences or not all(isinstance(x, str) for x in sentences):
            raise DataError(f"{path}: {name!r} is not a list of steps", 'for example ["add salt", "stir"]')
    return steps
