"""Write src/unicode_tables.inc: what C++ must know of Unicode to see words as Python does.

The tables are read off the very functions that Python uses, character by character: `re` for words, the package
tokenizers for what BERT and CLIP do. So they agree whatever versions of Unicode those were made with.

    python serve/cpp/tools/make_unicode_tables.py
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import tokenizers
from tokenizers import Regex, normalizers, pre_tokenizers

TARGET = Path(__file__).parents[1] / "src" / "unicode_tables.inc"
HANGUL = range(0xAC00, 0xD7A4)
"""Syllables, which are taken apart by a formula."""
_LINE = 118


def characters() -> Iterator[int]:
    """Every code point but the surrogates."""
    yield from range(0xD800)
    yield from range(0xE000, sys.maxunicode + 1)


def ranges(found: Iterable[int]) -> list[tuple[int, int]]:
    """Ascending numbers as ranges, both ends included."""
    result: list[tuple[int, int]] = []
    for c in found:
        if result and result[-1][1] == c - 1:
            result[-1] = (result[-1][0], c)
        else:
            result.append((c, c))
    return result


def runs(mapping: dict[int, int]) -> list[tuple[int, int, int, int]]:
    """Pairs of characters as (first, last, step, difference)."""
    result: list[tuple[int, int, int, int]] = []
    for c, target in mapping.items():
        if result:
            first, last, step, difference = result[-1]
            gap = c - last
            if target - c == difference and gap in ((1, 2) if first == last else (step,)):
                result[-1] = (first, c, gap, difference)
                continue
        result.append((c, c, 1, target - c))
    return result


def rows(name: str, kind: str, values: Iterable[Iterable[int | str]]) -> str:
    """A constant array of C++."""
    lines, line = [], "   "
    for value in values:
        item = " {" + ", ".join(v if isinstance(v, str) else f"0x{v:x}" if v >= 0 else str(v) for v in value) + "},"
        if len(line) + len(item) > _LINE:
            lines.append(line)
            line = "   "
        line += item
    return "\n".join([f"constexpr {kind} {name}[] = {{", *lines, line, "};", ""])


def is_punctuation(split: Callable[[str], Sequence[tuple[str, object]]], c: int) -> bool:
    """Whether the pre-tokenizer makes a word of its own of a character."""
    return [word for word, _ in split(f"a{chr(c)}a")] == ["a", chr(c), "a"]


def splitter(pattern: str) -> Callable[[int], bool]:
    """Whether CLIP's pre-tokenizer takes a character for one of a class."""
    split = pre_tokenizers.Split(Regex(pattern), "removed", invert=True)
    return lambda c: bool(split.pre_tokenize_str(chr(c)))


def replaced(prefix: str, changes: dict[int, str]) -> list[str]:
    """Characters that become one other, and those that become several."""
    single = {c: ord(text) for c, text in changes.items() if len(text) == 1}
    several = {c: "".join(f"\\x{ord(x):x}" for x in text) for c, text in changes.items() if len(text) > 1}
    quoted = [(c, f'U"{text}"') for c, text in several.items()]
    return [rows(f"{prefix}Replaced", "Run", runs(single)), rows(f"{prefix}Expanded", "Expansion", quoted)]


def bert() -> list[str]:
    """What BERT's uncased tokenizers do."""
    normalize = normalizers.BertNormalizer(lowercase=True).normalize_str
    split = pre_tokenizers.BertPreTokenizer().pre_tokenize_str
    normal = {c: normalize(chr(c)) for c in characters() if c not in HANGUL}
    spaced = {c: text[1:-1] for c, text in normal.items() if len(text) > 2 and text[0] == text[-1] == " "}
    changes = {c: text for c, text in (normal | spaced).items() if text not in (chr(c), "", " ")}
    kept = [c for c, text in normal.items() if text == chr(c) and unicodedata.combining(chr(c))]
    return [
        rows("kPunctuation", "Range", ranges(c for c in characters() if is_punctuation(split, c))),
        rows("kRemoved", "Range", ranges(c for c, text in normal.items() if text == "")),
        rows("kBlank", "Range", ranges(c for c, text in normal.items() if text == " ")),
        rows("kIdeograph", "Range", ranges(spaced)),
        *replaced("kBert", changes),
        "// Marks that stay, with their combining classes.",
        rows("kMarks", "Mark", [(c, unicodedata.combining(chr(c))) for c in kept]),
    ]


def clip(words: list[int]) -> list[str]:
    """What CLIP's tokenizers do with characters of words. Of these, Hangul alone is put together."""
    normalize = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()]).normalize_str
    known = set(words)
    for c in characters():
        parts = unicodedata.decomposition(chr(c)).split()
        if len(parts) == 2 and not parts[0].startswith("<") and known.issuperset(int(x, 16) for x in parts):
            raise AssertionError(f"U+{c:04X} is put together from two characters of words")
    changes = {c: normalize(chr(c)) for c in words}
    return [
        *replaced("kClip", {c: text for c, text in changes.items() if text != chr(c)}),
        rows("kLetter", "Range", ranges(filter(splitter(r"\p{L}"), characters()))),
        rows("kNumber", "Range", ranges(filter(splitter(r"\p{N}"), characters()))),
    ]


def render() -> str:
    """The file's text."""
    versions = f"Unicode {unicodedata.unidata_version} of Python, tokenizers {tokenizers.__version__}"
    words = [c for c in characters() if re.match(r"\w", chr(c))]
    head = f"// Made by tools/make_unicode_tables.py from {versions}: do not edit.\n"
    return "\n".join([head, rows("kWord", "Range", ranges(words)), *bert(), *clip(words)])


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="ascii")
