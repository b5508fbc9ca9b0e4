"""The audio network: lengths, receptive field, the role of padding, and limits on the number of tokens."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from eao.config import AudioConfig
from eao.errors import DataError
from eao.model import audio
from eao.model.audio import DAVEnet, frames_per_token, limit_tokens, pool_mask

CHANNELS = {"v1": (3,) * 5, "v2": (3,) * 7}
STRIDE = {"v1": 16, "v2": 64}
FIELD = {"v1": 841, "v2": 1609}


def davenet(version="v2"):
    torch.manual_seed(0)
    network = DAVEnet(AudioConfig(version=version, channels=CHANNELS[version]))
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 1.5)
    return network.eval()


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("frames", [1, 3, 17, 64, 65, 130, 768])
def test_one_token_for_every_started_stride(version, frames):
    network = davenet(version)
    assert network.stride == STRIDE[version]
    with torch.no_grad():
        out = network(torch.randn(2, 40, frames))
    assert out.shape == (2, 3, math.ceil(frames / STRIDE[version]))


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_published_widths_are_the_default(version):
    with torch.device("meta"):
        network = DAVEnet(AudioConfig(version=version))
    assert network.output_dim == {"v1": 1024, "v2": 4096}[version]
    if version == "v2":
        assert sum(p.numel() for p in network.parameters()) == 314_710_018
        assert len(network.state_dict()) == 143


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_receptive_field(version):
    network = DAVEnet(AudioConfig(version=version, channels=CHANNELS[version])).double().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.abs_()  # with everything positive no path is cut by a ReLU
    frames = 64 * 48
    x = torch.ones(1, 40, frames, dtype=torch.float64, requires_grad=True)
    network(x)[0, :, frames // STRIDE[version] // 2].sum().backward()
    seen = x.grad[0].abs().sum(0).nonzero().flatten()
    assert seen[-1] - seen[0] + 1 == FIELD[version]
    middle = (seen[0] + seen[-1]) / 2
    assert abs(middle - frames / 2) < STRIDE[version]


def test_the_input_norm_is_never_applied():
    network, x = davenet(), torch.randn(1, 40, 64)
    before = network(x)
    nn.init.zeros_(network.batchnorm1.weight)
    assert torch.equal(network(x), before)


def test_the_amount_of_padding_is_part_of_the_protocol():
    """A token depends on padding up to 804 frames past its end, so T changes the numbers, as with the original."""
    network, x = davenet(), torch.randn(1, 40, 256) - 40
    with torch.no_grad():
        short, long = network(x), network(F.pad(x, (0, 512)))[..., :4]
    assert not torch.allclose(short, long, rtol=1e-3)


@pytest.mark.parametrize("version", ["v1", "v2"])
@settings(max_examples=15, deadline=None)
@given(frames=st.integers(1, 2000), clips=st.lists(st.floats(0, 1), min_size=1, max_size=4))
def test_the_first_tokens_alone_are_those_of_the_whole(version, frames, clips):
    network = davenet(version).double()
    tokens = math.ceil(frames / STRIDE[version])
    wanted = torch.tensor([round(share * tokens) for share in clips])
    x = torch.randn(len(clips), 40, frames, dtype=torch.float64) - 40
    with torch.no_grad():
        whole, first = network(x), network(x, wanted)
    kept = (torch.arange(tokens) < wanted[:, None])[:, None]
    torch.testing.assert_close(first, torch.where(kept, whole, 0), rtol=1e-9, atol=1e-9)


def test_gradients_through_the_first_tokens_are_those_of_the_whole():
    network, x, wanted = davenet().double(), torch.randn(3, 40, 700, dtype=torch.float64), torch.tensor([0, 4, 11])
    kept = (torch.arange(11) < wanted[:, None])[:, None]
    weights = torch.randn(3, 3, 11, dtype=torch.float64)

    def gradients(out):
        used = {n: p for n, p in network.named_parameters() if not n.startswith("batchnorm1")}
        return dict(zip(used, torch.autograd.grad((out * kept * weights).sum(), list(used.values())), strict=True))

    expected = gradients(network(x))
    for name, gradient in gradients(network(x, wanted)).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


def test_what_a_token_does_not_hear_is_not_computed():
    network = davenet()
    x = torch.randn(1, 40, 3072)
    x[..., 64 + 804 :] = torch.nan
    with torch.no_grad():
        assert network(x, torch.tensor([1]))[..., 0].isfinite().all()
        assert not network(x, torch.tensor([3]))[..., 2].isfinite().all()


@pytest.mark.parametrize("frames", [640, 700])
def test_training_over_rows_is_training_by_convolutions(monkeypatch, frames):
    monkeypatch.setattr(audio, "WIDE", 1)
    x, weights = torch.randn(3, 40, frames, dtype=torch.float64) - 40, torch.randn(3, 3, 11, dtype=torch.float64)
    results = []
    for wanted in (None, torch.tensor([0, 4, 10])):
        network = davenet().double().train()
        out = network(x, wanted)
        (out * weights[..., : out.shape[2]]).sum().backward()
        used = {n: p.grad for n, p in network.named_parameters() if not n.startswith("batchnorm1")}
        results.append({"out": out.detach(), **used, **dict(network.named_buffers())})
    assert results[0].keys() == results[1].keys()
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=1e-7, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("wide", [1, 1024])
def test_filters_lie_in_memory_alike_in_every_mode(monkeypatch, wide):
    monkeypatch.setattr(audio, "WIDE", wide)
    network = davenet()
    filters = network.layer1[0].conv1.weight
    assert filters.is_contiguous() == (wide == 1024)
    assert filters.is_contiguous(memory_format=torch.channels_last) == (wide == 1)
    before = filters.stride()
    assert network.train().layer1[0].conv1.weight is filters and filters.stride() == before


@pytest.mark.parametrize("wide", [1, 1024])
def test_in_training_the_whole_spectrogram_counts(monkeypatch, wide):
    monkeypatch.setattr(audio, "WIDE", wide)
    network, x = davenet().train(), torch.randn(2, 40, 640)
    network(x, torch.tensor([1, 1]))
    alone = network.bn1.running_mean.clone()
    network = davenet().train()
    network(x)
    torch.testing.assert_close(network.bn1.running_mean, alone, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("frames", [0, 1, 64, 500, 1000])
def test_frames_beyond_the_receptive_field_need_not_be_computed(frames):
    network = davenet()
    x = torch.zeros(1, 40, 3072)
    x[..., :frames] = torch.randn(1, 40, frames) - 40
    kept = math.ceil((frames + 832) / 64) * 64
    tokens = math.ceil(frames / 64)
    with torch.no_grad():
        whole, cut = network(x)[..., :tokens], network(x[..., :kept])[..., :tokens]
    torch.testing.assert_close(cut, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("frames", "tokens", "ratio"), [(768, 12, 64), (64, 1, 64), (100, 2, 50), (1, 1, 1)])
def test_frames_per_token(frames, tokens, ratio):
    assert frames_per_token(frames, tokens) == ratio


@pytest.mark.parametrize("frames", [65, 130])
def test_lengths_that_the_mask_cannot_follow_are_refused(frames):
    with pytest.raises(DataError, match=f"{frames} frames") as error:
        frames_per_token(frames, math.ceil(frames / 64))
    assert "multiple of 64" in error.value.hint


@pytest.mark.parametrize(("stride", "count"), [(64, 366), (16, 419)])
def test_as_many_lengths_are_valid_as_in_the_original(stride, count):
    valid = 0
    for frames in range(1, 6000):
        try:
            frames_per_token(frames, math.ceil(frames / stride))
        except DataError:
            continue
        valid += 1
    assert valid == count


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 5), st.integers(1, 7), st.integers(0, 10**6))
def test_pool_mask_is_max_pooling(tokens, ratio, seed):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(3, tokens * ratio, generator=generator) < 0.3
    expected = F.max_pool1d(mask.float()[:, None], ratio)[:, 0].bool()
    assert torch.equal(pool_mask(mask, ratio), expected)


def reference_limit(x, length, limit, strategy):
    """One clip by torch's own pooling, as the original did it clip by clip."""
    if strategy == "clip" or length <= limit:
        return x[:limit]
    part = x[:length].T[None]
    pools = {
        "nearest": lambda p: F.interpolate(p, limit, mode="nearest"),
        "max_pool": lambda p: F.adaptive_max_pool1d(p, limit),
        "avg_pool": lambda p: F.adaptive_avg_pool1d(p, limit),
    }
    return pools[strategy](part)[0].T


@settings(max_examples=60, deadline=None)
@given(
    strategy=st.sampled_from(["clip", "nearest", "max_pool", "avg_pool"]),
    limit=st.integers(1, 12),
    extra=st.integers(1, 60),
    seed=st.integers(0, 1000),
)
def test_limits_equal_torchs_pooling_of_each_clip(strategy, limit, extra, seed):
    generator = torch.Generator().manual_seed(seed)
    tokens = limit + extra
    x = torch.randn(4, tokens, 3, generator=generator)
    lengths = torch.randint(0, tokens + 1, (4,), generator=generator)
    lengths[0] = tokens
    mask = torch.arange(tokens) < lengths[:, None]
    actual, actual_mask = limit_tokens(x, mask, lengths, limit, strategy)
    assert torch.equal(actual_mask, mask[:, :limit])
    for clip, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(actual[clip], reference_limit(x[clip], length, limit, strategy))
