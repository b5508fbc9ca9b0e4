"""Every fault is named before a server sees it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eao.errors import ServingError
from eao.serve.triton.check import check_repository
from eao.serve.triton.schema import messages, read_config, write_config


def test_a_written_repository_has_no_fault(written: Path) -> None:
    assert set(check_repository(written)) == {path.name for path in written.iterdir() if path.is_dir()}


FP16 = messages().DataType.Value("TYPE_FP16")

FAULTS: dict[str, tuple[str, Callable[[Any], object], str]] = {
    "another name": ("text", lambda c: setattr(c, "name", "other"), "not that of the folder"),
    "no backend": ("text", lambda c: setattr(c, "backend", "darknet"), "no backend 'darknet'"),
    "no file": ("text", lambda c: setattr(c, "default_model_filename", "x.onnx"), r"1/x\.onnx is missing"),
    "an input twice": ("text", lambda c: c.input.add(name="text", dims=[1]), "'text' is there twice"),
    "no outputs": ("text", lambda c: c.ClearField("output"), "no inputs or no outputs"),
    "no dims": ("text", lambda c: c.output[0].ClearField("dims"), "embedding has no shape"),
    "a batch too large": (
        "text",
        lambda c: c.dynamic_batching.preferred_batch_size.append(999),
        "preferred batch of 999 is beyond",
    ),
    "a warm-up without an input": ("text", lambda c: c.model_warmup[0].inputs.pop("text"), "warm-up batch-1 gives"),
    "a warm-up of another shape": (
        "text",
        lambda c: c.model_warmup[0].inputs["text"].dims.append(2),
        "another shape or type of text",
    ),
    "a warm-up without its file": (
        "text",
        lambda c: setattr(c.model_warmup[0].inputs["text"], "input_data_file", "gone"),
        "warmup/gone is missing",
    ),
    "a step that is no model": (
        "embed-text",
        lambda c: setattr(c.ensemble_scheduling.step[0], "model_name", "gone"),
        "'gone' is no model",
    ),
    "a step that takes fewer rows": ("embed-text", lambda c: setattr(c, "max_batch_size", 4096), "the ensemble 4096"),
    "an input that is not given": (
        "embed-text",
        lambda c: c.ensemble_scheduling.step[-1].input_map.pop("text_mask"),
        "but is given",
    ),
    "an output that is not there": (
        "embed-text",
        lambda c: c.ensemble_scheduling.step[-1].output_map.update({"logits": "x"}),
        "no output 'logits'",
    ),
    "a tensor that nothing makes": (
        "embed-text",
        lambda c: c.ensemble_scheduling.step[-1].input_map.update({"text": "gone"}),
        "reads 'gone'",
    ),
    "a tensor made twice": (
        "embed-text",
        lambda c: c.ensemble_scheduling.step[0].output_map.update({"text": "sentence"}),
        "'sentence' is made twice",
    ),
    "another type": ("embed-text", lambda c: setattr(c.output[0], "data_type", FP16), "embedding is TYPE_FP16"),
    "another shape": ("embed-text", lambda c: c.output[0].dims.append(3), "has the shape"),
    "an output that nothing makes": (
        "embed-text",
        lambda c: c.output.add(name="other", dims=[1]),
        "nothing makes the output 'other'",
    ),
    "an input that nothing reads": ("embed-text", lambda c: c.input.add(name="other", dims=[1]), "reads 'other'"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named(repository: Path, fault: str) -> None:
    name, change, message = FAULTS[fault]
    config = read_config(repository / name)
    change(config)
    write_config(config, repository / name)
    with pytest.raises(ServingError, match=message) as caught:
        check_repository(repository)
    assert f"{name}/config.pbtxt" in str(caught.value)


def test_what_is_not_of_the_schema_is_named(repository: Path) -> None:
    path = repository / "text" / "config.pbtxt"
    path.write_text(path.read_text() + "\nmax_batches: 3\n")
    with pytest.raises(ServingError, match=r"text/config\.pbtxt is not of Triton's schema: .*max_batches"):
        check_repository(repository)


def test_a_model_without_a_configuration_is_named(repository: Path) -> None:
    (repository / "video" / "config.pbtxt").unlink()
    with pytest.raises(ServingError, match=r"video/config\.pbtxt is missing"):
        check_repository(repository)


def test_an_empty_folder_is_no_repository(tmp_path: Path) -> None:
    with pytest.raises(ServingError, match="has no models"):
        check_repository(tmp_path)
