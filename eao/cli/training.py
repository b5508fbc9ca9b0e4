"""Commands that make and judge a model: train, eval, convert."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from eao.cli.common import Device, DryRun, Json, Overrides, app
from eao.console import out, print_json


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
