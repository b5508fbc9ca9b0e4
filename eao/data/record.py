"""What a data set holds of one item, before anything is drawn or cut: the seam between data sets and shards of them.

A data set that can be packed reads an item with `record(index)`, and its module turns a record into clips with a pure
function, so that an item gives the same clips wherever its record comes from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from eao.config import WholeData
from eao.data.arrays import Array
from eao.data.item import ClipDataset, ClipShape, Item, cut_item, make_item

# n rows of a stream, D its width, T spectrogram frames, C captions


class Record(NamedTuple):
    """The stored features and the captions of one item.

    Attributes:
        id: name of the clip or video.
        path: where it stands in its data set; the id where there are no paths.
        video_2d: (n2, D2) as stored, usually float16; None for a stream that is not used or not there.
        video_3d: (n3, D3).
        audio: (40, T) spectrogram.
        captions: all sentences that a clip of this item may carry.
        starts: (C,) float64, when each caption begins, in seconds; None for captions without times.
        ends: (C,) float64.
    """

    id: str
    path: str
    video_2d: Array | None
    video_3d: Array | None
    audio: Array | None
    captions: Sequence[str]
    starts: NDArray[np.float64] | None = None
    ends: NDArray[np.float64] | None = None


@runtime_checkable
class RecordDataset(ClipDataset, Protocol):
    """A data set that can be packed into shards."""

    def record(self, index: int) -> Record:
        """What is stored of item `index`; arrays may be views of memory that is shared."""
        ...


def whole_clips(
    record: Record, config: WholeData, shape: ClipShape, video_dim: int, rng: np.random.Generator
) -> list[Item]:
    """The clip of a record whole, cut into pieces if `cut_clips` says so.

    Of several captions one is drawn.
    """
    captions = record.captions
    caption = captions[int(rng.integers(len(captions)))] if len(captions) > 1 else captions[0]
    item = make_item(record.id, caption, record.video_2d, record.video_3d, record.audio, shape, video_dim)
    return cut_item(item, config.cut_clips)
