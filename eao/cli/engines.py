"""Commands for deployment: export and bench."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from eao.cli.common import DryRun, Json, Overrides, app
from eao.console import print_json


@app.command()
def export(
    model: Annotated[Path, typer.Argument(help="A checkpoint folder, a run folder, or an authors' .pth.")],
    overrides: Overrides = None,
    output: Annotated[Path, typer.Option("--out", "-o", help="Folder for the bundle.")] = Path("bundle"),
    engine: Annotated[str, typer.Option(help="onnx (onnxruntime).")] = "onnx",
    precision: Annotated[str, typer.Option(help="fp32.")] = "fp32",
    encoder: Annotated[
        list[str] | None, typer.Option(help="text, video-audio, ...; may be given again. Default: all.")
    ] = None,
    opset: Annotated[int, typer.Option(help="ONNX opset.")] = 18,
    split: Annotated[
        str | None, typer.Option(help="Data set of the configuration for ranking parity; 'none' to skip.")
    ] = "test",
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Compile encoders into a bundle of engines, and prove that they embed and rank as the model does.

    An encoder that fails parity is not written as usable: the figure is named, the evidence kept, the exit code 1.
    """
    from eao.api import load
    from eao.export.run import export_bundle

    report = export_bundle(
        load(model, device="cpu", overrides=overrides or []),
        output,
        engine=engine,
        precision=precision,
        encoders=encoder,
        opset=opset,
        split=split,
        dry_run=dry_run,
        quiet=as_json,
    )
    if as_json:
        print_json(report)


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
