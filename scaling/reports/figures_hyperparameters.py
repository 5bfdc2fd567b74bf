"""Figures of best rates, batches and weight decays: losses with their quadratics, and optima with their laws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from scaling.drawing import ACCENT, COUNT_LABEL, FAINT, INK, Data, Spec, category, log_axis, panel_title
from scaling.hyperparameters import Best, FittedLaw
from scaling.laws import PowerLaw
from scaling.surface import BRACKETED, Optimum
from scaling.wording import short

_ABOVE = 0.12  # share of the lowest loss up to which losses are drawn
_COLUMNS = 3  # panels beside each other
_POINTS = 60  # of a line


def surfaces(found: Sequence[Best]) -> Spec:
    """Loss against peak rate, a panel per N and D, coloured by batch, with the fitted surface and its optimum."""
    data = Data()
    batches = sorted({short(b) for one in found for b in one.runs["batch"]}, key=_size)
    colour = category("batch", batches, "batch B (tokens)")
    panels = []
    for one in sorted(found, key=lambda one: (one.where["N"], one.where["D"])):
        power, least = one.where["power"], one.found.loss
        runs = one.runs.groupby(["batch", "peak_lr"], as_index=False)["eval_loss"].mean()
        runs = runs[runs["eval_loss"] < least * (1 + _ABOVE)]
        lines = []
        for batch, group in runs.groupby("batch"):
            rates = np.geomspace(group["peak_lr"].min(), group["peak_lr"].max(), _POINTS)
            relative = rates / batch**power
            fitted = one.found.predict(pd.DataFrame({"relative": relative, "batch": batch}))
            lines.append(pd.DataFrame({"peak_lr": rates, "eval_loss": fitted, "batch": short(batch)}))
        curve = pd.concat(lines)
        curve = curve[curve["eval_loss"] < least * (1 + _ABOVE)]
        points = runs.assign(batch=runs["batch"].map(short))
        rate = one.found.best["relative"] * one.found.best["batch"] ** power
        at = pd.DataFrame({"peak_lr": [rate], "eval_loss": [least], "low": [_rate(one, 5)], "high": [_rate(one, 95)]})
        x = log_axis(alt.X, "peak_lr", "peak rate", runs["peak_lr"], "format(datum.value, '~r')")
        y = alt.Y("eval_loss:Q", title="held-out loss (nats)", scale=alt.Scale(zero=False))
        told = ["batch:N", alt.Tooltip("peak_lr:Q", format=".3g"), alt.Tooltip("eval_loss:Q", format=".4f")]
        cross = data.chart(at)
        layers = [
            data.chart(curve).mark_line(strokeWidth=1.4, opacity=0.8).encode(x, y, colour),
            data.chart(points).mark_circle(size=40, opacity=0.9).encode(x, y, colour, tooltip=told),
            cross.mark_rule(color=ACCENT, strokeWidth=2, clip=True).encode(
                x=alt.X("low:Q", title="peak rate"), x2="high:Q", y=y
            ),
            cross.mark_point(shape="cross", filled=True, color=ACCENT, size=90, opacity=1).encode(x, y),
        ]
        title = f"N = {short(one.where['N'])}, {short(one.where['D'])} tokens"
        panels.append(alt.layer(*layers).properties(width=250, height=220, title=panel_title(title)))
    return data.finish(_rows(panels), legend="top")


def rates(found: Sequence[Best], law: FittedLaw | None) -> Spec:
    """Best peak rate against batch, coloured by N and D, with the law."""
    data = Data()
    rows = pd.DataFrame([
        _bar(one.found, "peak_lr") | {"N": one.where["N"], "D": one.where["D"], "batch": one.where["batch"]}
        for one in found
    ])  # fmt: skip
    rows["cell"] = [f"N {short(n)}, {short(d)} tokens" for n, d in zip(rows["N"], rows["D"], strict=True)]
    order = list(rows.sort_values(["N", "D"])["cell"].unique())
    colour = category("cell", order)
    x = log_axis(alt.X, "batch", "batch B (tokens)", rows["batch"], COUNT_LABEL)
    y = log_axis(alt.Y, "best", "best peak rate", _spanned(rows), "format(datum.value, '~r')")
    layers = _bars(data, rows, x, y, colour)
    if law is not None:
        curves = []
        for cell, group in rows.groupby("cell"):
            at = pd.DataFrame({"B": np.geomspace(group["batch"].min(), group["batch"].max(), _POINTS)})
            at = at.assign(N=group["N"].iloc[0], D=group["D"].iloc[0])
            value = np.broadcast_to(law.law.predict(law.params, at), len(at))
            curves.append(pd.DataFrame({"batch": at["B"], "best": value, "cell": cell}))
        layers.insert(0, data.chart(pd.concat(curves)).mark_line(strokeWidth=1.2, opacity=0.7).encode(x, y, colour))
    return data.finish(alt.layer(*layers).properties(width=560, height=330))


def best_batches(found: Sequence[Best], law: FittedLaw | None, published: PowerLaw) -> Spec:
    """Best batch against tokens, coloured by N, with the law and the published one (dashed)."""
    data = Data()
    rows = pd.DataFrame([_bar(one.found, "batch") | {"N": one.where["N"], "D": one.where["D"]} for one in found])
    rows["size"] = rows["N"].map(short)
    tokens = np.geomspace(rows["D"].min(), rows["D"].max(), _POINTS)
    known = pd.DataFrame({"D": tokens, "best": published.predict(published.references[0].params, {"D": tokens})})
    span = np.concatenate([_spanned(rows), known["best"]])
    x = log_axis(alt.X, "D", "training tokens D", rows["D"], COUNT_LABEL)
    y = log_axis(alt.Y, "best", "best batch (tokens)", span, COUNT_LABEL)
    layers = [data.chart(known).mark_line(strokeDash=[5, 4], color=FAINT, strokeWidth=1.6).encode(x, y)]
    layers += _law_line(data, law, "D", tokens, x, y)
    sizes = list(rows.sort_values("N")["size"].unique())
    layers += _bars(data, _apart(rows, "D", "size"), x, y, category("size", sizes, "N"))
    return data.finish(alt.layer(*layers).properties(width=480, height=290))


def timescales(found: Sequence[Best], law: FittedLaw | None, published: PowerLaw) -> Spec:
    """Loss above its lowest against tau, coloured by N and D, dashed by batch; and the best tau over D / N."""
    data, losses, rows = Data(), [], []
    for one in found:
        named = {
            "cell": f"N {short(one.where['N'])}, {short(one.where['D'])} tokens",
            "batch": short(one.where["batch"]),
            "D": one.where["D"],
            "N": one.where["N"],
        }
        mean = one.runs.groupby("tau")["eval_loss"].mean()
        losses.append(pd.DataFrame({"tau": mean.index, "excess": mean.to_numpy() - mean.min()}).assign(**named))
        rows.append(_bar(one.found, "tau") | named | {"TPP": one.where["D"] / one.where["N"]})
    curve, best = pd.concat(losses), pd.DataFrame(rows)
    colour = category("cell", list(best.sort_values(["N", "D"])["cell"].unique()))
    batches = sorted(best["batch"].unique(), key=_size)
    dash = alt.StrokeDash(
        "batch:N", title="batch B (tokens)", sort=batches, legend=alt.Legend(symbolType="stroke", symbolSize=300)
    )
    x = log_axis(alt.X, "tau", "timescale tau (share of the run)", curve["tau"], "format(datum.value, '~r')")
    y = alt.Y("excess:Q", title="loss above the lowest of the line (nats)")
    left = data.chart(curve).mark_line(strokeWidth=1.5, point=alt.OverlayMarkDef(size=30)).encode(x, y, colour, dash)
    ratios = np.geomspace(best["TPP"].min(), best["TPP"].max(), _POINTS)
    known = pd.DataFrame({"TPP": ratios, "best": published.predict(published.references[0].params, {"TPP": ratios})})
    across = log_axis(alt.X, "TPP", "tokens per parameter D / N", best["TPP"], "format(datum.value, '~r')")
    up = log_axis(
        alt.Y, "best", "best tau", np.concatenate([_spanned(best), known["best"]]), "format(datum.value, '~r')"
    )
    layers = [data.chart(known).mark_line(strokeDash=[5, 4], color=FAINT, strokeWidth=1.6).encode(across, up)]
    layers += _law_line(data, law, "TPP", ratios, across, up)
    layers += _bars(data, _apart(best, "TPP", "batch"), across, up, colour)
    panels = [left.properties(width=350, height=280), alt.layer(*layers).properties(width=290, height=280)]
    return data.finish(alt.hconcat(*panels, spacing=28), legend="top")


def horizons(found: Mapping[str, Sequence[Best]]) -> Spec:
    """Best peak rate against tokens, a colour per setting, in units of the rate at its shortest horizon."""
    data, rows = Data(), []
    for name, lines in found.items():
        order = sorted(lines, key=lambda one: one.where["D"])
        unit = order[0].found.best["peak_lr"]
        for one in order:
            bar = _bar(one.found, "peak_lr")
            scaled = {key: bar[key] / unit for key in ("best", "low", "high")}
            rows.append(scaled | {"kind": bar["kind"], "D": one.where["D"], "setting": name})
    table = pd.DataFrame(rows)
    x = log_axis(alt.X, "D", "training tokens D", table["D"], COUNT_LABEL)
    y = log_axis(alt.Y, "best", "best rate / that of the shortest", _spanned(table), "format(datum.value, '~r')")
    colour = category("setting", list(found))
    lines = data.chart(table).mark_line(strokeWidth=1.2, opacity=0.6).encode(x, y, colour)
    layers = [lines, *_bars(data, _apart(table, "D", "setting"), x, y, colour)]
    return data.finish(alt.layer(*layers).properties(width=480, height=270))


def _bar(found: Optimum, name: str) -> dict[str, Any]:
    kind = "bracketed" if found.verdict[name] == BRACKETED else "not bracketed"
    return {"best": found.best[name], "low": found.low[name], "high": found.high[name], "kind": kind}


def _bars(data: Data, rows: pd.DataFrame, x: Any, y: Any, colour: Any) -> list[alt.Chart]:
    """Optima with their intervals; hollow where they are not bracketed."""
    closed, other = (rows[(rows["kind"] == "bracketed") == is_closed] for is_closed in (True, False))
    told = [alt.Tooltip(f"{name}:Q", format=".3g") for name in ("best", "low", "high")] + ["kind:N"]
    low = alt.Y("low:Q", title=y.to_dict()["title"])
    layers = [
        data.chart(rows.dropna(subset=["low"])).mark_rule(strokeWidth=1.5).encode(x, low, alt.Y2("high:Q"), colour)
    ]
    if len(other):
        hollow = data.chart(other).mark_point(size=55, filled=True, fill="white", strokeWidth=1.6, opacity=1)
        layers.append(hollow.encode(x, y, stroke=_stroke(colour), tooltip=told))
    if len(closed):
        layers.append(data.chart(closed).mark_circle(size=60, opacity=1).encode(x, y, colour, tooltip=told))
    return layers


def _stroke(colour: alt.Color) -> alt.Stroke:
    kept: Any = colour.to_dict()
    return alt.Stroke(f"{kept['field']}:N", scale=alt.Scale(**kept["scale"]), legend=None)


def _law_line(data: Data, law: FittedLaw | None, name: str, at: np.ndarray, x: Any, y: Any) -> list[alt.Chart]:
    if law is None:
        return []
    table = pd.DataFrame({name: at, "best": law.law.predict(law.params, {name: at})})
    return [data.chart(table).mark_line(color=INK, strokeWidth=1.4).encode(x, y)]


def _apart(rows: pd.DataFrame, name: str, by: str) -> pd.DataFrame:
    """Points of one place moved aside by a few per cent for each value of `by`, so that their intervals are seen."""
    order = {value: k for k, value in enumerate(sorted(rows[by].unique()))}
    middle = (len(order) - 1) / 2
    return rows.assign(**{name: rows[name] * 1.025 ** (rows[by].map(order) - middle)})


def _spanned(rows: pd.DataFrame) -> np.ndarray:
    values = rows[["best", "low", "high"]].to_numpy(float).ravel()
    return values[np.isfinite(values)]


def _rate(one: Best, percentile: float) -> float:
    draws = one.found.draws
    if not len(draws):
        return float("nan")
    return float(np.percentile(draws[:, 0] * draws[:, 1] ** one.where["power"], percentile))


def _rows(panels: Sequence[Any]) -> Any:
    rows = [alt.hconcat(*panels[k : k + _COLUMNS], spacing=20) for k in range(0, len(panels), _COLUMNS)]
    return alt.vconcat(*rows, spacing=16)


def _size(text: str) -> float:
    """The number behind a short one: 1.0k -> 1000."""
    units = {"k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
    return float(text[:-1]) * units[text[-1]] if text[-1] in units else float(text)
