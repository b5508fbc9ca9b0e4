"""Memory does not grow with the length of a file, measured in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from eao.features.spectrogram import log_mel

SCRIPT = """
import sys
from eao.features.frames import View
from eao.features.media import ClipReader

def anonymous():
    line = next(line for line in open("/proc/self/status") if line.startswith("RssAnon"))
    return int(line.split()[1])

reader = ClipReader(sys.argv[1], [View(1.0, 32)])
peak = max(anonymous() for _ in reader)
print(peak, anonymous(), len(reader.audio))
"""


def write_long(path: Path, minutes: int) -> Path:
    """A picture and a second of 8-bit sound every second."""
    tone = (128 + 100 * np.sin(2 * np.pi * 440 * np.arange(8000) / 8000)).astype(np.uint8)
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=1)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sound = container.add_stream("pcm_u8", rate=8000, layout="mono")
        for second in range(60 * minutes):
            picture = av.VideoFrame.from_ndarray(np.full((48, 64), second % 200, np.uint8), "gray")
            picture.pts, picture.time_base = second, Fraction(1)
            samples = av.AudioFrame.from_ndarray(tone[None], "u8", "mono")
            samples.rate, samples.pts, samples.time_base = 8000, 8000 * second, Fraction(1, 8000)
            container.mux((*video.encode(picture), *sound.encode(samples)))
        container.mux((*video.encode(None), *sound.encode(None)))
    return path


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_a_long_file_takes_no_more_memory_than_a_short_one(tmp_path: Path) -> None:
    used = {}
    for minutes in (11, 25):
        command = [sys.executable, "-c", SCRIPT, str(write_long(tmp_path / f"{minutes}.mkv", minutes))]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        *sizes, samples = map(int, output.split())
        assert samples == pytest.approx(minutes * 60 * 16_000, abs=100)
        used[minutes] = max(sizes)
    # In memory the sound of the other 14 minutes would be 54 MB; the allocator is good for a few.
    assert used[25] - used[11] < 16_000


def test_the_spectrogram_needs_one_block_beside_its_result() -> None:
    samples = np.random.default_rng(0).normal(size=200 * 16_000).astype(np.float32)  # five blocks, 13 MB
    log_mel(samples[:16_000])
    tracemalloc.start()
    result = log_mel(samples)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < result.nbytes + 25e6
