from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eao.errors import ExportError
from eao.export.calibration import METHODS, PERCENTILE, Histogram, Range, collect, intermediate


@pytest.fixture
def doubling(tmp_path: Path) -> Path:
    """x -> y = 2 x, both (rows, 3)."""
    node = onnx.helper.make_node("Mul", ["x", "two"], ["y"])
    value = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["rows", 3]) for n in "xy"]
    two = onnx.numpy_helper.from_array(np.float32([2]), "two")
    graph = onnx.helper.make_graph([node], "g", value[:1], value[1:], [two])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)]), tmp_path / "g.onnx")
    return tmp_path / "g.onnx"


def test_ranges_span_inputs_and_inner_tensors_over_all_batches(doubling: Path) -> None:
    feeds = [{"x": np.float32([[-1, 0, 2]])}, {"x": np.float32([[-3, 0, 1], [0, 0, 0]])}]
    assert collect(doubling, feeds, ["x", "y"], "minmax") == {"x": Range(-3, 2), "y": Range(-6, 4)}
    assert Range(-6, 4).bound == 6


def test_nothing_is_left_beside_the_graph(doubling: Path) -> None:
    list(intermediate(doubling, [{"x": np.ones((1, 3), np.float32)}], ["y"]))
    assert [p.name for p in doubling.parent.iterdir()] == ["g.onnx"]


def test_no_samples_is_an_error(doubling: Path) -> None:
    with pytest.raises(ExportError, match="no samples"):
        collect(doubling, [], ["y"])


def test_an_unknown_method_is_an_error(doubling: Path) -> None:
    with pytest.raises(ExportError, match="choose one of minmax, percentile, entropy"):
        collect(doubling, [], ["y"], "mean")  # type: ignore[arg-type]


def test_values_that_are_not_finite_name_their_tensor(doubling: Path) -> None:
    with pytest.raises(ExportError, match="not finite in y"):
        collect(doubling, [{"x": np.float32([[3e38, 0, 0]])}], ["y"])


@pytest.mark.parametrize("method", METHODS)
def test_a_tensor_of_zeros_has_the_range_zero(doubling: Path, method: Callable) -> None:
    assert collect(doubling, [{"x": np.zeros((2, 3), np.float32)}], ["y"], method)["y"] == Range(0, 0)


# No subnormal numbers: runtimes have the processor take them for zero.
@given(
    st.lists(
        st.lists(st.floats(-1e6, 1e6, width=32, allow_subnormal=False), min_size=1, max_size=30), min_size=1, max_size=6
    )
)
@settings(max_examples=60, deadline=None)
def test_merging_bins_loses_no_value_whatever_the_order_of_scales(batches: list[list[float]]) -> None:
    histogram = Histogram()
    for batch in batches:
        histogram.add(np.float32(batch))
    values = np.abs(np.concatenate([np.float32(b) for b in batches]))
    assert histogram.counts.sum() == histogram.total == len(values)
    assert histogram.range("minmax").bound == values.max()


def test_the_percentile_is_that_of_the_magnitudes() -> None:
    values = np.random.default_rng(0).standard_normal(400_000).astype(np.float32)
    histogram = Histogram()
    for part in np.array_split(values, 7):
        histogram.add(part)
    exact = np.percentile(np.abs(values), PERCENTILE)
    # A bin is at most 2 x largest / 2048 wide, and the end of the bin is taken.
    assert exact <= histogram.range("percentile").bound <= exact + 2 * np.abs(values).max() / 1024


def test_entropy_cuts_off_a_lone_outlier_but_not_the_mass() -> None:
    values = np.random.default_rng(0).standard_normal(100_000).astype(np.float32)
    histogram = Histogram()
    histogram.add(np.append(values, np.float32(40)))
    assert 2.5 < histogram.range("entropy").bound < 8


def test_entropy_keeps_all_of_an_even_distribution() -> None:
    histogram = Histogram()
    histogram.add(np.random.default_rng(0).uniform(-1, 1, 200_000).astype(np.float32))
    assert histogram.range("entropy").bound > 0.97
