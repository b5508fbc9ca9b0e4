"""Published figures of the same evaluations, each with the table it was read in."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eao.yaml_text import parse_yaml

FILE = Path(__file__).with_name("published.yaml")
SETTINGS = ("zero-shot", "fine-tuned")
ITEMS = {"msrvtt": 968, "youcook2": 3339}
"""Clips that the published evaluations rank; a list of any other length is another evaluation."""


@dataclass(frozen=True)
class Source:
    """Where a figure was read.

    Attributes:
        paper: authors and title.
        table: number of the table, and the part of it.
        row: name of the row.
    """

    paper: str
    table: str
    row: str

    def __str__(self) -> str:
        return f"{self.paper}, {self.table}, row {self.row}"


@dataclass(frozen=True)
class Published:
    """Published figures of one evaluation.

    Attributes:
        dataset: "msrvtt", "youcook2", "crosstask" or "mining-youtube".
        setting: one of `SETTINGS`.
        task: such as "t2va"; "steps" or "segmentation" for localisation.
        backbone: "resnet", "s3d" or "clip"; None = the source does not say.
        metrics: metric -> figure, only those that the sources give.
        sources: every table that gives these figures.
        note: what the tables leave open.
    """

    dataset: str
    setting: str
    task: str
    backbone: str | None
    metrics: dict[str, float]
    sources: tuple[Source, ...]
    note: str = ""


@functools.cache
def read_published() -> tuple[Published, ...]:
    """Every figure there is."""
    entries = parse_yaml(FILE.read_text(encoding="utf-8"))
    return tuple(Published(**{**e, "sources": tuple(Source(**source) for source in e["sources"])}) for e in entries)


def find_published(
    dataset: str,
    tasks: Sequence[str],
    setting: str = "zero-shot",
    backbone: str | None = None,
    items: int | None = None,
) -> tuple[Published, ...]:
    """The figures that may stand beside an evaluation; none for a data set that is not a published one.

    Args:
        dataset: name of the data set.
        tasks: the evaluated tasks.
        setting: "fine-tuned" for a model trained on the data set, else "zero-shot".
        backbone: what the model's video features come from; figures whose source names another are left out. None
            leaves out none.
        items: number of clips that were ranked; None = those of the published evaluation.

    Example:
        >>> [p.metrics["R1"] for p in find_published("youcook2", ["t2va", "va2t"], backbone="s3d")]
        [19.8]
    """
    if items is not None and items != ITEMS.get(dataset, items):
        return ()
    return tuple(
        p
        for p in read_published()
        if (p.dataset, p.setting) == (dataset, setting)
        and p.task in tasks
        and (backbone is None or p.backbone in (None, backbone))
    )
