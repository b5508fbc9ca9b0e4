"""Bad and odd media, each with what must come of it; all are decoded by a pool of processes under a watchdog.

Frame i of every video is grey of value 10 + 8i, so that a frame's number can be read off after any lossy codec.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import struct
import wave
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from eao.errors import MediaError
from eao.features.decoder import DecoderPool
from eao.features.frames import SampledFrame, View
from eao.features.limits import Limits

LIMITS = Limits(
    stall_seconds=20.0,
    max_duration=3600.0,
    max_frames=300,
    free_pixels=2 * 10**7,
    max_expansion=2000.0,
    max_idle_packets=200,
)


@pytest.fixture(scope="module")
def pool() -> Iterator[DecoderPool]:
    with DecoderPool(2, LIMITS) as pool:
        yield pool


def encode(
    path: Path,
    codec: str = "libx264",
    *,
    pix_fmt: str = "yuv420p",
    size: tuple[int, int] = (64, 48),
    numbers: Sequence[int] = range(20),
    start: float = 0.0,
    spread: float = 1.0,
    fps: int = 20,
    sound: str | None = None,
    rate: int = 48_000,
    layout: str = "stereo",
    sound_start: float = 0.0,
    muxer: dict[str, str] | None = None,
    coder: dict[str, str] | None = None,
) -> Path:
    """Write frames of the given numbers, and as much sound (a tone at half scale in every channel)."""
    with av.open(str(path), "w", options=muxer or {}) as container:
        video = container.add_stream(codec, rate=fps, options=coder or {})
        video.width, video.height, video.pix_fmt = *size, pix_fmt
        audio = container.add_stream(sound, rate=rate, layout=layout) if sound else None
        if audio is not None:
            audio.bit_rate = 64_000 * audio.layout.nb_channels
        for index, number in enumerate(numbers):
            image = np.full((size[1], size[0], 3), 10 + 8 * number, np.uint8)
            frame = av.VideoFrame.from_ndarray(image, "rgb24")
            frame.pts, frame.time_base = round((start + spread * index / fps) * 1000), Fraction(1, 1000)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if audio is not None:
            encode_tone(container, audio, len(numbers) / fps, sound_start)
    return path


def encode_tone(container: Any, audio: Any, seconds: float, start: float = 0.0) -> None:
    rate, channels = audio.rate, audio.layout.nb_channels
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)
    resampler = av.AudioResampler(audio.format.name, audio.layout.name, rate, audio.codec_context.frame_size or 1024)
    frame = av.AudioFrame.from_ndarray(tone.astype(np.float32).repeat(channels)[None], "flt", audio.layout.name)
    frame.rate, frame.pts, frame.time_base = rate, round(start * rate), Fraction(1, rate)
    for part in (*resampler.resample(frame), *resampler.resample(None)):
        container.mux(audio.encode(part))
    container.mux(audio.encode(None))


def encode_apart(path: Path, **options: Any) -> Path:
    """In a process of its own: SVT-AV1 makes the thread that calls it, and all that it starts later, real-time ones
    where that is allowed, and nothing else would get on beside the tests that follow."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as other:
        return other.submit(encode, path, **options).result()


def encode_sound(path: Path, codec: str, seconds: float = 1.0, rate: int = 48_000, layout: str = "stereo") -> Path:
    with av.open(str(path), "w") as container:
        encode_tone(container, container.add_stream(codec, rate=rate, layout=layout), seconds)
    return path


def numbers_of(frames: Iterable[SampledFrame]) -> list[int]:
    return [round((float(frame.image.mean()) - 10) / 8) for frame in frames]


# Odd files that are sound: a frame every quarter of a second, of 20 frames in a second.

QUIET = {"x265-params": "log-level=none"}
ODD: dict[str, tuple[str, dict[str, Any]]] = {
    "10-bit": ("a.mkv", {"pix_fmt": "yuv420p10le"}),
    "12-bit 4:4:4 HEVC": ("a.mkv", {"codec": "libx265", "pix_fmt": "yuv444p12le", "coder": QUIET}),
    "grey": ("a.mkv", {"pix_fmt": "gray", "codec": "ffv1"}),
    "16-bit RGB": ("a.mkv", {"pix_fmt": "gbrp16le", "codec": "ffv1"}),
    "transparent": ("a.mov", {"pix_fmt": "rgba", "codec": "png"}),
    "palette": ("a.gif", {"pix_fmt": "rgb8", "codec": "gif"}),
    "full range": ("a.avi", {"pix_fmt": "yuvj422p", "codec": "mjpeg"}),
    "ProRes": ("a.mov", {"pix_fmt": "yuv422p10le", "codec": "prores_ks"}),
    "odd size": ("a.mkv", {"size": (33, 17), "pix_fmt": "yuv444p"}),
    "two pixels": ("a.mkv", {"size": (2, 2)}),
    "narrow": ("a.mkv", {"size": (1000, 4)}),
    "B-frames in AVI": ("a.avi", {"codec": "mpeg4", "coder": {"bf": "2"}}),
    "no timestamps": ("a.h264", {"coder": {"bf": "0"}}),
    "transport stream": ("a.ts", {"codec": "mpeg2video", "fps": 25, "numbers": range(25), "sound": "mp2"}),
    "programme stream": ("a.mpg", {"codec": "mpeg2video", "fps": 25, "numbers": range(25), "sound": "mp2"}),
    "starts late": ("a.mkv", {"start": 100.0, "sound": "libopus", "sound_start": 100.0}),
    "starts before zero": ("a.nut", {"start": -3.0, "codec": "mpeg4"}),
    "fragmented MP4": ("a.mp4", {"sound": "aac", "muxer": {"movflags": "frag_keyframe+empty_moov"}}),
    "live Matroska": ("a.mkv", {"sound": "libopus", "muxer": {"live": "1"}}),
    "VP8": ("a.webm", {"codec": "libvpx", "sound": "libopus"}),
    "VP9": ("a.webm", {"codec": "libvpx-vp9"}),
    "AV1": ("a.mp4", {"codec": "libsvtav1"}),
    "Flash": ("a.flv", {"codec": "flv", "sound": "libmp3lame", "rate": 44_100}),
    "Windows Media": ("a.wmv", {"codec": "wmv2", "sound": "wmav2", "rate": 44_100}),
    "5.1": ("a.mp4", {"sound": "aac", "layout": "5.1"}),
    "7.1": ("a.mkv", {"sound": "pcm_s24le", "layout": "7.1", "rate": 96_000}),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_odd_files(pool: DecoderPool, tmp_path: Path, name: str) -> None:
    file, options = ODD[name]
    make = encode_apart if options.get("codec") == "libsvtav1" else encode
    reader = pool.open(make(tmp_path / file, **options), [View(4.0, 16)])
    assert numbers_of(reader) == ([0, 6, 12, 18] if options.get("fps") == 25 else [0, 5, 10, 15])
    assert reader.duration == pytest.approx(1.0, abs=0.01)
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
    assert (reader.audio is not None) == ("sound" in options)
    if reader.audio is not None:
        assert len(reader.audio) == pytest.approx(16_000, abs=800)  # codecs add up to two blocks of their own
        assert np.abs(reader.audio[4000:12_000]).max() == pytest.approx(0.5, abs=0.1)


# Bad files


def raw(data: bytes, name: str = "a.mp4") -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return make


def video(name: str, **options: Any) -> Callable[[Path], Path]:
    return lambda folder: encode(folder / name, **options)


def changed(make: Callable[[Path], Path], change: Callable[[bytes], bytes]) -> Callable[[Path], Path]:
    def made(folder: Path) -> Path:
        path = make(folder)
        path.write_bytes(change(path.read_bytes()))
        return path

    return made


def cut(share: float) -> Callable[[bytes], bytes]:
    return lambda data: data[: round(len(data) * share)]


def link(target: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "a.mp4").symlink_to(target)
        return folder / "a.mp4"

    return make


def fifo(folder: Path) -> Path:
    os.mkfifo(folder / "a.mp4")
    return folder / "a.mp4"


def folder_named_so(folder: Path) -> Path:
    (folder / "a.mp4").mkdir()
    return folder / "a.mp4"


def unix_socket(folder: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "a.mp4"))
    return folder / "a.mp4"


def sparse(folder: Path) -> Path:
    with (folder / "a.mp4").open("wb") as file:
        file.truncate(300 * 10**9)
    return folder / "a.mp4"


def cover(folder: Path) -> Path:
    with av.open(str(folder / "a.m4a"), "w", format="mp4") as container:
        sound = container.add_stream("aac", rate=48_000, layout="stereo")
        picture = container.add_stream("mjpeg", rate=1)
        picture.width, picture.height, picture.pix_fmt = 32, 32, "yuvj420p"
        picture.disposition = av.stream.Disposition.attached_pic
        container.mux(picture.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), "rgb24")))
        container.mux(picture.encode(None))
        encode_tone(container, sound, 0.5)
    return folder / "a.m4a"


def no_frames(folder: Path) -> Path:
    with av.open(str(folder / "a.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=20)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        sound = container.add_stream("flac", rate=48_000, layout="stereo")
        encode_tone(container, sound, 0.5)
    return folder / "a.mkv"


def garbage_packets(folder: Path, count: int = 20, name: str = "a.mkv") -> Path:
    rng = np.random.default_rng(0)
    with av.open(str(folder / name), "w") as container:
        stream = container.add_stream("mpeg4", rate=20)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(count):
            packet = av.Packet(rng.bytes(200))
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, index * 50, index * 50, Fraction(1, 1000)
            container.mux(packet)
    return folder / name


def gif_of(width: int, height: int) -> bytes:
    head = b"GIF89a" + struct.pack("<HH", width, height) + b"\xf0\0\0" + bytes([0, 0, 0, 255, 255, 255])
    return head + b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x4c\x01\0;"


def png_of(width: int, height: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def not_numbers(folder: Path) -> Path:
    samples = np.full(16_000, np.nan, "<f4").tobytes()
    head = b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 3, 1, 16_000, 64_000, 4, 32)
    data = head + b"data" + struct.pack("<I", len(samples)) + samples
    (folder / "a.wav").write_bytes(b"RIFF" + struct.pack("<I", len(data)) + data)
    return folder / "a.wav"


def wav(seconds: float) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        with wave.open(str(folder / "a.wav"), "wb") as file:
            file.setparams((1, 2, 8000, 0, "NONE", ""))
            file.writeframes(bytes(round(16_000 * seconds)))
        return folder / "a.wav"

    return make


FRONT = {"movflags": "faststart"}
SESSION = b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n"
mp4 = video("a.mp4", sound="aac", muxer=FRONT)
long = {"numbers": range(20), "fps": 5}
lossless = {"muxer": FRONT, "coder": {"qp": "0"}}
jpegs = {"codec": "mjpeg", "pix_fmt": "yuvj420p", "size": (320, 240)}
bomb = {"size": (1024, 512), "numbers": [5] * 100, "coder": {"preset": "ultrafast"}}
far = {"codec": "ffv1", "fps": 1, "numbers": [0] * 2, "spread": 1e7, "muxer": {"live": "1"}}

BAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda folder: folder / "a.mp4", "missing"),
    "below a file": (lambda folder: mp4(folder) / "b.mp4", "missing"),
    "a name with a zero byte": (lambda folder: folder / "a\0.mp4", "unreadable"),
    "a name too long": (lambda folder: folder / ("a" * 300), "unreadable"),
    "dangling link": (link("nothing.mp4"), "missing"),
    "link to itself": (link("a.mp4"), "unreadable"),
    "link to an endless device": (link("/dev/zero"), "unreadable"),
    "link to a process's memory": (link("/proc/self/mem"), "not-media"),
    "pipe": (fifo, "unreadable"),
    "socket": (unix_socket, "unreadable"),
    "folder": (folder_named_so, "unreadable"),
    "sparse giant": (sparse, "too-large"),
    "empty": (raw(b""), "not-media"),
    "one byte": (raw(b"x"), "not-media"),
    "zeros": (raw(bytes(100_000)), "not-media"),
    "text": (raw(b"this is no video\n" * 500), "not-media"),
    "noise": (raw(np.random.default_rng(0).bytes(100_000)), "not-media"),
    "picture": (raw(png_of(10, 100)), "not-media"),
    "playlist": (raw(b"#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\n/etc/passwd\n#EXT-X-ENDLIST\n"), "not-media"),
    "concat list": (raw(b"ffconcat version 1.0\nfile /etc/passwd\n"), "not-media"),
    "session description": (raw(SESSION, "a.sdp"), "not-media"),
    "sound alone": (wav(1.0), "no-video-stream"),
    "cover picture alone": (cover, "no-video-stream"),
    "video stream without packets": (no_frames, "no-frames"),
    "video of noise": (garbage_packets, "no-frames"),
    "much video of noise": (lambda folder: garbage_packets(folder, 400), "damaged"),
    "unknown codec": (changed(mp4, lambda data: data.replace(b"avc1", b"zzzz")), "unsupported-codec"),
    "MP4 without its index": (changed(video("a.mp4"), cut(0.7)), "truncated"),
    "MP4 cut off": (changed(video("a.mp4", sound="aac", muxer=FRONT, **long), cut(0.7)), "truncated"),
    "MP4 without sound cut off": (changed(video("a.mp4", **lossless, **long), cut(0.9)), "truncated"),
    "MP4 cut in its index": (changed(mp4, cut(0.1)), "truncated"),
    "Matroska cut off": (changed(video("a.mkv", sound="libopus", **long), cut(0.6)), "truncated"),
    "AVI cut off": (changed(video("a.avi", **jpegs, **long), cut(0.5)), "truncated"),
    "Flash cut off": (changed(video("a.flv", codec="flv", **long), cut(0.5)), "truncated"),
    "header alone": (changed(video("a.mkv"), lambda data: data[:300]), "not-media"),
    "GIF of 4 gigapixels": (raw(gif_of(65_535, 65_535), "a.gif"), "too-large"),
    "wide": (video("a.mkv", size=(40_000, 1000), codec="ffv1", numbers=range(1)), "too-large"),
    "decompression bomb": (video("a.mp4", **bomb), "too-large"),
    "too many frames": (video("a.mkv", codec="mpeg4", numbers=[0] * 320), "too-long"),
    "dated in years": (video("a.mkv", **far), "too-long"),
    "an hour too long": (wav(3700.0), "too-long"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_files(pool: DecoderPool, tmp_path: Path, name: str) -> None:
    make, kind = BAD[name]
    path = make(tmp_path)
    is_sound = path.suffix == ".wav" and kind != "no-video-stream"
    reader = pool.open(path, [] if is_sound else [View(4.0, 16)])
    with pytest.raises(MediaError) as caught:
        list(reader)
    assert caught.value.kind == kind
    assert path.name in caught.value.message
    assert caught.value.hint


def test_a_file_that_was_cut_off_says_where(pool: DecoderPool, tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", sound="aac", muxer=FRONT, numbers=range(20), fps=5)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 7 // 10])
    with pytest.raises(MediaError, match=r"truncated.* \d\.\d s") as caught:
        list(pool.open(path, [View(4.0, 16)]))
    assert caught.value.at is not None
    assert 1.5 < caught.value.at < 3.6


@pytest.mark.parametrize(("packets", "is_damaged"), [(2, False), (10, True)])
def test_a_few_bad_packets_are_passed_over(pool: DecoderPool, tmp_path: Path, packets: int, is_damaged: bool) -> None:
    path = encode_sound(tmp_path / "a.m4a", "aac", seconds=2.0)
    with av.open(str(path)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux() if packet.size][40 : 40 + packets]
    data = bytearray(path.read_bytes())
    for begin, size in places:
        data[begin : begin + size] = b"\xff" * size
    path.write_bytes(data)
    reader = pool.open(path, [])
    if is_damaged:
        with pytest.raises(MediaError, match=r"damaged after \d\.\d s") as caught:
            list(reader)
        assert caught.value.kind == "damaged"
        assert caught.value.at is not None
        assert 0.8 < caught.value.at < 1.2
    else:
        list(reader)
        assert reader.audio is not None
        assert len(reader.audio) == pytest.approx(32_000, abs=2100)


FUZZED: dict[str, dict[str, Any]] = {
    "a.mp4": {"sound": "aac", "muxer": FRONT},
    "a.mkv": {"sound": "libopus"},
    "a.webm": {"codec": "libvpx", "sound": "libopus"},
    "a.avi": {"codec": "mpeg4", "sound": "libmp3lame", "rate": 44_100},
    "a.ts": {"codec": "mpeg2video", "fps": 25, "sound": "mp2"},
    "a.flv": {"codec": "flv"},
    "a.gif": {"codec": "gif", "pix_fmt": "rgb8"},
    "a.mov": {"codec": "prores_ks", "pix_fmt": "yuv422p10le"},
    "a.wav": {"codec": "pcm_s16le"},
    "a.mp3": {"codec": "libmp3lame"},
    "a.ogg": {"codec": "libopus"},
    "a.flac": {"codec": "flac"},
    "a.m4a": {"codec": "aac"},
}


@pytest.mark.parametrize("name", FUZZED)
def test_fuzzed_files(pool: DecoderPool, tmp_path: Path, name: str) -> None:
    """A few bytes are overwritten, put in or taken out: there are frames or sound, or a reason why not; no crash."""
    is_sound = name in ("a.wav", "a.mp3", "a.ogg", "a.flac", "a.m4a")
    content = (encode_sound if is_sound else encode)(tmp_path / name, **FUZZED[name]).read_bytes()
    path = tmp_path / f"fuzzed-{name}"
    for seed in range(16):
        rng = np.random.default_rng(seed)
        data = bytearray(content)
        for _ in range(rng.integers(1, 5)):
            begin, patch = int(rng.integers(len(data))), rng.bytes(int(rng.integers(1, 16)))
            data[begin : begin + int(rng.choice([0, len(patch)]))] = patch if rng.random() < 0.7 else b""
        path.write_bytes(data)
        reader = pool.open(path, [] if is_sound else [View(4.0, 16)])
        outcome: int | str
        try:
            outcome = len(list(reader))
        except MediaError as error:
            outcome = error.kind
        assert outcome not in ("crashed", "stalled")
        assert is_sound or outcome != 0
