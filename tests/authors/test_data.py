"""The authors' data loaders as data sets."""

from __future__ import annotations

from typing import Any

import pytest

from eao.authors.data import translate_dataset, translate_features, translate_text
from eao.config import DATASET_TYPES, ClipData


def loader(name: str, **kwargs: Any) -> dict[str, Any]:
    return {"args": {"dataset_name": name, "dataset_kwargs": kwargs}}


def translate(name: str, **kwargs: Any) -> ClipData:
    """The section, checked against the schema; there must be nothing to notice."""
    notices: list[str] = []
    values = translate_dataset(loader(name, **kwargs), "data_loader", notices)
    assert values is not None
    assert notices == []
    return DATASET_TYPES[values["type"]].model_validate(values)


HOWTO = {"csv": "v.csv", "features_path": "f", "features_path_audio": "a", "caption_path": "c.pickle"}
STEPS = {"csv": "v.csv", "features_path": "f", "audio_path": "a", "steps_path": "s.json", "annot_path": "y"}


def test_howto100m_with_the_authors_defaults() -> None:
    assert translate("HowTo100M", **HOWTO).model_dump(exclude_none=True) == {
        "type": "howto100m",
        "csv": "v.csv",
        "captions": "c.pickle",
        "features_2d": "f",
        "features_3d": "f",
        "audio": "a",
        "rate_2d": 1.0,
        "rate_3d": 1.5,
        "clips_per_video": 1,
        "min_time": 8.0,
        "audio_shift": "none",
        "video_tokens": 12,
        "audio_frames": 768,
        "sampling": "clip",
        "repeat": 1,
    }


def test_howto100m_as_trained() -> None:
    kwargs = HOWTO | {"n_clips": 10, "flag_text_audio_misaligned": True, "features_path_3D": "g", "min_time": 6.0}
    section = translate("HowTo100M", **kwargs).model_dump()
    assert (section["clips_per_video"], section["audio_shift"], section["features_3d"]) == (10, "later", "g")
    assert section["video_tokens"] == 9  # int(1.5 * min_time), if no number is stated


def test_howto100m_with_one_stream() -> None:
    s3d = translate("HowTo100M", **HOWTO, use_2D=False, feature_per_sec_3D=1).model_dump()
    assert (s3d["features_2d"], s3d["features_3d"], s3d["rate_3d"]) == (None, "f", 1.0)
    clip = translate("HowTo100M", **HOWTO, use_3D=False).model_dump()
    assert (clip["features_2d"], clip["features_3d"]) == ("f", None)


def test_msrvtt_trains_unless_told_otherwise() -> None:
    assert translate("MSRVTT", data_path="p").model_dump(exclude_none=True) == {
        "type": "msrvtt",
        "path": "p",
        "key_2d": "2d",
        "key_3d": "3d",
        "training": True,
        "expected_items": 968,
        "complete_dataset_size": 1000,
        "cut_clips": 1,
        "video_tokens": 12,
        "audio_frames": 768,
        "sampling": "clip",
        "repeat": 1,
    }
    assert translate("MSRVTT_test", data_path="p", training=False).model_dump()["training"] is False


def test_youcook2_with_other_features() -> None:
    section = translate("YouCook2", data_path="p", data_path_3D="s", key_3d="s3d", use_2D=False).model_dump()
    assert (section["path"], section["path_3d"], section["key_2d"], section["key_3d"]) == ("p", "s", None, "s3d")
    assert (section["required_key"], section["complete_dataset_size"]) == ("2d_full", 3350)


def test_clips_are_cut_only_if_the_file_says_so() -> None:
    assert translate("YouCook2", data_path="p", cut_clips=True, n_clips=6).model_dump()["cut_clips"] == 6
    assert translate("YouCook2", data_path="p", cut_clips=False, n_clips=1).model_dump()["cut_clips"] == 1


@pytest.mark.parametrize(("name", "kind"), [("CrossTask", "crosstask"), ("MiningYoutube", "mining-youtube")])
def test_step_data_sets(name: str, kind: str) -> None:
    section = translate(name, **STEPS, clip_radius=2, audio_padding=4, use_3D=False).model_dump()
    assert (section["type"], section["clip_radius"], section["audio_padding"]) == (kind, 2, 4)
    assert (section["features"], section["audio"], section["steps"], section["annotations"]) == (
        "f",
        "a",
        "s.json",
        "y",
    )
    assert (section["use_2d"], section["use_3d"]) == (True, False)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (loader("LSMDC"), "no data set is called 'LSMDC' here"),
        # The authors' loader takes these out of the configuration before it is stored in the checkpoint.
        (loader("HowTo100M", **{k: v for k, v in HOWTO.items() if k != "caption_path"}), "captions is not stated"),
        (loader("YouCook2"), "path is not stated"),
    ],
)
def test_what_cannot_be_read_is_left_out_with_a_notice(values: dict[str, Any], says: str) -> None:
    notices: list[str] = []
    assert translate_dataset(values, "data_loader", notices) is None
    assert len(notices) == 1
    assert says in notices[0]


def test_no_data_set_needs_no_notice() -> None:
    notices: list[str] = []
    assert translate_dataset({}, "data_loader", notices) is None
    assert notices == []


def test_word_vectors_are_not_read_beside_clip() -> None:
    words = loader("MSRVTT", word2vec_path="w.bin", max_words=7)
    assert translate_text(words, is_clip=False) == {"max_words": 7, "path": "w.bin"}
    assert translate_text(words, is_clip=True) == {"max_words": 7, "encoder": "clip"}


def test_feature_streams() -> None:
    resnet, resnext = {"backbone": "resnet152", "rate": 1.0}, {"backbone": "resnext101-3d", "rate": 1.5}
    assert translate_features(loader("MSRVTT")) == {"video_2d": resnet, "video_3d": resnext}
    s3d = {"video_2d": None, "video_3d": {"backbone": "s3d", "rate": 1.0}}
    assert translate_features(loader("MSRVTT", use_2D=False)) == s3d
    clip = {"video_2d": {"backbone": "clip-vit-b32", "rate": 1.0}, "video_3d": None}
    assert translate_features(loader("MSRVTT", use_3D=False)) == clip
