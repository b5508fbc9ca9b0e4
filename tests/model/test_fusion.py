"""The fusion transformer and its treatment of clips that lack a modality."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays

from eao.config import FusionConfig
from eao.model.fusion import Block, FusionTransformer, masked_mean


def fusion(**changes):
    torch.manual_seed(0)
    return FusionTransformer(FusionConfig.model_validate({"embed_dim": 8, "num_heads": 2} | changes)).eval()


def ones(*shape):
    return torch.ones(*shape, dtype=torch.bool)


@settings(max_examples=50, deadline=None)
@given(arrays(bool, (4, 3)))
def test_only_empty_clips_get_the_masking_token(mask):
    transformer, x, mask = fusion(), torch.randn(4, 3, 8), torch.from_numpy(mask)
    given_x, given_mask = x.clone(), mask.clone()
    filled, new_mask, present = transformer.fill_empty(x, mask)
    assert torch.equal(x, given_x)
    assert torch.equal(mask, given_mask)
    assert torch.equal(present, mask.any(1))
    for clip in range(4):
        if present[clip]:
            assert torch.equal(filled[clip], x[clip])
            assert torch.equal(new_mask[clip], mask[clip])
        else:
            assert torch.equal(filled[clip, 0], transformer.masking_token)
            assert torch.equal(filled[clip, 1:], x[clip, 1:])
            assert new_mask[clip].tolist() == [True, False, False]


def test_the_masking_token_learns_from_empty_clips_alone():
    transformer = fusion()
    mask = torch.tensor([[True, True], [False, False]])
    x, _, _ = transformer.fill_empty(torch.randn(2, 2, 8), mask)
    x.sum().backward()
    assert torch.equal(transformer.masking_token.grad, torch.ones(8))


def test_without_blocks_each_modality_is_the_mean_of_its_real_tokens():
    x, mask = torch.randn(2, 5, 8), torch.tensor([[True, True, True, True, False], [True, False, True, True, True]])
    first, second = fusion(depth=0)(x, mask, [2, 3])
    torch.testing.assert_close(first, torch.stack([x[0, :2].mean(0), x[1, 0]]))
    torch.testing.assert_close(second, torch.stack([x[0, 2:4].mean(0), x[1, 2:].mean(0)]))


def test_the_cls_token_is_all_that_is_read_and_sees_only_real_tokens():
    transformer = fusion(use_cls_token=True)
    x, mask = torch.randn(2, 3, 8), torch.tensor([[True, True, False], [True, False, False]])
    (out,) = transformer(x, mask, [2, 1])
    assert out.shape == (2, 8)
    x[0, 2] = x[1, 1:] = 100
    torch.testing.assert_close(transformer(x, mask, [2, 1])[0], out)


def test_the_order_of_tokens_does_not_matter():
    transformer, x = fusion(depth=3), torch.randn(2, 5, 8)
    order = torch.tensor([3, 0, 4, 1, 2])
    mask = torch.rand(2, 5) < 0.7
    mask[:, 0] = True
    torch.testing.assert_close(transformer(x[:, order], mask[:, order], [5]), transformer(x, mask, [5]))


def test_the_final_norm_is_never_applied():
    transformer, x = fusion(), torch.randn(2, 3, 8)
    (before,) = transformer(x, ones(2, 3), [3])
    torch.nn.init.zeros_(transformer.norm.weight)
    assert torch.equal(transformer(x, ones(2, 3), [3])[0], before)


def test_drop_path_grows_with_depth_and_acts_in_training_alone():
    transformer = fusion(depth=3, drop_path_rate=0.4)
    assert [round(block.drop_path, 6) for block in transformer.blocks] == [0.0, 0.2, 0.4]
    x = torch.randn(2, 3, 8)
    assert torch.equal(transformer(x, ones(2, 3), [3])[0], fusion(depth=3)(x, ones(2, 3), [3])[0])


def test_a_dropped_branch_leaves_the_token_and_a_kept_one_is_scaled():
    torch.manual_seed(0)
    block = Block(FusionConfig(embed_dim=8, num_heads=2), drop_path=0.5).train()
    branch = torch.ones(64, 1, 1)
    values = block._skip(branch).flatten().unique().tolist()
    assert values == [0.0, 2.0]


def test_masked_mean_ignores_padding():
    x = torch.tensor([[[1.0], [3.0], [100.0]], [[5.0], [100.0], [7.0]]])
    mask = torch.tensor([[True, True, False], [True, False, True]])
    assert masked_mean(x, mask).tolist() == [[2.0], [6.0]]


@pytest.mark.parametrize("tokens", [1, 3, 17, 65])
def test_odd_lengths(tokens):
    (out,) = fusion(depth=2)(torch.randn(3, tokens, 8), ones(3, tokens), [tokens])
    assert out.shape == (3, 8)
    assert torch.isfinite(out).all()


def test_meta_device_builds_without_numbers():
    with torch.device("meta"):
        transformer = FusionTransformer(FusionConfig(depth=2, drop_path_rate=0.3))
    assert transformer.blocks[1].drop_path == pytest.approx(0.3)
    assert all(p.is_meta for p in transformer.parameters())
