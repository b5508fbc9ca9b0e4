"""Packing: the same items from every data set, the same bytes whatever interrupted it, and damage found."""

import json
import pickle
import signal
import subprocess
import sys
import tarfile

import numpy as np
import pytest

from eao.config import CrossTaskData, DataConfig, MSRVTTData, ShardData, YouCook2Data
from eao.data import pack
from eao.data.datasets import open_dataset
from eao.data.pack import PARTIAL, open_index, pack_dataset, verify_shards
from eao.data.record import Record
from eao.data.shard_format import INDEX
from eao.data.shards import ShardDataset
from eao.data.storage import Storage
from eao.errors import ConfigError, DataError

DATA = DataConfig(video_tokens=6, audio_frames=64)
SMALL = 400_000  # bytes: several shards for a few records


def clips(*captions: tuple[str, ...]) -> bytes:
    """A list of clips in the keys of MSR-VTT and of YouCook2; the second and the third share all but their captions."""
    rng = np.random.default_rng(0)
    contents = []
    for i, sentences in enumerate(captions):
        if i != 2:
            rows_2d, rows_3d = rng.standard_normal((3, 3)), rng.standard_normal((5, 2))
            audio = rng.uniform(-80, 0, (40, 50))
        streams = {"2d": rows_2d, "3d": rows_3d, "2d_full": rows_2d, "3d_full": rows_3d, "audio": audio}
        captions = {"caption": sentences if len(sentences) > 1 else sentences[0], "eval_caption": sentences[0]}
        contents.append({"id": "abbc"[i], **streams, **captions})
    return pickle.dumps(contents)


@pytest.fixture
def youcook(tmp_path) -> YouCook2Data:
    path = tmp_path / "clips.pkl"
    path.write_bytes(clips(("one",), ("two",), ("three",), ("four",)))
    return YouCook2Data(path=str(path), cut_clips=3)


@pytest.fixture
def msrvtt(tmp_path) -> MSRVTTData:
    path = tmp_path / "clips.pkl"
    path.write_bytes(clips(("one", "two"), ("three", "four"), ("five",), ("six", "seven")))
    return MSRVTTData(path=str(path), expected_items=None)


@pytest.fixture
def msrvtt_training(msrvtt) -> MSRVTTData:
    return msrvtt.model_copy(update={"training": True})


def assert_same_items(a, b) -> None:
    assert len(a) == len(b)
    assert (a.video_dim, a.complete_dataset_size) == (b.video_dim, b.complete_dataset_size)
    for i in range(len(a)):
        for seed in range(3):
            both = [dataset.clips(i, np.random.default_rng([seed, i])) for dataset in (a, b)]
            for first, second in zip(*both, strict=True):
                for x, y in zip(first, second, strict=True):
                    np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("url", ["{tmp}/shards", "file://{tmp}/shards", "memory://{tmp}/shards"])
@pytest.mark.parametrize("name", ["howto", "captioned", "msrvtt", "msrvtt_training", "youcook"])
def test_shards_give_the_items_of_the_files(request, tmp_path, url, name):
    config, url = request.getfixturevalue(name), url.format(tmp=tmp_path)
    pack_dataset(config, DATA, url, shard_bytes=SMALL if name == "howto" else 5000)
    assert len(open_index(Storage(url)).shards) > 1
    assert_same_items(open_dataset(config, DATA), ShardDataset(ShardData(url=url), DATA))


def test_captions_of_one_clip_share_its_features(captioned, tmp_path):
    pack_dataset(captioned, DATA, str(tmp_path / "shards"))
    with tarfile.open(tmp_path / "shards/000000.tar") as archive:
        names = archive.getnames()
    assert sum(name.endswith(".json") for name in names) == 3
    dataset = ShardDataset(ShardData(url=str(tmp_path / "shards")), DATA)
    assert [dataset.record(i).captions for i in (0, 1)] == [["a dog"], ["a cat"]]


def test_progress_counts_items_up_to_all(captioned, tmp_path):
    seen = []
    pack_dataset(captioned, DATA, str(tmp_path), shard_bytes=1, progress=lambda *step: seen.append(step))
    assert seen == [(2, 4, "000000.tar"), (3, 4, "000001.tar"), (4, 4, "000002.tar")]


KILLED = """
import os, signal
from eao.config import DataConfig, HowTo100MData
from eao.data import pack
from eao.data.storage import Storage

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

pack_record, write_text = pack.pack_record, Storage.write_text
if {in_shard}:
    pack.pack_record = lambda key, record: kill() if key.startswith("000000004") else pack_record(key, record)
else:
    Storage.write_text = lambda self, file, text: kill() if "000002.tar" in text else write_text(self, file, text)
config = HowTo100MData.model_validate_json({config!r})
pack.pack_dataset(config, DataConfig(), {url!r}, shard_bytes={size})
"""


@pytest.mark.parametrize("in_shard", [True, False], ids=["within a shard", "between a shard and its entry"])
def test_a_killed_packing_goes_on_to_the_same_bytes(howto, tmp_path, in_shard):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    pack_dataset(howto, DataConfig(), str(whole), shard_bytes=SMALL)
    code = KILLED.format(in_shard=in_shard, config=howto.model_dump_json(), url=str(broken), size=SMALL)
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    assert (broken / PARTIAL).exists() and not (broken / INDEX).exists()
    with pytest.raises(DataError, match=r"index\.json does not exist") as error:
        open_index(Storage(str(broken)))
    assert "eao pack again" in error.value.hint
    report = pack_dataset(howto, DataConfig(), str(broken), shard_bytes=SMALL)
    assert report.kept == 2
    assert {p.name: p.read_bytes() for p in whole.iterdir()} == {p.name: p.read_bytes() for p in broken.iterdir()}


def test_what_was_packed_is_not_read_again(howto, tmp_path, monkeypatch):
    from eao.data.howto100m import HowTo100MDataset

    url = str(tmp_path / "shards")
    first = pack_dataset(howto, DATA, url, shard_bytes=SMALL)
    monkeypatch.setattr(HowTo100MDataset, "record", lambda *_: pytest.fail("was read again"))
    again = pack_dataset(howto, DATA, url, shard_bytes=SMALL)
    assert (again.items, again.bytes, again.kept) == (first.items, first.bytes, first.shards)


@pytest.mark.parametrize("change", [{"min_time": 4.0}, {"rate_2d": 2.0}, {"features_3d": None}])
def test_a_folder_of_another_data_set_is_refused(howto, tmp_path, change):
    url = str(tmp_path / "shards")
    pack_dataset(howto, DATA, url)
    with pytest.raises(ConfigError, match="another data set") as error:
        pack_dataset(howto.model_copy(update=change), DATA, url)
    assert "another folder" in error.value.hint


def test_a_damaged_file_of_the_data_set_is_named(howto, tmp_path):
    file = tmp_path / "howto/features/cooking/video00003/video00003_spec.npz"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"video00003_spec\.npz"):
        pack_dataset(howto, DATA, str(tmp_path / "shards"))
    assert not (tmp_path / "shards" / INDEX).exists()


def test_verification_names_the_damaged_shard(howto, tmp_path):
    url = str(tmp_path / "s")
    pack_dataset(howto, DATA, url, shard_bytes=SMALL)
    assert verify_shards(url).items == 7
    shard = tmp_path / "s/000001.tar"
    data = bytearray(shard.read_bytes())
    data[3000] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DataError, match=r"000001\.tar is damaged: its SHA-256"):
        verify_shards(url)
    shard.write_bytes(data[:-1])
    with pytest.raises(DataError, match=r"000001\.tar has \d+ bytes, not \d+"):
        verify_shards(url)
    shard.unlink()
    with pytest.raises(DataError, match=r"000001\.tar does not exist") as error:
        verify_shards(url)
    assert error.value.hint


def test_verification_reads_object_storage(howto, tmp_path):
    url = f"memory://{tmp_path}/shards"
    pack_dataset(howto, DATA, url, shard_bytes=SMALL)
    assert verify_shards(url).items == 7
    storage = Storage(url)
    storage.write_text("000000.tar", "x" * (storage.size("000000.tar") or 0))
    with pytest.raises(DataError, match=r"memory://.*/000000\.tar is damaged"):
        verify_shards(url)


def test_steps_in_long_videos_cannot_be_packed(tmp_path, monkeypatch):
    paths = dict.fromkeys(("csv", "features", "audio", "steps", "annotations"), "x")
    monkeypatch.setattr(pack, "open_dataset", lambda *_: object())
    with pytest.raises(ConfigError, match="'crosstask' cannot be packed") as error:
        pack_dataset(CrossTaskData(**paths), DATA, str(tmp_path / "s"))
    assert "howto100m" in error.value.hint


def test_a_stream_of_another_width_is_named():
    rows = np.ones((2, 3), np.float16)
    with pytest.raises(DataError, match="video_2d features of x are 3 wide, not 4"):
        pack._check_widths(Record("x", "x", rows, None, None, ["a"]), {"video_2d": 4})


def test_the_command_packs_and_verifies(howto, tmp_path, monkeypatch, capfd):
    from eao import cli

    experiment = tmp_path / "experiment.yaml"
    experiment.write_text(json.dumps({"data": {"train": howto.model_dump()}}))
    for arguments in (["--config", str(experiment)], ["--verify"]):
        monkeypatch.setattr(sys, "argv", ["eao", "pack", *arguments, "--out", str(tmp_path / "shards"), "--json"])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert stop.value.code == 0
        assert json.loads(capfd.readouterr().out)["items"] == 7
