"""The command's frame: the application, options that several commands share, and how failures are printed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from eao.console import err, out, set_up_logging

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


def split_names(values: list[str] | None) -> list[str]:
    """Values given one by one or joined by commas."""
    return [name.strip() for value in values or () for name in value.split(",") if name.strip()]


def split_overrides(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Files, folders and URLs apart from key=value settings; a file whose name looks like a setting is a file."""
    overrides = [a for a in arguments if re.match(r"[a-z_0-9.]+=", a) and not Path(a).exists()]
    return [a for a in arguments if a not in overrides], overrides


def say(message: str) -> None:
    """Print a failure."""
    err.print(message, style="red", markup=False, highlight=False, soft_wrap=True)
