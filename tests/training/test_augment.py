"""Noise and token dropout."""

import torch

from eao.model import Batch
from eao.training.augment import augment


def test_augmentation_changes_a_copy_and_never_empties_a_modality():
    torch.manual_seed(0)
    mask = torch.ones(50, 3, dtype=torch.bool)
    mask[:, 2] = False
    mask[7] = False
    batch = Batch(video=torch.ones(50, 3, 4), video_mask=mask, ids=list(range(50)))
    changed = augment(batch, noise=0.1, token_dropout=0.9)
    assert (batch.video == 1).all() and mask.sum() == 98
    assert (changed.video_mask.any(1) == mask.any(1)).all()
    assert (changed.video_mask <= mask).all() and changed.video_mask.sum() < 98
    assert 0.05 < (changed.video - 1).std() < 0.15
