"""Making the engines of one encoder: its graph at each precision, and what each runtime makes of the graph."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
from numpy.typing import NDArray

from eao import probes
from eao.config import Config
from eao.errors import ExportError, missing_dependency
from eao.export.calibration import METHODS, Method
from eao.export.encoders import Model, input_specs
from eao.export.engines import OFFERED, PRECISIONS, OnnxSession, Session, engine_name
from eao.export.manifest import EngineEntry, FileEntry
from eao.export.onnx import EMBED_LIMIT, OPSET, ExportedGraph, export_onnx
from eao.export.precision import HALF_TYPES, simulate, to_half
from eao.export.quantized import QuantizedGraph
from eao.export.weights import WeightFile, with_weights
from eao.files import atomic_path

if TYPE_CHECKING:
    from eao.export.tensorrt.profiles import Profile
    from eao.export.tensorrt.request import BuildRequest

Feeds = Sequence[Mapping[str, NDArray]]

CALIBRATED = ("int8", "int8-nncf", "fp8")
"""The precisions whose ranges are chosen from real clips."""
SIMULATED = ("bf16", "fp8")
"""The precisions that onnxruntime has no CPU kernels for: their rounding is simulated."""
GRAPH_OF = {"int8-weights": "fp32", "int8-nncf": "fp32"}
"""The precisions that a runtime makes on its own, and the graph it makes them from."""


@dataclass(frozen=True)
class Request:
    """An engine to be made."""

    engine: str
    precision: str


@dataclass(frozen=True)
class Options:
    """How engines are made.

    Attributes:
        opset: of the ONNX graphs.
        threads: of trial runs.
        calibration: how the ranges of int8 and fp8 are chosen: "minmax", "percentile" or "entropy".
        share_weights: keep equal weights of all encoders once, in a file beside the graphs; by default where the graphs
            are large.
        targets: compute capabilities that TensorRT-RTX engines are built for; by default all that it offers.
        profiles: by axis, "minimum:optimum:maximum" of TensorRT engines; axes left out get those of the experiment.
        defer: store what TensorRT needs, and build the engine on first use on the target.
        version_compatible, hardware_compatible: of TensorRT engines; see `eao.export.tensorrt.request.BuildRequest`.

    Raises:
        ExportError: an unknown way to calibrate.
    """

    opset: int = OPSET
    threads: int | None = None
    calibration: Method = "minmax"
    share_weights: bool | None = None
    targets: tuple[str, ...] = ()
    profiles: Mapping[str, str] | None = None
    defer: bool = False
    version_compatible: bool = False
    hardware_compatible: bool = False

    def __post_init__(self) -> None:
        if self.calibration not in METHODS:
            raise ExportError(f"unknown calibration method {self.calibration!r}", f"choose one of {', '.join(METHODS)}")


def choose_requests(engines: Sequence[str], precisions: Sequence[str]) -> tuple[Request, ...]:
    """Every engine at every precision that it offers, in the order given: the first is what a bundle uses by default.

    Args:
        engines: names, long or short, such as "onnx" and "trt-rtx".
        precisions: such as "fp32" and "int8".

    Raises:
        ExportError: an unknown name, or a precision that none of the engines offers.

    Example:
        >>> [f"{r.engine} {r.precision}" for r in choose_requests(["onnx", "openvino"], ["int8", "int8-weights"])]
        ['onnxruntime int8', 'openvino int8', 'openvino int8-weights']
    """
    chosen = []
    names = [engine_name(name) for name in engines]
    if not names:
        raise ExportError("no engine was named", f"choose from {', '.join(OFFERED)}")
    if not precisions:
        raise ExportError("no precision was named", f"choose from {', '.join(PRECISIONS)}")
    for precision in precisions:
        if precision not in PRECISIONS:
            raise ExportError(f"there is no precision {precision!r}", f"choose from {', '.join(PRECISIONS)}")
        takers = [name for name in names if precision in OFFERED[name]]
        if not takers:
            offers = [name for name, offered in OFFERED.items() if precision in offered]
            raise ExportError(
                f"{' and '.join(names)} cannot be made at {precision}", f"{precision} is for {', '.join(offers)}"
            )
    for name in names:
        chosen += [Request(name, precision) for precision in precisions if precision in OFFERED[name]]
    return tuple(dict.fromkeys(chosen))


def check_makers(requests: Sequence[Request], options: Options) -> None:
    """Refuse what this machine cannot make, before any work is done.

    Raises:
        ExportError: TensorRT without a GPU.
        MissingDependencyError: a package that makes one of the engines is not installed.
    """
    for request in requests:
        if request.engine.startswith("tensorrt") and not options.defer:
            from eao.export.tensorrt.api import require_package
            from eao.export.tensorrt.builder import require_gpu
            from eao.export.tensorrt.request import BuildRequest

            wanted = BuildRequest(flavour=request.engine)  # type: ignore[arg-type]
            require_gpu(wanted)
            require_package(wanted.flavour)
        elif request.engine == "openvino":
            for package in ("openvino", "nncf") if request.precision in GRAPH_OF else ("openvino",):
                if importlib.util.find_spec(package) is None:
                    raise missing_dependency(package, "openvino", f"{request.engine} {request.precision}")


def needs_reduced_range(requests: Sequence[Request]) -> bool:
    """Whether int8 weights have to keep to half of their range: OpenVINO is to run them, and on this CPU its sums would
    overflow otherwise. All engines of a bundle run the same int8 graph."""
    return Request("openvino", "int8") in requests and not probes.has_exact_int8()


class EncoderBuild:
    """The graphs and engines of one encoder, made one after the other in the folder of a bundle.

    Args:
        model: in any mode.
        config: the experiment, for the sizes that TensorRT is tuned for.
        encoder: a name.
        folder: of the bundle.
        options: for all engines.
        samples: gives inputs of the encoder from real clips, for int8 and fp8, the most telling first; called once, if
            at all.
        reduce_range: int8 weights keep to half of their range; see `needs_reduced_range`.
    """

    def __init__(
        self,
        model: Model,
        config: Config,
        encoder: str,
        folder: Path,
        options: Options,
        samples: Callable[[str], Feeds],
        reduce_range: bool = False,
    ) -> None:
        self.model = model
        self.config = config
        self.encoder = encoder
        self.folder = folder
        self.options = options
        self.reduce_range = reduce_range
        self._samples = samples
        self._graphs: dict[str, Path] = {}
        self._quantized: dict[str, QuantizedGraph] = {}
        self._built: dict[Request, Path] = {}

    @cached_property
    def exported(self) -> ExportedGraph:
        """The float32 graph."""
        path = self.folder / f"{self.encoder}.fp32.onnx"
        return export_onnx(self.model, self.encoder, path, self.options.opset, threads=self.options.threads)

    @cached_property
    def samples(self) -> Feeds:
        """Inputs from real clips.

        Raises:
            ExportError: there are none.
        """
        found = self._samples(self.encoder)
        if not found:
            raise ExportError(
                f"int8 and fp8 engines of {self.encoder} need clips to choose their ranges from",
                "give data.test.features=FOLDER data.test.captions=FILE, or name a data set: --calibration-split",
            )
        return found

    def graph(self, precision: str) -> Path:
        """The graph at a precision, made when it is first asked for."""
        precision = GRAPH_OF.get(precision, precision)
        if precision == "fp32":
            return self.exported.path
        if precision not in self._graphs:
            self._graphs[precision] = self._convert(precision)
        return self._graphs[precision]

    def tighten(self, precision: str) -> bool:
        """Make a quantised graph anew with more layers in higher precision; False if that is not possible."""
        if precision not in self._quantized or not self._quantized[precision].tighten():
            return False
        self._graphs[precision] = self._convert(precision)
        self._built = {request: built for request, built in self._built.items() if request.precision != precision}
        return True

    def check(self, requests: Sequence[Request]) -> None:
        """Refuse what cannot be made, before any work is done.

        Raises:
            ExportError: TensorRT's sizes, targets or flags do not fit, or there are no clips to choose ranges from.
        """
        for request in requests:
            if request.engine.startswith("tensorrt"):
                self._build_request(request).check()
            if request.precision in CALIBRATED:
                _ = self.samples

    def make(self, request: Request) -> EngineEntry:
        """Make an engine, with its files in the folder.

        Raises:
            ExportError: it cannot be made.
            MissingDependencyError: the package that makes it is not installed.
        """
        graph = self.graph(request.precision)
        facts: dict[str, object] = {}
        quantized = self._quantized.get(request.precision)
        if request.engine.startswith("tensorrt"):
            files, facts = self._tensorrt(request, graph)
        elif request.precision in GRAPH_OF:
            files = self._openvino(request.precision, graph)
        else:
            files = with_weights(graph)
        return EngineEntry(
            encoder=self.encoder,
            engine=request.engine,  # type: ignore[arg-type]
            precision=request.precision,  # type: ignore[arg-type]
            files=tuple(FileEntry.of(file, self.folder) for file in files),
            opset=self.options.opset,
            left=quantized.kept if quantized is not None else (),
            layers=quantized.layers if quantized is not None else 0,
            **facts,  # type: ignore[arg-type]
        )

    def profiles(self) -> tuple[Profile, ...]:
        """The sizes that TensorRT engines are compiled for.

        Raises:
            ExportError: they do not fit the encoder.
        """
        from eao.export.tensorrt.profiles import make_profiles

        return make_profiles(input_specs(self.model, self.encoder), self.config, self.options.profiles)

    def simulation(self, request: Request) -> Session:
        """The engine's graph in onnxruntime on the CPU, for parity where the engine itself cannot run."""
        graph = self.graph(request.precision)
        if request.precision not in SIMULATED:
            return OnnxSession(graph, self.options.threads)
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            with WeightFile(Path(folder) / "weights.bin") as weights:
                path = weights.save(simulate(onnx.load(graph)), graph.name)
            return OnnxSession(path, self.options.threads)

    def _convert(self, precision: str) -> Path:
        is_half = precision in HALF_TYPES
        converted = to_half(onnx.load(self.exported.path), precision) if is_half else self._quantize(precision)
        path = self.folder / f"{self.encoder}.{precision}.onnx"
        if sum(len(tensor.raw_data) for tensor in converted.graph.initializer) > EMBED_LIMIT:
            with WeightFile(path.with_name(f"{path.name}.data")) as weights:
                return weights.save(converted, path.name)
        with atomic_path(path) as temporary:
            onnx.save(converted, temporary)
        return path

    def _quantize(self, precision: str) -> onnx.ModelProto:
        if precision not in self._quantized:
            calibration, threads = self.options.calibration, self.options.threads
            self._quantized[precision] = QuantizedGraph(
                self.exported.path, self.samples, precision, calibration, threads, self.reduce_range
            )
        return self._quantized[precision].build()

    def _openvino(self, precision: str, graph: Path) -> tuple[Path, ...]:
        from eao.export.openvino import quantize_post_training, quantize_weights

        out = self.folder / f"{self.encoder}.{precision}.xml"
        if precision == "int8-weights":
            return quantize_weights(graph, out)
        return quantize_post_training(graph, out, self.samples)

    def _build_request(self, request: Request) -> BuildRequest:
        from eao.export.tensorrt.api import targets_for
        from eao.export.tensorrt.request import BuildRequest

        is_rtx = request.engine == "tensorrt-rtx"
        return BuildRequest(
            flavour=request.engine,  # type: ignore[arg-type]
            profiles=self.profiles(),
            targets=(self.options.targets or targets_for(request.precision)) if is_rtx else (),
            version_compatible=self.options.version_compatible and not is_rtx,
            hardware_compatible=self.options.hardware_compatible and not is_rtx,
        )

    def _tensorrt(self, request: Request, graph: Path) -> tuple[tuple[Path, ...], dict[str, object]]:
        from eao.export.tensorrt.deferred import defer_build

        wanted = self._build_request(request)
        facts: dict[str, object] = {
            "targets": wanted.targets,
            "profiles": [
                {axis: {"minimum": r.min, "optimum": r.opt, "maximum": r.max} for axis, r in profile.items()}
                for profile in wanted.profiles
            ],
            "version_compatible": wanted.version_compatible,
        }
        if self.options.defer:
            _, *external = files = with_weights(graph)
            return (defer_build(graph, wanted, external), *files), {**facts, "deferred": True}
        if request not in self._built:
            self._built[request] = self._compile(request, graph, wanted)
        return (self._built[request],), facts

    def _compile(self, request: Request, graph: Path, wanted: BuildRequest) -> Path:
        from eao.export.tensorrt.builder import build
        from eao.export.tensorrt.cache import engine_cache

        out = self.folder / f"{self.encoder}.{request.engine}.{request.precision}.engine"
        # Not beside the engine: an export that fails takes its folder with it.
        log = engine_cache() / "logs" / f"{out.name}.log"
        timing = engine_cache() / "timing.cache" if request.engine == "tensorrt" else None
        built = build(graph, out, wanted, timing, log=log)
        log.unlink(missing_ok=True)
        return built.path
