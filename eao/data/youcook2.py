"""YouCook2 (Zhou et al., AAAI 2018) with the features that the authors of AVLnet published."""

from __future__ import annotations

from eao.config import DataConfig, YouCook2Data
from eao.data.pickled import PickledDataset


def open_youcook2(config: YouCook2Data, data: DataConfig) -> PickledDataset:
    """The clips of a list, each with its caption.

    A clip is a dictionary of `id`, `2d_full` (rows, 2048), `3d_full` (rows, 2048), `audio` (40, frames) and `caption`.
    Those without `required_key` are left out.

    Raises:
        ConfigError: neither 2-D nor 3-D features are asked for.
        DataError: naming file, clip and field, for whatever is missing or malformed.
    """
    return PickledDataset(
        config, data, "caption", has_captions=False, complete_dataset_size=config.complete_dataset_size
    )
