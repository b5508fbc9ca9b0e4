"""Pages that need no other file: the frame, tables, lists and parts to unfold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2, h3 { line-height: 1.2; } h2 { margin-top: 2.5rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .5rem 0; }
th, td { padding: .2rem .6rem; text-align: left; border-bottom: 1px solid #ddd; white-space: nowrap; }
th { font-weight: 600; } tr.fails { background: #fbeaea; }
.passed { color: #1e7d34; } .failed { color: #a32020; }
summary { cursor: pointer; margin: .5rem 0; } svg { max-width: 100%; height: auto; }
"""


class Table(NamedTuple):
    """A table of cells of plain text."""

    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]

    def to_markdown(self) -> str:
        """The lines of a Markdown table."""
        lines = [self.header, ("---",) * len(self.header), *self.rows]
        return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def html_page(title: str, body: Iterable[str]) -> str:
    """A whole page; `body` are elements."""
    lines = "\n".join(body)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n{lines}\n</body>\n</html>\n"
    )


def html_table(table: Table) -> str:
    """A table; rows in which a cell begins with [x] or [!] stand out."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.header)
    rows = []
    for row in table.rows:
        fails = ' class="fails"' if any(cell.startswith(("[x]", "[!]")) for cell in row) else ""
        rows.append(f"<tr{fails}>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>")
    body = "\n".join(rows)
    return f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


def html_list(lines: Iterable[str], style: str = "") -> str:
    """A list of lines, with a class of the style sheet."""
    items = "\n".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<ul class="{style}">\n{items}\n</ul>' if style else f"<ul>\n{items}\n</ul>"


def html_details(summary: str, content: str) -> str:
    """An element that unfolds."""
    return f"<details><summary>{escape(summary)}</summary>\n{content}\n</details>"
