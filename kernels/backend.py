"""Whether a tensor is one for the Triton kernels."""

from __future__ import annotations

import functools
import importlib.util
import logging

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

TRITON_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
HAS_TRITON = importlib.util.find_spec("triton") is not None


def use_triton(x: Tensor) -> bool:
    """Whether `x` lies on a GPU, in a type that the kernels know, and Triton is installed.

    Never while a graph is exported: it holds the plain path only. A missing Triton on a GPU is logged once.
    """
    if not x.is_cuda or x.dtype not in TRITON_DTYPES or torch.compiler.is_exporting():
        return False
    if not HAS_TRITON:
        _warn_once()
    return HAS_TRITON


@functools.cache
def _warn_once() -> None:
    logger.warning("triton is not installed: attention and loss run on the slower plain path (pip install triton)")
