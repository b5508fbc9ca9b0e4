"""Writing a bundle: export, prove parity, and only then put it in its place."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from eao.config import Config
from eao.errors import ExportError, ParityError
from eao.export.build import EncoderBuild, Options, Request, check_makers, needs_reduced_range
from eao.export.encoders import Axis, Model, axes, exportable_encoders, input_specs
from eao.export.manifest import (
    CONFIG_FILE,
    MANIFEST_FILE,
    AxisEntry,
    EncoderEntry,
    EngineEntry,
    FileEntry,
    InputEntry,
    Manifest,
    versions,
)
from eao.export.onnx import OUTPUT
from eao.export.parity_report import PARITY_FILES, PARITY_JSON, BundleParity
from eao.export.prove import Proven, Prover, engine_limits
from eao.export.reference import Reference
from eao.export.samples import Samples, first_clips
from eao.export.stages import ExportedStage, choose_stages, export_stage
from eao.export.text_files import copy_text_files, link_or_copy
from eao.export.thresholds import THRESHOLDS, Thresholds
from eao.files import atomic_path
from eao.model import Batch, encoder_modalities
from eao.model.weights import hash_weights

FP32 = (Request("onnxruntime", "fp32"),)
RANKED_CLIPS = 5000
"""Real clips that rankings are compared on, at most: the first of the data set."""
_SHOWN = 5
"""Figures in an error; the report has all."""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class WrittenBundle:
    """What `write_bundle` made.

    Attributes:
        path: the bundle.
        manifest: its manifest.
        parity: of each engine and precision, those that failed included.
        failed: the folder with what did not pass, if anything did not.
    """

    path: Path
    manifest: Manifest
    parity: BundleParity
    failed: Path | None


def write_bundle(
    source: str | Path | Model,
    out: str | Path,
    config: Config | None = None,
    encoders: str | Sequence[str] = "all",
    requests: Sequence[Request] = FP32,
    options: Options | None = None,
    batches: Iterable[Batch] = (),
    calibration: Iterable[Batch] = (),
    thresholds: dict[str, Thresholds] = THRESHOLDS,
    bisect: bool = False,
    progress: Progress | None = None,
    stages: Sequence[str] = (),
    name: str = "",
) -> WrittenBundle:
    """Compile encoders into a bundle, after proving that each engine agrees with the model.

    The bundle appears at `out`, replacing an older one, with the engines that hold their thresholds. What does not is
    kept, without a manifest and so unusable, in `<out>.failed` with all figures; a later bundle in which nothing failed
    takes that folder away. If an encoder is left without any engine, nothing is written at `out` and an older bundle
    stays as it was.

    Args:
        source: a checkpoint (anything `load_checkpoint` takes), or a model.
        out: the folder.
        config: the experiment; needed with a model, read from a checkpoint otherwise.
        encoders: "all", one name, names joined by commas, or a sequence of names.
        requests: engines and precisions, each made for every encoder; see `choose_requests`.
        options: how they are made.
        batches: real clips for ranking parity.
        calibration: real clips, best others than those, for the ranges of int8 and fp8.
        thresholds: by precision.
        bisect: find the first layer that leaves tolerance in each graph that fails.
        progress: called with a line before each step.
        stages: parts of the model to be written beside the encoders; see `choose_stages`.
        name: of the source, for the manifest; by default that of the checkpoint.

    Raises:
        ExportError: an unknown encoder or stage, a failed trace, or an `out` that is no bundle.
        ParityError: no engine of some encoder agrees with the model, or a stage does not.
        CheckpointError: the checkpoint cannot be read.
        MissingDependencyError: a package that makes one of the engines is not installed.

    Example:
        >>> write_bundle("runs/demo", "bundles/demo").manifest.encoders  # doctest: +SKIP
    """
    out = Path(out)
    options = options or Options()
    model, config, found = _load(source, config)
    name = name or found
    chosen, parts = choose_encoders(model, encoders), choose_stages(model, stages)
    check_target(out)
    check_makers(requests, options)
    say = progress or (lambda line: None)
    samples = Samples(model, calibration)
    with atomic_path(out) as folder:
        folder.mkdir()
        reduce_range = needs_reduced_range(requests)
        builds = {
            encoder: EncoderBuild(model, config, encoder, folder, options, samples.feeds, reduce_range)
            for encoder in chosen
        }
        for build in builds.values():
            build.check(requests)
        limits = engine_limits(requests, builds.values())
        reference = Reference(model, first_clips(batches, RANKED_CLIPS), limits, chosen, progress)
        written = []
        for stage in parts:
            say(f"stage {stage}")
            path = folder / f"{stage}.fp32.onnx"
            written.append(export_stage(model, stage, path, options.opset, options.threads, reference.batches))
        prover = Prover(reference, folder, builds, options, thresholds, bisect, say)
        proven: dict[Request, Proven] = {}
        for precision in dict.fromkeys(request.precision for request in requests):
            names = [request.engine for request in requests if request.precision == precision]
            # Stages hold the same weights as the float32 encoders.
            others = [stage.path for stage in written] if precision == "fp32" else []
            for engine, one in zip(names, prover.prove(names, precision, others), strict=True):
                proven[Request(engine, precision)] = one
        reports = [proven[request].report for request in requests]
        engines = {entry.key: entry for request in requests for entry in proven[request].entries}
        parity = BundleParity(reports=reports, clips=sum(map(len, reference.batches)), versions=versions())
        parity.save(folder)
        passed = {key: entry for key, entry in engines.items() if entry.parity is not None and entry.parity.passed}
        failing = [entry for key, entry in engines.items() if key not in passed]
        failed = _keep_evidence(folder, out, failing) if failing else None
        without = [encoder for encoder in chosen if all(entry.encoder != encoder for entry in passed.values())]
        if without:
            raise _no_engine(without, parity, failed)
        manifest = _manifest(model, config, name, folder, chosen, passed, written)
        _remove_others(folder, manifest)
        manifest.save(folder)
    if failed is None and _evidence_folder(out).exists():
        # Evidence against engines that are no longer there.
        shutil.rmtree(_evidence_folder(out))
    return WrittenBundle(out, manifest, parity, failed)


def choose_encoders(model: Model, encoders: str | Sequence[str]) -> tuple[str, ...]:
    """The encoders a user named, each once, in the model's order.

    Raises:
        ExportError: the model has no such encoder, or none was named.
    """
    offered = exportable_encoders(model)
    names = [n.strip() for n in encoders.split(",")] if isinstance(encoders, str) else list(encoders)
    if names == ["all"]:
        return offered
    unknown = [name for name in names if name not in offered]
    if unknown or not names:
        what = f"cannot export encoder {unknown[0]!r}" if unknown else "no encoder was named"
        raise ExportError(what, f"this model offers all, or of {', '.join(offered)}")
    return tuple(name for name in offered if name in names)


def check_target(out: Path) -> None:
    """Refuse to replace anything but a bundle or an empty folder, and evidence of an earlier failure beside it.

    Raises:
        ExportError: `out` is a file, or a folder that holds something else; or the folder for evidence does.
    """
    if out.exists() and not out.is_dir():
        raise ExportError(f"{out} is a file; a bundle is a folder", "choose another --out")
    if out.is_dir() and any(out.iterdir()) and not (out / MANIFEST_FILE).is_file():
        raise ExportError(f"{out} exists and is no bundle: it would be replaced whole", "choose another --out")
    failed = _evidence_folder(out)
    if failed.exists() and not (failed / PARITY_JSON).is_file():
        raise ExportError(
            f"{failed}, where evidence goes if an engine fails parity, holds something else", f"move {failed} away"
        )


def _evidence_folder(out: Path) -> Path:
    return out.with_name(f"{out.name}.failed")


def _load(source: str | Path | Model, config: Config | None) -> tuple[Model, Config, str]:
    if isinstance(source, str | Path):
        from eao.checkpoint import load_checkpoint

        model, found = load_checkpoint(source)
        return model, config or found, str(source)  # type: ignore[return-value]
    if config is None:
        raise ExportError("a model without its configuration cannot be exported", "give config=")
    return source, config, ""


def _manifest(
    model: Model,
    config: Config,
    source: str,
    folder: Path,
    encoders: Sequence[str],
    engines: dict[str, EngineEntry],
    stages: Sequence[ExportedStage],
) -> Manifest:
    text: tuple[FileEntry, ...] = ()
    if any("text" in encoder_modalities(encoder) for encoder in encoders):
        config, text = copy_text_files(config, folder)
    config.save(folder / CONFIG_FILE)
    found: dict[str, Axis] = {}
    for encoder in encoders:
        found.update(axes(model, encoder))
    return Manifest(
        model_sha256=hash_weights(model),
        source=source,
        embedding_dim=config.model.embedding_dim,
        config=FileEntry.of(folder / CONFIG_FILE),
        text=text,
        axes={name: AxisEntry.of(axis) for name, axis in found.items()},
        encoders={
            encoder: EncoderEntry(inputs=tuple(map(InputEntry.of, input_specs(model, encoder))), output=OUTPUT)
            for encoder in encoders
        },
        engines=engines,
        stages={stage.name: stage.entry() for stage in stages},
        reports=tuple(FileEntry.of(folder / name) for name in PARITY_FILES if (folder / name).is_file()),
        versions=versions(),
    )


def _keep_evidence(folder: Path, out: Path, failing: Iterable[EngineEntry]) -> Path:
    """The files and figures of engines that failed, in a folder beside the bundle; the older evidence goes."""
    failed = _evidence_folder(out)
    names = {file.file for entry in failing for file in entry.files}
    with atomic_path(failed) as evidence:
        evidence.mkdir()
        for name in sorted(names | {name for name in PARITY_FILES if (folder / name).is_file()}):
            link_or_copy(folder / name, evidence / name)
    return failed


def _no_engine(encoders: Sequence[str], parity: BundleParity, failed: Path | None) -> ParityError:
    """The error for encoders that are left without an engine, with every figure that they miss."""
    found = [
        (f"{report.name} {line}")
        for encoder in encoders
        for report in parity.reports
        for line in report.failures(encoder)
    ]
    lines = list(dict.fromkeys(found))
    layers = [f"{report.name} {encoder}: {layer.describe()}" for report, encoder, layer in parity.divergences()]
    more = [f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    return ParityError(
        "\n     ".join([f"no engine of {', '.join(encoders)} holds parity:", *lines[:_SHOWN], *more, *layers]),
        f"graphs and figures are in {failed}; nothing else was written",
    )


def _remove_others(folder: Path, manifest: Manifest) -> None:
    """Take away what no engine of the manifest needs: graphs on the way to others, and engines that failed."""
    kept = {entry.file for entry in manifest.files()}
    for file in folder.iterdir():
        if file.is_file() and file.name not in kept:
            file.unlink()
