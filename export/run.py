"""Export as a command: from a checkpoint and its data set to a proven bundle."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from eao.backend import TorchBackend
from eao.console import err, out, print_table
from eao.embedder import Embedder
from eao.errors import ExportError
from eao.evaluation.run import dataset_loader
from eao.export.build import CALIBRATED, Options, Request, check_makers, choose_requests
from eao.export.bundle import WrittenBundle, check_target, choose_encoders, write_bundle
from eao.export.manifest import MANIFEST_FILE, Manifest, engine_key, load_manifest
from eao.export.parity import ParityReport
from eao.export.parity_report import PARITY_MARKDOWN
from eao.export.stages import choose_stages
from eao.export.thresholds import parse_thresholds
from eao.files import sha256
from eao.model import Batch


def export_bundle(
    embedder: Embedder,
    target: str | Path,
    engines: Sequence[str] = ("onnx",),
    precisions: Sequence[str] = ("fp32",),
    encoders: Sequence[str] | None = None,
    options: Options | None = None,
    split: str | None = "test",
    calibration_split: str = "train",
    thresholds: Sequence[str] = (),
    bisect: bool = False,
    dry_run: bool = False,
    quiet: bool = False,
    reuse: bool = False,
    stages: Sequence[str] = (),
) -> dict[str, Any]:
    """Compile encoders of a checkpoint and prove them.

    Args:
        embedder: a loaded checkpoint, on the CPU.
        target: the folder of the bundle.
        engines: runtimes, such as "onnx", "openvino", "trt-rtx".
        precisions: such as "fp32", "int8"; each is made for the engines that offer it.
        encoders: names; all by default.
        options: how engines are made.
        split: the data set of the configuration for ranking parity; None or "none" leaves that part out.
        calibration_split: the data set that the ranges of int8 and fp8 are chosen from; `split` if it is not there.
        thresholds: changes of the form "int8.cosine=0.985".
        bisect: name the first layer of a failing graph that leaves tolerance.
        dry_run: say what would be exported.
        reuse: take a bundle at `target` that was made of the same weights and holds all the engines and stages.
        stages: parts of the model to be written beside them, such as "davenet" and "tokens".

    Returns:
        `bundle`, `model_sha256`, `parity` figures by engine, `stages`, the relative error of each, and `failed`, the
        folder of what did not pass, or None.

    Raises:
        ExportError: an engine, encoder or stage that cannot be exported.
        ParityError: an encoder for which no engine agrees with the model, or a stage that does not agree with it.
    """
    target, options = Path(target), options or Options()
    requests = choose_requests(engines, precisions)
    table = parse_thresholds(thresholds)
    if not isinstance(embedder.backend, TorchBackend):
        raise ExportError(f"{embedder.source} is a bundle of engines already", "give the checkpoint it was made from")
    model = embedder.backend.model
    chosen = choose_encoders(model, list(encoders) if encoders else "all")  # type: ignore[arg-type]
    parts = choose_stages(model, stages)  # type: ignore[arg-type]
    check_target(target)
    check_makers(requests, options)
    if dry_run:
        return _describe(embedder.source, target, chosen, requests, options, parts, quiet)
    if reuse and (manifest := _finished(target, embedder, chosen, requests, parts)) is not None:
        return _report(target, manifest, None)
    calibrated = any(request.precision in CALIBRATED for request in requests)
    status = err.status("exporting") if not quiet else nullcontext()
    with status as shown:
        written = write_bundle(
            model,  # type: ignore[arg-type]
            target,
            embedder.config,
            chosen,
            requests,
            options,
            batches=_ranking_batches(embedder, split, quiet),
            calibration=_calibration_batches(embedder, calibration_split, split, quiet) if calibrated else (),
            thresholds=table,
            bisect=bisect,
            progress=shown.update if shown is not None else None,
            stages=parts,
            name=str(embedder.source),
        )
    if not quiet:
        print_parity(written)
    return _report(target, written.manifest, written.failed)


def print_parity(written: WrittenBundle) -> None:
    """The figures that decide, a line for each engine, and a line for each figure that missed its threshold."""
    print_table(
        "engines against PyTorch", [_row(report, name) for report in written.parity.reports for name in report.encoders]
    )
    errors = {name: f"{stage.relative_error:.1e}" for name, stage in written.manifest.stages.items()}
    if errors:
        rows = [{"stage": name, "relative error": error} for name, error in errors.items()]
        print_table("stages against PyTorch", rows)
    count = len(written.manifest.engines)
    err.print(f"{written.path}: {count} engines; all figures are in {written.path / PARITY_MARKDOWN}", soft_wrap=True)
    for (encoder, precision), (left, layers) in kept_layers(written.manifest).items():
        hardly = f"; it is hardly {precision}: offer fp16" if 2 * left > layers else ""
        err.print(f"{encoder} {precision}: {left} of {layers} layers stay in float32{hardly}", soft_wrap=True)
    for line in written.parity.failures():
        err.print(f"[x] {line}", style="red", markup=False, soft_wrap=True)
    for report, encoder, divergence in written.parity.divergences():
        err.print(f"    {report.name} {encoder}: {divergence.describe()}", markup=False, soft_wrap=True)
    if written.failed is not None:
        err.print(f"what failed is in {written.failed}, and not in the bundle", soft_wrap=True)


def kept_layers(manifest: Manifest) -> dict[tuple[str, str], tuple[int, int]]:
    """How many layers of each quantised graph stay in higher precision, and of how many, by encoder and precision."""
    return {(e.encoder, e.precision): (len(e.left), e.layers) for e in manifest.engines.values() if e.left}


def _row(report: ParityReport, encoder: str) -> dict[str, str]:
    measured = report.encoders[encoder]
    ranked = [ranking.top10_overlap for ranking in report.rankings if encoder in ranking.encoders]
    return {
        "engine": report.engine,
        "precision": report.precision,
        "encoder": encoder,
        "cosine min": f"{measured.figures.cosine_min:.6f}",
        "max abs": f"{measured.figures.max_abs:.1e}",
        "alone / in a batch": f"{measured.batch_invariance:.6f}",
        "top-10 kept": f"{100 * min(ranked):.1f} %" if ranked else "",
        "": "[x]" if report.failures(encoder) else "its graph" if report.simulated else "ok",
    }


def _ranking_batches(embedder: Embedder, split: str | None, quiet: bool) -> Iterable[Batch]:
    """The data set whose rankings must not change; without one the user is told that this proof is missing."""
    if split is None or split == "none":
        return ()
    if getattr(embedder.config.data, split, None) is None and split == "test":
        if not quiet:
            err.print(
                "no data.test in the configuration: embeddings are compared, rankings are not "
                "(give data.test.features=FOLDER data.test.captions=FILE)",
                soft_wrap=True,
            )
        return ()
    return dataset_loader(embedder, split)


def _calibration_batches(embedder: Embedder, split: str, other: str | None, quiet: bool) -> Iterable[Batch]:
    """The data set that ranges are chosen from: not the one that rankings are proven on, if there is another."""
    for name in (split, other):
        if name and name != "none" and getattr(embedder.config.data, name.partition("/")[0], None) is not None:
            if name == other and not quiet:
                err.print(
                    f"no data.{split}: ranges are chosen from data.{name}, the data set of the proof", soft_wrap=True
                )
            loader = dataset_loader(embedder, name)
            # Not the first of the file alone: they may be captions of a few videos.
            loader.shuffle = True
            return loader
    return ()


def _finished(
    target: Path, embedder: Embedder, chosen: Sequence[str], requests: Sequence[Request], stages: Sequence[str]
) -> Manifest | None:
    if not (target / MANIFEST_FILE).is_file():
        return None
    try:
        manifest = load_manifest(target)
    except ExportError:  # of an older version, or damaged
        return None
    wanted = {engine_key(encoder, r.engine, r.precision) for encoder in chosen for r in requests}
    same = manifest.model_sha256 == embedder.model_hash
    complete = wanted <= set(manifest.engines) and set(stages) <= set(manifest.stages)
    intact = all(sha256(target / f.file) == f.sha256 for f in manifest.files())
    return manifest if same and complete and intact else None


def _report(target: Path, manifest: Manifest, failed: Path | None) -> dict[str, Any]:
    parity = {key: e.parity.model_dump() for key, e in manifest.engines.items() if e.parity is not None}
    return {
        "bundle": str(target),
        "model_sha256": manifest.model_sha256,
        "parity": parity,
        "stages": {name: stage.relative_error for name, stage in manifest.stages.items()},
        "failed": None if failed is None else str(failed),
    }


def _describe(
    source: str,
    target: Path,
    chosen: Sequence[str],
    requests: Sequence[Request],
    options: Options,
    stages: Sequence[str],
    quiet: bool,
) -> dict[str, Any]:
    engines = [f"{request.engine} {request.precision}" for request in requests]
    if not quiet:
        out.print(
            f"would compile {', '.join(chosen)} of {source} for {', '.join(engines)} into {target} "
            f"(ONNX opset {options.opset})" + (f", and the stages {', '.join(stages)}" if stages else ""),
            soft_wrap=True,
        )
    return {
        "source": source,
        "bundle": str(target),
        "encoders": list(chosen),
        "engines": engines,
        "stages": list(stages),
        "opset": options.opset,
    }
