"""Packed and dense against the plain equations, and the layout of ragged batches."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eao.bench.naive import naive_forward
from eao.config import ModelConfig
from eao.model import ENCODERS, SUMS, Batch, build_model
from eao.model.packed import build_layout, pack_rows

WORDS, ROWS, STRIDE, TOKENS = 4, 5, 64, 3

VARIANTS = {
    "one block": {},
    "two blocks": {"fusion": {"depth": 2}},
    "three blocks, wide MLP, no bias": {"fusion": {"depth": 3, "mlp_ratio": 2.0, "qkv_bias": False}},
    "no blocks": {"fusion": {"depth": 0}},
    "cls token": {"fusion": {"use_cls_token": True}, "individual_projections": False},
    "cls token, no blocks": {"fusion": {"use_cls_token": True, "depth": 0}, "individual_projections": False},
    "cls token, two blocks": {"fusion": {"use_cls_token": True, "depth": 2}, "individual_projections": False},
    "shared head": {"individual_projections": False},
    "positional": {
        "use_positional_emb": True,
        "text_max_tokens": WORDS,
        "video_max_tokens": ROWS,
        "audio_max_frames": STRIDE * TOKENS,
        "audio_pooling": "clip",
    },
    "max-pooled audio": {"audio_max_frames": STRIDE * 2, "audio_pooling": "max_pool"},
    "nearest audio": {"audio_max_frames": STRIDE * 2, "audio_pooling": "nearest"},
    "linear projections": {"token_projection": "minimal", "output_projection": "minimal"},
    "per modality": {"architecture": "per-modality", "fusion": {"depth": 2}},
    "text-video": {"architecture": "text-video"},
}


def make(variant, seed):
    changes = dict(VARIANTS[variant])
    fusion = {"embed_dim": 12, "num_heads": 3} | changes.pop("fusion", {})
    torch.manual_seed(seed)
    config = ModelConfig.model_validate(
        {
            "text_dim": 7,
            "video_dim": 6,
            "embedding_dim": 10,
            "fusion": fusion,
            "audio": {"channels": (4, 4, 4, 4, 4, 4, 4)},
            **changes,
        }
    )
    model = build_model(config).eval()
    for parameter in model.parameters():  # biases and norms start at 0 and 1, which would hide their misuse
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


@st.composite
def batches(draw):
    clips = draw(st.integers(1, 4))
    masks = {
        name: torch.tensor(
            draw(st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=clips, max_size=clips))
        )
        for name, n in (("text", WORDS), ("video", ROWS))
    }
    frames = torch.tensor(draw(st.lists(st.integers(0, STRIDE * TOKENS), min_size=clips, max_size=clips)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    return Batch(
        text=torch.randn(clips, WORDS, 7, generator=generator),
        text_mask=masks["text"],
        video=torch.randn(clips, ROWS, 6, generator=generator),
        video_mask=masks["video"],
        audio=torch.randn(clips, 40, STRIDE * TOKENS, generator=generator),
        audio_mask=torch.arange(STRIDE * TOKENS) < frames[:, None],
        audio_frames=frames,
    )


def offered(model):
    return [e for e in (*ENCODERS, *SUMS) if e in model.encoders]


@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=12, deadline=None)
@given(batch=batches(), seed=st.integers(0, 3))
def test_packed_and_dense_equal_the_equations(variant, batch, seed):
    model = make(variant, seed)
    encoders = offered(model)
    with torch.no_grad():
        expected = naive_forward(model, batch, encoders)
        packed, dense = model(batch, encoders), model.forward_dense(batch, encoders)
    for encoder in encoders:
        torch.testing.assert_close(packed[encoder], expected[encoder], rtol=2e-5, atol=2e-5)
        torch.testing.assert_close(dense[encoder], expected[encoder], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=6, deadline=None)
@given(batch=batches())
def test_gradients_equal_those_of_the_equations(variant, batch):
    model = make(variant, 0).double()
    batch = Batch(**{k: v.double() if v.is_floating_point() else v for k, v in vars(batch).items() if k != "ids"})
    encoders = offered(model)
    weights = torch.linspace(-1, 1, 10, dtype=torch.float64)

    def gradients(forward):
        model.zero_grad(set_to_none=True)
        sum((x * weights).sum() for x in forward(batch, encoders).values()).backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    expected = gradients(lambda *a: naive_forward(model, *a))
    for forward in (model, model.forward_dense):
        actual = gradients(forward)
        assert actual.keys() >= expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(actual[name], gradient, rtol=1e-8, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


def test_no_encoder_gives_nothing():
    model, batch = make("one block", 0), Batch(text=torch.randn(2, 4, 7), text_mask=torch.ones(2, 4, dtype=torch.bool))
    assert model(batch, []) == model.forward_dense(batch, []) == {}


def test_padding_is_never_computed():
    model = make("one block", 0)
    mask = torch.tensor([[True, True, False, False], [True, False, False, False]])
    batch = Batch(text=torch.randn(2, 4, 7), text_mask=mask)
    seen = []
    model.fusion.blocks[0].attn.qkv.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    model.text_token_proj.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    model(batch, ["text"])
    assert seen == [3, 3]


def test_tokens_are_projected_once_whatever_combinations_they_take_part_in():
    model = make("one block", 0)
    batch = Batch(
        text=torch.randn(2, 4, 7),
        text_mask=torch.ones(2, 4, dtype=torch.bool),
        video=torch.randn(2, 5, 6),
        video_mask=torch.ones(2, 5, dtype=torch.bool),
    )
    rows = {}
    for name in ("attn.qkv", "mlp.fc1", "mlp.fc2"):
        layer = model.fusion.blocks[0].get_submodule(name)
        layer.register_forward_hook(lambda _, inputs, __, n=name: rows.update({n: len(inputs[0])}))
    calls = []
    model.text_proj.register_forward_hook(lambda _, inputs, __: calls.append(len(inputs[0])))
    model(batch, ["text", "video", "text-video"])
    # qkv once a token; fc1 at each position of three combinations; fc2 once for each modality of a sequence.
    assert rows == {"attn.qkv": 2 * 9, "mlp.fc1": 2 * 18, "mlp.fc2": 2 * 4}
    assert calls == [4]


def test_rows_of_a_clip_without_tokens_is_its_first():
    rows, empty, lengths = pack_rows(torch.tensor([[False, True, True], [False, False, False], [True, False, True]]))
    assert rows.tolist() == [1, 2, 3, 6, 8]
    assert empty.tolist() == [False, False, True, False, False]
    assert lengths.tolist() == [2, 1, 2]


def test_a_layout_names_the_rows_of_every_sequence():
    # Two clips: 2 and 1 tokens of the first modality (rows 0 1 | 2), 1 and 2 of the second (rows 3 | 4 5).
    layout = build_layout([torch.tensor([2, 1]), torch.tensor([1, 2])], [[0], [1], [0, 1]])
    assert layout.rows.tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 3, 2, 4, 5]
    assert layout.cu_seqlens.tolist() == [0, 2, 3, 4, 6, 9, 12]
    assert layout.cu_seqlens.dtype == torch.int32
    assert layout.longest == 3
    assert layout.sequence.tolist() == [0, 0, 1, 2, 3, 3, 4, 4, 4, 5, 5, 5]
    # Segments: first modality alone (2), second alone (2), then both modalities of the pair (2 and 2).
    assert layout.segment.tolist() == [0, 0, 1, 2, 3, 3, 4, 4, 6, 5, 7, 7]
    assert layout.segment_lengths.tolist() == [2, 1, 1, 2, 2, 1, 1, 2]
    assert layout.segment_sequence.tolist() == [0, 1, 2, 3, 4, 5, 4, 5]
    x = torch.arange(12.0)[:, None]
    assert layout.mean(x)[:, 0].tolist() == [0.5, 2, 3, 4.5, 6.5, 9, 8, 10.5]


def test_a_cls_token_stands_before_every_sequence_and_is_all_that_is_read():
    layout = build_layout([torch.tensor([2, 1]), torch.tensor([1, 2])], [[0, 1], [1]], cls_token=True)
    assert layout.rows.tolist() == [6, 0, 1, 3, 6, 2, 4, 5, 6, 3, 6, 4, 5]
    assert layout.cu_seqlens.tolist() == [0, 4, 8, 10, 13]
    assert layout.readout.tolist() == [0, 4, 8, 10]
    assert layout.segment.tolist() == [0, 1, 2, 3]
