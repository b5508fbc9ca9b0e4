from __future__ import annotations

import pytest

from eao.bench.changes import compare_reports
from eao.errors import ConfigError

from .reports import FP32, INT8, make_entry, make_report


def test_only_what_differs_by_more_than_the_noise_is_called_faster_or_slower() -> None:
    before = make_report(make_entry({FP32: 2.0, INT8: 4.0}))
    after = make_report(make_entry({FP32: 1.0, INT8: 4.01}))
    found = {change.way: change for change in compare_reports(before, after).changes}
    assert {way: change.verdict for way, change in found.items()} == {"torch": "same", FP32: "slower", INT8: "same"}
    assert found[FP32].ratio == pytest.approx(2)
    assert found[FP32].noise == pytest.approx(0.01 * 2**0.5)
    back = compare_reports(after, before).changes
    assert next(change for change in back if change.way == FP32).verdict == "faster"


def test_a_busy_machine_on_either_side_says_nothing() -> None:
    quiet, busy = make_report(make_entry({FP32: 2.0})), make_report(make_entry({FP32: 1.0}, foreign=1.0))
    assert {change.verdict for change in compare_reports(quiet, busy).changes} == {"busy machine"}


def test_other_machines_versions_and_missing_engines_are_named() -> None:
    before, after = make_report(make_entry({FP32: 2.0})), make_report(make_entry({INT8: 2.0}))
    after = after.model_copy(update={"threads": 1, "versions": {"torch": "3"}})
    found = compare_reports(before, after)
    assert found.conditions == ["threads differs: 2 before, 1 after", "torch differs: 2 before, 3 after"]
    assert found.only_before == ["onnxruntime fp32 text at batch 1, text_tokens 20"]
    assert found.only_after == ["openvino int8 text at batch 1, text_tokens 20"]
    assert "[!] threads differs" in found.to_markdown()


def test_reports_of_other_sizes_cannot_be_compared() -> None:
    with pytest.raises(ConfigError, match="nothing|no engine"):
        compare_reports(make_report(make_entry(batch=1)), make_report(make_entry(batch=8)))
