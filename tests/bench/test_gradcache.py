"""The comparison of GradCache with the plain step, on a small model: the real processes, in little time."""

import pytest

from eao.bench.gradcache import run
from eao.config import ModelConfig
from eao.errors import EaoError

SMALL = ModelConfig(
    text_dim=8,
    video_dim=8,
    embedding_dim=32,
    fusion={"embed_dim": 64, "num_heads": 2},
    audio={"channels": (32, 32, 32, 32, 32, 32, 32)},
)


@pytest.mark.slow
def test_a_chunk_needs_less_memory_than_the_batch_for_the_same_gradient():
    report = run(SMALL, clips=(64,), chunk=4, steps=1)
    plain, cached = report.rows
    assert (plain.chunk, cached.chunk) == (None, 4)
    # A sixteenth of the activations, and what the libraries hold besides.
    assert cached.activation_bytes < plain.activation_bytes / 2
    assert cached.loss_error < 1e-5 and cached.gradient_error < 1e-5
    text = report.to_markdown()
    assert "| 64 | plain |" in text and "| 64 | 4 |" in text and report.hardware.cpu in text


def test_a_process_that_fails_is_an_error_with_its_last_words(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with pytest.raises(EaoError, match="a step of 0 clips failed: .*Error"):
        run(SMALL, clips=(0,), steps=1)
