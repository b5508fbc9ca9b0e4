"""The Triton kernels of attention, in Triton's interpreter, against the plain path in double precision.

The interpreter multiplies bfloat16 wrongly, so that type is tested on a GPU only (test_attention.py).
"""

import os

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from eao.kernels import attention_torch

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("Triton's interpreter is off", allow_module_level=True)

from eao.kernels import attention_triton

# The interpreter computes with numpy, which warns of what the kernels mean to do with infinities.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")


def check(
    lengths, heads, channels, shared=False, masked=False, dtype=torch.float32, tolerance=1e-5, seed=0,
    kernels=attention_triton,
):  # fmt: skip
    """Both kernels' outputs and gradients lie within `tolerance` of the plain path's, relative to their size."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.tensor([0, *lengths]).cumsum(0).int()
    count, longest = sum(lengths), max(lengths, default=0)
    total = count // 2 + 1 if shared else count
    rows = torch.randint(total, (count,), generator=generator).int() if shared else None
    mask = torch.rand(count, generator=generator) < 0.4 if masked else None
    q, k, v = torch.randn(total, 3, heads, channels, generator=generator).to(dtype).unbind(1)
    grad = torch.randn(count, heads, channels, generator=generator).to(dtype)
    out, log_sums = kernels.forward(q, k, v, starts, longest, rows, mask)
    gradient = kernels.backward(grad, q, k, v, out, log_sums, starts, longest, rows, mask)
    exact = [x.double() for x in (q, k, v)]
    expected = attention_torch.attend(*exact, starts, rows, mask)
    expected_gradient = attention_torch.differentiate(grad.double(), *exact, starts, rows, mask)
    assert out.dtype == gradient.dtype == dtype
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=tolerance, atol=tolerance)


# The interpreter takes about 10 ms for a tile, so examples are few and sequences just over a tile long.
@settings(max_examples=15, deadline=None)
@example(lengths=[], channels=16, shared=False, masked=False, seed=0)
@example(lengths=[0, 0], channels=16, shared=True, masked=True, seed=0)
@example(lengths=[1, 65, 0, 64], channels=16, shared=True, masked=True, seed=0)
@given(
    lengths=st.lists(st.integers(0, 40), max_size=3),
    channels=st.sampled_from([8, 16, 24, 32, 64, 100, 128]),
    shared=st.booleans(),
    masked=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_sequences_of_any_length(lengths, channels, shared, masked, seed):
    check(lengths, 2, channels, shared, masked, seed=seed)


@pytest.mark.parametrize("channels", [16, 64, 128])
def test_several_tiles(channels):
    check([131, 3], 1, channels, masked=True)


def test_half_precision():
    # Weights and their gradients are rounded to 11 bits before the products, and results once more.
    check([33, 9], 2, 64, shared=True, masked=True, dtype=torch.float16, tolerance=4e-3)


def test_large_scores_do_not_overflow():
    starts = torch.tensor([0, 5], dtype=torch.int32)
    q, k, v = 30 * torch.randn(5, 3, 1, 16).unbind(1)[0], torch.full((5, 1, 16), 30.0), torch.randn(5, 1, 16)
    out, log_sums = attention_triton.forward(q, k, v, starts, 5, None, None)
    # All keys are equal, so the output is the mean; the sum of exponentials is far beyond float32.
    torch.testing.assert_close(out, v.mean(0).expand(5, 1, 16), rtol=1e-5, atol=1e-5)
    assert log_sums.abs().max() > 200 and log_sums.isfinite().all()


def test_a_sequence_without_any_real_key_gives_zeros_and_no_gradient():
    starts, mask = torch.tensor([0, 3, 5], dtype=torch.int32), torch.tensor([True, False, True, False, False])
    q, k, v = torch.randn(5, 3, 1, 16).unbind(1)
    out, log_sums = attention_triton.forward(q, k, v, starts, 3, None, mask)
    gradient = attention_triton.backward(torch.ones_like(out), q, k, v, out, log_sums, starts, 3, None, mask)
    assert out[:3].abs().min() > 0 and gradient[:3].abs().sum() > 0
    assert (out[3:] == 0).all() and (gradient[3:] == 0).all()


def test_tensors_of_any_strides():
    starts = torch.tensor([0, 4, 9], dtype=torch.int32)
    x = torch.randn(5, 9, 16, 2)
    views = [y.transpose(1, 2) for y in x.unbind(0)]  # channels not side by side
    q, k, v, grad, _ = views
    out, log_sums = attention_triton.forward(q, k, v, starts, 5, None, None)
    gradient = attention_triton.backward(grad, q, k, v, out, log_sums, starts, 5, None, None)
    torch.testing.assert_close(out, attention_torch.attend(q, k, v, starts, None, None), rtol=1e-5, atol=1e-5)
    expected = attention_torch.differentiate(grad, q, k, v, starts, None, None)
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-5)


def test_rows_at_no_position_get_no_gradient():
    by_position, rows = torch.randn(4, 3, 1, 8), torch.tensor([5, 1, 5, 0], dtype=torch.int32)
    summed = attention_triton._sum_by_row(by_position, rows, 7)
    expected = torch.zeros(7, 3, 1, 8)
    expected[[0, 1, 5]] = torch.stack([by_position[3], by_position[1], by_position[0] + by_position[2]])
    assert torch.equal(summed, expected)


FAULTS = {
    "no decay": ("mixed * decay[:, None]", "mixed"),
    "no decay of the sum": ("total = total * decay + ", "total = total + "),
    "peak stays": ("peak = new_peak\n", "peak = peak\n"),
    "no mask": ("    if mask is not None:\n        valid", "    if False:\n        valid"),
    "only the first row": ("positions = tl.load(rows + positions, mask=valid, other=0)", "positions = 0 * positions"),
    "queries without delta": (
        "d_scores = weights * (d_weights - delta_row[:, None])",
        "d_scores = weights * d_weights",
    ),
    "keys without delta": ("d_scores = weights * (d_weights - delta_row[None, :])", "d_scores = weights * d_weights"),
    "unscaled gradient of queries": ("dq_tile * scale", "dq_tile"),
    "unscaled gradient of keys": ("dk_tile * scale", "dk_tile"),
    "weights twice as large": ("dv_tile = tl.dot(weights.to", "dv_tile = tl.dot((2 * weights).to"),
    "masked keys get a gradient": ('scores = tl.where(is_real[:, None], scores, -float("inf"))', "scores = scores"),
    "rows in any order": ("tl.load(x + tl.load(order + i) * width", "tl.load(x + i * width"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_a_kernel_is_found(mutate, fault):
    example = {"lengths": [131, 3, 40], "heads": 1, "channels": 16, "shared": True, "masked": True}
    check(**example)
    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        check(**example, kernels=mutate(attention_triton, *FAULTS[fault]))
