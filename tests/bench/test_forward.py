"""The comparison with the six passes, on a small model: the real work, in little time."""

from eao.bench.forward import DENSE, PACKED, SIX_PASSES, msrvtt_batch, run
from eao.config import ModelConfig

SMALL = ModelConfig(
    text_dim=8,
    video_dim=8,
    embedding_dim=8,
    fusion={"embed_dim": 8, "num_heads": 2},
    audio={"channels": (4, 4, 4, 4, 4, 4, 4)},
)


def test_every_way_is_measured_and_gives_the_same_embeddings():
    report = run(SMALL, clips=2, seconds=0, rounds=1, compiled=False)
    assert [row.work for row in report.rows] == ["evaluation", "training step", "fine-tuning step, in eval mode"]
    assert report.rows[0].deviations[PACKED] < 2e-5 and report.rows[0].deviations[DENSE] < 2e-5
    for row in report.rows:
        assert row.speedups[SIX_PASSES] == 1
        assert set(row.latencies) == set(row.speedups) >= {SIX_PASSES, PACKED}
        assert 0 < row.gflop[PACKED] < row.gflop[SIX_PASSES]
        # A step reads and writes the weights ten times.
        assert row.gbyte and row.gbyte >= report.rows[0].gbyte
    assert 0 < report.norm_share < 1
    text = report.to_markdown()
    assert "BatchNorm takes" in text
    assert "| evaluation | 2 clips | packed |" in text and report.hardware.cpu in text


def test_clips_are_as_long_as_those_of_msrvtt():
    batch = msrvtt_batch(SMALL, 200)
    assert 8 < batch.text_mask.sum(1).float().mean() < 10
    assert 20 < batch.video_mask.sum(1).float().mean() < 24
    assert 1400 < batch.audio_frames.float().mean() < 1600
    assert batch.audio_mask.sum(1).equal(batch.audio_frames)
