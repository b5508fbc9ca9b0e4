from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from eao.errors import ExportError
from eao.export.parity_report import BundleParity

from .reports import made_up, make_parity


@pytest.fixture
def parity() -> BundleParity:
    return make_parity()


def test_failures_name_engine_precision_and_figure(parity: BundleParity) -> None:
    assert not parity.passed
    assert all(line.startswith("onnxruntime int8 ") for line in parity.failures())
    assert parity.failures()[0].startswith("onnxruntime int8 text: cosine min 0.")
    assert BundleParity(reports=parity.reports[:1]).passed
    assert parity.report("onnxruntime", "int8") is parity.reports[1]
    with pytest.raises(KeyError):
        parity.report("openvino", "int8")


def test_markdown_has_one_row_for_each_engine_precision_and_encoder(parity: BundleParity) -> None:
    text = parity.to_markdown()
    assert text.startswith("# Parity of engines with PyTorch\n\n- [x] onnxruntime int8 text: cosine min")
    rows = [line for line in text.splitlines() if line.startswith("| onnxruntime |") and "yes |" in line]
    assert [row.split(" | ")[1:3] for row in rows] == [["fp32", "text"], ["fp32", "video"]]
    assert sum("| [x] no |" in line for line in text.splitlines()) == 2
    assert "| int8 | 0.99 | 0.9999 |" in text
    assert "the first layer out of tolerance is node_2 (MatMul, fusion.fc<1>)" in text
    assert "cannot run on the machine that made it" in text
    assert next(line for line in text.splitlines() if "| tensorrt-rtx | int8 | text" in line).endswith("| its graph |")
    assert "| retrieval | queries x gallery | PyTorch | onnxruntime fp32 | onnxruntime int8 |" in text
    assert "tokens of 15 real clips" in text


def test_tables_have_as_many_cells_as_columns(parity: BundleParity) -> None:
    tables = (parity.embedding_table(), parity.threshold_table(), parity.ranking_table(), parity.recall_table())
    for table in tables:
        assert table.rows and all(len(row) == len(table.header) for row in table.rows)


def test_the_ranking_table_gives_the_worst_task(parity: BundleParity) -> None:
    worse = parity.reports[1].rankings
    row = parity.ranking_table().rows[1]
    assert row[:3] == ("onnxruntime", "int8", "2")
    assert row[8] == f"{100 * min(r.top10_overlap for r in worse):.1f} %"
    assert float(row[3]) == pytest.approx(max((r.recall_change["R1"] for r in worse), key=abs), abs=0.01)


def test_without_a_data_set_it_is_said_that_rankings_were_not_compared(parity: BundleParity) -> None:
    report = parity.reports[0].model_copy(update={"rankings": []})
    text = BundleParity(reports=[report]).to_markdown()
    assert "Rankings were not compared" in text and "| retrieval |" not in text


def test_json_brings_back_the_same_report_with_infinite_and_missing_figures(
    parity: BundleParity, tmp_path: Path
) -> None:
    parity.reports.append(made_up(np.nan, "fp16"))
    parity.save(tmp_path)
    loaded = BundleParity.load(tmp_path)
    assert loaded.model_dump_json() == parity.model_dump_json()
    assert math.isinf(loaded.reports[1].divergences["text"].layers[-1].error)
    assert loaded.failures() == parity.failures()
    assert any(line.startswith("onnxruntime fp16 text: cosine min nan") for line in loaded.failures())
    assert (tmp_path / "parity.md").read_text() == parity.to_markdown()


@pytest.mark.parametrize("content", [None, "{", '{"reports": [{}]}'])
def test_a_report_that_cannot_be_read_is_named(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "parity.json").write_text(content)
    with pytest.raises(ExportError, match=r"parity\.json"):
        BundleParity.load(tmp_path)
