"""Shards as a data set: the same batches as from the files, over ranks and workers and resumed, and damage named."""

import json
import mmap
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from eao.config import DataConfig, ShardData
from eao.data.datasets import open_dataset, training_loader
from eao.data.howto100m import draw_windows
from eao.data.loader import Loader, Share
from eao.data.pack import pack_dataset
from eao.data.shard_format import INDEX
from eao.data.shards import ShardDataset
from eao.errors import ConfigError, DataError

DATA = DataConfig(video_tokens=5, audio_frames=64)
SMALL = 400_000  # bytes: several shards for a few records


@pytest.fixture(params=["{tmp}/shards", "memory://{tmp}/shards"])
def url(request, howto, tmp_path) -> str:
    """Seven videos in several shards."""
    url = request.param.format(tmp=tmp_path)
    pack_dataset(howto, DATA, url, shard_bytes=SMALL)
    return url


@pytest.fixture
def packed(howto, tmp_path):
    """The folder of seven videos in one shard."""
    pack_dataset(howto, DATA, str(tmp_path / "shards"))
    return tmp_path / "shards"


def shards(url, **changes) -> ShardDataset:
    return ShardDataset(ShardData(url=str(url), **changes), DATA)


def epoch(source, lengths=None, skip=0, size=2, **options):
    loader = Loader(source, lengths, size, shuffle=True, seed=5, drop_last=True, **options)
    loader.set_epoch(3, skip=skip)
    return list(loader)


def assert_same_batches(batches, expected) -> None:
    for a, b in zip(batches, expected, strict=True):
        assert a.ids == b.ids
        for field in ("text", "video", "video_mask", "audio", "audio_mask", "audio_frames"):
            assert torch.equal(getattr(a, field), getattr(b, field)), field


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_shards_are_those_of_the_files(howto, url, lengths, workers):
    expected = epoch(open_dataset(howto, DATA), lengths)
    assert_same_batches(epoch(shards(url), lengths, workers=workers), expected)


@pytest.mark.parametrize("skip", [1, 2, 3])
def test_an_epoch_goes_on_where_it_was_left(url, lengths, skip):
    """A new data set, loader and number of workers, as after a run was killed."""
    whole = epoch(shards(url), lengths)
    assert_same_batches(epoch(shards(url), lengths, skip=skip, workers=2), whole[skip:])


@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_video_is_read_once_in_an_epoch_over_all_processes(url, world):
    size = world if world > 1 else 7
    parts = [
        epoch(shards(url, options={"clips_per_video": 1}), size=size, workers=2, share=Share(rank, world))
        for rank in range(world)
    ]
    videos = [name.split("/")[1][:10] for part in parts for batch in part for name in batch.ids]
    assert len(videos) == len(set(videos)) == 7 // size * size


def test_epochs_and_seeds_have_orders_and_windows_of_their_own(url):
    def ids(seed, number):
        loader = training_loader(ShardData(url=url), DATA.model_copy(update={"batch_size": 7}), None, seed)
        loader.set_epoch(number)
        return [name for batch in loader for name in batch.ids]

    seen = {(seed, number): ids(seed, number) for seed in (0, 1) for number in (0, 1)}
    assert all(a != b for i, a in seen.items() for j, b in seen.items() if i != j)
    assert ids(1, 1) == seen[1, 1]


def test_object_storage_is_asked_once_a_batch(howto, tmp_path, monkeypatch):
    pack_dataset(howto, DATA, f"memory://{tmp_path}/shards", shard_bytes=SMALL)
    dataset = shards(f"memory://{tmp_path}/shards")
    calls = []
    read = dataset._storage.read_ranges
    monkeypatch.setattr(dataset._storage, "read_ranges", lambda f, s, e: calls.append(len(f)) or read(f, s, e))
    assert len(list(Loader(dataset, None, 4))) == 2
    assert calls == [4, 3]


def test_shards_on_disk_are_mapped_not_read(packed):
    record = shards(packed).record(3)
    assert not record.audio.flags.owndata and not record.audio.flags.writeable


class Recorder:
    """In place of mapped memory, what it was told."""

    def __init__(self):
        self.asked = []

    def madvise(self, advice, start, length):
        self.asked.append((start, length))


def test_of_a_video_on_disk_only_the_windows_are_asked_for(howto, packed):
    dataset = shards(packed, options={"clips_per_video": 1})
    record, expected = dataset.record(3), np.random.default_rng(1)
    recorder = Recorder()
    mapped = dataset._mapped[0] = dataset._mapped[0]._replace(memory=recorder)
    dataset.clips(3, np.random.default_rng(1))
    window = draw_windows(record, expected, dataset.packed, dataset.shape)[0]
    for (start, length), part in zip(recorder.asked, (window.video_2d, window.video_3d, window.audio), strict=True):
        assert start % mmap.PAGESIZE == 0
        assert bytes(mapped.view[start : start + length]).endswith(part.tobytes(order="A"))
        assert length - part.nbytes < mmap.PAGESIZE


def test_a_data_set_in_use_goes_to_another_process(packed):
    dataset = shards(packed)
    expected = dataset.record(3)
    copy = ForkingPickler.loads(ForkingPickler.dumps(dataset))
    np.testing.assert_array_equal(copy.record(3).audio, expected.audio)


def test_few_shards_stay_mapped(howto, tmp_path, monkeypatch):
    monkeypatch.setattr("eao.data.shards.OPEN_SHARDS", 2)
    pack_dataset(howto, DATA, str(tmp_path / "s"), shard_bytes=1)
    dataset = shards(tmp_path / "s")
    first = dataset.record(0)
    before = first.audio.copy()
    for i in range(7):
        dataset.record(i)
    assert len(dataset._mapped) == 2
    np.testing.assert_array_equal(first.audio, before)


@pytest.mark.parametrize("index", [-1, 7])
def test_there_is_nothing_beyond_the_last_item(packed, index):
    with pytest.raises(IndexError):
        shards(packed).record(index)


def test_options_change_how_windows_are_drawn(howto, packed):
    dataset = shards(packed, options={"clips_per_video": 3}, video_tokens=2)
    clips = dataset.clips(0, np.random.default_rng(0))
    assert len(clips) == 3 and len(clips[0].video) == 2
    changed = howto.model_copy(update={"min_time": 4.0, "audio_shift": "none"})
    again = shards(packed, options={"min_time": 4.0, "audio_shift": "none"})
    for a, b in zip(
        again.clips(2, np.random.default_rng(0)),
        open_dataset(changed, DATA).clips(2, np.random.default_rng(0)),
        strict=True,
    ):
        assert a.id == b.id
        np.testing.assert_array_equal(a.audio, b.audio)


def test_options_of_whole_clips(captioned, tmp_path):
    pack_dataset(captioned, DATA, str(tmp_path / "s"))
    assert shards(tmp_path / "s").complete_dataset_size is None
    dataset = shards(tmp_path / "s", options={"complete_dataset_size": 10, "cut_clips": 2})
    assert dataset.complete_dataset_size == 10
    assert len(dataset.clips(0, np.random.default_rng(0))) == 2


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"captions": "other.pickle"}, "'captions' of shards cannot be changed"),
        ({"cut_clips": 2}, "'cut_clips' of shards cannot be changed"),
        ({"min_time": -1}, "min_time"),
    ],
)
def test_options_that_cannot_be_are_named(packed, options, says):
    with pytest.raises(ConfigError, match=says):
        shards(packed, options=options)


def test_a_folder_without_shards_says_what_to_do(tmp_path):
    with pytest.raises(DataError, match=r"index\.json does not exist") as error:
        shards(tmp_path)
    assert "eao pack" in error.value.hint


def test_an_index_of_a_data_set_that_is_not_packed_is_refused(packed):
    index = packed / INDEX
    index.write_text(json.dumps(json.loads(index.read_text()) | {"dataset": {"type": "crosstask"}}))
    with pytest.raises(DataError, match="'crosstask'"):
        shards(packed)


def damage_record(folder, number) -> None:
    """In the name of a member, which the checksum of its header covers."""
    offset = json.loads((folder / INDEX).read_text())["shards"][0]["offsets"][number]
    shard = folder / "000000.tar"
    data = bytearray(shard.read_bytes())
    data[offset + 3] ^= 0xFF
    shard.write_bytes(data)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_record_is_named_with_its_shard(packed, workers):
    damage_record(packed, 2)
    dataset = shards(packed)
    assert dataset.record(1).id == "video00001"
    with pytest.raises(DataError, match=r"000000\.tar record 2") as error:
        epoch(dataset, workers=workers)
    assert "eao pack --verify" in error.value.hint


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda shard: shard.write_bytes(shard.read_bytes()[:-512]), r"000000\.tar has \d+ bytes, not \d+"),
        (lambda shard: shard.write_bytes(b""), r"cannot read .*000000\.tar"),
        (lambda shard: shard.unlink(), r"cannot read .*000000\.tar"),
    ],
    ids=["shortened", "empty", "gone"],
)
def test_a_shard_that_is_not_whole_is_named(packed, change, says):
    change(packed / "000000.tar")
    with pytest.raises(DataError, match=says) as error:
        shards(packed).record(0)
    assert "eao pack" in error.value.hint


@pytest.mark.parametrize("read", [lambda d: d.record(6), lambda d: d.prefetch([0, 6])], ids=["one", "a batch"])
def test_a_shard_that_is_not_whole_on_object_storage_is_named(howto, tmp_path, read):
    pack_dataset(howto, DATA, f"memory://{tmp_path}/shards", shard_bytes=SMALL)
    dataset = shards(f"memory://{tmp_path}/shards")
    last = dataset._index.shards[-1].file
    dataset._storage.write_text(last, "x" * 100)
    with pytest.raises(DataError, match=rf"/shards/{last} ends at byte 100"):
        read(dataset)
    dataset._storage.remove(last)
    with pytest.raises(DataError, match=rf"/shards/{last} does not exist") as error:
        read(dataset)
    assert "eao pack" in error.value.hint


@pytest.mark.slow
def test_training_on_shards_gives_the_weights_of_training_on_files(experiment, tmp_path):
    from eao.training.run import run_training

    config = experiment(trainer={"epochs": 1})
    pack_dataset(config.data.train, config.data, str(tmp_path / "s"), shard_bytes=20_000)
    section = ShardData(url=str(tmp_path / "s"))
    data = config.data.model_copy(update={"train": section, "workers": 2})
    weights = []
    for run in (config, config.model_copy(update={"data": data})):
        run_training(run, tmp_path / run.data.train.type, quiet=True)
        weights.append(load_file(tmp_path / run.data.train.type / "latest/model.safetensors"))
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
