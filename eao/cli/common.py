"""The command's frame: the application, options that several commands share, and how failures are printed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eao.console import err, out, set_up_logging

if TYPE_CHECKING:
    from eao.embedder import Embedder

app = typer.Typer(
    help="Train, evaluate, export, benchmark and search with the Everything-at-Once model (text, video, audio).",
    epilog="Settings are given as key=value after the arguments, for example: eao train -c demo optimizer.lr=1e-4",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, check the input, and stop.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...; by default a GPU if there is one.")]
ModelPath = Annotated[
    Path | None, typer.Option("--model", "-m", help="A checkpoint folder, an authors' .pth, or a bundle of engines.")
]
Server = Annotated[
    str | None,
    typer.Option(
        "--encoder",
        metavar="triton://HOST:PORT",
        help="Embed on this Triton Inference Server; triton:// is gRPC, triton+http:// is HTTP.",
    ),
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


def split_names(values: list[str] | None) -> list[str]:
    """Values given one by one or joined by commas."""
    return [name.strip() for value in values or () for name in value.split(",") if name.strip()]


def split_overrides(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Files, folders and URLs apart from key=value settings; a file whose name looks like a setting is a file."""
    overrides = [a for a in arguments if re.match(r"[a-z_0-9.]+=", a) and not Path(a).exists()]
    return [a for a in arguments if a not in overrides], overrides


def is_server(address: object) -> bool:
    """Whether this names a Triton Inference Server, and not a file."""
    return re.match(r"triton(\+\w+)?://", str(address)) is not None


def open_model(model: str | Path, device: str | None = None, overrides: list[str] | None = None) -> Embedder:
    """A model to embed with: a checkpoint or bundle, which is loaded, or the address of a server."""
    if is_server(model):
        from eao.api import choose_device
        from eao.serve.client import connect

        return connect(str(model), overrides or [], choose_device(device))
    from eao.api import load

    return load(model, device=device, overrides=overrides or [])


def choose_source(model: Path | None, server: str | None) -> str | Path | None:
    """What `--model` or `--encoder` names; None if neither is given."""
    if model is not None and server is not None:
        raise typer.BadParameter("--model and --encoder: one of them")
    if server is not None and not is_server(server):
        raise typer.BadParameter(f"--encoder {server}: write it as triton://host:port, or triton+http://host:port")
    return server or model


def say(message: str) -> None:
    """Print a failure."""
    err.print(message, style="red", markup=False, highlight=False, soft_wrap=True)
