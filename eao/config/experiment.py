"""The sections of an experiment: model, loss, optimizer, schedule, trainer, evaluation, features."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pydantic

from eao.config.data import DataConfig
from eao.config.section import PositiveInt, Section
from eao.files import write_text
from eao.yaml_text import dump_yaml


class FusionConfig(Section):
    """The fusion transformer (section 3.2 of the paper)."""

    embed_dim: PositiveInt = 4096
    depth: int = pydantic.Field(1, ge=0)
    num_heads: PositiveInt = 64
    mlp_ratio: float = pydantic.Field(1.0, gt=0)
    qkv_bias: bool = True
    drop_rate: float = pydantic.Field(0.0, ge=0, lt=1)
    attn_drop_rate: float = pydantic.Field(0.0, ge=0, lt=1)
    drop_path_rate: float = pydantic.Field(0.0, ge=0, lt=1)
    use_cls_token: bool = False


class AudioConfig(Section):
    """The residual DAVEnet that turns a spectrogram into audio tokens.

    `channels` are the widths after the first convolution and after each stage; empty = the published ones of `version`.
    """

    version: Literal["v1", "v2"] = "v2"
    channels: tuple[PositiveInt, ...] = ()
    blocks: tuple[PositiveInt, ...] = ()


Projection = Literal["gated", "minimal", "none"]


class ModelConfig(Section):
    """The model. The defaults are the published text-video-audio model."""

    architecture: Literal["fusion", "text-video", "per-modality", "avlnet"] = "fusion"
    text_dim: PositiveInt = 300
    video_dim: PositiveInt = 4096
    embedding_dim: PositiveInt = 6144
    fusion: FusionConfig = FusionConfig()
    audio: AudioConfig = AudioConfig()
    token_projection: Projection = "gated"
    output_projection: Projection = "gated"
    individual_projections: bool = True
    cross_modal: bool = True
    use_positional_emb: bool = False
    text_max_tokens: PositiveInt | None = None
    video_max_tokens: PositiveInt | None = None
    audio_max_frames: PositiveInt | None = None
    audio_pooling: Literal["none", "clip", "nearest", "max_pool", "avg_pool"] = "none"
    audio_flag_from_video: bool = False

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> ModelConfig:
        if self.fusion.embed_dim % self.fusion.num_heads:
            raise ValueError(
                f"fusion.embed_dim {self.fusion.embed_dim} is no multiple of num_heads {self.fusion.num_heads}"
            )
        sizes = (self.text_max_tokens, self.video_max_tokens, self.audio_max_frames)
        if self.use_positional_emb and None in sizes:
            raise ValueError("use_positional_emb needs text_max_tokens, video_max_tokens and audio_max_frames")
        pairs = self.architecture == "fusion" and self.cross_modal
        if self.fusion.use_cls_token and self.individual_projections and pairs:
            raise ValueError(
                "fusion.use_cls_token with pairs needs individual_projections: false (one head for every pair)"
            )
        if self.architecture == "avlnet" and self.audio.version == "v2":
            raise ValueError("the AVLnet baseline needs audio.version: v1 (its audio head is 1024 wide)")
        return self


class LossWeights(Section):
    """Weights of the six terms of the combinatorial loss (Eq. 5 of the paper). A pair is read as "a against b"."""

    text_video: float = 0.0
    text_audio: float = 0.0
    video_audio: float = 0.0
    text_videoaudio: float = 0.0
    video_textaudio: float = 0.0
    audio_textvideo: float = 0.0


class LossConfig(Section):
    """The combinatorial contrastive loss."""

    kind: Literal["norm-softmax", "mms"] = "norm-softmax"
    temperature: float = pydantic.Field(0.05, gt=0)
    weights: LossWeights = LossWeights()


class OptimizerConfig(Section):
    """An optimizer of `torch.optim` by name, with its arguments."""

    name: str = "Adam"
    lr: float = pydantic.Field(5e-5, gt=0)
    args: dict[str, Any] = {}


class ScheduleConfig(Section):
    """The learning rate over time: linear warm-up in steps, then a decay.

    `name` is "constant", "exponential" (times `gamma` after each epoch, as the authors train), "cosine" (to zero over
    the whole run, step by step), or a scheduler of `torch.optim.lr_scheduler` with `args`, stepped after each epoch.
    """

    name: str = "exponential"
    gamma: float = pydantic.Field(0.9, gt=0, le=1)
    args: dict[str, Any] = {}
    warmup_steps: int = pydantic.Field(0, ge=0)


class TrainerConfig(Section):
    """The training loop."""

    epochs: PositiveInt = 15
    max_items_per_epoch: PositiveInt | None = None
    """An epoch ends before more items of the data set than this are read: the authors' `max_samples_per_epoch`."""
    precision: Literal["fp32", "bf16", "fp16", "auto"] = "auto"
    """Of the model's forward and backward pass; the loss is float32 always. "fp32" is IEEE float32: TF32 stays off."""
    clip_grad_norm: float | None = pydantic.Field(None, gt=0)
    eval_mode: bool = False
    """Keep the model in eval mode (BatchNorm frozen) while all parameters train: the authors' fine-tuning."""
    sync_batchnorm: bool = False
    """With several processes, normalise with the statistics of the whole batch; else each process uses its own, as each
    GPU of the authors' did."""
    accumulate: PositiveInt = 1
    """Split a step's batch into so many parts whose gradients are averaged. Each part has a loss of its own, with only
    its own clips as negatives."""
    gradcache_chunk: PositiveInt | None = None
    """Clips that go through the model at once, while the loss still sees the whole batch (GradCache, arXiv 2101.06983):
    the memory of a chunk for a second forward pass."""
    ema_decay: float | None = pydantic.Field(None, gt=0, lt=1)
    """Keep a moving average of the weights; validation, `best` and `epoch-N` use it."""
    save_every: int = pydantic.Field(0, ge=0)
    checkpoint_steps: int = pydantic.Field(0, ge=0)
    """Write `latest` every so many steps within an epoch too; 0 = only after an epoch."""
    validate_every: PositiveInt = 1
    initial_validation: bool = False
    """Validate before the first step: epoch 0 of the log."""
    monitor: str | None = "validation/t2va/R1"
    """The metric to keep the best checkpoint by: "max validation/t2va/R1", "min validation/loss"; plain = max."""
    early_stop: PositiveInt | None = None
    """Stop after more than so many validated epochs without improvement."""
    log_steps: int = pydantic.Field(0, ge=0)
    """Give loss, learning rate and throughput to the trackers every so many steps too; 0 = only after an epoch."""
    initial_weights: str | None = None
    noise: float = pydantic.Field(0.0, ge=0)
    """Standard deviation of noise added to text and video features in training, relative to a unit-norm row."""
    token_dropout: float = pydantic.Field(0.0, ge=0, lt=1)
    """Probability with which each token after the first is left out in training."""


class TrackingConfig(Section):
    """Where metrics go while training. Nothing leaves the machine unless `mode` is online, or `url` leads elsewhere."""

    backends: tuple[Literal["csv", "tensorboard", "mlflow", "wandb", "sacred", "neptune"], ...] = ("csv",)
    project: str = "eao"
    """The MLflow experiment, the W&B project, or the Neptune project (`workspace/name`)."""
    mode: Literal["offline", "online"] = "offline"
    """Online lets W&B and Neptune send what they record to their servers."""
    url: str | None = None
    """MLflow's tracking URI; None = a store in the run folder."""


class EvaluationConfig(Section):
    """Retrieval evaluation."""

    batch_size: PositiveInt = 64
    tasks: tuple[str, ...] = ("t2v", "v2t", "t2a", "a2t", "t2va", "va2t", "t2v+a", "v2a", "a2v")
    complete_dataset_size: PositiveInt | None = None
    """Number of items of the full data set where some are missing here; they count as errors."""


class StreamConfig(Section):
    """One stream of video features: `rate` rows per second from a backbone.

    `weights` is the original weights file of its network, a folder for CLIP, or an engine that `eao export-backbone`
    made of them (.onnx, .xml); None = a package ships them.
    """

    backbone: str
    rate: float = pydantic.Field(gt=0)
    weights: str | None = None


class FeaturesConfig(Section):
    """What is computed from a video file. `audio` is the 40-band log-mel spectrogram of the paper."""

    video_2d: StreamConfig | None = StreamConfig(backbone="efficientnet-lite0", rate=2.0)
    video_3d: StreamConfig | None = StreamConfig(backbone="activation-motion", rate=2.0)
    audio: bool = True

    def identity(self) -> dict[str, Any]:
        """What two configurations of the same features have in common: everything but where the weights lie."""
        return self.model_dump(mode="json", exclude={"video_2d": {"weights"}, "video_3d": {"weights"}})


class Config(Section):
    """One experiment, fully resolved."""

    name: str = "experiment"
    seed: int = 0
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    trainer: TrainerConfig = TrainerConfig()
    tracking: TrackingConfig = TrackingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    features: FeaturesConfig = FeaturesConfig()

    def save(self, path: str | Path) -> None:
        """Write the resolved configuration as YAML, atomically."""
        write_text(path, dump_yaml(self.model_dump(mode="json")))
