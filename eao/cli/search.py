"""Commands that make an index and search it."""

from __future__ import annotations

import datetime
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eao.cli.common import (
    Device,
    DryRun,
    Json,
    Overrides,
    Server,
    app,
    choose_source,
    is_server,
    open_model,
    split_overrides,
)
from eao.console import print_json, print_report, print_table, progress

if TYPE_CHECKING:
    from eao.retrieval.index import Index
    from eao.retrieval.search import Hit

Model = Annotated[
    Path | None,
    typer.Option(
        "--model",
        "-m",
        help="Default: the index's model, that of the features, or the one the variable EAO_MODEL names.",
    ),
]
Date = Annotated[
    datetime.datetime | None,
    typer.Option(formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S"], help="By when the file was changed."),
]
_ADDRESS = "A folder; s3://bucket/index; milvus://host:port/collection; or a file of Milvus Lite, such as clips.db."


@app.command()
def index(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[INPUT]... [KEY=VALUE]...", help="Videos, folders, or features that eao extract wrote."
        ),
    ] = None,
    model: Model = None,
    server: Server = None,
    output: Annotated[str, typer.Option("--out", "-o", help=f"The index. {_ADDRESS}")] = "index",
    remove: Annotated[
        list[str] | None, typer.Option("--remove", metavar="FILE|ID", help="Remove a file or a clip; may be repeated.")
    ] = None,
    optimize: Annotated[
        str | None, typer.Option("--optimize", help="int8 or pq: an approximate index; fp16: half precision; none.")
    ] = None,
    reduce: Annotated[
        int, typer.Option("--reduce", min=0, help="With --optimize: width that vectors are reduced to for searching.")
    ] = 0,
    captions: Annotated[
        Path | None, typer.Option(help="With --optimize: CSV of `file` and `caption`, to measure R@10 with.")
    ] = None,
    compact: Annotated[
        bool, typer.Option("--compact", help="Free the space of what was removed and replaced.")
    ] = False,
    stats: Annotated[bool, typer.Option("--stats", help="Say what the index holds.")] = False,
    device: Device = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Index videos, so that `eao search` finds them by what is seen and heard; or change an index that is there."""
    inputs, overrides = split_overrides(arguments or [])
    _check_options(bool(inputs), remove, optimize, reduce, captions, compact, stats)
    source = choose_source(model, server)
    if inputs:
        _add(inputs, overrides, source, output, device, dry_run, as_json)
        return
    opened = _open(output, source, device, overrides, embeds=captions is not None)
    if stats:
        print_report(f"index {output}", opened.stats(), as_json)
    elif dry_run:
        print_report("index", {"would change": output}, as_json)
    elif remove:
        print_report("index", {"removed clips": opened.remove([_as_indexed(name) for name in remove])}, as_json)
    elif optimize is not None:
        report = opened.optimize(optimize, reduce, captions)  # type: ignore[arg-type]
        if as_json:
            print_json(asdict(report))
        else:
            print_table(f"{output}: {report.clips} clips, searched for {report.queries}", report.rows())
    else:
        opened.compact()
        print_report(f"index {output}", opened.stats(), as_json)


@app.command()
def search(
    query: Annotated[str, typer.Argument(help="What to look for, in words.")] = "",
    overrides: Overrides = None,
    index_path: Annotated[str, typer.Option("--index", "-i", help=f"The index. {_ADDRESS}")] = "index",
    model: Annotated[
        Path | None, typer.Option("--model", "-m", help="Default: the model the index was made with.")
    ] = None,
    server: Server = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many files.")] = 10,
    by: Annotated[str | None, typer.Option(help="Compare with video-audio (default), video or audio.")] = None,
    video: Annotated[Path | None, typer.Option(help="Find clips like this video; with words, like both.")] = None,
    audio: Annotated[Path | None, typer.Option(help="Find clips that sound like this file; likewise.")] = None,
    folder: Annotated[Path | None, typer.Option("--where-folder", help="Only files below this folder.")] = None,
    min_duration: Annotated[float | None, typer.Option(help="Only files that last at least so many seconds.")] = None,
    max_duration: Annotated[float | None, typer.Option(help="Only files that last at most so many seconds.")] = None,
    after: Date = None,
    before: Date = None,
    exact: Annotated[bool, typer.Option("--exact", help="Compare every clip, also in an optimized index.")] = False,
    explain: Annotated[bool, typer.Option("--explain", help="Say by what each file was found.")] = False,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Search an index with a sentence, a video or a sound, or a sentence with one of them."""
    from eao.retrieval.clips import Filter

    where = Filter(folder, min_duration, max_duration, after, before)
    opened = _open(index_path, choose_source(model, server), device, overrides or [])
    hits = opened.search(
        query or None, video=video, audio=audio, k=k, encoder=by, where=where, exact=exact, explain=explain
    )
    if as_json:
        print_json([asdict(hit) for hit in hits])
        return
    looked_for = [query, *(str(path) for path in (video, audio) if path is not None)]
    shared = _common_folder([hit.file for hit in hits])
    title = " + ".join(filter(None, looked_for))
    print_table(f"{title}, in {shared}" if shared else title, _rows(hits, opened.encoders, shared))


def _check_options(
    has_inputs: bool,
    remove: list[str] | None,
    optimize: str | None,
    reduce: int,
    captions: Path | None,
    compact: bool,
    stats: bool,
) -> None:
    tasks = {
        "INPUT": has_inputs,
        "--remove": bool(remove),
        "--optimize": optimize is not None,
        "--compact": compact,
        "--stats": stats,
    }
    given = [name for name, is_given in tasks.items() if is_given]
    if len(given) > 1:
        raise typer.BadParameter(f"{' and '.join(given)}: one at a time")
    if not given:
        raise typer.BadParameter(f"nothing to do: give one of {', '.join(tasks)}")
    if optimize is None and (reduce or captions is not None):
        raise typer.BadParameter("--reduce and --captions go with --optimize")


def _add(
    inputs: list[str],
    overrides: list[str],
    model: str | Path | None,
    output: str,
    device: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    from eao.features.inputs import find_videos
    from eao.retrieval.index import Index
    from eao.retrieval.location import Location
    from eao.retrieval.metadata import choose_model, is_features_folder

    chosen = choose_model(model, Location(output).read(), inputs)
    if dry_run:
        features = [path for path in inputs if is_features_folder(path)]
        files = find_videos([path for path in inputs if path not in features])
        counts = {"files": len(files), "folders of features": len(features), "model": chosen}
        print_report("would index", counts, as_json)
        return
    embedder = open_model(chosen, device, overrides)
    with progress("indexing", not as_json) as callback:
        report = Index(output, embedder).add(inputs, progress=callback)
    print_report("index", report, as_json)


def _open(
    address: str, model: str | Path | None, device: str | None, overrides: list[str], embeds: bool = True
) -> Index:
    """An index that is there; it loads its own model when it needs it, unless something is said about the model or it
    is a server's, which is asked only if something is to be embedded."""
    from eao.retrieval.index import Index
    from eao.retrieval.location import Location
    from eao.retrieval.metadata import choose_model

    metadata = Location(address).read()
    silent = model is None and device is None and not overrides
    if metadata is None or (silent and not (embeds and is_server(metadata.model))):
        return Index(address)
    return Index(address, open_model(choose_model(model, metadata), device, overrides))


def _as_indexed(name: str) -> str:
    """Files are indexed by their absolute path, an id is that path and a time."""
    file, mark, time = name.rpartition("#t=")
    if "://" in name:
        return name
    return f"{Path(file).absolute()}{mark}{time}" if mark else str(Path(name).absolute())


def _rows(hits: list[Hit], encoders: tuple[str, ...], folder: str) -> list[dict[str, Any]]:
    more = any(len(hit.clips) > 1 for hit in hits)
    rows = []
    for hit in hits:
        name = os.path.relpath(hit.file, folder) if folder else hit.file
        row: dict[str, Any] = {"rank": hit.rank, "score": f"{hit.score:.3f}", "file": name}
        row["at"] = f"{hit.start:.1f}-{hit.end:.1f} s"
        if more:
            row["also at"] = ", ".join(f"{clip.start:.1f} s" for clip in hit.clips[1:])
        if hit.explanation is not None:
            row["found by"] = hit.explanation.strongest
            matches = [(encoder, hit.explanation.matches.get(encoder)) for encoder in encoders]
            row["fit"] = "\n".join(
                f"{encoder} {match.cosine:.3f} ({match.standard_score:+.1f} sd)"
                for encoder, match in matches
                if match is not None
            )
        rows.append(row)
    return rows


def _common_folder(files: list[str]) -> str:
    """The folder that holds all files, so that a table need not say it of each; "" if there is none."""
    if any("://" in file for file in files):
        return ""
    try:
        return os.path.commonpath([os.path.dirname(file) for file in files])
    except ValueError:  # nothing, or on several drives
        return ""
