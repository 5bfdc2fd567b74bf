"""Figures of repeated data: loss against epochs, what a repeated token is worth, and how well R_D* is known."""

from __future__ import annotations

import altair as alt
import numpy as np
import pandas as pd

from scaling.drawing import ACCENT, FAINT, INK, Data, Spec, log_axis, panel_title
from scaling.fit import Fit
from scaling.intervals import Profile
from scaling.repetition import worth
from scaling.wording import short

_LINE = 40  # points of a line
_LOSS = "loss (nats per token)"
_PLAIN = "format(datum.value, '~g')"


def losses(rows: pd.DataFrame, fitted: Fit | None) -> Spec:
    """Held-out and training loss against epochs, a panel for each size, coloured by U; with the law where there is one.

    `rows`: N, U, D, epochs, loss, train_loss.
    """
    points = rows.assign(name=rows["U"].map(short))
    names = list(points.sort_values("U")["name"].drop_duplicates())
    colour = alt.Color(
        "name:O", title="distinct tokens U", sort=names,
        scale=alt.Scale(domain=names, scheme=alt.SchemeParams("viridis", extent=[0, 0.88])),
        legend=alt.Legend(symbolOpacity=1, symbolType="circle"),
    )  # fmt: skip
    shown = pd.concat([points["loss"], points["train_loss"]]).dropna()
    limits = alt.Scale(domain=[float(shown.min()) - 0.05, float(shown.max()) + 0.05], nice=False)
    data, panels = Data(), []
    sizes = sorted(points["N"].unique())
    for size in sizes:
        group = points[points["N"] == size]
        across = log_axis(alt.X, "epochs", "epochs D / U", points["epochs"], _PLAIN)
        y = alt.Y("loss:Q", title=_LOSS if size == sizes[0] else None, scale=limits)
        told = ["name:N", alt.Tooltip("epochs:Q", format=".3g"), alt.Tooltip("loss:Q", format=".4f")]
        train = group[["name", "epochs"]].assign(loss=group["train_loss"]).dropna()
        layers = []
        if fitted is not None:
            lines = pd.concat([_line(fitted, size, one) for _, one in group.groupby("U")])
            layers.append(data.chart(lines).mark_line(strokeWidth=1.5, clip=True).encode(across, y, colour))
        layers += [
            data.chart(train).mark_point(size=36, strokeWidth=1.2).encode(across, y, colour, tooltip=told),
            data.chart(group[["name", "epochs", "loss"]])
            .mark_circle(size=50, opacity=1)
            .encode(across, y, colour, tooltip=told),
        ]
        title = panel_title(f"N = {short(size)}")
        panels.append(alt.layer(*layers).properties(width=800 / len(sizes) - 30, height=290, title=title))
    return data.finish(alt.hconcat(*panels, spacing=18), legend="top")


def _line(fitted: Fit, size: float, group: pd.DataFrame) -> pd.DataFrame:
    """The law along D at one size and one U, over the tokens that were run."""
    tokens = np.geomspace(group["D"].min(), group["D"].max(), _LINE)
    distinct = float(group["U"].iloc[0])
    at = pd.DataFrame({"N": size, "D": tokens, "U": distinct})
    return pd.DataFrame(
        {"epochs": tokens / distinct, "loss": fitted.predict(at)["loss"], "name": group["name"].iloc[0]}
    )


def worths(rows: pd.DataFrame, fitted: Fit, published: float) -> Spec:
    """The mean worth of a repeated token against epochs: the law with its interval, the published R_D*, the runs."""
    points = rows[rows["worth"].notna() & (rows["epochs"] > 1)][["N", "U", "epochs", "worth"]]
    epochs = np.geomspace(1.5, rows["epochs"].max(), _LINE)
    drawn, _ = worth(fitted.replicates["R_D"][:, None], epochs)
    low, high = np.percentile(drawn, (5, 95), axis=0)
    line = pd.DataFrame({"epochs": epochs, "worth": worth(fitted.params["R_D"], epochs)[0], "low": low, "high": high})
    theirs = pd.DataFrame({"epochs": epochs, "worth": worth(published, epochs)[0]})
    data = Data()
    across = log_axis(alt.X, "epochs", "epochs D / U", epochs, _PLAIN)
    least = min(0.0, float(points["worth"].min()) if len(points) else 0.0)
    most = max(1.0, float(points["worth"].max()) if len(points) else 1.0)
    y = alt.Y("worth:Q", title="worth of a repeated token", scale=alt.Scale(domain=[least, 1.05 * most], nice=False))
    sizes = [short(size) for size in sorted(points["N"].unique())]
    shape = alt.Shape("size:N", title="N", scale=alt.Scale(domain=sizes))
    told = ["size:N", alt.Tooltip("U:Q", format=".3s"), alt.Tooltip("epochs:Q"), alt.Tooltip("worth:Q", format=".2f")]
    layers = [
        data.chart(line).mark_area(color=ACCENT, opacity=0.2).encode(across, alt.Y("low:Q"), alt.Y2("high:Q")),
        data.chart(line).mark_line(color=ACCENT, strokeWidth=2).encode(across, y),
        data.chart(theirs).mark_line(color=INK, strokeDash=[5, 4], strokeWidth=1.4).encode(across, y),
        data.chart(points).mark_point(color=INK, size=45, filled=True, opacity=0.85).encode(
            across, y, shape, tooltip=told
        ),
    ]  # fmt: skip
    return data.finish(alt.layer(*layers).properties(width=560, height=300))


def profile(found: Profile, published: float) -> Spec:
    """The objective against R_D*, everything else refitted, with the level of the interval."""
    table = found.table.rename(columns={found.name: "value"})
    rise = found.threshold - table["objective"].min()
    table = table[table["objective"] <= table["objective"].min() + 6 * rise]
    data = Data()
    ends = [*table["value"], published]
    across = log_axis(alt.X, "value", "R_D*", ends, _PLAIN)
    y = alt.Y("objective:Q", title="objective", scale=alt.Scale(zero=False))
    level = data.chart(pd.DataFrame({"objective": [found.threshold]}))
    theirs = data.chart(pd.DataFrame({"value": [published]}))
    layers = [
        theirs.mark_rule(color=FAINT, strokeWidth=2).encode(across),
        level.mark_rule(color=INK, strokeDash=[5, 4]).encode(y),
        data.chart(table).mark_line(color=ACCENT, strokeWidth=2, point={"color": ACCENT}).encode(across, y),
    ]
    return data.finish(alt.layer(*layers).properties(width=560, height=240))
