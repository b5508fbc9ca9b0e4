"""Export as a command: from a checkpoint and its data set to a proven bundle."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from eao.console import err, out, print_table
from eao.embedder import Embedder, TorchBackend
from eao.errors import ExportError
from eao.evaluation.run import dataset_loader
from eao.export.bundle import choose_encoders, write_bundle
from eao.export.manifest import MANIFEST_FILE, Manifest, load_manifest
from eao.export.parity import ParityReport
from eao.export.parity_report import PARITY_MARKDOWN
from eao.files import sha256
from eao.model import Batch

ENGINES = ("onnx",)
PRECISIONS = ("fp32",)


def export_bundle(
    embedder: Embedder,
    target: str | Path,
    engine: str = "onnx",
    precision: str = "fp32",
    encoders: Sequence[str] | None = None,
    opset: int = 18,
    split: str | None = "test",
    dry_run: bool = False,
    quiet: bool = False,
    reuse: bool = False,
) -> dict[str, Any]:
    """Export encoders of a checkpoint and prove them.

    Args:
        embedder: a loaded checkpoint, on the CPU.
        target: the folder of the bundle.
        engine: "onnx".
        precision: "fp32".
        encoders: names; all by default.
        opset: of the ONNX graphs.
        split: the data set of the configuration for ranking parity; None or "none" leaves that part out.
        dry_run: say what would be exported.
        reuse: take a bundle at `target` that was made of the same weights and holds all the encoders.

    Returns:
        `bundle`, `model_sha256`, and `parity` figures by encoder.

    Raises:
        ExportError: an engine or encoder that cannot be exported.
        ParityError: an engine that does not agree with the model.
    """
    target = Path(target)
    _check_choice("engine", engine, ENGINES)
    _check_choice("precision", precision, PRECISIONS)
    if not isinstance(embedder.backend, TorchBackend):
        raise ExportError(f"{embedder.source} is a bundle of engines already", "give the checkpoint it was made from")
    model = embedder.backend.model
    chosen = choose_encoders(model, list(encoders) if encoders else "all")  # type: ignore[arg-type]
    if dry_run:
        return _describe(embedder.source, target, chosen, opset, quiet)
    if reuse and (manifest := _finished(target, embedder, chosen)) is not None:
        return _report(target, manifest)
    status = err.status("exporting") if not quiet else nullcontext()
    with status as shown:
        written = write_bundle(
            model,  # type: ignore[arg-type]
            target,
            embedder.config,
            chosen,
            opset,
            batches=_ranking_batches(embedder, split, quiet),
            progress=shown.update if shown is not None else None,
        )
    if not quiet:
        print_parity(written.parity)
        err.print(f"{target}: {len(chosen)} encoders; all figures are in {target / PARITY_MARKDOWN}", soft_wrap=True)
    return _report(target, written.manifest)


def print_parity(parity: ParityReport) -> None:
    """The figures that decide, in two tables."""
    print_table(
        f"{parity.engine} {parity.precision} against PyTorch",
        [
            {
                "encoder": name,
                "max abs": f"{e.figures.max_abs:.1e}",
                "cosine min": f"{e.figures.cosine_min:.8f}",
                "cosine mean": f"{e.figures.cosine_mean:.8f}",
                "alone / in a batch": f"{e.batch_invariance:.8f}",
            }
            for name, e in parity.encoders.items()
        ],
    )
    rankings = [
        {
            "retrieval": r.task,
            "R@1": f"{r.torch['R1']:.1f} / {r.engine['R1']:.1f}",
            "R@10": f"{r.torch['R10']:.1f} / {r.engine['R10']:.1f}",
            "MedR": f"{r.torch['MedR']:g} / {r.engine['MedR']:g}",
            "same top-10": f"{100 * r.top10_identical:.1f} %",
        }
        for r in parity.rankings
    ]
    if rankings:
        size = f"{parity.rankings[0].queries} queries, {parity.rankings[0].gallery} clips"
        print_table(f"rankings by PyTorch / by the engine ({size})", rankings)


def _check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ExportError(f"--{name} {value} is not supported by this version", f"it exports {', '.join(known)}")


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


def _finished(target: Path, embedder: Embedder, chosen: Sequence[str]) -> Manifest | None:
    if not (target / MANIFEST_FILE).is_file():
        return None
    manifest = load_manifest(target)
    same = manifest.model_sha256 == embedder.model_hash and set(chosen) <= set(manifest.encoders)
    intact = all(sha256(target / f.file) == f.sha256 for e in manifest.encoders.values() for f in e.files)
    return manifest if same and intact else None


def _report(target: Path, manifest: Manifest) -> dict[str, Any]:
    parity = {name: e.parity.model_dump() for name, e in manifest.encoders.items() if e.parity is not None}
    return {"bundle": str(target), "model_sha256": manifest.model_sha256, "parity": parity}


def _describe(source: str, target: Path, chosen: Sequence[str], opset: int, quiet: bool) -> dict[str, Any]:
    if not quiet:
        out.print(f"would export {', '.join(chosen)} of {source} to {target} (ONNX opset {opset})", soft_wrap=True)
    return {"source": source, "bundle": str(target), "encoders": list(chosen), "opset": opset}
