"""The contrastive loss and retrieval ranks with and without the whole matrix of similarities: time and memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from eao.bench.ways import Row, WaysReport, measure_ways
from eao.evaluation import metrics
from eao.kernels import contrastive_loss, count_ranks, topk_similarity
from eao.kernels.contrastive import normalize, open_contrastive_loss

# N pairs, Q queries, G gallery items, E embedding

LOSS_SIZES = ((2240, 6144), (4096, 256), (16384, 256))
"""Pairs, more than fit one tile, and width; 2,240 is the published batch of pre-training."""
RANKING_SIZES = ((1000, 1000, 6144), (1000, 100_000, 512))
"""Queries, items and width; the first is the test set of MSR-VTT."""
NEIGHBOURS = 10

WHOLE, TILED = "whole matrix", "tiled"


class LossReport(WaysReport):
    """The measurement and its conditions."""

    def to_markdown(self) -> str:
        slower = [row for row in self.rows if row.speedups[TILED] + row.noise[TILED] < 1]
        cases = "; ".join(f"{row.work}, {row.size}" for row in slower)
        return self.page(
            f"Float32 on {self.device}, where a large product reached {self.ceiling}. `loss` is its value and both "
            "gradients; up to 2,048 pairs it takes the whole matrix itself, and above `tiled` computes the "
            "similarities twice, which is not counted in its GFLOP/s. GB/s count embeddings and results once. Memory "
            "is what a call needs beside its arguments.",
            f"Where the whole matrix is small, tiles save memory and no time. Slower here: {cases}." if slower else "",
        )


def run(
    loss_sizes: Sequence[tuple[int, int]] = LOSS_SIZES,
    ranking_sizes: Sequence[tuple[int, int, int]] = RANKING_SIZES,
    seconds: float = 2.0,
    rounds: int = 3,
) -> LossReport:
    """Measure. It takes some three minutes on two cores, and 5 GB.

    Args:
        loss_sizes: pairs and width.
        ranking_sizes: queries, items and width.
        seconds: of each way at each size.
        rounds: how often the ways take turns.
    """
    options: dict[str, Any] = {"max_seconds": seconds, "rounds": rounds}

    def measure(device: str) -> Iterator[Row]:
        for pairs, width in loss_sizes:
            yield _loss_row(pairs, width, device, options)
        for queries, items, width in ranking_sizes:
            yield from _ranking_rows(queries, items, width, device, options)

    return LossReport.of(measure)


def _loss_row(pairs: int, width: int, device: str, options: Mapping[str, Any]) -> Row:
    a, b = _random_pair(pairs, pairs, width, device)
    a.requires_grad_()
    b.requires_grad_()

    def step(loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        value = loss(a, b)
        gradients = torch.autograd.grad(value, (a, b))
        return torch.cat([value.detach()[None], *(gradient.flatten() for gradient in gradients)])

    functions = {WHOLE: partial(step, open_contrastive_loss), TILED: partial(step, contrastive_loss)}
    # One product for the similarities and one for the gradient of each side.
    size = f"{pairs:,} pairs of {width:,}"
    gbyte = 4e-9 * 4 * pairs * width  # both sides and their gradients
    return measure_ways("loss", size, functions, 6e-9 * pairs**2 * width, options, memory=True, gbyte=gbyte)


def _ranking_rows(queries: int, items: int, width: int, device: str, options: Mapping[str, Any]) -> list[Row]:
    a, b = _random_pair(queries, items, width, device)
    size, gflop = f"{queries:,} queries, {items:,} items of {width:,}", 2e-9 * queries * items * width
    measured: dict[str, Any] = {"memory": True, "gbyte": 4e-9 * (queries + items) * width}

    def whole_ranks() -> Tensor:
        return torch.from_numpy(metrics.ranks((normalize(a) @ normalize(b).T).cpu().numpy()))

    functions: dict[str, Callable[[], Tensor]]
    functions = {WHOLE: whole_ranks, TILED: lambda: count_ranks(a, b).ranks()}
    ranks = measure_ways("ranks", size, functions, gflop, options, **measured)
    functions = {
        WHOLE: lambda: (normalize(a) @ normalize(b).T).topk(min(NEIGHBOURS, items)).values,
        TILED: lambda: topk_similarity(a, b, NEIGHBOURS).similarities,
    }
    return [ranks, measure_ways(f"top {NEIGHBOURS}", size, functions, gflop, options, **measured)]


def _random_pair(first: int, second: int, width: int, device: str) -> tuple[Tensor, Tensor]:
    """Embeddings (first, width) and (second, width), of which the equal rows are alike."""
    random = torch.Generator().manual_seed(0)
    a, b = (torch.randn(n, width, generator=random) for n in (first, second))
    shared = min(first, second)
    b[:shared] += a[:shared]
    return a.to(device), b.to(device)
