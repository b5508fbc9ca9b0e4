"""Ranking a gallery for each query by cosine similarity, without the matrix of all similarities.

The gallery is read block by block, so it may be a memory-mapped file larger than memory. Tiles all have one shape, the
last overlapping the one before, and sides that are multiples of 16, filled up with zeros, since matrix products treat
what is left over apart: so a product rounds alike everywhere, and equal items keep equal similarities.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from eao.kernels.contrastive import normalize

# Q queries, G gallery items, E embedding

Gallery = Tensor | NDArray[np.floating]

_QUERIES, _ITEMS = 1024, 4096  # of one tile: 16 MB
_MULTIPLE = 16
_INDEX_BITS = 0xFFFFFFFF


class Neighbours(NamedTuple):
    """The most similar items of each query, best first: both (Q, K)."""

    similarities: Tensor
    indices: Tensor


class RankCounts(NamedTuple):
    """How the right item of each query compares with the gallery, each (Q,).

    Attributes:
        better: int64, how many items are more similar to the query.
        shared: int64, how many are exactly as similar, the right item included.
        similarity: float32, of the right item. Where it is NaN both counts are 0.
    """

    better: Tensor
    shared: Tensor
    similarity: Tensor

    def ranks(self) -> Tensor:
        """(Q,) float64, 0 = first; an item that shares its place with others gets the mean of their places."""
        return self.better + (self.shared - 1).clamp_min(0) / 2


def topk_similarity(queries: Tensor, gallery: Gallery, k: int) -> Neighbours:
    """The `k` items most similar to each query, exactly: all are compared, in float32.

    Of equally similar items the one with the lower index comes first. A similarity of NaN counts as -inf.

    Args:
        queries: (Q, E) float; need not be normalised. The results are on their device.
        gallery: (G, E) float, a tensor on any device, or an array, which may be memory-mapped.
        k: how many; all if there are fewer.

    Raises:
        ValueError: for shapes that do not fit, or k below 1.

    Example:
        >>> topk_similarity(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0], [3.0, 0.0]]), 1).indices
        tensor([[1]])
    """
    _check(queries, gallery)
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    best = torch.full((len(queries), min(k, len(gallery))), torch.iinfo(torch.int64).min, device=queries.device)
    with torch.no_grad():
        for tile in _tiles(queries, gallery):
            rows = slice(tile.row, tile.row + len(tile.similarity))
            best[rows] = torch.cat([best[rows], _best_keys(tile, best.shape[1])], 1).topk(best.shape[1]).values
    return _decode(best)


def count_ranks(queries: Tensor, gallery: Gallery, positives: Tensor | None = None) -> RankCounts:
    """Where the right item of each query stands in the gallery, as retrieval metrics need it.

    Args:
        queries: (Q, E) float; need not be normalised. The results are on their device.
        gallery: (G, E) float, a tensor on any device, or an array, which may be memory-mapped.
        positives: (Q,) int64, the right item of each query; by default item i for query i.

    Raises:
        ValueError: for shapes that do not fit, or right items that are not in the gallery.
    """
    _check(queries, gallery)
    if positives is None:
        positives = torch.arange(len(queries), device=queries.device)
    if positives.shape != (len(queries),) or (
        len(positives) and not 0 <= int(positives.min()) <= int(positives.max()) < len(gallery)
    ):
        raise ValueError(f"positives must be {len(queries)} indices into a gallery of {len(gallery)}")
    positives = positives.to(queries.device)
    right = torch.full((len(queries),), torch.nan, device=queries.device)
    better, shared = torch.zeros(2, len(queries), dtype=torch.int64, device=queries.device)
    with torch.no_grad():
        # Equality with the right item must be that of the metric, so its similarity comes from the very tile that holds
        # it, not from a product of another shape. With item i for query i that is one tile in each row of tiles.
        for tile in _tiles(queries, gallery, holding=positives):
            own = positives[tile.row : tile.row + len(tile.similarity)] - tile.item
            inside = (own >= 0) & (own < tile.similarity.shape[1])
            found = tile.similarity.gather(1, own.clamp(0, tile.similarity.shape[1] - 1)[:, None]).squeeze(1)
            right[tile.row : tile.row + len(own)][inside] = found[inside]
        for tile in _tiles(queries, gallery):
            rows = slice(tile.row, tile.row + len(tile.similarity))
            better[rows] += (tile.similarity > right[rows, None]).sum(1)
            shared[rows] += (tile.similarity == right[rows, None]).sum(1)
    return RankCounts(better, shared, right)


class _Tile(NamedTuple):
    """Similarities of consecutive queries and items, valid until the next tile, and the first query and item."""

    row: int
    item: int
    similarity: Tensor


def _tiles(queries: Tensor, gallery: Gallery, holding: Tensor | None = None) -> Iterator[_Tile]:
    """Every similarity once, or only the tiles in which a query meets its item `holding` (Q,)."""
    rows, items = _starts(len(queries), _QUERIES), _starts(len(gallery), _ITEMS)
    height, width = min(len(queries), _QUERIES), min(len(gallery), _ITEMS)
    extra_rows, extra_items = -height % _MULTIPLE, -width % _MULTIPLE
    queries = _fill_up(normalize(queries.detach().float()), extra_rows)
    buffer = queries.new_empty(height + extra_rows, width + extra_items)
    for item, done_items in items:
        block = None
        for row, done_rows in rows:
            if holding is not None:
                wanted = holding[row + done_rows : row + height]
                if not bool(((wanted >= item + done_items) & (wanted < item + width)).any()):
                    continue
            if block is None:
                block = _fill_up(normalize(_block(gallery, item, item + width, queries.device)), extra_items)
            # With a given output, autocast does not round the product.
            torch.mm(queries[row : row + len(buffer)], block.T, out=buffer)
            yield _Tile(row + done_rows, item + done_items, buffer[done_rows:height, done_items:width])


def _fill_up(rows: Tensor, count: int) -> Tensor:
    """With that many rows of zeros behind them."""
    return F.pad(rows, (0, 0, 0, count)) if count else rows


def _starts(count: int, size: int) -> list[tuple[int, int]]:
    """Where stretches of equal length that cover `count` begin, and how much of each lay in the one before."""
    size = min(size, count)
    starts = [min(start, count - size) for start in range(0, count, size or 1)]
    return [(start, i * size - start) for i, start in enumerate(starts)]


def _block(gallery: Gallery, start: int, stop: int, device: torch.device) -> Tensor:
    """Items as a float32 tensor, read from the disk only now if memory-mapped."""
    part = gallery[start:stop]
    if isinstance(part, Tensor):
        return part.detach().to(device, torch.float32)
    return torch.from_numpy(np.array(part, dtype=np.float32)).to(device)


# Keys hold similarity and index of an item in one integer, so that a single selection orders by both. Floats of one
# sign are ordered like the integers of the same bits, negative ones the other way round.


def _best_keys(tile: _Tile, k: int) -> Tensor:
    """Keys of the best `k` items of a tile, or of all, in any order."""
    similarity = tile.similarity.nan_to_num_(-torch.inf, torch.inf, -torch.inf)
    k = min(k, similarity.shape[1])
    values, columns = similarity.topk(k, sorted=False)
    keys = _encode(values, tile.item + columns)
    # Where more items are equal to the last than have a place, those chosen may not be the first ones.
    is_tied = (similarity >= values.amin(1, keepdim=True)).sum(1) > k
    if bool(is_tied.any()):
        columns = torch.arange(similarity.shape[1], device=similarity.device)
        keys[is_tied] = _encode(similarity[is_tied], tile.item + columns).topk(k, sorted=False).values
    return keys


def _encode(similarity: Tensor, index: Tensor) -> Tensor:
    """(q, g) float32 and the indices (q, g) or (g,) -> (q, g) int64."""
    bits = (similarity + 0.0).view(torch.int32)  # -0.0 becomes 0.0
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    return (ordered << 32) + (_INDEX_BITS - index)


def _decode(keys: Tensor) -> Neighbours:
    ordered = (keys >> 32).int()
    bits = torch.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered)
    return Neighbours(bits.view(torch.float32), _INDEX_BITS - (keys & _INDEX_BITS))


def _check(queries: Tensor, gallery: Gallery) -> None:
    if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"queries and gallery must be (n, width) of one width, not {[*queries.shape]}, {[*gallery.shape]}"
        )
