"""Sections of a Markdown page that measurements write, each between two markers of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from eao.bench.hardware import Hardware
from eao.errors import ConfigError
from eao.files import write_text


def update_section(path: str | Path, name: str, heading: str, markdown: str, title: str = "Performance") -> None:
    """Put a section into a page, in place of the one an earlier run wrote under the same name.

    A page without the section's markers gets it at its end, and a missing page is created.

    Args:
        path: the page.
        name: of the measurement; the markers carry it.
        heading: the section's heading.
        markdown: what stands below it.
        title: of a page that is created.

    Raises:
        ConfigError: only one of the markers is there.
    """
    path = Path(path)
    begin, end = markers(name)
    text = path.read_text(encoding="utf-8") if path.exists() else f"# {title}\n"
    section = f"{begin}\n## {heading}\n\n{markdown.rstrip()}\n{end}"
    if (begin in text) != (end in text) or (begin in text and text.index(end) < text.index(begin)):
        raise ConfigError(f"{path} has only one of the markers of this section", f"mend it: {begin} ... {end}")
    if begin in text:
        before, _, rest = text.partition(begin)
        text = before + section + rest.partition(end)[2]
    else:
        text = f"{text.rstrip()}\n\n{section}\n"
    write_text(path, text)


def markers(name: str) -> tuple[str, str]:
    """The lines around the section of a measurement."""
    return f"<!-- eao bench {name}: begin -->", f"<!-- eao bench {name}: end -->"


def measured_on(hardware: Hardware, versions: Mapping[str, str], threads: int) -> str:
    """The sentence that says what a measurement was made on."""
    gpu = f", {hardware.gpu}" if hardware.gpu else ""
    installed = ", ".join(f"{name} {version}" for name, version in versions.items())
    return (
        f"Measured on {hardware.cpu}, {hardware.cores} cores, {hardware.memory_gb:g} GB{gpu}; {threads} threads; "
        f"load average {hardware.load_average:g} at the start; {hardware.system}; {installed}."
    )
