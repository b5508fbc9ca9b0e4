"""The contrastive loss against its definition in double precision."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eao.kernels import contrastive_loss


def definition(a, b, kind, temperature):
    """Eq. 4 of the paper, and the authors' margin loss, pair by pair."""
    a, b = (np.asarray(x, dtype=np.float64) for x in (a, b))
    similarity = (a / np.linalg.norm(a, axis=1, keepdims=True)) @ (b / np.linalg.norm(b, axis=1, keepdims=True)).T
    logits = similarity / temperature if kind == "norm-softmax" else similarity - 0.001 * np.eye(len(a))
    total = 0.0
    for matrix in (logits, logits.T):
        for i, row in enumerate(matrix):
            total += (np.log(np.sum(np.exp(row - row.max()))) + row.max() - row[i]) / len(a)
    return total


def random_pair(pairs, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(pairs, width, generator=generator)
    return a, a + torch.randn(pairs, width, generator=generator)


@pytest.mark.parametrize("kind", ["norm-softmax", "mms"])
@pytest.mark.parametrize("pairs", [1, 3, 17, 65, 300])
def test_odd_numbers_of_pairs(kind, pairs):
    a, b = random_pair(pairs, 24)
    expected = definition(a, b, kind, 0.05)
    assert contrastive_loss(a, b, kind).item() == pytest.approx(expected, rel=1e-5, abs=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    pairs=st.integers(1, 20),
    width=st.integers(1, 9),
    temperature=st.floats(0.01, 2.0),
    scale=st.floats(0.01, 100.0),
    seed=st.integers(0, 10**6),
)
def test_length_of_embeddings_and_order_of_pairs_do_not_matter(pairs, width, temperature, scale, seed):
    a, b = random_pair(pairs, width, seed)
    value = contrastive_loss(a, b, temperature=temperature).item()
    close = {"rel": 1e-4, "abs": 1e-4}
    assert value == pytest.approx(definition(a, b, "norm-softmax", temperature), **close)
    assert contrastive_loss(scale * a, b, temperature=temperature).item() == pytest.approx(value, **close)
    assert contrastive_loss(b, a, temperature=temperature).item() == pytest.approx(value, **close)
    assert contrastive_loss(a.flip(0), b.flip(0), temperature=temperature).item() == pytest.approx(value, **close)


def test_margin_loss_has_no_temperature():
    a, b = random_pair(7, 5)
    assert contrastive_loss(a, b, "mms", 0.01).item() == contrastive_loss(a, b, "mms", 1.0).item()


def test_one_pair_has_no_negatives():
    a, b = random_pair(1, 5)
    assert contrastive_loss(a, b).item() == 0.0


def test_no_pairs_are_not_a_number_but_give_no_gradient():
    a = torch.zeros(0, 5, requires_grad=True)
    b = torch.zeros(0, 5, requires_grad=True)
    loss = contrastive_loss(a, b)
    assert math.isnan(loss.item())
    loss.backward()
    assert a.grad.shape == (0, 5)


def test_a_zero_row_stays_finite():
    a, b = random_pair(4, 5)
    a[2] = 0
    a.requires_grad_()
    loss = contrastive_loss(a, b)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(a.grad).all()


def test_half_precision_embeddings_are_compared_in_float32():
    a, b = random_pair(17, 24)
    actual = contrastive_loss(a.bfloat16(), b.bfloat16())
    assert actual.dtype == torch.float32
    expected = definition(a.bfloat16().float(), b.bfloat16().float(), "norm-softmax", 0.05)
    assert actual.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["norm-softmax", "mms"])
def test_gradients(kind):
    a, b = random_pair(5, 4)
    a, b = a.requires_grad_(), b.requires_grad_()
    contrastive_loss(a, b, kind, 0.5).backward()
    for x, other, first in ((a, b, True), (b, a, False)):
        numeric = np.zeros(x.shape)
        for index in np.ndindex(*x.shape):
            for sign in (1, -1):
                moved = x.detach().double().numpy().copy()
                moved[index] += sign * 1e-5
                pair = (moved, other.detach()) if first else (other.detach(), moved)
                numeric[index] += sign * definition(*pair, kind, 0.5) / 2e-5
        np.testing.assert_allclose(x.grad.numpy(), numeric, rtol=1e-3, atol=1e-5)


def test_unknown_kind():
    with pytest.raises(ValueError, match="triplet"):
        contrastive_loss(*random_pair(2, 2), kind="triplet")
