"""The comparison of files and shards, on a few short videos: the real reading, in little time."""

from eao.bench.loader import COMPRESSED, FILES, SHARDS, run


def test_files_and_shards_are_measured_warm_and_cold():
    report = run(videos=3, seconds=20, epoch_seconds=0, rounds=1)
    sources = (FILES, COMPRESSED, SHARDS)
    assert [(r.cache, r.source) for r in report.rows] == [(c, s) for c in ("warm", "cold") for s in sources]
    assert all(r.clips_per_second > 0 for r in report.rows)
    assert report.rows[0].speedup == report.rows[3].speedup == 1
    assert 0.9 < report.bytes_of_shards / report.bytes_of_files < 1.1
    assert report.bytes_of_compressed < report.bytes_of_files
    assert "| warm | shards |" in report.to_markdown() and report.hardware.cpu in report.to_markdown()
