"""Writing a bundle: export, prove parity, and only then put it in its place."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from eao.config import Config
from eao.errors import ExportError, ParityError
from eao.export.encoders import Axis, InputSpec, Model, axes, exportable_encoders
from eao.export.manifest import (
    CONFIG_FILE,
    MANIFEST_FILE,
    AxisEntry,
    EncoderEntry,
    FileEntry,
    InputEntry,
    Manifest,
    ParitySummary,
    versions,
)
from eao.export.onnx import OPSET, OUTPUT, ExportedGraph, export_onnx
from eao.export.parity import ParityReport, measure_parity
from eao.export.parity_report import PARITY_JSON, BundleParity
from eao.export.reference import Reference
from eao.export.runtime import Bundle
from eao.files import atomic_path
from eao.model import Batch
from eao.model.weights import hash_weights

Progress = Callable[[str], None]


@dataclass(frozen=True)
class WrittenBundle:
    """What `write_bundle` made."""

    path: Path
    manifest: Manifest
    parity: ParityReport


def write_bundle(
    source: str | Path | Model,
    out: str | Path,
    config: Config | None = None,
    encoders: str | Sequence[str] = "all",
    opset: int = OPSET,
    batches: Iterable[Batch] = (),
    threads: int | None = None,
    progress: Progress | None = None,
) -> WrittenBundle:
    """Export encoders into a bundle, after proving that the engines agree with the model.

    The bundle appears at `out`, replacing an older one, only when every encoder holds its thresholds. Otherwise graphs
    and figures are kept, without a manifest and so unusable, in `<out>.failed`, and an older bundle stays as it was.

    Args:
        source: a checkpoint (anything `load_checkpoint` takes), or a model.
        out: the folder.
        config: the experiment; needed with a model, read from a checkpoint otherwise.
        encoders: "all", one name, names joined by commas, or a sequence of names.
        opset: of the graphs.
        batches: real clips for ranking parity.
        threads: of the trial runs.
        progress: called with a line before each step.

    Raises:
        ExportError: an unknown encoder, a failed trace, or an `out` that is no bundle.
        ParityError: an engine that does not agree with the model.
        CheckpointError: the checkpoint cannot be read.

    Example:
        >>> write_bundle("runs/demo", "bundles/demo").manifest.encoders  # doctest: +SKIP
    """
    out = Path(out)
    model, config, name = _load(source, config)
    chosen = choose_encoders(model, encoders)
    check_target(out)
    report_step = progress or (lambda line: None)
    with atomic_path(out) as folder:
        folder.mkdir()
        config.save(folder / CONFIG_FILE)
        graphs: dict[str, ExportedGraph] = {}
        for encoder in chosen:
            report_step(f"exporting {encoder}")
            graphs[encoder] = export_onnx(model, encoder, folder / f"{encoder}.onnx", opset, threads=threads)
        manifest = _manifest(model, config, name, folder, graphs)
        manifest.save(folder)  # for the runtime that parity is measured with
        bundle = Bundle(folder, threads, verify=False)
        reference = Reference(model, tuple(batches), encoders=chosen, progress=report_step)
        parity = measure_parity(reference, bundle.encode, chosen, progress=report_step)
        clips = sum(map(len, reference.batches))
        BundleParity(reports=[parity], clips=clips, versions=manifest.versions).save(folder)
        if not parity.passed:
            raise _keep_evidence(folder, out, parity)
        manifest = _with_parity(manifest, parity)
        manifest.save(folder)
    return WrittenBundle(out, manifest, parity)


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
    """Refuse to replace anything but a bundle or an empty folder.

    Raises:
        ExportError: `out` is a file, or a folder that holds something else.
    """
    if out.exists() and not out.is_dir():
        raise ExportError(f"{out} is a file; a bundle is a folder", "choose another --out")
    if out.is_dir() and any(out.iterdir()) and not (out / MANIFEST_FILE).is_file():
        raise ExportError(f"{out} exists and is no bundle: it would be replaced whole", "choose another --out")


def _load(source: str | Path | Model, config: Config | None) -> tuple[Model, Config, str]:
    if isinstance(source, str | Path):
        from eao.checkpoint import load_checkpoint

        model, found = load_checkpoint(source)
        return model, config or found, str(source)  # type: ignore[return-value]
    if config is None:
        raise ExportError("a model without its configuration cannot be exported", "give config=")
    return source, config, ""


def _manifest(model: Model, config: Config, source: str, folder: Path, graphs: dict[str, ExportedGraph]) -> Manifest:
    found: dict[str, Axis] = {}
    for encoder in graphs:
        found.update(axes(model, encoder))
    return Manifest(
        model_sha256=hash_weights(model),
        source=source,
        embedding_dim=config.model.embedding_dim,
        config=FileEntry.of(folder / CONFIG_FILE),
        axes={name: AxisEntry(minimum=a.minimum, multiple=a.multiple) for name, a in found.items()},
        encoders={encoder: _entry(graph) for encoder, graph in graphs.items()},
        versions=versions(),
    )


def _entry(graph: ExportedGraph) -> EncoderEntry:
    return EncoderEntry(
        graph=FileEntry.of(graph.path),
        external=(FileEntry.of(graph.external),) if graph.external is not None else (),
        opset=graph.opset,
        inputs=tuple(_input(spec) for spec in graph.inputs),
        output=OUTPUT,
    )


def _input(spec: InputSpec) -> InputEntry:
    shape = tuple(a.name if isinstance(a, Axis) else a for a in spec.shape)
    return InputEntry(name=spec.name, dtype=spec.dtype, shape=shape)  # type: ignore[arg-type]


def _with_parity(manifest: Manifest, parity: ParityReport) -> Manifest:
    entries = {}
    for encoder, entry in manifest.encoders.items():
        measured = parity.encoders[encoder]
        ranked = [r.top10_identical for r in parity.rankings if encoder in r.encoders]
        summary = ParitySummary(
            passed=not parity.failures(encoder),
            max_abs=measured.figures.max_abs,
            cosine_min=measured.figures.cosine_min,
            batch_invariance=measured.batch_invariance,
            top10_identical=min(ranked) if ranked else None,
        )
        entries[encoder] = entry.model_copy(update={"parity": summary})
    return manifest.model_copy(update={"encoders": entries})


def _keep_evidence(folder: Path, out: Path, parity: ParityReport) -> ParityError:
    failed = out.with_name(f"{out.name}.failed")
    (folder / MANIFEST_FILE).unlink()  # without it nothing takes the folder for a bundle
    if failed.is_dir() and (failed / PARITY_JSON).is_file():
        shutil.rmtree(failed)
    elif failed.exists():
        raise ParityError(
            f"the engines fail parity ({parity.failures()[0]}), and {failed}, where the evidence would go, holds "
            "something else",
            f"move {failed} away",
        )
    os.replace(folder, failed)
    failures = parity.failures()
    more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
    return ParityError(
        f"the engines fail parity: {failures[0]}{more}", f"graphs and figures are in {failed}; nothing else was written"
    )
