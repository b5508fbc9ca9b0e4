"""Every data set by the `type` of its configuration."""

from __future__ import annotations

from eao.config import ClipData, DataConfig, FolderData
from eao.data.item import ClipDataset
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
    raise ConfigError(f"a data set of type {getattr(config, 'type', None)!r} cannot be read item by item")
