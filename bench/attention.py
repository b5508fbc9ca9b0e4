"""Packed attention beside attention over padded tensors, at the lengths and heads of the published model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from eao.bench.ways import Row, WaysReport, Work, measure_ways
from eao.kernels import packed_attention

# B sequences of up to N tokens, H heads, C channels of a head, P tokens of all sequences

HEADS, CHANNELS = 64, 64
LENGTHS = {
    "video": (48, (15, 46)),
    "text and video": (68, (20, 59)),
    "video and audio": (96, (30, 92)),
}
"""What a sequence is made of -> tokens it is padded to, and the fewest and most real ones (MSR-VTT, 10 to 30 s)."""
SEQUENCES = 16
PADDED, COMPILED, PACKED = "SDPA, padded", "softmax by its formula, torch.compile", "packed"

Attend = Callable[[Tensor], Tensor]


class AttentionReport(WaysReport):
    """The measurement and its conditions."""

    sequences: int
    heads: int
    channels: int

    def to_markdown(self) -> str:
        return self.page(
            f"{self.sequences} sequences, {self.heads} heads of {self.channels} channels, float32 on {self.device}, "
            f"where a large product reached {self.ceiling}. All ways begin with queries, keys and values as the linear "
            "layer gives them, the padded ones with the padding in its place. GFLOP/s and GB/s count the real tokens "
            "alone: their arithmetic, and what is read and written once.",
            "In the published model attention is about one hundredth of the arithmetic: what packing saves in the "
            "linear layers is the greater part, see the section on the packed model.",
        )


def run(
    lengths: Mapping[str, tuple[int, tuple[int, int]]] = LENGTHS,
    sequences: int = SEQUENCES,
    heads: int = HEADS,
    channels: int = CHANNELS,
    seconds: float = 3.0,
    rounds: int = 6,
    compiled: bool = True,
) -> AttentionReport:
    """Measure. It takes some two minutes on two cores.

    Args:
        lengths: see `LENGTHS`.
        sequences, heads, channels: B, H, C.
        seconds: of each way of each kind of work.
        rounds: how often the ways take turns.
        compiled: also measure `torch.compile`, which needs a C++ compiler on a CPU.
    """
    options: dict[str, Any] = {"max_seconds": seconds, "rounds": rounds}
    random = torch.Generator().manual_seed(0)

    def measure(device: str) -> Iterator[Row]:
        for name, (padded, (fewest, most)) in lengths.items():
            real = torch.randint(fewest, most + 1, (sequences,), generator=random)
            qkv = torch.randn(sequences, padded, 3, heads, channels, generator=random).to(device)
            yield from _rows(name, qkv, real.to(device), options, compiled)

    return AttentionReport.of(measure, sequences=sequences, heads=heads, channels=channels)


def _rows(name: str, qkv: Tensor, lengths: Tensor, options: Mapping[str, Any], compiled: bool) -> Sequence[Row]:
    """Forward, and forward with the gradient, of sequences (B, N, 3, H, C) of which `lengths` (B,) tokens are real."""
    mask = torch.arange(qkv.shape[1], device=qkv.device) < lengths[:, None]
    starts = F.pad(lengths.cumsum(0), (1, 0)).int()
    longest = int(lengths.max())
    packed = qkv[mask]
    masked_softmax = torch.compile(_masked_softmax, dynamic=False) if compiled else None

    def select(way: str, result: Tensor) -> Tensor:
        return result if way == PACKED else result[mask]

    ways: dict[str, tuple[Tensor, Attend]] = {PADDED: (qkv, lambda x: _sdpa(x, mask))}
    if masked_softmax is not None:
        ways[COMPILED] = (qkv, lambda x: masked_softmax(x, mask))
    ways[PACKED] = (packed, lambda x: packed_attention(x, starts, longest))
    _, _, _, heads, channels = qkv.shape
    gflop = 4e-9 * heads * channels * float((lengths.double() ** 2).sum())
    size = f"{int(lengths.sum())} of {mask.numel()} tokens, {name}"
    forward = {way: _forward(*arguments) for way, arguments in ways.items()}
    # Two products forward; scores once more and four products backward.
    training = {way: _gradient(*arguments, mask) for way, arguments in ways.items()}
    # Queries, keys, values and the output; then all of these once more, its gradient, and three gradients.
    gbyte = 4e-9 * packed.numel() / 3 * 4
    return [
        measure_ways("attention", size, forward, gflop, options, select, gbyte=gbyte),
        measure_ways("attention and gradient", size, training, 3.5 * gflop, options, select, gbyte=3 * gbyte),
    ]


def _forward(qkv: Tensor, attend: Attend) -> Work:
    def call() -> Tensor:
        with torch.inference_mode():
            return attend(qkv)

    return call


def _gradient(qkv: Tensor, attend: Attend, mask: Tensor) -> Work:
    """A call that gives the gradient of queries, keys and values, for the same gradient of the real tokens' outputs."""
    leaf = qkv.clone().requires_grad_()
    grad = torch.randn(*mask.shape, *qkv.shape[-2:], generator=torch.Generator().manual_seed(1)).to(qkv.device)
    grad = grad * mask[..., None, None] if qkv.ndim == 5 else grad[mask]

    def call() -> Tensor:
        return torch.autograd.grad(attend(leaf), leaf, grad)[0]

    return call


def _sdpa(qkv: Tensor, mask: Tensor) -> Tensor:
    """(B, N, H, C) from (B, N, 3, H, C) and the mask (B, N) of real keys."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :]).transpose(1, 2)


def _masked_softmax(qkv: Tensor, mask: Tensor) -> Tensor:
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    weights = scores.masked_fill(~mask[:, None, None, :], -torch.inf).softmax(-1)
    return (weights @ v).transpose(1, 2)
