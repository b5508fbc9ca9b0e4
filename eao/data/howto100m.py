"""HowTo100M (Miech et al., ICCV 2019): windows drawn at random from long videos, with what is said in them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from eao.config import DataConfig, HowTo100MData
from eao.data.arrays import Array, check_finite, check_rows, check_spectrogram, load_array
from eao.data.columns import read_columns
from eao.data.item import ClipShape, Item, clip_shape, make_item
from eao.data.pickles import read_pickle
from eao.data.record import Record
from eao.data.sampling import crop_audio, frames_to_seconds, seconds_to_frames, video_rows
from eao.errors import ConfigError, DataError

# n rows of a stream, D its width, T spectrogram frames, C captions of a video

HINT = "take the video out of the list, or complete the features"
UNKNOWN_FRAMES = -1


class Draws(Protocol):
    """What windows are drawn with, such as numpy's Generator."""

    def random(self) -> float:
        """A number from 0 up to 1."""
        ...


class Speech(NamedTuple):
    """The captions of a video.

    Attributes:
        starts: (C,) float64, ascending, when each begins, in seconds.
        ends: (C,) float64.
        texts: the sentences, joined by line breaks: a string for each of the 136 million captions would take twice the
            memory.
    """

    starts: NDArray[np.float64]
    ends: NDArray[np.float64]
    texts: str


class Passage(NamedTuple):
    """Neighbouring captions that make up a clip.

    Attributes:
        start, end: when the clip begins and ends, in seconds.
        order: the captions, in the order in which they were added.
    """

    start: float
    end: float
    order: list[int]


class Window(NamedTuple):
    """What becomes a clip: parts of a video's features, as views, so that nothing of them is read yet.

    Attributes:
        id: of the clip.
        caption: what is said, empty where nothing is.
        video_2d: (n2, D2); None for a stream that is not used.
        video_3d: (n3, D3).
        audio: (40, T).
    """

    id: str
    caption: str
    video_2d: Array | None
    video_3d: Array | None
    audio: Array


class HowTo100MDataset:
    """Videos with recognised speech; reading one gives clips of `clips_per_video` windows.

    The list and all captions are in memory (for the whole of HowTo100M about 20 GB, and minutes to read); features are
    read when they are needed, and that a file is missing is known only then.

    Args:
        config: the files, and how windows are drawn.
        data: numbers of tokens and frames, and the sampling.

    Attributes:
        paths: each video's path in the folders of features; its last part is the id.
        video_dim: width of a video token.

    Raises:
        ConfigError: neither 2-D nor 3-D features are asked for.
        DataError: naming the file, for a malformed list, missing or malformed captions, or a missing folder.
    """

    is_cached = False
    complete_dataset_size = None

    def __init__(self, config: HowTo100MData, data: DataConfig) -> None:
        self.config = config
        self.shape = clip_shape(config, data)
        folders = (config.features_2d, config.features_3d, config.audio)
        if folders[:2] == (None, None):
            raise ConfigError("howto100m is to be read without video features", "set features_2d or features_3d")
        for folder in folders:
            if folder is not None and not Path(folder).is_dir():
                raise DataError(f"{folder} is not a folder", "check the path")
        # The lists of the authors put `None` where a video has no category.
        self.paths = [path.replace("None/", "") for (path,) in read_columns(config.csv, ["path"])]
        self._speech = read_speech(config.captions, map(_video_id, self.paths))
        self._widths: dict[str, int] = {}
        self._streams(self.paths[0])
        self.video_dim = sum(self._widths.values())

    def __len__(self) -> int:
        return len(self.paths)

    def record(self, index: int) -> Record:
        """The features of video `index`, read from disk, and its captions.

        Raises:
            DataError: naming the file that is missing, damaged, or of another width than the first video's.
        """
        path = self.paths[index]
        video_id = _video_id(path)
        speech = self._speech[video_id]
        texts = speech.texts.split("\n") if len(speech.starts) else []
        video_2d, video_3d = self._streams(path)
        audio_file = Path(self.config.audio, path, f"{video_id}_spec.npz")
        name = f"{audio_file}: 'arr_0'"
        audio = check_finite(check_spectrogram(load_array(audio_file, "arr_0", HINT), name, HINT), name, HINT)
        return Record(video_id, path, video_2d, video_3d, audio, texts, speech.starts, speech.ends)

    def clips(self, index: int, rng: np.random.Generator) -> list[Item]:
        """`clips_per_video` clips of video `index`."""
        return speech_clips(self.record(index), rng, self.config, self.shape, self.video_dim)

    def _streams(self, path: str) -> tuple[Array | None, Array | None]:
        video_id = _video_id(path)
        return (
            self._rows(self.config.features_2d, [f"{path}/{video_id}_2d.npz", f"{path}_2d.npz"], "2d"),
            self._rows(self.config.features_3d, [f"{path}/{video_id}_3d.npz", f"{path}/{video_id}.npz"], "3d"),
        )

    def _rows(self, folder: str | None, names: list[str], stream: str) -> Array | None:
        """The features of one stream, from the first of the files that exists."""
        if folder is None:
            return None
        files = [Path(folder, name) for name in names]
        file = next((file for file in files if file.is_file()), None)
        if file is None:
            raise DataError(f"there is neither {files[0]} nor {files[1]}", HINT)
        name = f"{file}: 'features'"
        rows = check_finite(check_rows(load_array(file, "features", HINT), name, HINT), name, HINT)
        width = self._widths.setdefault(stream, rows.shape[1])
        if rows.shape[1] != width:
            raise DataError(f"{name} has rows of width {rows.shape[1]}, those of {self.paths[0]} {width}", HINT)
        return rows


def speech_clips(record: Record, rng: Draws, config: HowTo100MData, shape: ClipShape, video_dim: int) -> list[Item]:
    """Clips of windows drawn one after the other from a video; they may overlap.

    Args:
        record: a video with the times of its captions.
        rng: see `draw_windows`.
        config: how windows are drawn.
        shape: sizes of the clips.
        video_dim: width of a video token.
    """
    return [window_clip(window, shape, video_dim) for window in draw_windows(record, rng, config, shape)]


def draw_windows(record: Record, rng: Draws, config: HowTo100MData, shape: ClipShape) -> list[Window]:
    """`clips_per_video` windows of a video.

    A clip is the passage spoken at the beginning of its window, or else at the end, or else the silent window itself,
    with no caption. A passage that lies wholly inside the window is not noticed. A video in which nothing is said is
    silent throughout.

    Args:
        record: a video with the times of its captions.
        rng: a number is drawn for each window, and with `audio_shift` another for each passage.
        config: how windows are drawn.
        shape: sizes of the clips.
    """
    return [_draw_window(record, rng, config, shape) for _ in range(config.clips_per_video)]


def window_clip(window: Window, shape: ClipShape, video_dim: int) -> Item:
    """The clip of a window. The number of real audio frames is reported as unknown (-1), as the published models were
    trained."""
    return make_item(*window, shape, video_dim)._replace(audio_frames=UNKNOWN_FRAMES)


def _draw_window(record: Record, rng: Draws, config: HowTo100MData, shape: ClipShape) -> Window:
    audio = record.audio
    assert audio is not None and record.starts is not None and record.ends is not None
    start = draw_start(audio.shape[1], config.min_time, rng)
    end = start + config.min_time
    caption = spoken_at(record.starts, record.ends, start, end)
    if caption is None:
        text = ""
        first = max(0, seconds_to_frames(start))
        audio = audio[:, first : first + shape.audio_frames]
    else:
        start, end, order = grow_passage(record.starts, record.ends, caption, config.min_time)
        text = " ".join(record.captions[i] for i in order)
        audio = crop_audio(audio, *audio_window(start, end, config, rng))
    video_2d, video_3d = (
        x if x is None else x[video_rows(start, end, rate)]
        for x, rate in ((record.video_2d, config.rate_2d), (record.video_3d, config.rate_3d))
    )
    return Window(f"{record.path}{start}", text, video_2d, video_3d, audio)


def draw_start(frames: int, min_time: float, rng: Draws) -> float:
    """When a window of `min_time` seconds begins in a video of so many spectrogram frames."""
    return rng.random() * max(0.0, int(frames_to_seconds(frames)) - min_time)


def spoken_at(starts: NDArray[np.float64], ends: NDArray[np.float64], start: float, end: float) -> int | None:
    """The caption that is spoken when a window begins, or else when it ends; None if there is none.

    Of the captions only the last one that begins before that time is considered, so an earlier one that is still spoken
    is not found.
    """
    for time in (start, end):
        i = max(0, int(np.searchsorted(starts, time)) - 1)
        if len(starts) and starts[i] <= time <= ends[i]:
            return i
    return None


def grow_passage(starts: NDArray[np.float64], ends: NDArray[np.float64], caption: int, min_time: float) -> Passage:
    """Neighbours added to a caption, each time the one that makes the passage less long, until it lasts `min_time`."""
    first = last = caption
    order = [caption]
    while ends[last] - starts[first] < min_time:
        has_earlier, has_later = first > 0, last < len(starts) - 1
        if has_earlier and has_later:
            with_later, with_earlier = ends[last + 1] - starts[first], ends[last] - starts[first - 1]
            takes_earlier = with_earlier <= with_later
        elif has_earlier or has_later:
            takes_earlier = has_earlier
        else:
            break
        if takes_earlier:
            first -= 1
        else:
            last += 1
        order.append(first if takes_earlier else last)
    return Passage(float(starts[first]), float(ends[last]), order)


def audio_window(start: float, end: float, config: HowTo100MData, rng: Draws) -> tuple[float, float]:
    """When the sound that goes with a passage begins and ends.

    A shifted one lasts `min_time`. The authors meant to shift by half of that in either direction, but their coin falls
    the same way always; the number is drawn all the same.
    """
    if config.audio_shift == "none":
        return start, end
    threshold = 0.0 if config.audio_shift == "later" else 0.5
    half = 0.5 * config.min_time
    shifted = start + half if rng.random() > threshold else max(0.0, start - half)
    return shifted, shifted + config.min_time


def read_speech(path: str | Path, videos: Iterable[str]) -> dict[str, Speech]:
    """The captions of the given videos from a pickled dictionary: video -> `start`, `end` and `text`, parallel lists.

    Raises:
        DataError: naming file, video and field, for whatever is missing or malformed.
    """
    stored = read_pickle(path, dict, "captions by video")
    speech: dict[str, Speech] = {}
    missing = []
    for video in videos:
        if video in speech:
            continue
        if video not in stored:
            missing.append(video)
            continue
        speech[video] = _speech(stored.pop(video), f"{path}: {video!r}")
    if missing:
        more = f", nor {len(missing) - 1} others of the list" if len(missing) > 1 else ""
        raise DataError(f"{path} has no captions of the video {missing[0]!r}{more}", "take it out of the list")
    return speech


def _speech(stored: Any, name: str) -> Speech:
    hint = "compare the file with the published one"
    if not isinstance(stored, dict):
        raise DataError(f"{name} is of the type {type(stored).__name__}, not a dictionary", hint)
    for field in ("start", "end", "text"):
        if field not in stored:
            raise DataError(f"{name} has no {field!r}; there is: {', '.join(map(str, stored))[:200]}", hint)
    starts, ends = (_times(stored[field], f"{name}: {field!r}", hint) for field in ("start", "end"))
    if not isinstance(stored["text"], list | tuple | np.ndarray):
        raise DataError(f"{name}: 'text' is of the type {type(stored['text']).__name__}, not a list", hint)
    texts = [str(text) for text in stored["text"]]
    if not len(starts) == len(ends) == len(texts):
        raise DataError(f"{name}: {len(starts)} starts, {len(ends)} ends and {len(texts)} texts", hint)
    if (np.diff(starts) < 0).any():
        raise DataError(f"{name}: 'start' is not ascending", hint)
    joined = "\n".join(texts)
    if joined.count("\n") >= max(1, len(texts)):
        # To a text encoder a line break is a space.
        joined = "\n".join(text.replace("\n", " ") for text in texts)
    return Speech(starts, ends, joined)


def _times(values: Any, name: str, hint: str) -> NDArray[np.float64]:
    try:
        times = np.array(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        times = np.array(np.nan)
    if times.ndim != 1 or not np.isfinite(times).all():
        raise DataError(f"{name} is not a list of times in seconds", hint)
    return times


def _video_id(path: str) -> str:
    return path.rpartition("/")[2]
