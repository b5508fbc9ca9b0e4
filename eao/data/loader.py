"""Batches of a data set: an order that seed and epoch decide alone, reading in worker processes, shares of a batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch

from eao.data.item import ClipDataset, stack
from eao.data.text import TextEncoder
from eao.errors import ConfigError, EaoError
from eao.model.batch import Batch


class BatchLoader(Protocol):
    """What training and evaluation iterate over."""

    @property
    def dataset(self) -> ClipDataset:
        """Where the clips come from."""

    def __len__(self) -> int:
        """Batches in an epoch."""
        ...

    def set_epoch(self, epoch: int, skip: int = 0) -> None:
        """Choose the epoch whose order the next iteration follows, and how many of its batches to leave out."""
        ...

    def __iter__(self) -> Iterator[Batch]:
        """Batches with text, from the first that is not skipped."""
        ...


@runtime_checkable
class Prefetching(Protocol):
    """A data set that reads several items faster than one after the other."""

    def prefetch(self, indices: Sequence[int]) -> None:
        """Read what `clips` needs for these items, which come next."""
        ...


class Share(NamedTuple):
    """Which part of each batch is this process's own: the `rank`-th of `world` equal parts."""

    rank: int = 0
    world: int = 1


WHOLE = Share()
"""All of each batch: there is one process."""


@dataclass
class Loader:
    """Batches of a data set, over and over.

    The order, and whatever is random in an item, depend on `seed`, epoch and item alone: not on the number of workers
    or processes, and not on what was read before, so a run can be resumed in the middle of an epoch.

    Attributes:
        dataset: what to read.
        text_encoder: None = batches without text.
        batch_size: items of a batch over all processes; the last one may be smaller.
        shuffle: whether each epoch has an order of its own.
        seed: of the shuffling.
        drop_last: leave out a last batch that is not full.
        workers: processes that read features which are not in memory.
        share: the part of each batch that this process reads; needs `drop_last`, since processes must keep in step.
        epoch: what `set_epoch` set.
        skip: batches of the epoch that are left out.
    """

    dataset: ClipDataset
    text_encoder: TextEncoder | None
    batch_size: int
    shuffle: bool = False
    seed: int = 0
    drop_last: bool = False
    workers: int = 0
    share: Share = WHOLE
    epoch: int = 0
    skip: int = 0

    def __post_init__(self) -> None:
        if self.batch_size % self.share.world:
            raise ConfigError(
                f"data.batch_size {self.batch_size} does not divide among {self.share.world} processes",
                f"set data.batch_size to a multiple of {self.share.world}",
            )

    def __len__(self) -> int:
        """Batches in an epoch."""
        full, rest = divmod(len(self.dataset), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def set_epoch(self, epoch: int, skip: int = 0) -> None:
        """Choose the epoch whose order the next iteration follows, and how many of its batches to leave out."""
        self.epoch, self.skip = epoch, skip

    def order(self) -> list[int]:
        """The items in the order of the present epoch."""
        if not self.shuffle:
            return list(range(len(self.dataset)))
        return np.random.default_rng([self.seed, self.epoch]).permutation(len(self.dataset)).tolist()

    def __iter__(self) -> Iterator[Batch]:
        order = self.order()
        batches = [order[i * self.batch_size : (i + 1) * self.batch_size] for i in range(self.skip, len(self))]
        if self.share.world > 1:
            size = self.batch_size // self.share.world
            batches = [b[self.share.rank * size : (self.share.rank + 1) * size] for b in batches]
        loader = torch.utils.data.DataLoader(
            BatchReader(self.dataset, batches, (self.seed, self.epoch)),
            batch_size=None,
            # Features in memory are read once anyway, and every process would keep a copy of its own.
            num_workers=0 if self.dataset.is_cached else self.workers,
            collate_fn=_unchanged,
            # Of its own, so that reading draws nothing from the global generator.
            generator=torch.Generator(),
        )
        for result in loader:
            yield with_text(result, self.text_encoder)


class BatchReader(torch.utils.data.Dataset[Any]):
    """Whole batches, without text, as the elements of a data set, for torch's worker processes.

    A user's error is returned, not raised: torch would wrap it in the text of a traceback.
    """

    def __init__(self, dataset: ClipDataset, batches: list[list[int]], seed: tuple[int, int]) -> None:
        self._dataset = dataset
        self._batches = batches
        self._seed = seed

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> tuple[Batch, list[str]] | EaoError:
        try:
            if isinstance(self._dataset, Prefetching):
                self._dataset.prefetch(self._batches[index])
            items = [
                item
                for i in self._batches[index]
                for item in self._dataset.clips(i, np.random.default_rng([*self._seed, i]))
            ]
            return stack(items), [item.caption for item in items]
        except EaoError as error:
            return error


def with_text(result: tuple[Batch, list[str]] | EaoError, text_encoder: TextEncoder | None) -> Batch:
    """The batch that a reader gave, with its captions encoded; raises the error that it gave instead."""
    if isinstance(result, EaoError):
        raise result
    batch, captions = result
    if text_encoder is not None:
        batch.text, batch.text_mask = text_encoder.encode(captions)
    return batch


def _unchanged(result: Any) -> Any:
    return result
