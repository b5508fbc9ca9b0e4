"""Making the engines of one encoder: its graph at each precision, and what each runtime makes of the graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from numpy.typing import NDArray

from eao.errors import ExportError
from eao.export.encoders import Model
from eao.export.engines import OFFERED, PRECISIONS, Session, engine_name
from eao.export.manifest import EngineEntry, FileEntry
from eao.export.onnx import OPSET, ExportedGraph, export_onnx

Feeds = Sequence[Mapping[str, NDArray]]

CALIBRATED = ("int8", "int8-nncf", "fp8")
"""The precisions whose ranges are chosen from real clips."""
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
        targets: compute capabilities that TensorRT engines are built for.
        profiles: by axis, "minimum:optimum:maximum" of TensorRT engines; axes left out get those of the experiment.
        defer: store what classic TensorRT needs, and build the engine on first use on the target.
    """

    opset: int = OPSET
    threads: int | None = None
    calibration: str = "percentile"
    targets: tuple[str, ...] = ("8.0", "8.6", "8.9", "12.0")
    profiles: Mapping[str, str] | None = None
    defer: bool = False


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
    if not chosen:
        raise ExportError("no engine was named", f"choose from {', '.join(OFFERED)}")
    return tuple(dict.fromkeys(chosen))


class EncoderBuild:
    """The graphs and engines of one encoder, made one after the other in the folder of a bundle.

    Args:
        model: in any mode.
        encoder: a name.
        folder: of the bundle.
        options: for all engines.
        samples: gives inputs of the encoder from real clips, for int8 and fp8; called once, if at all.
    """

    def __init__(
        self, model: Model, encoder: str, folder: Path, options: Options, samples: Callable[[str], Feeds]
    ) -> None:
        self.model = model
        self.encoder = encoder
        self.folder = folder
        self.options = options
        self._samples = samples
        self._graphs: dict[str, Path] = {}
        self.left: dict[str, tuple[str, ...]] = {}

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
                "give data.test.features=FOLDER data.test.captions=FILE",
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

    def make(self, request: Request) -> EngineEntry:
        """Make an engine, with its files in the folder.

        Raises:
            ExportError: it cannot be made.
            MissingDependencyError: the package that makes it is not installed.
        """
        graph = self.graph(request.precision)
        facts: dict[str, object] = {}
        if request.engine.startswith("tensorrt"):
            files, facts = self._tensorrt(request, graph)
        elif request.precision in GRAPH_OF:
            files = self._openvino(request.precision, graph)
        else:
            files = _with_weights(graph)
        return EngineEntry(
            encoder=self.encoder,
            engine=request.engine,  # type: ignore[arg-type]
            precision=request.precision,  # type: ignore[arg-type]
            files=tuple(FileEntry.of(file, self.folder) for file in files),
            opset=self.options.opset,
            left=self.left.get(request.precision, ()),
            **facts,  # type: ignore[arg-type]
        )

    def simulation(self, request: Request) -> Session:
        """The engine's graph in onnxruntime on the CPU, for parity where the engine itself cannot run."""
        raise NotImplementedError

    def _convert(self, precision: str) -> Path:
        raise NotImplementedError

    def _openvino(self, precision: str, graph: Path) -> tuple[Path, ...]:
        from eao.export.openvino import quantize_post_training, quantize_weights

        out = self.folder / f"{self.encoder}.{precision}.xml"
        if precision == "int8-weights":
            return quantize_weights(graph, out)
        return quantize_post_training(graph, out, self.samples)

    def _tensorrt(self, request: Request, graph: Path) -> tuple[tuple[Path, ...], dict[str, object]]:
        raise NotImplementedError


def _with_weights(graph: Path) -> tuple[Path, ...]:
    """A graph and the file with its weights, if they are apart from it."""
    data = graph.with_name(f"{graph.name}.data")
    return (graph, data) if data.exists() else (graph,)
