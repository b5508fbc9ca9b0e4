"""The `eao` command: one thin function per command, no logic.

Exit codes: 0 = done, 1 = a gate failed (parity), 2 = bad input, a missing package, a full disk, or an interruption.
"""

from __future__ import annotations

import errno
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from eao.console import err, out, print_json, print_report, print_table, progress, set_up_logging
from eao.errors import ConfigError, EaoError, ParityError

app = typer.Typer(
    help="Train, evaluate, export, benchmark and search with the Everything-at-Once model (text, video, audio).",
    epilog="Settings are given as key=value after the arguments, for example: eao train -c demo optimizer.lr=1e-4",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

kernels = typer.Typer(help="The kernels for GPUs, judged without one.", no_args_is_help=True)
app.add_typer(kernels, name="kernels")

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, check the input, and stop.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...; by default a GPU if there is one.")]
ModelPath = Annotated[
    Path, typer.Option("--model", "-m", help="A checkpoint folder, an authors' .pth, or a bundle of engines.")
]


@app.callback()
def common(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show what is going on.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    set_up_logging(verbose)
    if version:
        import eao

        out.print(eao.__version__)
        raise typer.Exit


@app.command()
def train(
    config: Annotated[str, typer.Option("--config", "-c", help="An experiment file, or the name of a shipped one.")],
    overrides: Overrides = None,
    out_folder: Annotated[Path | None, typer.Option("--out", "-o", help="Run folder; default runs/<name>.")] = None,
    resume: Annotated[bool, typer.Option(help="Continue the run in the folder.")] = False,
    device: Device = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Train a model: loss and throughput while it runs, checkpoints, metrics and a learning curve in the run folder.

    The configuration may be one of the authors' too. A dry run names the files that are missing, and exits with 0 then
    as well; with --json, `ready` says whether the run could start.
    """
    from eao.experiments import load_experiment
    from eao.training.run import run_training

    settings = load_experiment(config, overrides or [])
    folder = out_folder or Path("runs") / settings.name
    if dry_run:
        from eao.training.describe import describe_run, description_lines

        description = describe_run(settings, folder, device, resume)
        if as_json:
            print_json(description)
        else:
            out.print("\n".join(description_lines(description)), markup=False, highlight=False, soft_wrap=True)
        return
    result = run_training(settings, folder, resume=resume, device=device, quiet=as_json)
    if as_json:
        print_json(result)


@app.command("eval")
def evaluate(
    model: Annotated[Path, typer.Argument(help="A checkpoint folder, an authors' .pth, or a bundle of engines.")],
    overrides: Overrides = None,
    config: Annotated[
        str | None,
        typer.Option("--config", "-c", help="Settings to evaluate with: a file, or a shipped one by name."),
    ] = None,
    split: Annotated[
        str, typer.Option(help="Which data set of the configuration: test, validation or train.")
    ] = "test",
    output: Annotated[Path | None, typer.Option("--out", "-o", help="Write the metrics as JSON here.")] = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Retrieval metrics of a model on a data set, or how well it localises steps, on CrossTask and Mining YouTube."""
    from eao.api import load, load_for_evaluation
    from eao.evaluation.run import evaluate_model
    from eao.files import write_json

    changes = overrides or []
    embedder = load_for_evaluation(model, config, device, changes) if config else load(model, device, changes)
    result = evaluate_model(embedder, split)
    if output is not None:
        write_json(output, result.as_dict())
    if as_json:
        print_json(result.as_dict())
    else:
        out.print(result.table(f"{model} on {result.items} items ({split})"))


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="The authors' .pth file.")],
    target: Annotated[Path, typer.Argument(help="Folder for the native checkpoint (safetensors + config.yaml).")],
    overrides: Overrides = None,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="The authors' config.yaml, if not beside it.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Convert an authors' checkpoint to the native format, and check that every tensor came over bit by bit."""
    from eao.checkpoint import convert as convert_checkpoint

    report = convert_checkpoint(source, target, config, overrides or [])
    print_json(report) if as_json else out.print(
        f"[green]✓[/green] {target}: {report['tensors']} tensors, {report['parameters']:,} parameters"
    )


@app.command()
def pack(
    url: Annotated[str, typer.Option("--out", "-o", help="Folder or URL (s3://, gs://, ...) of the shards.")],
    config: Annotated[
        str | None, typer.Option("--config", "-c", help="The experiment whose data set is packed.")
    ] = None,
    overrides: Overrides = None,
    split: Annotated[str, typer.Option(help="Which data set: train, validation or test.")] = "train",
    shard_mb: Annotated[int, typer.Option("--shard-size", min=1, help="Megabytes of a shard.")] = 256,
    workers: Annotated[int, typer.Option(min=1, help="Threads that read.")] = 4,
    verify: Annotated[bool, typer.Option("--verify", help="Compare existing shards with their checksums.")] = False,
    as_json: Json = False,
) -> None:
    """Write a data set as WebDataset shards, for faster reading and for object storage. Called again, it goes on."""
    from eao.data.pack import pack_dataset, verify_shards
    from eao.evaluation.run import dataset_config
    from eao.experiments import load_experiment

    if verify:
        with progress("verifying", enabled=not as_json) as report_progress:
            report = verify_shards(url, report_progress)
    elif config is None:
        raise ConfigError("no experiment is named", "give --config, or --verify to check shards")
    else:
        settings = load_experiment(config, overrides or [])
        with progress("packing", enabled=not as_json) as report_progress:
            report = pack_dataset(
                dataset_config(settings, split),
                settings.data,
                url,
                shard_bytes=shard_mb << 20,
                workers=workers,
                progress=report_progress,
            )
    print_report("verified" if verify else "packed", report, as_json)


@app.command()
def extract(
    arguments: Annotated[list[str], typer.Argument(metavar="INPUT... [KEY=VALUE]...", help="Video files and folders.")],
    output: Annotated[Path, typer.Option("--out", "-o", help="Folder for the features.")],
    model: Annotated[Path | None, typer.Option("--model", "-m", help="Extract what this model was trained on.")] = None,
    device: Device = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Video and audio features of every video in a folder. Runs again where it stopped."""
    from eao.config import load_config, override_config
    from eao.features.extract import extract_folder

    inputs, overrides = _split_overrides(arguments)
    if model is not None:
        from eao.api import load_model_config

        settings = override_config(load_model_config(model), overrides)
    else:
        settings = load_config(overrides=overrides)
    with progress("extracting", not as_json) as callback:
        report = extract_folder(
            inputs, output, settings.features, progress=callback, dry_run=dry_run, device=device or "cpu"
        )
    print_report("extraction", report, as_json)


@app.command()
def embed(
    model: ModelPath,
    overrides: Overrides = None,
    text: Annotated[list[str] | None, typer.Option(help="A sentence; may be given again.")] = None,
    video: Annotated[list[str] | None, typer.Option(help="A video file, for what is seen.")] = None,
    audio: Annotated[list[str] | None, typer.Option(help="A video or sound file, for what is heard.")] = None,
    output: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write the (rows, E) float32 array to this .npy file.")
    ] = None,
    device: Device = None,
) -> None:
    """Unit-norm embeddings of sentences, videos or sounds, or of rows that combine them. JSON unless --out is given."""
    from eao.api import load

    embedder = load(model, device=device, overrides=overrides or [])
    rows = embedder.embed(text=text, video=video, audio=audio)
    if output is None:
        print_json(rows.tolist())
        return
    import numpy as np

    from eao.files import atomic_path

    with atomic_path(output.with_suffix(".npy")) as temporary:
        np.save(temporary, rows)
    err.print(f"{output.with_suffix('.npy')}: {rows.shape[0]} x {rows.shape[1]} float32")


@app.command()
def index(
    arguments: Annotated[list[str], typer.Argument(metavar="INPUT... [KEY=VALUE]...", help="Video files and folders.")],
    model: ModelPath,
    output: Annotated[Path, typer.Option("--out", "-o", help="The index; videos are added to one that exists.")] = Path(
        "index"
    ),
    device: Device = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Index a folder of videos, so that `eao search` finds them by what is seen and heard."""
    from eao.api import load
    from eao.features.extract import find_videos
    from eao.retrieval.index import Index

    inputs, overrides = _split_overrides(arguments)
    if dry_run:
        files = find_videos(inputs)
        print_report("index", {"would index": len(files)}, as_json)
        return
    embedder = load(model, device=device, overrides=overrides)
    with progress("indexing", not as_json) as callback:
        report = Index(output, embedder).add(inputs, progress=callback)
    print_report("index", report, as_json)


@app.command()
def search(
    query: Annotated[str, typer.Argument(help="What to look for, in words.")] = "",
    overrides: Overrides = None,
    index_path: Annotated[
        Path, typer.Option("--index", "-i", help="An index made by `eao index` or `eao demo`.")
    ] = Path("index"),
    model: Annotated[
        Path | None, typer.Option("--model", "-m", help="Default: the model the index was made with.")
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many clips.")] = 10,
    by: Annotated[str | None, typer.Option(help="Compare with video-audio (default), video or audio.")] = None,
    video: Annotated[Path | None, typer.Option(help="Find clips like this video instead.")] = None,
    audio: Annotated[Path | None, typer.Option(help="Find clips that sound like this file instead.")] = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Search an index with a sentence, a video or a sound."""
    from dataclasses import asdict

    from eao.api import load
    from eao.retrieval.index import Index

    embedder = load(model, device=device, overrides=overrides or []) if model is not None else None
    opened = Index(index_path, embedder)
    hits = opened.search(query or None, video=video, audio=audio, k=k, encoder=by)
    if as_json:
        print_json([asdict(hit) for hit in hits])
        return
    rows = [
        {"rank": h.rank, "score": f"{h.score:.3f}", "file": h.file, "from": f"{h.start:.1f} s", "to": f"{h.end:.1f} s"}
        for h in hits
    ]
    print_table(query or str(video or audio), rows)


@app.command()
def export(
    model: Annotated[Path, typer.Argument(help="A checkpoint folder, a run folder, or an authors' .pth.")],
    overrides: Overrides = None,
    output: Annotated[Path, typer.Option("--out", "-o", help="Folder for the bundle.")] = Path("bundle"),
    engine: Annotated[
        list[str] | None,
        typer.Option(help="onnx, openvino, trt, trt-rtx; several joined by commas. The first is the default to run."),
    ] = None,
    precision: Annotated[
        list[str] | None, typer.Option(help="fp32, fp16, bf16, int8, int8-weights, int8-nncf, fp8.")
    ] = None,
    encoder: Annotated[list[str] | None, typer.Option(help="text, video-audio, ...; default: all.")] = None,
    batch: Annotated[str | None, typer.Option(help="TensorRT's sizes as minimum:optimum:maximum.")] = None,
    text_tokens: Annotated[str | None, typer.Option(help="As --batch.")] = None,
    video_tokens: Annotated[str | None, typer.Option(help="As --batch.")] = None,
    spectrogram_frames: Annotated[str | None, typer.Option(help="As --batch.")] = None,
    target: Annotated[
        list[str] | None, typer.Option(help="Compute capabilities for TensorRT; default 8.0, 8.6, 8.9 and 12.0.")
    ] = None,
    defer: Annotated[bool, typer.Option(help="Build TensorRT engines on first use on the target.")] = False,
    calibration: Annotated[str, typer.Option(help="Of int8 and fp8: minmax, percentile or entropy.")] = "percentile",
    threshold: Annotated[
        list[str] | None, typer.Option(help="Change a limit of parity, such as int8.cosine=0.985.")
    ] = None,
    opset: Annotated[int, typer.Option(help="ONNX opset.")] = 18,
    split: Annotated[
        str | None, typer.Option(help="Data set of the configuration for ranking parity; 'none' to skip.")
    ] = "test",
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Compile encoders into a bundle of engines, and prove that they embed and rank as the model does.

    An engine that fails parity is not written as usable: the figure is named, the evidence kept, the exit code 1.
    """
    from eao.api import load
    from eao.export.build import Options
    from eao.export.run import export_bundle

    profiles = {
        "batch": batch,
        "text_tokens": text_tokens,
        "video_tokens": video_tokens,
        "spectrogram_frames": spectrogram_frames,
    }
    report = export_bundle(
        load(model, device="cpu", overrides=overrides or []),
        output,
        engines=_split(engine) or ["onnx"],
        precisions=_split(precision) or ["fp32"],
        encoders=_split(encoder),
        options=Options(
            opset=opset,
            calibration=calibration,
            profiles={axis: sizes for axis, sizes in profiles.items() if sizes is not None},
            defer=defer,
            **({"targets": tuple(_split(target))} if target else {}),
        ),
        split=split,
        thresholds=threshold or (),
        dry_run=dry_run,
        quiet=as_json,
    )
    if as_json:
        print_json(report)
    if report.get("failed"):
        raise typer.Exit(1)


@app.command()
def bench(
    target: Annotated[
        str, typer.Argument(help="A bundle made by `eao export`, or attention, forward, gradcache, loader, loss.")
    ],
    overrides: Overrides = None,
    model: Annotated[
        Path | None, typer.Option("--model", "-m", help="The checkpoint, for PyTorch beside the engines.")
    ] = None,
    encoder: Annotated[list[str] | None, typer.Option(help="Default: all.")] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Batch sizes; default 1 and 8.")] = None,
    seconds: Annotated[float, typer.Option(help="Time per measurement.")] = 2.0,
    output: Annotated[Path | None, typer.Option("--out", "-o", help="Write the report as JSON here.")] = None,
    docs: Annotated[Path | None, typer.Option(help="Refresh performance.md and parity.md in this folder.")] = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Latency percentiles, throughput and memory of the engines, interleaved with PyTorch in one process.

    Instead of a bundle, the name of a benchmark that needs none: `forward` (the packed model), `attention`, `loss`,
    `gradcache` (training steps in chunks) or `loader` (raw features and shards).
    """
    from eao.bench.run import SUITES, run_benchmark, run_suite

    if target in SUITES and not Path(target).exists():
        values = run_suite(target, output, docs, quiet=as_json)
        if as_json:
            print_json(values)
        return
    from eao.api import load

    report = run_benchmark(
        load(target, overrides=overrides or []),
        model=load(model, device="cpu") if model is not None else None,
        encoders=encoder,
        batches=batch or [1, 8],
        seconds=seconds,
        output=output,
        docs=docs,
        dry_run=dry_run,
        quiet=as_json,
    )
    if as_json:
        print_json(report)


@app.command()
def demo(
    overrides: Overrides = None,
    folder: Annotated[
        Path | None, typer.Option("--out", "-o", help="Everything goes here. Default runs/demo or runs/demo-quick.")
    ] = None,
    quick: Annotated[
        bool, typer.Option(help="Fewer objects and epochs: a check that everything works, in under 3 minutes.")
    ] = False,
    stamps: Annotated[Path | None, typer.Option(help="A tuxpaint stamps folder, where apt is not at hand.")] = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """The whole path on a real data set: render, extract, train, evaluate, export, prove parity, benchmark, search."""
    from eao.demo.run import run_demo

    folder = folder or Path("runs/demo-quick" if quick else "runs/demo")
    summary = run_demo(folder, quick=quick, stamps=stamps, overrides=overrides or [], dry_run=dry_run, quiet=as_json)
    if as_json:
        print_json(summary)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Which engines, codecs and devices are usable here and, for each that is not, why and what to install."""
    from eao.doctor import diagnose, render, to_json

    checks = diagnose()
    if as_json:
        print_json(to_json(checks))
    else:
        out.print(render(checks))


@kernels.command()
def check(
    target: Annotated[list[str] | None, typer.Option("--target", "-t", help="sm_80, sm_90, ...; default all.")] = None,
    kernel: Annotated[list[str] | None, typer.Option("--kernel", "-k", help="A kernel's name; default all.")] = None,
    details: Annotated[bool, typer.Option(help="A line for each variant and type instead of each kernel.")] = False,
    write: Annotated[
        bool, typer.Option(help="After a change of a kernel: compile all candidates, store which of them fit.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Compile the kernels for every GPU they are meant for, on any machine, and say what each needs.

    Exit code 1 if one spills registers, needs more shared memory than there is, or misses the tensor cores.
    """
    from eao.kernels import aot

    if write and (target or kernel):
        raise EaoError("--write stores all kernels and targets", "leave out --target and --kernel")
    with progress("compiling", not as_json) as callback:
        if write:
            builds = aot.store(cache=aot.default_cache(), progress=callback)
        else:
            builds = aot.check(target or [], kernel or [], cache=aot.default_cache(), progress=callback)
    if as_json:
        print_json([asdict(build) for build in builds])
    else:
        print_table("kernels", aot.details(builds) if details else aot.summary(builds))
    faulty = [build for build in builds if build.fault]
    for build in faulty:
        _say(f"[x] {build.kernel} {build.variant} {build.dtype} {build.target}: {build.fault}")
    if faulty:
        raise typer.Exit(1)


def _split(values: list[str] | None) -> list[str]:
    """Values given one by one or joined by commas."""
    return [name.strip() for value in values or () for name in value.split(",") if name.strip()]


def _split_overrides(arguments: list[str]) -> tuple[list[Path], list[str]]:
    """Files and folders apart from key=value settings; a file whose name looks like a setting is a file."""
    overrides = [a for a in arguments if re.match(r"[a-z_0-9.]+=", a) and not Path(a).exists()]
    return [Path(a) for a in arguments if a not in overrides], overrides


def main() -> None:
    """Run the command line; errors the user can mend become one message and exit code 2."""
    try:
        code = app(standalone_mode=False)
        if code == 130:  # typer's word for Ctrl-C; older versions raise Abort
            raise KeyboardInterrupt
        sys.exit(code if isinstance(code, int) else 0)
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except ParityError as error:
        _fail(f"[x] {error}", 1)
    except EaoError as error:
        _fail(str(error))
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted; nothing is half-written, and the same command continues")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        what = error.filename or "the output"
        _fail(f"cannot write {what}: {error.strerror}\n     free some space, or choose another --out")
    except Exception as error:
        if not hasattr(error, "exit_code") or not hasattr(error, "show"):
            raise
        error.show()
        sys.exit(2)


def _fail(message: str, code: int = 2) -> None:
    _say(f"eao: {message}")
    sys.exit(code)


def _say(message: str) -> None:
    err.print(message, style="red", markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
