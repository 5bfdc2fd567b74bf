"""Figures of critical batch sizes: steps against batch, B* against tokens and size, and the rates."""

from __future__ import annotations

import altair as alt
import numpy as np
import pandas as pd

from scaling.critical import OVERHEAD, Critical
from scaling.drawing import COUNT_LABEL, Data, Spec, category, log_axis, panel_title
from scaling.wording import short

_TARGETS = 3  # that a panel of steps shows: the easiest, the hardest, and one between
_SIZES = 3  # panels


def steps(found: Critical) -> Spec:
    """Steps to a target against batch, a panel per size: measured at the best rate, the fit, and linear scaling."""
    data, panels = Data(), []
    sizes = np.sort(found.cells["N"].unique())
    for size in sizes[np.unique(np.linspace(0, len(sizes) - 1, _SIZES).round().astype(int))]:
        cells = found.cells[found.cells["N"] == size].sort_values("D")
        chosen = cells.iloc[np.unique(np.linspace(0, len(cells) - 1, _TARGETS).round().astype(int))]
        measured = found.steps[(found.steps["N"] == size) & found.steps["D"].isin(chosen["D"])]
        named = {tokens: f"{short(tokens)} tokens" for tokens in chosen["D"]}
        batches = np.geomspace(measured["B"].min(), measured["B"].max(), 50)
        line, ideal, stars = [], [], []
        for _, cell in chosen.iterrows():
            name, first = named[cell["D"]], cell["a"] + cell["b"] / cell["B0"]
            line.append(pd.DataFrame({"target": name, "B": batches, "steps": cell["a"] + cell["b"] / batches}))
            ideal.append(pd.DataFrame({"target": name, "B": batches, "steps": first * cell["B0"] / batches}))
            if cell["critical"] <= batches[-1]:
                at = cell["a"] + cell["b"] / cell["critical"]
                stars.append({"target": name, "B": cell["critical"], "steps": at})
        table = measured[["B", "steps", "D", "peak_lr", "seeds"]].assign(target=measured["D"].map(named))
        colour = category("target", list(named.values()))
        x = log_axis(alt.X, "B", "batch (tokens)", batches, COUNT_LABEL)
        y = log_axis(alt.Y, "steps", "steps to the target", pd.concat([table["steps"], *(i["steps"] for i in ideal)]),
                     COUNT_LABEL)  # fmt: skip
        told = [alt.Tooltip("B:Q"), alt.Tooltip("steps:Q", format=".0f"), alt.Tooltip("peak_lr:Q", format=".3g")]
        layers = [
            data.chart(pd.concat(ideal)).mark_line(strokeDash=[4, 4], strokeWidth=1, opacity=0.7).encode(x, y, colour),
            data.chart(pd.concat(line)).mark_line(strokeWidth=1.6).encode(x, y, colour),
            data.chart(table).mark_circle(size=42, opacity=1).encode(x, y, colour, tooltip=told),
            data.chart(pd.DataFrame(stars, columns=["target", "B", "steps"])).mark_point(
                shape="diamond", size=110, filled=True, opacity=1, stroke="white").encode(x, y, colour),
        ]  # fmt: skip
        title = panel_title(f"N = {short(size)}")
        panels.append(alt.layer(*layers).properties(width=240, height=270, title=title))
    chart = alt.hconcat(*panels, spacing=14).resolve_scale(color="independent")
    return data.finish(chart, legend="bottom")


def growth(found: Critical) -> Spec:
    """B* against tokens, a colour per size, and against size, a colour per token count; with intervals and the law."""
    cells = found.cells.assign(size=found.cells["N"].map(short), budget=found.cells["D"].map(short))
    law: dict[str, float] = {name: found.law[name].value for name in ("k", "joint_N", "joint_D") if name in found.law}
    data, panels = Data(), []
    both = cells.groupby("budget")["N"].transform("nunique") > 1
    wanted = [("D", "tokens D to the target", "size", "N", cells)]
    if both.any():
        wanted.append(("N", "parameters N", "budget", "D", cells[both]))
    for x_name, title, by, other, table in wanted:
        order = [short(value) for value in np.sort(table[other].unique())]
        colour = category(by, order, title="N" if by == "size" else "tokens D")
        everything = pd.concat([cells["critical"], cells["low"].dropna(), cells["high"].dropna()])
        x = log_axis(alt.X, x_name, title, table[x_name], COUNT_LABEL)
        y = log_axis(alt.Y, "critical", f"batch with {OVERHEAD:.0%} more data (tokens)", everything, COUNT_LABEL)
        marks = data.chart(table[[x_name, "critical", "low", "high", by]])
        layers = [
            marks.mark_rule(strokeWidth=1.4, opacity=0.5).encode(x, alt.Y("low:Q"), alt.Y2("high:Q"), colour),
            marks.mark_circle(size=50, opacity=1).encode(x, y, colour),
        ]
        if len(law) == 3:
            ends = table.sort_values(x_name).groupby(other)[[x_name, by]].agg(["first", "last"])
            lines = [
                {x_name: at, by: row[by, "first"], "critical": _law(law, x_name, at, float(str(value)))}
                for value, row in ends.iterrows()
                for at in (row[x_name, "first"], row[x_name, "last"])
            ]
            layers.append(data.chart(pd.DataFrame(lines)).mark_line(strokeWidth=1.2).encode(x, y, colour))
        panels.append(alt.layer(*layers).properties(width=360, height=290))
    return data.finish(alt.hconcat(*panels, spacing=30).resolve_scale(color="independent"))


def _law(law: dict[str, float], x: str, at: float, other: float) -> float:
    size, tokens = (at, other) if x == "N" else (other, at)
    return float(law["k"] * size ** law["joint_N"] * tokens ** law["joint_D"])


def rates(found: Critical) -> Spec:
    """The best peak rate of every batch at the hardest target of each size; hollow where it is an end of those run."""
    hardest = found.steps[found.steps["D"] == found.steps.groupby("N")["D"].transform("max")]
    table = hardest[["B", "peak_lr", "edge", "N"]].assign(size=hardest["N"].map(short))
    colour = category("size", [short(n) for n in np.sort(hardest["N"].unique())], title="N")
    x = log_axis(alt.X, "B", "batch (tokens)", table["B"], COUNT_LABEL)
    y = log_axis(alt.Y, "peak_lr", "best peak rate", table["peak_lr"], "format(datum.value, '~g')")
    data = Data()
    lines = data.chart(table).mark_line(strokeWidth=1.2, opacity=0.6).encode(x, y, colour)
    edge, inside = table[table["edge"]], table[~table["edge"]]
    dots = [data.chart(inside).mark_circle(size=60, opacity=1).encode(x, y, colour)] if len(inside) else []
    if len(edge):
        dots.append(data.chart(edge).mark_point(size=60, fill="white", opacity=1).encode(x, y, colour))
    return data.finish(alt.layer(lines, *dots).properties(width=420, height=250))
