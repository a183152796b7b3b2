"""A value as a notebook shows it: described once, written as HTML or as Markdown.

All text is escaped. Colours suit light and dark themes: text keeps the notebook's own. Styles are inline, since some
notebooks drop style sheets.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from attrs import field, frozen

#: Of tiers, and of what was computed.
COLOURS = {
    "hot": "#e2574c",
    "warm": "#e8a33d",
    "cold": "#4a90d9",
    "remote": "#7a6fd0",
    "disk": "#4a90d9",
    "computed": "#8b95a1",
    "used": "#4a90d9",
}
_LINE = "rgba(128,128,128,.3)"
_MARKDOWN = str.maketrans({sign: f"\\{sign}" for sign in "\\`*_{}[]<>()#+!|~$&"} | {"\n": " ", "\r": " "})
_NUMBER = re.compile(r"[-+]?\d[\d,.]*( [%A-Za-z]+)?%?")


@frozen
class Plain:
    """A text whose lines are kept."""

    text: str

    def html(self) -> str:
        """As HTML."""
        return f'<div style="white-space:pre-wrap;margin:.3em 0">{html.escape(self.text)}</div>'

    def markdown(self) -> str:
        """As Markdown."""
        return "  \n".join(line.translate(_MARKDOWN) for line in self.text.splitlines())


@frozen
class Note:
    """A line of small print."""

    text: str

    def html(self) -> str:
        """As HTML."""
        return f'<div style="opacity:.75;font-size:90%;margin:.3em 0">{html.escape(self.text)}</div>'

    def markdown(self) -> str:
        """As Markdown."""
        return f"*{self.text.translate(_MARKDOWN)}*" if self.text else ""


@frozen
class Table:
    """Rows of cells, under a head if there is one. Columns of numbers stand to the right."""

    rows: Sequence[Sequence[str]]
    head: Sequence[str] = ()

    def _is_right(self) -> list[bool]:
        columns = zip(*self.rows, strict=True)
        return [all(not cell or _NUMBER.fullmatch(cell) for cell in column) for column in columns]

    def html(self) -> str:
        """As HTML."""
        right = self._is_right()
        lines = [_row("th", self.head, right)] if self.head else []
        lines += [_row("td", row, right) for row in self.rows]
        return f'<table style="border-collapse:collapse;margin:.3em 0;color:inherit">{"".join(lines)}</table>'

    def markdown(self) -> str:
        """As Markdown."""
        width = len(self.rows[0]) if self.rows else len(self.head)
        right = self._is_right() or [False] * width
        rule = ["--:" if is_right else "---" for is_right in right]
        lines = [[cell.translate(_MARKDOWN) for cell in row] for row in (self.head or [""] * width, *self.rows)]
        return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], rule, *lines[1:]])


def _row(tag: str, cells: Sequence[str], right: Sequence[bool]) -> str:
    aligned = [*right, *[False] * len(cells)]
    return "".join(
        [
            f'<tr style="background:none;border-bottom:1px solid {_LINE}">',
            *(
                f'<{tag} style="text-align:{"right" if is_right else "left"};padding:.15em .7em;white-space:pre-wrap">'
                f"{html.escape(cell)}</{tag}>"
                for cell, is_right in zip(cells, aligned, strict=False)
            ),
            "</tr>",
        ]
    )


@frozen
class Bar:
    """Shares of a whole in one line, each with its name and its amount in words. ``total`` 0: the sum of the shares."""

    shares: Sequence[tuple[str, float, str]]  #: (name, amount, amount in words)
    total: float = 0.0
    label: str = ""

    def _whole(self) -> float:
        return max(self.total, sum(amount for _, amount, _ in self.shares)) or 1.0

    def html(self) -> str:
        """As HTML."""
        whole = self._whole()
        parts = "".join(
            f'<span style="display:inline-block;height:100%;width:{100 * amount / whole:.2f}%;'
            f'background:{COLOURS.get(name, COLOURS["computed"])}" title="{html.escape(f"{name} {words}")}"></span>'
            for name, amount, words in self.shares
            if amount > 0
        )
        legend = " ".join(
            f'<span style="margin-right:.9em;white-space:nowrap"><span style="display:inline-block;width:.7em;'
            f'height:.7em;border-radius:2px;background:{COLOURS.get(name, COLOURS["computed"])}"></span> '
            f"{html.escape(f'{name} {words}')}</span>"
            for name, amount, words in self.shares
            if amount > 0 or self.total
        )
        label = html.escape(f"· {self.label}") if self.label else ""
        return (
            f'<div style="display:flex;height:.8em;max-width:36em;border-radius:3px;overflow:hidden;'
            f'background:{_LINE}">{parts}</div>'
            f'<div style="font-size:90%;margin:.2em 0 .4em">{legend}{label}</div>'
        )

    def markdown(self) -> str:
        """As Markdown."""
        whole, n_cells = self._whole(), 24
        filled = "".join(
            sign * round(n_cells * amount / whole) for (_, amount, _), sign in zip(self.shares, "█▓▒░", strict=False)
        )
        named = [f"{name} {words}" for name, amount, words in self.shares if amount > 0 or self.total]
        text = " · ".join([*named, *([self.label] if self.label else [])])
        return f"`{filled[:n_cells]:·<{n_cells}}` {text.translate(_MARKDOWN)}"


Part = Plain | Note | Table | Bar


@frozen
class Page:
    """A title and what stands below it."""

    title: str
    parts: Sequence[Part] = field(default=())

    def html(self) -> str:
        """As HTML."""
        title = f'<div style="font-weight:600;margin:.2em 0">{html.escape(self.title)}</div>' if self.title else ""
        return f"<div>{title}{''.join(part.html() for part in self.parts)}</div>"

    def markdown(self) -> str:
        """As Markdown."""
        title = f"**{self.title.translate(_MARKDOWN)}**" if self.title else ""
        return "\n\n".join(one for one in (title, *(part.markdown() for part in self.parts)) if one)


class Shown:
    """A value that notebooks show as a page: Jupyter, VS Code and marimo read these two methods."""

    __slots__ = ()

    def _page(self) -> Page:
        raise NotImplementedError

    def _repr_html_(self) -> str:
        return self._page().html()

    def _repr_markdown_(self) -> str:
        return self._page().markdown()
