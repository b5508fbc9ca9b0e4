"""MSR-VTT (Xu et al., CVPR 2016) with the features that the authors of AVLnet published."""

from __future__ import annotations

from eao.config import DataConfig, MSRVTTData
from eao.data.pickled import PickledDataset


def open_msrvtt(config: MSRVTTData, data: DataConfig) -> PickledDataset:
    """The clips of a list, for training with a caption drawn from all of a clip's, or for evaluation with one.

    A clip is a dictionary of `id`, `2d` (rows, 2048), `3d` (rows, 2048), `audio` (40, frames), `caption` (sentences)
    and, for evaluation, `eval_caption`.

    Raises:
        ConfigError: neither 2-D nor 3-D features are asked for.
        DataError: naming file, clip and field, for whatever is missing or malformed.
    """
    if config.training:
        return PickledDataset(config, data, "caption", has_captions=True, complete_dataset_size=None)
    return PickledDataset(
        config, data, "eval_caption", has_captions=False, complete_dataset_size=config.complete_dataset_size
    )
