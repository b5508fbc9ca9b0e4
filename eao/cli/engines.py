"""Commands for deployment: export and bench."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from eao.cli.common import Device, DryRun, Json, Overrides, app, is_server, open_model, split_names
from eao.console import print_json


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
    stage: Annotated[
        list[str] | None, typer.Option(help="Also parts of the model as graphs of their own: davenet, tokens.")
    ] = None,
    batch: Annotated[str | None, typer.Option(help="TensorRT's sizes as minimum:optimum:maximum.")] = None,
    text_tokens: Annotated[str | None, typer.Option(help="As --batch.")] = None,
    video_tokens: Annotated[str | None, typer.Option(help="As --batch.")] = None,
    spectrogram_frames: Annotated[str | None, typer.Option(help="As --batch.")] = None,
    target: Annotated[
        list[str] | None, typer.Option(help="Compute capabilities for trt-rtx; default 8.0, 8.6, 8.9 and 12.0.")
    ] = None,
    defer: Annotated[bool, typer.Option(help="Build TensorRT engines on first use on the target.")] = False,
    version_compatible: Annotated[bool, typer.Option(help="Of trt: let later versions load the engines.")] = False,
    hardware_compatible: Annotated[
        bool, typer.Option(help="Of trt: one engine for every GPU from Ampere on, at some cost in speed.")
    ] = False,
    calibration: Annotated[str, typer.Option(help="Of int8 and fp8: minmax, percentile or entropy.")] = "minmax",
    calibration_split: Annotated[
        str, typer.Option(help="Data set of the configuration that ranges are chosen from, such as test.")
    ] = "train",
    threshold: Annotated[
        list[str] | None, typer.Option(help="Change a limit of parity, such as int8.cosine=0.985.")
    ] = None,
    bisect: Annotated[
        bool, typer.Option(help="Name the first layer of a failing graph that leaves tolerance.")
    ] = False,
    external_data: Annotated[
        bool | None, typer.Option(help="One file of weights for all encoders; default: where graphs are large.")
    ] = None,
    opset: Annotated[int, typer.Option(help="ONNX opset.")] = 18,
    split: Annotated[
        str | None, typer.Option(help="Data set of the configuration for ranking parity; 'none' to skip.")
    ] = "test",
    target_latency: Annotated[
        str | None,
        typer.Option(help="Choose the fastest engine; 95 % of single calls take at most this, as 20ms."),
    ] = None,
    max_recall_drop: Annotated[
        float | None, typer.Option(help="Choose the fastest engine that loses at most so many points of R@10.")
    ] = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Compile encoders into a bundle of engines, and prove that they embed and rank as the model does.

    An engine that fails parity is not written as usable: the figure is named, the evidence kept, the exit code 1.

    With --target-latency or --max-recall-drop, every engine and precision that runs on this machine is tried (or those
    that are named), and of each encoder the fastest that will do becomes the one that the bundle uses.
    """
    from eao.api import load
    from eao.bench.arrivals import parse_milliseconds
    from eao.export.build import Options
    from eao.export.run import export_bundle

    _refuse_without_tensorrt(
        split_names(engine),
        {
            "--batch": batch,
            "--text-tokens": text_tokens,
            "--video-tokens": video_tokens,
            "--spectrogram-frames": spectrogram_frames,
            "--target": target,
            "--defer": defer,
            "--version-compatible": version_compatible,
            "--hardware-compatible": hardware_compatible,
        },
    )
    choose = target_latency is not None or max_recall_drop is not None
    latency_ms = None if target_latency is None else parse_milliseconds(target_latency)
    engines, precisions = split_names(engine) or ["onnx"], split_names(precision) or ["fp32"]
    if choose:
        from eao.bench.recommend import runnable_engines

        engines, precisions = runnable_engines(split_names(engine), split_names(precision))
    source = load(model, device="cpu", overrides=overrides or [])
    if choose and not precision and source.config.data.train is None and source.config.data.test is None:
        from eao.export.build import CALIBRATED

        # Without clips there is nothing to choose ranges from.
        precisions = [name for name in precisions if name not in CALIBRATED]
    profiles = {
        "batch": batch,
        "text_tokens": text_tokens,
        "video_tokens": video_tokens,
        "spectrogram_frames": spectrogram_frames,
    }
    report = export_bundle(
        source,
        output,
        engines=engines,
        precisions=precisions,
        encoders=split_names(encoder),
        stages=split_names(stage),
        options=Options(
            opset=opset,
            calibration=calibration,  # type: ignore[arg-type]
            share_weights=external_data,
            profiles={axis: sizes for axis, sizes in profiles.items() if sizes is not None},
            defer=defer,
            targets=tuple(split_names(target)),
            version_compatible=version_compatible,
            hardware_compatible=hardware_compatible,
        ),
        split=split,
        calibration_split=calibration_split,
        thresholds=threshold or (),
        bisect=bisect,
        dry_run=dry_run,
        quiet=as_json,
    )
    if choose and not dry_run:
        from eao.bench.run import run_recommendation

        report["recommendation"] = run_recommendation(source, output, latency_ms, max_recall_drop, quiet=as_json)
    if as_json:
        print_json(report)
    # Where engines were tried to choose from, those that fail are an answer, not an error.
    if report["recommendation"]["unmet"] if "recommendation" in report else report.get("failed"):
        raise typer.Exit(1)


def _refuse_without_tensorrt(engines: list[str], options: dict[str, Any]) -> None:
    """Options of TensorRT say nothing to other engines: whoever gives them expects something of them."""
    given = [name for name, value in options.items() if value]
    if given and not any(name.startswith(("trt", "tensorrt")) for name in engines):
        raise typer.BadParameter(f"{', '.join(given)}: of TensorRT alone; name it: --engine trt or --engine trt-rtx")


@app.command()
def bench(
    target: Annotated[
        str,
        typer.Argument(
            help="A bundle; or compare A.json B.json; or "
            "engines, attention, extract, forward, gradcache, index, load, loader, loss."
        ),
    ],
    overrides: Overrides = None,
    model: Annotated[
        Path | None, typer.Option("--model", "-m", help="The checkpoint, for PyTorch beside the engines.")
    ] = None,
    engine: Annotated[list[str] | None, typer.Option(help="onnx, openvino, trt, trt-rtx; default: all.")] = None,
    precision: Annotated[list[str] | None, typer.Option(help="fp32, int8, ...; default: all of the bundle.")] = None,
    encoder: Annotated[
        list[str] | None,
        typer.Option(help="text, video-audio, ...; default: all. triton://host:port: measure this server, too."),
    ] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Batch sizes; default 1 and 8.")] = None,
    length: Annotated[
        list[float] | None, typer.Option(help="Lengths as shares of the longest clip; default 1, the longest.")
    ] = None,
    seconds: Annotated[float | None, typer.Option(help="Time per measurement; default 2.")] = None,
    max_runs: Annotated[int | None, typer.Option(help="The most calls per measurement.")] = None,
    threads: Annotated[int | None, typer.Option(help="Of one call; default: all cores.")] = None,
    rate: Annotated[
        str | None, typer.Option(help="Also let requests come at random times, such as 50/s, and measure their wait.")
    ] = None,
    deadline: Annotated[str | None, typer.Option(help="With --rate: tell what share took longer, as 20ms.")] = None,
    vectors: Annotated[int | None, typer.Option(min=1000, help="Of `index`: clips; default 100,000.")] = None,
    dim: Annotated[int | None, typer.Option(min=16, help="Of `index`: width of a vector; default 6144.")] = None,
    index: Annotated[
        str | None, typer.Option(help="Of `load`: what is searched; default runs/demo/index. --model is its bundle.")
    ] = None,
    device: Device = None,
    output: Annotated[Path | None, typer.Option("--out", "-o", help="Write the report as JSON here.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write one page with plots here.")] = None,
    docs: Annotated[Path | None, typer.Option(help="Refresh performance.md and parity.md in this folder.")] = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Latency percentiles, throughput and memory of the engines, interleaved with PyTorch in one process.

    Instead of a bundle, the name of a benchmark that needs none: `engines` (at the paper's size), `forward` (the
    packed model), `attention`, `loss`, `gradcache` (training steps in chunks), `loader` (raw features and shards),
    `extract` (videos to features, beside plain loops), `index` (disk, build time, latency and recall of every way to
    keep vectors) or `load` (Triton Inference Server and `eao serve` under load, with a bundle and its index).
    `compare A.json B.json` tells which times of two reports differ by more than the noise.
    """
    from eao.bench.run import SUITES, run_benchmark, run_comparison, run_suite

    of_a_bundle = {
        "--model": model,
        "--batch": batch,
        "--length": length,
        "--seconds": seconds,
        "--max-runs": max_runs,
        "--threads": threads,
        "--rate": rate,
        "--deadline": deadline,
        "--device": device,
        "--html": html,
        "--dry-run": dry_run,
    }
    named = {"--encoder": encoder, "--engine": engine, "--precision": precision}
    of_suites = {"--vectors": vectors, "--dim": dim, "--index": index}
    servers = [name for name in split_names(encoder) if is_server(name)]
    encoders = [name for name in split_names(encoder) if name not in servers]
    choices = {"encoders": encoders, "engines": split_names(engine), "precisions": split_names(precision)}
    if target == "compare" and not Path(target).exists():
        _refuse(target, of_a_bundle | named | of_suites | {"--out": output, "--docs": docs})
        if len(overrides or []) != 2:
            raise typer.BadParameter("compare takes two reports: eao bench compare A.json B.json")
        before, after = overrides or []
        values = run_comparison(before, after, quiet=as_json)
    elif target in SUITES and not Path(target).exists():
        options = of_a_bundle | named | of_suites
        _refuse(target, {name: value for name, value in options.items() if name not in _TAKES.get(target, ())})
        given = {**choices, "vectors": vectors, "dim": dim, "bundle": model, "index": index, "seconds": seconds}
        given = {what: value for what, value in given.items() if value}
        values = run_suite(target, output, docs, quiet=as_json, **given)
    else:
        _refuse(target, of_suites)
        from eao.api import choose_device, load
        from eao.bench.arrivals import parse_milliseconds, parse_rate
        from eao.bench.matrix import Options

        device = choose_device(device)  # one for engines and PyTorch
        values = run_benchmark(
            load(target, device=device, overrides=overrides or []),
            model=load(model, device=device) if model is not None else None,
            encoders=choices["encoders"],
            runtimes=choices["engines"],
            precisions=choices["precisions"],
            options=Options(
                batches=batch or (1, 8),
                lengths=length or (1.0,),
                seconds=2.0 if seconds is None else seconds,
                max_runs=max_runs,
                rate=parse_rate(rate) if rate is not None else None,
                deadline_ms=parse_milliseconds(deadline) if deadline is not None else None,
                threads=threads,
            ),
            output=output,
            html=html,
            docs=docs,
            dry_run=dry_run,
            quiet=as_json,
            server=open_model(servers[-1]) if servers else None,
        )
    if as_json:
        print_json(values)


_TAKES = {
    "engines": ("--encoder", "--engine", "--precision"),
    "index": ("--vectors", "--dim"),
    "load": ("--model", "--index", "--seconds"),
}
"""Options of benchmarks that need no bundle."""


def _refuse(target: str, options: dict[str, Any]) -> None:
    given = [name for name, value in options.items() if value]
    if given:
        raise typer.BadParameter(f"{', '.join(given)}: not an option of eao bench {target}")
