"""The authors' `arch` as the model section."""

from __future__ import annotations

from typing import Any

from eao.authors import translate_config
from eao.config import ModelConfig


def model(kind: str = "EverythingAtOnceModel", **args: Any) -> ModelConfig:
    return translate_config({"arch": {"type": kind, "args": args}}).config.model


def test_the_authors_defaults_are_filled_in() -> None:
    found = model(fusion_params={})
    assert (found.fusion.embed_dim, found.fusion.num_heads, found.fusion.mlp_ratio) == (768, 12, 4.0)
    assert (found.embedding_dim, found.token_projection, found.audio.version) == (6144, "gated", "v2")


def test_every_argument() -> None:
    fusion = {"embed_dim": 8, "depth": 3, "num_heads": 2, "mlp_ratio": 2, "qkv_bias": False, "use_cls_token": True}
    found = model(
        video_embed_dim=5,
        text_embed_dim=6,
        projection_dim=7,
        token_projection="minimal",
        projection="",
        individual_projections=False,
        cross_modal=False,
        use_positional_emb=True,
        video_max_tokens=2,
        text_max_tokens=3,
        audio_max_num_STFT_frames=64,
        strategy_audio_pooling="nearest",
        davenet_v2=False,
        fusion_params=fusion,
    ).model_dump()
    expected = {
        "video_dim": 5,
        "text_dim": 6,
        "embedding_dim": 7,
        "token_projection": "minimal",
        "output_projection": "none",
        "individual_projections": False,
        "cross_modal": False,
        "use_positional_emb": True,
        "video_max_tokens": 2,
        "text_max_tokens": 3,
        "audio_max_frames": 64,
        "audio_pooling": "nearest",
    }
    assert {key: found[key] for key in expected} == expected
    assert found["audio"]["version"] == "v1"
    assert {key: found["fusion"][key] for key in fusion} == fusion


def test_variants() -> None:
    assert model("EverythingAtOnceModel_TV_Only").architecture == "text-video"
    per_modality = model("TransformerPerModalityModel")
    assert (per_modality.architecture, per_modality.cross_modal) == ("per-modality", False)
    avlnet = model("AVLnetBaselineModel", we_dim=9)
    assert (avlnet.architecture, avlnet.text_dim, avlnet.embedding_dim) == ("avlnet", 9, 4096)
    assert (avlnet.audio.version, avlnet.audio_flag_from_video) == ("v1", True)


def test_layers_that_are_not_supported_are_noticed() -> None:
    arch = {"type": "EverythingAtOnceModel", "args": {"fusion_params": {"act_layer": "relu"}, "spare": 1}}
    notices = translate_config({"arch": arch}).notices
    assert [notice.partition(":")[0] for notice in notices] == ["arch.args.fusion_params.act_layer", "arch.args.spare"]
