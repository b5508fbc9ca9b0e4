"""The format of shards: what WebDataset and tar read of it, and what is refused."""

import contextlib
import io
import json
import tarfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eao.data import shard_format
from eao.data.pack import pack_dataset
from eao.data.record import Record
from eao.data.shard_format import (
    BLOCK,
    INDEX,
    ShardWriter,
    pack_record,
    read_index,
    record_key,
    unpack_record,
)
from eao.data.storage import Storage
from eao.errors import DataError

WIDTHS = {"video_2d": 3, "video_3d": 2}


def record(**changes) -> Record:
    rng = np.random.default_rng(0)
    values = {
        "id": "a",
        "path": "x/a",
        "video_2d": rng.standard_normal((5, 3)).astype(np.float16),
        "video_3d": rng.standard_normal((7, 2)).astype(np.float32),
        "audio": rng.standard_normal((40, 65)).astype(np.float16),
        "captions": ["one", "zwei ü\n"],
        "starts": np.array([0.1, 1 / 3]),
        "ends": np.array([1.0, 2.0]),
    }
    return Record(**values | changes)


def unpack(data: bytes) -> Record:
    return unpack_record(memoryview(data), "0.tar record 0", WIDTHS)


def assert_same(a: Record, b: Record) -> None:
    for name, x, y in zip(Record._fields, a, b, strict=True):
        if isinstance(x, np.ndarray):
            assert x.dtype == y.dtype, name
            np.testing.assert_array_equal(x, y, name)
        else:
            assert x == y, name


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"video_2d": None, "audio": None},
        {"video_3d": None, "starts": None, "ends": None},
        {"video_2d": np.zeros((0, 3), np.float16), "audio": np.zeros((40, 0), np.float16)},
        {"captions": [], "starts": np.zeros(0), "ends": np.zeros(0)},
        {"captions": ["\ud800 half a surrogate", ""]},
        {"video_2d": np.asfortranarray(np.ones((5, 3), np.float64))},
    ],
    ids=["all", "no 2-D, no sound", "no 3-D, no times", "no rows", "nothing said", "no Unicode", "other layout"],
)
def test_a_record_comes_back_to_the_last_bit(changes):
    assert_same(unpack(pack_record("key", record(**changes))), record(**changes))


def test_arrays_are_views_and_the_spectrogram_lies_along_time():
    data = memoryview(pack_record("key", record()))
    unpacked = unpack_record(data, "it", WIDTHS)
    for array in (unpacked.video_2d, unpacked.audio):
        assert np.shares_memory(array, np.frombuffer(data, np.uint8))
    assert unpacked.audio.flags.f_contiguous


def test_a_window_costs_as_much_of_the_archive_as_it_is_long():
    """The reason for the layout: frames of a spectrogram, and rows, are one run of bytes."""
    unpacked = unpack(pack_record("key", record()))
    assert unpacked.audio[:, 10:13].flags.f_contiguous
    assert unpacked.video_2d[1:3].flags.c_contiguous


@pytest.mark.parametrize("number", [0, 7, 123_456_789])
@pytest.mark.parametrize("name", ["a", "x/y.z", "ü" * 300, "../..", ""])
def test_keys_are_plain_names_in_order_that_tar_can_hold(name, number):
    key = record_key(number, record(id=name))
    assert not set(key) & set("./\\ ") and key < record_key(number + 1, record(id="0"))
    unpack(pack_record(key, record(id=name)))


def test_tar_reads_an_archive():
    file = io.BytesIO()
    writer = ShardWriter(file)
    for i in range(3):
        writer.add(pack_record(f"{i}", record()), count=i + 1)
    shard = writer.finish("0.tar")
    with tarfile.open(fileobj=io.BytesIO(file.getvalue())) as archive:
        names = archive.getnames()
        values = json.load(archive.extractfile("2.json"))
    kinds = ("json", "video_2d.npy", "video_3d.npy", "audio.npy")
    assert names == [f"{i}.{kind}" for i in range(3) for kind in kinds]
    assert values["starts"] == [0.1, 1 / 3]
    assert (shard.items, shard.counts, shard.bytes) == (6, [1, 2, 3], len(file.getvalue()))
    assert_same(unpack(file.getvalue()[shard.offsets[1] : shard.offsets[2]]), record())
    assert_same(unpack(file.getvalue()[shard.offsets[2] : shard.end]), record())


def test_webdataset_reads_shards(howto, tmp_path):
    webdataset = pytest.importorskip("webdataset")
    from eao.config import DataConfig
    from eao.data.datasets import open_dataset

    pack_dataset(howto, DataConfig(), str(tmp_path / "shards"), shard_bytes=400_000)
    files = sorted(map(str, (tmp_path / "shards").glob("*.tar")))
    samples = list(webdataset.WebDataset(files, shardshuffle=False, nodesplitter=None).decode())
    dataset = open_dataset(howto, DataConfig())
    assert len(files) > 1 and [s["json"]["id"] for s in samples] == [dataset.record(i).id for i in range(7)]
    for stream in ("video_2d", "video_3d", "audio"):
        np.testing.assert_array_equal(samples[3][f"{stream}.npy"], getattr(dataset.record(3), stream))


def members(**contents: bytes) -> bytes:
    """A record as an archive of these members."""
    return b"".join(part for name, c in contents.items() for part in shard_format._member(f"key.{name}", c))


def npy(array) -> bytes:
    content = io.BytesIO()
    np.save(content, array, allow_pickle=True)
    return content.getvalue()


def header(size: int) -> bytes:
    """Of a member that claims this size."""
    info = tarfile.TarInfo("key.json")
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)


JSON = json.dumps({"id": "a", "path": "a", "captions": ["x"]}).encode()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "record 0 is empty"),
        (members(json=b"{"), "json is damaged"),
        (members(json=b"[]"), "json is damaged"),
        (members(json=b"[" * 100_000), "json is damaged"),
        (members(json=b'{"id": "a", "path": "a"}'), "no 'captions'"),
        (members(json=b'{"id": "a", "path": "a", "captions": "x"}'), "no list of sentences"),
        (members(json=b'{"id": "a", "path": "a", "captions": ["x"], "starts": [1, 2]}'), "not as many times"),
        (members(**{"audio.npy": npy(np.ones((40, 3)))}), "no 'key.json'"),
        (members(json=JSON, **{"video_2d.npy": npy(np.ones((4, 5)))}), r"video_2d.npy is float64\(4, 5\), and 3"),
        (members(json=JSON, **{"audio.npy": npy(np.ones((4, 5)))}), r"audio.npy is float64\(4, 5\), and 40"),
        (members(json=JSON, **{"video_2d.npy": npy(np.ones((4, 3), int))}), "no array of floats"),
        (members(json=JSON, **{"video_2d.npy": npy(np.array([[{}, 1, 2]]))}), "no array of floats"),
        (members(json=JSON, **{"video_2d.npy": npy(np.ones((4, 3)))[:-1]}), "video_2d.npy is damaged"),
        (header(-BLOCK), "key.json has a size that the record has not"),
        (members(json=JSON)[:-BLOCK], "key.json has a size that the record has not"),
        (members(json=JSON)[:-1] + b"\0" * BLOCK, "damaged at its byte"),
    ],
)
def test_damage_is_named_with_the_record_and_the_next_step(data, says):
    with pytest.raises(DataError, match=says) as error:
        unpack(data)
    assert "0.tar record 0" in str(error.value) and "eao pack --verify" in error.value.hint


PACKED = pack_record("key", record())


@given(st.lists(st.tuples(st.integers(0, len(PACKED) - 1), st.integers(1, 255)), min_size=1, max_size=20))
def test_damage_of_any_kind_gives_a_record_or_its_error(flips):
    data = bytearray(PACKED)
    for place, bits in flips:
        data[place] ^= bits
    with contextlib.suppress(DataError):
        assert isinstance(unpack(bytes(data)), Record)


def test_a_part_that_no_archive_holds_is_refused(monkeypatch):
    monkeypatch.setattr(shard_format, "MEMBER_BYTES", 1000)
    with pytest.raises(DataError, match=r"key\.audio\.npy has .* bytes, and a shard holds parts of 8 GiB"):
        pack_record("key", record())


SHARD = {"file": "0.tar", "items": 1, "bytes": 1024, "sha256": "", "offsets": [0], "counts": [1]}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"version": 99}, "of the version 99, this program reads 1"),
        ({"shards": [{"file": "../../etc/passwd"}]}, r"is damaged: shards\.0"),
        ({"items": "many"}, "is damaged: items"),
        (
            {"shards": [{"file": "0.tar", "items": 2, "bytes": 1024, "sha256": "", "offsets": [0], "counts": [1]}]},
            "0.tar",
        ),
    ],
)
def test_a_damaged_index_is_refused(tmp_path, change, says):
    index = {"dataset": {}, "video_dim": 1, "widths": {}, "complete_dataset_size": None, "items": 0, "fingerprint": ""}
    (tmp_path / INDEX).write_text(json.dumps({"version": 1, "shards": [], **index}))
    assert read_index(Storage(str(tmp_path))).items == 0
    (tmp_path / INDEX).write_text(json.dumps({"version": 1, "shards": [], **index} | change))
    with pytest.raises(DataError, match=says):
        read_index(Storage(str(tmp_path)))


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b"null"])
def test_an_index_that_is_none_is_refused(tmp_path, content):
    (tmp_path / INDEX).write_bytes(content)
    with pytest.raises(DataError, match=r"index\.json") as error:
        read_index(Storage(str(tmp_path)))
    assert error.value.hint
