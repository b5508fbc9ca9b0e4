"""The two TensorRT packages behind one handle: `tensorrt` (10.x, 11.x) and `tensorrt_rtx`, which share most names."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from dataclasses import dataclass
from typing import Any, Literal

from eao.errors import ExportError, install_extra, missing_dependency

Flavour = Literal["tensorrt", "tensorrt-rtx"]
"""TensorRT builds for the GPU it runs on; TensorRT-RTX builds for named generations of GeForce and RTX GPUs, on any
machine, and finishes compiling on the target."""
_PACKAGES = {"tensorrt": ("tensorrt", "trt"), "tensorrt-rtx": ("tensorrt_rtx", "trt-rtx")}
OLDEST = {"tensorrt": (10,), "tensorrt-rtx": (1,)}

COMPUTE_CAPABILITIES = {"7.5": "SM75", "8.0": "SM80", "8.6": "SM86", "8.9": "SM89", "12.0": "SM120", "12.1": "SM121"}
"""What TensorRT-RTX builds for: compute capability -> its name in `ComputeCapability`."""
TARGETS = ("8.0", "8.6", "8.9", "12.0")
"""Ampere (A100; GeForce 30, RTX A), Ada (GeForce 40, RTX Ada, L4, L40), Blackwell (GeForce 50, RTX PRO)."""

_FP8_FROM = (8, 9)


def targets_for(precision: str) -> tuple[str, ...]:
    """The usual targets that have the arithmetic of a precision: fp8 begins with Ada.

    Example:
        >>> targets_for("fp16"), targets_for("fp8")
        (('8.0', '8.6', '8.9', '12.0'), ('8.9', '12.0'))
    """
    if precision != "fp8":
        return TARGETS
    return tuple(target for target in TARGETS if tuple(map(int, target.split("."))) >= _FP8_FROM)


@dataclass(frozen=True)
class TensorRT:
    """An imported TensorRT package.

    Attributes:
        flavour: which one.
        module: the package. Its names differ a little between flavours and versions; every use of a name that not all
            have stands under a condition on `is_rtx`, which a test checks against lists of the real names.
        version: as the package states it, such as "10.13.0.35".
    """

    flavour: Flavour
    module: Any
    version: str

    @property
    def is_rtx(self) -> bool:
        """Whether this is TensorRT-RTX."""
        return self.flavour == "tensorrt-rtx"


def require_package(flavour: Flavour) -> None:
    """Check that a TensorRT package is there, without loading its libraries into this process.

    Raises:
        MissingDependencyError: it is not installed.
    """
    package, extra = _PACKAGES[flavour]
    if package not in sys.modules and importlib.util.find_spec(package) is None:
        raise missing_dependency(package, extra, f"the engine {flavour}")


def load_tensorrt(flavour: Flavour) -> TensorRT:
    """Import a TensorRT package.

    Raises:
        MissingDependencyError: it is not installed.
        ExportError: it does not import, or is too old.
    """
    require_package(flavour)
    package, extra = _PACKAGES[flavour]
    try:
        module = importlib.import_module(package)
    except (ImportError, OSError) as error:  # a shared library that is missing or does not fit
        raise ExportError(f"{package} cannot be imported: {error}", install_extra(extra)) from None
    version = str(module.__version__)
    numbers = tuple(int(n) for n in re.findall(r"\d+", version)[:2])
    if numbers < OLDEST[flavour]:
        least = ".".join(map(str, OLDEST[flavour]))
        raise ExportError(
            f"{package} {version} is too old: {least} is the first that works", f"pip install -U {package}"
        )
    return TensorRT(flavour, module, version)
