"""Records as clips: which caption is drawn, and in how many pieces a clip comes."""

import numpy as np

from eao.config import WholeData
from eao.data.item import ClipShape
from eao.data.record import Record, RecordDataset, whole_clips

SHAPE = ClipShape(video_tokens=4, audio_frames=64, sampling="clip")


def record(*captions: str) -> Record:
    rng = np.random.default_rng(0)
    rows = [rng.standard_normal((n, 3)).astype(np.float16) for n in (2, 4)]
    return Record("a", "a", *rows, rng.standard_normal((40, 64)).astype(np.float16), captions)


def clips(of, pieces=1, seed=0):
    return whole_clips(of, WholeData(cut_clips=pieces), SHAPE, 6, np.random.default_rng(seed))


def test_one_of_several_captions_is_drawn():
    drawn = {clips(record("a", "b", "c"), seed=seed)[0].caption for seed in range(20)}
    assert drawn == {"a", "b", "c"}


def test_nothing_is_drawn_for_a_single_caption():
    rng = np.random.default_rng(0)
    whole_clips(record("a"), WholeData(), SHAPE, 6, rng)
    assert rng.random() == np.random.default_rng(0).random()


def test_pieces_of_a_clip_carry_its_one_caption():
    pieces = clips(record("a", "b"), pieces=2)
    assert [len(piece.video) for piece in pieces] == [2, 2]
    assert len({piece.caption for piece in pieces}) == 1
    np.testing.assert_array_equal(np.concatenate([piece.video for piece in pieces]), clips(record("a", "b"))[0].video)


def test_a_folder_of_features_gives_records(folder):
    assert isinstance(folder.clip("one").dataset(), RecordDataset)
