"""What all figures share: axes, ink, the data beside the specification, and how a figure becomes files.

Marks and axes are written in Altair. The data join the finished specification as named datasets, once each and
rounded to six digits, because they travel inside the HTML page.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import vl_convert

from data.files import write_atomic
from scaling.wording import short

Spec = dict[str, Any]
FORMATS = ("svg", "pdf", "png")
INK, FAINT, ACCENT = "#222222", "#9aa0a6", "#c2410c"
# Vega writes 1G for what the field calls 1B, and 1e+15 for 1e15.
COUNT_LABEL = "replace(format(datum.value, '~s'), 'G', 'B')"
FLOPS_LABEL = "replace(format(datum.value, '~e'), '+', '')"
# Okabe and Ito's colours, told apart by colour-blind readers; ink first, for what the others are compared with.
_FEW = (INK, "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_TEXT = {"labelFontSize": 12, "titleFontSize": 13, "titleFontWeight": "normal"}
_TICKS = ((0.7, (1, 2, 3, 4, 5, 6, 7, 8, 9)), (2.6, (1, 2, 5)), (3.8, (1, 3)))  # most decades, ticks of each


def save(spec: Spec, folder: Path, name: str) -> list[Path]:
    """Writes `folder`/`name`.svg, .pdf and .png (twice the screen's resolution) and returns their paths."""
    paths = [folder / f"{name}.{kind}" for kind in FORMATS]
    for path in paths:
        write(spec, path)
    return paths


def write(spec: Spec, path: Path) -> None:
    """Writes one file, of the kind that its name says: .svg, .pdf, .png or .html. ValueError for another."""
    kinds: dict[str, Callable[[Spec], str | bytes]] = {
        ".svg": vl_convert.vegalite_to_svg,
        ".pdf": vl_convert.vegalite_to_pdf,
        ".png": lambda spec: vl_convert.vegalite_to_png(spec, scale=2),
        ".html": lambda spec: vl_convert.vegalite_to_html(spec, bundle=True),
    }
    if path.suffix not in kinds:
        raise ValueError(f"out={path}: a picture is one of {', '.join(kinds)}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, kinds[path.suffix](spec))


def log_axis(channel: Any, name: str, title: str | None, values: Any, label: str) -> Any:
    """A log axis over the range of `values`."""
    low, high = float(np.min(values)), float(np.max(values))
    reach = (high / low) ** 0.03 if high > low else 1.2
    low, high = low / reach, high * reach
    return channel(
        f"{name}:Q",
        title=title,
        scale=alt.Scale(type="log", nice=False, domain=[low, high]),
        axis=alt.Axis(
            labelExpr=label, values=ticks(low, high), labelOverlap="greedy", labelFlush=False, labelSeparation=6
        ),
    )


def ticks(low: float, high: float) -> list[float]:
    """Ticks of a log scale: at 1, 2, 5 of every decade, more where decades are few and fewer where they are many."""
    decades = np.log10(high / low)
    steps = next((s for most, s in _TICKS if decades < most), (1,))
    every = max(1, round(decades / 7))
    powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    places = [float(f"{step}e{power}") for power in powers if power % every == 0 for step in steps]
    return [tick for tick in places if low <= tick <= high]


def category(name: str, values: Sequence[Any], title: str | None = None) -> alt.Color:
    """Colour by the values of column `name`, in the order of `values`."""
    colours = alt.Scale(domain=list(values), range=list(_FEW[: len(values)]))
    if len(values) > len(_FEW):
        colours = alt.Scale(domain=list(values), scheme="tableau20")
    return alt.Color(f"{name}:N", title=title, scale=colours, legend=alt.Legend(symbolOpacity=1, labelLimit=260))


def panel_title(text: str) -> alt.TitleParams:
    """The title of a panel, over its plot."""
    return alt.TitleParams(text, fontSize=13, fontWeight="normal", anchor="start", frame="group")


class Data:
    """The tables of one figure. `chart(table)` starts a chart on a table, which may be used for several charts."""

    def __init__(self) -> None:
        self._tables: list[pd.DataFrame] = []

    def chart(self, table: pd.DataFrame) -> alt.Chart:
        known = [k for k, other in enumerate(self._tables) if other is table]
        if not known:
            self._tables.append(table)
        return alt.Chart(alt.NamedData(f"table{known[0] if known else len(self._tables) - 1}"))

    def datasets(self) -> dict[str, list[dict[str, Any]]]:
        return {f"table{k}": _records(table) for k, table in enumerate(self._tables)}

    def finish(self, chart: Any, legend: str = "right") -> Spec:
        """The specification of `chart` in the look that all figures share, with the data."""
        chart = chart.configure(font="Helvetica, Arial, sans-serif", background="white").configure_view(stroke=None)
        chart = chart.configure_axis(
            **_TEXT, labelColor=INK, titleColor=INK, gridColor="#eceff1", domainColor="#b0b6bb", tickColor="#b0b6bb",
            titlePadding=8,
        ).configure_legend(**_TEXT, orient=legend, symbolSize=90)  # fmt: skip
        return chart.to_dict() | {"datasets": self.datasets()}


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows with six digits, null where a number is missing (JSON has no NaN), and `size`, the short name of N."""

    def value(x: Any) -> Any:
        if isinstance(x, int | float | np.number):
            return float(f"{x:.6g}") if np.isfinite(x) else None
        return x

    records = []
    for row in table.to_dict("records"):
        record = {str(k): value(v) for k, v in row.items()}
        if record.get("N") is not None:
            record["size"] = short(record["N"])
        records.append(record)
    return records
