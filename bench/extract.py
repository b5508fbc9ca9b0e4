"""Extracting a folder of videos beside a plain loop over it, in turns, and what each stage costs alone."""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

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

WIDTH, HEIGHT, FPS, SAMPLE_RATE = 640, 360, 25, 44_100
STAGES = ("decode", "network", "spectrogram", "write")


class Round(pydantic.BaseModel):
    """One share of the clips, extracted both ways.

    Attributes:
        loop_seconds, pipeline_seconds: wall-clock time.
        loop_busy, pipeline_busy: share of all cores that the way itself kept busy, its processes included.
    """

    loop_seconds: float
    pipeline_seconds: float
    loop_busy: float
    pipeline_busy: float


class ExtractReport(pydantic.BaseModel):
    """The measurement and its conditions.

    Attributes:
        stages: seconds of one core for a clip, each stage alone.
        idlest_core: share of the time that the core with least to do was busy, of all processes, under the pipeline.
    """

    hardware: Hardware
    versions: dict[str, str]
    clips: int
    seconds: float
    threads: int
    rounds: list[Round]
    stages: dict[str, float]
    idlest_core: float | None
    foreign_cores: float | None

    @property
    def speedup(self) -> float:
        """How many times as fast as the loop, the median over rounds."""
        return statistics.median(r.loop_seconds / r.pipeline_seconds for r in self.rounds)

    def to_markdown(self) -> str:
        ratios = np.array([r.loop_seconds / r.pipeline_seconds for r in self.rounds])
        spread = float(np.subtract(*np.percentile(ratios, [75, 25]))) / 2
        loop, pipeline = (sum(getattr(r, f"{way}_seconds") for r in self.rounds) for way in ("loop", "pipeline"))
        busy = [
            sum(getattr(r, f"{way}_busy") * getattr(r, f"{way}_seconds") for r in self.rounds) / seconds
            for way, seconds in (("loop", loop), ("pipeline", pipeline))
        ]
        lines = [
            f"{self.clips} rendered clips of {self.seconds:g} s ({WIDTH} x {HEIGHT}, {FPS} frames/s, H.264 and AAC), "
            "with the demo's features: EfficientNet-Lite0 at two frames a second, 224 x 224, and the log-mel "
            "spectrogram. The loop is what one writes first: decode a file, compute its frames in one batch with all "
            "of torch's threads, then the spectrogram, then write. Both ways have the networks loaded, and take turns "
            f"with {len(self.rounds)} shares of the clips; ± is half the interquartile range.",
            "",
            "| way | seconds | clips/s | cores busy | speed-up |",
            "|---|---:|---:|---:|---:|",
            f"| loop | {loop:.1f} | {self.clips / loop:.2f} | {100 * busy[0]:.0f} % | 1.00x |",
            f"| `eao extract` | {pipeline:.1f} | {self.clips / pipeline:.2f} | {100 * busy[1]:.0f} % "
            f"| {self.speedup:.2f}x ± {spread:.2f} |",
            "",
            "| stage, alone on one core | milliseconds a clip | share |",
            "|---|---:|---:|",
        ]
        whole = sum(self.stages.values())
        lines += [f"| {name} | {1e3 * self.stages[name]:.1f} | {self.stages[name] / whole:.0%} |" for name in STAGES]
        cores = self.hardware.cores
        lines += [
            "",
            f"Together {1e3 * whole:.0f} ms of one core, so {cores} cores can do {cores / whole:.2f} clips/s at best; "
            f"the pipeline reaches {self.clips / pipeline * whole / cores:.0%} of that.",
        ]
        if self.idlest_core is not None:
            lines[-1] += f" The core with least to do was {self.idlest_core:.0%} busy."
        if self.foreign_cores is not None:
            lines += ["", f"Other processes kept {self.foreign_cores:.2f} cores busy meanwhile."]
        return "\n".join([*lines, "", measured_on(self.hardware, self.versions, self.threads)])


def run(clips: int = 200, seconds: float = 4.0, rounds: int = 4) -> ExtractReport:
    """Measure; the clips are rendered to a temporary folder first.

    Args:
        clips: how many.
        seconds: length of each.
        rounds: shares into which they are divided, and for which the ways take turns.
    """
    import torch

    hardware = describe_hardware()
    extractor = FeatureExtractor(FeaturesConfig())
    extractor.load()
    with tempfile.TemporaryDirectory(prefix="eao-bench-") as temporary:
        folder = Path(temporary)
        videos = [render_clip(folder / "videos" / f"{i:04d}.mp4", i, seconds) for i in range(clips)]
        warm_up(videos[:2], folder / "warm", extractor)
        stages = measure_stages(videos[:: max(1, clips // 20)], folder / "stages", extractor)
        measured, idlest = [], []
        with foreign_load() as others:
            for index in range(rounds):
                share = videos[index::rounds]
                out = folder / f"round{index}"
                ways: dict[str, Callable[[], object]] = {
                    "loop": lambda share=share, out=out: plain_loop(share, out / "loop", extractor),
                    "pipeline": lambda share=share, out=out: extract_folder(
                        share, out / "pipeline", extractor.config, extractor=extractor
                    ),
                }
                used = {way: measure(ways[way]) for way in (list(ways) if index % 2 == 0 else reversed(list(ways)))}
                measured.append(
                    Round(
                        loop_seconds=used["loop"].seconds,
                        pipeline_seconds=used["pipeline"].seconds,
                        loop_busy=used["loop"].busy,
                        pipeline_busy=used["pipeline"].busy,
                    )
                )
                idlest.append(used["pipeline"].idlest_core)
    return ExtractReport(
        hardware=hardware,
        versions={name: version(name) for name in ("av", "numpy", "torch")},
        clips=clips,
        seconds=seconds,
        threads=torch.get_num_threads(),
        rounds=measured,
        stages=stages,
        idlest_core=None if None in idlest else statistics.median(x for x in idlest if x is not None),
        foreign_cores=others.cores,
    )


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
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=FPS, options={"preset": "ultrafast", "crf": "23", "threads": "1"})
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


def plain_loop(videos: Sequence[Path], out: Path, extractor: FeatureExtractor) -> None:
    """The rival: file after file, step after step, with the same networks and the same spectrogram."""
    out.mkdir(parents=True, exist_ok=True)
    stream = extractor.streams["video_2d"]
    forward = extractor.forward(stream)
    for path in videos:
        outputs = forward(plain_frames(path, stream.rate, stream.view.side))
        for suffix, each in (("2d", extractor.streams["video_2d"]), ("3d", extractor.streams["video_3d"])):
            np.savez(out / f"{path.stem}_{suffix}.npz", features=each.backbone.rows(outputs).astype(np.float16))
        samples = read_audio(path)
        if samples is not None:
            np.savez(out / f"{path.stem}_spec.npz", log_mel(samples).astype(np.float16))


def plain_frames(path: Path, rate: float, side: int) -> NDArray[np.uint8]:
    """The frames (n, side, side, 3) shown at k/rate seconds, all of a file at once."""
    import av

    images: list[NDArray[np.uint8]] = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            assert frame.time is not None
            # A frame is shown until the next: this one, if a moment k/rate lies in its time.
            while len(images) / rate < frame.time + 1 / FPS - 1e-3:
                scale = side / min(frame.width, frame.height)
                size = (int(frame.width * scale), int(frame.height * scale))
                image = frame.reformat(*size, "rgb24", interpolation="BICUBIC").to_ndarray()
                top, left = (size[1] - side) // 2, (size[0] - side) // 2
                images.append(image[top : top + side, left : left + side])
    return np.stack(images)


def measure_stages(videos: Sequence[Path], out: Path, extractor: FeatureExtractor) -> dict[str, float]:
    """Seconds of one core that each stage takes for a clip, one after the other."""
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
            begin = time.perf_counter()
            reader = ClipReader(path, [stream.view])
            frames = np.stack([frame.image for frame in reader])
            decoded = time.perf_counter()
            for row in range(0, len(frames), size):
                forward(frames[row : row + size])
            computed = time.perf_counter()
            if reader.audio is not None:
                log_mel(reader.audio)
            heard = time.perf_counter()
            features = extractor.extract(path)
            before = time.perf_counter()
            write_clips(out, source, [(Segment(source.id, 0.0, features.duration), features)], None)
            written = time.perf_counter()
            steps = (decoded - begin, computed - decoded, heard - computed, written - before)
            for name, step in zip(STAGES, steps, strict=True):
                times[name] += step / len(videos)
    finally:
        torch.set_num_threads(threads)
    return times


def warm_up(videos: Sequence[Path], out: Path, extractor: FeatureExtractor) -> None:
    """Meet the caches, and import what is imported on first use."""
    plain_loop(videos, out / "loop", extractor)
    extract_folder(videos, out / "pipeline", extractor.config, extractor=extractor)
    shutil.rmtree(out)


class Usage(NamedTuple):
    """What a piece of work took.

    Attributes:
        seconds: wall-clock time.
        busy: share of the cores that this process and those it started kept busy.
        idlest_core: share of the time that the least busy core worked, for whomever; None if that is unknown.
    """

    seconds: float
    busy: float
    idlest_core: float | None


def measure(work: Callable[[], object]) -> Usage:
    """Do something, and see how busy the cores were."""
    begin, own, cores = time.perf_counter(), sum(os.times()[:4]), _core_ticks()
    work()
    seconds, used = time.perf_counter() - begin, sum(os.times()[:4]) - own
    shares = [(busy - b) / max(total - t, 1) for (b, t), (busy, total) in zip(cores, _core_ticks(), strict=True)]
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Usage(seconds, used / seconds / usable, min(shares, default=None))


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
