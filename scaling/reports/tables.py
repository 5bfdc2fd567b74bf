"""The numbers of a report for other programs: every table as CSV, and the constants of all fitted laws for LaTeX.

    blocks of HTML --read--> tables --csv_text--> tables/<section>_<n>.csv     with the numbers behind the rounded text
    Fit --constants_of--> constants --latex--> constants.tex

Tables are read back from the page, so that a file holds what the page shows, whoever wrote it.
"""

from __future__ import annotations

import csv
import html
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from html.parser import HTMLParser
from itertools import chain
from typing import TYPE_CHECKING

from scaling.reports.page import GREEK, Cell, Constant
from scaling.wording import DASH

if TYPE_CHECKING:
    from scaling.fit import Fit

_NAMES = {html.unescape(entity): name for name, entity in GREEK.items()}
_LATEX = {
    "\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", **{c: f"\\{c}" for c in "&%$#_{}"},
}  # fmt: skip
_LETTERS = {*GREEK, "kappa", "lambda", "mu", "nu", "omega", "phi", "rho", "sigma", "tau", "theta", "epsilon", "eta"}


# ---------------------------------------------------------------------------------------------------- CSV


def read(blocks: Iterable[str]) -> list[list[list[Cell]]]:
    """The tables in blocks of HTML, as rows of cells, the heading first."""
    reader = _Reader()
    for block in blocks:
        reader.feed(block)
    reader.close()
    return reader.tables


class _Reader(HTMLParser):
    """Collects what `page.table` wrote."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: list[list[list[Cell]]] = []
        self._text: list[str] | None = None
        self._numbers: dict[str, str | None] = {}

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self._text, self._numbers = [], dict(attributes)
        elif tag == "sup" and self._text is not None:
            self._text.append("^")

    def handle_data(self, data: str) -> None:
        if self._text is not None:
            self._text.append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th") and self._text is not None:
            text = "".join(_NAMES.get(letter, letter) for letter in "".join(self._text))
            value, high = (self._numbers.get(name) for name in ("data-value", "data-high"))
            self.tables[-1][-1].append(Cell(text, value and float(value), high and float(high)))  # type: ignore[arg-type]
            self._text = None


def csv_text(rows: Sequence[Sequence[Cell]]) -> str:
    """A table, its heading first, with the numbers that cells stand for; an interval becomes columns of both ends.

    A heading that occurs again is preceded by that of the column before it, and numbered where that is the same.
    """
    header, *body = rows
    names = [cell.text for cell in header]
    names = [f"{names[k - 1]}, {name}" if k and names.count(name) > 1 else name for k, name in enumerate(names)]
    names = [f"{name} ({again + 1})" if (again := names[:k].count(name)) else name for k, name in enumerate(names)]
    spans = [any(row[k].high is not None for row in body) for k in range(len(names))]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    ends = [[f"{name} low", f"{name} high"] if span else [name] for name, span in zip(names, spans, strict=True)]
    writer.writerow(chain(*ends))
    for row in body:
        writer.writerow(
            chain(*(_ends(cell) if span else [_plain(cell)] for cell, span in zip(row, spans, strict=True)))
        )
    return out.getvalue()


def _plain(cell: Cell) -> str:
    if cell.value is not None:
        return repr(cell.value)
    return "" if cell.text == DASH else cell.text


def _ends(cell: Cell) -> list[str]:
    return ["" if end is None else repr(end) for end in (cell.value, cell.high)]


# ---------------------------------------------------------------------------------------------------- constants


def constants_of(fitted: Fit, label: str | None = None, level: float = 0.9) -> list[Constant]:
    """The parameters that were fitted, with percentile intervals of the bootstrap where there is one, else by the delta
    method. `label`: what to call the law, as "Step Law of the rate"; by default its own name."""
    intervals = fitted.intervals(level, "bootstrap" if fitted.free_replicates is not None else "delta")
    return [
        Constant(label or fitted.law.name, name, fitted.params[name], *ends, level, name not in fitted.unidentified)
        for name, ends in intervals.items()
    ]


def latex(constants: Mapping[str, Iterable[Constant]], command: str | None = None) -> str:
    """A tabular of the constants of each experiment, in plain LaTeX. `command`: what it was made by."""
    several = len(constants) > 1
    columns = ["experiment"] * several + ["law", "parameter", "value", "interval"]
    lines = [f"% Fitted constants, by {' '.join((command or 'Fulcrum').split())}"]
    lines += [rf"\begin{{tabular}}{{{'l' * len(columns)}}}", r"\hline", _row(columns), r"\hline"]
    before: tuple[str, str] | None = None
    for experiment, rows in constants.items():
        for one in rows:
            again = before == (experiment, one.law)
            named = [experiment] * several + [one.law]
            cells = ["" if again else escape(text) for text in named]
            star = "" if one.pinned else "*"
            interval = f"{_number(one.low)} to {_number(one.high)} ({100 * one.level:g}\\,\\%)"
            cells += [symbol(one.name), _number(one.value) + star, "--" if math.isnan(one.low) else interval]
            lines.append(_row(cells))
            before = experiment, one.law
    lines += [r"\hline"]
    if not all(one.pinned for rows in constants.values() for one in rows):
        lines += [rf"\multicolumn{{{len(columns)}}}{{l}}{{* not pinned down by these runs}} \\"]
    return "\n".join([*lines, r"\end{tabular}", ""])


def escape(text: str) -> str:
    """Plain text as LaTeX."""
    return "".join(_LATEX.get(letter, letter) for letter in text)


def symbol(name: str) -> str:
    """A parameter's name in mathematics: alpha, R_N, log_A."""
    letters, _, below = name.partition("_")
    return f"${_letters(letters)}" + (f"_{{{_letters(below)}}}$" if below else "$")


def _letters(text: str) -> str:
    if text in _LETTERS:
        return f"\\{text}"
    if re.fullmatch(r"[A-Za-z]|\d+", text):
        return text
    return rf"\mathrm{{{escape(text)}}}" if re.fullmatch(r"\w+", text) else rf"\mbox{{{escape(text)}}}"


def _number(value: float) -> str:
    """Four digits: $0.3421$, $1.234 \\times 10^{7}$."""
    if not math.isfinite(value):
        return "--" if math.isnan(value) else r"$\infty$" if value > 0 else r"$-\infty$"
    mantissa, _, power = f"{value:.4g}".partition("e")
    return f"${mantissa} \\times 10^{{{int(power)}}}$" if power else f"${mantissa}$"


def _row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"
