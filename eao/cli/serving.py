"""The commands that serve."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from eao.cli.common import Device, app
from eao.cli.triton import triton
from eao.errors import ConfigError, missing_dependency

if TYPE_CHECKING:
    from eao.retrieval.index import Index

KEY_VARIABLE = "EAO_API_KEY"
_SHORTEST_KEY = 16


class _IndexOrCommand(TyperGroup):
    """`eao serve INDEX` is `eao serve --index INDEX`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            args = ["--index", *args]
        return super().parse_args(ctx, args)


serve = typer.Typer(cls=_IndexOrCommand, invoke_without_command=True, subcommand_metavar="[INDEX | COMMAND]")
app.add_typer(serve, name="serve")
serve.command()(triton)


@serve.callback()
def http(
    context: typer.Context,
    index: Annotated[
        str, typer.Option("--index", "-i", help="What eao index made; can be given without the option, if first.")
    ] = "index",
    model: Annotated[
        Path | None, typer.Option("--model", "-m", help="Default: the model the index was made with.")
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(metavar="URL", help="triton://host:port: embed there, not in this process.")
    ] = None,
    engine: Annotated[str | None, typer.Option(help="Of a bundle: onnxruntime, openvino ...")] = None,
    precision: Annotated[str | None, typer.Option(help="Of a bundle: fp32, int8 ...")] = None,
    device: Device = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0: all of this machine's.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8080,
    allow_host: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A name it is called by, as behind a proxy.")
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(help=f"A file with the key that requests need; or set {KEY_VARIABLE}.")
    ] = None,
    max_upload: Annotated[str, typer.Option(help="The largest file to search with.")] = "200MB",
    queue: Annotated[int, typer.Option(min=1, help="Searches that wait or are worked on; more get 503.")] = 64,
    uploads: Annotated[int, typer.Option(min=1, help="Requests with files at once; more get 503.")] = 4,
    timeout: Annotated[str, typer.Option(help="After which a request without an answer gets 503.")] = "30s",
    grace: Annotated[str, typer.Option(help="For requests to be finished after SIGTERM.")] = "30s",
    batch: Annotated[int, typer.Option(min=1, help="Sentences embedded at once.")] = 16,
    batch_delay: Annotated[str, typer.Option(help="How long a sentence waits for others.")] = "2ms",
    log_format: Annotated[Literal["json", "text"], typer.Option(help="Of the lines on standard output.")] = "text",
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Serve an index: the search page, and an HTTP API for programs. Or, with a command, something else."""
    if context.invoked_subcommand is not None:
        return
    import webbrowser

    _check_packages()
    from eao.serve.server import serve
    from eao.serve.settings import Settings, parse_seconds, parse_size

    settings = Settings(
        host=host,
        port=port,
        api_key=read_key(api_key_file),
        allowed_hosts=tuple(allow_host or ()),
        max_upload=parse_size(max_upload),
        queue=queue,
        uploads=uploads,
        timeout=parse_seconds(timeout),
        grace=parse_seconds(grace),
        batch=batch,
        batch_delay=parse_seconds(batch_delay),
        log_format=log_format,
    )
    opened = _open_index(index, model, encoder, device, engine, precision)
    serve(opened, settings, webbrowser.open if open_page else None)


def _check_packages() -> None:
    needed = {
        "fastapi": "fastapi",
        "python_multipart": "python-multipart",
        "PIL": "pillow",
        "prometheus_client": "prometheus-client",
    }
    for module, package in (needed | {"uvicorn": "uvicorn"}).items():
        if importlib.util.find_spec(module) is None:
            raise missing_dependency(package, "serve", "eao serve")


def read_key(file: Path | None) -> str:
    """The API key from a file, else from the environment; empty if there is none.

    Raises:
        ConfigError: the file cannot be read, or the key is too short.
    """
    if file is None:
        key, where = os.environ.get(KEY_VARIABLE, "").strip(), f"the variable {KEY_VARIABLE}"
        if not key:
            return ""
    else:
        where = str(file)
        try:
            key = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read the API key: {error}", "name a file with the key in it") from None
    if len(key) < _SHORTEST_KEY or not key.isascii() or not key.isprintable():
        raise ConfigError(
            f"the API key in {where} is not {_SHORTEST_KEY} or more plain characters",
            "make one: openssl rand -hex 24 > key",
        )
    return key


def _open_index(
    address: str,
    model: Path | None,
    encoder: str | None,
    device: str | None,
    engine: str | None,
    precision: str | None,
) -> Index:
    from eao.retrieval.index import Index
    from eao.retrieval.location import Location
    from eao.retrieval.metadata import choose_model

    if encoder is not None:
        if model is not None or engine is not None or precision is not None:
            raise ConfigError("--encoder names a server that has a model", "leave out --model, --engine, --precision")
        from eao.serve.client import connect

        return Index(address, connect(encoder, device=device or "cpu"))
    metadata = Location(address).read()
    if metadata is None:
        return Index(address)  # which says that there is none
    from eao.api import load

    return Index(address, load(choose_model(model, metadata), device=device, engine=engine, precision=precision))
