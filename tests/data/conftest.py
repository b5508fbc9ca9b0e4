"""Feature folders under construction, and a text encoder whose output can be read by eye."""

import json

import numpy as np
import pytest
import torch

from eao.bench.loader import write_howto100m
from eao.config import DataConfig, FolderData, HowTo100MData
from eao.data.folder import FolderDataset

DATA = DataConfig(video_tokens=5, audio_frames=64)


class Lengths:
    """A text encoder that writes each word's length."""

    dim, max_words = 2, 3

    def encode(self, sentences):
        text = torch.zeros(len(sentences), 3, 2)
        mask = torch.zeros(len(sentences), 3, dtype=torch.bool)
        for i, sentence in enumerate(sentences):
            for j, word in enumerate(sentence.split()[:3]):
                text[i, j] = len(word)
                mask[i, j] = True
        return text, mask


class Folder:
    """A feature folder under construction."""

    def __init__(self, path):
        self.path = path
        self.rng = np.random.default_rng(0)
        self.lines = []
        (path / "features").mkdir()

    def clip(self, name, rows_2d=4, rows_3d=6, frames=50, widths=(3, 2), captions=("a dog",), **columns):
        target = self.path / "features" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        for kind, rows, width in (("2d", rows_2d, widths[0]), ("3d", rows_3d, widths[1])):
            if rows is not None:
                features = self.rng.standard_normal((rows, width)).astype(np.float16)
                np.savez(f"{target}_{kind}.npz", features=features)
        if frames is not None:
            np.savez(f"{target}_spec.npz", self.rng.uniform(-80, 0, (40, frames)).astype(np.float16))
        self.lines += [{"id": name, "caption": caption, **columns} for caption in captions]
        return self

    def dataset(self, data=DATA, split=None, **options):
        captions = self.path / "captions.jsonl"
        captions.write_text("".join(json.dumps(line) + "\n" for line in self.lines))
        config = FolderData(features=str(self.path / "features"), captions=str(captions), split=split)
        return FolderDataset(config, data, **options)


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


@pytest.fixture
def captioned(folder) -> FolderData:
    """Clips of which one has two captions, one no sound and one no video."""
    folder.clip("one", captions=("a dog", "a cat")).clip("x/two", frames=None).clip("three", rows_2d=None, rows_3d=None)
    return folder.dataset().config


@pytest.fixture
def howto(tmp_path) -> HowTo100MData:
    """Seven videos with speech."""
    return write_howto100m(tmp_path / "howto", videos=7, width=16)


@pytest.fixture
def lengths():
    return Lengths()
