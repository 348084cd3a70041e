"""Tables of the report: for the page, and as CSV and Markdown to take away."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from segadapt.studies.table import markdown_table


@dataclass(frozen=True)
class Cell:
    """What stands in a cell.

    Args:
        text: As it is copied.
        shown: HTML in place of the text, on the page.
        style: CSS of the cell.
        kind: CSS classes of the cell.
    """

    text: str
    shown: str = ""
    style: str = ""
    kind: str = ""


@dataclass(frozen=True)
class Table:
    """A table whose first column names its rows.

    Args:
        caption: What it shows.
        header: Names of the columns.
        rows: A cell for each column; text alone is a cell.
        row_kinds: CSS class of each row; empty: none.
        kind: CSS class of the table.
    """

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell | str, ...], ...]
    row_kinds: tuple[str, ...] = ()
    kind: str = ""

    def html(self) -> str:
        """The table in a box in which it scrolls, with its two buttons."""
        kinds = self.row_kinds or ("",) * len(self.rows)
        head = "".join(f'<th scope="col"><span>{escape(name)}</span></th>' for name in self.header)
        body = "".join(
            f"<tr{_attribute('class', kind)}>{''.join(_cell(c, n == 0) for n, c in enumerate(row))}</tr>\n"
            for row, kind in zip(self.rows, kinds, strict=True)
        )
        buttons = copy_buttons(self.csv(), self.markdown(), self.caption)
        return (
            f'<div class="box"><div class="above"><p aria-hidden="true">{escape(self.caption)}</p>{buttons}</div>'
            f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(self.caption)}">'
            f'<table{_attribute("class", self.kind)}><caption class="hidden">{escape(self.caption)}</caption>'
            f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div></div>\n"
        )

    def texts(self) -> list[list[str]]:
        """Header and rows as text."""
        return [list(self.header), *([c if isinstance(c, str) else c.text for c in row] for row in self.rows)]

    def csv(self) -> str:
        """The table as CSV."""
        return as_csv(self.texts())

    def markdown(self) -> str:
        """The table as Markdown."""
        header, *rows = self.texts()
        return markdown_table(header, rows)


def as_csv(rows: Sequence[Sequence[object]]) -> str:
    """Rows as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def copy_buttons(csv_text: str, markdown_text: str, what: str) -> str:
    """Buttons that copy the texts; their names say of what, for those who do not see where they stand."""
    data = json.dumps({"CSV": csv_text, "Markdown": markdown_text}).replace("<", "\\u003c")
    buttons = "".join(
        f'<button type="button" data-copy="{name}" aria-label="Copy as {name}: {escape(what)}">{name}</button>'
        for name in ("CSV", "Markdown")
    )
    return f'<div class="copy">copy as {buttons}<script type="application/json">{data}</script></div>'


def _cell(cell: Cell | str, is_first: bool) -> str:
    cell = Cell(cell) if isinstance(cell, str) else cell
    attributes = _attribute("class", cell.kind) + _attribute("style", cell.style)
    content = cell.shown or escape(cell.text)
    return f'<th scope="row"{attributes}>{content}</th>' if is_first else f"<td{attributes}>{content}</td>"


def _attribute(name: str, value: str) -> str:
    return f' {name}="{value}"' if value else ""
