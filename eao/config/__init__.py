"""The schema of every experiment file, `base:` inheritance and `key=value` overrides.

An experiment is one YAML file. What `base:` names, a file relative to it or a shipped experiment, is read first and the
file's own keys are merged over it, mapping by mapping, so that a file states only what differs:

    base: pretraining/everything_at_once_tva
    model: {cross_modal: false}
    loss: {weights: {text_video: 1, text_audio: 0.1, video_audio: 0.1}}

A data set of another `type` replaces that of its base whole. The same keys are overridden on the command line as
`model.fusion.depth=2`.
"""

from eao.config.data import (
    DATASET_TYPES,
    ClipData,
    CrossTaskData,
    DataConfig,
    Dataset,
    Datasets,
    FolderData,
    HowTo100MData,
    MiningYouTubeData,
    MSRVTTData,
    Sampling,
    ShardData,
    StepData,
    TextConfig,
    WholeData,
    YouCook2Data,
)
from eao.config.experiment import (
    AudioConfig,
    Config,
    EvaluationConfig,
    FeaturesConfig,
    FusionConfig,
    LossConfig,
    LossWeights,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    StreamConfig,
    TrackingConfig,
    TrainerConfig,
)
from eao.config.loading import (
    apply_overrides,
    check_trained,
    lay_over,
    load_config,
    merge,
    override_config,
    override_trained,
    parse_config,
    read_yaml,
)
from eao.config.section import Section

__all__ = [
    "DATASET_TYPES",
    "AudioConfig",
    "ClipData",
    "Config",
    "CrossTaskData",
    "DataConfig",
    "Dataset",
    "Datasets",
    "EvaluationConfig",
    "FeaturesConfig",
    "FolderData",
    "FusionConfig",
    "HowTo100MData",
    "LossConfig",
    "LossWeights",
    "MSRVTTData",
    "MiningYouTubeData",
    "ModelConfig",
    "OptimizerConfig",
    "Sampling",
    "ScheduleConfig",
    "Section",
    "ShardData",
    "StepData",
    "StreamConfig",
    "TextConfig",
    "TrackingConfig",
    "TrainerConfig",
    "WholeData",
    "YouCook2Data",
    "apply_overrides",
    "check_trained",
    "lay_over",
    "load_config",
    "merge",
    "override_config",
    "override_trained",
    "parse_config",
    "read_yaml",
]
