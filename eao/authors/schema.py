"""Helpers for walking the authors' configurations."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

# Read by nothing in the authors' code either, or without an effect worth a notice.
SILENT = {
    "trainer.use_clip_text_model_use_proj",
    "trainer.use_clip_text_model_use_just_cls",
    "trainer.save_dir",
    "trainer.verbosity",
}


def is_authors(values: Mapping[str, Any]) -> bool:
    """Whether a configuration is in the authors' schema, not in this package's."""
    return bool(values.keys() & {"arch", "data_loader"}) and not values.keys() & {"base", "model", "data"}


def section(values: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    """A section, or a section of a section; empty if it is not there or no mapping."""
    for name in names:
        found = values.get(name)
        values = found if isinstance(found, Mapping) else {}
    return values


def renamed(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The values whose key is in `names`, under our name for it; what is null is left out."""
    return {ours: values[theirs] for theirs, ours in names.items() if values.get(theirs) is not None}


def leftover(values: Mapping[str, Any], prefix: str, known: Collection[str], notices: list[str]) -> None:
    """Add a notice for every key that is not in `known`."""
    for key, value in values.items():
        if key not in known and f"{prefix}{key}" not in SILENT:
            notices.append(f"{prefix}{key}: not translated (was {value!r})")
