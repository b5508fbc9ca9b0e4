"""Packing data sets and reading the shards: the same items, whatever was interrupted, and damage named."""

import json
import tarfile

import numpy as np
import pytest
import torch

from eao.bench.loader import write_howto100m
from eao.config import DataConfig, FolderData, HowTo100MData, ShardData
from eao.data import pack
from eao.data.datasets import open_dataset
from eao.data.loader import Loader, Share
from eao.data.pack import PARTIAL, pack_dataset, verify_shards
from eao.data.shard_format import INDEX
from eao.data.shards import ShardDataset
from eao.errors import ConfigError, DataError

DATA = DataConfig(video_tokens=5, audio_frames=64)
SMALL = 400_000  # bytes: several shards for a few records


@pytest.fixture
def howto(tmp_path) -> HowTo100MData:
    return write_howto100m(tmp_path / "howto", videos=7, width=16)


@pytest.fixture
def captions(folder) -> FolderData:
    """Clips of which some have several captions, one has no sound and one no video."""
    folder.clip("one", captions=("a dog", "a cat")).clip("x/two", frames=None).clip("three", rows_2d=None, rows_3d=None)
    folder.dataset()
    return FolderData(features=str(folder.path / "features"), captions=str(folder.path / "captions.jsonl"))


def shards(url, **changes) -> ShardDataset:
    return ShardDataset(ShardData(url=str(url), **changes), DATA)


def assert_same_items(a, b, seed=0):
    assert len(a) == len(b)
    assert (a.video_dim, a.complete_dataset_size) == (b.video_dim, b.complete_dataset_size)
    for i in range(len(a)):
        for x, y in zip(a.clips(i, np.random.default_rng(seed)), b.clips(i, np.random.default_rng(seed)), strict=True):
            for first, second in zip(x, y, strict=True):
                np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("url", ["{tmp}/shards", "file://{tmp}/shards", "memory://shards-{name}"])
@pytest.mark.parametrize("name", ["howto", "captions"])
def test_shards_give_the_items_of_the_files(request, tmp_path, url, name):
    config, url = request.getfixturevalue(name), url.format(tmp=tmp_path, name=name)
    report = pack_dataset(config, DATA, url, shard_bytes=SMALL)
    assert report.shards > 1 or name == "captions"
    assert_same_items(open_dataset(config, DATA), shards(url))


def test_batches_of_shards_are_those_of_the_files(howto, tmp_path, lengths):
    pack_dataset(howto, DATA, str(tmp_path / "shards"), shard_bytes=SMALL)
    dataset = shards(tmp_path / "shards")

    def epoch(source, **options):
        loader = Loader(source, lengths, 2, shuffle=True, seed=5, drop_last=True, **options)
        loader.set_epoch(3, skip=1)
        return list(loader)

    expected = epoch(open_dataset(howto, DATA))
    for workers in (0, 2):
        for a, b in zip(epoch(dataset, workers=workers), expected, strict=True):
            assert a.ids == b.ids
            assert torch.equal(a.video, b.video)
            assert torch.equal(a.audio, b.audio)
    halves = [epoch(dataset, share=Share(rank, 2)) for rank in (0, 1)]
    for whole, *parts in zip(expected, *halves, strict=True):
        assert [i for part in parts for i in part.ids] == list(whole.ids)


def test_object_storage_is_asked_once_a_batch(howto, monkeypatch):
    url = "memory://prefetched"
    pack_dataset(howto, DATA, url, shard_bytes=SMALL)
    dataset = shards(url)
    calls = []
    read = dataset._storage.read_ranges
    monkeypatch.setattr(dataset._storage, "read_ranges", lambda f, s, e: calls.append(len(f)) or read(f, s, e))
    assert len(list(Loader(dataset, None, 4))) == 2
    assert calls == [4, 3]


def test_captions_of_one_clip_share_its_features(captions, tmp_path):
    pack_dataset(captions, DATA, str(tmp_path / "shards"))
    with tarfile.open(tmp_path / "shards/000000.tar") as archive:
        names = archive.getnames()
    assert sum(name.endswith(".json") for name in names) == 3
    assert [shards(tmp_path / "shards").record(i).captions for i in (0, 1)] == [["a dog"], ["a cat"]]


def test_webdataset_reads_them(howto, tmp_path):
    webdataset = pytest.importorskip("webdataset")
    pack_dataset(howto, DATA, str(tmp_path / "shards"), shard_bytes=SMALL)
    files = sorted(map(str, (tmp_path / "shards").glob("*.tar")))
    samples = list(webdataset.WebDataset(files, shardshuffle=False, nodesplitter=None).decode())
    dataset = open_dataset(howto, DATA)
    assert [s["json"]["id"] for s in samples] == [dataset.record(i).id for i in range(7)]
    np.testing.assert_array_equal(samples[3]["audio.npy"], dataset.record(3).audio)


def test_an_interrupted_packing_goes_on_to_the_same_bytes(howto, tmp_path, monkeypatch):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    pack_dataset(howto, DATA, str(whole), shard_bytes=SMALL)
    packed = pack.pack_record
    seen = []

    def stop(key, record):
        seen.append(key)
        if len(seen) == 5:
            raise KeyboardInterrupt
        return packed(key, record)

    monkeypatch.setattr(pack, "pack_record", stop)
    with pytest.raises(KeyboardInterrupt):
        pack_dataset(howto, DATA, str(broken), shard_bytes=SMALL)
    monkeypatch.undo()
    assert (broken / PARTIAL).exists() and not (broken / INDEX).exists()
    with pytest.raises(DataError, match="does not exist") as error:
        shards(broken)
    assert "eao pack again" in error.value.hint
    report = pack_dataset(howto, DATA, str(broken), shard_bytes=SMALL)
    assert report.kept > 0
    assert {p.name: p.read_bytes() for p in whole.iterdir()} == {p.name: p.read_bytes() for p in broken.iterdir()}


def test_packing_again_does_nothing_and_another_data_set_is_refused(howto, captions, tmp_path):
    url = str(tmp_path / "shards")
    first = pack_dataset(howto, DATA, url, shard_bytes=SMALL)
    before = (tmp_path / "shards" / INDEX).stat().st_mtime_ns
    again = pack_dataset(howto, DATA, url, shard_bytes=SMALL)
    assert (again.items, again.kept) == (first.items, first.shards)
    assert (tmp_path / "shards" / INDEX).stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match="another data set"):
        pack_dataset(captions, DATA, url, shard_bytes=SMALL)


def test_options_change_how_windows_are_drawn(howto, tmp_path):
    pack_dataset(howto, DATA, str(tmp_path / "shards"))
    dataset = shards(tmp_path / "shards", options={"clips_per_video": 3}, video_tokens=2)
    clips = dataset.clips(0, np.random.default_rng(0))
    assert len(clips) == 3 and len(clips[0].video) == 2
    with pytest.raises(ConfigError, match="'captions' of shards cannot be changed"):
        shards(tmp_path / "shards", options={"captions": "other.pickle"})
    with pytest.raises(ConfigError, match="min_time"):
        shards(tmp_path / "shards", options={"min_time": -1})


def damage(path, start):
    data = bytearray(path.read_bytes())
    data[start] ^= 0xFF
    path.write_bytes(data)


def test_verification_names_the_damaged_shard(howto, tmp_path):
    pack_dataset(howto, DATA, str(tmp_path / "s"), shard_bytes=SMALL)
    assert verify_shards(str(tmp_path / "s")).items == 7
    damage(tmp_path / "s/000001.tar", 3000)
    with pytest.raises(DataError, match=r"000001\.tar is damaged"):
        verify_shards(str(tmp_path / "s"))
    (tmp_path / "s/000001.tar").unlink()
    with pytest.raises(DataError, match=r"000001\.tar does not exist"):
        verify_shards(str(tmp_path / "s"))


def test_a_damaged_record_is_named(howto, tmp_path):
    pack_dataset(howto, DATA, str(tmp_path / "s"))
    offset = json.loads((tmp_path / "s" / INDEX).read_text())["shards"][0]["offsets"][2]
    damage(tmp_path / "s/000000.tar", offset + 3)  # in the name of a member, which its checksum covers
    dataset = shards(tmp_path / "s")
    assert dataset.record(1).id
    with pytest.raises(DataError, match=r"000000\.tar record 2") as error:
        dataset.record(2)
    assert "eao pack --verify" in error.value.hint


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"version": 99}, "version 99"),
        ({"shards": [{"file": "../../etc/passwd"}]}, "is damaged: shards.0"),
        ({"items": "many"}, "is damaged: items"),
        ({"dataset": {"type": "crosstask"}}, "'crosstask'"),
    ],
)
def test_a_damaged_index_is_refused(howto, tmp_path, change, says):
    pack_dataset(howto, DATA, str(tmp_path / "s"))
    index = tmp_path / "s" / INDEX
    index.write_text(json.dumps(json.loads(index.read_text()) | change))
    with pytest.raises(DataError, match=says):
        shards(tmp_path / "s")


def test_a_shortened_shard_is_refused(howto, tmp_path):
    pack_dataset(howto, DATA, str(tmp_path / "s"))
    shard = tmp_path / "s/000000.tar"
    shard.write_bytes(shard.read_bytes()[:-512])
    with pytest.raises(DataError, match=r"000000\.tar has .* bytes, not"):
        shards(tmp_path / "s").record(0)


def test_windows_of_segments_cannot_be_packed(tmp_path, monkeypatch):
    monkeypatch.setattr(pack, "open_dataset", lambda *_: object())
    with pytest.raises(ConfigError, match="cannot be packed"):
        pack_dataset(ShardData(url="x"), DATA, str(tmp_path / "s"))
