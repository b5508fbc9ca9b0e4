"""What the machine can do at best: arithmetic of a large product, and memory traffic of a large copy."""

from __future__ import annotations

import time
from collections.abc import Callable

import pydantic
import torch


class Ceiling(pydantic.BaseModel):
    """The most that was measured.

    Attributes:
        gflops: 1e9 floating-point operations a second, of a square float32 product through the BLAS library.
        gbs: 1e9 bytes a second, read and written, of a copy far larger than the caches.
    """

    gflops: float
    gbs: float

    def __str__(self) -> str:
        return f"{self.gflops:,.0f} GFLOP/s and {self.gbs:,.0f} GB/s"


def measure_ceiling(device: str = "cpu", size: int = 2048, megabytes: int = 256, repeats: int = 5) -> Ceiling:
    """Measure with as many threads as torch has.

    Args:
        device: "cpu" or "cuda".
        size: rows and columns of the product.
        megabytes: of the copied tensor.
        repeats: the fastest counts.
    """
    a, b, product = (torch.ones(size, size, device=device) for _ in range(3))
    source = torch.ones(megabytes * 250_000, device=device)
    target = torch.empty_like(source)
    products, copies = [], []
    for _ in range(repeats + 1):  # the first warms up
        products.append(_seconds(lambda: torch.mm(a, b, out=product), device))
        copies.append(_seconds(lambda: target.copy_(source), device))
    return Ceiling(gflops=2 * size**3 / min(products[1:]) / 1e9, gbs=2 * megabytes / 1e3 / min(copies[1:]))


def _seconds(function: Callable[[], object], device: str) -> float:
    start = time.perf_counter()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start
