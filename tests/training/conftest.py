"""A small experiment on disk: features, captions, word vectors and their configuration."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from eao.config import Config, parse_config

WORDS = ("red", "blue", "dog", "cat", "runs", "sleeps", "left", "right")


def write_word_vectors(path: Path, dim: int = 6) -> None:
    """The vectors in the binary word2vec format."""
    rng = np.random.default_rng(1)
    with path.open("wb") as file:
        file.write(f"{len(WORDS)} {dim}\n".encode())
        for word in WORDS:
            file.write(word.encode() + b" " + rng.standard_normal(dim).astype(np.float32).tobytes() + b"\n")


@pytest.fixture
def experiment(tmp_path: Path):
    """A function that gives the configuration, with changes laid over it."""
    rng = np.random.default_rng(0)
    features = tmp_path / "features"
    features.mkdir()
    lines = []
    for i in range(24):
        split = "train" if i < 16 else "validation"
        np.savez(features / f"clip{i}_2d.npz", features=rng.standard_normal((3, 5)).astype(np.float16))
        np.savez(features / f"clip{i}_3d.npz", features=rng.standard_normal((4, 4)).astype(np.float16))
        if i % 5:
            np.savez(features / f"clip{i}_spec.npz", rng.uniform(-80, 0, (40, 70)).astype(np.float16))
        caption = f"{WORDS[i % 2]} {WORDS[2 + i % 3 % 2]} {WORDS[4 + i // 2 % 4]} {WORDS[i // 3 % 8]}"
        lines.append(json.dumps({"id": f"clip{i}", "caption": caption, "split": split}))
    (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    write_word_vectors(tmp_path / "words.bin")

    def data(split: str) -> dict[str, str]:
        return {"features": str(features), "captions": str(tmp_path / "captions.jsonl"), "split": split}

    def build(**changes) -> Config:
        values = {
            "model": {
                "text_dim": 6,
                "video_dim": 9,
                "embedding_dim": 16,
                "fusion": {"embed_dim": 8, "num_heads": 2},
                "audio": {"channels": [4, 4, 4, 4, 4, 4, 8]},
            },
            "data": {
                "train": data("train"),
                "validation": data("validation"),
                "text": {"encoder": "word2vec", "path": str(tmp_path / "words.bin"), "max_words": 5},
                "video_tokens": 4,
                "audio_frames": 128,
                "batch_size": 8,
            },
            "loss": {"weights": {"text_video": 1, "text_audio": 0.1, "text_videoaudio": 1}},
            "optimizer": {"lr": 1e-2},
            "trainer": {"epochs": 4, "noise": 0.1, "token_dropout": 0.2},
        }
        from eao.config import merge

        return parse_config(merge(values, changes), "the test")

    return build
