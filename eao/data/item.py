"""One clip as tokens, what a data set has to offer, and items stacked into a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from eao.config import ClipData, DataConfig, Sampling, WholeData
from eao.data.arrays import AUDIO_BANDS
from eao.data.sampling import Floats, Mask, create_audio, create_video, cut_into_clips
from eao.errors import ConfigError
from eao.model.batch import Batch

# N video tokens, D their width, T spectrogram frames

DISCARDED = "-1"
"""The id of a piece that evaluation leaves out."""


class Item(NamedTuple):
    """One clip with one caption, as tokens.

    Attributes:
        id: name of the clip; clips of one id are averaged in evaluation, and "-1" marks one to discard.
        caption: the sentence.
        video: (N, D) float32; (D,) with `video_tokens` 0.
        video_mask: (N,) bool, all False without video.
        audio: (40, T) float32.
        audio_mask: (T,) bool, all False without audio.
        audio_frames: number of real frames; -1 = unknown.
    """

    id: str
    caption: str
    video: Floats
    video_mask: Mask
    audio: Floats
    audio_mask: Mask
    audio_frames: int


class ClipDataset(Protocol):
    """A data set of items (clips or whole videos), each of which gives one or several clips when it is read.

    Attributes:
        config: the section it was made from.
        video_dim: width of a video token.
        complete_dataset_size: items of the full data set where some are missing here, else None.
        is_cached: whether its features are in memory, so that reading needs no worker processes.
    """

    # Properties, since each data set narrows them.
    @property
    def config(self) -> ClipData: ...
    @property
    def video_dim(self) -> int: ...
    @property
    def complete_dataset_size(self) -> int | None: ...
    @property
    def is_cached(self) -> bool: ...

    def __len__(self) -> int:
        """Number of items."""
        ...

    def clips(self, index: int, rng: np.random.Generator) -> list[Item]:
        """The clips of item `index`; whatever is random about them is drawn from `rng`."""
        ...


class ClipShape(NamedTuple):
    """The sizes that every clip of a data set is brought to."""

    video_tokens: int
    audio_frames: int
    sampling: Sampling


def clip_shape(config: ClipData, data: DataConfig) -> ClipShape:
    """The data set's own sizes where it states them, else those under `data`."""
    video_tokens = data.video_tokens if config.video_tokens is None else config.video_tokens
    return ClipShape(video_tokens, config.audio_frames or data.audio_frames, config.sampling or data.sampling)


def whole_shape(config: WholeData, data: DataConfig) -> ClipShape:
    """The sizes of a whole clip, which is cut afterwards: those of a piece times the number of pieces.

    Raises:
        ConfigError: pieces of a clip that is resampled, which the authors' protocol does not have.
    """
    shape = clip_shape(config, data)
    if config.cut_clips > 1 and shape.sampling != "clip":
        raise ConfigError(
            f"cut_clips {config.cut_clips} needs the sampling clip, not {shape.sampling}",
            "set sampling: clip, or cut_clips: 1",
        )
    return shape._replace(
        video_tokens=shape.video_tokens * config.cut_clips, audio_frames=shape.audio_frames * config.cut_clips
    )


def make_item(
    clip: str,
    caption: str,
    video_2d: NDArray[np.floating] | None,
    video_3d: NDArray[np.floating] | None,
    audio: NDArray[np.floating] | None,
    shape: ClipShape,
    video_dim: int,
) -> Item:
    """An item of the given sizes from the features of one clip.

    Args:
        clip, caption: the id and the sentence of the item.
        video_2d, video_3d: (rows, width) features, None for a stream that is not used or not there.
        audio: (40, frames) spectrogram; None = no sound.
        shape: the sizes.
        video_dim: width of a video token, for a clip that has no video at all.
    """
    if video_2d is None and video_3d is None:
        video = np.zeros((shape.video_tokens, video_dim), dtype=np.float32)
        video_mask = np.zeros(shape.video_tokens, dtype=bool)
    else:
        video, video_mask = create_video(video_2d, video_3d, shape.video_tokens, shape.sampling)
    spectrogram = audio if audio is not None else np.zeros((AUDIO_BANDS, 0), dtype=np.float32)
    return Item(clip, caption, video, video_mask, *create_audio(spectrogram, shape.audio_frames))


def cut_item(item: Item, pieces: int) -> list[Item]:
    """The item in consecutive pieces, see `eao.data.sampling.cut_into_clips`; a nearly empty piece has the id "-1"."""
    if pieces == 1:
        return [item]
    cut = cut_into_clips(item.video, item.video_mask, item.audio, item.audio_mask, item.audio_frames, pieces)
    return [
        Item(item.id if keep else DISCARDED, item.caption, video, video_mask, audio, audio_mask, int(frames))
        for video, video_mask, audio, audio_mask, frames, keep in zip(*cut, strict=True)
    ]


def stack(items: Sequence[Item]) -> Batch:
    """Items as one batch without text."""
    return Batch(
        video=torch.from_numpy(np.stack([item.video for item in items])),
        video_mask=torch.from_numpy(np.stack([item.video_mask for item in items])),
        audio=torch.from_numpy(np.stack([item.audio for item in items])),
        audio_mask=torch.from_numpy(np.stack([item.audio_mask for item in items])),
        audio_frames=torch.tensor([item.audio_frames for item in items]),
        ids=[item.id for item in items],
    )
