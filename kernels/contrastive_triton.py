"""Triton kernels of the contrastive operator, see `eao.kernels.contrastive`.

Rows are handled in strips. The forward kernel writes one log-sum-exp per row and tile, and one per column and tile. The
backward kernel writes the gradient of the logits of one strip, which two products then turn into the gradients of both
sides: multiplying inside the kernel instead would compute the logits anew for every few columns of a wide embedding.
Every element is written by one program, in a fixed order: results are deterministic.

The kernels are compiled ahead of time for every target and run in Triton's interpreter by the tests; they have not run
on a GPU.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from eao.kernels.contrastive import NORM_FLOOR, UnitRows, valid_rows
from eao.kernels.registry import Kernel, Launch, launch_options

# N rows, M columns, D embedding

STRIP_ELEMENTS = 1 << 26
"""Logits of one strip at most, unless a single tile's rows hold more: 128 MB of scratch memory in half precision."""

_GAIN = 1024.0  # keeps small softmax values out of the subnormal numbers of float16


@triton.jit
def _logits(
    a, b, row_scale, column_scale, rows, columns, n, m, width, stride_a, stride_b, offset, margin,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One tile of logits, whether each place holds a positive, and which rows and columns are real and valid."""
    d = tl.arange(0, BLOCK_D)
    a_rows = a + rows.to(tl.int64)[:, None] * stride_a
    b_rows = b + columns.to(tl.int64)[None, :] * stride_b
    in_a, in_b = rows < n, columns < m
    product = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, width, BLOCK_D):
        in_width = start + d < width
        x = tl.load(a_rows + (start + d)[None, :], mask=in_a[:, None] & in_width[None, :], other=0.0)
        y = tl.load(b_rows + (start + d)[:, None], mask=in_b[None, :] & in_width[:, None], other=0.0)
        product = tl.dot(x, y, product, input_precision=PRECISION)
    x_scale = tl.load(row_scale + rows, mask=in_a, other=0.0)
    y_scale = tl.load(column_scale + columns, mask=in_b, other=0.0)
    positive = columns[None, :] == rows[:, None] + offset
    logits = product * x_scale[:, None] * y_scale[None, :] - tl.where(positive, margin, 0.0)
    return logits, positive, x_scale != 0.0, y_scale != 0.0


@triton.jit
def contrastive_forward(
    a, b, row_scale, column_scale, row_parts, column_parts, positives, n, m, width, stride_a, stride_b, offset, margin,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BOTH: tl.constexpr,
):  # fmt: skip
    """Log-sum-exp of each row and column within each tile: (tiles, N) and (tiles, M); and the positives (N,)."""
    i, j = tl.program_id(0), tl.program_id(1)
    rows, columns = i * BLOCK_M + tl.arange(0, BLOCK_M), j * BLOCK_N + tl.arange(0, BLOCK_N)
    logits, positive, row_valid, column_valid = _logits(
        a, b, row_scale, column_scale, rows, columns, n, m, width, stride_a, stride_b, offset, margin, PRECISION,
        BLOCK_M, BLOCK_N, BLOCK_D,
    )  # fmt: skip
    own = (rows < n) & (rows + offset >= j * BLOCK_N) & (rows + offset < (j + 1) * BLOCK_N)
    tl.store(positives + rows, tl.sum(tl.where(positive, logits, 0.0), 1), mask=own)

    kept = tl.where(column_valid[None, :], logits, float("-inf"))
    peak = tl.max(kept, 1)
    peak = tl.where(peak == float("-inf"), 0.0, peak)
    total = tl.sum(tl.exp(kept - peak[:, None]), 1)
    tl.store(row_parts + j.to(tl.int64) * n + rows, peak + tl.log(total), mask=rows < n)
    if BOTH:
        kept = tl.where(row_valid[:, None], logits, float("-inf"))
        peak = tl.max(kept, 0)
        peak = tl.where(peak == float("-inf"), 0.0, peak)
        total = tl.sum(tl.exp(kept - peak[None, :]), 0)
        tl.store(column_parts + i.to(tl.int64) * m + columns, peak + tl.log(total), mask=columns < m)


@triton.jit
def contrastive_gradient(
    a, b, row_scale, column_scale, row, column, row_weight, column_weight, positive_weight, gradient, n, m, width,
    stride_a, stride_b, offset, margin, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, BOTH: tl.constexpr,
):  # fmt: skip
    """The gradient (N, M) of the logits, in the type of the embeddings."""
    i, j = tl.program_id(0), tl.program_id(1)
    rows, columns = i * BLOCK_M + tl.arange(0, BLOCK_M), j * BLOCK_N + tl.arange(0, BLOCK_N)
    logits, positive, row_valid, column_valid = _logits(
        a, b, row_scale, column_scale, rows, columns, n, m, width, stride_a, stride_b, offset, margin, PRECISION,
        BLOCK_M, BLOCK_N, BLOCK_D,
    )  # fmt: skip
    in_a, in_b = rows < n, columns < m
    shift = tl.load(row + rows, mask=in_a, other=float("inf"))
    weight = tl.load(row_weight + rows, mask=in_a, other=0.0)
    result = tl.exp(logits - shift[:, None]) * weight[:, None]
    if BOTH:
        shift = tl.load(column + columns, mask=in_b, other=float("inf"))
        weight = tl.load(column_weight + columns, mask=in_b, other=0.0)
        result += tl.exp(logits - shift[None, :]) * weight[None, :]
    weight = tl.load(positive_weight + rows, mask=in_a, other=0.0)
    result += tl.where(positive, weight[:, None], 0.0)
    # An invalid row may hold anything, also NaN.
    result = tl.where(row_valid[:, None] & column_valid[None, :], result, 0.0)
    places = gradient + rows.to(tl.int64)[:, None] * m + columns[None, :]
    tl.store(places, result.to(gradient.dtype.element_ty), mask=in_a[:, None] & in_b[None, :])


@triton.jit
def contrastive_product(
    gradient, x, inverse, out, outer, inner, width, stride, stride_x, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, TRANSPOSED: tl.constexpr,
):  # fmt: skip
    """Out (outer, D) float32 += gradient (outer, inner) times the unit rows of x (inner, D).

    If TRANSPOSED, the gradient is stored as (inner, outer). `stride` is the length of its stored rows.
    """
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    in_rows, in_width = rows < outer, d < width
    total = tl.zeros((BLOCK_M, BLOCK_D), dtype=tl.float32)
    for start in range(0, inner, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        in_inner = k < inner
        if TRANSPOSED:
            places = gradient + k.to(tl.int64)[None, :] * stride + rows[:, None]
        else:
            places = gradient + rows.to(tl.int64)[:, None] * stride + k[None, :]
        g = tl.load(places, mask=in_rows[:, None] & in_inner[None, :], other=0.0)
        scale = tl.load(inverse + k, mask=in_inner, other=0.0)
        y_places = x + k.to(tl.int64)[:, None] * stride_x + d[None, :]
        y = tl.load(y_places, mask=in_inner[:, None] & in_width[None, :], other=0.0)
        unit = tl.where(scale[:, None] != 0.0, y.to(tl.float32) * scale[:, None], 0.0)
        total = tl.dot(g, unit.to(g.dtype), total, input_precision=PRECISION)
    places = out + rows.to(tl.int64)[:, None] * width + d[None, :]
    mask = in_rows[:, None] & in_width[None, :]
    tl.store(places, tl.load(places, mask=mask, other=0.0) + total, mask=mask)


def forward(
    a: Tensor, b: Tensor, valid: Tensor | None, offset: int, scale: float, margin: float, both: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator `eao::contrastive` for float32, float16 and bfloat16."""
    a, b = _alike(a, b)
    kept = valid_rows(valid, offset, len(a))
    row_scale, column_scale = scale * _inverse_length(a, kept), _inverse_length(b, valid)
    row = torch.full((len(a),), -torch.inf, device=a.device)
    column, positive = row.new_full((len(b) if both else 0,), -torch.inf), torch.empty_like(row)
    options = launch_options(FORWARD, _variant(both), a)
    for strip in _strips(len(a), len(b), options["BLOCK_M"]):
        n = strip.stop - strip.start
        grid = (triton.cdiv(n, options["BLOCK_M"]), triton.cdiv(len(b), options["BLOCK_N"]))
        row_parts, column_parts = row.new_empty(grid[1], n), row.new_empty(grid[0] if both else 0, len(b))
        with torch.cuda.device_of(a):
            contrastive_forward[grid](
                a[strip], b, row_scale[strip], column_scale, row_parts, column_parts, positive[strip], n, len(b),
                a.shape[1], a.stride(0), b.stride(0), offset + strip.start, margin, BOTH=both, **options,
            )  # fmt: skip
        row[strip] = row_parts.logsumexp(0)
        if both:
            column = torch.logaddexp(column, column_parts.logsumexp(0))
    if valid is not None and kept is not None:
        row.masked_fill_(~kept, torch.inf)
        if both:
            column.masked_fill_(~valid, torch.inf)
    return row, column, positive


def backward(
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
    """The operator `eao::contrastive_backward` for float32, float16 and bfloat16."""
    a_dtype, b_dtype, both = a.dtype, b.dtype, len(column) > 0
    a, b = _alike(a, b)
    kept = valid_rows(valid, offset, len(a))
    a_inverse, b_inverse = _inverse_length(a, kept), _inverse_length(b, valid)
    # Weights of mean losses are tiny; brought to one scale, the gradient of the logits suits any type.
    weights = [weight.float().contiguous() for weight in (row_weight, column_weight, positive_weight)]
    size = torch.cat([weight.abs() for weight in weights] + [row.new_zeros(1)]).max()
    gain = _GAIN / size.clamp_min(1e-30)  # finite for weights of 0 too
    row_weight, column_weight, positive_weight = (weight * gain for weight in weights)
    grad_a = torch.zeros(a.shape, device=a.device)
    grad_b = torch.zeros(b.shape, device=b.device)
    options = launch_options(GRADIENT, _variant(both), a)
    for strip in _strips(len(a), len(b), options["BLOCK_M"]):
        n = strip.stop - strip.start
        gradient = a.new_empty(n, len(b))
        grid = (triton.cdiv(n, options["BLOCK_M"]), triton.cdiv(len(b), options["BLOCK_N"]))
        with torch.cuda.device_of(a):
            contrastive_gradient[grid](
                a[strip], b, scale * a_inverse[strip], b_inverse, row[strip], column, row_weight[strip], column_weight,
                positive_weight[strip], gradient, n, len(b), a.shape[1], a.stride(0), b.stride(0),
                offset + strip.start, margin, BOTH=both, **options,
            )  # fmt: skip
        _multiply(gradient, b, b_inverse, grad_a[strip], transposed=False)
        _multiply(gradient, a[strip], a_inverse[strip], grad_b, transposed=True)
    unscale = scale / gain
    grad_a = UnitRows.of(a, kept, torch.float32).backward(grad_a.mul_(unscale), kept)
    grad_b = UnitRows.of(b, valid, torch.float32).backward(grad_b.mul_(unscale), valid)
    return grad_a.to(a_dtype), grad_b.to(b_dtype)


def _multiply(gradient: Tensor, x: Tensor, inverse: Tensor, out: Tensor, transposed: bool) -> None:
    """Out (outer, D) += gradient (outer, inner), or its transpose, times the unit rows of x (inner, D)."""
    variant = "columns" if transposed else "rows"
    options = launch_options(PRODUCT, variant, x)
    grid = (triton.cdiv(len(out), options["BLOCK_M"]), triton.cdiv(x.shape[1], options["BLOCK_D"]))
    with torch.cuda.device_of(x):
        contrastive_product[grid](
            gradient, x, inverse, out, len(out), len(x), x.shape[1], gradient.shape[1], x.stride(0),
            **PRODUCT.variants[variant], **options,
        )  # fmt: skip


def _alike(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Of one type, with rows that are contiguous."""
    dtype = torch.promote_types(a.dtype, b.dtype)
    a, b = a.to(dtype), b.to(dtype)
    return a if a.stride(1) == 1 else a.contiguous(), b if b.stride(1) == 1 else b.contiguous()


def _inverse_length(x: Tensor, valid: Tensor | None) -> Tensor:
    """(n,) float32, 0 for invalid rows: the kernels tell them by it."""
    length = torch.linalg.vector_norm(x, dim=-1, dtype=torch.float32)
    inverse = length.clamp_min_(NORM_FLOOR).reciprocal_()
    return inverse if valid is None else inverse.masked_fill_(~valid, 0)


def _variant(both: bool) -> str:
    return "both" if both else "rows"


def _strips(n: int, m: int, block: int) -> list[slice]:
    """Ranges of rows, of whole tiles, each with at most STRIP_ELEMENTS logits if a tile's rows have no more."""
    size = max(STRIP_ELEMENTS // max(m, 1) // block, 1) * block
    return [slice(i, min(i + size, n)) for i in range(0, n if m else 0, size)]


_LOGITS_SIGNATURE = {"a": "*T:16", "b": "*T:16", "row_scale": "*fp32:16", "column_scale": "*fp32:16"}
_SIZES_SIGNATURE = {
    **dict.fromkeys(("n", "m"), "i32"),
    **dict.fromkeys(("width", "stride_a", "stride_b"), "i32:16"),
    "offset": "i32",
    "margin": "fp32",
}
_SIDES = {"both": {"BOTH": True}, "rows": {"BOTH": False}}
_TILES = (
    Launch({"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_D": 32}, num_warps=8, num_stages=3),
    Launch({"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_D": 64}, num_warps=8, num_stages=2),
    Launch({"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_D": 32}, num_warps=8, num_stages=2),
)
_PRODUCT_TILES = (
    Launch({"BLOCK_M": 128, "BLOCK_K": 32, "BLOCK_D": 128}, num_warps=8, num_stages=3),
    Launch({"BLOCK_M": 64, "BLOCK_K": 64, "BLOCK_D": 64}, num_warps=8, num_stages=2),
    Launch({"BLOCK_M": 64, "BLOCK_K": 32, "BLOCK_D": 64}, num_warps=8, num_stages=2),
)
FORWARD = Kernel(
    name="contrastive_forward",
    function=contrastive_forward,
    signature={
        **_LOGITS_SIGNATURE,
        **dict.fromkeys(("row_parts", "column_parts", "positives"), "*fp32:16"),
        **_SIZES_SIGNATURE,
    },
    variants=_SIDES,
    launches=dict.fromkeys(_SIDES, _TILES),
)
GRADIENT = Kernel(
    name="contrastive_gradient",
    function=contrastive_gradient,
    signature={
        **_LOGITS_SIGNATURE,
        **dict.fromkeys(("row", "column", "row_weight", "column_weight", "positive_weight"), "*fp32:16"),
        "gradient": "*T:16",
        **_SIZES_SIGNATURE,
    },
    variants=_SIDES,
    launches=dict.fromkeys(_SIDES, _TILES),
)
PRODUCT = Kernel(
    name="contrastive_product",
    function=contrastive_product,
    signature={
        "gradient": "*T:16",
        "x": "*T:16",
        "inverse": "*fp32:16",
        "out": "*fp32:16",
        **dict.fromkeys(("outer", "inner"), "i32"),
        **dict.fromkeys(("width", "stride", "stride_x"), "i32:16"),
    },
    variants={"rows": {"TRANSPOSED": False}, "columns": {"TRANSPOSED": True}},
    launches=dict.fromkeys(("rows", "columns"), _PRODUCT_TILES),
)
KERNELS = (FORWARD, GRADIENT, PRODUCT)
