"""Reading experiment files: `base:` inheritance, `key=value` overrides, and errors that name the key."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pydantic
import yaml

from eao.config.data import DATASET_TYPES
from eao.config.experiment import Config, ModelConfig
from eao.configs import find_shipped
from eao.errors import ConfigError
from eao.yaml_text import parse_yaml


def load_config(path: str | Path | None = None, overrides: Iterable[str] = ()) -> Config:
    """Read an experiment file with its bases, apply `key=value` overrides, and check the result.

    Raises:
        ConfigError: for a missing or malformed file, an unknown key (with the nearest known one) or a bad value.

    Example:
        >>> load_config(overrides=["model.fusion.depth=2", "optimizer.lr=1e-4"]).model.fusion.depth
        2
    """
    values = apply_overrides(read_yaml(path) if path is not None else {}, overrides)
    if path is not None:
        values.setdefault("name", Path(path).stem)
    return parse_config(values, str(path) if path is not None else "the command line")


def override_config(config: Config, overrides: Iterable[str]) -> Config:
    """A copy of `config` with `key=value` overrides applied."""
    return parse_config(apply_overrides(config.model_dump(mode="python"), overrides), "the command line")


def apply_overrides(values: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Settings not yet checked, with `key=value` overrides applied; the mapping itself is changed."""
    for override in overrides:
        _apply_override(values, override)
    return values


def override_trained(config: Config, overrides: Iterable[str], source: str) -> Config:
    """As `override_config`, for a model that is trained: see `check_trained`."""
    changed = override_config(config, overrides)
    check_trained(config.model, changed.model, source)
    return changed


def check_trained(trained: ModelConfig, changed: ModelConfig, source: str) -> None:
    """Refuse settings of a model under which its weights would mean something else.

    How audio tokens are limited and which pairs are trained may change.

    Args:
        trained: what the weights were trained with.
        changed: what is wanted of them.
        source: names the model.

    Raises:
        ConfigError: naming the settings that may not differ.
    """
    free = {"audio_pooling", "cross_modal"}
    if not trained.use_positional_emb:  # their tables have these sizes
        free |= {"audio_max_frames", "text_max_tokens", "video_max_tokens"}
    before, after = _leaves(trained.model_dump()), _leaves(changed.model_dump())
    different = [
        f"model.{key} is {before[key]} there, not {after[key]}"
        for key in before
        if before[key] != after[key] and key not in free
    ]
    if different:
        raise ConfigError(
            f"what the weights of {source} were trained with cannot be changed: {', '.join(different)}",
            f"of model.*, only {', '.join(sorted(free))} may differ",
        )


def lay_over(config: Config, changes: Mapping[str, Any], source: str) -> Config:
    """`config` with an experiment file laid over it, such as an evaluation over the settings of a checkpoint.

    Data sets that the file names replace those of the same split whole.

    Args:
        config: what lies below; it keeps its name.
        changes: the keys of the file, from `read_yaml`.
        source: names the file in errors.
    """
    values = config.model_dump(mode="python")
    data = changes.get("data")
    for split in ("train", "validation", "test"):
        if isinstance(data, Mapping) and split in data:
            del values["data"][split]
    return parse_config({**merge(values, changes), "name": config.name}, source)


def parse_config(values: Mapping[str, Any], source: str) -> Config:
    """Check a mapping against the schema; `source` names it in errors."""
    try:
        return Config.model_validate(values)
    except pydantic.ValidationError as error:
        raise _as_config_error(error, source) from None


def read_yaml(path: str | Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The mapping in a YAML file, merged over that of its `base:` if it names one.

    A base is a file, relative to the one that names it, or else a shipped experiment. Its `name` is not inherited.
    """
    path = Path(path)
    if path.resolve() in seen:
        raise ConfigError(f"{path}: `base:` leads back to this file", "remove one link of the circle")
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        hint = f"it is named as `base:` in {seen[-1]}" if seen else "check the path"
        raise ConfigError(f"cannot read the configuration {path}: {error}", hint) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: the top level must be a mapping of sections, not {type(values).__name__}")
    base = values.pop("base", None)
    if base is None:
        return values
    inherited = read_yaml(_find_base(path, str(base)), (*seen, path.resolve()))
    # Two experiments of one name would write into one run folder.
    inherited.pop("name", None)
    return merge(inherited, values)


def _find_base(path: Path, base: str) -> Path:
    beside = path.parent / base
    if beside.exists():
        return beside
    try:
        return find_shipped(base)
    except ConfigError as error:
        raise ConfigError(f"{path}: base: {error.message}", error.hint) from None


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes` laid over it, mapping by mapping; lists and scalars are replaced whole.

    So is a mapping by one that names another `type`: the keys of one kind of data set mean nothing to another.
    """
    merged = dict(base)
    for key, value in changes.items():
        there = merged.get(key)
        if isinstance(value, Mapping) and isinstance(there, Mapping) and _same_type(there, value):
            merged[key] = merge(there, value)
        else:
            merged[key] = value
    return merged


def _leaves(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested mappings by dotted key."""
    leaves: dict[str, Any] = {}
    for key, value in values.items():
        leaves |= _leaves(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return leaves


def _same_type(base: Mapping[str, Any], changes: Mapping[str, Any]) -> bool:
    return "type" not in changes or changes["type"] == base.get("type")


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"override {override!r} is not of the form key=value", "for example: optimizer.lr=1e-4")
    try:
        value = parse_yaml(text)
    except yaml.YAMLError:
        raise ConfigError(f"override {override!r}: the value is not valid YAML") from None
    *sections, leaf = key.strip().split(".")
    for section in sections:
        child = values.get(section)
        # A copy, so that a mapping shared by YAML anchors is not changed in two places.
        values[section] = dict(child) if isinstance(child, Mapping) else {}
        values = values[section]
    values[leaf] = value


def _as_config_error(error: pydantic.ValidationError, source: str) -> ConfigError:
    # A key that is misspelt is missing too, and the misspelling says more.
    first = next((e for e in error.errors() if e["type"] == "extra_forbidden"), error.errors()[0])
    location = _keys(first["loc"])
    key = ".".join(location)
    if first["type"] == "extra_forbidden":
        known = _keys_at(first["loc"][:-1])
        near = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
        hint = (
            f"did you mean {'.'.join([*location[:-1], near[0]])}?"
            if near
            else f"known here: {', '.join(sorted(known))}"
        )
        return ConfigError(f"{source}: unknown key {key}", hint)
    if first["type"] == "union_tag_invalid":
        return ConfigError(
            f"{source}: {key}.type is {first['ctx']['tag']!r}, which is no data set",
            f"known: {', '.join(DATASET_TYPES)}",
        )
    detail = first["msg"].removeprefix("Value error, ")
    given = "" if isinstance(first["input"], Mapping) or first["type"] == "missing" else f" (given: {first['input']!r})"
    return ConfigError(f"{source}: {key + ': ' if key else ''}{detail}{given}")


def _keys(location: tuple[str | int, ...]) -> list[str]:
    """The keys of a location of pydantic's, without what was chosen for a data set: one or several, and its type."""
    keys = [str(part) for part in location]
    if keys[:2] == ["data", "train"]:
        return keys[:2] + keys[3:]
    if keys[:1] == ["data"] and keys[1:2] in (["validation"], ["test"]):
        return keys[:2] + (keys[3:4] + keys[5:] if keys[2:3] == ["several"] else keys[4:])
    return keys


def _keys_at(location: tuple[str | int, ...]) -> list[str]:
    """The keys of the section at a location of pydantic's."""
    section: type[pydantic.BaseModel] | None = Config
    for part in location:
        if part in DATASET_TYPES:
            section = DATASET_TYPES[str(part)]
        elif section is not None and part in section.model_fields:
            section = _section_of(section.model_fields[str(part)].annotation)
    return list(section.model_fields) if section is not None else []


def _section_of(annotation: Any) -> type[pydantic.BaseModel] | None:
    candidates = getattr(annotation, "__args__", (annotation,))
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, pydantic.BaseModel)), None)
