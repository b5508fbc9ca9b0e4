"""The combinatorial loss: its terms, its masks, its edge cases."""

import math

import pytest
import torch

from eao.config import LossConfig
from eao.errors import ConfigError
from eao.kernels import contrastive_loss
from eao.training.loss import TERMS, CombinatorialLoss

ENCODERS = ("text", "video", "audio", "text-video", "text-audio", "video-audio")


def embeddings(rows: int, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {encoder: torch.randn(rows, 7, generator=generator) for encoder in ENCODERS}


def everything(rows: int) -> dict[str, torch.Tensor]:
    return {m: torch.ones(rows, dtype=torch.bool) for m in ("text", "video", "audio")}


def test_the_loss_is_the_weighted_mean_of_its_terms():
    x = embeddings(5)
    weights = {"text_video": 1.0, "text_videoaudio": 0.25}
    total, values = CombinatorialLoss(LossConfig(weights=weights))(x, everything(5))
    tv = contrastive_loss(x["text"], x["video"])
    tva = contrastive_loss(x["text"], x["video-audio"])
    torch.testing.assert_close(total, (tv + 0.25 * tva) / 1.25)
    assert list(values) == ["text_video", "text_videoaudio"]


def test_the_norm_softmax_is_the_cross_entropy_of_both_directions():
    a, b = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    s = (a / a.norm(dim=1, keepdim=True)) @ (b / b.norm(dim=1, keepdim=True)).T / 0.1
    rows = sum(math.log(s[i].exp().sum()) - s[i, i] for i in range(4)) / 4
    columns = sum(math.log(s[:, i].exp().sum()) - s[i, i] for i in range(4)) / 4
    torch.testing.assert_close(contrastive_loss(a, b, temperature=0.1).double(), rows + columns, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("term", TERMS)
def test_a_clip_without_a_modality_is_neither_positive_nor_negative(term):
    x, present = embeddings(6), everything(6)
    a, b = TERMS[term]
    missing = "audio" if "audio" in a + b else "video"
    present[missing][[1, 4]] = False
    total, _ = CombinatorialLoss(LossConfig(weights={term: 1}))(x, present)
    kept = [0, 2, 3, 5]
    torch.testing.assert_close(total, contrastive_loss(x[a][kept], x[b][kept]))


def test_a_term_without_complete_clips_keeps_its_share_of_the_weight():
    x, present = embeddings(4), everything(4)
    present["audio"][:] = False
    x["audio"].requires_grad_()
    total, values = CombinatorialLoss(LossConfig(weights={"text_video": 1, "text_audio": 3}))(x, present)
    torch.testing.assert_close(total, contrastive_loss(x["text"], x["video"]) / 4)
    assert list(values) == ["text_video"]


def test_embeddings_that_the_model_does_not_give_take_no_weight():
    x = {e: v for e, v in embeddings(4).items() if e in ("text", "video")}
    total, _ = CombinatorialLoss(LossConfig(weights={"text_video": 1, "text_audio": 3}))(x, everything(4))
    torch.testing.assert_close(total, contrastive_loss(x["text"], x["video"]))


def test_one_pair_costs_nothing():
    assert contrastive_loss(torch.randn(1, 5), torch.randn(1, 5)).item() == 0


def test_no_weight_at_all_is_an_error_that_names_the_terms():
    with pytest.raises(ConfigError, match="text_video"):
        CombinatorialLoss(LossConfig())


def test_no_active_term_is_an_error():
    loss = CombinatorialLoss(LossConfig(weights={"text_audio": 1}))
    with pytest.raises(ConfigError, match="no weighted term"):
        loss({"text": torch.ones(2, 3), "video": torch.ones(2, 3)}, everything(2))


def test_mms_takes_the_margin_off_the_positives_and_has_no_temperature():
    a = torch.eye(3)
    logits = torch.eye(3) * (1 - 0.001)
    expected = 2 * torch.nn.functional.cross_entropy(logits, torch.arange(3))
    torch.testing.assert_close(contrastive_loss(a, a, "mms", temperature=9.0), expected)
