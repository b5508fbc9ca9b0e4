"""Commands from videos to embeddings: pack, extract, embed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from eao.cli.common import (
    Device,
    DryRun,
    Json,
    ModelPath,
    Overrides,
    Server,
    app,
    choose_source,
    open_model,
    split_names,
    split_overrides,
)
from eao.console import err, print_json, print_report, progress
from eao.errors import ConfigError


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


_WHAT, _HOW = "What", "How"


@app.command()
def extract(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT... [KEY=VALUE]...",
            help="Files, folders, patterns, URLs, and lists of them: .txt, or .csv and .jsonl with the columns path or "
            "url, id, start, end, caption.",
        ),
    ],
    output: Annotated[Path, typer.Option("--out", "-o", help="Folder for the features.")],
    features: Annotated[
        list[str] | None,
        typer.Option(
            help="efficientnet, motion, resnet152, resnext101, s3d, clip, audio; by default those of the demo.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    weights: Annotated[
        list[str] | None, typer.Option(metavar="NAME=PATH", help="Weights of a network.", rich_help_panel=_WHAT)
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option("--model", "-m", help="Extract what this model was trained on.", rich_help_panel=_WHAT),
    ] = None,
    clips: Annotated[
        str,
        typer.Option(
            help="whole, windows:SECONDS, shots[:MIN-MAX] or subtitles[:FOLDER] (.vtt, .srt).", rich_help_panel=_WHAT
        ),
    ] = "whole",
    device: Annotated[
        str | None,
        typer.Option(help="cpu, cuda, cuda:1 ...; by default a GPU if there is one.", rich_help_panel=_HOW),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes that decode; by default one for each core.", rich_help_panel=_HOW),
    ] = None,
    retries: Annotated[
        int,
        typer.Option(min=0, help="Further attempts at what may pass: downloads, crashes.", rich_help_panel=_HOW),
    ] = 2,
    max_duration: Annotated[
        float | None, typer.Option(min=0.001, help="Seconds; longer files are refused.", rich_help_panel=_HOW)
    ] = None,
    max_bytes: Annotated[
        str | None, typer.Option(metavar="SIZE", help="As 2GB; larger files are refused.", rich_help_panel=_HOW)
    ] = None,
    ray: Annotated[
        bool, typer.Option("--ray", help="On the running Ray cluster, or one started here.", rich_help_panel=_HOW)
    ] = False,
    ray_address: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="On this Ray cluster.", rich_help_panel=_HOW)
    ] = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Video and audio features of every video in a folder or list. Runs again where it stopped, also after a kill."""
    from eao.api import choose_device, load_model_config
    from eao.features.choice import choose_settings, make_limits
    from eao.features.extract import extract_folder
    from eao.features.pipeline import Options
    from eao.features.segments import ClipRule

    inputs, overrides = split_overrides(arguments)
    of_model = load_model_config(model) if model is not None else None
    config = choose_settings(split_names(features), weights or (), of_model, overrides)
    options = Options(ClipRule.parse(clips), workers, retries, make_limits(max_duration, max_bytes))
    with progress("extracting", not as_json) as callback:
        report = extract_folder(
            inputs,
            output,
            config,
            device=choose_device(device),
            progress=callback,
            dry_run=dry_run,
            options=options,
            model=str(model.absolute()) if model is not None else None,
            ray=ray_address or ("" if ray else None),
        )
    print_report("extraction", report, as_json)


@app.command()
def embed(
    model: ModelPath = None,
    server: Server = None,
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
    source = choose_source(model, server)
    if source is None:
        raise typer.BadParameter("no model is named: give --model or --encoder")
    embedder = open_model(source, device, overrides)
    rows = embedder.embed(text=text, video=video, audio=audio)
    if output is None:
        print_json(rows.tolist())
        return
    import numpy as np

    from eao.files import atomic_path

    with atomic_path(output.with_suffix(".npy")) as temporary:
        np.save(temporary, rows)
    err.print(f"{output.with_suffix('.npy')}: {rows.shape[0]} x {rows.shape[1]} float32")
