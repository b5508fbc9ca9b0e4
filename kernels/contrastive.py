"""The symmetric contrastive loss between two sets of embeddings, row i of one matching row i of the other.

Of many pairs, the matrix of all similarities is never held. `contrastive_loss` is built on one operator that gives, of
the logits of N rows and M columns, only the log-sum-exp of every row and column and the positives; its gradient
computes the logits a second time. On a GPU that is done by Triton kernels (`contrastive_triton.py`), elsewhere tile by
tile in plain PyTorch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from eao.kernels.backend import use_triton

# N rows, M columns, D embedding

MMS_MARGIN = 0.001
"""The margin that the authors' MMS loss subtracts from the positives; fixed in their code."""
NORM_FLOOR = 1e-8
"""Shorter vectors are divided by this instead of by their length."""

_TILE = 2048  # 16 MB of logits in float32: large enough for BLAS to run at full speed at the usual widths


def normalize(x: Tensor) -> Tensor:
    """Rows of `x` (..., D) scaled to unit length; a zero row stays zero (the norm is bounded below by 1e-8)."""
    return x / x.norm(dim=-1, keepdim=True).clamp_min(NORM_FLOOR)


def contrastive_loss(
    a: Tensor,
    b: Tensor,
    kind: str = "norm-softmax",
    temperature: float = 0.05,
    valid: Tensor | None = None,
    rows: tuple[int, int] | None = None,
) -> Tensor:
    """Cross-entropy of the cosine similarities in both directions, added up; no N x N matrix for N above 2048.

    "norm-softmax": the similarities divided by `temperature` (Eq. 4 of arXiv 2112.04446). "mms": the margin of 0.001 is
    taken off the positives and there is no temperature (masked margin softmax as the authors implemented it).

    Sums are in float32 whatever the inputs and autocast say (in float64 for float64 inputs). The gradient has the
    inputs' types and is deterministic; there is no second derivative. Nothing here makes the CPU wait for a GPU.

    Args:
        a, b: (N, D) float; positives are equal rows. They need not be normalised.
        kind: "norm-softmax" or "mms".
        temperature: of "norm-softmax".
        valid: (N,) bool; the other pairs are left out, as positives and as negatives, whatever they hold.
        rows: (start, stop) computes only what the pairs start <= i < stop add to the loss, in both directions, compared
            with all of `b` and `a`: the values for consecutive ranges add up to the whole loss, and so do the
            gradients. With embeddings gathered from all ranks, each rank computes its own rows' share.

    Returns:
        a scalar float32 (float64); NaN when no pair is valid (with zero gradient), as the mean over nothing.

    Raises:
        ValueError: for an unknown kind or shapes that do not fit.

    Example:
        >>> contrastive_loss(torch.eye(2), torch.eye(2), temperature=1.0).item()  # 2 log(1 + 1 / e)
        0.6265233755111694
    """
    scale, margin = _logits(kind, temperature)
    if a.ndim != 2 or a.shape != b.shape:
        raise ValueError(f"embeddings must be two (pairs, width) tensors of one shape, not {[*a.shape]}, {[*b.shape]}")
    pairs = len(a)
    if valid is not None and valid.shape != (pairs,):
        raise ValueError(f"valid must tell {pairs} pairs, not {[*valid.shape]}")
    # Computing a single tile twice would only cost. Picking the valid pairs would make the CPU wait for a GPU.
    if rows is None and pairs <= _TILE and (valid is None or a.is_cpu):
        return open_contrastive_loss(a, b, kind, temperature, valid)
    start, stop = rows or (0, pairs)
    if not 0 <= start <= stop <= pairs:
        raise ValueError(f"rows {start} to {stop} do not lie within {pairs} pairs")
    if (start, stop) == (0, pairs):
        row, column, positive = _operator(a, b, valid, 0, scale, margin, True)
        losses = row + column - 2 * positive
    else:
        row, _, a_positive = _operator(a[start:stop], b, valid, start, scale, margin, False)
        column, _, b_positive = _operator(b[start:stop], a, valid, start, scale, margin, False)
        losses = (row - a_positive) + (column - b_positive)
    if valid is None:
        return losses.sum() / pairs
    return losses.where(valid[start:stop], 0).sum() / valid.sum()


def open_contrastive_loss(
    a: Tensor, b: Tensor, kind: str = "norm-softmax", temperature: float = 0.05, valid: Tensor | None = None
) -> Tensor:
    """The same loss as its formula: several N x N matrices in memory, and a GPU is waited for if there is `valid`."""
    scale, margin = _logits(kind, temperature)
    if valid is not None:
        a, b = a[valid], b[valid]
    dtype = _compute_dtype(a, b)
    with torch.autocast(a.device.type, enabled=False):
        logits = scale * (normalize(a.to(dtype)) @ normalize(b.to(dtype)).T)  # (N, N)
        if margin:
            logits = logits - margin * torch.eye(len(logits), dtype=dtype, device=logits.device)
        target = torch.arange(len(logits), device=logits.device)
        return F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)


def _logits(kind: str, temperature: float) -> tuple[float, float]:
    """What similarities are multiplied by, and what is then taken off the positives."""
    if kind == "norm-softmax":
        return 1 / temperature, 0.0
    if kind == "mms":
        return 1.0, MMS_MARGIN
    raise ValueError(f"unknown contrastive loss {kind!r}: norm-softmax or mms")


def _compute_dtype(a: Tensor, b: Tensor) -> torch.dtype:
    return torch.float64 if torch.float64 in (a.dtype, b.dtype) else torch.float32


def _on_gpu_kernels(a: Tensor, b: Tensor) -> bool:
    return use_triton(a) and _compute_dtype(a, b) == torch.float32


# The operator. Its logits are scale * cosine of every row of `a` (N, D) with every row of `b` (M, D), less the margin
# at the positives, which are the columns offset + i. `valid` (M,) speaks of columns, and of the rows of the same
# number. Without `both` the columns' part is left out, and is empty.


@torch.library.custom_op(
    "eao::contrastive",
    mutates_args=(),
    schema="(Tensor a, Tensor b, Tensor? valid, int offset, float scale, float margin, bool both)"
    " -> (Tensor row, Tensor column, Tensor positive)",
)
def _operator(
    a: Tensor, b: Tensor, valid: Tensor | None, offset: int, scale: float, margin: float, both: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-sum-exp of each row (N,) and column (M,) of the logits, +inf where invalid, and the positives (N,)."""
    if _on_gpu_kernels(a, b):
        from eao.kernels import contrastive_triton

        return contrastive_triton.forward(a, b, valid, offset, scale, margin, both)
    return _tiled_forward(a, b, valid, offset, scale, margin, both)


@torch.library.custom_op(
    "eao::contrastive_backward",
    mutates_args=(),
    schema="(Tensor a, Tensor b, Tensor? valid, Tensor row, Tensor column, Tensor row_weight, Tensor column_weight,"
    " Tensor positive_weight, int offset, float scale, float margin) -> (Tensor grad_a, Tensor grad_b)",
)
def _operator_backward(
    a: Tensor,
    b: Tensor,
    valid: Tensor | None,
    row: Tensor,
    column: Tensor,
    row_weight: Tensor,
    column_weight: Tensor,
    positive_weight: Tensor,
    offset: int,
    scale: float,
    margin: float,
) -> tuple[Tensor, Tensor]:
    """Gradients of `a` and `b`; the weights are the gradients of the operator's three results."""
    weights = (row_weight, column_weight, positive_weight)
    if _on_gpu_kernels(a, b):
        from eao.kernels import contrastive_triton

        return contrastive_triton.backward(a, b, valid, row, column, *weights, offset, scale, margin)
    return _tiled_backward(a, b, valid, row, column, *weights, offset, scale, margin)


@_operator.register_fake
def _(
    a: Tensor, b: Tensor, valid: Tensor | None, offset: int, scale: float, margin: float, both: bool
) -> tuple[Tensor, Tensor, Tensor]:
    vector = a.new_empty(a.shape[0], dtype=_compute_dtype(a, b))
    return vector, vector.new_empty(b.shape[0] if both else 0), torch.empty_like(vector)


@_operator_backward.register_fake
def _(a: Tensor, b: Tensor, *_rest: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(a, memory_format=torch.contiguous_format), torch.empty_like(
        b, memory_format=torch.contiguous_format
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    a, b, valid, ctx.offset, ctx.scale, ctx.margin, _ = inputs
    row, column, _ = output
    ctx.save_for_backward(a, b, valid, row, column)


def _backward(ctx: Any, *weights: Tensor) -> tuple[Tensor | None, ...]:
    grad_a, grad_b = _operator_backward(*ctx.saved_tensors, *weights, ctx.offset, ctx.scale, ctx.margin)
    return grad_a, grad_b, None, None, None, None, None


_operator.register_autograd(_backward, setup_context=_setup_context)


class UnitRows(NamedTuple):
    """Rows scaled to unit length, invalid ones zero, and the length each was divided by (N, 1)."""

    rows: Tensor
    length: Tensor

    @classmethod
    def of(cls, x: Tensor, valid: Tensor | None, dtype: torch.dtype) -> UnitRows:
        """From (N, D) of any type."""
        x = x.to(dtype)
        length = x.norm(dim=-1, keepdim=True).clamp_min(NORM_FLOOR)
        rows = x / length
        return cls(rows if valid is None else rows.masked_fill_(~valid[:, None], 0), length)

    def backward(self, gradient: Tensor, valid: Tensor | None) -> Tensor:
        """The gradient (N, D) of the rows before scaling, in place of that of the unit rows."""
        # A length at the floor did not depend on the row, so nothing is projected out.
        along = (self.rows * gradient).sum(-1, keepdim=True).masked_fill_(self.length == NORM_FLOOR, 0)
        gradient.addcmul_(self.rows, along, value=-1).div_(self.length)
        return gradient if valid is None else gradient.masked_fill_(~valid[:, None], 0)


def valid_rows(valid: Tensor | None, offset: int, rows: int) -> Tensor | None:
    """The part of `valid` that speaks of the rows."""
    return None if valid is None else valid[offset : offset + rows]


def _tiles(rows: int, columns: int) -> Iterator[tuple[slice, slice]]:
    for i in range(0, rows, _TILE):
        for j in range(0, columns, _TILE):
            yield slice(i, min(i + _TILE, rows)), slice(j, min(j + _TILE, columns))


class _Logits:
    """Logits computed tile by tile into one buffer."""

    def __init__(self, a: Tensor, b: Tensor, offset: int, margin: float) -> None:
        self.a, self.b, self.offset, self.margin = a, b, offset, margin
        self.buffer = a.new_empty(min(len(a), _TILE) * min(len(b), _TILE))

    def tile(self, rows: slice, columns: slice) -> Tensor:
        """(n, m), valid until the next call."""
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        logits = self.buffer[: shape[0] * shape[1]].view(shape)
        torch.mm(self.a[rows], self.b[columns].T, out=logits)
        if self.margin:
            self.positives(logits, rows, columns)[1].sub_(self.margin)
        return logits

    def positives(self, tile: Tensor, rows: slice, columns: slice) -> tuple[slice, Tensor]:
        """Which rows have their positive in a tile, and a view of these places in it."""
        shift = self.offset + rows.start - columns.start  # the positive of the tile's row r is in its column r + shift
        first, last = max(0, -shift), min(tile.shape[0], tile.shape[1] - shift)
        if first >= last:
            return slice(0, 0), tile[0, :0]
        return slice(rows.start + first, rows.start + last), tile.diagonal(shift)


def _tiled_forward(
    a: Tensor, b: Tensor, valid: Tensor | None, offset: int, scale: float, margin: float, both: bool
) -> tuple[Tensor, Tensor, Tensor]:
    dtype, kept = _compute_dtype(a, b), valid_rows(valid, offset, len(a))
    row = torch.full((len(a),), -torch.inf, dtype=dtype, device=a.device)
    column, positive = row.new_full((len(b) if both else 0,), -torch.inf), torch.empty_like(row)
    # Autocast leaves products with a given output alone, so all of this stays in one type.
    logits = _Logits(UnitRows.of(a, kept, dtype).rows * scale, UnitRows.of(b, valid, dtype).rows, offset, margin)
    for rows, columns in _tiles(len(a), len(b)):
        tile = logits.tile(rows, columns)
        own, values = logits.positives(tile, rows, columns)
        positive[own] = values
        if valid is not None and kept is not None:
            tile.masked_fill_(~(kept[rows, None] & valid[columns]), -torch.inf)
        row[rows] = torch.logaddexp(row[rows], tile.logsumexp(1))
        if both:
            column[columns] = torch.logaddexp(column[columns], tile.logsumexp(0))
    if valid is not None and kept is not None:
        row.masked_fill_(~kept, torch.inf)
        if both:
            column.masked_fill_(~valid, torch.inf)
    return row, column, positive


def _tiled_backward(
    a: Tensor,
    b: Tensor,
    valid: Tensor | None,
    row: Tensor,
    column: Tensor,
    row_weight: Tensor,
    column_weight: Tensor,
    positive_weight: Tensor,
    offset: int,
    scale: float,
    margin: float,
) -> tuple[Tensor, Tensor]:
    dtype, kept = row.dtype, valid_rows(valid, offset, len(a))
    unit_a, unit_b = UnitRows.of(a, kept, dtype), UnitRows.of(b, valid, dtype)
    scaled = unit_a.rows * scale
    logits = _Logits(scaled, unit_b.rows, offset, margin)
    grad_a, grad_b = torch.zeros_like(scaled), torch.zeros_like(unit_b.rows)
    spare = torch.empty_like(logits.buffer)
    for rows, columns in _tiles(len(a), len(b)):
        tile = logits.tile(rows, columns)
        # Invalid rows and columns weigh nothing: their log-sum-exp is +inf, and as unit rows they are 0.
        softmax = torch.sub(tile, row[rows, None], out=spare[: tile.numel()].view(tile.shape)).exp_()
        gradient = softmax.mul_(row_weight[rows, None])
        if len(column):
            gradient.addcmul_(tile.sub_(column[columns]).exp_(), column_weight[columns])
        own, values = logits.positives(gradient, rows, columns)
        values.add_(positive_weight[own])
        grad_a[rows].addmm_(gradient, unit_b.rows[columns])
        grad_b[columns].addmm_(gradient.T, scaled[rows])
    grad_a.mul_(scale)
    return unit_a.backward(grad_a, kept).to(a.dtype), unit_b.backward(grad_b, valid).to(b.dtype)
