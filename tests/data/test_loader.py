"""Batches: order, workers, shares, pieces."""

import numpy as np
import pytest
import torch

from eao.config import DataConfig, FolderData
from eao.data.folder import FolderDataset
from eao.data.loader import Loader, Share
from eao.errors import ConfigError, DataError


def test_a_batch_stacks_items_and_encodes_captions(folder, lengths):
    dataset = (
        folder.clip("one", captions=("a dog",)).clip("two", captions=("one two three four",), frames=None).dataset()
    )
    (batch,) = Loader(dataset, lengths, 2)
    assert {k: tuple(getattr(batch, k).shape) for k in ("text", "video", "audio", "audio_mask")} == {
        "text": (2, 3, 2),
        "video": (2, 5, 5),
        "audio": (2, 40, 64),
        "audio_mask": (2, 64),
    }
    assert (batch.video.dtype, batch.video_mask.dtype, batch.audio_frames.dtype) == (
        torch.float32,
        torch.bool,
        torch.int64,
    )
    assert batch.text_mask.sum(dim=1).tolist() == [2, 3]
    assert batch.audio_frames.tolist() == [50, 0]
    assert list(batch.ids) == ["one", "two"]
    assert next(iter(Loader(dataset, None, 2))).text is None


@pytest.fixture
def seven(folder):
    for i in range(7):
        folder.clip(f"clip{i}", captions=("x" * (i + 1),))
    return folder


@pytest.mark.parametrize(
    ("size", "drop_last", "sizes"), [(3, False, [3, 3, 1]), (3, True, [3, 3]), (8, True, []), (7, True, [7])]
)
def test_loader_batches(seven, size, drop_last, sizes, lengths):
    loader = Loader(seven.dataset(), lengths, size, drop_last=drop_last)
    batches = list(loader)
    assert [len(b) for b in batches] == sizes
    assert len(loader) == len(sizes)
    assert [i for b in batches for i in b.ids] == [f"clip{i}" for i in range(sum(sizes))]


def ids(loader):
    return [i for batch in loader for i in batch.ids]


def test_loader_order_depends_on_seed_and_epoch_alone(seven):
    dataset = seven.dataset()
    loader = Loader(dataset, None, 3, shuffle=True, seed=5)
    first, again = ids(loader), ids(loader)
    loader.set_epoch(1)
    second = ids(loader)
    resumed = Loader(dataset, None, 3, shuffle=True, seed=5)
    resumed.set_epoch(1)
    assert first == again
    assert sorted(first) == sorted(dataset.ids)
    assert second != first
    assert ids(resumed) == second
    assert ids(Loader(dataset, None, 3, shuffle=True, seed=6)) != first


def test_loader_pairs_captions_with_their_clips(seven, lengths):
    dataset = seven.dataset()
    for batch in Loader(dataset, lengths, 2, shuffle=True):
        for i, name in enumerate(batch.ids):
            index = dataset.ids.index(name)
            assert batch.text[i, 0, 0] == len(dataset.captions[index])
            np.testing.assert_array_equal(batch.video[i], dataset[index].video)


def test_loader_leaves_the_global_generator_alone(seven, lengths):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    list(Loader(seven.dataset(), lengths, 3, shuffle=True))
    assert torch.equal(torch.get_rng_state(), before)


def test_workers_give_the_same_batches_and_the_same_errors(seven, lengths):
    dataset = seven.dataset(cache_bytes=0)
    here = list(Loader(dataset, lengths, 3, shuffle=True))
    there = list(Loader(dataset, lengths, 3, shuffle=True, workers=2))
    for a, b in zip(here, there, strict=True):
        assert list(a.ids) == list(b.ids)
        for name in ("text", "video", "video_mask", "audio", "audio_mask", "audio_frames"):
            assert torch.equal(getattr(a, name), getattr(b, name))
    (seven.path / "features" / "clip4_spec.npz").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"clip4_spec\.npz") as caught:
        list(Loader(dataset, None, 3, workers=1))
    assert caught.value.hint
    assert "Traceback" not in str(caught.value)


def test_processes_share_each_batch_in_order(seven):
    dataset = seven.dataset()
    whole = [list(batch.ids) for batch in Loader(dataset, None, 4, shuffle=True, drop_last=True)]
    parts = [
        [list(b.ids) for b in Loader(dataset, None, 4, shuffle=True, drop_last=True, share=Share(rank, 2))]
        for rank in (0, 1)
    ]
    assert [a + b for a, b in zip(*parts, strict=True)] == whole
    with pytest.raises(ConfigError, match="does not divide among 2 processes"):
        Loader(dataset, None, 3, share=Share(0, 2))


def test_an_epoch_goes_on_where_it_was_left(seven):
    loader = Loader(seven.dataset(), None, 2, shuffle=True)
    loader.set_epoch(2)
    whole = ids(loader)
    loader.set_epoch(2, skip=2)
    assert ids(loader) == whole[4:]


def test_cut_clips_follow_each_other_and_share_their_id(folder):
    folder.clip("long", rows_3d=9, frames=120).clip("short", rows_3d=3, frames=20)
    data = DataConfig(video_tokens=5, audio_frames=64)
    config = FolderData(
        features=str(folder.path / "features"), captions=str(folder.path / "captions.jsonl"), cut_clips=2
    )
    folder.dataset()
    dataset = FolderDataset(config, data)
    (batch,) = Loader(dataset, None, 2)
    # The second piece of "short" holds no sound, so evaluation leaves it out.
    assert list(batch.ids) == ["long", "long", "short", "-1"]
    assert batch.audio_frames.tolist() == [64, 56, 20, 64]
    whole = FolderDataset(config.model_copy(update={"cut_clips": 1}), DataConfig(video_tokens=10, audio_frames=128))
    assert torch.equal(batch.video[:2].flatten(0, 1), torch.from_numpy(whole[0].video))
