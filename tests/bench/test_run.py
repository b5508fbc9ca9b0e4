from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from eao.api import load
from eao.bench.matrix import Options
from eao.bench.run import run_benchmark, run_comparison, short_rows
from eao.cli import app
from eao.errors import ConfigError

from .reports import FP32, INT8, make_entry, make_report


def test_a_ratio_measured_beside_other_work_is_not_shown() -> None:
    rows = short_rows(make_report(make_entry({FP32: 3.0}, foreign=1.5), make_entry({FP32: 3.0})))
    assert [row["speed-up"] for row in rows] == ["", "busy machine", "", "3.00x ± 5 %"]


def test_rows_tell_lengths_only_where_there_are_several() -> None:
    assert "length" not in short_rows(make_report(make_entry()))[0]
    rows = short_rows(make_report(make_entry(length=0.5), make_entry()))
    assert [rows[0]["length"], rows[-1]["length"]] == ["50 %", "100 %"]
    assert len({tuple(row) for row in rows}) == 1  # a table has the same columns in every row


def test_a_dry_run_names_the_engines_and_measures_nothing(small) -> None:
    found = run_benchmark(load(small.path), encoders=["text"], precisions=["fp32"], dry_run=True, quiet=True)
    assert found["engines"][0] == "text.onnxruntime.fp32"
    assert not any("fp16" in key or "video" in key for key in found["engines"])
    every = [run_benchmark(load(small.path), encoders=names, dry_run=True, quiet=True) for names in (["all"], None)]
    assert every[0] == every[1] and every[0]["encoders"] == list(load(small.path).encoders)


def test_files_that_were_asked_for_are_written(small, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    docs = tmp_path / "docs"
    measured = run_benchmark(
        load(small.path),
        encoders=["text"],
        precisions=["fp32"],
        options=Options(batches=(1,), seconds=0.02, threads=1),
        output=tmp_path / "report.json",
        html=tmp_path / "report.html",
        docs=docs,
        quiet=True,
    )
    assert measured["rows"][0]["engine"] == "onnxruntime fp32"
    assert json.loads((tmp_path / "report.json").read_text())["hardware"]
    assert "<svg" in (tmp_path / "report.html").read_text()
    assert "| text | 1 |" in (docs / "performance.md").read_text()
    assert (small.path / "parity.md").read_text().partition("\n")[2].strip() in (docs / "parity.md").read_text()


def test_two_reports_are_compared_by_the_command(tmp_path: Path) -> None:
    before, after = tmp_path / "a.json", tmp_path / "b.json"
    make_report(make_entry({FP32: 2.0, INT8: 4.0})).save(before)
    make_report(make_entry({FP32: 4.0, INT8: 4.0})).save(after)
    done = CliRunner().invoke(app, ["bench", "compare", str(before), str(after), "--json"])
    assert done.exit_code == 0
    assert [c["verdict"] for c in json.loads(done.stdout)["changes"]] == ["same", "faster", "same"]


def test_a_comparison_names_the_file_that_is_missing(tmp_path: Path) -> None:
    make_report(make_entry()).save(tmp_path / "a.json")
    with pytest.raises(ConfigError, match=r"b\.json"):
        run_comparison(tmp_path / "a.json", tmp_path / "b.json", quiet=True)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["bench", "loss", "--seconds", "3", "--encoder", "text"],
            "--seconds, --encoder: not an option of eao bench loss",
        ),
        (["bench", "engines", "--dry-run"], "--dry-run: not an option of eao bench engines"),
        (["bench", "compare", "a.json", "b.json", "--docs", "d"], "--docs: not an option of eao bench compare"),
        (["export", "model", "--batch", "1:8:64"], "--batch: of TensorRT alone; name it: --engine trt"),
    ],
)
def test_options_that_would_be_ignored_are_refused(arguments: list[str], says: str) -> None:
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert done.exit_code == 2
    assert says in done.output
