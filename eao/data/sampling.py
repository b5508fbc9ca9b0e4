"""Turning features of any length into a fixed number of tokens and spectrogram frames.

Pure numpy functions: float32 values, bool masks (True = real), the authors' rules to the last rounding.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eao.errors import DataError

# n rows of a feature stream, D its width, N tokens, F mel bands (40), T spectrogram frames, C clips of L frames

Strategy = Literal["clip", "nearest", "max_pool"]
Floats: TypeAlias = NDArray[np.float32]
Mask: TypeAlias = NDArray[np.bool_]

SAMPLE_RATE = 16_000
HOP = 160
N_FFT = 400


def seconds_to_frames(seconds: float) -> int:
    """The spectrogram frame at a time in seconds; negative before the first whole window (-2 at 0 s).

    Example:
        >>> seconds_to_frames(0), seconds_to_frames(8)
        (-2, 798)
    """
    return (int(SAMPLE_RATE * seconds) - N_FFT // 2) // HOP


def frames_to_seconds(frames: int) -> float:
    """The time in seconds at which a spectrogram of `frames` frames ends."""
    return (HOP * frames + N_FFT // 2) / SAMPLE_RATE


def crop_audio(spectrogram: NDArray[np.floating], start: float, end: float) -> NDArray[np.floating]:
    """The frames of a (F, T) spectrogram between two times in seconds, as a view; empty where there are none."""
    # Both are clamped: a negative end would count from the back of the spectrogram.
    return spectrogram[:, max(0, seconds_to_frames(start)) : max(0, seconds_to_frames(end))]


def video_rows(start: float, end: float, rate: float, accurate: bool = False) -> slice:
    """The rows of a stream at `rate` rows per second that show the clip from `start` to `end` seconds.

    Args:
        accurate: end at the row that covers `end`, rather than one row after it at whole numbers.
    """
    if accurate:
        return slice(math.floor(start * rate), math.ceil(end * rate))
    return slice(int(start * rate), int(end * rate) + 1)


def nearest_indices(n_in: int, n_out: int) -> NDArray[np.int64]:
    """Indices (n_out,) that resample `n_in` rows to `n_out` by nearest neighbour.

    Scale and product are single precision, as in `torch.nn.functional.interpolate(mode="nearest")`: exact integer
    arithmetic picks other rows for some sizes, for example 14 to 46.

    Raises:
        ValueError: rows are asked for where there are none.
    """
    if n_in < 1 <= n_out:
        raise ValueError(f"cannot resample {n_in} rows to {n_out}")
    scale = np.float32(n_in) / np.float32(max(n_out, 1))
    positions = np.floor(np.arange(n_out, dtype=np.float32) * scale).astype(np.int64)
    return np.minimum(positions, n_in - 1)


def create_video(
    video_2d: ArrayLike | None,
    video_3d: ArrayLike | None,
    n_tokens: int,
    strategy: Strategy = "clip",
) -> tuple[Floats, Mask]:
    """Video tokens from one or both feature streams.

    Each stream's rows are L2-normalised on their own (a token of two streams has norm sqrt 2); all-zero rows stay zero.
    With both streams the 3-D rows decide the length and the 2-D rows are resampled to them.

    Args:
        video_2d: (n2, D2) rows of the image backbone, or None if that stream is not used.
        video_3d: (n3, D3) rows of the motion backbone, or None.
        n_tokens: N; 0 = one max-pooled vector for the AVLnet baseline, which needs both streams.
        strategy: what to do with more rows than tokens: keep the first (`clip`), resample over the whole length
            (`nearest`), or max-pool first (`max_pool`).

    Returns:
        video (N, D2 + D3) float32, zero padded, and its mask (N,); for `n_tokens` 0 a vector (D2 + D3,) and [True].

    Raises:
        DataError: no stream, a stream that is not 2-dimensional, or a single stream with `n_tokens` 0.
        ValueError: an unknown strategy or a negative `n_tokens`.
    """
    if strategy not in ("clip", "nearest", "max_pool") or n_tokens < 0:
        raise ValueError(f"no such sampling: {n_tokens} tokens by {strategy!r}")
    streams = [np.asarray(x, dtype=np.float32) for x in (video_2d, video_3d) if x is not None]
    if not streams or any(x.ndim != 2 for x in streams):
        shapes = ", ".join(str(x.shape) for x in streams) or "none"
        raise DataError(f"video features must be (rows, width) arrays, not {shapes}")
    if n_tokens == 0:
        if len(streams) == 1:
            raise DataError(
                "one pooled video vector needs both 2-D and 3-D features",
                "set data.video_tokens above 0",
            )
        pooled = [x.max(axis=0, keepdims=True) if len(x) else np.zeros((1, x.shape[1]), np.float32) for x in streams]
        return np.concatenate([_normalise(x)[0] for x in pooled]), np.ones(1, dtype=bool)
    if strategy == "max_pool":
        streams = _max_pool(streams, n_tokens)
    if strategy != "clip" and _exceeds(streams, n_tokens):
        streams = [x[nearest_indices(len(x), n_tokens)] for x in streams]
    return _clip(streams, n_tokens)


def create_audio(spectrogram: ArrayLike, n_frames: int) -> tuple[Floats, Mask, int]:
    """A spectrogram cut or zero padded on the right to `n_frames`.

    Args:
        spectrogram: (F, T) of any float type, numpy or a CPU tensor.

    Returns:
        audio (F, n_frames) float32, mask (n_frames,), and the number of real frames.
    """
    source = np.asarray(spectrogram)
    if source.ndim != 2:
        raise DataError(f"a spectrogram must be a (bands, frames) array, not {source.shape}")
    frames = min(source.shape[1], n_frames)
    audio = np.zeros((source.shape[0], n_frames), dtype=np.float32)
    audio[:, :frames] = source[:, :frames]
    return audio, np.arange(n_frames) < frames, frames


class Clips(NamedTuple):
    """An item cut into C consecutive clips.

    Attributes:
        video: (C, N, D) float32.
        video_mask: (C, N) bool.
        audio: (C, F, L) float32.
        audio_mask: (C, L) bool.
        audio_frames: (C,) int64, real frames of each clip.
        keep: (C,) bool, False for a clip so empty that evaluation leaves it out (the authors give it the id "-1").
    """

    video: Floats
    video_mask: Mask
    audio: Floats
    audio_mask: Mask
    audio_frames: NDArray[np.int64]
    keep: Mask


def cut_into_clips(
    video: Floats,
    video_mask: Mask,
    audio: Floats,
    audio_mask: Mask,
    audio_frames: int,
    n_clips: int,
) -> Clips:
    """Cut an item (padding included) into `n_clips` equal consecutive clips.

    Only the length of the audio decides what is kept: the first clip always is, a later one if more than 70 % of its
    frames are real. A clip that is not kept counts as full.

    Args:
        video: (C * N, D).
        video_mask: (C * N,).
        audio: (F, C * L).
        audio_mask: (C * L,).
        audio_frames: real frames of the whole item.

    Raises:
        DataError: tokens or frames do not divide into `n_clips`.
    """
    if n_clips < 1 or len(video_mask) % n_clips or len(audio_mask) % n_clips:
        raise DataError(
            f"{len(video_mask)} video tokens and {len(audio_mask)} audio frames do not divide into {n_clips} clips",
            "make data.video_tokens and data.audio_frames multiples of the number of clips",
        )
    length = len(audio_mask) // n_clips
    left = audio_frames - length * np.arange(n_clips, dtype=np.int64)
    keep = (left > 0.7 * length) | (np.arange(n_clips) == 0)
    return Clips(
        video=video.reshape(n_clips, -1, video.shape[-1]),
        video_mask=video_mask.reshape(n_clips, -1),
        audio=np.stack(np.split(audio, n_clips, axis=1)),
        audio_mask=audio_mask.reshape(n_clips, -1),
        audio_frames=np.where(keep, np.minimum(left, length), length),
        keep=keep,
    )


def _exceeds(streams: list[Floats], n_tokens: int) -> bool:
    """Whether there is more than fits: the last stream (3-D where given) decides, and no stream may be empty."""
    return len(streams[-1]) > n_tokens and all(len(x) for x in streams)


def _max_pool(streams: list[Floats], n_tokens: int) -> list[Floats]:
    """Each stream max-pooled by its own whole factor; unchanged if a factor would be 1."""
    factors = [len(x) // n_tokens for x in streams]
    if not _exceeds(streams, n_tokens) or min(factors) <= 1:
        return streams
    pooled = []
    for x, k in zip(streams, factors, strict=True):
        whole = len(x) // k * k
        pooled.append(x[:whole].reshape(-1, k, x.shape[1]).max(axis=1))
    return pooled


def _clip(streams: list[Floats], n_tokens: int) -> tuple[Floats, Mask]:
    """The first `n_tokens` rows, the streams beside each other."""
    width = sum(x.shape[1] for x in streams)
    video = np.zeros((n_tokens, width), dtype=np.float32)
    rows = len(streams[-1]) if all(len(x) for x in streams) else 0
    kept = min(rows, n_tokens)
    if kept:
        # All rows are resampled before the cut, so that the streams stay aligned in time.
        aligned = [_normalise(x[nearest_indices(len(x), rows)[:kept]]) for x in streams]
        video[:kept] = np.concatenate(aligned, axis=1)
    return video, np.arange(n_tokens) < kept


def _normalise(rows: Floats) -> Floats:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.maximum(norms, np.float32(1e-12))
