"""The page of a report: one HTML file that needs nothing else, and the small pieces it is made of.

    figure, table, paragraph --section--> blocks of HTML --placed--> the same blocks where they stand --page--> HTML

The JavaScript of Vega, Vega-Lite and Vega-Embed stands in the page once; charts are JSON beside it. A section does not
know on which page it stands: names, links and what is said below a figure are filled in by `placed`.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
import vl_convert

from scaling.wording import DASH, between, three

GREEK = {name: f"&{name};" for name in ("alpha", "beta", "gamma", "delta")}
_TALL = 30  # rows from which on a table scrolls within the page
_PRINTED = 60  # rows of a table that go on paper; its file has all
# Left by the pieces for `placed`; text that is escaped cannot hold them.
_HERE, _CSV = "<here/>", "<csv/>"


@dataclass(frozen=True)
class Figure:
    """One chart with the name of its files and what it shows, in a sentence or two of HTML.

    `data`: the run_ids that it is drawn from; `law`: the fitted law that it shows, with its intervals, and `sharpen`:
    what would make that surer, in plain text. The page says all three below the caption.
    """

    name: str
    spec: dict[str, Any]
    caption: str
    data: Sequence[str] = ()
    law: str = ""
    sharpen: str = ""


@dataclass(frozen=True)
class Cell:
    """A table cell: the text that is shown, and the number it stands for and sorts by (None: the text itself).

    Of an interval `value` is the lower end and `high` the upper one.
    """

    text: str
    value: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Constant:
    """A fitted number: `name` of `law`, with the ends of its interval (nan where there is none) at `level`."""

    law: str
    name: str
    value: float
    low: float
    high: float
    level: float = 0.9
    pinned: bool = True
    """whether the runs pin it down"""


@dataclass
class Section:
    """One analysis: its sentences, the most important first; its blocks, its figures, its numbers for a JSON file, the
    line that the command prints, and the constants that it fitted."""

    answers: list[str]
    blocks: list[str]
    figures: list[Figure] = field(default_factory=list)
    numbers: dict[str, Any] | None = None
    line: str = ""
    constants: list[Constant] = field(default_factory=list)


@dataclass(frozen=True)
class Placed:
    """Blocks on a page, and the (id, title) of their sections for the contents."""

    blocks: list[str]
    sections: list[tuple[str, str]]


def page(title: str, subtitle: str, lead: str, contents: str, body: Iterable[str], foot: str) -> str:
    """The whole page: `lead` are the sentences that it opens with; all but the title are HTML."""
    script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;").replace("</script", "<\\/script")
    blocks = "\n".join(body)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
<script>{script}</script>
</head>
<body>
<main>
<header><h1>{escape(title)}</h1><p class="quiet">{subtitle}</p></header>
<section class="answers"><h2>What the runs say</h2>
{lead}
</section>
<nav aria-label="Contents">{contents}</nav>
{blocks}
<footer class="quiet">{foot}</footer>
</main>
<script type="module">{_SCRIPT}</script>
</body>
</html>
"""


def placed(
    blocks: Iterable[str], place: str, level: int, about: Mapping[str, str], tables: str, first: int = 1
) -> Placed:
    """The blocks of one section of a report, with what depends on where they stand.

    `place`: folder of the experiment's files with its slash, or nothing; `level` of their headings; `about`: what is
    said below each figure, in HTML, by its name; `tables`: their files are tables/<tables>_1.csv, _2.csv, ...; `first`:
    number of the first heading.
    """
    headings, files = count(first), count(1)
    sections: list[tuple[str, str]] = []

    def headed(found: re.Match[str]) -> str:
        sections.append((f"{place}part{next(headings)}", found[1]))
        return f'<section id="{sections[-1][0]}"><h{level}>{found[1]}</h{level}>'

    def linked(_: re.Match[str]) -> str:
        return f'<p class="files"><a href="{place}tables/{tables}_{next(files)}.csv">CSV</a></p>'

    def said(found: re.Match[str]) -> str:
        return about[found[1]]

    done = []
    for block in blocks:
        block = re.sub(r"<section><h2>(.*?)</h2>", headed, block)
        block = re.sub("<about ([^/]*)/>", said, re.sub(_CSV, linked, block))
        done.append(block.replace(_HERE, place))
    return Placed(done, sections)


def contents(entries: Iterable[tuple[str, str, Sequence[tuple[str, str]]]]) -> str:
    """A list of links: (id, title, entries below it)."""
    items = ""
    for at, title, below in entries:
        inner = contents((*one, ()) for one in below) if below else ""
        items += f'<li><a href="#{at}">{title}</a>{inner}</li>'
    return f"<ul>{items}</ul>"


def section(title: str, *blocks: str) -> str:
    """A headed part of the page."""
    return f"<section><h2>{escape(title)}</h2>\n" + "\n".join(blocks) + "\n</section>"


def paragraph(text: str) -> str:
    """A paragraph of HTML text."""
    return f"<p>{text}</p>"


def listing(sentences: Iterable[str]) -> str:
    """Sentences of plain text, one per line; nothing when there are none."""
    return bullets(math(sentence) for sentence in sentences)


def bullets(sentences: Iterable[str]) -> str:
    """Sentences of HTML, one per line; nothing when there are none."""
    items = "\n".join(f"<li>{sentence}</li>" for sentence in sentences)
    return f"<ul>{items}</ul>" if items else ""


def figure(drawn: Figure) -> str:
    """The chart and its caption; what it is drawn from and its files follow on the page."""
    spec = json.dumps(drawn.spec).replace("<", "\\u003c")
    spoken = html.unescape(re.sub(r"<[^>]*>", "", drawn.caption))
    return (
        f'<figure><div class="chart" id="{_HERE}{drawn.name}" role="img" aria-label="{escape(spoken)}"></div>'
        f'<script type="application/json" data-chart="{_HERE}{drawn.name}">{spec}</script>'
        f"<figcaption>{drawn.caption}<about {drawn.name}/></figcaption></figure>"
    )


def table(header: Sequence[str], rows: Iterable[Sequence[Cell]], sortable: bool = False) -> str:
    """A table; columns whose cells have a value are right-aligned, and sort as numbers."""
    rows = list(rows)
    numeric = [any(row[k].value is not None for row in rows) for k in range(len(header))]
    align = [' class="number"' if is_number else "" for is_number in numeric]
    heads = "".join(
        f'<th scope="col"{side}>' + (f"<button>{math(name)}</button>" if sortable else math(name)) + "</th>"
        for side, name in zip(align, header, strict=True)
    )
    lines = []
    for row in rows:
        cells = "".join(
            f"<td{side}{_attribute('value', cell.value)}{_attribute('high', cell.high)}>{math(cell.text)}</td>"
            for side, cell in zip(align, row, strict=True)
        )
        lines.append(f"<tr>{cells}</tr>")
    kind = ' class="sortable"' if sortable else ""
    box = "scroll tall" if len(rows) > _TALL else "scroll"
    cut = f'<p class="printed">The first {_PRINTED} of {len(rows)} rows.</p>' if len(rows) > _PRINTED else ""
    inside = f"<thead><tr>{heads}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return f'<div class="{box}" tabindex="0"><table{kind}>{inside}</table></div>{cut}{_CSV}'


def _attribute(name: str, value: float | None) -> str:
    return "" if value is None else f' data-{name}="{float(value)!r}"'


def interval(low: float, high: float, shown: Callable[[float], str] = three) -> Cell:
    """The cell of an interval: low to high, or a dash where there is none (nan)."""
    return Cell(DASH) if np.isnan(low) else Cell(between(low, high, shown), low, high)


def number(value: float, form: str = ".3g") -> Cell:
    """The cell of a number, or a dash where it is missing."""
    return Cell(format(value, form), float(value)) if np.isfinite(value) else Cell(DASH)


def escape(text: str) -> str:
    """Plain text as HTML."""
    return html.escape(text, quote=True)


def math(text: str) -> str:
    """Plain text as HTML, with Greek letters and x^y as superscripts."""
    text = re.sub(r"\^(-?\w+(?:\.\w+)*)", r"<sup>\1</sup>", escape(text))
    return re.sub(r"\b(" + "|".join(GREEK) + r")\b", lambda found: GREEK[found[1]], text)


_STYLE = (
    f"""
.printed {{ display: none; }}
@media print {{ .printed {{ display: block; }} .tall tr:nth-child(n + {_PRINTED + 1}) {{ display: none; }} }}
"""
    + """
:root { --ink: #1f2328; --quiet: #5f6770; --line: #e3e6e9; --wash: #f6f8f9; --accent: #1f6f8b; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: var(--ink);
  font: 16px/1.55 "Helvetica Neue", Helvetica, Arial, "Liberation Sans", sans-serif; }
main { max-width: 1060px; margin: 0 auto; padding: 40px 20px 60px; }
h1 { font-size: 30px; font-weight: 600; margin: 0 0 4px; }
h2 { font-size: 20px; font-weight: 600; margin: 44px 0 10px; }
h3 { font-size: 17px; font-weight: 600; margin: 32px 0 8px; }
.experiment > h2 { font-size: 24px; border-top: 2px solid var(--line); padding-top: 22px; margin-bottom: 2px; }
nav > ul { list-style: none; padding: 0; columns: 2; } nav li { margin: 2px 0; break-inside: avoid; }
nav ul ul { font-size: 14px; margin-bottom: 6px; }
p, li { max-width: 78ch; }
ul { padding-left: 20px; } li { margin: 5px 0; }
.quiet { color: var(--quiet); font-size: 14px; }
.answers { background: var(--wash); border-left: 4px solid var(--accent); padding: 4px 24px 12px; margin: 24px 0; }
.answers h2 { margin: 16px 0 6px; } .answers li { max-width: 88ch; }
.equation { font-size: 20px; margin: 14px 0; }
sup { line-height: 0; }
figure { margin: 20px 0 8px; } .chart { overflow-x: auto; width: 100%; }
figcaption { font-size: 14px; color: var(--ink); max-width: 100ch; margin-top: 6px; }
.about { display: block; color: var(--quiet); margin-top: 3px; overflow-wrap: break-word; }
.files { font-size: 13px; margin: -6px 0 14px; }
a { color: var(--accent); }
.scroll { overflow-x: auto; margin: 12px 0; }
.tall { max-height: 640px; overflow-y: auto; }
.tall th { position: sticky; top: 0; background: #fff; }
table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 9px; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap; }
th { border-bottom: 2px solid #c7ccd1; font-weight: 600; vertical-align: bottom; }
.number { text-align: right; } td:first-child, th:first-child { padding-left: 2px; }
tbody tr:hover { background: var(--wash); }
th button { all: unset; cursor: pointer; } th button:hover, th button:focus-visible { color: var(--accent); }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
footer { margin-top: 48px; border-top: 1px solid var(--line); padding-top: 12px; }
@page { margin: 14mm 12mm; }
@media print {
  body { font-size: 10.5pt; } main { max-width: none; padding: 0; } p, li, figcaption { max-width: none; }
  .scroll, .tall, .chart { overflow: visible; max-height: none; }
  .chart svg { max-width: 100%; height: auto; max-height: 205mm; }
  table { font-size: 6.5pt; } th, td { white-space: normal; padding: 2px 4px; } td.number { white-space: nowrap; }
  thead { display: table-header-group; } .tall th { position: static; }
  figure, tr { break-inside: avoid; } h2, h3 { break-after: avoid; } .files { display: none; }
}
"""
)

_SCRIPT = """
const OPTIONS = {actions: false, renderer: "svg"};
for (const spec of document.querySelectorAll("script[data-chart]"))
  vegaEmbed(document.getElementById(spec.dataset.chart), JSON.parse(spec.textContent), OPTIONS);
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.querySelectorAll("th")];
  heads.forEach((head, column) => head.firstChild.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = row => {
      const cell = row.cells[column];
      return "value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent;
    };
    const body = table.tBodies[0];
    const missing = x => x === "" || x === "\\u2013" || Number.isNaN(x);
    const rows = [...body.rows].sort((one, other) => {
      const [a, b] = [key(one), key(other)];
      if (missing(a) || missing(b)) return missing(a) - missing(b);  // missing values stay at the end
      const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
      return down ? -order : order;
    });
    body.append(...rows);
  }));
}
"""
