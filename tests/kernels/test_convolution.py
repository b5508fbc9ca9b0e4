"""Convolution over ragged clips against torch's, clip by clip."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from eao.kernels import convolution
from eao.kernels.convolution import ragged_conv1d, ranges


@st.composite
def problems(draw):
    stride, taps = draw(st.sampled_from([1, 2])), draw(st.sampled_from([1, 3, 9]))
    lengths = draw(st.lists(st.integers(0, 12), max_size=5))
    wanted = [draw(st.integers(0, -(-n // stride))) for n in lengths]
    return stride, taps, torch.tensor(lengths, dtype=torch.int64), torch.tensor(wanted, dtype=torch.int64)


def by_clip(x, weight, lengths, wanted, stride):
    outputs = []
    for clip, count in zip(x.split(lengths.tolist()), wanted.tolist(), strict=True):
        if count:
            padding = (0, weight.shape[-1] // 2)
            out = F.conv2d(clip.T[None, :, None], weight, stride=stride, padding=padding)[0, :, 0].T
            outputs.append(out[:count])
    return torch.cat(outputs) if outputs else x.new_zeros(0, len(weight))


@settings(max_examples=40, deadline=None)
@given(problems())
def test_outputs_equal_those_of_each_clip_alone(problem):
    stride, taps, lengths, wanted = problem
    x = torch.randn(int(lengths.sum()), 3, dtype=torch.float64)
    weight = torch.randn(4, 3, 1, taps, dtype=torch.float64)
    torch.testing.assert_close(
        ragged_conv1d(x, weight, lengths, wanted, stride), by_clip(x, weight, lengths, wanted, stride)
    )


@settings(max_examples=20, deadline=None)
@given(problems())
def test_gradients_equal_those_of_each_clip_alone(problem):
    stride, taps, lengths, wanted = problem
    x = torch.randn(int(lengths.sum()), 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 3, 1, taps, dtype=torch.float64, requires_grad=True)
    actual = ragged_conv1d(x, weight, lengths, wanted, stride)
    expected = by_clip(x, weight, lengths, wanted, stride)
    grad = torch.randn_like(actual)
    if not len(grad):
        return
    for a, e in zip(
        torch.autograd.grad(actual, (x, weight), grad), torch.autograd.grad(expected, (x, weight), grad), strict=True
    ):
        torch.testing.assert_close(a, e)


def test_more_windows_than_a_block_holds(monkeypatch):
    x, weight = torch.randn(700, 2, requires_grad=True), torch.randn(3, 2, 1, 9, requires_grad=True)
    lengths = torch.tensor([700])

    def run():
        out = ragged_conv1d(x, weight, lengths, lengths)
        return out, *torch.autograd.grad(out.square().sum(), (x, weight))

    whole = run()
    monkeypatch.setattr(convolution, "_BLOCK", 1)  # 256 rows at a time
    for a, b in zip(run(), whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)  # sums of 700 float32 products in another order


def test_autocast_multiplies_in_its_type():
    x, weight, lengths = torch.randn(5, 2), torch.randn(3, 2, 1, 9), torch.tensor([5])
    with torch.autocast("cpu", torch.bfloat16):
        out = ragged_conv1d(x, weight, lengths, lengths)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), ragged_conv1d(x, weight, lengths, lengths), rtol=0.05, atol=0.1)


@pytest.mark.parametrize(("start", "length", "step", "expected"), [([5, 0, 9], [2, 0, 3], 2, [5, 7, 9, 11, 13])])
def test_ranges(start, length, step, expected):
    assert ranges(torch.tensor(start), torch.tensor(length), step).tolist() == expected
