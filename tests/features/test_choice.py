from __future__ import annotations

import pytest

from eao.config import Config, FeaturesConfig, StreamConfig
from eao.errors import ConfigError
from eao.features.backbones import get_backbone
from eao.features.choice import CHOICES, choose_features, choose_settings, make_limits, parse_bytes, with_weights
from eao.features.limits import Limits


def test_names_choose_streams_at_the_published_rates() -> None:
    assert choose_features(["resnet152", "resnext101", "audio"]) == FeaturesConfig(
        video_2d=StreamConfig(backbone="resnet152", rate=1.0),
        video_3d=StreamConfig(backbone="resnext101-3d", rate=1.5),
    )
    assert choose_features(["s3d"]) == FeaturesConfig(
        video_2d=None, video_3d=StreamConfig(backbone="s3d", rate=1.0), audio=False
    )
    assert choose_features(["efficientnet", "audio"]) == choose_features(["motion", "efficientnet", "audio"])
    assert choose_features(["efficientnet", "audio"]) == FeaturesConfig()  # what the demo's model was trained on
    third = choose_features(["s3d", "efficientnet"])
    assert third.video_2d == FeaturesConfig().video_2d and third.video_3d == StreamConfig(backbone="s3d", rate=1.0)
    assert choose_features(["motion"]) == FeaturesConfig(video_2d=None, audio=False)
    assert choose_features(["audio"]) == FeaturesConfig(video_2d=None, video_3d=None)


@pytest.mark.parametrize("choice", CHOICES.values())
def test_every_name_is_a_backbone(choice: tuple[str, str, float]) -> None:
    assert get_backbone(choice[1]).name == choice[1]


@pytest.mark.parametrize(
    ("names", "reason"),
    [(["resnet"], "no features 'resnet'"), (["clip", "resnet152"], "clip and resnet152 are both the stream video_2d")],
)
def test_what_cannot_be_chosen_is_refused(names: list[str], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        choose_features(names)


def test_weights_by_either_name() -> None:
    config = choose_features(["resnet152", "resnext101"])
    config = with_weights(config, ["resnet152=/w/r.pth", "resnext101-3d=/w/x=1.pth"])
    assert config.video_2d is not None and config.video_3d is not None
    assert (config.video_2d.weights, config.video_3d.weights) == ("/w/r.pth", "/w/x=1.pth")


@pytest.mark.parametrize("given", ["resnet152", "resnet152=", "clip=/w"])
def test_weights_of_nothing_are_refused(given: str) -> None:
    with pytest.raises(ConfigError, match="--weights"):
        with_weights(choose_features(["resnet152"]), [given])


def test_sizes() -> None:
    assert [parse_bytes(text) for text in ("7", "500MB", "2g", "1.5 kB")] == [7, 500_000_000, 2_000_000_000, 1500]
    for text in ("", "x", "-1", "0", "5 miles"):
        with pytest.raises(ConfigError, match="no size"):
            parse_bytes(text)


def test_names_a_model_and_settings_together() -> None:
    assert choose_settings([], [], None, []) == FeaturesConfig()
    model = Config(features=choose_features(["s3d", "audio"]))
    assert choose_settings([], ["s3d=/w"], model, ["features.video_3d.rate=2"]).video_3d == StreamConfig(
        backbone="s3d", rate=2.0, weights="/w"
    )
    assert choose_settings(["clip"], [], None, []) == choose_features(["clip"])
    with pytest.raises(ConfigError, match="both say"):
        choose_settings(["clip"], [], model, [])


def test_limits() -> None:
    assert (make_limits(60.0, "2GB").max_duration, make_limits(60.0, "2GB").max_bytes) == (60.0, 2 * 10**9)
    assert make_limits(None, None) == Limits()
