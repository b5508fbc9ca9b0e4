"""The experiments that are shipped, as YAML files, and how they are found by name."""

from __future__ import annotations

import difflib
from pathlib import Path

from eao.errors import ConfigError

FOLDER = Path(__file__).parent


def shipped_configs() -> list[str]:
    """The names of the shipped experiments, such as `pretraining/everything_at_once_tva`."""
    return sorted(path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*.yaml"))


def find_config(name: str | Path) -> Path:
    """The file of an experiment: a path that exists, else the shipped experiment of that name.

    Raises:
        ConfigError: there is neither.

    Example:
        >>> find_config("no_such_experiment")
        Traceback (most recent call last):
        eao.errors.ConfigError: ...
    """
    path = Path(name)
    return path if path.is_file() else find_shipped(name)


def find_shipped(name: str | Path) -> Path:
    """The file of a shipped experiment.

    It is named by its path under `configs/`, with or without that folder and the suffix, or by its last part where only
    one ends so.

    Raises:
        ConfigError: there is none.
    """
    names = shipped_configs()
    wanted = Path(name).as_posix().removeprefix("./").removeprefix("configs/").removesuffix(".yaml")
    found = [n for n in names if n == wanted] or [n for n in names if n.rpartition("/")[2] == wanted]
    if len(found) == 1:
        return FOLDER / f"{found[0]}.yaml"
    if found:
        raise ConfigError(f"{wanted} is the name of several shipped experiments", f"say which: {', '.join(found)}")
    near = difflib.get_close_matches(wanted, [*names, *(n.rpartition("/")[2] for n in names)], n=1)
    hint = (
        f"did you mean {near[0]}?" if near else f"give the path of a YAML file, or one of: {', '.join(names) or 'none'}"
    )
    raise ConfigError(f"{name} is neither a file nor a shipped experiment", hint)
