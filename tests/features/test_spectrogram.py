from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from eao.features import spectrogram
from eao.features.spectrogram import log_mel, window_and_basis

# Signals and spectrograms of the unmodified AVLnet front end under librosa 0.8.1, with 20 times its own rounding error.
GOLDEN = Path(__file__).parents[1] / "golden" / "features" / "melspec.npz"


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


@pytest.mark.parametrize("name", ["chirp", "silence", "short50", "speechlike", "mix_dc"])
def test_equals_the_reference(golden: dict[str, np.ndarray], name: str) -> None:
    samples = golden[f"signal_{name}"].astype(np.float32) / 32768
    result = log_mel(samples)
    assert result.shape == golden[name].shape
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, golden[name], rtol=0, atol=float(golden[f"atol_{name}"]))


def test_window_and_mel_basis_equal_the_reference(golden: dict[str, np.ndarray]) -> None:
    window, basis = window_and_basis()
    np.testing.assert_allclose(window, golden["window"], rtol=0, atol=1e-7)
    np.testing.assert_allclose(basis, golden["mel_basis"], rtol=0, atol=1e-8)


def test_an_empty_signal_is_two_silent_frames() -> None:
    # Logarithms of whole arrays and of single numbers differ in the last bit on some CPUs.
    np.testing.assert_allclose(log_mel(np.zeros(0, np.float32)), np.zeros((40, 2), np.float32), atol=1e-5)


def test_blocks_leave_no_seam() -> None:
    # 4096 frames make a block: one tone across the seam must look alike on both sides of it.
    samples = np.sin(2 * np.pi * 1000 * np.arange(4200 * 160) / 16_000).astype(np.float32)
    spectrogram = log_mel(samples)
    assert spectrogram.shape == (40, 4201)
    np.testing.assert_allclose(spectrogram[:, 4094:4098], spectrogram[:, [2000] * 4], rtol=0, atol=0.05)


@settings(max_examples=25, deadline=None)
@given(length=st.integers(0, 2000), scale=st.sampled_from([0.0, 1e-6, 0.1, 1.0]))
def test_any_length_gives_a_frame_every_160_samples_within_80_db(length: int, scale: float) -> None:
    samples = scale * np.random.default_rng(length).standard_normal(length).astype(np.float32)
    spectrogram = log_mel(samples.astype(np.float32))
    assert spectrogram.shape == (40, 1 + (length or 200) // 160)
    assert spectrogram.min() >= -80
    assert spectrogram.max() == pytest.approx(0, abs=1e-4)


def test_refuses_stereo() -> None:
    with pytest.raises(ValueError, match="one-dimensional"):
        log_mel(np.zeros((2, 100), np.float32))


@pytest.mark.parametrize("samples", [201, 399, 480, 16_001])
def test_blocks_leave_no_seams(monkeypatch: pytest.MonkeyPatch, samples: int) -> None:
    signal = np.random.default_rng(0).normal(0.02, 0.1, samples).astype(np.float32)
    whole = log_mel(signal)
    monkeypatch.setattr(spectrogram, "_BLOCK", 7)
    # Transforms of several rows at once may round in another way.
    np.testing.assert_allclose(log_mel(signal), whole, atol=1e-4)


def test_the_number_of_threads_changes_no_bit() -> None:
    samples = np.random.default_rng(0).normal(size=160_000).astype(np.float32)
    found = []
    for threads in (1, 2, 3):
        with threadpool_limits(threads):
            found.append(log_mel(samples))
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])
