from __future__ import annotations

from typing import Any

import pydantic
import pytest

from eao.errors import ExportError
from eao.export.tensorrt.api import TARGETS
from eao.export.tensorrt.profiles import AxisRange
from eao.export.tensorrt.request import BuildRequest

PROFILES = ({"batch": AxisRange(1, 8, 64)},)


def test_a_request_survives_json() -> None:
    request = BuildRequest(flavour="tensorrt-rtx", profiles=PROFILES, targets=("8.6",), workspace=1 << 30)
    again = BuildRequest.model_validate_json(request.model_dump_json())
    assert again == request
    assert again.profiles[0]["batch"].opt == 8


def test_rtx_builds_for_all_usual_targets_by_default_and_tensorrt_for_none() -> None:
    assert BuildRequest(flavour="tensorrt-rtx", profiles=PROFILES).targets == TARGETS
    assert BuildRequest(flavour="tensorrt", profiles=PROFILES).targets == ()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"flavour": "tensorrt", "targets": ("8.6",)}, r"the GPU it runs on, not for 8\.6\n.*trt-rtx"),
        (
            {"flavour": "tensorrt-rtx", "targets": ("8.6", "9.0")},
            r"compute capability 9\.0\n.*7\.5, 8\.0.*--engine trt",
        ),
        ({"flavour": "tensorrt-rtx", "hardware_compatible": True}, "no hardware-compatible engines"),
        ({"flavour": "tensorrt-rtx", "version_compatible": True}, "no version-compatible engines"),
    ],
)
def test_what_a_flavour_cannot_do_is_said_before_building(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        BuildRequest(profiles=PROFILES, **values).check()


@pytest.mark.parametrize("values", [{"flavour": "tensorrt-lean"}, {"workspace": 0}, {"precision": "fp16"}])
def test_unknown_values_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(pydantic.ValidationError):
        BuildRequest(**{"flavour": "tensorrt", **values})
