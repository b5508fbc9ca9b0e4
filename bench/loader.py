"""Reading HowTo100M-style files beside the same data set as shards, both through the loader that training uses."""

from __future__ import annotations

import copy
import os
import pickle
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from itertools import count
from pathlib import Path

import numpy as np
import pydantic

from eao.bench.docs import measured_on
from eao.bench.hardware import Hardware, describe_hardware
from eao.bench.latency import Comparison, compare, foreign_load
from eao.config import DataConfig, HowTo100MData, ShardData
from eao.data.datasets import open_dataset
from eao.data.item import ClipDataset
from eao.data.loader import Loader
from eao.data.pack import pack_dataset

FILES, COMPRESSED, SHARDS = "files", "files, compressed", "shards"
DATA = DataConfig(video_tokens=12, audio_frames=768)
CAPTION_SECONDS = 4


class Row(pydantic.BaseModel):
    """One way of reading under one condition.

    Attributes:
        cache: "warm": the system holds the files in memory; "cold": it was told to forget them before each epoch.
        source: "files", "files, compressed" or "shards".
        clips_per_second: the median over epochs.
        speedup: how many times as fast as the files, the median over rounds.
        noise: half the interquartile range of that ratio, over its median.
    """

    cache: str
    source: str
    clips_per_second: float
    speedup: float
    noise: float


class LoaderReport(pydantic.BaseModel):
    """The measurement and its conditions."""

    hardware: Hardware
    versions: dict[str, str]
    videos: int
    seconds: int
    clips_per_video: int
    bytes_of_files: int
    bytes_of_compressed: int
    bytes_of_shards: int
    foreign_cores: float | None
    rows: list[Row]

    def to_markdown(self) -> str:
        lines = [
            f"{self.videos} videos of {self.seconds} s in the layout of HowTo100M (2-D and 3-D features 2,048 wide, "
            f"spectrograms of half precision; {self.bytes_of_files / 1e9:.2f} GB in {3 * self.videos} files, "
            f"{self.bytes_of_compressed / 1e9:.2f} GB compressed by `np.savez_compressed`, "
            f"{self.bytes_of_shards / 1e9:.2f} GB in shards), {self.clips_per_video} clips drawn from each, read by "
            "one process in a random order, text left out. What is read from files is checked for numbers that are not "
            "finite; for shards that was done when they were packed. Warm: the system holds all files in memory. Cold: "
            "it was told to forget them before each epoch. Measured in turns; ± is half the interquartile range of the "
            "ratio.",
            "",
            "| cache | source | clips/s | speed-up |",
            "|---|---|---:|---:|",
        ]
        lines += [
            f"| {r.cache} | {r.source} | {r.clips_per_second:,.0f} | {r.speedup:.2f}x ± {100 * r.noise:.0f} % |"
            for r in self.rows
        ]
        if self.foreign_cores is not None:
            lines += ["", f"Other processes kept {self.foreign_cores:.2f} cores busy meanwhile."]
        return "\n".join([*lines, "", measured_on(self.hardware, self.versions, 1)])


def run(videos: int = 64, seconds: int = 360, epoch_seconds: float = 20.0, rounds: int = 6) -> LoaderReport:
    """Measure; the files are written to a temporary folder first.

    Args:
        videos: how many.
        seconds: length of each.
        epoch_seconds: time for each source and condition, over all rounds.
        rounds: how often the sources take turns.
    """
    hardware = describe_hardware()
    with tempfile.TemporaryDirectory(prefix="eao-bench-") as folder, foreign_load() as others:
        config = write_howto100m(Path(folder, "files"), videos, seconds)
        compressed = write_howto100m(Path(folder, "compressed"), videos, seconds, save=np.savez_compressed)
        packed = pack_dataset(config, DATA, str(Path(folder, "shards")))
        sources: dict[str, ClipDataset] = {
            FILES: open_dataset(config, DATA),
            COMPRESSED: open_dataset(compressed, DATA),
            SHARDS: open_dataset(ShardData(url=packed.url), DATA),
        }
        clips = videos * config.clips_per_video
        rows = []
        for cache, prepare in (("warm", _nothing), ("cold", lambda: forget_files(Path(folder)))):
            functions = {name: _epoch(dataset, prepare) for name, dataset in sources.items()}
            comparison = compare(functions, max_seconds=epoch_seconds, rounds=rounds, items=clips)
            rows += _rows(cache, comparison, clips)
        sizes = [_bytes(Path(folder, name)) for name in ("files", "compressed", "shards")]
    return LoaderReport(
        hardware=hardware,
        versions={"numpy": version("numpy"), "torch": version("torch")},
        videos=videos,
        seconds=seconds,
        clips_per_video=config.clips_per_video,
        bytes_of_files=sizes[0],
        bytes_of_compressed=sizes[1],
        bytes_of_shards=sizes[2],
        foreign_cores=others.cores,
        rows=rows,
    )


def write_howto100m(
    folder: Path,
    videos: int,
    seconds: int = 30,
    width: int = 2048,
    seed: int = 0,
    save: Callable[..., None] = np.savez,
) -> HowTo100MData:
    """Random videos in the layout of HowTo100M, with speech all along.

    Args:
        folder: must not exist.
        videos: how many.
        seconds: length of each.
        width: of both video streams.
        seed: of the numbers.
        save: numpy's function that writes the files.
    """
    rng = np.random.default_rng(seed)
    features, captions = folder / "features", {}
    for i in range(videos):
        video = f"video{i:05d}"
        target = features / "cooking" / video
        target.mkdir(parents=True)
        for suffix, rows in (("2d", seconds), ("3d", round(1.5 * seconds))):
            values = rng.standard_normal((rows, width), dtype=np.float32).astype(np.float16)
            save(target / f"{video}_{suffix}.npz", features=values)
        spectrogram = (10 * rng.standard_normal((40, 100 * seconds), dtype=np.float32) - 40).astype(np.float16)
        save(target / f"{video}_spec.npz", spectrogram)
        starts = np.arange(0, seconds, CAPTION_SECONDS, dtype=np.float64)
        texts = [f"now we add {n} spoons of sugar" for n in range(len(starts))]
        ends = np.minimum(starts + CAPTION_SECONDS, seconds)
        captions[video] = {"start": starts.tolist(), "end": ends.tolist(), "text": texts}
    (folder / "videos.csv").write_text("path\n" + "".join(f"cooking/{v}\n" for v in captions), encoding="utf-8")
    (folder / "captions.pickle").write_bytes(pickle.dumps(captions))
    streams = dict.fromkeys(("features_2d", "features_3d", "audio"), str(features))
    return HowTo100MData(csv=str(folder / "videos.csv"), captions=str(folder / "captions.pickle"), **streams)


def forget_files(folder: Path) -> None:
    """Ask the system to drop what it holds of the files below a folder, so that the next read goes to the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _epoch(dataset: ClipDataset, prepare: Callable[[], None]) -> Callable[[], int]:
    epochs = count()

    def read() -> int:
        prepare()
        # A copy maps its shards anew, like a worker process: the system forgets nothing that is still mapped.
        loader = Loader(copy.copy(dataset), None, batch_size=16, shuffle=True, epoch=next(epochs))
        return sum(len(batch) for batch in loader)

    return read


def _nothing() -> None:
    pass


def _rows(cache: str, comparison: Comparison, clips: int) -> list[Row]:
    return [
        Row(
            cache=cache,
            source=source,
            clips_per_second=1e3 * clips / latency.median_ms,
            speedup=comparison.speedups[source],
            noise=comparison.noise[source],
        )
        for source, latency in comparison.latencies.items()
    ]


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.suffix in (".npz", ".tar"))
