"""The log-mel spectrogram of `eao.features.spectrogram`, by numpy and scipy alone.

The window and the mel bands are read from a file that was written with the model repository.
"""

from __future__ import annotations

import numpy as np
from scipy.fft import rfft  # numpy 1 computes in double precision, and would round differently

# F mel bands, T spectrogram frames

HOP = 160
_PRE_EMPHASIS = 0.97
_SMALLEST_POWER = 1e-10
_FLOOR_DB = -80.0
_SAMPLES_IF_EMPTY = 200
_BLOCK = 4096  # spectrogram frames at a time


def log_mel(samples: np.ndarray, window: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """The log-mel spectrogram of a signal.

    Args:
        samples: (n,) float32, mono at 16 kHz. An empty signal counts as 200 zeros.
        window: (400,) float32.
        basis: (F, 201) float32, the mel bands.

    Returns:
        (F, 1 + n // 160) float32, dB below the loudest cell, in [-80, 0].
    """
    signal = samples if samples.size else np.zeros(_SAMPLES_IF_EMPTY, np.float32)
    mean, half = signal.mean(), len(window) // 2
    power = np.empty((len(basis), 1 + signal.size // HOP), np.float32)
    for begin in range(0, power.shape[1], _BLOCK):
        end = min(begin + _BLOCK, power.shape[1])
        block = _emphasised(signal, mean, begin * HOP - half, (end - 1) * HOP + half, len(window))
        frames = np.lib.stride_tricks.sliding_window_view(block, len(window))[::HOP]
        spectrum = rfft(frames * window, axis=1)  # (T, 201) complex64
        power[:, begin:end] = basis @ (spectrum.real**2 + spectrum.imag**2).T
    maximum = max(float(power.max()), _SMALLEST_POWER)
    decibels = np.float32(10.0) * np.log10(np.maximum(power, np.float32(_SMALLEST_POWER)))
    # In double precision: numpy 1 and 2 differ in what they make of an array less a number.
    relative = np.subtract(decibels, 10.0 * np.log10(maximum), dtype=np.float64).astype(np.float32)
    return np.clip(relative, _FLOOR_DB, 0.0)


def create_audio(spectrogram: np.ndarray, n_frames: int) -> tuple[np.ndarray, np.ndarray, int]:
    """A spectrogram (F, T) cut or zero padded: audio (F, n_frames), mask (n_frames,), and the number of real frames."""
    frames = min(spectrogram.shape[1], n_frames)
    audio = np.zeros((len(spectrogram), n_frames), dtype=np.float32)
    audio[:, :frames] = spectrogram[:, :frames]
    return audio, np.arange(n_frames) < frames, frames


def _emphasised(signal: np.ndarray, mean: np.float32, begin: int, end: int, window: int) -> np.ndarray:
    """Samples [begin, end) without the mean and with pre-emphasis; beyond its ends the signal is reflected."""
    # More than is wanted on both sides, so that there is enough to reflect.
    low, high = max(begin - window, 0), min(end + window, signal.size)
    block = signal[max(low - 1, 0) : high] - mean
    block[1:] -= np.float32(_PRE_EMPHASIS) * block[:-1]
    padded = np.pad(block[min(low, 1) :], (max(-begin, 0), max(end - high, 0)), mode="reflect")
    start = max(begin, 0) - low
    return padded[start : start + end - begin]
