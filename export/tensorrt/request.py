"""What is to be built, and what was built: the records that pass between processes and rest in bundles."""

from __future__ import annotations

from pathlib import Path

import pydantic

from eao.errors import ExportError
from eao.export.tensorrt.api import COMPUTE_CAPABILITIES, TARGETS, Flavour
from eao.export.tensorrt.profiles import Profile


class Record(pydantic.BaseModel):
    """Base of the records: nothing in them changes, and nothing unknown is taken."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class BuildRequest(Record):
    """How an engine is to be compiled. It holds no path, so that a bundle can carry it to another machine.

    Attributes:
        flavour: "tensorrt" or "tensorrt-rtx".
        profiles: from `make_profiles`.
        targets: compute capabilities that TensorRT-RTX builds for, all in one engine; by default `TARGETS`, and for an
            fp8 graph they should be `targets_for("fp8")`. Empty for TensorRT, which builds for the GPU it runs on.
        version_compatible: TensorRT only: let later versions load the engine, which then carries a runtime.
        hardware_compatible: TensorRT only: one engine for every GPU from Ampere on, at some cost in speed.
        workspace: bytes of device memory that a layer may use for scratch; by default as much as there is.

    Example:
        >>> BuildRequest(flavour="tensorrt-rtx", profiles=({"batch": (1, 8, 64)},)).targets
        ('8.0', '8.6', '8.9', '12.0')
    """

    flavour: Flavour
    profiles: tuple[Profile, ...] = ()
    targets: tuple[str, ...] = pydantic.Field((), validate_default=True)
    version_compatible: bool = False
    hardware_compatible: bool = False
    workspace: pydantic.PositiveInt | None = None

    @pydantic.field_validator("targets", mode="before")
    @classmethod
    def _default_targets(cls, value: object, info: pydantic.ValidationInfo) -> object:
        return TARGETS if value in ((), []) and info.data.get("flavour") == "tensorrt-rtx" else value

    def check(self) -> None:
        """Check that the flavour can do what is asked.

        Raises:
            ExportError: targets that it does not build for, or a setting that it does not have.
        """
        if self.flavour == "tensorrt":
            if self.targets:
                raise ExportError(
                    f"TensorRT builds for the GPU it runs on, not for {', '.join(self.targets)}",
                    "leave the targets out, or take --engine trt-rtx",
                )
            return
        if self.hardware_compatible or self.version_compatible:
            setting = "hardware" if self.hardware_compatible else "version"
            raise ExportError(
                f"TensorRT-RTX has no {setting}-compatible engines: they run on the targets they name",
                "name the targets, or take --engine trt",
            )
        for target in self.targets:
            if target not in COMPUTE_CAPABILITIES:
                raise ExportError(
                    f"TensorRT-RTX does not build for compute capability {target}",
                    f"it builds for {', '.join(COMPUTE_CAPABILITIES)}; for others take --engine trt on that machine",
                )


class Job(Record):
    """A request with the paths of this machine: what the worker is started with.

    Attributes:
        graph: the .onnx file; weights beside it are found by its place.
        out: the engine, written atomically.
        timing_cache: measured kernel times, read if the file is there, and written back.
    """

    request: BuildRequest
    graph: Path
    out: Path
    timing_cache: Path | None = None


class TensorFacts(Record):
    """An input or output of the network; -1 where a size varies."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class BuildFacts(Record):
    """What the worker found out while building.

    Attributes:
        version: of the TensorRT package.
        layers: of the network as parsed, before fusion.
        seconds: of parsing and building.
        peak_memory: bytes, of the whole process.
        timing_cache: "none", "new", "used", or "renewed" where the file was of another GPU or version.
    """

    version: str
    inputs: tuple[TensorFacts, ...]
    outputs: tuple[TensorFacts, ...]
    layers: int
    seconds: float
    peak_memory: int
    timing_cache: str


class Failure(Record):
    """Why the worker could not build."""

    message: str
    hint: str = ""


class BuiltEngine(Record):
    """An engine that was built.

    Attributes:
        path: the file.
        size: in bytes.
        sha256: of the file.
        request: what was asked for.
        facts: what came of it.
    """

    path: Path
    size: int
    sha256: str
    request: BuildRequest
    facts: BuildFacts
