"""The command that writes a Triton model repository and runs the server on it."""

from __future__ import annotations

import contextlib
import signal
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from eao.cli.common import Json, split_names
from eao.console import out, print_json


def triton(
    bundle: Annotated[
        Path | None, typer.Option("--bundle", "-b", help="A bundle of engines; without it, --out is served as it is.")
    ] = None,
    output: Annotated[Path, typer.Option("--out", "-o", help="The model repository.")] = Path("triton"),
    target: Annotated[
        Literal["cpu", "gpu", "tensorrt"], typer.Option(help="What the server's machine has, and its engines are for.")
    ] = "cpu",
    engine: Annotated[str | None, typer.Option(help="Of the bundle, use onnx, openvino or trt only.")] = None,
    precision: Annotated[str | None, typer.Option(help="Of the bundle, use engines of this precision only.")] = None,
    encoder: Annotated[list[str] | None, typer.Option(help="text, video-audio, ...; default: all.")] = None,
    instances: Annotated[
        int | None,
        typer.Option(
            min=1, max=64, help="Of each network; default: one on a CPU, two per GPU. More memory, fewer waits."
        ),
    ] = None,
    up: Annotated[
        bool, typer.Option("--up", help="Start the real server on it, on this machine only, until Ctrl-C.")
    ] = False,
    http_port: Annotated[int, typer.Option(min=0, max=65535, help="With --up; 0 = a free one.")] = 8000,
    grpc_port: Annotated[int, typer.Option(min=0, max=65535, help="As --http-port.")] = 8001,
    metrics_port: Annotated[int, typer.Option(min=0, max=65535, help="As --http-port.")] = 8002,
    as_json: Json = False,
) -> None:
    """Write a model repository for Triton Inference Server: encoders, and ensembles from raw inputs to embeddings.

    With --up the server is installed at the first call, into a virtual environment under ~/.cache/eao (or where
    EAO_TRITON_FOLDER says), and started on loopback addresses.
    """
    if bundle is None and not up:
        raise typer.BadParameter("give --bundle to write a repository, or --up to serve the one in --out")
    if bundle is None and (engine or precision or encoder or instances):
        raise typer.BadParameter(
            "--engine, --precision, --encoder and --instances are for writing a repository: give --bundle too"
        )
    if bundle is not None:
        from eao.serve.triton.repository import write_repository

        written = write_repository(bundle, output, target, engine, precision, split_names(encoder), instances)
        if as_json:
            print_json(asdict(written))
        else:
            engines = ", ".join(f"{name} ({engine})" for name, engine in written.engines.items())
            out.print(f"{output}: {len(written.models)} models for --target {target}: {engines}", highlight=False)
    if up:
        _serve(output, http_port, grpc_port, metrics_port)


def _serve(repository: Path, http: int, grpc: int, metrics: int) -> None:
    from eao.errors import ServingError
    from eao.serve.triton.check import check_repository
    from eao.serve.triton.server import Ports, running

    if not repository.is_dir():
        raise ServingError(f"{repository} is no model repository", "write it: --bundle BUNDLE")
    check_repository(repository)
    signal.signal(signal.SIGTERM, _interrupt)
    with contextlib.suppress(KeyboardInterrupt), running(repository, Ports(http, grpc, metrics)) as server:
        # Not by rich, which prints once more what a signal meets while it is printed.
        typer.echo(f"HTTP     http://{server.http}")
        typer.echo(f"gRPC     {server.grpc}")
        typer.echo(f"metrics  http://{server.metrics}/metrics")
        typer.echo(f"Triton Inference Server is ready (process {server.pid}); Ctrl-C stops it")
        server.wait()
    typer.echo("stopped")


def _interrupt(number: int, frame: object) -> None:
    """SIGTERM ends the server as Ctrl-C does."""
    raise KeyboardInterrupt
