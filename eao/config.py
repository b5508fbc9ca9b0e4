"""The schema of every experiment file, `base:` inheritance and `key=value` overrides.

An experiment is one YAML file. `base: other.yaml` (relative to the file that names it) is read first and the file's own
keys are merged over it, mapping by mapping, so that a file states only what differs:

    base: ../pretraining/everything_at_once_tva.yaml
    model: {cross_modal: false}
    loss: {weights: {text_video: 1, text_audio: 0.1, video_audio: 0.1}}

The same keys are overridden on the command line as `model.fusion.depth=2`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import pydantic
import yaml

from eao.errors import ConfigError
from eao.files import write_text
from eao.yaml_text import dump_yaml, parse_yaml

PositiveInt = pydantic.PositiveInt


class Section(pydantic.BaseModel):
    """Base of every section: unknown keys are errors, values are checked on assignment too."""

    model_config = pydantic.ConfigDict(
        extra="forbid",
        validate_assignment=True,
        protected_namespaces=(),
        allow_inf_nan=False,
        coerce_numbers_to_str=True,
    )


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


class TextConfig(Section):
    """How a sentence becomes text tokens."""

    encoder: Literal["word2vec", "minilm", "clip"] = "word2vec"
    path: str | None = None
    """The word2vec .bin file, or the folder of the transformers model."""
    max_words: PositiveInt = 20


class DatasetConfig(Section):
    """One data set: a folder written by `eao extract`, and captions as CSV or JSON lines (`id`, `caption`)."""

    features: str
    captions: str
    split: str | None = None
    repeat: PositiveInt = 1
    """How often one epoch goes through the data: for sets so small that an epoch would be a few steps."""


class DataConfig(Section):
    """Data sets and how clips become tensors."""

    train: DatasetConfig | None = None
    validation: DatasetConfig | None = None
    test: DatasetConfig | None = None
    text: TextConfig = TextConfig()
    video_tokens: PositiveInt = 48
    audio_frames: PositiveInt = 3072
    sampling: Literal["clip", "nearest", "max_pool"] = "clip"
    batch_size: PositiveInt = 128
    workers: int = pydantic.Field(0, ge=0)


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
    """The learning rate over time: linear warm-up in steps, then a decay per epoch."""

    name: Literal["constant", "exponential", "cosine"] = "exponential"
    gamma: float = pydantic.Field(0.9, gt=0, le=1)
    warmup_steps: int = pydantic.Field(0, ge=0)


class TrainerConfig(Section):
    """The training loop."""

    epochs: PositiveInt = 15
    precision: Literal["fp32", "bf16", "fp16", "auto"] = "auto"
    clip_grad_norm: float | None = pydantic.Field(None, gt=0)
    eval_mode: bool = False
    """Keep the model in eval mode (BatchNorm frozen) while all parameters train: the authors' fine-tuning."""
    save_every: int = pydantic.Field(0, ge=0)
    validate_every: PositiveInt = 1
    monitor: str | None = "validation/t2va/R1"
    """A metric to keep the best checkpoint by, higher = better."""
    early_stop: PositiveInt | None = None
    initial_weights: str | None = None
    noise: float = pydantic.Field(0.0, ge=0)
    """Standard deviation of noise added to text and video features in training, relative to a unit-norm row."""
    token_dropout: float = pydantic.Field(0.0, ge=0, lt=1)
    """Probability with which each token after the first is left out in training."""


class EvaluationConfig(Section):
    """Retrieval evaluation."""

    batch_size: PositiveInt = 64
    tasks: tuple[str, ...] = ("t2v", "v2t", "t2a", "a2t", "t2va", "va2t", "t2v+a", "v2a", "a2v")
    complete_dataset_size: PositiveInt | None = None
    """Number of items of the full data set where some are missing here; they count as errors."""


class StreamConfig(Section):
    """One stream of video features: `rate` rows per second from a backbone."""

    backbone: str
    rate: float = pydantic.Field(gt=0)


class FeaturesConfig(Section):
    """What is computed from a video file. Audio is always the 40-band log-mel spectrogram of the paper."""

    video_2d: StreamConfig | None = StreamConfig(backbone="efficientnet-lite0", rate=2.0)
    video_3d: StreamConfig | None = StreamConfig(backbone="activation-motion", rate=2.0)


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
    evaluation: EvaluationConfig = EvaluationConfig()
    features: FeaturesConfig = FeaturesConfig()

    def save(self, path: str | Path) -> None:
        """Write the resolved configuration as YAML, atomically."""
        write_text(path, dump_yaml(self.model_dump(mode="json")))


def load_config(path: str | Path | None = None, overrides: Iterable[str] = ()) -> Config:
    """Read an experiment file with its bases, apply `key=value` overrides, and check the result.

    Raises:
        ConfigError: for a missing or malformed file, an unknown key (with the nearest known one) or a bad value.

    Example:
        >>> load_config(overrides=["model.fusion.depth=2", "optimizer.lr=1e-4"]).model.fusion.depth
        2
    """
    values: dict[str, Any] = read_yaml(path) if path is not None else {}
    for override in overrides:
        _apply_override(values, override)
    if path is not None:
        values.setdefault("name", Path(path).stem)
    return parse_config(values, str(path) if path is not None else "the command line")


def override_config(config: Config, overrides: Iterable[str]) -> Config:
    """A copy of `config` with `key=value` overrides applied."""
    values = config.model_dump(mode="python")
    for override in overrides:
        _apply_override(values, override)
    return parse_config(values, "the command line")


def override_trained(config: Config, overrides: Iterable[str], source: str) -> Config:
    """As `override_config`, for a model that is trained: `source` names it.

    Raises:
        ConfigError: if `model.*` would change, which the weights do not fit.
    """
    changed = override_config(config, overrides)
    if changed.model != config.model:
        raise ConfigError(f"model.* of {source} cannot be changed: its weights are trained", "leave model.* as it is")
    return changed


def parse_config(values: Mapping[str, Any], source: str) -> Config:
    """Check a mapping against the schema; `source` names it in errors."""
    try:
        return Config.model_validate(values)
    except pydantic.ValidationError as error:
        raise _as_config_error(error, source) from None


def read_yaml(path: str | Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The mapping in a YAML file, merged over that of its `base:` if it names one. A base's `name` is not inherited."""
    path = Path(path)
    if path.resolve() in seen:
        raise ConfigError(f"{path}: `base:` leads back to this file", "remove one link of the circle")
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        hint = f"it is named as `base:` in {seen[-1]}" if seen else "check the path"
        raise ConfigError(f"cannot read the configuration {path}: {error}", hint) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: the top level must be a mapping of sections, not {type(values).__name__}")
    base = values.pop("base", None)
    if base is None:
        return values
    inherited = read_yaml(path.parent / str(base), (*seen, path.resolve()))
    # Two experiments of one name would write into one run folder.
    inherited.pop("name", None)
    return merge(inherited, values)


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes` laid over it, mapping by mapping; lists and scalars are replaced whole."""
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"override {override!r} is not of the form key=value", "for example: optimizer.lr=1e-4")
    try:
        value = parse_yaml(text)
    except yaml.YAMLError:
        raise ConfigError(f"override {override!r}: the value is not valid YAML") from None
    *sections, leaf = key.strip().split(".")
    for section in sections:
        child = values.get(section)
        # A copy, so that a mapping shared by YAML anchors is not changed in two places.
        values[section] = dict(child) if isinstance(child, Mapping) else {}
        values = values[section]
    values[leaf] = value


def _as_config_error(error: pydantic.ValidationError, source: str) -> ConfigError:
    first = error.errors()[0]
    location = [str(part) for part in first["loc"]]
    key = ".".join(location)
    if first["type"] == "extra_forbidden":
        known = _keys_at(location[:-1])
        near = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
        hint = (
            f"did you mean {'.'.join([*location[:-1], near[0]])}?"
            if near
            else f"known here: {', '.join(sorted(known))}"
        )
        return ConfigError(f"{source}: unknown key {key}", hint)
    detail = first["msg"].removeprefix("Value error, ")
    given = "" if isinstance(first["input"], Mapping) or first["type"] == "missing" else f" (given: {first['input']!r})"
    return ConfigError(f"{source}: {key + ': ' if key else ''}{detail}{given}")


def _keys_at(location: list[str]) -> list[str]:
    section: type[pydantic.BaseModel] = Config
    for part in location:
        field = section.model_fields.get(part)
        annotation = field.annotation if field is not None else None
        candidates = getattr(annotation, "__args__", (annotation,))
        found = next((c for c in candidates if isinstance(c, type) and issubclass(c, pydantic.BaseModel)), None)
        if found is None:
            return []
        section = found
    return list(section.model_fields)
