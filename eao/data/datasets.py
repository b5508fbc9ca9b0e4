"""Every data set by the `type` of its configuration."""

from __future__ import annotations

from eao.config import ClipData, DataConfig, FolderData, HowTo100MData, MSRVTTData, ShardData, StepData, YouCook2Data
from eao.data.item import ClipDataset
from eao.data.loader import WHOLE, BatchLoader, Loader, Share
from eao.data.text import TextEncoder
from eao.errors import ConfigError


def open_dataset(config: ClipData, data: DataConfig) -> ClipDataset:
    """The data set that a section describes.

    Args:
        config: a section such as `data.train`.
        data: sizes that hold where the section does not state its own.

    Raises:
        ConfigError: a data set that cannot be read item by item.
        DataError: a file is missing or damaged.
    """
    if isinstance(config, FolderData):
        from eao.data.folder import FolderDataset

        return FolderDataset(config, data)
    if isinstance(config, MSRVTTData):
        from eao.data.msrvtt import open_msrvtt

        return open_msrvtt(config, data)
    if isinstance(config, YouCook2Data):
        from eao.data.youcook2 import open_youcook2

        return open_youcook2(config, data)
    if isinstance(config, HowTo100MData):
        from eao.data.howto100m import HowTo100MDataset

        return HowTo100MDataset(config, data)
    if isinstance(config, StepData):
        from eao.data.crosstask import StepDataset

        return StepDataset(config, data)
    if isinstance(config, ShardData):
        from eao.data.shards import ShardDataset

        return ShardDataset(config, data)
    raise ConfigError(f"a data set of type {getattr(config, 'type', None)!r} cannot be read item by item")


def training_loader(
    config: ClipData, data: DataConfig, text_encoder: TextEncoder | None, seed: int = 0, share: Share = WHOLE
) -> BatchLoader:
    """The batches of a data set to train on: in an order of its own each epoch, all of them full.

    Args:
        config: the section `data.train`.
        data: sizes that hold where the section does not state its own.
        text_encoder: of the captions.
        seed: of the order, and of what is random in the items.
        share: the part of each batch that this process reads.

    Raises:
        ConfigError: the batch does not divide among the processes.
        DataError: a file is missing or damaged.
    """
    return Loader(
        open_dataset(config, data),
        text_encoder,
        config.batch_size or data.batch_size,
        shuffle=True,
        seed=seed % 2**32,
        drop_last=True,
        workers=data.workers,
        share=share,
    )
