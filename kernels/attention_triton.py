"""Attention over ragged sequences as Triton kernels: forward, gradient of the queries, gradient of keys and values.

The tokens of all sequences stand one after the other, or wherever `rows` says. A program handles one tile of one
sequence and head, so nothing is padded beyond the tile, and every value is written once, by one program: results are
the same in every run. Scores, softmax and sums are float32 whatever the element type.

Checked against float64 in Triton's interpreter, and compiled ahead of time for the architectures of
`eao.kernels.registry`. Not yet run on a GPU: results and speed there are unverified.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from eao.kernels.registry import Kernel, Launch, launch_options

# P positions (the tokens of all sequences), T rows of the input, S sequences, H heads, C channels of a head


LOG2_E = tl.constexpr(1.4426950408889634)  # GPUs compute exp2, so scores are kept in units of log 2


@triton.jit
def _rows_of(rows, positions, valid):
    """Rows of the input at positions."""
    if rows is not None:
        positions = tl.load(rows + positions, mask=valid, other=0)
    return positions.to(tl.int64)


@triton.jit
def _load_tile(x, rows, valid, stride, CHANNELS: tl.constexpr, WIDTH: tl.constexpr):
    """(rows, WIDTH) of one head; zeros where a row is not valid and beyond the channels."""
    channels = tl.arange(0, WIDTH)
    inside = valid[:, None] & (channels < CHANNELS)[None, :]
    return tl.load(x + rows[:, None] * stride + channels[None, :], mask=inside, other=0.0)


@triton.jit
def _store_tile(x, tile, rows, valid, stride, CHANNELS: tl.constexpr, WIDTH: tl.constexpr):
    channels = tl.arange(0, WIDTH)
    inside = valid[:, None] & (channels < CHANNELS)[None, :]
    tl.store(x + rows[:, None] * stride + channels[None, :], tile.to(x.dtype.element_ty), mask=inside)


@triton.jit
def _real_keys(mask, positions, valid):
    """Which keys are inside of the sequence and allowed by the mask."""
    if mask is not None:
        valid = valid & (tl.load(mask + positions, mask=valid, other=0) != 0)
    return valid


@triton.jit
def attention_forward(
    q, k, v, out, lse, starts, rows, mask, scale, heads, count,
    stride_qt, stride_qh, stride_kt, stride_kh, stride_vt, stride_vh,
    CHANNELS: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One tile of queries with all keys of its sequence -> out (P, H, C), and the log of the softmax's sum (H, P)."""
    sequence, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    start = tl.load(starts + sequence)
    length = tl.load(starts + sequence + 1) - start
    first = tl.program_id(1) * BLOCK_M
    if first >= length:
        return
    m = first + tl.arange(0, BLOCK_M)
    m_rows = _rows_of(rows, start + m, m < length)
    q_tile = _load_tile(q + head * stride_qh, m_rows, m < length, stride_qt, CHANNELS, WIDTH)
    peak = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    mixed = tl.zeros((BLOCK_M, WIDTH), tl.float32)
    for next_key in range(0, length, BLOCK_N):
        n = next_key + tl.arange(0, BLOCK_N)
        n_rows = _rows_of(rows, start + n, n < length)
        k_tile = _load_tile(k + head * stride_kh, n_rows, n < length, stride_kt, CHANNELS, WIDTH)
        scores = tl.dot(q_tile, tl.trans(k_tile), input_precision=PRECISION) * (scale * LOG2_E)
        scores = tl.where(_real_keys(mask, start + n, n < length)[None, :], scores, -float("inf"))
        new_peak = tl.maximum(peak, tl.max(scores, 1))
        shift = tl.where(new_peak == -float("inf"), 0.0, new_peak)  # no real key so far: inf - inf is no number
        weights = tl.exp2(scores - shift[:, None])
        decay = tl.exp2(peak - shift)
        total = total * decay + tl.sum(weights, 1)
        v_tile = _load_tile(v + head * stride_vh, n_rows, n < length, stride_vt, CHANNELS, WIDTH)
        mixed = tl.dot(weights.to(v_tile.dtype), v_tile, mixed * decay[:, None], input_precision=PRECISION)
        peak = new_peak
    # A row without a real key gives zeros, as torch does; with lse 0 its weights are 0 in the backward pass too.
    is_empty = total == 0.0
    total = tl.where(is_empty, 1.0, total)
    mixed = mixed / total[:, None]
    log_sum = tl.where(is_empty, 0.0, (peak + tl.log2(total)) / LOG2_E)
    positions = (start + m).to(tl.int64)
    _store_tile(out + head * CHANNELS, mixed, positions, m < length, heads * CHANNELS, CHANNELS, WIDTH)
    tl.store(lse + head.to(tl.int64) * count + positions, log_sum, mask=m < length)


@triton.jit
def attention_backward_q(
    q, k, v, out, grad, lse, delta, dq, starts, rows, mask, scale, heads, count,
    stride_qt, stride_qh, stride_kt, stride_kh, stride_vt, stride_vh, stride_gt, stride_gh, stride_dt, stride_dh,
    CHANNELS: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One tile of queries -> their gradient dq, by position, and delta (H, P), the sum of gradient * output."""
    sequence, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    start = tl.load(starts + sequence)
    length = tl.load(starts + sequence + 1) - start
    first = tl.program_id(1) * BLOCK_M
    if first >= length:
        return
    m = first + tl.arange(0, BLOCK_M)
    positions = (start + m).to(tl.int64)
    m_rows = _rows_of(rows, start + m, m < length)
    q_tile = _load_tile(q + head * stride_qh, m_rows, m < length, stride_qt, CHANNELS, WIDTH)
    g_tile = _load_tile(grad + head * stride_gh, positions, m < length, stride_gt, CHANNELS, WIDTH)
    o_tile = _load_tile(out + head * CHANNELS, positions, m < length, heads * CHANNELS, CHANNELS, WIDTH)
    delta_row = tl.sum(g_tile.to(tl.float32) * o_tile.to(tl.float32), 1)
    per_head = head.to(tl.int64) * count + positions
    tl.store(delta + per_head, delta_row, mask=m < length)
    lse_row = tl.load(lse + per_head, mask=m < length, other=0.0) * LOG2_E
    dq_tile = tl.zeros((BLOCK_M, WIDTH), tl.float32)
    for next_key in range(0, length, BLOCK_N):
        n = next_key + tl.arange(0, BLOCK_N)
        n_rows = _rows_of(rows, start + n, n < length)
        k_tile = _load_tile(k + head * stride_kh, n_rows, n < length, stride_kt, CHANNELS, WIDTH)
        v_tile = _load_tile(v + head * stride_vh, n_rows, n < length, stride_vt, CHANNELS, WIDTH)
        scores = tl.dot(q_tile, tl.trans(k_tile), input_precision=PRECISION) * (scale * LOG2_E)
        scores = tl.where(_real_keys(mask, start + n, n < length)[None, :], scores, -float("inf"))
        weights = tl.exp2(scores - lse_row[:, None])
        d_weights = tl.dot(g_tile, tl.trans(v_tile), input_precision=PRECISION)
        d_scores = weights * (d_weights - delta_row[:, None])
        dq_tile = tl.dot(d_scores.to(k_tile.dtype), k_tile, dq_tile, input_precision=PRECISION)
    _store_tile(dq + head * stride_dh, dq_tile * scale, positions, m < length, stride_dt, CHANNELS, WIDTH)


@triton.jit
def attention_backward_kv(
    q, k, v, grad, lse, delta, dk, dv, starts, rows, mask, scale, heads, count,
    stride_qt, stride_qh, stride_kt, stride_kh, stride_vt, stride_vh, stride_gt, stride_gh, stride_dt, stride_dh,
    CHANNELS: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One tile of keys with all queries of its sequence -> the gradients dk and dv, by position."""
    sequence, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    start = tl.load(starts + sequence)
    length = tl.load(starts + sequence + 1) - start
    first = tl.program_id(1) * BLOCK_N
    if first >= length:
        return
    n = first + tl.arange(0, BLOCK_N)
    n_rows = _rows_of(rows, start + n, n < length)
    k_tile = _load_tile(k + head * stride_kh, n_rows, n < length, stride_kt, CHANNELS, WIDTH)
    v_tile = _load_tile(v + head * stride_vh, n_rows, n < length, stride_vt, CHANNELS, WIDTH)
    is_real = _real_keys(mask, start + n, n < length)
    dk_tile = tl.zeros((BLOCK_N, WIDTH), tl.float32)
    dv_tile = tl.zeros((BLOCK_N, WIDTH), tl.float32)
    # Past the end of the sequence q and grad are 0, so that weights of 1 add nothing there.
    for next_query in range(0, length, BLOCK_M):
        m = next_query + tl.arange(0, BLOCK_M)
        positions = (start + m).to(tl.int64)
        m_rows = _rows_of(rows, start + m, m < length)
        q_tile = _load_tile(q + head * stride_qh, m_rows, m < length, stride_qt, CHANNELS, WIDTH)
        g_tile = _load_tile(grad + head * stride_gh, positions, m < length, stride_gt, CHANNELS, WIDTH)
        per_head = head.to(tl.int64) * count + positions
        lse_row = tl.load(lse + per_head, mask=m < length, other=0.0) * LOG2_E
        delta_row = tl.load(delta + per_head, mask=m < length, other=0.0)
        scores = tl.dot(k_tile, tl.trans(q_tile), input_precision=PRECISION) * (scale * LOG2_E)
        scores = tl.where(is_real[:, None], scores, -float("inf"))
        weights = tl.exp2(scores - lse_row[None, :])
        dv_tile = tl.dot(weights.to(g_tile.dtype), g_tile, dv_tile, input_precision=PRECISION)
        d_weights = tl.dot(v_tile, tl.trans(g_tile), input_precision=PRECISION)
        d_scores = weights * (d_weights - delta_row[None, :])
        dk_tile = tl.dot(d_scores.to(q_tile.dtype), q_tile, dk_tile, input_precision=PRECISION)
    positions = (start + n).to(tl.int64)
    _store_tile(dk + head * stride_dh, dk_tile * scale, positions, n < length, stride_dt, CHANNELS, WIDTH)
    _store_tile(dv + head * stride_dh, dv_tile, positions, n < length, stride_dt, CHANNELS, WIDTH)


@triton.jit
def sum_positions(x, out, order, bounds, width, BLOCK: tl.constexpr):
    """Row r of `out` = the sum of the rows order[bounds[r]:bounds[r + 1]] of `x`, in that order."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for i in range(tl.load(bounds + row), tl.load(bounds + row + 1)):
        total += tl.load(x + tl.load(order + i) * width + columns, mask=columns < width, other=0.0).to(tl.float32)
    tl.store(out + row * width + columns, total.to(out.dtype.element_ty), mask=columns < width)


def forward(
    q: Tensor, k: Tensor, v: Tensor, starts: Tensor, longest: int, rows: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`eao.kernels.attention_torch.attend` on a GPU, for at most 128 channels.

    Args:
        longest: length of the longest sequence, or more; the others as there.

    Returns:
        the output (P, H, C), and the log of each softmax's sum (H, P) float32, which `backward` needs.
    """
    q, k, v = _unit_channels(q), _unit_channels(k), _unit_channels(v)
    heads, channels = q.shape[1:]
    count = len(q) if rows is None else len(rows)
    out = q.new_empty(count, heads, channels)
    lse = q.new_empty(heads, count, dtype=torch.float32)
    if count and heads:
        grid, options = _launch(FORWARD, q, starts, longest, "BLOCK_M")
        shape = (channels**-0.5, heads, count, *_strides(q, k, v))
        with torch.cuda.device_of(q):
            attention_forward[grid](q, k, v, out, lse, starts, rows, _bytes(mask), *shape, **options)
    return out, lse


def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    starts: Tensor, longest: int, rows: Tensor | None, mask: Tensor | None,
) -> Tensor:  # fmt: skip
    """`eao.kernels.attention_torch.differentiate` on a GPU: (T, 3, H, C).

    Args:
        out, lse: what `forward` gave for these arguments.
        longest: as for `forward`; the others as there.
    """
    total, heads, channels = q.shape
    q, k, v, grad = _unit_channels(q), _unit_channels(k), _unit_channels(v), _unit_channels(grad)
    count = len(grad)
    by_position = q.new_empty(count, 3, heads, channels)
    dq, dk, dv = by_position.unbind(1)
    if count and heads:
        delta = torch.empty_like(lse)
        shape = (channels**-0.5, heads, count, *_strides(q, k, v, grad, dq))
        with torch.cuda.device_of(q):
            grid, options = _launch(BACKWARD_Q, q, starts, longest, "BLOCK_M")
            attention_backward_q[grid](
                q, k, v, out, grad, lse, delta, dq, starts, rows, _bytes(mask), *shape, **options
            )
            grid, options = _launch(BACKWARD_KV, q, starts, longest, "BLOCK_N")
            attention_backward_kv[grid](
                q, k, v, grad, lse, delta, dk, dv, starts, rows, _bytes(mask), *shape, **options
            )
    return by_position if rows is None else _sum_by_row(by_position, rows, total)


def _sum_by_row(by_position: Tensor, rows: Tensor, total: int) -> Tensor:
    """(P, ...) -> (total, ...): row r is the sum over the positions p with rows[p] == r, in rising order of p."""
    out = by_position.new_empty(total, *by_position.shape[1:])
    width = by_position[0].numel() if len(rows) else 0
    if not (total and width):
        return out.zero_()
    sorted_rows, order = rows.sort(stable=True)
    bounds = torch.searchsorted(sorted_rows, torch.arange(total + 1, dtype=rows.dtype, device=rows.device))
    options = launch_options(SUM_POSITIONS, "any", by_position)
    with torch.cuda.device_of(by_position):
        grid = (total, triton.cdiv(width, options["BLOCK"]))
        sum_positions[grid](by_position, out, order, bounds, width, **options)
    return out


def _unit_channels(x: Tensor) -> Tensor:
    """The kernels take any stride of tokens and heads, but channels side by side."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _bytes(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask.contiguous().view(torch.uint8)


def _strides(*tensors: Tensor) -> list[int]:
    return [stride for x in tensors for stride in x.stride()[:2]]


def _launch(kernel: Kernel, x: Tensor, starts: Tensor, longest: int, tile: str) -> tuple[tuple[int, int], dict]:
    """The grid, one program for each sequence, head and tile of the longest sequence; and the constexpr arguments."""
    heads, channels = x.shape[1:]
    width = max(16, triton.next_power_of_2(channels))
    options = launch_options(kernel, f"c{width}", x)
    grid = ((len(starts) - 1) * heads, triton.cdiv(longest, options[tile]))
    return grid, {"CHANNELS": channels, "WIDTH": width, **options}


_STRIDES = {f"stride_{x}{axis}": "i32:16" for x in "qkv" for axis in "th"}
_GRAD_STRIDES = {f"stride_{x}{axis}": "i32:16" for x in "gd" for axis in "th"}
_INDEX = {"starts": "*i32:16", "rows": "*i32:16", "mask": "*u8:16", "scale": "fp32", "heads": "i32", "count": "i32"}
_VARIANTS = {f"c{width}": {"CHANNELS": width, "WIDTH": width} for width in (16, 32, 64, 128)}


def _tiles(m: int, n: int, warps: int) -> Launch:
    return Launch({"BLOCK_M": m, "BLOCK_N": n}, warps)


FORWARD = Kernel(
    name="attention_forward",
    function=attention_forward,
    signature={**dict.fromkeys(("q", "k", "v", "out"), "*T:16"), "lse": "*fp32:16", **_INDEX, **_STRIDES},
    variants=_VARIANTS,
    launches={
        **dict.fromkeys(("c16", "c32", "c64"), (_tiles(64, 64, 4), _tiles(64, 32, 4), _tiles(32, 32, 4))),
        "c128": (_tiles(64, 32, 4), _tiles(32, 32, 4), _tiles(16, 32, 4)),
    },
)
BACKWARD_Q = Kernel(
    name="attention_backward_q",
    function=attention_backward_q,
    signature={
        **dict.fromkeys(("q", "k", "v", "out", "grad"), "*T:16"),
        "lse": "*fp32:16",
        "delta": "*fp32:16",
        "dq": "*T:16",
        **_INDEX,
        **_STRIDES,
        **_GRAD_STRIDES,
    },
    variants=_VARIANTS,
    launches={
        **dict.fromkeys(("c16", "c32", "c64"), (_tiles(64, 32, 4), _tiles(32, 32, 4), _tiles(16, 32, 4))),
        "c128": (_tiles(32, 32, 4), _tiles(32, 16, 4), _tiles(16, 16, 8)),
    },
)
BACKWARD_KV = Kernel(
    name="attention_backward_kv",
    function=attention_backward_kv,
    signature={
        **dict.fromkeys(("q", "k", "v", "grad"), "*T:16"),
        "lse": "*fp32:16",
        "delta": "*fp32:16",
        "dk": "*T:16",
        "dv": "*T:16",
        **_INDEX,
        **_STRIDES,
        **_GRAD_STRIDES,
    },
    variants=_VARIANTS,
    launches={
        **dict.fromkeys(("c16", "c32", "c64"), (_tiles(32, 64, 4), _tiles(32, 32, 4), _tiles(32, 16, 4))),
        "c128": (_tiles(32, 32, 4), _tiles(16, 32, 4), _tiles(16, 16, 4)),
    },
)
SUM_POSITIONS = Kernel(
    name="attention_sum_positions",
    function=sum_positions,
    signature={"x": "*T:16", "out": "*T:16", "order": "*i64:16", "bounds": "*i64:16", "width": "i32:16"},
    variants={"any": {}},
    launches={"any": (Launch({"BLOCK": 1024}, 4),)},
    tensor_cores=False,
)
KERNELS = (FORWARD, BACKWARD_Q, BACKWARD_KV, SUM_POSITIONS)
