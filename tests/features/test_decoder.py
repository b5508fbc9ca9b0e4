from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import wave
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from eao.errors import MediaError
from eao.features.decoder import DecoderPool
from eao.features.frames import View
from eao.features.limits import Limits
from eao.features.media import ClipReader, probe, read_audio

ClipWriter = Callable[..., Path]

VIEWS = [View(2.0, 32), View(10.0, 16, crop=False)]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory, write_clip: ClipWriter) -> Path:
    return write_clip(tmp_path_factory.mktemp("decoder") / "a.mp4", seconds=2.0)


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory: pytest.TempPathFactory, write_clip: ClipWriter) -> Path:
    """One whose pictures do not fit into what a worker decodes ahead."""
    path = tmp_path_factory.mktemp("decoder") / "long.mp4"
    return write_clip(path, seconds=20.0, colour=(200, 40, 40), tone=None)


LONG_VIEWS = [View(20.0, 256)]


@pytest.fixture(scope="module")
def pool() -> Iterator[DecoderPool]:
    with DecoderPool(2) as pool:
        yield pool


def is_running(pid: int) -> bool:
    """Whether a process exists and is more than a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


def test_it_gives_what_a_clip_reader_gives(pool: DecoderPool, clip: Path) -> None:
    here, there = ClipReader(clip, VIEWS), pool.open(clip, VIEWS)
    for ours, theirs in zip(here, there, strict=True):
        assert (ours.time, ours.view) == (theirs.time, theirs.view)
        np.testing.assert_array_equal(ours.image, theirs.image)
    assert there.duration == here.duration
    np.testing.assert_array_equal(there.audio, here.audio)
    np.testing.assert_array_equal(pool.read_audio(clip), read_audio(clip))
    assert pool.probe(clip) == probe(clip)


def test_sound_can_be_left_out(pool: DecoderPool, clip: Path) -> None:
    reader = pool.open(clip, VIEWS, want_audio=False)
    assert len(list(reader)) == 24
    assert reader.audio is None


def test_long_sound_comes_as_a_file_of_both_processes(pool: DecoderPool, tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(np.random.default_rng(0).integers(-9999, 9999, 620 * 16_000, np.int16).tobytes())
    sound = pool.read_audio(path)
    assert isinstance(sound, np.memmap)
    np.testing.assert_array_equal(sound, read_audio(path))


def test_an_error_of_the_file_arrives_whole_and_the_worker_goes_on(pool: DecoderPool, tmp_path: Path) -> None:
    before = pool.pids
    with pytest.raises(MediaError, match=r"none\.mp4") as caught:
        list(pool.open(tmp_path / "none.mp4", VIEWS))
    assert caught.value.kind == "missing"
    assert caught.value.hint
    assert pool.pids == before


def test_leaving_early_frees_the_place(long_clip: Path) -> None:
    with DecoderPool(1) as pool:
        frames = iter(pool.open(long_clip, LONG_VIEWS))
        next(frames)
        frames.close()  # type: ignore[attr-defined]
        assert len(list(pool.open(long_clip, [View(1.0, 16)]))) == 20


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_crash_fails_one_file_only(clip: Path, long_clip: Path, number: signal.Signals) -> None:
    with DecoderPool(1) as pool:
        frames = iter(pool.open(long_clip, LONG_VIEWS))
        next(frames)
        os.kill(pool.pids[0], number)
        with pytest.raises(MediaError, match=number.name) as caught:
            list(frames)
        assert caught.value.kind == "crashed"
        assert len(list(pool.open(clip, VIEWS))) == 24


def test_a_worker_that_dies_between_two_files_is_replaced(clip: Path) -> None:
    with DecoderPool(1) as pool:
        assert len(list(pool.open(clip, VIEWS))) == 24
        dead = pool.pids[0]
        os.kill(dead, signal.SIGKILL)
        assert wait_until(lambda: not is_running(dead))
        assert len(list(pool.open(clip, VIEWS))) == 24


def test_a_worker_that_hangs_is_ended(clip: Path, long_clip: Path) -> None:
    with DecoderPool(1, Limits(stall_seconds=5)) as pool:
        frames = iter(pool.open(long_clip, LONG_VIEWS))
        next(frames)
        hung = pool.pids[0]
        os.kill(hung, signal.SIGSTOP)
        begin = time.monotonic()
        with pytest.raises(MediaError) as caught:
            list(frames)
        assert time.monotonic() - begin < 60
        assert caught.value.kind == "stalled"
        assert not is_running(hung)
        assert len(list(pool.open(clip, VIEWS))) == 24


def test_a_slow_reader_is_no_stall(long_clip: Path) -> None:
    with DecoderPool(1, Limits(stall_seconds=4)) as pool:
        frames = iter(pool.open(long_clip, LONG_VIEWS))
        next(frames)
        time.sleep(5)
        assert len(list(frames)) == 399


def test_decoding_waits_for_the_reader(long_clip: Path) -> None:
    """Of 400 pictures of 196 kB a worker holds 17 MB, not 79."""
    with DecoderPool(1) as pool:
        frames = iter(pool.open(long_clip, LONG_VIEWS))
        next(frames)
        status = Path(f"/proc/{pool.pids[0]}/status")
        begin = status.read_text()
        time.sleep(1.0)
        sizes = [int(text.split("VmRSS:")[1].split()[0]) for text in (begin, status.read_text())]
        frames.close()  # type: ignore[attr-defined]
    assert sizes[1] - sizes[0] < 40_000


def test_memory_is_limited(clip: Path) -> None:
    """Python and FFmpeg start in 400 MB of addresses, which do not hold pictures of 8192 x 4096."""
    with DecoderPool(1, Limits(worker_bytes=600 * 10**6)) as pool:
        with pytest.raises(MediaError) as caught:
            list(pool.open(clip, [View(10.0, 8192)]))
        assert caught.value.kind in ("too-large", "crashed")
        assert len(list(pool.open(clip, VIEWS))) == 24


def test_closing_ends_processes_and_readers(long_clip: Path) -> None:
    pool = DecoderPool(2)
    frames = iter(pool.open(long_clip, LONG_VIEWS))
    next(frames)
    pids = pool.pids
    assert len(pids) == 2
    pool.close()
    assert not any(map(is_running, pids))
    with pytest.raises(RuntimeError, match="closed"):
        list(frames)
    with pytest.raises(RuntimeError, match="closed"):
        list(pool.open(long_clip, LONG_VIEWS))


def test_threads_share_a_pool(pool: DecoderPool, clip: Path) -> None:
    counts = []
    threads = [threading.Thread(target=lambda: counts.append(len(list(pool.open(clip, VIEWS))))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30.0)
    assert counts == [24] * 6


SCRIPT = """
import os, sys, time
from eao.features.decoder import DecoderPool
from eao.features.frames import View
pool = DecoderPool(2)
frames = iter(pool.open(sys.argv[1], [View(20.0, 256)]))
next(frames)
print(*pool.pids, flush=True)
if sys.argv[2] == "wait":
    time.sleep(60)
"""


@pytest.mark.parametrize("end", ["return", "SIGINT", "SIGKILL"])
def test_no_process_is_left_behind(long_clip: Path, end: str) -> None:
    """Also from a script that has no `if __name__ == "__main__"`."""
    command = [sys.executable, "-c", SCRIPT, str(long_clip), "return" if end == "return" else "wait"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert len(pids) == 2
        if end != "return":
            process.send_signal(signal.Signals[end])
        process.wait(timeout=60)
    assert wait_until(lambda: not any(map(is_running, pids)))


def test_a_worker_loads_no_network_code(pool: DecoderPool, clip: Path) -> None:
    list(pool.open(clip, VIEWS))
    maps = Path(f"/proc/{pool.pids[0]}/maps").read_text()
    assert "libavcodec" in maps
    assert "torch" not in maps


def test_names_that_are_no_utf8(pool: DecoderPool, tmp_path: Path, clip: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff\xfe.mp4"
    os.link(clip, path)
    assert len(list(pool.open(os.fsdecode(path), VIEWS))) == 24


def test_what_may_not_be_opened_does_not_block(pool: DecoderPool, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "zero.mp4").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket.mp4"))
    for name in ("pipe.mp4", "zero.mp4", "socket.mp4"):
        with pytest.raises(MediaError, match="not a file") as caught:
            list(pool.open(tmp_path / name, VIEWS))
        assert caught.value.kind == "unreadable"
