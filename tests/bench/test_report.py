from __future__ import annotations

from pathlib import Path

import pytest

from eao.bench.report import BenchReport
from eao.errors import ConfigError

from .reports import FP32, INT8, make_entry, make_report


def test_a_speed_up_measured_on_a_busy_machine_is_not_shown() -> None:
    text = make_report(make_entry({FP32: 182.0}, foreign=0.9), make_entry({FP32: 1.5})).to_markdown()
    assert "182" not in text
    assert "1.50x" in text
    assert "0.9 of 2 cores busy during 1 of 2 measurements" in text


def test_only_a_slowdown_beyond_the_noise_of_a_quiet_machine_is_told() -> None:
    slow, noisy, busy = make_entry({FP32: 0.5}), make_entry({FP32: 0.97}), make_entry({FP32: 0.5}, foreign=0.9)
    assert make_report(slow, noisy, busy).slower == [(slow, FP32)]
    row = next(line for line in make_report(slow).to_markdown().splitlines() if "| onnxruntime fp32 |" in line)
    assert row.endswith("| [!] slower than PyTorch |")
    assert "do not prefer onnxruntime fp32 at batch 1" in make_report(slow).to_markdown()


def test_the_fastest_engine_is_recommended() -> None:
    assert make_entry({FP32: 2.0, INT8: 4.0}).recommended == INT8
    assert make_entry({FP32: 2.0, INT8: 4.0}).verdict(FP32) == ""


def test_an_int8_engine_that_stayed_in_float32_is_not_recommended() -> None:
    entry = make_entry({FP32: 2.0, INT8: 4.0}).model_copy(update={"hollow": (INT8,)})
    assert entry.recommended == FP32 and entry.verdict(INT8) == "[!] all in float32"


@pytest.mark.parametrize(
    ("speedups", "foreign"),
    [({FP32: 0.8}, 0.0), ({FP32: 1.03}, 0.0), ({FP32: 3.0}, 0.9)],
    ids=["slower", "within the noise", "busy"],
)
def test_what_is_not_surely_faster_than_torch_is_not_recommended(speedups: dict, foreign: float) -> None:
    assert make_entry(speedups, foreign).recommended is None


def test_without_torch_nothing_is_recommended_and_nothing_is_slower() -> None:
    entry = make_entry()
    alone = entry.model_copy(update={"results": {FP32: entry.results[FP32], INT8: entry.results[INT8]}})
    assert (alone.recommended, alone.slower) == (None, ())
    assert "Speed-up is over onnxruntime fp32" in make_report(alone).to_markdown()


def test_arithmetic_and_traffic_stand_beside_the_machine_s_bound() -> None:
    row = make_report(make_entry({FP32: 2.0})).latency_table().rows[1]
    # 0.1 GFLOP and 1 MB in 2 ms, where 100 GFLOP/s allow 1 ms and 10 GB/s 0.1 ms.
    assert row[-4:-1] == ("50", "0.5", "50 % A")


def test_an_int8_engine_says_how_much_of_it_stayed_in_float32() -> None:
    table = make_report(make_entry({FP32: 2.0, INT8: 4.0})).engine_table()
    told = {row[1]: row[table.header.index("layers in float32")] for row in table.rows}
    assert told == {FP32: "", INT8: "3 of 8"}


def test_copies_and_random_arrivals_have_tables_of_their_own() -> None:
    report = make_report(make_entry({INT8: 2.0}, full=True))
    assert report.copies_table().rows == [("text", "1", "text tokens 20", INT8, "0.10", "1.50", "0.20")]
    assert report.arrivals_table().rows[0][4:] == ("50", "2.00", "2.00", "2.00", "40 %", "12.5 % of 20 ms")
    assert "copies in" in report.to_markdown() and "requests/s" in report.to_markdown()
    assert "copies in" not in make_report(make_entry()).to_markdown()


def test_a_report_is_read_as_it_was_saved(tmp_path: Path) -> None:
    report = make_report(make_entry(full=True))
    report.save(tmp_path / "report.json")
    assert BenchReport.load(tmp_path / "report.json") == report


@pytest.mark.parametrize("text", [None, "{", '{"format": 1}'])
def test_what_is_no_report_is_refused(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "report.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=r"report\.json"):
        BenchReport.load(path)
