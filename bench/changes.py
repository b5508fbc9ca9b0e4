"""Two reports of engines beside each other: what became faster or slower by more than the noise."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pydantic

from eao.bench.report import BUSY, BenchReport, Entry
from eao.errors import ConfigError
from eao.export.encoders import BATCH
from eao.export.page import Table


class Change(pydantic.BaseModel):
    """One way at one size, in both reports.

    Attributes:
        before_ms, after_ms: median times.
        ratio: time after over time before: below 1 it became faster.
        noise: of the ratio, relative: both spreads together.
        reliable: whether the machine was quiet both times.
    """

    encoder: str
    sizes: dict[str, int]
    way: str
    before_ms: float
    after_ms: float
    ratio: float
    noise: float
    reliable: bool

    @property
    def verdict(self) -> str:
        """What the ratio says beyond its noise: "faster", "slower" or "same"; "busy machine" if it says nothing."""
        if not self.reliable:
            return BUSY
        if self.ratio > 1 + self.noise:
            return "slower"
        return "faster" if self.ratio < 1 / (1 + self.noise) else "same"


class Changes(pydantic.BaseModel):
    """The comparison of two reports.

    Attributes:
        changes: of what both hold.
        conditions: differences between machines, threads and versions, which may explain everything.
        only_before, only_after: what one of them lacks.
    """

    changes: list[Change]
    conditions: list[str]
    only_before: list[str]
    only_after: list[str]

    def to_markdown(self) -> str:
        """A table of what both hold, and what differs between their conditions."""
        header = ("encoder", "batch", "sizes", "engine", "before ms", "after ms", "after / before", "")
        rows = []
        for c in self.changes:
            sizes = ", ".join(f"{name.replace('_', ' ')} {n}" for name, n in c.sizes.items() if name != BATCH)
            cells = (c.encoder, str(c.sizes[BATCH]), sizes or "fixed", c.way, f"{c.before_ms:.2f}", f"{c.after_ms:.2f}")
            rows.append((*cells, f"{c.ratio:.2f} ± {100 * c.noise:.0f} %", c.verdict))
        lines = [Table(header, rows).to_markdown()]
        notes = [f"[!] {line}" for line in self.conditions]
        notes += [f"only before: {name}" for name in self.only_before]
        notes += [f"only after: {name}" for name in self.only_after]
        return "\n".join([*lines, *(line for note in notes for line in ("", note))]) + "\n"


def compare_reports(before: BenchReport, after: BenchReport) -> Changes:
    """Compare what both reports measured.

    Raises:
        ConfigError: they have nothing in common.
    """
    ways = [dict(_measured(report)) for report in (before, after)]
    common = [key for key in ways[0] if key in ways[1]]
    if not common:
        raise ConfigError(
            "the two reports have no engine and size in common", "measure the same encoders, --batch and --length"
        )
    return Changes(
        changes=[_change(key[-1], ways[0][key], ways[1][key]) for key in common],
        conditions=list(_conditions(before, after)),
        only_before=[_name(key) for key in ways[0] if key not in ways[1]],
        only_after=[_name(key) for key in ways[1] if key not in ways[0]],
    )


def _measured(report: BenchReport) -> Iterator[tuple[tuple[str, ...], Entry]]:
    for entry in report.entries:
        sizes = ", ".join(f"{name} {n}" for name, n in entry.sizes.items())
        for way in entry.results:
            yield (entry.encoder, sizes, way), entry


def _name(key: tuple[str, ...]) -> str:
    encoder, sizes, way = key
    return f"{way} {encoder} at {sizes}"


def _change(way: str, before: Entry, after: Entry) -> Change:
    old, new = before.results[way], after.results[way]
    return Change(
        encoder=before.encoder,
        sizes=before.sizes,
        way=way,
        before_ms=old.latency.median_ms,
        after_ms=new.latency.median_ms,
        ratio=new.latency.median_ms / old.latency.median_ms,
        noise=math.hypot(old.spread, new.spread),
        reliable=before.reliable and after.reliable,
    )


def _conditions(before: BenchReport, after: BenchReport) -> Iterator[str]:
    machines = [f"{r.hardware.cpu}, {r.hardware.cores} cores, {r.hardware.gpu or 'no GPU'}" for r in (before, after)]
    pairs: dict[str, list[str] | list[int]] = {
        "machine": machines,
        "threads": [before.threads, after.threads],
        "device": [before.device, after.device],
    }
    for package in sorted({*before.versions, *after.versions}):
        pairs[package] = [r.versions.get(package, "not installed") for r in (before, after)]
    for name, (old, new) in pairs.items():
        if old != new:
            yield f"{name} differs: {old} before, {new} after"
