"""Whether a tensor is one for the Triton kernels, and for which GPU they are compiled."""

from __future__ import annotations

import functools
import importlib.util
import logging
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

TARGETS = {
    "sm_80": 166912,  # A100
    "sm_89": 101376,  # L4, RTX 40; also what sm_86 has
    "sm_90": 232448,  # H100
    "sm_100": 232448,  # B200
    "sm_120": 101376,  # RTX 50
    "gfx942": 65536,  # MI300
}
"""The GPUs that the kernels are checked for, with the bytes of shared memory that one program may use."""

TRITON_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
HAS_TRITON = importlib.util.find_spec("triton") is not None


def use_triton(x: Tensor) -> bool:
    """Whether `x` lies on a GPU that the kernels are checked for, in a type that they know, and Triton is installed.

    Never while a graph is exported: it holds the plain path only. Why a GPU goes without is logged once.
    """
    if not x.is_cuda or x.dtype not in TRITON_DTYPES or torch.compiler.is_exporting():
        return False
    return _has_kernels(x.get_device())


def gpu_target(device: torch.device) -> str | None:
    """The key of `TARGETS` whose launch options suit a GPU; None if there is none."""
    if torch.version.hip:
        name = torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
        return name if name in TARGETS else None
    return nearest_target(*torch.cuda.get_device_capability(device))


def nearest_target(major: int, minor: int) -> str | None:
    """The target for a compute capability: of the same major number, and the next higher minor number if there is one.

    So 8.6, with its small shared memory, goes with 8.9 rather than 8.0.

    Example:
        >>> nearest_target(8, 6), nearest_target(10, 3), nearest_target(7, 5)
        ('sm_89', 'sm_100', None)
    """
    minors = sorted(int(t[-1]) for t in TARGETS if t.startswith("sm_") and int(t[3:-1]) == major)
    chosen = next((m for m in minors if m >= minor), minors[-1] if minors else None)
    return None if chosen is None else f"sm_{major}{chosen}"


def _constant_when_compiled(function: Callable[P, R]) -> Callable[P, R]:
    """What `torch.compiler.assume_constant_result` does, which would import the compiler: seconds for every command."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@_constant_when_compiled
@functools.cache
def _has_kernels(index: int) -> bool:
    device = torch.device("cuda", index)
    if not HAS_TRITON:
        logger.warning("triton is not installed: attention and loss run on the slower plain path (pip install triton)")
        return False
    if gpu_target(device) is None:
        name = torch.cuda.get_device_name(device)
        logger.warning("no kernel is compiled for %s: attention and loss run on the slower plain path", name)
        return False
    return True
