"""The contrastive loss, as its formula and tile by tile, against its definition in double precision."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eao.bench.latency import peak_memory
from eao.kernels import contrastive, contrastive_loss

KINDS = ["norm-softmax", "mms"]


def definition(a, b, kind="norm-softmax", temperature=0.05):
    """Eq. 4 of the paper, and the authors' margin loss, pair by pair: (N, D) float64 with gradients."""
    logits = (a / a.norm(dim=1, keepdim=True)) @ (b / b.norm(dim=1, keepdim=True)).T
    logits = logits / temperature if kind == "norm-softmax" else logits - 0.001 * torch.eye(len(a))
    total = a.new_zeros(())
    for matrix in (logits, logits.T):
        for i, row in enumerate(matrix):
            total = total + ((row - row.max()).exp().sum().log() + row.max() - row[i]) / len(a)
    return total


def random_pair(pairs, width, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(pairs, width, generator=generator, dtype=torch.float64)
    b = a + torch.randn(pairs, width, generator=generator, dtype=torch.float64)
    return a.to(dtype), b.to(dtype)


def with_gradients(function, a, b, *args):
    """The value and the gradients of both arguments."""
    a, b = a.detach().clone().requires_grad_(), b.detach().clone().requires_grad_()
    value = function(a, b, *args)
    value.backward()
    return value.detach(), a.grad, b.grad


@pytest.fixture(params=["whole", "tiled"])
def way(request, monkeypatch):
    """The formula over the whole matrix, or the operator with tiles so small that few pairs need several."""
    monkeypatch.setattr(contrastive, "_TILE", 5 if request.param == "tiled" else 2048)
    return request.param


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(contrastive, "_TILE", 5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pairs", [1, 3, 5, 17, 65])
def test_value_and_gradients_in_double_precision(way, kind, pairs):
    a, b = random_pair(pairs, 6, dtype=torch.float64)
    actual, expected = with_gradients(contrastive_loss, a, b, kind), with_gradients(definition, a, b, kind)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pairs", [1, 3, 17, 65, 300])
def test_value_and_gradients_in_float32(way, kind, pairs):
    a, b = random_pair(pairs, 24)
    actual = with_gradients(contrastive_loss, a, b, kind)
    expected = with_gradients(definition, a.double(), b.double(), kind)
    assert all(x.dtype == torch.float32 for x in actual)
    # float32 logits of up to 20 are off by about 1e-6, and so, relatively, are their exponentials.
    torch.testing.assert_close(actual, tuple(x.float() for x in expected), rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("small_tiles")
@settings(max_examples=60, deadline=None)
@given(
    pairs=st.integers(1, 23),
    width=st.integers(1, 9),
    kind=st.sampled_from(KINDS),
    temperature=st.floats(0.05, 2.0),
    share=st.sampled_from([0.0, 0.3, 0.8, 1.0]),
    cuts=st.lists(st.integers(0, 23), max_size=3),
    seed=st.integers(0, 10**6),
)
def test_any_valid_pairs_in_any_ranges_of_rows(pairs, width, kind, temperature, share, cuts, seed):
    a, b = random_pair(pairs, width, seed, torch.float64)
    valid = torch.rand(pairs, generator=torch.Generator().manual_seed(seed)) < share
    valid[seed % pairs] = True
    expected = with_gradients(
        lambda a, b: definition(a[valid], b[valid], kind, temperature), a, b
    )  # the others get a gradient of zero
    bounds = [0, *sorted(min(cut, pairs) for cut in cuts), pairs]
    a, b = (x.masked_fill(~valid[:, None], math.nan) for x in (a, b))

    def in_ranges(a, b):
        ranges = itertools.pairwise(bounds)
        return sum(contrastive_loss(a, b, kind, temperature, valid, rows) for rows in ranges)

    actual = with_gradients(in_ranges, a, b)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11)
    whole = with_gradients(lambda a, b: contrastive_loss(a, b, kind, temperature, valid), a, b)
    torch.testing.assert_close(whole, expected, rtol=1e-9, atol=1e-11)


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
    assert contrastive_loss(scale * a, b, temperature=temperature).item() == pytest.approx(value, **close)
    assert contrastive_loss(b, a, temperature=temperature).item() == pytest.approx(value, **close)
    assert contrastive_loss(a.flip(0), b.flip(0), temperature=temperature).item() == pytest.approx(value, **close)


def test_margin_loss_has_no_temperature(way):
    a, b = random_pair(7, 5)
    assert contrastive_loss(a, b, "mms", 0.01).item() == contrastive_loss(a, b, "mms", 1.0).item()


def test_one_pair_has_no_negatives(way):
    a, b = random_pair(1, 5)
    assert contrastive_loss(a, b).item() == 0.0


@pytest.mark.parametrize("rows", [None, (0, 0)])
def test_no_pairs_are_not_a_number_but_give_no_gradient(way, rows):
    a = torch.zeros(0, 5, requires_grad=True)
    b = torch.zeros(0, 5, requires_grad=True)
    loss = contrastive_loss(a, b, rows=rows)
    assert math.isnan(loss.item())
    loss.backward()
    assert a.grad.shape == b.grad.shape == (0, 5)


def test_no_valid_pair_is_not_a_number_but_gives_no_gradient(way):
    a, b = random_pair(7, 5)
    value, *gradients = with_gradients(
        lambda a, b: contrastive_loss(a, b, valid=torch.zeros(7, dtype=torch.bool)), a, b
    )
    assert math.isnan(value.item())
    assert all((gradient == 0).all() for gradient in gradients)


def test_a_zero_row_stays_finite(way):
    a, b = random_pair(7, 5)
    a[2] = 0
    value, *gradients = with_gradients(contrastive_loss, a, b)
    assert torch.isfinite(value)
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_both_ways_agree_on_rows_shorter_than_the_floor(monkeypatch):
    a, b = random_pair(7, 5, dtype=torch.float64)
    a[3] *= 1e-10  # its length does not depend on it, so its gradient is not projected
    whole = with_gradients(contrastive_loss, a, b)
    monkeypatch.setattr(contrastive, "_TILE", 5)
    torch.testing.assert_close(with_gradients(contrastive_loss, a, b), whole, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_embeddings_are_compared_in_float32(way, dtype):
    a, b = random_pair(17, 24, dtype=dtype)
    value, *gradients = with_gradients(contrastive_loss, a, b)
    expected, *exact = with_gradients(definition, a.double(), b.double())
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    for gradient, reference in zip(gradients, exact, strict=True):
        assert gradient.dtype == dtype
        # Rounded once, at the end; float16 has no finer steps than 6e-8.
        torch.testing.assert_close(gradient.double(), reference, rtol=torch.finfo(dtype).eps, atol=1e-7)


def test_autocast_changes_nothing(way):
    a, b = random_pair(17, 24)
    expected = with_gradients(contrastive_loss, a, b)

    def under_autocast(a, b):
        with torch.autocast("cpu", torch.bfloat16):
            return contrastive_loss(a, b)

    actual = with_gradients(under_autocast, a, b)
    assert all(torch.equal(x, y) for x, y in zip(actual, expected, strict=True))


def test_the_same_bits_in_every_run(way):
    a, b = random_pair(300, 64)
    first = with_gradients(contrastive_loss, a, b)
    for _ in range(3):
        again = with_gradients(contrastive_loss, a, b)
        assert all(torch.equal(x, y) for x, y in zip(again, first, strict=True))


@pytest.mark.usefixtures("small_tiles")
def test_embeddings_of_any_strides():
    a, b = random_pair(13, 6, dtype=torch.float64)
    expected = with_gradients(definition, a, b)
    strided = [x.T.contiguous().T for x in (a, b)]
    torch.testing.assert_close(with_gradients(contrastive_loss, *strided), expected, rtol=1e-10, atol=1e-12)


def test_memory_does_not_grow_with_the_square_of_the_pairs():
    pairs = 8192
    a, b = random_pair(pairs, 8)
    with peak_memory() as memory:
        with_gradients(contrastive_loss, a, b)
    # Some five tiles of 16 MB; a single matrix of all similarities has 268 MB.
    assert memory.growth < 4 * pairs**2 / 2


@pytest.mark.parametrize("valid", [None, torch.tensor([True, False, True, True, True, False, True])])
def test_operator_is_well_formed(small_tiles, valid):
    a, b = random_pair(7, 4)
    for rows, offset, both in ((a, 0, True), (a[2:6], 2, False)):
        arguments = (rows.clone().requires_grad_(), b.clone().requires_grad_(), valid, offset, 2.0, 0.1, both)
        torch.library.opcheck(torch.ops.eao.contrastive.default, arguments)


@pytest.mark.usefixtures("small_tiles")
def test_compiles_as_one_graph():
    def loss(a, b):
        return contrastive_loss(a.tanh(), b, temperature=0.5)

    # The graph is taken whole and differentiated, but not lowered to C++, which would take half a minute.
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=True)
    for pairs in (7, 12):
        a, b = random_pair(pairs, 4)
        torch.testing.assert_close(with_gradients(compiled, a, b), with_gradients(loss, a, b))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("pairs", [0, 1, 65, 300])
def test_on_a_gpu(kind, dtype, pairs):
    a, b = random_pair(pairs, 72, dtype=dtype)
    valid = torch.arange(pairs) % 5 != 3
    actual = with_gradients(lambda a, b: contrastive_loss(a, b, kind, 0.05, valid.cuda()), a.cuda(), b.cuda())
    expected = with_gradients(lambda a, b: contrastive_loss(a, b, kind, 0.05, valid), a.double(), b.double())
    # Logits of up to 20 from products of rounded values, hence a few rounding steps of each type in the gradients.
    tolerance = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 4e-2}[dtype]
    for x, y in zip(actual, expected, strict=True):
        size = float(y.abs().max()) if y.numel() else 0.0
        torch.testing.assert_close(x.cpu().double(), y, rtol=tolerance, atol=tolerance * size, equal_nan=True)


def test_unknown_kind():
    with pytest.raises(ValueError, match="triplet"):
        contrastive_loss(*random_pair(2, 2), kind="triplet")


def test_shapes_that_do_not_fit_are_refused():
    a, b = random_pair(4, 3)
    with pytest.raises(ValueError, match=r"\[4, 3\], \[3, 3\]"):
        contrastive_loss(a, b[:3])
    with pytest.raises(ValueError, match=r"valid must tell 4 pairs, not \[3\]"):
        contrastive_loss(a, b, valid=torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="rows 2 to 5 do not lie within 4 pairs"):
        contrastive_loss(a, b, rows=(2, 5))
