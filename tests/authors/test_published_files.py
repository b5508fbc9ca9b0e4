"""Each of the authors' 36 files is the shipped experiment of its place, setting by setting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from eao.config import Config, lay_over, load_config, merge, read_yaml
from eao.configs import find_config
from eao.experiments import load_evaluation, load_experiment

BASE = "pretraining/everything_at_once_tva"
ABLATION = "pretraining/ablation"

# The files are written from a description of them. Each of theirs states all of its settings, so differences are laid
# over a base here.
FUSION = {"embed_dim": 4096, "use_cls_token": False, "depth": 1, "num_heads": 64, "mlp_ratio": 1}
ARCH = {
    "type": "EverythingAtOnceModel",
    "args": {
        "video_embed_dim": 4096,
        "text_embed_dim": 300,
        "davenet_v2": True,
        "strategy_audio_pooling": "none",
        "token_projection": "gated",
        "projection": "gated",
        "use_positional_emb": False,
        "individual_projections": True,
        "projection_dim": 6144,
        "fusion_params": FUSION,
    },
}
TEXT = {"we_dim": 300, "max_words": 20, "word2vec_path": "./data/GoogleNews-vectors-negative300.bin"}


def loader(name: str, batch_size: int, workers: int, kwargs: dict[str, Any], training: bool = False) -> dict[str, Any]:
    args = {"dataset_name": name, "batch_size": batch_size, "num_workers": workers, "shuffle": training}
    return {
        "type": "FeatureDataloader",
        "args": args | {"drop_last": training, "dataset_kwargs": TEXT | {"video_sampling_strategy": "clip"} | kwargs},
    }


def sized(tokens: int, frames: int) -> dict[str, int]:
    return {"n_video_tokens": tokens, "num_audio_STFT_frames": frames}


MSRVTT_TEST = {"data_path": "./data/msrvtt/resnet/msrvtt_jsfusion_test.pkl", "training": False} | sized(48, 3072)
YOUCOOK_TEST = {"data_path": "./data/youcook/resnet/youcook_val.pkl"} | sized(72, 4608)
HOWTO = {
    "csv": "./data/howto/HowTo100M_1166_videopaths.txt",
    "features_path": "./data/howto/features",
    "features_path_audio": "./data/howto/audio_features",
    "caption_path": "./data/howto/caption.pickle",
    "min_time": 8.0,
    "n_clips": 10,
    "flag_text_audio_misaligned": True,
} | sized(12, 768)
TASKS = "t2v v2t t2a a2t v2a a2v t2va va2t v2ta ta2v a2tv tv2a t2v+a v+a2t v2t+a t+a2v a2t+v t+v2a"
WEIGHTS = ("ta_weight", "va_weight", "t_va_weight", "v_ta_weight", "a_tv_weight")


def loss(others: float, terms: tuple[str, ...] = WEIGHTS) -> dict[str, Any]:
    return {"type": "CombinatorialLoss", "args": {"tv_weight": 1} | dict.fromkeys(terms, others)}


def trainer(epochs: int, **values: Any) -> dict[str, Any]:
    common = {"mixed_precision": True, "save_dir": "./output", "verbosity": 2, "monitor": "off", "neptune": False}
    return common | {"epochs": epochs, "init_val": False} | values


ADAM = {
    "optimizer": {"type": "Adam", "args": {"lr": 5e-5}},
    "lr_scheduler": {"type": "ExponentialLR", "args": {"gamma": 0.9}},
}
PRETRAIN = {
    "n_gpu": 4,
    "arch": ARCH,
    "data_loader": loader("HowTo100M", 224, 32, HOWTO, training=True),
    "val_data_loaders": [loader("MSRVTT", 8, 8, MSRVTT_TEST), loader("YouCook2", 16, 16, YOUCOOK_TEST)],
    "loss": loss(0.1),
    "metrics": [f"{task}_metrics" for task in TASKS.split()],
    "trainer": trainer(15, save_period=20),
} | ADAM


def pretraining(
    arch: dict[str, Any] | None = None, fusion: dict[str, Any] | None = None, kind: str = ARCH["type"], **sections: Any
) -> dict[str, Any]:
    changed = {"type": kind, "args": ARCH["args"] | (arch or {}) | {"fusion_params": FUSION | (fusion or {})}}
    return PRETRAIN | {"arch": changed} | sections


def howto(batch_size: int = 224, **kwargs: Any) -> dict[str, Any]:
    return loader("HowTo100M", batch_size, 32, HOWTO | kwargs, training=True)


ONLY_PAIRS = loss(0.1, WEIGHTS[:2])
S3D = {"use_2D": False, "key_3d": "s3d"}
CLIP = {"use_3D": False, "key_2d": "clip"}
TRAINING: dict[str, dict[str, Any]] = {
    BASE: PRETRAIN,
    "pretraining/everything_at_once_tv": pretraining(kind="EverythingAtOnceModel_TV_Only", loss=ONLY_PAIRS),
    f"{ABLATION}/architecture/fusion_no_comb": pretraining({"cross_modal": False}, loss=ONLY_PAIRS),
    f"{ABLATION}/architecture/no_transformers": pretraining({"cross_modal": False}, {"depth": 0}, loss=ONLY_PAIRS),
    f"{ABLATION}/architecture/transformer_per_modality": pretraining(
        kind="TransformerPerModalityModel", loss=ONLY_PAIRS
    ),
    f"{ABLATION}/disentangling_audio_text/aligned_audio_text": pretraining(
        data_loader=howto(flag_text_audio_misaligned=False), loss=loss(1)
    ),
    f"{ABLATION}/disentangling_audio_text/disentangled_equal_weights": pretraining(loss=loss(1)),
    f"{ABLATION}/fusion_design/cls_token": pretraining({"individual_projections": False}, {"use_cls_token": True}),
    f"{ABLATION}/fusion_design/shared_final_proj": pretraining({"individual_projections": False}),
    f"{ABLATION}/fusion_transformer/4blocks_16heads_1024hidden": pretraining(
        fusion={"embed_dim": 1024, "depth": 4, "num_heads": 16}
    ),
    f"{ABLATION}/fusion_transformer/2blocks_32heads_2048hidden": pretraining(
        fusion={"embed_dim": 2048, "depth": 2, "num_heads": 32}
    ),
    f"{ABLATION}/fusion_transformer/2blocks_64heads_4096hidden_112_10bs": pretraining(
        fusion={"depth": 2}, data_loader=howto(112)
    ),
    f"{ABLATION}/fusion_transformer/2blocks_64heads_4096hidden_224_5bs": pretraining(
        fusion={"depth": 2}, data_loader=howto(n_clips=5)
    ),
    f"{ABLATION}/stronger_backbone/s3d": pretraining(
        {"video_embed_dim": 1024},
        data_loader=howto(
            csv="./data/howto/HowTo100M_1166_videopaths_s3d.txt",
            features_path="./data/howto/new_s3d_features",
            feature_per_sec_3D=1,
            use_2D=False,
        ),
        val_data_loaders=[
            loader("MSRVTT", 8, 8, MSRVTT_TEST | S3D | {"data_path_3D": "./data/msrvtt/s3d/msrvtt_jsfusion_test.pkl"}),
            # Theirs is in the folder of MSR-VTT, by mistake.
            loader("YouCook2", 16, 16, YOUCOOK_TEST | S3D | {"data_path_3D": "./data/youcook/s3d/youcook_val.pkl"}),
        ],
    ),
    f"{ABLATION}/stronger_backbone/clip": pretraining(
        {"video_embed_dim": 512, "text_embed_dim": 512},
        data_loader=howto(
            csv="./data/howto/HowTo100M_1166_videopaths_CLIP.txt",
            features_path="./data/howto/clip_features",
            feature_per_sec_2D=1,
            use_3D=False,
        ),
        val_data_loaders=[
            loader(
                "MSRVTT", 8, 8, MSRVTT_TEST | CLIP | {"data_path_2D": "./data/msrvtt/clip/msrvtt_jsfusion_test.pkl"}
            ),
            loader("YouCook2", 16, 16, YOUCOOK_TEST | CLIP | {"data_path_2D": "./data/youcook/clip/youcook_val.pkl"}),
        ],
        trainer=trainer(15, save_period=20, use_clip_text_model=True),
    ),
}


def finetuning(
    train: dict[str, Any], validation: dict[str, Any], lr: float, epochs: int, **values: Any
) -> dict[str, Any]:
    return ADAM | {
        "n_gpu": 4,
        "data_loader": train,
        "val_data_loaders": [validation],
        "loss": loss(1),
        "optimizer": {"type": "Adam", "args": {"lr": lr}},
        "trainer": trainer(epochs, save_period=100, use_eval_mode_always=True, resume_only_model=True, **values),
    }


MSRVTT_TRAIN = {"data_path": "./data/msrvtt/resnet/msrvtt_train.pkl", "training": True} | sized(48, 3072)
YOUCOOK_TRAIN = {"data_path": "./data/youcook/resnet/youcook_train.pkl"} | sized(72, 4608)
CLIP_TRAINER = {
    "use_clip_text_model": True,
    "use_clip_text_model_use_proj": True,
    "use_clip_text_model_use_just_cls": False,
    "save_latest": False,
}
FINETUNING = {
    "finetuning/msrvtt": finetuning(
        loader("MSRVTT", 128, 8, MSRVTT_TRAIN, training=True), loader("MSRVTT", 8, 8, MSRVTT_TEST), 5e-5, 25
    ),
    "finetuning/youcook": finetuning(
        loader("YouCook2", 256, 16, YOUCOOK_TRAIN, training=True), loader("YouCook2", 16, 16, YOUCOOK_TEST), 1e-5, 5
    ),
    "finetuning/clip/msrvtt": finetuning(
        loader(
            "MSRVTT",
            64,
            8,
            MSRVTT_TRAIN | CLIP | {"data_path_2D": "./data/msrvtt/clip/msrvtt_train.pkl"},
            training=True,
        ),
        loader("MSRVTT", 8, 8, MSRVTT_TEST | CLIP | {"data_path_2D": "./data/msrvtt/clip/msrvtt_jsfusion_test.pkl"}),
        5e-5,
        25,
        **CLIP_TRAINER,
    ),
    "finetuning/clip/youcook": finetuning(
        loader(
            "YouCook2",
            256,
            16,
            YOUCOOK_TRAIN | CLIP | {"data_path_2D": "./data/youcook/clip/youcook_train.pkl"},
            training=True,
        ),
        loader("YouCook2", 16, 16, YOUCOOK_TEST | CLIP | {"data_path_2D": "./data/youcook/clip/youcook_val.pkl"}),
        1e-5,
        5,
        **CLIP_TRAINER,
    ),
}
POOLED = {"audio_max_num_STFT_frames": 768}
POSITIONAL = POOLED | {"use_positional_emb": True, "video_max_tokens": 12, "text_max_tokens": 20}
SETS = {"msrvtt": ("MSRVTT", MSRVTT_TEST, 4), "youcook": ("YouCook2", YOUCOOK_TEST, 6)}


def evaluation(name: str, arch: dict[str, Any] | None = None, **kwargs: Any) -> dict[str, Any]:
    dataset, test, _ = SETS[name]
    values = {"n_gpu": 4, "data_loader": loader(dataset, 16, 16, test | kwargs)}
    return values | ({"arch": ARCH | {"args": ARCH["args"] | arch}} if arch is not None else {})  # type: ignore[operator]


def clips(name: str) -> dict[str, Any]:
    return sized(12, 768) | {"cut_clips": True, "n_clips": SETS[name][2]}


EVALUATION: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"evaluation/{name}_at_once": (BASE, evaluation(name)) for name in SETS},
    **{f"evaluation/{name}_clips": (BASE, evaluation(name, **clips(name))) for name in SETS},
    "evaluation/pos_youcook_clips": (BASE, evaluation("youcook", POSITIONAL, **clips("youcook"))),
    **{
        f"evaluation/{prefix}{name}_{protocol}": (
            BASE,
            evaluation(
                name,
                arch | {"strategy_audio_pooling": strategy},
                n_video_tokens=12,
                video_sampling_strategy=strategy,
            ),
        )
        for name in SETS
        for protocol, strategy in (("max", "max_pool"), ("nearest", "nearest"))
        for prefix, arch in (("", POOLED), ("pos_", POSITIONAL))
    },
    **{
        f"evaluation/stronger_backbone/{backbone}/{backbone}_{name}_at_once": (
            f"{ABLATION}/stronger_backbone/{backbone}",
            evaluation(name, **keys, **{f"data_path_{stream}": f"./data/{name}/{backbone}/{file}"}),
        )
        for backbone, stream, keys in (("s3d", "3D", S3D), ("clip", "2D", CLIP))
        for name, file in (("msrvtt", "msrvtt_jsfusion_test.pkl"), ("youcook", "youcook_val.pkl"))
    },
}


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of nested mappings by dotted key; paths without a leading "./"."""
    if not isinstance(value, dict) or not value:
        return {prefix: value.removeprefix("./") if isinstance(value, str) else value}
    return {k: v for key, each in value.items() for k, v in flat(each, f"{prefix}.{key}" if prefix else key).items()}


def differences(found: Config, expected: Config) -> set[str]:
    ours, theirs = flat(found.model_dump()), flat(expected.model_dump())
    return {key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)}


def shipped(name: str) -> Config:
    return load_config(find_config(name))


def theirs(folder: Path, values: dict[str, Any]) -> Path:
    (folder / "theirs.yaml").write_text(yaml.safe_dump(values))
    return folder / "theirs.yaml"


def as_they_say(config: Config) -> Config:
    """A shipped experiment as their schema says it: some of it with other words, and without what it cannot say."""
    values = config.model_dump()
    validation = config.data.named("validation")
    # Each of their data sets states its own sampling, and one of them the size of all evaluation batches.
    changes: dict[str, Any] = {
        "name": "theirs",
        "data": {"validation": {name: {"sampling": config.data.sampling} for name in validation}},
        "evaluation": {"batch_size": next(iter(validation.values())).batch_size},
    }
    if config.data.text.encoder == "clip":
        changes["data"]["text"] = {"path": None}  # their code finds it by itself
    return Config.model_validate(merge(values, changes))


def test_all_36_are_here() -> None:
    assert (len(TRAINING), len(FINETUNING), len(EVALUATION)) == (15, 4, 17)


@pytest.mark.parametrize("name", TRAINING)
def test_pretraining_is_the_shipped_experiment(tmp_path: Path, name: str) -> None:
    found = load_experiment(theirs(tmp_path, TRAINING[name]))
    assert differences(found, as_they_say(shipped(name))) == set()


@pytest.mark.parametrize("name", FINETUNING)
def test_finetuning_is_the_shipped_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    expected = shipped(name)
    weights = str(expected.trainer.initial_weights)
    monkeypatch.chdir(tmp_path)
    expected.save(Path(weights, "config.yaml"))
    Path(weights, "model.safetensors").touch()  # only its configuration is read
    found = load_experiment(theirs(tmp_path, FINETUNING[name]), [f"trainer.initial_weights={weights}"])
    assert differences(found, as_they_say(expected)) == set()


@pytest.mark.parametrize("name", EVALUATION)
def test_evaluation_is_the_shipped_experiment(tmp_path: Path, name: str) -> None:
    base, values = EVALUATION[name]
    trained = shipped(base)
    found = load_evaluation(theirs(tmp_path, values), trained)
    assert differences(found, lay_over(trained, read_yaml(find_config(name)), name)) == set()
