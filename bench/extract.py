"""Extracting a folder of videos beside a plain loop over it, in turns, and what each stage costs alone."""

from __future__ import annotations

import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import partial
from importlib.metadata import version
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pydantic
from numpy.typing import NDArray

from eao.bench.docs import measured_on
from eao.bench.hardware import Hardware, describe_hardware
from eao.bench.latency import foreign_load
from eao.config import FeaturesConfig
from eao.features.extract import extract_folder
from eao.features.extractor import FeatureExtractor
from eao.features.inputs import Source
from eao.features.media import ClipReader, read_audio
from eao.features.segments import Segment
from eao.features.spectrogram import log_mel
from eao.features.store import WORK_FOLDER, write_clips

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

WIDTH, HEIGHT, FPS, SAMPLE_RATE = 854, 480, 25, 44_100
LOOP, LEAN, PIPELINE = "plain loop", "lean loop", "eao extract"
STAGES = ("decode", "network", "spectrogram", "write")


class Usage(pydantic.BaseModel):
    """What a piece of work took.

    Attributes:
        seconds: wall-clock time.
        busy: share of all cores that this process, and those it started, kept busy.
        idlest_core: share of the time that the least busy core worked, for whomever; None if that is unknown.
    """

    seconds: float
    busy: float
    idlest_core: float | None


class ExtractReport(pydantic.BaseModel):
    """The measurement and its conditions.

    Attributes:
        rounds: what each way took for all clips, by its name.
        stages: seconds of one core for a clip, each stage alone.
    """

    hardware: Hardware
    versions: dict[str, str]
    clips: int
    seconds: float
    threads: int
    rounds: list[dict[str, Usage]]
    stages: dict[str, float]
    foreign_cores: float | None

    def speedups(self, way: str) -> list[float]:
        """How many times as fast as the plain loop, in each round."""
        return [used[LOOP].seconds / used[way].seconds for used in self.rounds]

    def to_markdown(self) -> str:
        lines = [
            f"{self.clips} rendered clips of {self.seconds:g} s ({WIDTH} x {HEIGHT}, {FPS} frames/s, H.264 and AAC), "
            "with the demo's features: EfficientNet-Lite0 at two frames a second, 224 x 224, and the log-mel "
            "spectrogram. The plain loop is what one writes first: read a file into arrays of all its frames and its "
            "sound, pick the frames, compute them in one batch with all of torch's threads, then the spectrogram, then "
            "write. The lean loop makes arrays of the picked frames alone. All have the networks loaded, and take "
            f"turns, {len(self.rounds)} times; ± is half the range.",
            "",
            "| way | seconds | clips/s | cores busy | speed-up |",
            "|---|---:|---:|---:|---:|",
        ]
        for way in self.rounds[0]:
            seconds = statistics.median(used[way].seconds for used in self.rounds)
            busy = statistics.median(used[way].busy for used in self.rounds)
            ratios = self.speedups(way)
            noise = f" ± {(max(ratios) - min(ratios)) / 2:.2f}" if way != LOOP else ""
            lines.append(
                f"| {way} | {seconds:.1f} | {self.clips / seconds:.2f} | {busy:.0%} "
                f"| {statistics.median(ratios):.2f}x{noise} |"
            )
        whole = sum(self.stages.values())
        best = self.hardware.cores / whole
        reached = self.clips / statistics.median(used[PIPELINE].seconds for used in self.rounds)
        lines += ["", "| stage, alone on one core | milliseconds a clip | share |", "|---|---:|---:|"]
        lines += [f"| {name} | {1e3 * self.stages[name]:.1f} | {self.stages[name] / whole:.0%} |" for name in STAGES]
        lines += [
            "",
            f"Together {1e3 * whole:.0f} ms of one core, so {self.hardware.cores} cores can do {best:.2f} clips/s at "
            f"best, of which `eao extract` reaches {reached / best:.0%}.",
        ]
        idlest = [used[PIPELINE].idlest_core for used in self.rounds]
        if idlest and None not in idlest:
            lines[-1] += f" Meanwhile the core with least to do was {min(x for x in idlest if x is not None):.0%} busy."
        if self.foreign_cores is not None:
            lines += ["", f"Other processes kept {self.foreign_cores:.2f} cores busy meanwhile."]
        return "\n".join([*lines, "", measured_on(self.hardware, self.versions, self.threads)])


def run(clips: int = 200, seconds: float = 4.0, rounds: int = 2) -> ExtractReport:
    """Measure; the clips are rendered to a temporary folder first.

    Args:
        clips: how many.
        seconds: length of each.
        rounds: how often the ways take turns with all clips.
    """
    import torch

    hardware = describe_hardware()
    extractor = FeatureExtractor(FeaturesConfig())
    extractor.load()
    ways: dict[str, Callable[[Sequence[Path], Path], object]] = {
        LOOP: lambda videos, out: plain_loop(videos, out, extractor, read_video),
        LEAN: lambda videos, out: plain_loop(videos, out, extractor, read_picked),
        PIPELINE: lambda videos, out: extract_folder(videos, out, extractor.config, extractor=extractor),
    }
    with tempfile.TemporaryDirectory(prefix="eao-bench-") as temporary:
        folder = Path(temporary)
        videos = render_clips(folder / "videos", clips, seconds)
        for name, way in ways.items():
            way(videos[:2], folder / "warm" / name)
        stages = measure_stages(videos[:: max(1, clips // 20)], folder / "stages", extractor)
        measured: list[dict[str, Usage]] = []
        with foreign_load() as others:
            for index in range(rounds):
                used = {}
                for name in ways if index % 2 == 0 else reversed(ways):
                    used[name] = measure(partial(ways[name], videos, folder / f"round{index}" / name))
                measured.append({name: used[name] for name in ways})
    return ExtractReport(
        hardware=hardware,
        versions={name: version(name) for name in ("av", "numpy", "torch")},
        clips=clips,
        seconds=seconds,
        threads=torch.get_num_threads(),
        rounds=measured,
        stages=stages,
        foreign_cores=others.cores,
    )


def render_clips(folder: Path, count: int, seconds: float) -> list[Path]:
    """Clips 0 to `count`, rendered side by side."""
    folder.mkdir(parents=True)
    paths = [folder / f"{seed:04d}.mp4" for seed in range(count)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # encoding needs no lock of Python's
        return list(pool.map(render_clip, paths, range(count), repeat(seconds)))


def render_clip(path: Path, seed: int, seconds: float) -> Path:
    """A clip of shapes that move over a gradient with some grain, and of tones that change four times a second."""
    import av

    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    ground = (rng.uniform(40, 120, 3) + rng.uniform(0.1, 0.3, 3) * (x + y)[..., None]).clip(0, 255)
    ground = (ground + rng.normal(0, 6, (HEIGHT, WIDTH, 1))).clip(0, 255).astype(np.uint8)
    places = rng.uniform((0, 0), (WIDTH, HEIGHT), (6, 2))
    speeds = rng.uniform(-180, 180, (6, 2))
    sides, colours = rng.integers(30, 120, 6), rng.integers(0, 255, (6, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=FPS, options={"preset": "veryfast", "threads": "1"})
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        sound = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        for index in range(round(seconds * FPS)):
            image = ground.copy()
            for place, speed, side, colour in zip(places, speeds, sides, colours, strict=True):
                left, top = ((place + speed * index / FPS) % (WIDTH, HEIGHT)).astype(int)
                image[top : top + side, left : left + side] = colour
            container.mux(video.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(video.encode(None))
        samples = round(seconds * SAMPLE_RATE)
        pitch = np.repeat(rng.uniform(150, 2000, round(4 * seconds) + 1), SAMPLE_RATE // 4)[:samples]
        wave = (0.4 * np.sin(2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE)).astype(np.float32)
        for begin in range(0, samples, 1024):
            frame = av.AudioFrame.from_ndarray(wave[None, begin : begin + 1024], "fltp", "mono")
            frame.rate, frame.pts, frame.time_base = SAMPLE_RATE, begin, Fraction(1, SAMPLE_RATE)
            container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    return path


Video = tuple[NDArray[np.uint8], NDArray[np.float32] | None]
"""Frames (n, side, side, 3), and mono sound at 16 kHz."""


def plain_loop(
    videos: Sequence[Path], out: Path, extractor: FeatureExtractor, read: Callable[[Path, float, int], Video]
) -> None:
    """The rival: file after file, step after step, with the same networks and the same spectrogram."""
    out.mkdir(parents=True, exist_ok=True)
    stream = extractor.streams["video_2d"]
    forward = extractor.forward(stream)
    for path in videos:
        frames, samples = read(path, stream.rate, stream.view.side)
        outputs = forward(frames)
        for suffix, each in (("2d", extractor.streams["video_2d"]), ("3d", extractor.streams["video_3d"])):
            np.savez(out / f"{path.stem}_{suffix}.npz", features=each.backbone.rows(outputs).astype(np.float16))
        if samples is not None:
            np.savez(out / f"{path.stem}_spec.npz", log_mel(samples).astype(np.float16))


def read_video(path: Path, rate: float, side: int) -> Video:
    """Read a whole file as arrays, as `torchvision.io.read_video` does, then pick and scale the frames at k/rate."""
    import av

    with av.open(str(path)) as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    picked = frames[[int(k * FPS / rate + 1e-6) for k in range(math.ceil(len(frames) / FPS * rate))]]
    images = [_scaled(av.VideoFrame.from_ndarray(image, "rgb24"), side) for image in picked]
    return np.stack(images), read_audio(path)


def read_picked(path: Path, rate: float, side: int) -> Video:
    """Read a whole file, and make arrays of nothing but the frames at k/rate."""
    import av

    images: list[NDArray[np.uint8]] = []
    with av.open(str(path)) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index == int(len(images) * FPS / rate + 1e-6):
                images.append(_scaled(frame, side))
    return np.stack(images), read_audio(path)


def _scaled(frame: VideoFrame, side: int) -> NDArray[np.uint8]:
    """The central square of a frame whose short side is scaled to `side`."""
    scale = side / min(frame.width, frame.height)
    width, height = int(frame.width * scale + 1e-6), int(frame.height * scale + 1e-6)
    image = frame.reformat(width, height, "rgb24", interpolation="BICUBIC").to_ndarray()
    top, left = (height - side) // 2, (width - side) // 2
    return np.asarray(image[top : top + side, left : left + side], dtype=np.uint8)


def measure_stages(videos: Sequence[Path], out: Path, extractor: FeatureExtractor) -> dict[str, float]:
    """Seconds of one core that each stage takes for a clip, one after the other: processor time, whatever else runs."""
    import torch

    times = dict.fromkeys(STAGES, 0.0)
    (out / WORK_FOLDER).mkdir(parents=True)
    stream = extractor.streams["video_2d"]
    forward, size = extractor.forward(stream), stream.network.size_on("cpu")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for path in videos:
            source = Source(path.stem, str(path))
            begin = time.process_time()
            reader = ClipReader(path, [stream.view])
            frames = np.stack([frame.image for frame in reader])
            decoded = time.process_time()
            for row in range(0, len(frames), size):
                forward(frames[row : row + size])
            computed = time.process_time()
            if reader.audio is not None:
                log_mel(reader.audio)
            heard = time.process_time()
            features = extractor.extract(path)
            before = time.process_time()
            write_clips(out, source, [(Segment(source.id, 0.0, features.duration), features)], None)
            written = time.process_time()
            steps = (decoded - begin, computed - decoded, heard - computed, written - before)
            for name, step in zip(STAGES, steps, strict=True):
                times[name] += step / len(videos)
    finally:
        torch.set_num_threads(threads)
    return times


def measure(work: Callable[[], object]) -> Usage:
    """Do something, and see how busy the cores were."""
    begin, own, cores = time.perf_counter(), sum(os.times()[:4]), _core_ticks()
    work()
    seconds, used = time.perf_counter() - begin, sum(os.times()[:4]) - own
    shares = [(busy - b) / max(total - t, 1) for (b, t), (busy, total) in zip(cores, _core_ticks(), strict=True)]
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Usage(seconds=seconds, busy=used / seconds / usable, idlest_core=min(shares, default=None))


def _core_ticks() -> list[tuple[int, int]]:
    """(busy, all) ticks of each core that this process may use, since the machine started."""
    try:
        lines = Path("/proc/stat").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    ticks = []
    for line in lines:
        name, *numbers = line.split()
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in os.sched_getaffinity(0):
            values = [int(number) for number in numbers[:8]]
            ticks.append((sum(values) - values[3] - values[4], sum(values)))  # all but idle and waiting for the disk
    return ticks
