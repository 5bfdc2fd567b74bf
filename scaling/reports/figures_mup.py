"""Figures of the muP part: loss against rate at every width, and the best rate against the width."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import numpy as np
import pandas as pd

from scaling.drawing import Data, Spec, category, log_axis
from scaling.transfer import MUP, STANDARD, Widths

TITLES = {STANDARD: "standard parametrization", MUP: "muP"}
_ABOVE = 1.12  # losses further above the highest optimum, as a factor, are cut off
_LABEL = "format(datum.value, '.2~g')"


def rates(families: Sequence[Widths], results: pd.DataFrame) -> Spec:
    """Loss against peak rate, a panel per family and a line per width; `results` as of `transfer`.

    Lines: means over seeds; small points: single seeds; large points: the fitted optima with their intervals.
    """
    data, panels = Data(), []
    widths = sorted({width for one in families for width in one.optima})
    colour = category("width", [f"{width:g}" for width in widths], "width")
    best = pd.concat([_optima(one) for one in families], ignore_index=True)
    shown = results[results["eval_loss"].notna()].assign(width=results["width"].map("{:g}".format))
    top = float(best["loss"].max()) * _ABOVE
    bottom = float(min(shown["eval_loss"].min(), best["loss"].min()))
    y_scale = alt.Scale(domain=[bottom - 0.03 * (top - bottom), top], nice=False)

    def x(name: str) -> alt.X:
        axis: alt.X = log_axis(alt.X, name, "peak rate", shown["peak_lr"], _LABEL)
        return axis

    for one in families:
        points = of_family(shown, one)
        means = points.groupby(["width", "peak_lr"], as_index=False)["eval_loss"].mean()
        found = best[(best["parametrization"] == one.parametrization) & (best["setting"] == one.setting)]
        y = alt.Y("eval_loss:Q", title="held-out loss (nats per token)", scale=y_scale)
        line = data.chart(means).mark_line(strokeWidth=1.6, clip=True).encode(x("peak_lr"), y, colour)
        told = ["width:N", alt.Tooltip("peak_lr:Q", format=".3g"), "seed:N", alt.Tooltip("eval_loss:Q", format=".4f")]
        single = (
            data.chart(points)
            .mark_circle(size=14, opacity=0.4, clip=True)
            .encode(x("peak_lr"), y, colour, tooltip=told)
        )
        at = alt.Y("loss:Q", title="held-out loss (nats per token)", scale=y_scale)
        reach = data.chart(found).mark_rule(strokeWidth=2).encode(x("low"), at, colour, x2="high:Q")
        optimum = data.chart(found).mark_point(size=70, filled=True, opacity=1, shape="diamond")
        told = ["width:N", alt.Tooltip("best:Q", format=".3g"), alt.Tooltip("loss:Q", format=".4f")]
        drawn = alt.layer(line, single, reach, optimum.encode(x("best"), at, colour, tooltip=told))
        panels.append(drawn.properties(width=390, height=300, title=title(one)))
    return data.finish(alt.hconcat(*panels, spacing=28).resolve_scale(color="shared"), legend="top")


def best_rates(families: Sequence[Widths]) -> Spec:
    """Best rate against width, by family, with intervals and the line whose slope is the drift."""
    data = Data()
    found = pd.concat([_optima(one) for one in families], ignore_index=True)
    lines = pd.concat([_line(one) for one in families], ignore_index=True)
    colour = category("family", [title(one) for one in families])
    everything = found[["low", "high", "best"]].to_numpy(float)
    widths = sorted(set(found["number"]))
    scale = alt.Scale(type="log", domain=[widths[0] / 1.1, widths[-1] * 1.1], nice=False)
    x = alt.X("number:Q", title="width", scale=scale, axis=alt.Axis(values=widths, format="d"))
    reach = everything[np.isfinite(everything)]
    y, low = (log_axis(alt.Y, name, "best peak rate", reach, _LABEL) for name in ("best", "low"))
    told = ["family:N", "number:Q", alt.Tooltip("best:Q", format=".3g")]
    drawn = alt.layer(
        data.chart(lines).mark_line(strokeWidth=1.4, strokeDash=[5, 3]).encode(x, y, colour),
        data.chart(found).mark_rule(strokeWidth=2).encode(x, low, colour, y2="high:Q"),
        data.chart(found).mark_point(size=70, filled=True, opacity=1).encode(x, y, colour, tooltip=told),
    )
    return data.finish(drawn.properties(width=480, height=280), legend="top")


def title(one: Widths) -> str:
    """How a family is called in figures."""
    name = TITLES.get(one.parametrization, one.parametrization)
    return f"{name}, {one.setting}" if one.setting else name


def _optima(one: Widths) -> pd.DataFrame:
    found = [
        {"width": f"{width:g}", "number": width, "best": at.best["peak_lr"], "low": at.low["peak_lr"],
         "high": at.high["peak_lr"], "loss": at.loss}
        for width, at in one.optima.items()
    ]  # fmt: skip
    return pd.DataFrame(found).assign(parametrization=one.parametrization, setting=one.setting, family=title(one))


def _line(one: Widths) -> pd.DataFrame:
    """The rate along the drift, through the mean of the logarithms."""
    widths = np.array(list(one.optima))
    logs = np.log2(widths)
    height = np.mean(np.log2([at.best["peak_lr"] for at in one.optima.values()]))
    return pd.DataFrame({"number": widths, "best": np.exp2(height + one.drift * (logs - logs.mean()))}).assign(
        family=title(one)
    )


def of_family(results: pd.DataFrame, one: Widths) -> pd.DataFrame:
    """The results of one family."""
    return results[(results["parametrization"] == one.parametrization) & (results["setting"] == one.setting)]
