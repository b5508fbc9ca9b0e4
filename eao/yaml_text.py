"""YAML as people write it: the YAML 1.2 reading of numbers and words, and no key given twice."""

from __future__ import annotations

import re
from typing import Any, ClassVar

import yaml

_NUMBER = r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*|[0-9][0-9_]*(?=[eE]))(?:[eE][-+]?[0-9]+)?"
_FLOAT = re.compile(rf"^{_NUMBER}$|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$")
_FLOAT_STARTS = list("-+0123456789.")


class _Loader(yaml.SafeLoader):
    # None of PyYAML's own, by which 1e-4 is a word, `on` is true and 2024-01-02 a date.
    yaml_implicit_resolvers: ClassVar = {}  # type: ignore[misc]

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            # The merge key may stand several times.
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    message = f"the key {key.value!r} is given twice"
                    raise yaml.constructor.ConstructorError(None, None, message, key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes what either reading would take for something other than a word."""


for _tag, _pattern, _starts in (
    ("bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    ("float", _FLOAT, _FLOAT_STARTS),
    ("int", re.compile(r"^[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)$"), list("-+0123456789")),
    ("merge", re.compile(r"^<<$"), ["<"]),
    ("null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, _starts)
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, _FLOAT_STARTS)


def parse_yaml(text: str) -> Any:
    """The value of a YAML text.

    Raises:
        yaml.YAMLError: it is no YAML, or a key is given twice.

    Example:
        >>> parse_yaml("{weight_decay: 1e-4, date: 2024-01-02, switch: on}")
        {'weight_decay': 0.0001, 'date': '2024-01-02', 'switch': 'on'}
    """
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None


def dump_yaml(value: Any) -> str:
    """`value` as YAML that `parse_yaml` reads back equal, in the order of its keys."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
