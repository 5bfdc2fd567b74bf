"""Figures of budgets at equal FLOPs: the parabola of each, and the best sizes by each approach."""

from __future__ import annotations

from collections.abc import Mapping

import altair as alt
import numpy as np
import pandas as pd

from scaling.drawing import COUNT_LABEL, FAINT, FLOPS_LABEL, INK, Data, Spec, category, log_axis
from scaling.wording import flops

_LINE = 40  # points of a parabola


def parabolas(points: pd.DataFrame, minima: pd.DataFrame) -> Spec:
    """Loss against size, coloured by budget, with the parabola of each and its minimum.

    `points`: N, loss, budget, entered; `minima`: C, N, loss, curvature, N_low, N_high.
    """
    points = points.assign(name=points["budget"].map(flops))[["N", "loss", "name", "entered"]]
    names = list(points["name"].drop_duplicates())
    colour = alt.Color(
        "name:O",
        title="FLOPs C",
        sort=names,
        scale=alt.Scale(domain=names, scheme=alt.SchemeParams("viridis", extent=[0, 0.88])),
        legend=alt.Legend(symbolOpacity=1, symbolType="circle"),
    )
    minima = minima.assign(name=minima["C"].map(flops))
    lines = []
    for _, row in minima.iterrows():
        used = points[(points["name"] == row["name"]) & points["entered"]]["N"]
        size = np.geomspace(used.min(), used.max(), _LINE)
        loss = row["loss"] + row["curvature"] * np.log(size / row["N"]) ** 2
        lines.append(pd.DataFrame({"N": size, "loss": loss, "name": row["name"]}))
    across = log_axis(alt.X, "N", "model size N (parameters)", points["N"], COUNT_LABEL)
    y = alt.Y("loss:Q", title="held-out loss (nats per token)", scale=alt.Scale(zero=False))
    data = Data()
    told = [alt.Tooltip("name:N", title="FLOPs"), alt.Tooltip("N:Q", format=".3s"), alt.Tooltip("loss:Q", format=".4f")]
    marks = minima[["N", "loss", "name", "N_low", "N_high"]]
    ends = marks.dropna()
    ends = ends.assign(N=ends["N_low"].clip(lower=points["N"].min()), end=ends["N_high"].clip(upper=points["N"].max()))
    layers = [
        data.chart(pd.concat(lines)).mark_line(strokeWidth=1.6).encode(across, y, colour),
        data.chart(points[points["entered"]]).mark_circle(size=55, opacity=1).encode(across, y, colour, tooltip=told),
        data.chart(points[~points["entered"]]).mark_point(size=45).encode(across, y, colour, tooltip=told),
        data.chart(ends[["N", "end", "loss"]]).mark_rule(color=INK, strokeWidth=1.4).encode(across, y, x2="end:Q"),
        data.chart(marks[["N", "loss", "name"]])
        .mark_point(shape="diamond", size=70, filled=True, color=INK, opacity=1)
        .encode(across, y, tooltip=told),
    ]
    return data.finish(alt.layer(*layers).properties(width=560, height=340))


def frontiers(lines: Mapping[str, pd.DataFrame], optima: Mapping[str, pd.DataFrame], ran: tuple[float, float]) -> Spec:
    """Best size and best tokens against the budget: a line with its interval per approach, and the optima behind it.

    `lines`, `optima`: by approach, with C, N and D (lines also _low and _high); `ran`: the budgets that were run.
    """
    table = pd.concat([one.assign(approach=name) for name, one in lines.items()])
    points = pd.concat([one[["C", "N", "D"]].assign(approach=name) for name, one in optima.items()])
    names = [*lines, *(name for name in optima if name not in lines)]
    colour = category("approach", names)
    data, panels = Data(), []
    shaded = data.chart(pd.DataFrame({"from": [ran[0]], "to": [ran[1]]}))
    for column, title in (("N", "best size N (parameters)"), ("D", "best tokens D")):
        across = log_axis(alt.X, "C", "training FLOPs C", [*table["C"], *points["C"]], FLOPS_LABEL)
        y = log_axis(alt.Y, column, title, [*table[column], *points[column]], COUNT_LABEL)
        base = data.chart(table)
        low, high = alt.Y(f"{column}_low:Q"), alt.Y2(f"{column}_high:Q")
        told = ["approach:N", alt.Tooltip("C:Q", format=".2e"), alt.Tooltip(f"{column}:Q", format=".3s")]
        layers = [
            shaded.mark_rect(color=FAINT, opacity=0.15).encode(alt.X("from:Q"), alt.X2("to:Q")),
            base.mark_area(opacity=0.12, clip=True).encode(across, low, high, colour),
            base.mark_line(strokeWidth=1.8, clip=True).encode(across, y, colour, tooltip=told),
            data.chart(points).mark_circle(size=22, opacity=0.8).encode(across, y, colour, tooltip=told),
        ]
        panels.append(alt.layer(*layers).properties(width=370, height=300))
    return data.finish(alt.hconcat(*panels, spacing=28), legend="top")
