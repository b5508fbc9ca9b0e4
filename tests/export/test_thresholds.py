from __future__ import annotations

import pytest

from eao.errors import ExportError
from eao.export.thresholds import THRESHOLDS, parse_thresholds, thresholds_of


def test_the_table_holds_every_precision_and_batch_invariance_everywhere() -> None:
    assert set(THRESHOLDS) == {"fp32", "fp16", "bf16", "int8", "int8-weights", "int8-nncf", "fp8"}
    assert all(t.batch_invariance >= 0.9999 for t in THRESHOLDS.values())
    assert THRESHOLDS["fp32"].top10_identical == 1
    assert (THRESHOLDS["int8"].cosine, THRESHOLDS["int8"].recall10, THRESHOLDS["int8"].top10_overlap) == (0.99, 1, 0.95)


def test_a_change_touches_one_figure_of_one_precision() -> None:
    table = parse_thresholds(["int8.cosine=0.985", "fp16.top10_overlap=0.9", "int8.cosine=0.98"])
    assert table["int8"].cosine == 0.98  # the last one holds
    assert table["int8"].recall10 == THRESHOLDS["int8"].recall10
    assert table["fp16"].top10_overlap == 0.9
    assert table["int8-nncf"] == THRESHOLDS["int8-nncf"]
    assert THRESHOLDS["int8"].cosine == 0.99


def test_figures_that_are_free_have_no_limit() -> None:
    assert set(THRESHOLDS["bf16"].limits()) == {"cosine", "batch_invariance"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("int8.cosine", "int8.cosine=0.985"),
        ("cosine=0.9", "int8.cosine=0.985"),
        ("int9.cosine=0.9", "did you mean int8"),
        ("int8.cosin=0.9", "did you mean cosine"),
        ("int8.cosine=high", "from 0 to 1"),
        ("int8.cosine=98.5", "from 0 to 1"),
        ("int8.recall10=101", "percentage points"),
        ("int8.cosine=nan", "from 0 to 1"),
    ],
)
def test_a_change_that_is_wrong_is_refused_with_the_way_out(change: str, says: str) -> None:
    with pytest.raises(ExportError) as caught:
        parse_thresholds([change])
    assert change in caught.value.message
    assert says in caught.value.hint


def test_an_unknown_precision_has_no_thresholds() -> None:
    with pytest.raises(ExportError, match="int4"):
        thresholds_of("int4")
