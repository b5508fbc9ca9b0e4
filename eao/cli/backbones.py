"""The command for feature networks: export-backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from eao.cli.common import Json, app, split_names
from eao.console import print_json


@app.command(name="export-backbone")
def export_backbone(
    backbone: Annotated[str, typer.Argument(help="resnet152, resnext101-3d, s3d, clip-vit-b32, efficientnet-lite0.")],
    weights: Annotated[
        Path | None,
        typer.Option(help="The original weights file, or a folder for CLIP; not needed where a package ships it."),
    ] = None,
    output: Annotated[Path, typer.Option("--out", "-o", help="Folder for the engines.")] = Path("backbones"),
    engine: Annotated[list[str] | None, typer.Option(help="onnx, openvino; several joined by commas.")] = None,
    precision: Annotated[list[str] | None, typer.Option(help="fp32, int8; several joined by commas.")] = None,
    clips: Annotated[
        list[Path] | None,
        typer.Option(help="Videos or folders of them, to measure on and to choose int8's ranges from."),
    ] = None,
    threshold: Annotated[
        list[str] | None, typer.Option(help="Change a limit of parity, such as int8.cosine=0.985.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compile the network of a video backbone into engines, from frames to features, and prove that they agree.

    Extraction runs on one with features.video_2d.weights=backbones/resnet152.onnx (.xml for OpenVINO). An engine that
    fails parity is not written: the figure is named, the exit code 1.
    """
    from eao.export.backbones import export_backbone, print_engines
    from eao.export.thresholds import parse_thresholds
    from eao.features.inputs import find_videos

    manifest = export_backbone(
        backbone,
        weights,
        output,
        engines=split_names(engine) or ["onnx"],
        precisions=split_names(precision) or ["fp32"],
        clips=find_videos(clips) if clips else (),
        thresholds=parse_thresholds(threshold or []),
    )
    if as_json:
        print_json(manifest.model_dump())
    else:
        print_engines(manifest, output)
