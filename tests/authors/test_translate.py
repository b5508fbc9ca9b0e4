"""The authors' configurations become ours without losing a setting, or with a notice that says which."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eao.authors import (
    is_authors,
    read_authors_config,
    translate_config,
    translate_evaluation,
    translate_training,
)
from eao.checkpoint import checkpoint_config
from eao.config import Config, lay_over, parse_config
from eao.errors import CheckpointError

GOLDEN = Path(__file__).parent.parent / "golden"
FILES = sorted((GOLDEN / "cfg").glob("*.yaml"))
EVALUATIONS = [path for path in FILES if path.stem.startswith("ev_")]
TRAININGS = [path for path in FILES if not path.stem.startswith("ev_")]
ARCH = {
    "type": "EverythingAtOnceModel",
    "args": {
        "video_embed_dim": 6,
        "text_embed_dim": 7,
        "projection_dim": 10,
        "fusion_params": {"embed_dim": 8, "num_heads": 2, "depth": 1, "mlp_ratio": 1},
    },
}
# From the golden data's own description of how each evaluation was run.
SIZES = {
    # name: (type, file, video tokens, audio frames, sampling, pieces)
    "ev_msrvtt_at_once": ("msrvtt", "msrvtt/test.pkl", 24, 640, "clip", 1),
    "ev_msrvtt_clips": ("msrvtt", "msrvtt/test.pkl", 6, 128, "clip", 4),
    "ev_msrvtt_max_pool": ("msrvtt", "msrvtt/test.pkl", 6, 640, "max_pool", 1),
    "ev_msrvtt_nearest": ("msrvtt", "msrvtt/test.pkl", 6, 640, "nearest", 1),
    "ev_youcook_at_once": ("youcook2", "youcook/val.pkl", 24, 768, "clip", 1),
    "ev_youcook_clips": ("youcook2", "youcook/val.pkl", 12, 192, "clip", 4),
    "ev_youcook_dupids": ("youcook2", "youcook/val_dupids.pkl", 24, 768, "clip", 1),
}


def whole(**changes: Any) -> Config:
    return translate_config({"arch": ARCH} | changes).config


def loader(name: str = "MSRVTT", **kwargs: Any) -> dict[str, Any]:
    args = {key: kwargs.pop(key) for key in ("batch_size", "num_workers", "shuffle", "drop_last") if key in kwargs}
    kwargs = {"data_path": "some.pkl"} | kwargs if name in ("MSRVTT", "YouCook2") else kwargs
    return {"type": "FeatureDataloader", "args": args | {"dataset_name": name, "dataset_kwargs": kwargs}}


class TestGoldenFiles:
    def test_all_are_there(self) -> None:
        assert (len(EVALUATIONS), len(TRAININGS)) == (7, 5)

    @pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
    def test_is_told_from_ours(self, path: Path) -> None:
        assert is_authors(read_authors_config(path))

    @pytest.mark.parametrize("path", EVALUATIONS, ids=lambda path: path.stem)
    def test_evaluation(self, path: Path) -> None:
        trained = checkpoint_config(GOLDEN / "checkpoints/pre_tva_dataparallel")
        changes, notices = translate_evaluation(read_authors_config(path), trained)
        config = lay_over(trained, changes, path.name)
        test = config.data.named("test")[""].model_dump()
        found = (*(test[key] for key in ("type", "path", "video_tokens", "audio_frames", "sampling", "cut_clips")),)
        kind, file, *sizes = SIZES[path.stem]
        assert found == (kind, f"synth/{file}", *sizes)
        assert (test["batch_size"], config.data.workers, config.data.text.path) == (16, 0, "synth/word2vec.bin")
        assert notices == []
        # Their arch says all but the widths of the audio network, which are the checkpoint's.
        pooling = {"ev_msrvtt_max_pool": "max_pool", "ev_msrvtt_nearest": "nearest"}.get(path.stem)
        limited = {"audio_pooling": pooling, "audio_max_frames": 256} if pooling else {}
        assert config.model.model_dump() == trained.model.model_dump() | limited
        assert config.evaluation.tasks == trained.evaluation.tasks

    @pytest.mark.parametrize("path", TRAININGS, ids=lambda path: path.stem)
    def test_training(self, path: Path) -> None:
        values, notices = translate_training(read_authors_config(path))
        config = parse_config(values, path.name)
        finetunes = path.stem.startswith("ft_")
        assert ("model" in values) is not finetunes
        assert len(notices) == finetunes  # that trainer.initial_weights is to be named
        train = config.data.named("train")[""].model_dump()
        validation = config.data.named("validation")
        assert list(validation) == (["msrvtt"] if finetunes else ["msrvtt", "youcook2"])
        sizes = [(v.video_tokens, v.audio_frames, v.batch_size) for v in validation.values()]
        assert sizes == [(12, 512, 32), (24, 768, 16)][: len(sizes)]
        trainer = config.trainer
        if finetunes:
            assert (train["type"], train["path"], train["training"]) == ("msrvtt", "synth/msrvtt/train.pkl", True)
            assert (config.data.batch_size, config.data.video_tokens, config.data.audio_frames) == (16, 12, 512)
            assert (trainer.epochs, trainer.eval_mode, trainer.initial_validation) == (4, True, True)
        else:
            assert train["type"] == "howto100m"
            assert (train["clips_per_video"], train["audio_shift"], train["min_time"]) == (3, "later", 8.0)
            assert (config.data.batch_size, config.data.video_tokens, config.data.audio_frames) == (4, 12, 768)
            assert (trainer.epochs, trainer.eval_mode, trainer.initial_validation) == (2, False, False)
            assert len(config.evaluation.tasks) == 18
        assert config.data.text.path == "synth/word2vec.bin"
        assert trainer.monitor is None

    @pytest.mark.parametrize("case", ["pre_tva_dataparallel", "pre_permod"])
    def test_config_of_a_checkpoint_holds_its_evaluations(self, case: str) -> None:
        config = checkpoint_config(GOLDEN / "checkpoints" / case)
        expected, _ = translate_training(read_authors_config(GOLDEN / f"cfg/{case.removesuffix('_dataparallel')}.yaml"))
        assert config.data == parse_config(expected, case).data
        assert config.evaluation == parse_config(expected, case).evaluation


def test_whole_configuration() -> None:
    authors = read_authors_config(GOLDEN / "checkpoints/pre_tva_dataparallel/config.yaml")
    config = translate_config(authors).config
    assert (config.model.architecture, config.model.video_dim, config.model.text_dim) == ("fusion", 96, 30)
    assert config.model.fusion.embed_dim == 64
    assert config.loss.kind == "norm-softmax"
    assert config.loss.weights.model_dump() == {
        "text_video": 1, "text_audio": 0.1, "video_audio": 0.1,
        "text_videoaudio": 0.1, "video_textaudio": 0.1, "audio_textvideo": 0.1,
    }  # fmt: skip
    assert (config.optimizer.name, config.optimizer.lr) == ("Adam", 0.001)
    assert (config.schedule.name, config.schedule.gamma) == ("exponential", 0.9)
    assert (config.trainer.epochs, config.trainer.precision) == (2, "auto")
    assert config.evaluation.batch_size == 32
    assert config.features.video_3d is not None
    assert config.features.video_3d.rate == 1.5


def test_json_is_read_too(tmp_path: Path) -> None:
    authors = read_authors_config(GOLDEN / "cfg/pre_tva.yaml")
    # A tab is no indentation in YAML.
    (tmp_path / "config.json").write_text(json.dumps(authors, indent="\t"))
    assert read_authors_config(tmp_path / "config.json") == authors


@pytest.mark.parametrize(("name", "text"), [("a.yaml", "a: [1"), ("a.json", "{"), ("b.yaml", "[1]"), ("b.json", "3")])
def test_malformed_file(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(CheckpointError, match=r"[ab]\.(yaml|json)"):
        read_authors_config(tmp_path / name)


@pytest.mark.parametrize("values", [{}, {"model": {}}, {"base": "x.yaml"}, {"data": {}, "arch": {}}, {"trainer": {}}])
def test_our_schema_is_not_taken_for_theirs(values: dict[str, Any]) -> None:
    assert not is_authors(values)


@pytest.mark.parametrize(
    ("authors", "message"),
    [
        ({"data_loader": {}}, "names no architecture"),
        ({"arch": {"type": "BertModel"}}, "unknown architecture 'BertModel'"),
        ({"arch": {"type": "AVLnetBaselineModel", "args": {"davenet_v2": True}}}, "davenet_v2"),
        ({"arch": {"type": "EverythingAtOnceModel", "args": {"projection": "conv"}}}, "unknown projection"),
        ({"arch": ARCH, "loss": {"args": {"contrastive_loss": "Triplet"}}}, "unknown loss"),
        (
            {"arch": {"type": "EverythingAtOnceModel", "args": {"fusion_params": {"embed_dim": 10, "num_heads": 3}}}},
            "no multiple",
        ),
    ],
)
def test_configurations_that_cannot_be_translated(authors: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        translate_config(authors)


class TestNotices:
    def notices(self, **changes: Any) -> list[str]:
        return translate_config({"arch": ARCH} | changes).notices

    def test_unknown_settings_are_named_with_their_value(self) -> None:
        assert self.notices(trainer={"warm_restarts": 3}, colour="red") == [
            "trainer.warm_restarts: not translated (was 3)",
            "colour: not translated (was 'red')",
        ]
        assert self.notices(data_loader=loader(drop_last=True, pin=1, zoom=2)) == [
            "data_loader.args.dataset_kwargs.pin: not translated (was 1)",
            "data_loader.args.dataset_kwargs.zoom: not translated (was 2)",
        ]

    def test_what_works_differently_says_how(self) -> None:
        assert "torchrun --nproc-per-node 4" in self.notices(n_gpu=4)[0]
        assert self.notices(n_gpu=1) == []
        assert "trainer.initial_weights" in self.notices(trainer={"resume_only_model": True})[0]
        assert "latest checkpoint is always" in self.notices(trainer={"save_latest": False})[0]
        assert "shuffled" in self.notices(data_loader=loader(drop_last=True, shuffle=False))[0]
        assert "shuffled" in self.notices(data_loader=loader(drop_last=False))[0]

    @pytest.mark.parametrize("key", ["use_clip_text_model_use_proj", "verbosity", "save_dir", "neptune"])
    def test_settings_without_effect_are_silent(self, key: str) -> None:
        assert self.notices(trainer={key: False}) == []


class TestEvaluation:
    def evaluate(self, trained: Config | None = None, **authors: Any) -> dict[str, Any]:
        return translate_evaluation(authors, trained or whole())[0]

    def test_only_what_the_file_states_is_laid_over(self) -> None:
        assert self.evaluate(data_loader=loader(batch_size=3)).keys() == {"data"}
        assert self.evaluate(metrics=["t2v_metrics", "t2v_va_metrics"]) == {"evaluation": {"tasks": ["t2v"]}}

    def test_clip_text_stays_that_of_the_checkpoint(self) -> None:
        words = loader(word2vec_path="words.bin", max_words=9)
        assert self.evaluate(data_loader=words)["data"]["text"] == {"path": "words.bin", "max_words": 9}
        clip = whole(trainer={"use_clip_text_model": True})
        assert self.evaluate(clip, data_loader=words)["data"]["text"] == {"encoder": "clip", "max_words": 9}

    def test_arch_replaces_the_whole_model_section(self) -> None:
        pooled = {"type": ARCH["type"], "args": ARCH["args"] | {"strategy_audio_pooling": "nearest"}}  # type: ignore[operator]
        trained = whole(arch=pooled)
        trained.model.audio.channels = (4,) * 7
        config = lay_over(trained, self.evaluate(trained, arch=ARCH), "file")
        assert config.model.audio_pooling == "none"  # their default, since the file does not say
        assert config.model.audio.channels == (4,) * 7
