"""The Triton kernels of the loss, in Triton's interpreter, against the plain path in double precision.

The interpreter multiplies bfloat16 wrongly, so that type is tested on a GPU only (test_contrastive.py).
"""

import os

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from eao.kernels import contrastive, contrastive_loss

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("Triton's interpreter is off", allow_module_level=True)

from eao.kernels import contrastive_triton

# The interpreter computes with numpy, which warns of what the kernels mean to do with infinities.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")


def random_rows(count, width, seed=0, dtype=torch.float32):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)).to(dtype)


def check(
    a, b, valid=None, offset=0, scale=20.0, margin=0.0, both=True, tolerance=1e-5, seed=0, kernels=contrastive_triton
):
    """Results and gradients lie within `tolerance` of the plain path's, relative to the largest of each."""
    row_weight, positive_weight = random_rows(2, len(a), seed + 1) / 1000
    column_weight = random_rows(len(b) if both else 0, 1, seed + 2).squeeze(1) / 1000
    weights = (row_weight, column_weight, positive_weight)
    actual = kernels.forward(a, b, valid, offset, scale, margin, both)
    gradients = kernels.backward(a, b, valid, *actual[:2], *weights, offset, scale, margin)
    exact = (a.double(), b.double(), valid)
    expected = contrastive._tiled_forward(*exact, offset, scale, margin, both)
    doubled = [weight.double() for weight in weights]
    expected_gradients = contrastive._tiled_backward(*exact, *expected[:2], *doubled, offset, scale, margin)
    assert [x.dtype for x in gradients] == [a.dtype, b.dtype]
    kept = contrastive.valid_rows(valid, offset, len(a))
    for x, y in zip(actual, expected, strict=True):
        if kept is not None and len(y) == len(kept):  # the positive of an invalid pair is never used
            x, y = x[kept[: len(y)]], y[kept[: len(y)]]
        torch.testing.assert_close(x.double(), y, rtol=tolerance, atol=tolerance)
    for x, y in zip(gradients, expected_gradients, strict=True):
        size = float(y.abs().max()) if y.numel() else 0.0
        torch.testing.assert_close(x.double(), y, rtol=tolerance, atol=10 * tolerance * size)


# The interpreter takes some 10 ms for a tile, so examples are few and hardly larger than a tile of 128 x 128 x 32.
@settings(max_examples=12, deadline=None)
@example(rows=0, columns=0, width=3, margin=0.0, both=True, share=None, seed=0)
@example(rows=0, columns=3, width=3, margin=0.0, both=True, share=0.5, seed=0)
@example(rows=130, columns=130, width=40, margin=0.3, both=True, share=0.7, seed=0)
@example(rows=5, columns=131, width=33, margin=0.3, both=False, share=0.0, seed=0)
@example(rows=1, columns=1, width=1, margin=0.0, both=True, share=None, seed=0)
@given(
    rows=st.integers(0, 40),
    columns=st.integers(0, 140),
    width=st.integers(1, 70),
    margin=st.sampled_from([0.0, 0.3]),
    both=st.booleans(),
    share=st.sampled_from([None, 0.0, 0.6]),
    seed=st.integers(0, 10**6),
)
def test_any_rows_of_any_columns(rows, columns, width, margin, both, share, seed):
    rows = min(rows, columns)
    offset = seed % (columns - rows + 1)
    a, b = random_rows(rows, width, seed), random_rows(columns, width, seed + 1)
    valid = None if share is None else torch.rand(columns, generator=torch.Generator().manual_seed(seed)) < share
    check(a, b, valid, offset, margin=margin, both=both, seed=seed)


def test_several_strips(monkeypatch):
    monkeypatch.setattr(contrastive_triton, "STRIP_ELEMENTS", 1)  # so that a strip is one row of tiles
    check(random_rows(260, 9), random_rows(260, 9, 1), torch.arange(260) % 3 != 1, margin=0.3)
    check(random_rows(140, 9), random_rows(260, 9, 1), offset=77, both=False)


def test_half_precision():
    # Embeddings are exact on both sides. The gradient of the logits and the unit rows are rounded to 11 bits.
    a, b = random_rows(130, 40, dtype=torch.float16), random_rows(130, 40, 1, dtype=torch.float16)
    check(a, b, margin=0.3, tolerance=1e-3)
    check(a, b.float(), tolerance=1e-3)


def test_rows_of_any_strides():
    a, b = random_rows(9, 40).T.contiguous().T, random_rows(9, 80, 1)[:, ::2]
    check(a, b)


def test_what_invalid_rows_hold_does_not_matter():
    a, b = random_rows(20, 8), random_rows(20, 8, 1)
    valid = torch.arange(20) % 4 != 2
    weights = (torch.ones(20), torch.ones(20), -2 * torch.ones(20))
    results = []
    for value in (1.0, torch.nan, torch.inf):
        x, y = (rows.masked_fill(~valid[:, None], value) for rows in (a, b))
        row, column, positive = contrastive_triton.forward(x, y, valid, 0, 20.0, 0.3, True)
        gradients = contrastive_triton.backward(x, y, valid, row, column, *weights, 0, 20.0, 0.3)
        results.append((row, column, positive[valid], *gradients))
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(other, results[0], strict=True))


def test_a_zero_row_stays_finite():
    a, b = random_rows(6, 8), random_rows(6, 8, 1)
    a[2] = 0
    check(a, b)


def test_tiny_weights_survive_half_precision():
    # Of a mean over very many pairs: their products are subnormal in float16 unless they are scaled.
    a, b = random_rows(20, 8, dtype=torch.float16), random_rows(20, 8, 1, dtype=torch.float16)
    row, column, _ = contrastive_triton.forward(a, b, None, 0, 20.0, 0.0, True)
    weight = torch.ones(20)
    gradients = [
        contrastive_triton.backward(
            a.float(), b.float(), None, row, column, *(size * w for w in (weight, weight, -2 * weight)), 0, 20.0, 0.0
        )
        for size in (1.0, 1e-12)
    ]
    halves = contrastive_triton.backward(
        a, b, None, row, column, *(2.0**-20 * w for w in (weight, weight, -2 * weight)), 0, 20.0, 0.0
    )
    for x, y, z in zip(*gradients, halves, strict=True):
        torch.testing.assert_close(1e12 * y, x, rtol=1e-5, atol=1e-5 * float(x.abs().max()))
        # float16's own smallest step is what is lost here.
        torch.testing.assert_close(z.float(), 2.0**-20 * x, rtol=5e-3, atol=1e-7)


@pytest.mark.parametrize("size", [0.0, 1e-36])
def test_a_gradient_of_nothing_is_no_nan(size):
    a, b, weight = random_rows(20, 8), random_rows(20, 8, 1), torch.full((20,), size)
    row, column, _ = contrastive_triton.forward(a, b, None, 0, 20.0, 0.0, True)
    for x in contrastive_triton.backward(a, b, None, row, column, weight, weight, -2 * weight, 0, 20.0, 0.0):
        assert x.abs().max() <= 100 * size


def test_the_loss_runs_on_the_kernels(monkeypatch):
    a, b = random_rows(70, 12), random_rows(70, 12, 1)
    valid = torch.arange(70) % 5 != 3
    results = []
    for used in (False, True):
        monkeypatch.setattr(contrastive, "use_triton", lambda x, used=used: used)
        x, y = a.clone().requires_grad_(), b.clone().requires_grad_()
        loss = contrastive_loss(x, y, "mms", valid=valid, rows=(0, 70)) + contrastive_loss(x, y, rows=(30, 70))
        loss.backward()
        results.append((loss.detach(), x.grad, y.grad))
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-6)
    assert not torch.equal(results[1][1], results[0][1])  # so they did not both take the plain path


FAULTS = {
    "no running product": ("tl.dot(x, y, product, ", "tl.dot(x, y, "),
    "no margin": ("tl.where(positive, margin, 0.0)", "0.0"),
    "unscaled columns": ("* x_scale[:, None] * y_scale[None, :]", "* x_scale[:, None]"),
    "invalid columns count": ('tl.where(column_valid[None, :], logits, float("-inf"))', "logits"),
    "invalid rows count": ('tl.where(row_valid[:, None], logits, float("-inf"))', "logits"),
    "unshifted rows": ("result = tl.exp(logits - shift[:, None])", "result = tl.exp(logits)"),
    "columns left out": ("result += tl.exp(logits - shift[None, :]) * weight[None, :]", "result += 0.0"),
    "positives left out": ("result += tl.where(positive, weight[:, None], 0.0)", "result += 0.0"),
    "only the last strip": ("tl.load(places, mask=mask, other=0.0) + total", "total"),
    "only the last tile": ("total = tl.dot(g, unit.to(g.dtype), total, ", "total = tl.dot(g, unit.to(g.dtype), "),
    "rows not of unit length": ("y.to(tl.float32) * scale[:, None]", "y.to(tl.float32)"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_a_kernel_is_found(mutate, monkeypatch, fault):
    valid = torch.arange(140) % 5 != 3
    example = {"a": random_rows(140, 40), "b": random_rows(140, 40, 1), "valid": valid, "margin": 0.3}
    mutated = mutate(contrastive_triton, *FAULTS[fault])
    for kernels in (contrastive_triton, mutated):
        monkeypatch.setattr(kernels, "STRIP_ELEMENTS", 1)
    check(**example)
    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        check(**example, kernels=mutated)
