"""Attention against the definition in double precision."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eao.kernels import attention


def definition(q, k, v, mask):
    scores = q.double() @ k.double().transpose(-1, -2) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None, :], -math.inf)
    return scores.softmax(-1) @ v.double()


def random_qkv(clips, heads, tokens, channels, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(clips, heads, tokens, channels, generator=generator).to(dtype) for _ in range(3)]


@pytest.mark.parametrize("tokens", [1, 3, 17, 65, 116])
@pytest.mark.parametrize("channels", [8, 64])
def test_every_key_real(tokens, channels):
    q, k, v = random_qkv(2, 3, tokens, channels)
    expected = definition(q, k, v, None).float()
    # float32 sums of a few dozen products
    torch.testing.assert_close(attention(q, k, v), expected, rtol=1e-5, atol=1e-5)
    whole = torch.ones(2, tokens, dtype=torch.bool)
    torch.testing.assert_close(attention(q, k, v, whole), expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=50, deadline=None)
@given(clips=st.integers(1, 3), heads=st.integers(1, 3), tokens=st.integers(1, 20), seed=st.integers(0, 10**6))
def test_any_mask(clips, heads, tokens, seed):
    q, k, v = random_qkv(clips, heads, tokens, 4, seed)
    mask = torch.rand(clips, tokens, generator=torch.Generator().manual_seed(seed)) < 0.4
    mask[torch.arange(clips), torch.arange(clips) % tokens] = True
    actual = attention(q, k, v, mask)
    torch.testing.assert_close(actual, definition(q, k, v, mask).float(), rtol=1e-5, atol=1e-5)
    hidden = ~mask[:, None, :, None]
    changed = attention(q, k.masked_fill(hidden, 50.0), v.masked_fill(hidden, 1e4), mask)
    torch.testing.assert_close(changed, actual, rtol=1e-5, atol=1e-5)


def test_large_scores_do_not_overflow():
    q, k, v = random_qkv(1, 1, 5, 4)
    actual = attention(100 * q, 100 * k, v)
    torch.testing.assert_close(actual, definition(100 * q, 100 * k, v, None).float(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float64, 1e-12)])
def test_other_types(dtype, tolerance):
    q, k, v = random_qkv(2, 2, 17, 8, dtype=dtype)
    actual = attention(q, k, v)
    assert actual.dtype == dtype
    torch.testing.assert_close(actual.double(), definition(q, k, v, None), rtol=tolerance, atol=tolerance)


def test_gradients():
    q, k, v = (x.requires_grad_() for x in random_qkv(2, 2, 5, 4, dtype=torch.float64))
    mask = torch.tensor([[True, True, False, True, False], [True] * 5])
    assert torch.autograd.gradcheck(lambda q, k, v: attention(q, k, v, mask), (q, k, v))
