"""The shipped experiments: each differs from its base in what the paper says, and its model has the published size."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from eao.config import Config, lay_over, load_config, read_yaml
from eao.configs import find_config, shipped_configs
from eao.model import build_model

# Expected values are written from a table of the authors' files, not read from the configurations; tensors and
# parameters were counted in models of their code.

BASE = "pretraining/everything_at_once_tva"
ABLATION = "pretraining/ablation"
ONLY_PAIRS = {
    "loss.weights.text_videoaudio": 0,
    "loss.weights.video_textaudio": 0,
    "loss.weights.audio_textvideo": 0,
}
ALL_ONE = {
    f"loss.weights.{term}": 1
    for term in ("text_audio", "video_audio", "text_videoaudio", "video_textaudio", "audio_textvideo")
}
S3D = {
    "model.video_dim": 1024,
    "data.train.csv": "data/howto/HowTo100M_1166_videopaths_s3d.txt",
    "data.train.features_2d": None,
    "data.train.features_3d": "data/howto/new_s3d_features",
    "data.train.rate_3d": 1.0,
    "data.validation.msrvtt.path_3d": "data/msrvtt/s3d/msrvtt_jsfusion_test.pkl",
    "data.validation.msrvtt.key_2d": None,
    "data.validation.msrvtt.key_3d": "s3d",
    "data.validation.youcook2.path_3d": "data/youcook/s3d/youcook_val.pkl",
    "data.validation.youcook2.key_2d": None,
    "data.validation.youcook2.key_3d": "s3d",
    "features.video_2d": None,
    "features.video_3d.backbone": "s3d",
    "features.video_3d.rate": 1.0,
}
CLIP_MODEL = {
    "model.video_dim": 512,
    "model.text_dim": 512,
    "data.text.encoder": "clip",
    "data.text.path": "data/clip-vit-base-patch32",
    "features.video_2d.backbone": "clip-vit-b32",
    "features.video_3d": None,
}
CLIP = CLIP_MODEL | {
    "data.train.csv": "data/howto/HowTo100M_1166_videopaths_CLIP.txt",
    "data.train.features_2d": "data/howto/clip_features",
    "data.train.features_3d": None,
    "data.validation.msrvtt.path_2d": "data/msrvtt/clip/msrvtt_jsfusion_test.pkl",
    "data.validation.msrvtt.key_2d": "clip",
    "data.validation.msrvtt.key_3d": None,
    "data.validation.youcook2.path_2d": "data/youcook/clip/youcook_val.pkl",
    "data.validation.youcook2.key_2d": "clip",
    "data.validation.youcook2.key_3d": None,
}

PRETRAINING: dict[str, tuple[dict[str, Any], int, int]] = {
    # name: (differences from the base, entries of the state dict, parameters)
    BASE: ({}, 188, 689_371_138),
    "pretraining/everything_at_once_tv": (
        {"model.architecture": "text-video"} | ONLY_PAIRS,
        188,
        689_371_138,
    ),
    f"{ABLATION}/architecture/fusion_no_comb": ({"model.cross_modal": False} | ONLY_PAIRS, 188, 689_371_138),
    f"{ABLATION}/architecture/no_transformers": (
        {"model.cross_modal": False, "model.fusion.depth": 0} | ONLY_PAIRS,
        176,
        588_666_882,
    ),
    f"{ABLATION}/architecture/transformer_per_modality": (
        # The per-modality model has no pairs, whatever `cross_modal` says.
        {"model.architecture": "per-modality", "model.cross_modal": False} | ONLY_PAIRS,
        233,
        890_804_226,
    ),
    f"{ABLATION}/disentangling_audio_text/aligned_audio_text": (
        {"data.train.audio_shift": "none"} | ALL_ONE,
        188,
        689_371_138,
    ),
    f"{ABLATION}/disentangling_audio_text/disentangled_equal_weights": (ALL_ONE, 188, 689_371_138),
    f"{ABLATION}/fusion_design/cls_token": (
        {"model.fusion.use_cls_token": True, "model.individual_projections": False},
        181,
        563_521_538,
    ),
    f"{ABLATION}/fusion_design/shared_final_proj": ({"model.individual_projections": False}, 180, 563_517_442),
    f"{ABLATION}/fusion_transformer/4blocks_16heads_1024hidden": (
        {"model.fusion.embed_dim": 1024, "model.fusion.depth": 4, "model.fusion.num_heads": 16},
        224,
        483_931_138,
    ),
    f"{ABLATION}/fusion_transformer/2blocks_32heads_2048hidden": (
        {"model.fusion.embed_dim": 2048, "model.fusion.depth": 2, "model.fusion.num_heads": 32},
        200,
        546_119_682,
    ),
    f"{ABLATION}/fusion_transformer/2blocks_64heads_4096hidden_112_10bs": (
        {"model.fusion.depth": 2, "data.batch_size": 112},
        200,
        790_075_394,
    ),
    f"{ABLATION}/fusion_transformer/2blocks_64heads_4096hidden_224_5bs": (
        {"model.fusion.depth": 2, "data.train.clips_per_video": 5},
        200,
        790_075_394,
    ),
    f"{ABLATION}/stronger_backbone/s3d": (S3D, 188, 676_788_226),
    f"{ABLATION}/stronger_backbone/clip": (CLIP, 188, 675_559_426),
}

MSRVTT_TEST = {
    "type": "msrvtt",
    "path": "data/msrvtt/resnet/msrvtt_jsfusion_test.pkl",
    "path_2d": None,
    "path_3d": None,
    "key_2d": "2d",
    "key_3d": "3d",
    "training": False,
    "expected_items": 968,
    "complete_dataset_size": 1000,
    "video_tokens": 48,
    "audio_frames": 3072,
    "sampling": "clip",
    "cut_clips": 1,
    "batch_size": 16,
    "repeat": 1,
}
YOUCOOK_TEST = {
    "type": "youcook2",
    "path": "data/youcook/resnet/youcook_val.pkl",
    "path_2d": None,
    "path_3d": None,
    "key_2d": "2d_full",
    "key_3d": "3d_full",
    "required_key": "2d_full",
    "complete_dataset_size": 3350,
    "video_tokens": 72,
    "audio_frames": 4608,
    "sampling": "clip",
    "cut_clips": 1,
    "batch_size": 16,
    "repeat": 1,
}
POSITIONAL = {"use_positional_emb": True, "video_max_tokens": 12, "text_max_tokens": 20, "audio_max_frames": 768}
MAX = {"audio_max_frames": 768, "audio_pooling": "max_pool"}
NEAREST = {"audio_max_frames": 768, "audio_pooling": "nearest"}
STRONG = "evaluation/stronger_backbone"
EVALUATION: dict[str, tuple[dict[str, Any], dict[str, Any], str, int, int]] = {
    # name: (data set, differences of the model from the base, the base, entries, parameters)
    **{
        f"evaluation/{prefix}{name}_{protocol}": (
            test | {"video_tokens": 12, "sampling": sampling},
            pooling | (POSITIONAL if prefix else {}),
            BASE,
            191 if prefix else 188,
            689_551_362 if prefix else 689_371_138,
        )
        for name, test in (("msrvtt", MSRVTT_TEST), ("youcook", YOUCOOK_TEST))
        for protocol, sampling, pooling in (("max", "max_pool", MAX), ("nearest", "nearest", NEAREST))
        for prefix in ("", "pos_")
    },
    "evaluation/msrvtt_at_once": (MSRVTT_TEST, {}, BASE, 188, 689_371_138),
    "evaluation/youcook_at_once": (YOUCOOK_TEST, {}, BASE, 188, 689_371_138),
    "evaluation/msrvtt_clips": (
        MSRVTT_TEST | {"video_tokens": 12, "audio_frames": 768, "cut_clips": 4},
        {},
        BASE,
        188,
        689_371_138,
    ),
    "evaluation/youcook_clips": (
        YOUCOOK_TEST | {"video_tokens": 12, "audio_frames": 768, "cut_clips": 6},
        {},
        BASE,
        188,
        689_371_138,
    ),
    "evaluation/pos_youcook_clips": (
        YOUCOOK_TEST | {"video_tokens": 12, "audio_frames": 768, "cut_clips": 6},
        POSITIONAL,
        BASE,
        191,
        689_551_362,
    ),
    **{
        f"{STRONG}/{backbone}/{backbone}_{name}_at_once": (
            test | {f"path_{stream}": f"data/{name}/{backbone}/{file}", "key_2d": None, "key_3d": None}
            | {f"key_{stream}": backbone},
            {},
            f"{ABLATION}/stronger_backbone/{backbone}",
            188,
            parameters,
        )
        for backbone, stream, parameters in (("s3d", "3d", 676_788_226), ("clip", "2d", 675_559_426))
        for name, test, file in (
            ("msrvtt", MSRVTT_TEST, "msrvtt_jsfusion_test.pkl"),
            ("youcook", YOUCOOK_TEST, "youcook_val.pkl"),
        )
    },
}  # fmt: skip

FINETUNING = {
    "model.architecture": "fusion",
    "data.video_tokens": 48,
    "data.audio_frames": 3072,
    "data.sampling": "clip",
    "data.batch_size": 128,
    "data.workers": 8,
    "data.train.type": "msrvtt",
    "data.train.path": "data/msrvtt/resnet/msrvtt_train.pkl",
    "data.train.path_2d": None,
    "data.train.path_3d": None,
    "data.train.key_2d": "2d",
    "data.train.key_3d": "3d",
    "data.train.training": True,
    "data.train.cut_clips": 1,
    "data.validation.msrvtt.path": "data/msrvtt/resnet/msrvtt_jsfusion_test.pkl",
    "data.validation.msrvtt.batch_size": 8,
    "data.validation.youcook2": None,
    "loss.kind": "norm-softmax",
    "loss.temperature": 0.05,
    "loss.weights.text_video": 1.0,
    **ALL_ONE,
    "optimizer.name": "Adam",
    "optimizer.lr": 5e-5,
    "schedule.name": "exponential",
    "schedule.gamma": 0.9,
    "trainer.precision": "auto",
    "trainer.epochs": 25,
    "trainer.eval_mode": True,
    "trainer.save_every": 100,
    "trainer.monitor": None,
    "trainer.initial_weights": "checkpoints/everything_at_once_tva",
}
FINETUNING_YOUCOOK = {
    key: value
    for key, value in FINETUNING.items()
    if key not in ("data.train.training", "data.validation.youcook2") and not key.startswith("data.validation.msrvtt")
} | {
    "data.video_tokens": 72,
    "data.audio_frames": 4608,
    "data.batch_size": 256,
    "data.workers": 16,
    "data.train.type": "youcook2",
    "data.train.path": "data/youcook/resnet/youcook_train.pkl",
    "data.train.key_2d": "2d_full",
    "data.train.key_3d": "3d_full",
    "data.train.required_key": "2d_full",
    "data.validation.msrvtt": None,
    "data.validation.youcook2.path": "data/youcook/resnet/youcook_val.pkl",
    "data.validation.youcook2.batch_size": 16,
    "optimizer.lr": 1e-5,
    "trainer.epochs": 5,
}


def with_clip(expected: dict[str, Any], name: str, train: str, validation: str, **changes: Any) -> dict[str, Any]:
    return (
        expected
        | CLIP_MODEL
        | {
            "data.train.path_2d": train,
            "data.train.key_2d": "clip",
            "data.train.key_3d": None,
            f"data.validation.{name}.path_2d": validation,
            f"data.validation.{name}.key_2d": "clip",
            f"data.validation.{name}.key_3d": None,
            "trainer.initial_weights": "checkpoints/clip",
        }
        | changes
    )


FINETUNINGS = {
    "finetuning/msrvtt": (FINETUNING, BASE),
    "finetuning/youcook": (FINETUNING_YOUCOOK, BASE),
    "finetuning/clip/msrvtt": (
        with_clip(
            FINETUNING,
            "msrvtt",
            "data/msrvtt/clip/msrvtt_train.pkl",
            "data/msrvtt/clip/msrvtt_jsfusion_test.pkl",
            **{"data.batch_size": 64},
        ),
        f"{ABLATION}/stronger_backbone/clip",
    ),
    "finetuning/clip/youcook": (
        with_clip(
            FINETUNING_YOUCOOK,
            "youcook2",
            "data/youcook/clip/youcook_train.pkl",
            "data/youcook/clip/youcook_val.pkl",
        ),
        f"{ABLATION}/stronger_backbone/clip",
    ),
}
LOCALISATION = ("evaluation/crosstask", "evaluation/mining_youtube")


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of nested mappings by dotted key."""
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    return {k: v for key, each in value.items() for k, v in flat(each, f"{prefix}.{key}" if prefix else key).items()}


def differences(config: Config, base: Config) -> dict[str, Any]:
    """What the configuration says that the base does not."""
    mine, its = flat(config.model_dump()), flat(base.model_dump())
    return {key: value for key, value in mine.items() if key != "name" and (key not in its or its[key] != value)}


def load(name: str) -> Config:
    return load_config(find_config(name))


@functools.cache
def size(model_json: str) -> tuple[int, int]:
    """Entries of the state dict and parameters of a model, built without memory."""
    with torch.device("meta"):
        model = build_model(Config.model_validate_json(model_json).model)
    return len(model.state_dict()), sum(p.numel() for p in model.parameters())


def size_of(config: Config) -> tuple[int, int]:
    return size(Config(model=config.model).model_dump_json())


def test_every_experiment_of_the_paper_is_there() -> None:
    papers = {name for name in shipped_configs() if not name.startswith("demo/")}
    assert papers == {*PRETRAINING, *FINETUNINGS, *EVALUATION, *LOCALISATION}
    assert (len(PRETRAINING), len(FINETUNINGS), len(EVALUATION)) == (15, 4, 17)


def test_the_base_is_the_published_training() -> None:
    expected = {
        "model.architecture": "fusion",
        "model.text_dim": 300,
        "model.video_dim": 4096,
        "model.embedding_dim": 6144,
        "model.fusion.embed_dim": 4096,
        "model.fusion.depth": 1,
        "model.fusion.num_heads": 64,
        "model.fusion.mlp_ratio": 1.0,
        "model.fusion.use_cls_token": False,
        "model.audio.version": "v2",
        "model.token_projection": "gated",
        "model.output_projection": "gated",
        "model.individual_projections": True,
        "model.cross_modal": True,
        "model.use_positional_emb": False,
        "model.audio_pooling": "none",
        "data.text.encoder": "word2vec",
        "data.text.path": "data/GoogleNews-vectors-negative300.bin",
        "data.text.max_words": 20,
        "data.video_tokens": 12,
        "data.audio_frames": 768,
        "data.sampling": "clip",
        "data.batch_size": 224,
        "data.workers": 32,
        "data.train.type": "howto100m",
        "data.train.csv": "data/howto/HowTo100M_1166_videopaths.txt",
        "data.train.captions": "data/howto/caption.pickle",
        "data.train.features_2d": "data/howto/features",
        "data.train.features_3d": "data/howto/features",
        "data.train.audio": "data/howto/audio_features",
        "data.train.rate_2d": 1.0,
        "data.train.rate_3d": 1.5,
        "data.train.clips_per_video": 10,
        "data.train.min_time": 8.0,
        "data.train.audio_shift": "later",
        "data.validation.msrvtt.path": "data/msrvtt/resnet/msrvtt_jsfusion_test.pkl",
        "data.validation.msrvtt.training": False,
        "data.validation.msrvtt.video_tokens": 48,
        "data.validation.msrvtt.audio_frames": 3072,
        "data.validation.msrvtt.batch_size": 8,
        "data.validation.youcook2.path": "data/youcook/resnet/youcook_val.pkl",
        "data.validation.youcook2.video_tokens": 72,
        "data.validation.youcook2.audio_frames": 4608,
        "data.validation.youcook2.batch_size": 16,
        "loss.kind": "norm-softmax",
        "loss.temperature": 0.05,
        "loss.weights.text_video": 1.0,
        **dict.fromkeys(ALL_ONE, 0.1),
        "optimizer.name": "Adam",
        "optimizer.lr": 5e-5,
        "schedule.name": "exponential",
        "schedule.gamma": 0.9,
        "trainer.epochs": 15,
        "trainer.precision": "auto",
        "trainer.save_every": 20,
        "trainer.eval_mode": False,
        "trainer.monitor": None,
        "trainer.initial_weights": None,
        "features.video_2d": {"backbone": "resnet152", "rate": 1.0},
        "features.video_3d": {"backbone": "resnext101-3d", "rate": 1.5},
    }
    config = load(BASE)
    found = flat(config.model_dump())
    assert {key: found[key] for key in flat(expected)} == flat(expected)
    assert len(config.evaluation.tasks) == 18


@pytest.mark.parametrize("name", PRETRAINING)
def test_pretraining_differs_in_what_the_paper_says(name: str) -> None:
    expected, entries, parameters = PRETRAINING[name]
    config = load(name)
    assert differences(config, load(BASE)) == expected
    assert size_of(config) == (entries, parameters)


@pytest.mark.parametrize("name", FINETUNINGS)
def test_finetuning(name: str) -> None:
    expected, pretraining = FINETUNINGS[name]
    config = load(name)
    found = flat(config.model_dump())
    assert {key: found[key] for key in expected} == expected
    assert config.model == load(pretraining).model
    assert config.evaluation == load(pretraining).evaluation
    assert config.features == load(pretraining).features


@pytest.mark.parametrize("name", EVALUATION)
def test_evaluation_is_laid_over_the_checkpoint(name: str) -> None:
    test, model, base, entries, parameters = EVALUATION[name]
    trained = load(base)
    config = lay_over(trained, read_yaml(find_config(name)), name)
    assert config.data.test.model_dump() == test  # type: ignore[union-attr]
    changed = differences(config, trained)
    data = {key for key in changed if not key.startswith(("model.", "data.test."))}
    assert {key: value for key, value in changed.items() if key.startswith("model.")} == {
        f"model.{key}": value for key, value in model.items()
    }
    assert data == {"data.workers"} and config.data.workers == 16
    assert size_of(config) == (entries, parameters)


def test_localisation_is_by_the_second() -> None:
    for name, kind in zip(LOCALISATION, ("crosstask", "mining-youtube"), strict=True):
        test = load(name).data.named("test")[""]
        values = test.model_dump()
        assert (values["type"], values["video_tokens"], values["audio_frames"]) == (kind, 12, 768)
        assert (values["clip_radius"], values["audio_padding"]) == (0, 0)


def test_experiments_that_train_have_names_of_their_own() -> None:
    names = [load(name).name for name in shipped_configs() if not name.startswith("evaluation/")]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", shipped_configs())
def test_says_in_its_first_line_what_it_is(name: str) -> None:
    assert find_config(name).read_text(encoding="utf-8").startswith("# ")
