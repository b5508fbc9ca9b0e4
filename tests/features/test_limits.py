from __future__ import annotations

from pathlib import Path

import pytest

from eao.errors import MediaError
from eao.features.limits import Budget, Limits


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.mp4"
    path.write_bytes(bytes(1000))
    return path


def kind_of(error: pytest.ExceptionInfo[MediaError]) -> tuple[str, bool, bool]:
    return error.value.kind, "a.mp4" in error.value.message, bool(error.value.hint)


@pytest.mark.parametrize("name", ["max_bytes", "max_duration", "max_pixels", "stall_seconds"])
def test_limits_are_positive(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        Limits(**{name: 0})


def test_the_largest_picture(file: Path) -> None:
    budget = Budget(file, Limits(max_pixels=100))
    budget.dimensions(10, 10)
    with pytest.raises(MediaError, match="11 x 10") as caught:
        budget.picture(11, 10)
    assert kind_of(caught) == ("too-large", True, True)


def test_the_longest_file(file: Path) -> None:
    budget = Budget(file, Limits(max_duration=10.0))
    budget.duration(10.0)
    with pytest.raises(MediaError, match="11 s") as caught:
        budget.duration(11.0)
    assert kind_of(caught) == ("too-long", True, True)


def test_the_last_frame(file: Path) -> None:
    budget = Budget(file, Limits(max_frames=3))
    for _ in range(3):
        budget.picture(1, 1)
    with pytest.raises(MediaError, match="3 frames") as caught:
        budget.picture(1, 1)
    assert kind_of(caught) == ("too-long", True, True)


def test_pixels_must_be_worth_their_bytes(file: Path) -> None:
    """1000 bytes may decode to 500 + 2 * 1000 pixels: 25 pictures of 100."""
    budget = Budget(file, Limits(free_pixels=500, max_expansion=2.0))
    for _ in range(25):
        budget.picture(10, 10)
    with pytest.raises(MediaError, match="bomb") as caught:
        budget.picture(10, 10)
    assert kind_of(caught) == ("too-large", True, True)


def test_packets_must_become_frames(file: Path) -> None:
    pulses: list[int] = []
    budget = Budget(file, Limits(max_idle_packets=5), lambda: pulses.append(1))
    for _ in range(4):
        budget.packet()
    budget.sound()  # starts counting anew
    for _ in range(5):
        budget.packet()
    with pytest.raises(MediaError, match="5 packets") as caught:
        budget.packet()
    assert kind_of(caught) == ("damaged", True, True)
    assert len(pulses) == 10
