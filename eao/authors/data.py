"""The authors' data loaders as the data and features sections."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eao.authors.schema import leftover, renamed, section
from eao.config import DATASET_TYPES

DATASETS = {
    "HowTo100M": "howto100m",
    "MSRVTT": "msrvtt",
    "YouCook2": "youcook2",
    "CrossTask": "crosstask",
    "MiningYoutube": "mining-youtube",
}
"""Parts of a `dataset_name`, in the order in which their code looks for them."""

SIZES = {
    "n_video_tokens": "video_tokens",
    "num_audio_STFT_frames": "audio_frames",
    "video_sampling_strategy": "sampling",
}
SIZE_DEFAULTS = {"video_tokens": 12, "audio_frames": 768, "sampling": "clip"}
_RATES = {"feature_per_sec_2D": "rate_2d", "feature_per_sec_3D": "rate_3d"}
_PICKLED = {"data_path": "path", "data_path_2D": "path_2d", "data_path_3D": "path_3d"}
_STEPS = _RATES | {
    "csv": "csv",
    "features_path": "features",
    "audio_path": "audio",
    "steps_path": "steps",
    "annot_path": "annotations",
    "clip_radius": "clip_radius",
    "audio_padding": "audio_padding",
    "use_2D": "use_2d",
    "use_3D": "use_3d",
}
KEYS: dict[str, dict[str, str]] = {
    "howto100m": _RATES
    | {
        "csv": "csv",
        "caption_path": "captions",
        "features_path_audio": "audio",
        "min_time": "min_time",
        "n_clips": "clips_per_video",
    },
    "msrvtt": _PICKLED,
    "youcook2": _PICKLED,
    "crosstask": _STEPS,
    "mining-youtube": _STEPS,
}
# Read by name below, or of the text, which is the same for all data sets of an experiment.
_READ = {"use_2D", "use_3D", "key_2d", "key_3d", "max_words", "word2vec_path", "we_dim"}
_READ_BY_TYPE = {
    "howto100m": {"features_path", "features_path_3D", "flag_text_audio_misaligned"},
    "msrvtt": {"training", "cut_clips", "n_clips"},
    "youcook2": {"cut_clips", "n_clips"},
}
LOADER_KEYS = {"dataset_name", "dataset_kwargs", "batch_size", "num_workers", "shuffle", "drop_last"}


def dataset_type(loader: Mapping[str, Any]) -> str | None:
    """Our name for the data set that a loader of theirs reads; None = there is none of ours."""
    name = str(section(loader, "args").get("dataset_name", ""))
    return next((ours for theirs, ours in DATASETS.items() if theirs in name), None)


def translate_dataset(loader: Mapping[str, Any], where: str, notices: list[str]) -> dict[str, Any] | None:
    """The section of a data set, with its sizes.

    Args:
        loader: `type` and `args`.
        where: names the loader in notices.
        notices: what cannot be translated is added here.

    Returns:
        None where there is no such data set, or what it needs is not stated.
    """
    args = section(loader, "args")
    kind, kwargs = dataset_type(loader), section(args, "dataset_kwargs")
    if kind is None:
        if "dataset_name" in args:
            notices.append(f"{where}: no data set is called {args['dataset_name']!r} here")
        return None
    values: dict[str, Any] = {"type": kind} | SIZE_DEFAULTS | renamed(kwargs, SIZES) | renamed(kwargs, KEYS[kind])
    if kind == "howto100m":
        values |= _howto100m(kwargs)
    elif kind in ("msrvtt", "youcook2"):
        values |= _pickled(kind, kwargs)
    known = {*SIZES, *KEYS[kind], *_READ, *_READ_BY_TYPE.get(kind, ())}
    leftover(kwargs, f"{where}.args.dataset_kwargs.", known, notices)
    leftover(args, f"{where}.args.", LOADER_KEYS, notices)
    missing = [key for key, f in DATASET_TYPES[kind].model_fields.items() if f.is_required() and key not in values]
    if missing:
        notices.append(f"{where}: {args['dataset_name']} is left out, since {', '.join(missing)} is not stated")
        return None
    return values


def translate_text(loader: Mapping[str, Any], is_clip: bool) -> dict[str, Any]:
    """The text section; word vectors are not read where CLIP encodes the text."""
    kwargs = section(loader, "args", "dataset_kwargs")
    text = renamed(kwargs, {"max_words": "max_words"})
    if is_clip:
        return text | {"encoder": "clip"}
    return text | renamed(kwargs, {"word2vec_path": "path"})


def translate_features(loader: Mapping[str, Any]) -> dict[str, Any]:
    """The feature streams a data set of theirs was made of: ResNet-152 and ResNeXt-101 unless it says otherwise."""
    kwargs = section(loader, "args", "dataset_kwargs")
    rate_2d, rate_3d = kwargs.get("feature_per_sec_2D"), kwargs.get("feature_per_sec_3D")
    clip = kwargs.get("key_2d") == "clip" or (kwargs.get("use_3D") is False and kwargs.get("use_2D", True))
    s3d = kwargs.get("key_3d") == "s3d" or (kwargs.get("use_2D") is False and kwargs.get("use_3D", True))
    video_2d = {"backbone": "clip-vit-b32" if clip else "resnet152", "rate": rate_2d or 1.0}
    video_3d = {"backbone": "s3d" if s3d else "resnext101-3d", "rate": rate_3d or (1.0 if s3d else 1.5)}
    return {
        "video_2d": video_2d if kwargs.get("use_2D", True) else None,
        "video_3d": video_3d if kwargs.get("use_3D", True) else None,
    }


def _howto100m(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {
        "clips_per_video": kwargs.get("n_clips", 1),
        # Their coin for which way to shift always falls on the same side.
        "audio_shift": "later" if kwargs.get("flag_text_audio_misaligned") else "none",
    }
    if kwargs.get("n_video_tokens") is None:
        values["video_tokens"] = int(1.5 * kwargs.get("min_time", 8.0))
    path_2d = kwargs.get("features_path")
    path_3d = kwargs.get("features_path_3D") or path_2d
    if path_2d is not None:
        values["features_2d"] = path_2d if kwargs.get("use_2D", True) else None
        values["features_3d"] = path_3d if kwargs.get("use_3D", True) else None
    return values


def _pickled(kind: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    full = "_full" if kind == "youcook2" else ""
    values = {
        "key_2d": kwargs.get("key_2d", f"2d{full}") if kwargs.get("use_2D", True) else None,
        "key_3d": kwargs.get("key_3d", f"3d{full}") if kwargs.get("use_3D", True) else None,
        "cut_clips": kwargs.get("n_clips", 1) if kwargs.get("cut_clips") else 1,
    }
    return values | ({"training": kwargs.get("training", True)} if kind == "msrvtt" else {})
