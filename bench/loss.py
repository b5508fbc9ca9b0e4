"""The contrastive loss and retrieval ranks with and without the whole matrix of similarities: time and memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any

import pydantic
import torch
from torch import Tensor

from eao.bench.ceiling import Ceiling, measure_ceiling
from eao.bench.docs import measured_on
from eao.bench.hardware import Hardware, describe_hardware
from eao.bench.latency import foreign_load
from eao.bench.ways import Row, measure_ways, table
from eao.evaluation import metrics
from eao.kernels import contrastive_loss, count_ranks, topk_similarity
from eao.kernels.contrastive import normalize, open_contrastive_loss

# N pairs, Q queries, G gallery items, E embedding

LOSS_SIZES = ((64, 6144), (1024, 6144), (2240, 6144), (4096, 256), (16384, 256))
"""Pairs and width; 2,240 is the published batch of pre-training."""
RANKING_SIZES = ((1000, 1000, 6144), (1000, 100_000, 512))
"""Queries, items and width; the first is the test set of MSR-VTT."""
NEIGHBOURS = 10

WHOLE, TILED = "whole matrix", "tiled"


class LossReport(pydantic.BaseModel):
    """The measurement and its conditions."""

    hardware: Hardware
    versions: dict[str, str]
    threads: int
    device: str
    ceiling: Ceiling
    foreign_cores: float | None
    rows: list[Row]

    def to_markdown(self) -> str:
        lines = [
            f"Float32 on {self.device}, where a large product reached {self.ceiling}. `loss` is its value and both "
            "gradients; `tiled` computes the similarities twice above 2,048 pairs, which is not counted in its "
            "GFLOP/s. Memory is what a call needs beside its arguments. Measured in turns in one process; ± is half "
            "the interquartile range of the ratio.",
            "",
            *table(self.rows),
        ]
        slower = [row for row in self.rows if row.speedups[TILED] + row.noise[TILED] < 1]
        if slower:
            cases = "; ".join(f"{row.work}, {row.size}" for row in slower)
            lines += ["", f"Where the whole matrix is small, tiles save memory and no time. Slower here: {cases}."]
        if self.foreign_cores is not None:
            lines += ["", f"Other processes kept {self.foreign_cores:.2f} cores busy meanwhile."]
        return "\n".join([*lines, "", measured_on(self.hardware, self.versions, self.threads)])


def run(
    loss_sizes: Sequence[tuple[int, int]] = LOSS_SIZES,
    ranking_sizes: Sequence[tuple[int, int, int]] = RANKING_SIZES,
    seconds: float = 2.0,
    rounds: int = 3,
) -> LossReport:
    """Measure. It takes some ten minutes on two cores, and 5 GB.

    Args:
        loss_sizes: pairs and width.
        ranking_sizes: queries, items and width.
        seconds: of each way at each size.
        rounds: how often the ways take turns.
    """
    hardware, device = describe_hardware(), "cuda" if torch.cuda.is_available() else "cpu"
    options: dict[str, Any] = {"warmup_seconds": 0.0, "max_seconds": seconds, "rounds": rounds}
    with foreign_load() as others:
        ceiling = measure_ceiling(device)
        rows = [_loss_row(*size, device, options) for size in loss_sizes]
        for size in ranking_sizes:
            rows += _ranking_rows(*size, device, options)
    return LossReport(
        hardware=hardware,
        versions={"torch": version("torch")},
        threads=torch.get_num_threads(),
        device=device,
        ceiling=ceiling,
        foreign_cores=others.cores,
        rows=rows,
    )


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
    return measure_ways("loss", size, functions, 6e-9 * pairs**2 * width, options, memory=True)


def _ranking_rows(queries: int, items: int, width: int, device: str, options: Mapping[str, Any]) -> list[Row]:
    a, b = _random_pair(queries, items, width, device)
    size, gflop = f"{queries:,} queries, {items:,} items of {width:,}", 2e-9 * queries * items * width

    def whole_ranks() -> Tensor:
        return torch.from_numpy(metrics.ranks((normalize(a) @ normalize(b).T).cpu().numpy()))

    functions: dict[str, Callable[[], Tensor]]
    functions = {WHOLE: whole_ranks, TILED: lambda: count_ranks(a, b).ranks()}
    ranks = measure_ways("ranks", size, functions, gflop, options, memory=True)
    functions = {
        WHOLE: lambda: (normalize(a) @ normalize(b).T).topk(min(NEIGHBOURS, items)).values,
        TILED: lambda: topk_similarity(a, b, NEIGHBOURS).similarities,
    }
    return [ranks, measure_ways(f"top {NEIGHBOURS}", size, functions, gflop, options, memory=True)]


def _random_pair(first: int, second: int, width: int, device: str) -> tuple[Tensor, Tensor]:
    """Embeddings (first, width) and (second, width), of which the equal rows are alike."""
    random = torch.Generator().manual_seed(0)
    a, b = (torch.randn(n, width, generator=random) for n in (first, second))
    shared = min(first, second)
    b[:shared] += a[:shared]
    return a.to(device), b.to(device)
