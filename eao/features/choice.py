"""Which features are computed, by the short names of the command line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from eao.config import Config, FeaturesConfig, StreamConfig, override_config
from eao.errors import ConfigError
from eao.features.limits import Limits

AUDIO = "audio"
SECOND = {"efficientnet": "motion"}
"""What a network gives besides: the second stream, unless another name stands for that one."""


class Choice(NamedTuple):
    """What a name stands for: the stream, its backbone, and the rate at which the paper or the demo computes it."""

    stream: str
    backbone: str
    rate: float


CHOICES = {
    "resnet152": Choice("video_2d", "resnet152", 1.0),
    "resnext101": Choice("video_3d", "resnext101-3d", 1.5),
    "s3d": Choice("video_3d", "s3d", 1.0),
    "clip": Choice("video_2d", "clip-vit-b32", 1.0),
    "efficientnet": Choice("video_2d", "efficientnet-lite0", 2.0),
    "motion": Choice("video_3d", "activation-motion", 2.0),
}


def choose_features(names: Sequence[str]) -> FeaturesConfig:
    """The configuration of the features that are named, with the second stream that a network gives besides.

    Raises:
        ConfigError: an unknown name, or two networks for one stream.

    Example:
        >>> choose_features(["resnet152", "resnext101", "audio"]).video_3d
        StreamConfig(backbone='resnext101-3d', rate=1.5, weights=None)
    """
    streams: dict[str, StreamConfig | None] = {"video_2d": None, "video_3d": None}
    taken: dict[str, str] = {}
    for name in dict.fromkeys(names):
        if name == AUDIO:
            continue
        if name not in CHOICES:
            raise ConfigError(f"there are no features {name!r}", f"known: {', '.join([*CHOICES, AUDIO])}")
        choice = CHOICES[name]
        if choice.stream in taken:
            raise ConfigError(
                f"{taken[choice.stream]} and {name} are both the stream {choice.stream}",
                "extract them into two folders",
            )
        taken[choice.stream] = name
        streams[choice.stream] = StreamConfig(backbone=choice.backbone, rate=choice.rate)
    for name in {SECOND[name] for name in taken.values() if name in SECOND}:
        choice = CHOICES[name]
        streams[choice.stream] = streams[choice.stream] or StreamConfig(backbone=choice.backbone, rate=choice.rate)
    return FeaturesConfig(**streams, audio=AUDIO in names)


def choose_settings(
    names: Sequence[str], weights: Sequence[str], model: Config | None, overrides: Sequence[str]
) -> FeaturesConfig:
    """The configuration that the command line asks for.

    Args:
        names: see `choose_features`; none for those of the model, or else of the demo.
        weights: see `with_weights`.
        model: the configuration of one.
        overrides: `features.*=value`.

    Raises:
        ConfigError: the names and the model are both given, or one of them is wrong.
    """
    if names and model is not None:
        raise ConfigError("--features and --model both say what is extracted", "give one of them")
    config = model or (Config(features=choose_features(names)) if names else Config())
    return with_weights(override_config(config, list(overrides)).features, weights)


def make_limits(max_duration: float | None, max_bytes: str | None) -> Limits:
    """The limits of a file, where some are given."""
    limits = Limits()
    if max_duration is not None:
        limits = replace(limits, max_duration=max_duration)
    if max_bytes is not None:
        limits = replace(limits, max_bytes=parse_bytes(max_bytes))
    return limits


def with_weights(config: FeaturesConfig, given: Sequence[str]) -> FeaturesConfig:
    """The configuration with weights from NAME=PATH.

    Args:
        config: of the features.
        given: NAME is one of `CHOICES`, or a backbone as in `features.video_2d.backbone`.

    Raises:
        ConfigError: no NAME=PATH, or a name that is not among the features.
    """
    streams = {name: getattr(config, name) for name in ("video_2d", "video_3d")}
    for text in given:
        name, found, path = text.partition("=")
        if not found or not path:
            raise ConfigError(f"--weights {text}: give NAME=PATH", f"names: {', '.join(CHOICES)}")
        backbone = CHOICES[name].backbone if name in CHOICES else name
        of_it = [key for key, stream in streams.items() if stream is not None and stream.backbone == backbone]
        if not of_it:
            there = ", ".join(stream.backbone for stream in streams.values() if stream is not None) or "none"
            raise ConfigError(f"--weights {text}: {name} is not extracted", f"networks: {there}")
        for key in of_it:
            streams[key] = streams[key].model_copy(update={"weights": path})
    return config.model_copy(update=streams)


def parse_bytes(text: str) -> int:
    """A number of bytes, such as `500MB` or `2G`.

    Raises:
        ConfigError: it is none.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)b?", text.strip(), re.IGNORECASE)
    if found is None or float(found[1]) <= 0:
        raise ConfigError(f"{text!r} is no size", "write it as 500MB or 2GB")
    return int(float(found[1]) * 1000 ** " kmgt".index(found[2].lower() or " "))
