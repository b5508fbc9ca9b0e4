"""The data section: which data sets there are, and how their clips become tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pydantic

from eao.config.section import PositiveInt, Section

Sampling = Literal["clip", "nearest", "max_pool"]


class TextConfig(Section):
    """How a sentence becomes text tokens."""

    encoder: Literal["word2vec", "minilm", "clip"] = "word2vec"
    path: str | None = None
    """The word2vec .bin file, or the folder of the transformers model."""
    max_words: PositiveInt = 20


class ClipData(Section):
    """What every data set may state for itself; null = as under `data`."""

    video_tokens: int | None = pydantic.Field(None, ge=0)
    """0 = one max-pooled vector, for the AVLnet baseline."""
    audio_frames: PositiveInt | None = None
    sampling: Sampling | None = None
    batch_size: PositiveInt | None = None
    repeat: PositiveInt = 1
    """How often one epoch goes through the data: for sets so small that an epoch would be a few steps."""


class WholeData(ClipData):
    """A data set of clips that are read whole."""

    cut_clips: PositiveInt = 1
    """Into how many consecutive pieces, of `video_tokens` and `audio_frames` each, a clip is cut. The pieces are
    embedded one by one and averaged by the clip's id: the "clips" protocol of the paper."""
    complete_dataset_size: PositiveInt | None = None
    """Items of the full data set where some are missing here: the missing ones count as errors in recalls."""


class FolderData(WholeData):
    """A folder written by `eao extract`, and captions as CSV or JSON lines (`id`, `caption`)."""

    type: Literal["folder"] = "folder"
    features: str
    captions: str
    split: str | None = None


class MSRVTTData(WholeData):
    """MSR-VTT as the authors of AVLnet and Everything at Once ship it: a pickled list of clips.

    `path_2d` and `path_3d` name further lists with the features of other backbones, in the same order; null = `path`.
    """

    type: Literal["msrvtt"] = "msrvtt"
    path: str
    path_2d: str | None = None
    path_3d: str | None = None
    key_2d: str | None = "2d"
    """Where a clip holds its 2-D features; null = they are not used."""
    key_3d: str | None = "3d"
    training: bool = False
    """Draw one of a clip's captions at random each time, instead of its evaluation caption."""
    expected_items: PositiveInt | None = 968
    """Evaluation refuses a list of any other length; null = any."""
    complete_dataset_size: PositiveInt | None = 1000
    """Of the 1,000 test clips 32 have no sound and are missing from the list."""


class YouCook2Data(WholeData):
    """YouCook2 as the authors ship it: a pickled list of clips with one caption each."""

    type: Literal["youcook2"] = "youcook2"
    path: str
    path_2d: str | None = None
    path_3d: str | None = None
    key_2d: str | None = "2d_full"
    key_3d: str | None = "3d_full"
    required_key: str | None = "2d_full"
    """Clips of `path` without this key are left out, whatever features are used: 3,339 of 3,350 stay for validation."""
    complete_dataset_size: PositiveInt | None = 3350


class HowTo100MData(ClipData):
    """HowTo100M: a list of videos, a feature file a stream and video, and a pickle of speech recognised with times.

    Each time a video is read, `clips_per_video` windows are drawn at random from it.
    """

    type: Literal["howto100m"] = "howto100m"
    csv: str
    captions: str
    features_2d: str | None
    """Folder of the 2-D features; null = they are not used."""
    features_3d: str | None
    audio: str
    rate_2d: float = pydantic.Field(1.0, gt=0)
    """Rows per second."""
    rate_3d: float = pydantic.Field(1.5, gt=0)
    clips_per_video: PositiveInt = 10
    min_time: float = pydantic.Field(8.0, gt=0)
    """Seconds that a window lasts at least."""
    audio_shift: Literal["none", "later", "either"] = "later"
    """The audio of a caption: that of its own window, of one half a `min_time` later (the published models were trained
    so), or of one earlier or later by chance."""


class StepData(ClipData):
    """Instructional videos in one-second segments, with a list of steps that are to be found in them."""

    csv: str
    features: str
    audio: str
    steps: str
    annotations: str
    use_2d: bool = True
    use_3d: bool = True
    rate_2d: float = pydantic.Field(1.0, gt=0)
    rate_3d: float = pydantic.Field(1.5, gt=0)
    clip_radius: int = pydantic.Field(0, ge=0)
    """Seconds added to a segment on both sides."""
    audio_padding: int = pydantic.Field(0, ge=0)
    """Further seconds of sound that the audio network sees on both sides, masked."""


class CrossTaskData(StepData):
    """CrossTask (Zhukov et al., CVPR 2019); steps by task."""

    type: Literal["crosstask"] = "crosstask"


class MiningYouTubeData(StepData):
    """Mining YouTube (Kuehne et al., 2019); steps by video."""

    type: Literal["mining-youtube"] = "mining-youtube"


class ShardData(ClipData):
    """Shards written by `eao pack`, on disk or on object storage (any URL that fsspec reads).

    `options` changes settings of the data set that was packed, such as `clips_per_video`.
    """

    type: Literal["shards"] = "shards"
    url: str
    options: dict[str, Any] = {}


def _dataset_type(value: Any) -> str:
    return str(value.get("type", "folder") if isinstance(value, Mapping) else getattr(value, "type", "folder"))


def _one_or_several(value: Any) -> str:
    if not isinstance(value, Mapping) or not value:
        return "one"
    are_sections = [each is None or isinstance(each, Mapping | Section) for each in value.values()]
    # Where one of several is malformed, the error should name that one.
    return "several" if all(are_sections) or (any(are_sections) and not value.keys() & _FIELDS) else "one"


Dataset = Annotated[
    Annotated[FolderData, pydantic.Tag("folder")]
    | Annotated[MSRVTTData, pydantic.Tag("msrvtt")]
    | Annotated[YouCook2Data, pydantic.Tag("youcook2")]
    | Annotated[HowTo100MData, pydantic.Tag("howto100m")]
    | Annotated[CrossTaskData, pydantic.Tag("crosstask")]
    | Annotated[MiningYouTubeData, pydantic.Tag("mining-youtube")]
    | Annotated[ShardData, pydantic.Tag("shards")],
    pydantic.Discriminator(_dataset_type),
]
"""Any data set; `type` says which, and is a folder where it is left out."""

DATASET_TYPES: dict[str, type[ClipData]] = {
    "folder": FolderData,
    "msrvtt": MSRVTTData,
    "youcook2": YouCook2Data,
    "howto100m": HowTo100MData,
    "crosstask": CrossTaskData,
    "mining-youtube": MiningYouTubeData,
    "shards": ShardData,
}
_FIELDS = {field for kind in DATASET_TYPES.values() for field in kind.model_fields}

Datasets = Annotated[
    Annotated[Dataset, pydantic.Tag("one")] | Annotated[dict[str, Dataset | None], pydantic.Tag("several")],
    pydantic.Discriminator(_one_or_several),
]
"""One data set, or several by name; a name set to null is left out, so that an experiment can drop one of its base."""


class DataConfig(Section):
    """Data sets and how clips become tensors."""

    train: Dataset | None = None
    validation: Datasets | None = None
    test: Datasets | None = None
    text: TextConfig = TextConfig()
    video_tokens: int = pydantic.Field(48, ge=0)
    audio_frames: PositiveInt = 3072
    sampling: Sampling = "clip"
    batch_size: PositiveInt = 128
    """Items of the data set in a training batch, over all processes. A HowTo100M video is one item of many clips."""
    workers: int = pydantic.Field(0, ge=0)

    def named(self, split: str) -> dict[str, ClipData]:
        """The data sets of a split by name; one that stands alone is called after nothing: ""."""
        value = getattr(self, split)
        if value is None:
            return {}
        if isinstance(value, Mapping):
            return {name: dataset for name, dataset in value.items() if dataset is not None}
        return {"": value}
