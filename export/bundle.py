"""Writing a bundle: export, prove parity, and only then put it in its place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from numpy.typing import NDArray

from eao.config import Config
from eao.errors import ExportError, ParityError
from eao.export.build import GRAPH_OF, EncoderBuild, Options, Request
from eao.export.cases import Limits, parity_cases
from eao.export.encoders import Axis, Model, axes, exportable_encoders, input_specs
from eao.export.engines import open_engine, unusable
from eao.export.manifest import (
    CONFIG_FILE,
    MANIFEST_FILE,
    AxisEntry,
    EncoderEntry,
    EngineEntry,
    FileEntry,
    InputEntry,
    Manifest,
    ParitySummary,
    versions,
)
from eao.export.onnx import OUTPUT
from eao.export.parity import ParityReport, bisect_encoder, measure_parity
from eao.export.parity_report import PARITY_FILES, PARITY_JSON, BundleParity
from eao.export.reference import Reference
from eao.export.runtime import batch_feeds
from eao.export.stages import ExportedStage, choose_stages, export_stage
from eao.export.text_files import copy_text_files, link_or_copy
from eao.export.thresholds import THRESHOLDS, Thresholds
from eao.export.weights import share, with_weights
from eao.files import atomic_path
from eao.model import Batch, encoder_modalities
from eao.model.weights import hash_weights

CALIBRATION_CLIPS = 256
"""Clips that the ranges of int8 and fp8 are chosen from, at most."""
CALIBRATION_SEED = 1_000_000
"""Of cases for calibration, so that they are others than those of the proof."""
SHARED_FROM = 200_000_000
"""Bytes of graphs from which on encoders share their weights by default."""
FP32 = (Request("onnxruntime", "fp32"),)

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
) -> WrittenBundle:
    """Compile encoders into a bundle, after proving that each engine agrees with the model.

    The bundle appears at `out`, replacing an older one, with the engines that hold their thresholds. What does not is
    kept, without a manifest and so unusable, in `<out>.failed` with all figures. If an encoder is left without any
    engine, nothing is written at `out` and an older bundle stays as it was.

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
    model, config, name = _load(source, config)
    chosen, parts = choose_encoders(model, encoders), choose_stages(model, stages)
    check_target(out)
    say = progress or (lambda line: None)
    samples = _Samples(model, calibration)
    with atomic_path(out) as folder:
        folder.mkdir()
        builds = {encoder: EncoderBuild(model, config, encoder, folder, options, samples.feeds) for encoder in chosen}
        limits = _limits(requests, builds.values())
        reference = Reference(model, tuple(batches), limits, chosen, progress)
        written = []
        for stage in parts:
            say(f"stage {stage}")
            path = folder / f"{stage}.fp32.onnx"
            written.append(export_stage(model, stage, path, options.opset, options.threads, reference.batches))
        engines: dict[str, EngineEntry] = {}
        reports = []
        for request in requests:
            graph = GRAPH_OF.get(request.precision, request.precision)
            say(f"{graph} graphs")
            # Stages hold the same weights as the float32 encoders.
            together = [stage.path for stage in written] if graph == "fp32" else []
            _share_weights(folder, [*together, *(build.graph(graph) for build in builds.values())], graph, options)
            made = {}
            for encoder, build in builds.items():
                say(f"{request.engine} {request.precision}: compiling {encoder}")
                made[encoder] = build.make(request)
            say(f"{request.engine} {request.precision}: parity")
            report, simulated = _prove(reference, folder, request, builds, made, options, thresholds, say)
            reports.append(report)
            for encoder in made if bisect and request.precision not in GRAPH_OF else ():
                if report.failures(encoder):
                    say(f"{request.engine} {request.precision}: where {encoder} diverges")
                    graphs = builds[encoder].graph("fp32"), builds[encoder].graph(request.precision)
                    bisect_encoder(reference, report, encoder, *graphs, threads=options.threads)
            for encoder, entry in made.items():
                engines[entry.key] = entry.model_copy(update={"parity": _summary(report, encoder, simulated)})
        parity = BundleParity(reports=reports, clips=sum(map(len, reference.batches)), versions=versions())
        parity.save(folder)
        passed = {key: entry for key, entry in engines.items() if entry.parity is not None and entry.parity.passed}
        failing = [entry for key, entry in engines.items() if key not in passed]
        failed = _keep_evidence(folder, out, failing) if failing else None
        if any(all(entry.encoder != encoder for entry in passed.values()) for encoder in chosen):
            lines = parity.failures()
            more = f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
            raise ParityError(
                f"the engines fail parity: {lines[0]}{more}",
                f"graphs and figures are in {failed}; nothing else was written",
            )
        manifest = _manifest(model, config, name, folder, chosen, passed, written)
        _remove_others(folder, manifest)
        manifest.save(folder)
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


class _Samples:
    """Inputs of encoders from real clips, read once however many encoders ask."""

    def __init__(self, model: Model, batches: Iterable[Batch]) -> None:
        self.model = model
        self.batches = batches
        self._read: list[Batch] | None = None

    def feeds(self, encoder: str) -> list[Mapping[str, NDArray]]:
        """Cases of parity made of real clips' tokens, then the clips one by one; nothing if no clip has all inputs.

        Whole clips alone would leave the ranges of short, masked and missing inputs to luck.
        """
        if self._read is None:
            self._read = []
            for batch in self.batches:
                self._read.append(batch)
                if sum(map(len, self._read)) >= CALIBRATION_CLIPS:
                    break
        needed = encoder_modalities(encoder)
        specs = input_specs(self.model, encoder)
        usable = [batch.only(needed) for batch in self._read if set(needed) <= set(batch.modalities)]
        if not usable:
            return []
        cases = [case.batch for case in parity_cases(self.model, encoder, CALIBRATION_SEED, usable)]
        clips = [batch[i : i + 1] for batch in usable for i in range(len(batch))]
        return [batch_feeds(batch, specs, encoder) for batch in (*cases, *clips)]


def _limits(requests: Iterable[Request], builds: Iterable[EncoderBuild]) -> Limits | None:
    """The sizes that all engines take: those of TensorRT's profiles, if it runs here."""
    if all(not r.engine.startswith("tensorrt") or unusable(r.engine, precision=r.precision) for r in requests):
        return None
    limits: dict[str, tuple[int, int]] = {}
    for profile in (profile for build in builds for profile in build.profiles()):
        for axis, sizes in profile.items():
            least, most = limits.get(axis, (sizes.min, sizes.max))
            limits[axis] = min(least, sizes.min), max(most, sizes.max)
    return limits


def _share_weights(folder: Path, graphs: Sequence[Path], precision: str, options: Options) -> None:
    """Bring the weights of graphs into one file, which is done once for each precision."""
    files = {file for graph in graphs for file in with_weights(graph)}
    shared = folder / f"weights.{precision}.bin"
    wanted = options.share_weights
    if wanted is None:
        wanted = len(graphs) > 1 and sum(file.stat().st_size for file in files) > SHARED_FROM
    if wanted and shared not in files:
        share(folder, [graph.name for graph in graphs], shared.name)


def _prove(
    reference: Reference,
    folder: Path,
    request: Request,
    builds: Mapping[str, EncoderBuild],
    made: Mapping[str, EngineEntry],
    options: Options,
    thresholds: dict[str, Thresholds],
    say: Progress,
) -> tuple[ParityReport, bool]:
    """The parity of one engine at one precision, and whether it had to be measured on the graph in its place."""
    simulated = unusable(request.engine, precision=request.precision) is not None
    specs = {encoder: input_specs(reference.model, encoder) for encoder in made}
    sessions = {
        encoder: builds[encoder].simulation(request)
        if simulated
        else open_engine(folder, entry, specs[encoder], options.threads)
        for encoder, entry in made.items()
    }

    def encode(batch: Batch, encoder: str) -> NDArray:
        return sessions[encoder].run(batch_feeds(batch, specs[encoder], encoder))

    report = measure_parity(reference, encode, list(made), request.precision, request.engine, thresholds, progress=say)
    return report, simulated


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
        versions=versions(),
    )


def _summary(report: ParityReport, encoder: str, simulated: bool) -> ParitySummary:
    measured = report.encoders[encoder]
    ranked = [ranking.top10_overlap for ranking in report.rankings if encoder in ranking.encoders]
    return ParitySummary(
        passed=not report.failures(encoder),
        max_abs=measured.figures.max_abs,
        cosine_min=measured.figures.cosine_min,
        batch_invariance=measured.batch_invariance,
        top10_overlap=min(ranked) if ranked else None,
        simulated=simulated,
    )


def _keep_evidence(folder: Path, out: Path, failing: Iterable[EngineEntry]) -> Path:
    """The files and figures of engines that failed, in a folder beside the bundle; the older evidence goes."""
    failed = out.with_name(f"{out.name}.failed")
    if failed.exists() and not (failed / PARITY_JSON).is_file():
        raise ParityError(
            f"engines fail parity, and {failed}, where the evidence would go, holds something else",
            f"move {failed} away",
        )
    names = {file.file for entry in failing for file in entry.files}
    with atomic_path(failed) as evidence:
        evidence.mkdir()
        for name in sorted(names | {name for name in PARITY_FILES if (folder / name).is_file()}):
            link_or_copy(folder / name, evidence / name)
    return failed


def _remove_others(folder: Path, manifest: Manifest) -> None:
    """Take away what no engine of the manifest needs: graphs on the way to others, and engines that failed."""
    kept = {entry.file for entry in manifest.files()} | set(PARITY_FILES)
    for file in folder.iterdir():
        if file.is_file() and file.name not in kept:
            file.unlink()
