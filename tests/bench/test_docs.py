"""Sections of a page that measurements write."""

from __future__ import annotations

from pathlib import Path

import pytest

from eao.bench.docs import markers, measured_on, update_section
from eao.bench.hardware import Hardware
from eao.errors import ConfigError


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "performance.md"
    path.write_text("# Performance\n\nBefore.\n")
    return path


def test_a_section_is_refreshed_in_place(page: Path) -> None:
    update_section(page, "loss", "Loss", "one")
    page.write_text(page.read_text() + "\nAfter.\n")
    update_section(page, "loss", "Loss", "two")
    text = page.read_text()
    assert text.startswith("# Performance\n\nBefore.\n")
    assert text.endswith("After.\n")
    assert [text.count(marker) for marker in markers("loss")] == [1, 1]
    assert "two" in text and "one" not in text


def test_sections_of_other_measurements_stay(page: Path) -> None:
    update_section(page, "loss", "Loss", "one")
    update_section(page, "loader", "Loader", "two")
    update_section(page, "loss", "Loss", "three")
    assert page.read_text().index("three") < page.read_text().index("two")


def test_a_lone_marker_is_refused_and_the_file_kept(page: Path) -> None:
    begin, _ = markers("loss")
    page.write_text(f"text {begin} more")
    with pytest.raises(ConfigError, match="only one of the markers"):
        update_section(page, "loss", "Loss", "one")
    assert page.read_text() == f"text {begin} more"


def test_what_was_measured_on_names_machine_and_versions() -> None:
    hardware = Hardware(cpu="C", cores=2, memory_gb=8, gpu="G", system="S", load_average=0.5)
    text = measured_on(hardware, {"torch": "2"}, threads=1)
    assert text == "Measured on C, 2 cores, 8 GB, G; 1 threads; load average 0.5 at the start; S; torch 2."
