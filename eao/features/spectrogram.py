"""The audio front end of AVLnet (Rouditchenko et al., 2021): a 40-band log-mel spectrogram of mono sound at 16 kHz.

A window of 25 ms every 10 ms. Values are dB below the loudest cell of the *whole* signal, clipped at -80, so that a
clip cut out of a long recording has another reference than the recording itself.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

BANDS = 40
HOP = 160
"""Samples from one spectrogram frame to the next: 10 ms."""
WINDOW = 400
SAMPLE_RATE = 16_000

_PRE_EMPHASIS = 0.97
_SMALLEST_POWER = 1e-10
_FLOOR_DB = -80.0
_SAMPLES_IF_EMPTY = 200
_BLOCK = 4096  # spectrogram frames at a time: 40 s of sound in 13 MB


def log_mel(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """The log-mel spectrogram of a signal.

    Mean removal, pre-emphasis 0.97, power spectrum under a symmetric Hamming window centred on each frame (the signal
    is reflected at its ends), 40 Slaney mel bands from 20 Hz to 8 kHz, dB relative to the maximum.

    Args:
        samples: (n,) float in [-1, 1], mono at 16 kHz. An empty signal counts as 200 zeros.

    Returns:
        (40, 1 + n // 160) float32 dB in [-80, 0]; silence is 0 dB everywhere, as in the reference.

    Example:
        >>> log_mel(np.zeros(16_000, np.float32)).shape
        (40, 101)
    """
    signal = np.asarray(samples, dtype=np.float32)
    if signal.ndim != 1:
        raise ValueError(f"samples must be one-dimensional, not of shape {signal.shape}")
    if signal.size == 0:
        signal = np.zeros(_SAMPLES_IF_EMPTY, np.float32)
    mean = signal.mean()
    power = np.empty((BANDS, 1 + signal.size // HOP), np.float32)
    for begin in range(0, power.shape[1], _BLOCK):
        end = min(begin + _BLOCK, power.shape[1])
        block = _emphasised(signal, mean, begin * HOP - WINDOW // 2, (end - 1) * HOP + WINDOW // 2)
        power[:, begin:end] = _mel_power(np.lib.stride_tricks.sliding_window_view(block, WINDOW)[::HOP])
    maximum = max(float(power.max()), _SMALLEST_POWER)
    decibels = np.maximum(power, _SMALLEST_POWER, out=power)  # in place: of hours of sound it is large
    np.log10(decibels, out=decibels)
    decibels *= 10.0
    decibels -= 10.0 * np.log10(maximum)
    return np.clip(decibels, _FLOOR_DB, 0.0, out=decibels)


def _emphasised(signal: NDArray[np.float32], mean: np.float32, begin: int, end: int) -> NDArray[np.float32]:
    """Samples [begin, end) without the mean and with pre-emphasis; beyond its ends the signal is reflected."""
    # More than is wanted on both sides, so that there is enough to reflect; repeatedly, where the signal is short.
    low, high = max(begin - WINDOW, 0), min(end + WINDOW, signal.size)
    block = signal[max(low - 1, 0) : high] - mean
    block[1:] -= np.float32(_PRE_EMPHASIS) * block[:-1]
    padded = np.pad(block[min(low, 1) :], (max(-begin, 0), max(end - high, 0)), mode="reflect")
    start = max(begin, 0) - low
    return padded[start : start + end - begin]


def _mel_power(frames: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mel power (40, T) of signal frames (T, 400)."""
    from scipy.fft import rfft

    window, _ = window_and_basis()
    spectrum = rfft(frames * window, axis=1)  # (T, 201) complex64
    power = spectrum.real**2 + spectrum.imag**2
    return np.asarray(_sparse_basis() @ np.ascontiguousarray(power.T), dtype=np.float32)


@functools.cache
def _sparse_basis() -> Any:
    """The mel bands as a sparse matrix, of which one cell in 20 is not zero. Its products have the same bits whatever
    the number of threads, which those of BLAS do not."""
    from scipy.sparse import csr_array

    return csr_array(window_and_basis()[1])


@functools.cache
def window_and_basis() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The window (400,) and the mel bands (40, 201), for whoever computes the spectrogram elsewhere."""
    # Here, since it takes a second to import.
    from librosa.filters import mel
    from scipy.signal.windows import hamming

    window = hamming(WINDOW).astype(np.float32)  # symmetric, unlike what librosa makes of its name
    basis = mel(sr=SAMPLE_RATE, n_fft=WINDOW, n_mels=BANDS, fmin=20.0, fmax=8000.0)
    return window, basis.astype(np.float32)
