"""The demo: the main job from end to end on real images and real speech, in one command that can be interrupted."""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eao.config import Config, load_config
from eao.configs import find_config
from eao.console import err, out, print_table, progress
from eao.errors import ConfigError, EaoError
from eao.files import write_json, write_text

if TYPE_CHECKING:
    from eao.retrieval.index import Index

QUICK_OBJECTS = 90
QUICK_ENCODERS = ("text", "video", "audio", "video-audio")
"""What a search needs; tracing a graph takes seconds."""
QUERIES = 3
SEARCHES_SHOWN = 3


@dataclass
class Demo:
    """Where everything of a demo lies, and what each step found."""

    folder: Path
    config: Config
    quick: bool
    quiet: bool
    summary: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def features(self) -> Path:
        return self.folder / "features"

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def bundle(self) -> Path:
        return self.folder / "bundle"

    @property
    def index(self) -> Path:
        return self.folder / "index"

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Announce and time one step."""
        if not self.quiet:
            err.rule(f"[bold]{name}", align="left")
        started = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - started, 1)


def run_demo(
    folder: Path,
    quick: bool = False,
    stamps: Path | None = None,
    overrides: Sequence[str] = (),
    dry_run: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Render clips, extract features, train, evaluate, export with parity, benchmark, index and search.

    Steps that are complete in `folder` are not done again, so an interrupted demo goes on where it stopped.

    Args:
        folder: receives everything; `summary.json` is written last.
        quick: fewer objects and epochs, to see that everything works.
        stamps: a folder of Tux Paint stamps; by default the installed ones or Debian's package.
        overrides: settings of the experiment as key=value.

    Returns:
        the content of `summary.json`.
    """
    demo = Demo(folder, demo_config(folder, quick, overrides), quick, quiet)
    steps: list[tuple[str, Callable[[Demo], None]]] = [
        ("data", lambda d: make_data(d, stamps)),
        ("features", extract_features),
        ("training", train),
        ("evaluation", evaluate),
        ("export and parity", export),
        ("benchmark", benchmark),
        ("index and search", search),
    ]
    if dry_run:
        description = {"folder": str(folder), "quick": quick, "steps": [name for name, _ in steps]}
        if not quiet:
            print_table("dry run", [{"": k, " ": str(v)} for k, v in description.items()])
        return description
    check_same_experiment(demo)
    for name, function in steps:
        with demo.step(name):
            function(demo)
    demo.summary["seconds"] = {**demo.seconds, "total": round(sum(demo.seconds.values()), 1)}
    write_json(folder / "summary.json", demo.summary)
    if not quiet:
        print_summary(demo)
    return demo.summary


def demo_config(folder: Path, quick: bool, overrides: Sequence[str]) -> Config:
    """The demo's experiment with the paths of this folder filled in."""
    features, captions, gallery = (
        folder / "features",
        folder / "data" / "captions.jsonl",
        folder / "data" / "gallery.jsonl",
    )
    paths = []
    for split, file in (("train", captions), ("validation", gallery), ("test", gallery)):
        values = {"features": str(features), "captions": str(file), "split": split}
        paths.append(f"data.{split}={json.dumps(values)}")
    return load_config(find_config("demo/quick" if quick else "demo/demo"), [*paths, *overrides])


def check_same_experiment(demo: Demo) -> None:
    """Refuse a folder whose run has other settings: its model and data are not what this demo would make.

    Raises:
        ConfigError: naming the folder.
    """
    saved = demo.run / "config.yaml"
    if saved.exists() and load_config(saved) != demo.config:
        raise ConfigError(
            f"{demo.folder} holds a demo with other settings", "choose another --out, or delete the folder"
        )


def make_data(demo: Demo, stamps: Path | None) -> None:
    """Fetch the stamps and render the clips; `gallery.jsonl` keeps one clip of each held-out object."""
    from eao.demo.dataset import build_dataset
    from eao.demo.stamps import fetch_stamps

    with progress("stamps", not demo.quiet) as callback:
        source = fetch_stamps(demo.folder / "stamps", stamps, progress=callback)
    with progress("rendering", not demo.quiet) as callback:
        dataset = build_dataset(
            demo.data, source, limit_objects=QUICK_OBJECTS if demo.quick else None, progress=callback
        )
    lines = dataset.captions.read_text(encoding="utf-8").splitlines(keepends=True)
    write_text(demo.data / "gallery.jsonl", "".join(line for line in lines if json.loads(line)["gallery"]))
    demo.summary["data"] = {
        "objects": dataset.objects,
        "clips": dataset.clips,
        "without_audio": dataset.without_audio,
        "skipped": dataset.skipped,
    }
    if not demo.quiet:
        err.print(
            f"objects {dataset.objects}, clips {dataset.clips}, {dataset.without_audio} without sound", highlight=False
        )


def extract_features(demo: Demo) -> None:
    """Features of every rendered clip."""
    from eao.features.extract import extract_folder

    with progress("extracting", not demo.quiet) as callback:
        report = extract_folder([demo.data / "videos"], demo.features, demo.config.features, progress=callback)
    if report.failed:
        raise EaoError(
            f"{len(report.failed)} rendered clips could not be read, first {report.failed[0]}",
            "delete them and run again",
        )


def train(demo: Demo) -> None:
    """Train, or go on training, or take the finished run."""
    from eao.training.run import run_training

    resume = (demo.run / "latest").exists()
    result = run_training(demo.config, demo.run, resume=resume, quiet=demo.quiet)
    demo.summary["training"] = {"epochs": result["epochs"], "best_epoch": result["best"]["epoch"]}


def evaluate(demo: Demo) -> None:
    """Retrieval over unseen objects, one clip each, and the choice between two motions of one object."""
    from eao.api import load
    from eao.demo.motion import motion_accuracy
    from eao.evaluation.run import evaluate_model

    embedder = load(demo.run / "best")
    result = evaluate_model(embedder, "test")
    motion = motion_accuracy(embedder, demo.features, demo.data / "captions.jsonl")
    demo.summary["evaluation"] = {"gallery": result.items, "metrics": result.metrics, "motion": motion}
    if not demo.quiet:
        out.print(result.table(f"{result.items} unseen objects, one clip each"))


def export(demo: Demo) -> None:
    """The encoders as ONNX, each proven against the model."""
    from eao.api import load
    from eao.export.run import export_bundle

    report = export_bundle(
        load(demo.run / "best", device="cpu"),
        demo.bundle,
        encoders=QUICK_ENCODERS if demo.quick else None,
        split="test",
        quiet=demo.quiet,
        reuse=True,
    )
    demo.summary["parity"] = report["parity"]


def benchmark(demo: Demo) -> None:
    """PyTorch and onnxruntime, interleaved."""
    from eao.api import load
    from eao.bench.matrix import Options
    from eao.bench.run import run_benchmark

    report = run_benchmark(
        load(demo.bundle),
        model=load(demo.run / "best", device="cpu"),
        encoders=("text", "video-audio") if demo.quick else None,
        options=Options(seconds=0.5 if demo.quick else 1.0),
        output=demo.folder / "bench.json",
        quiet=demo.quiet,
    )
    demo.summary["benchmark"] = report["rows"]


def search(demo: Demo) -> None:
    """Index the unseen clips through the engines, and search them with sentences about unseen objects."""
    from eao.api import load
    from eao.retrieval.index import Index

    index = Index(demo.index, load(demo.bundle))
    with progress("indexing", not demo.quiet) as callback:
        index.add_features(demo.features, under="test", progress=callback)
    demo.summary["searches"] = [
        example_search(index, demo.folder, r) for r in example_queries(demo.data / "gallery.jsonl")
    ]


def example_search(index: Index, folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Search with the caption of a clip: the first hits, and the rank of the clip itself among all that are indexed."""
    hits = index.search(record["caption"], k=len(index))
    own = (folder / "data" / record["file"]).resolve()
    return {
        "query": record["caption"],
        "rank": next(hit.rank for hit in hits if Path(hit.file).resolve() == own),
        "of": len(hits),
        "hits": [{"clip": Path(hit.file).stem, "score": round(hit.score, 3)} for hit in hits[:SEARCHES_SHOWN]],
    }


def example_queries(gallery: Path) -> list[dict[str, Any]]:
    """Records of unseen objects, each of another category, in the order of a hash: nothing is picked by hand."""
    records = [json.loads(line) for line in gallery.read_text(encoding="utf-8").splitlines()]
    held_out = sorted(
        (record for record in records if record["split"] == "test"), key=lambda r: zlib.crc32(r["id"].encode())
    )
    first: dict[str, dict[str, Any]] = {}
    for record in held_out:
        first.setdefault(record["category"], record)
    return list(first.values())[:QUERIES]


def print_summary(demo: Demo) -> None:
    """One readable page at the end."""
    summary = demo.summary
    out.rule("[bold]summary")
    evaluation = summary["evaluation"]
    gallery = evaluation["gallery"]
    rows = [
        {"task": task, "R@1 %": m["R1"], "R@5 %": m["R5"], "R@10 %": m["R10"], "median rank": m["MedR"]}
        for task, m in evaluation["metrics"].items()
        if m
    ]
    print_table(
        f"retrieval over {gallery} unseen objects (chance: R@1 {100 / gallery:.1f}, R@10 {1000 / gallery:.1f})", rows
    )
    motion = evaluation["motion"]
    shown = ", ".join(f"{name} {value:.1f} %" for name, value in motion["accuracy"].items())
    out.print(
        f"right motion of two clips of one object ({motion['choices']} choices, chance 50 %): {shown}", highlight=False
    )
    print_table("engines against PyTorch", [parity_row(name, p) for name, p in summary["parity"].items()])
    print_table("latency", summary["benchmark"])
    for found in summary["searches"]:
        hits = ", ".join(f"{hit['clip']} ({hit['score']:.2f})" for hit in found["hits"])
        rank = f"rank {found['rank']} of {found['of']}"
        out.print(f"search {found['query']!r}: {hits}; its own clip: {rank}", highlight=False, soft_wrap=True)
    seconds = summary["seconds"]
    out.print(", ".join(f"{name} {value:.0f} s" for name, value in seconds.items()), highlight=False)
    out.print(f'try: eao search "a red bird flying" --index {demo.index}', highlight=False, soft_wrap=True)


def parity_row(engine: str, parity: dict[str, Any]) -> dict[str, str]:
    """One engine's parity as a table row."""
    return {
        "engine": engine,
        "max abs": f"{parity['max_abs']:.1e}",
        "cosine min": f"{parity['cosine_min']:.7f}",
        "top-10 kept": "" if parity.get("top10_overlap") is None else f"{100 * parity['top10_overlap']:.0f} %",
    }
