"""Attention, padded and packed, against the definition in double precision."""

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from eao.kernels import attention
from eao.kernels.attention import masked_attention, packed_attention


def definition(q, k, v, mask):
    scores = q.double() @ k.double().transpose(-1, -2) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None, :], -math.inf)
    return scores.softmax(-1) @ v.double()


def packed_definition(qkv, lengths, rows=None):
    by_position = qkv if rows is None else qkv[rows]
    parts = [
        part.permute(1, 2, 0, 3).unsqueeze(1).unbind(0) for part in by_position.split(lengths)
    ]  # each (1, H, N, C)
    return torch.cat([definition(*part, None)[0].transpose(0, 1) for part in parts])


def random_qkv(clips, heads, tokens, channels, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(clips, heads, tokens, channels, generator=generator).to(dtype) for _ in range(3)]


def packed_case(lengths, shared, seed=0, dtype=torch.float32, heads=2, channels=4):
    """Random qkv, where the sequences start, and rows that several positions share, or None."""
    generator = torch.Generator().manual_seed(seed)
    count = sum(lengths)
    total = count // 2 + 1 if shared else count
    rows = torch.randint(total, (count,), generator=generator).int() if shared else None
    qkv = torch.randn(total, 3, heads, channels, generator=generator, dtype=torch.float64).to(dtype)
    return qkv, starts_of(lengths), rows


def starts_of(lengths):
    return torch.tensor([0, *lengths]).cumsum(0).int()


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
    torch.testing.assert_close(masked_attention(q, k, v, mask), actual, rtol=1e-5, atol=1e-5)
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


@pytest.mark.parametrize("function", [attention, masked_attention])
def test_gradients(function):
    q, k, v = (x.requires_grad_() for x in random_qkv(2, 2, 5, 4, dtype=torch.float64))
    mask = torch.tensor([[True, True, False, True, False], [True] * 5])
    assert torch.autograd.gradcheck(lambda q, k, v: function(q, k, v, mask), (q, k, v))


def test_a_clip_without_any_real_token_gives_zeros_and_no_gradient():
    q, k, v = (x.requires_grad_() for x in random_qkv(2, 2, 3, 4))
    mask = torch.tensor([[True] * 3, [False] * 3])
    out = masked_attention(q, k, v, mask)
    out.sum().backward()
    assert out[0].abs().min() > 0
    assert all((x == 0).all() for x in (out[1], q.grad[1], k.grad[1], v.grad[1]))


@settings(max_examples=50, deadline=None)
@example(lengths=[20] * 7, shared=True, seed=0)  # more than are differentiated at once
@given(lengths=st.lists(st.integers(0, 20), max_size=6), shared=st.booleans(), seed=st.integers(0, 10**6))
def test_packed_sequences_of_any_length(lengths, shared, seed):
    qkv, starts, rows = packed_case(lengths, shared, seed)
    qkv.requires_grad_()
    actual = packed_attention(qkv, starts, max(lengths, default=0), rows)
    grad = torch.randn(actual.shape)
    (gradient,) = torch.autograd.grad(actual, qkv, grad)
    exact = qkv.detach().double().requires_grad_()
    expected = packed_definition(exact, lengths, rows) if sum(lengths) else exact[:0, 0]
    (expected_gradient,) = torch.autograd.grad(expected, exact, grad.double())
    torch.testing.assert_close(actual, expected.float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, expected_gradient.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lengths", [[3, 3, 1, 0, 2], []], ids=["ragged", "none"])
@pytest.mark.parametrize("shared", [False, True])
def test_packed_gradient(lengths, shared):
    qkv, starts, rows = packed_case(lengths, shared, dtype=torch.float64, heads=1, channels=2)
    assert torch.autograd.gradcheck(lambda x: packed_attention(x, starts, 3, rows), qkv.requires_grad_())


# Rounding of the output, 2^-8 and 2^-11, times values of up to about 4.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 3e-2), (torch.float16, 4e-3)])
def test_packed_in_half_precision(dtype, tolerance):
    lengths = [17, 5, 5, 1]
    qkv, starts, rows = packed_case(lengths, shared=True, dtype=dtype, channels=16)
    qkv.requires_grad_()
    actual = packed_attention(qkv, starts, 17, rows)
    actual.square().sum().backward()
    exact = qkv.detach().double().requires_grad_()
    expected = packed_definition(exact, lengths, rows)
    expected.square().sum().backward()
    assert actual.dtype == qkv.grad.dtype == dtype
    torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(qkv.grad.double(), exact.grad, rtol=tolerance, atol=4 * tolerance)


def test_a_sequence_gives_the_same_bits_alone_and_among_others():
    lengths = [9, 9, 4, 23]
    qkv, starts, _ = packed_case(lengths, shared=False, heads=4, channels=64)
    together = packed_attention(qkv, starts, 23)
    alone = [packed_attention(part, starts_of([len(part)]), len(part)) for part in qkv.split(lengths)]
    assert torch.equal(together, torch.cat(alone))


def test_packed_gradient_has_the_same_bits_in_every_run():
    qkv, starts, rows = packed_case([30, 41, 41, 7, 12], shared=True, heads=4, channels=64)
    qkv.requires_grad_()
    gradients = [torch.autograd.grad(packed_attention(qkv, starts, 41, rows).sum(), qkv)[0] for _ in range(3)]
    assert torch.equal(gradients[0], gradients[1]) and torch.equal(gradients[0], gradients[2])


def test_qkv_of_any_strides():
    qkv, starts, rows = packed_case([3, 5], shared=True)
    strided = qkv.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)
    torch.testing.assert_close(packed_attention(strided, starts, 5, rows), packed_attention(qkv, starts, 5, rows))


def test_dropout_keeps_the_mean_and_reaches_the_gradient():
    qkv, starts, rows = packed_case([6, 2], shared=True, heads=4000, channels=2)
    qkv[:, :, 1:] = qkv[:, :, :1]  # the heads are alike, so their mean is one over many draws
    qkv.requires_grad_()
    dropped = packed_attention(qkv, starts, 6, rows, dropout=0.5)
    # Standard deviation of a draw about 1, hence of a mean about 1 / 63.
    torch.testing.assert_close(dropped.mean(1), packed_attention(qkv, starts, 6, rows).mean(1), rtol=0, atol=0.1)
    assert (dropped == 0).any()
    dropped.sum().backward()
    assert qkv.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("starts", "longest"),
    [([0, 3], 3), ([1, 3, 5], 3), ([0, 4, 3, 5], 4), ([0, 3, 5], 2), ([0, 3, 6], 3)],
    ids=["too few", "no zero", "falling", "longer than said", "too many"],
)
def test_wrong_lengths_are_refused(starts, longest):
    with pytest.raises(ValueError, match="cu_seqlens must rise from 0 to the 5 positions"):
        packed_attention(torch.randn(5, 3, 1, 2), torch.tensor(starts, dtype=torch.int32), longest)


def test_wrong_shape_is_refused():
    with pytest.raises(ValueError, match=r"\(5, 6, 2\), not \(tokens, 3, heads, channels\)"):
        packed_attention(torch.randn(5, 6, 2), torch.tensor([0, 5], dtype=torch.int32), 5)


@pytest.mark.parametrize("shared", [False, True])
def test_packed_operator_is_well_formed(shared):
    qkv, starts, rows = packed_case([1, 0, 5, 3], shared)
    torch.library.opcheck(torch.ops.eao.packed_attention.default, (qkv.requires_grad_(), starts, 5, rows))


@pytest.mark.parametrize("token_major", [False, True])
def test_masked_operator_is_well_formed(token_major):
    mask = torch.tensor([[True, False, True], [False] * 3])
    qkv = random_qkv(2, 2, 3, 4)
    if token_major:  # as a linear layer gives them
        qkv = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in qkv]
    for given_mask in (mask, None):
        arguments = (*(x.requires_grad_() for x in qkv), given_mask)
        torch.library.opcheck(torch.ops.eao.masked_attention.default, arguments)


def test_compiles_as_one_graph():
    qkv, starts, rows = packed_case([1, 5, 3], shared=True)

    def layer(x):
        return packed_attention(x.tanh(), starts, 5, rows).square()

    # The graph is taken whole and differentiated, but not lowered to C++, which would take half a minute.
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for x in (qkv, torch.cat([qkv, qkv])):
        results = []
        for function in (layer, compiled):
            x = x.detach().requires_grad_()
            out = function(x)
            out.sum().backward()
            results.append((out.detach(), x.grad))
        torch.testing.assert_close(results[0], results[1])


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float16, 4e-3), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("channels", [16, 64, 100, 128])
@pytest.mark.parametrize("shared", [False, True])
def test_packed_on_a_gpu(dtype, tolerance, channels, shared):
    lengths = [130, 0, 1, 65, 64]
    qkv, starts, rows = packed_case(lengths, shared, dtype=dtype, heads=3, channels=channels)
    on_gpu = qkv.cuda().requires_grad_()
    actual = packed_attention(on_gpu, starts.cuda(), 130, rows.cuda() if shared else None)
    actual.square().sum().backward()
    exact = qkv.double().requires_grad_()
    expected = packed_definition(exact, lengths, rows)
    expected.square().sum().backward()
    torch.testing.assert_close(actual.cpu().double(), expected.detach(), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(on_gpu.grad.cpu().double(), exact.grad, rtol=tolerance, atol=8 * tolerance)


@pytest.mark.gpu
def test_masked_on_a_gpu():
    q, k, v = random_qkv(3, 4, 65, 64)
    mask = torch.rand(3, 65) < 0.5
    mask[:, 0] = True
    actual = attention(q.cuda(), k.cuda(), v.cuda(), mask.cuda())
    torch.testing.assert_close(actual.cpu(), definition(q, k, v, mask).float(), rtol=1e-4, atol=1e-4)
