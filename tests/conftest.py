"""What every test gets: torch on two threads at most, fixed seeds, and gpu tests skipped without a CUDA device."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from eao.config import Config

# Set before any test imports torch, so that it costs the tests without torch nothing.
os.environ.setdefault("OMP_NUM_THREADS", "2")
if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) > 1:  # processes side by side share the cores
    os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Without a GPU, Triton's kernels run in its interpreter, which has to be chosen before anything imports triton.
if shutil.which("nvidia-smi") is None and shutil.which("rocm-smi") is None:
    os.environ.setdefault("TRITON_INTERPRET", "1")

# A shell's background jobs ignore Ctrl-C, and so would the processes that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    gpu_items = [item for item in items if "gpu" in item.keywords]
    if not gpu_items:
        return
    import torch

    if not torch.cuda.is_available():
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


REPORTED = "search page"
"""What a test records by `record_property` under this name is shown at the end of pytest's output."""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = terminalreporter.getreports("passed")
    lines = [value for report in reports for name, value in report.user_properties if name == REPORTED]
    if lines:
        terminalreporter.section(REPORTED)
    for line in lines:
        terminalreporter.line(str(line))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test that uses torch starts from the same seed with at most two threads."""
    torch = sys.modules.get("torch")
    # A half-imported torch (its import failed) has no seed to set.
    if torch is not None and hasattr(torch, "manual_seed"):
        torch.manual_seed(0)
        if torch.get_num_threads() > 2:
            torch.set_num_threads(2)


WORDS = ("red", "blue", "dog", "cat", "runs", "sleeps", "left", "right")


def write_word_vectors(path: Path, dim: int = 6) -> None:
    """The vectors in the binary word2vec format."""
    rng = np.random.default_rng(1)
    with path.open("wb") as file:
        file.write(f"{len(WORDS)} {dim}\n".encode())
        for word in WORDS:
            file.write(word.encode() + b" " + rng.standard_normal(dim).astype(np.float32).tobytes() + b"\n")


@pytest.fixture
def experiment(tmp_path: Path) -> Callable[..., Config]:
    """A function that gives the configuration of a small experiment on disk, with changes laid over it."""
    from eao.config import merge, parse_config

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

    def build(**changes: Any) -> Config:
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
        return parse_config(merge(values, changes), "the test")

    return build
