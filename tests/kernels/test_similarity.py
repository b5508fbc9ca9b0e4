"""Top-k and rank counts, tile by tile, against the whole matrix of similarities."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eao.bench.latency import peak_memory
from eao.evaluation import metrics
from eao.kernels import similarity
from eao.kernels.similarity import count_ranks, topk_similarity


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(similarity, "_QUERIES", 3)
    monkeypatch.setattr(similarity, "_ITEMS", 5)


def random_rows(count, width, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def exact_rows(count, seed):
    """Rows whose cosines are exact in float32, 0, 1/2 or 1 and their negatives, so that ties are many and certain."""
    random = np.random.default_rng(seed)
    rows = random.choice([-1.0, 1.0], (count, 4)).astype(np.float32)
    single = random.random(count) < 0.5
    rows[single] *= np.eye(4, dtype=np.float32)[random.integers(4, size=single.sum())]
    return torch.from_numpy(rows * random.choice([0.5, 1.0, 8.0], (count, 1)).astype(np.float32))


def whole_matrix(queries, gallery):
    return metrics.similarity(queries.numpy(), gallery.numpy())


@pytest.mark.usefixtures("small_tiles")
@settings(max_examples=100, deadline=None)
@given(queries=st.integers(0, 11), items=st.integers(0, 17), k=st.integers(1, 20), seed=st.integers(0, 10**6))
def test_topk_orders_by_similarity_and_then_by_index(queries, items, k, seed):
    a, b = exact_rows(queries, seed), exact_rows(items, seed + 1)
    matrix = whole_matrix(a, b)
    expected = np.argsort(-matrix, axis=1, kind="stable")[:, :k]
    found = topk_similarity(a, b, k)
    np.testing.assert_array_equal(found.indices.numpy(), expected)
    np.testing.assert_array_equal(found.similarities.numpy(), np.take_along_axis(matrix, expected, 1))


@pytest.mark.usefixtures("small_tiles")
@settings(max_examples=100, deadline=None)
@given(queries=st.integers(1, 11), items=st.integers(1, 17), seed=st.integers(0, 10**6))
def test_ranks_are_those_of_the_metric_with_any_ties_and_positives(queries, items, seed):
    a, b = exact_rows(queries, seed), exact_rows(items, seed + 1)
    positives = torch.randint(items, (queries,), generator=torch.Generator().manual_seed(seed))
    counts = count_ranks(a, b, positives)
    matrix = whole_matrix(a, b)
    np.testing.assert_array_equal(counts.ranks().numpy(), metrics.ranks(matrix, positives.numpy()))
    best = metrics.ranks(matrix, positives.numpy(), break_ties="optimistically")
    np.testing.assert_array_equal(counts.better.numpy(), best)
    np.testing.assert_array_equal(counts.similarity.numpy(), matrix[np.arange(queries), positives])


@pytest.mark.usefixtures("small_tiles")
def test_random_rows_rank_as_in_the_whole_matrix():
    a, b = random_rows(40, 24), random_rows(70, 24, 1)
    matrix = whole_matrix(a, b)
    np.testing.assert_array_equal(count_ranks(a, b).ranks().numpy(), metrics.ranks(matrix))
    np.testing.assert_array_equal(topk_similarity(a, b, 9).indices.numpy(), np.argsort(-matrix, axis=1)[:, :9])


@pytest.mark.parametrize("items", [1, 4, 5, 6, 7, 13, 37])
def test_a_collapsed_embedding_gets_the_mean_of_all_places(small_tiles, items):
    # Wide rows of arbitrary numbers: the same product has to round alike in every tile.
    row = random_rows(1, 6144)
    counts = count_ranks(row.expand(items, -1), row.expand(items, -1))
    assert counts.ranks().tolist() == [(items - 1) / 2] * items
    assert counts.shared.tolist() == [items] * items


def test_a_collapsed_embedding_in_full_tiles():
    row = random_rows(1, 100)
    counts = count_ranks(row.expand(1500, -1), row.expand(5001, -1))
    assert (counts.ranks() == 2500).all()


@pytest.mark.usefixtures("small_tiles")
def test_a_right_item_that_is_not_a_number_has_no_similarity():
    a, b = random_rows(4, 3), random_rows(7, 3, 1)
    b[1] = torch.nan
    counts = count_ranks(a, b)
    assert counts.similarity.isnan().tolist() == [False, True, False, False]
    assert counts.better[1] == counts.shared[1] == 0
    kept = torch.tensor([0, 2, 3, 4, 5, 6])
    expected = count_ranks(a, b[kept], torch.tensor([0, 0, 1, 2]))  # the others rank as if it were not there
    assert torch.equal(counts.ranks()[[0, 2, 3]], expected.ranks()[[0, 2, 3]])


@pytest.mark.usefixtures("small_tiles")
def test_items_that_are_not_a_number_are_found_last():
    a, b = random_rows(4, 3), random_rows(7, 3, 1)
    b[[0, 4]] = torch.nan
    found = topk_similarity(a, b, 7)
    assert found.indices[:, 5:].tolist() == [[0, 4]] * 4
    assert (found.similarities[:, 5:] == -torch.inf).all()


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_gallery_on_the_disk(tmp_path, dtype):
    a, b = random_rows(7, 6), random_rows(23, 6, 1).numpy().astype(dtype)
    np.save(tmp_path / "gallery.npy", b)
    gallery = np.load(tmp_path / "gallery.npy", mmap_mode="r")
    expected = topk_similarity(a, torch.from_numpy(b), 4)
    found = topk_similarity(a, gallery, 4)
    assert torch.equal(found.indices, expected.indices) and torch.equal(found.similarities, expected.similarities)
    assert torch.equal(count_ranks(a, gallery).ranks(), count_ranks(a, torch.from_numpy(b)).ranks())


def test_zeros_of_either_sign_are_equal():
    keys = similarity._encode(torch.tensor([[0.0, -0.0, 0.0]]), torch.arange(3))
    assert similarity._decode(keys.topk(3).values).indices.tolist() == [[0, 1, 2]]


def test_autocast_changes_nothing():
    a, b = random_rows(7, 24), random_rows(23, 24, 1)
    expected = topk_similarity(a, b, 4)
    with torch.autocast("cpu", torch.bfloat16):
        found = topk_similarity(a, b, 4)
    assert torch.equal(found.similarities, expected.similarities)


def test_gradients_are_not_asked_for():
    a, b = random_rows(7, 24).requires_grad_(), random_rows(23, 24, 1).requires_grad_()
    assert not topk_similarity(a, b, 4).similarities.requires_grad
    assert not count_ranks(a, b).similarity.requires_grad


def test_memory_does_not_grow_with_the_number_of_similarities():
    a, b = random_rows(8192, 8), random_rows(16384, 8, 1)
    with peak_memory() as memory:
        topk_similarity(a, b, 10)
        count_ranks(a, b)
    # A tile has 16 MB, and comparisons with it 4 MB, of which malloc keeps some; the whole matrix has 537 MB.
    assert memory.growth < 4 * len(a) * len(b) / 2


@pytest.mark.gpu
def test_on_a_gpu():
    for seed in range(3):
        a, b = exact_rows(200, seed), exact_rows(300, seed + 1)
        found, expected = topk_similarity(a.cuda(), b.cuda(), 20), topk_similarity(a, b, 20)
        assert torch.equal(found.indices.cpu(), expected.indices)
        assert torch.equal(count_ranks(a.cuda(), b.numpy()).ranks().cpu(), count_ranks(a, b).ranks())


def test_wrong_arguments_are_refused():
    a, b = random_rows(3, 4), random_rows(5, 4)
    with pytest.raises(ValueError, match=r"of one width, not \[3, 4\], \[5, 3\]"):
        topk_similarity(a, b[:, :3], 1)
    with pytest.raises(ValueError, match="k must be at least 1, not 0"):
        topk_similarity(a, b, 0)
    for positives in ([0, 1], [0, 1, 5], [-1, 0, 1]):
        with pytest.raises(ValueError, match="positives must be 3 indices into a gallery of 5"):
            count_ranks(a, b, torch.tensor(positives))
    with pytest.raises(ValueError, match="positives must be 5 indices into a gallery of 3"):
        count_ranks(b, a)
