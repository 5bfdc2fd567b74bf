"""The page of a report: one HTML file that needs nothing else, and the small pieces it is made of.

The JavaScript of Vega, Vega-Lite and Vega-Embed stands in the page once; charts are JSON beside it.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import vl_convert

_GREEK = {name: f"&{name};" for name in ("alpha", "beta", "gamma", "delta")}


_TALL = 30  # rows from which on a table scrolls within the page


@dataclass(frozen=True)
class Figure:
    """One chart with the name of its files and what it shows, in a sentence or two."""

    name: str
    spec: dict[str, Any]
    caption: str


@dataclass(frozen=True)
class Cell:
    """A table cell: the text that is shown, and the number it sorts by (None sorts as text)."""

    text: str
    value: float | None = None


@dataclass
class Section:
    """One analysis: its sentences for the top of the page, its blocks, its figures, and its numbers for a JSON file."""

    answers: list[str]
    blocks: list[str]
    figures: list[Figure] = field(default_factory=list)
    numbers: dict[str, Any] | None = None
    line: str = ""


def page(title: str, subtitle: str, answers: Sequence[str], body: Iterable[str], foot: str) -> str:
    """The whole page. `answers` are sentences of HTML, `body` blocks of HTML."""
    script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;").replace("</script", "<\\/script")
    sentences = "\n".join(f"<li>{sentence}</li>" for sentence in answers)
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
<section class="answers"><h2>What the runs say</h2><ul>
{sentences}
</ul></section>
{blocks}
<footer class="quiet">{foot}</footer>
</main>
<script type="module">{_SCRIPT}</script>
</body>
</html>
"""


def section(title: str, *blocks: str) -> str:
    """A headed part of the page."""
    return f"<section><h2>{escape(title)}</h2>\n" + "\n".join(blocks) + "\n</section>"


def paragraph(text: str) -> str:
    """A paragraph of HTML text."""
    return f"<p>{text}</p>"


def listing(sentences: Iterable[str]) -> str:
    """Sentences of plain text, one per line; nothing when there are none."""
    items = "".join(f"<li>{math(sentence)}</li>" for sentence in sentences)
    return f"<ul>{items}</ul>" if items else ""


def figure(drawn: Figure) -> str:
    """The chart, its caption and links to its files."""
    spec = json.dumps(drawn.spec).replace("</", "<\\/")
    links = " &middot; ".join(
        f'<a href="figures/{drawn.name}.{kind}">{kind.upper()}</a>' for kind in ("svg", "pdf", "png")
    )
    return (
        f'<figure><div class="chart" id="{drawn.name}" role="img" aria-label="{escape(drawn.caption)}"></div>'
        f'<script type="application/json" data-chart="{drawn.name}">{spec}</script>'
        f"<figcaption>{drawn.caption} <span class='quiet'>{links}</span></figcaption></figure>"
    )


def table(header: Sequence[str], rows: Iterable[Sequence[Cell]], sortable: bool = False) -> str:
    """A table; columns whose cells have a value are right-aligned, and sort as numbers."""
    rows = list(rows)
    numeric = [any(row[k].value is not None for row in rows) for k in range(len(header))]
    align = [' class="number"' if is_number else "" for is_number in numeric]
    heads = "".join(
        f"<th{side}>" + (f"<button>{math(name)}</button>" if sortable else math(name)) + "</th>"
        for side, name in zip(align, header, strict=True)
    )
    lines = []
    for row in rows:
        cells = "".join(
            f"<td{side}"
            + (f' data-value="{cell.value!r}"' if cell.value is not None else "")
            + f">{math(cell.text)}</td>"
            for side, cell in zip(align, row, strict=True)
        )
        lines.append(f"<tr>{cells}</tr>")
    kind = ' class="sortable"' if sortable else ""
    box = "scroll tall" if len(rows) > _TALL else "scroll"
    inside = f"<thead><tr>{heads}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return f'<div class="{box}"><table{kind}>{inside}</table></div>'


def escape(text: str) -> str:
    """Plain text as HTML."""
    return html.escape(text, quote=True)


def math(text: str) -> str:
    """Plain text as HTML, with Greek letters and x^y as superscripts."""
    text = re.sub(r"\^(-?[\w.]+)", r"<sup>\1</sup>", escape(text))
    return re.sub(r"\b(" + "|".join(_GREEK) + r")\b", lambda found: _GREEK[found[1]], text)


_STYLE = """
:root { --ink: #1f2328; --quiet: #5f6770; --line: #e3e6e9; --wash: #f6f8f9; --accent: #1f6f8b; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: var(--ink);
  font: 16px/1.55 "Helvetica Neue", Helvetica, Arial, "Liberation Sans", sans-serif; }
main { max-width: 1060px; margin: 0 auto; padding: 40px 20px 60px; }
h1 { font-size: 30px; font-weight: 600; margin: 0 0 4px; }
h2 { font-size: 20px; font-weight: 600; margin: 44px 0 10px; }
p, li { max-width: 78ch; }
ul { padding-left: 20px; } li { margin: 5px 0; }
.quiet { color: var(--quiet); font-size: 14px; }
.answers { background: var(--wash); border-left: 4px solid var(--accent); padding: 4px 24px 12px; margin: 24px 0; }
.answers h2 { margin: 16px 0 6px; } .answers li { max-width: 88ch; }
.equation { font-size: 20px; margin: 14px 0; }
sup { line-height: 0; }
figure { margin: 20px 0 8px; } .chart { overflow-x: auto; width: 100%; }
figcaption { font-size: 14px; color: var(--ink); max-width: 100ch; margin-top: 6px; }
a { color: var(--accent); }
.scroll { overflow-x: auto; margin: 12px 0; }
.tall { max-height: 640px; overflow-y: auto; }
.tall th { position: sticky; top: 0; background: #fff; }
@media print { .tall { max-height: none; } }
table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 9px; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap; }
th { border-bottom: 2px solid #c7ccd1; font-weight: 600; vertical-align: bottom; }
.number { text-align: right; } td:first-child, th:first-child { padding-left: 2px; }
tbody tr:hover { background: var(--wash); }
th button { all: unset; cursor: pointer; } th button:hover, th button:focus-visible { color: var(--accent); }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
footer { margin-top: 48px; border-top: 1px solid var(--line); padding-top: 12px; }
@media print { main { max-width: none; padding: 0; } }
"""

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
