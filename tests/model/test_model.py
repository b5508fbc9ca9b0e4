"""The model as a whole: encoders, invariances, sizes, and the text-video-audio encoder, which the authors never ran."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from eao.config import FusionConfig, ModelConfig
from eao.errors import ConfigError, DataError
from eao.model import ENCODERS, PAIRS, SUMS, Batch, build_model, encoder_modalities

SMALL = {
    "text_dim": 7,
    "video_dim": 6,
    "embedding_dim": 10,
    "fusion": {"embed_dim": 12, "num_heads": 3, "depth": 2},
    "audio": {"channels": (4, 4, 4, 4, 4, 4, 4)},
}
FULL_FUSION = {"embed_dim": 4096, "num_heads": 64, "depth": 1, "mlp_ratio": 1.0}


def small_model(**changes):
    torch.manual_seed(0)
    return build_model(ModelConfig.model_validate(SMALL | changes)).eval()


def random_batch(clips=3, words=5, rows=4, frames=192):
    torch.manual_seed(1)
    batch = Batch(
        text=torch.randn(clips, words, 7),
        text_mask=torch.rand(clips, words) < 0.6,
        video=torch.randn(clips, rows, 6),
        video_mask=torch.rand(clips, rows) < 0.6,
        audio=torch.randn(clips, 40, frames),
        audio_mask=torch.ones(clips, frames, dtype=torch.bool),
        audio_frames=torch.full((clips,), frames),
    )
    batch.text_mask[:, 0] = batch.video_mask[:, 0] = True
    return batch


def embed(model, batch, encoders=ENCODERS):
    with torch.no_grad():
        return model(batch, list(encoders))


def naive(model, batch, encoder, clip):
    """The equations for one clip, over its real tokens alone, with attention spelled out."""
    pooled = {}
    tokens = {m: model.tokens(batch, m) for m in encoder_modalities(encoder)}
    x = torch.cat([t.x[clip][t.mask[clip]] for t in tokens.values()])  # (N, D)
    heads = model.config.fusion.num_heads
    for block in model.fusion.blocks:
        q, k, v = block.attn.qkv(block.norm1(x)).chunk(3, -1)
        mixed = []
        for h in range(heads):
            own = slice(h * q.shape[1] // heads, (h + 1) * q.shape[1] // heads)
            scores = q[:, own] @ k[:, own].T / math.sqrt(q.shape[1] // heads)
            mixed.append(scores.softmax(-1) @ v[:, own])
        x = x + block.attn.proj(torch.cat(mixed, -1))
        x = x + block.mlp.fc2(torch.nn.functional.gelu(block.mlp.fc1(block.norm2(x))))
    sizes = [int(t.mask[clip].sum()) for t in tokens.values()]
    for modality, part in zip(tokens, x.split(sizes), strict=True):
        pooled[modality] = model.get_submodule(f"{modality}_proj")(part.mean(0))
    if len(pooled) == 1:
        return next(iter(pooled.values()))
    return sum(p / p.norm() for p in pooled.values()) / len(pooled)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_encoder_equals_the_equations(encoder):
    model, batch = small_model().double(), random_batch()
    batch = Batch(**{k: v.double() if v.is_floating_point() else v for k, v in vars(batch).items() if k != "ids"})
    with torch.no_grad():
        actual = model(batch, [encoder])[encoder]
        expected = torch.stack([naive(model, batch, encoder, clip) for clip in range(3)])
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


def test_text_video_audio_is_a_mean_of_three_unit_vectors():
    embedding = embed(small_model(), random_batch(), ["text-video-audio"])["text-video-audio"]
    assert embedding.norm(dim=1).max() <= 1 + 1e-6


@pytest.mark.parametrize("empty", [("text",), ("audio",), ("text", "video"), ("text", "video", "audio")])
def test_an_empty_modality_leaves_every_encoder_finite(empty):
    model, batch = small_model(), random_batch()
    for modality in empty:
        getattr(batch, f"{modality}_mask")[1] = False
    for x in embed(model, batch, (*ENCODERS, *SUMS)).values():
        assert torch.isfinite(x).all()
    present = model.nonempty(batch)
    assert [m for m in present if not present[m][1]] == list(empty)


def test_what_an_absent_modality_holds_changes_nothing():
    model, batch = small_model(), random_batch()
    batch.text_mask[1] = False
    before = embed(model, batch)
    batch.text[1] = 1e3
    for encoder, x in embed(model, batch).items():
        torch.testing.assert_close(x, before[encoder])


@settings(max_examples=25, deadline=None)
@given(
    text=arrays(bool, (3, 5)),
    video=arrays(bool, (3, 4)),
    noise=st.floats(-100, 100, width=32),
    words=st.integers(0, 4),
)
def test_masked_and_added_tokens_change_nothing(text, video, noise, words):
    model, batch = small_model(), random_batch()
    batch.text_mask, batch.video_mask = torch.from_numpy(text), torch.from_numpy(video)
    before = embed(model, batch)
    # An absent modality is represented by its first position, so that one may hold anything too.
    batch.text = batch.text.masked_fill(~batch.text_mask[..., None], noise)
    batch.video = batch.video.masked_fill(~batch.video_mask[..., None], noise)
    batch.text = torch.cat([batch.text, torch.full((3, words, 7), noise)], 1)
    batch.text_mask = torch.cat([batch.text_mask, torch.zeros(3, words, dtype=torch.bool)], 1)
    for encoder, x in embed(model, batch).items():
        torch.testing.assert_close(x, before[encoder], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("clips", [1, 3, 17])
def test_a_clip_embeds_alike_in_any_batch(clips):
    model, batch = small_model(), random_batch(clips)
    together = embed(model, batch)
    for clip in {0, clips - 1}:
        alone = embed(model, batch[clip : clip + 1])
        for encoder, x in alone.items():
            torch.testing.assert_close(x[0], together[encoder][clip], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("words", [1, 3, 17])
@pytest.mark.parametrize("rows", [1, 3, 17])
def test_odd_numbers_of_tokens(words, rows):
    for x in embed(small_model(), random_batch(2, words, rows, 64)).values():
        assert x.shape == (2, 10)
        assert torch.isfinite(x).all()


def test_modalities_may_be_missing_altogether():
    model, batch = small_model(), random_batch()
    whole = embed(model, batch)
    with torch.no_grad():
        assert set(model(batch)) == {"text", "video", "audio", *PAIRS}
        part = model(batch.only(["text", "video"]))
    assert set(part) == {"text", "video", "text-video"}
    for encoder, x in part.items():
        torch.testing.assert_close(x, whole[encoder])
    assert set(model.nonempty(batch.only(["audio"]))) == {"audio"}


def test_asking_for_what_is_not_there():
    model, batch = small_model(), random_batch()
    with pytest.raises(DataError, match="needs audio"):
        model(batch.only(["video"]), ["video-audio"])
    with pytest.raises(ConfigError, match="no encoder 'smell'") as error:
        model(batch, ["smell"])
    assert "text-video-audio" in error.value.hint


@pytest.mark.parametrize(
    ("changes", "offered", "default"),
    [
        ({}, (*ENCODERS, *SUMS), {"text", "video", "audio", *PAIRS}),
        ({"cross_modal": False}, (*ENCODERS, *SUMS), {"text", "video", "audio"}),
        ({"architecture": "text-video"}, ("text", "video"), {"text", "video"}),
        ({"architecture": "per-modality"}, ("text", "video", "audio", *SUMS), {"text", "video", "audio"}),
    ],
)
def test_encoders_of_each_architecture(changes, offered, default):
    model = small_model(**changes)
    assert model.encoders == offered
    assert set(embed(model, random_batch(), offered)) == set(offered)
    with torch.no_grad():
        assert set(model(random_batch())) == default


def test_outputs_come_in_the_order_asked_for():
    order = ["video-audio", "text", "text+audio", "video"]
    assert list(embed(small_model(), random_batch(), order)) == order


def test_late_fusion_is_the_mean_of_unit_vectors():
    outputs = embed(small_model(), random_batch(), ["text", "video", "text+video"])
    unit = [torch.nn.functional.normalize(outputs[m], dim=1) for m in ("text", "video")]
    torch.testing.assert_close(outputs["text+video"], (unit[0] + unit[1]) / 2)


def test_positional_tables_fix_the_number_of_tokens():
    sizes = {"text_max_tokens": 5, "video_max_tokens": 4, "audio_max_frames": 192}
    model = small_model(use_positional_emb=True, audio_pooling="clip", **sizes)
    embed(model, random_batch())
    with pytest.raises(DataError, match="7 text tokens, but the positional table holds 5"):
        embed(model, random_batch(words=7), ["text"])


def test_pooling_by_length_needs_the_lengths():
    model = small_model(audio_pooling="max_pool", audio_max_frames=128)
    batch = random_batch(frames=256)
    batch.audio_frames = None
    with pytest.raises(DataError, match="audio_frames"):
        embed(model, batch, ["audio"])


def test_an_unused_audio_network_still_moves_its_statistics_in_training():
    model = small_model(architecture="text-video").train()
    before = model.davenet.bn1.running_mean.clone()
    model(random_batch())
    assert not torch.equal(model.davenet.bn1.running_mean, before)
    model.eval()
    before = model.davenet.bn1.running_mean.clone()
    model(random_batch())
    assert torch.equal(model.davenet.bn1.running_mean, before)


def test_masking_token_has_a_zero_gradient_where_nothing_is_empty():
    model = small_model()
    sum(x.sum() for x in model(random_batch()).values()).backward()
    assert torch.equal(model.fusion.masking_token.grad, torch.zeros(12))


def test_initial_weights_follow_the_paper():
    model = small_model(fusion={"embed_dim": 96, "num_heads": 3})
    assert model.fusion.blocks[0].attn.qkv.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not model.fusion.blocks[0].attn.qkv.bias.any()
    assert model.fusion.masking_token.std().item() == pytest.approx(0.02, rel=0.3)
    assert model.text_token_proj.cg.fc.weight.abs().max().item() == pytest.approx(96**-0.5, rel=0.01)
    conv = model.davenet.layer1[0].conv1
    assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / (9 * conv.out_channels)), rel=0.2)


@pytest.mark.parametrize(
    ("changes", "entries", "parameters"),
    [
        ({}, 188, 689_371_138),
        ({"architecture": "text-video"}, 188, 689_371_138),
        ({"cross_modal": False}, 188, 689_371_138),
        (
            {"use_positional_emb": True, "text_max_tokens": 20, "video_max_tokens": 12, "audio_max_frames": 768},
            191,
            689_551_362,
        ),
        ({"individual_projections": False}, 180, 563_517_442),
        ({"individual_projections": False, "fusion": FULL_FUSION | {"use_cls_token": True}}, 181, 563_521_538),
        ({"fusion": FULL_FUSION | {"depth": 0}}, 176, 588_666_882),
        ({"architecture": "per-modality"}, 233, 890_804_226),
        ({"fusion": FULL_FUSION | {"embed_dim": 1024, "depth": 4, "num_heads": 16}}, 224, 483_931_138),
        ({"fusion": FULL_FUSION | {"embed_dim": 2048, "depth": 2, "num_heads": 32}}, 200, 546_119_682),
        ({"fusion": FULL_FUSION | {"depth": 2}}, 200, 790_075_394),
        ({"video_dim": 1024}, 188, 676_788_226),
        ({"video_dim": 512, "text_dim": 512}, 188, 675_559_426),
    ],
)
def test_sizes_of_the_published_models(changes, entries, parameters):
    with torch.device("meta"):
        model = build_model(ModelConfig.model_validate(changes))
    assert len(model.state_dict()) == entries
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fusion": FusionConfig(use_cls_token=True)}, "individual_projections"),
        ({"use_positional_emb": True}, "text_max_tokens"),
        ({"architecture": "avlnet"}, "audio.version"),
        ({"fusion": {"embed_dim": 10, "num_heads": 3}}, "no multiple"),
    ],
)
def test_impossible_configurations(changes, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig.model_validate(changes)
