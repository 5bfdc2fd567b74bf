"""Figures of runs and of their law: tables in, Vega-Lite specifications out; one serves HTML, SVG, PDF and PNG.

Sizes are coloured along viridis, small ones dark and large ones green (its yellow end is too pale for white paper).
"""

from __future__ import annotations

from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from scaling.allocate import Allocation
from scaling.drawing import ACCENT, COUNT_LABEL, FAINT, FLOPS_LABEL, INK, Data, Spec, category, log_axis, ticks
from scaling.fit import Fit
from scaling.naming import in_order
from scaling.wording import short

_EARLY = 50  # curves start at this fraction of the smallest run: before it, every loss is that of a new model
_BINS = 16  # points of a training curve: wide enough that the noise of single batches averages out
_NAMED = 10  # sizes that a legend names one by one
# What the loss of one size is drawn against beside tokens, where that says more than tokens do.
BESIDE = {
    "N": ("flops", "training FLOPs", FLOPS_LABEL),
    "ramp": ("step", "serial steps", COUNT_LABEL),
    "batch_size": ("step", "serial steps", COUNT_LABEL),
}
_MANY = 40  # runs above which their curves are drawn thinner


def curves(runs: pd.DataFrame, logged: pd.DataFrame, unigram: float | None = None, by: str = "N") -> Spec:
    """Loss against tokens and BESIDE[by]: training (thin, `binned`) and held-out loss (points), coloured by `by`.

    `runs`: run_id, N and the column `by`; `logged`: run_id, tokens, flops, loss, eval_loss; `unigram`: entropy of
    single tokens, nats.
    """
    table = logged.merge(runs[list(dict.fromkeys(["run_id", "N", by]))], on="run_id", suffixes=("", "_of_run"))
    start = table.groupby("run_id")["tokens"].max().min() / _EARLY
    table = table[table["tokens"] >= start]
    training = binned(table, [by])
    many = len(runs) > _MANY
    colour = _size_colour(runs["N"]) if by == "N" else category(by, in_order(runs[by].dropna()), by.replace("_", " "))
    kept = [c for c in dict.fromkeys(["run_id", by, "tokens", "flops", "step", "eval_loss"]) if c in table]
    held_out = table.loc[table["eval_loss"].notna(), kept] if "eval_loss" in table else table.loc[[], kept]
    held_out = held_out.rename(columns={"eval_loss": "loss"})
    unigram_line = pd.DataFrame({"loss": [unigram], "text": ["unigram entropy"]})
    data, panels = Data(), []
    axes = [("tokens", "training tokens", COUNT_LABEL)] + ([BESIDE[by]] if by in BESIDE else [])
    width = 410 if len(axes) > 1 else 640
    for x, title, label in axes:
        across = log_axis(alt.X, x, title, table[x], label)
        y = alt.Y("loss:Q", title="loss (nats per token)", scale=alt.Scale(zero=False))
        lines = data.chart(training).mark_line(strokeWidth=0.8 if many else 1.2, opacity=0.35 if many else 0.6)
        points = data.chart(held_out).mark_circle(size=9 if many else 30, opacity=0.6 if many else 1)
        told = [alt.Tooltip("size:N" if by == "N" else f"{by}:N", title=by)]
        told += [alt.Tooltip(f"{x}:Q", format=".3s"), alt.Tooltip("loss:Q", format=".4f")]
        layers = [
            lines.encode(across, y, colour, detail="run_id:N"),
            points.encode(across, y, colour, tooltip=["run_id:N", *told]),
        ]
        if unigram is not None and training["loss"].max() > unigram:
            rule = data.chart(unigram_line)
            layers.append(rule.mark_rule(strokeDash=[5, 4], color=INK, opacity=0.6).encode(y="loss:Q"))
            words = rule.mark_text(align="right", baseline="bottom", dy=-3, fontSize=12, color=INK)
            layers.append(words.encode(x=alt.value(width - 5), y="loss:Q", text="text:N"))
        panels.append(alt.layer(*layers).properties(width=width, height=300))
    # long names beside two panels would not fit on the page
    return data.finish(alt.hconcat(*panels, spacing=28), legend="top" if by != "N" and len(axes) > 1 else "right")


def binned(table: pd.DataFrame, kept: list[str]) -> pd.DataFrame:
    """Training loss of every run as means over bins that are evenly spaced in log tokens: smooth, and small."""
    table = table[np.isfinite(table["loss"])]
    log_tokens = np.log(table["tokens"])
    span = log_tokens.groupby(table["run_id"]).transform(lambda x: max(x.max() - x.min(), 1e-9))
    start = log_tokens.groupby(table["run_id"]).transform("min")
    which = np.minimum(((log_tokens - start) / span * _BINS).astype(int), _BINS - 1).rename("bin")
    bins = table.groupby([table["run_id"], which])
    means = bins[["tokens", *(c for c in ("flops", "step") if c in table), "loss"]].mean().join(bins[kept].first())
    return means.reset_index().drop(columns="bin")


def law(fit: Fit) -> Spec:
    """Measured loss against tokens for every size, with the law and its 90 % interval."""
    table = fit.rows.table
    sizes = np.sort(table["N"].unique())
    if len(sizes) > _NAMED:  # too many lines to tell apart
        sizes = sizes[np.unique(np.linspace(0, len(sizes) - 1, _NAMED).round().astype(int))]
    tokens = np.geomspace(table["D"].min() / 1.3, table["D"].max() * 1.3, 60)
    grid = pd.DataFrame({"N": np.repeat(sizes, len(tokens)), "D": np.tile(tokens, len(sizes))})
    grid = grid.join(fit.predict(grid, interval=0.9 if fit.free_replicates is not None else None))
    colour = _size_colour(table["N"])
    across = log_axis(alt.X, "D", "training tokens D", tokens, COUNT_LABEL)
    y = alt.Y("loss:Q", title=_loss_title(fit), scale=alt.Scale(zero=False))
    data = Data()
    base = data.chart(grid).encode(across, colour, detail="N:Q")
    layers = [base.mark_line(strokeWidth=1.5).encode(y)]
    if "low" in grid:
        layers.insert(0, base.mark_area(opacity=0.15).encode(alt.Y("low:Q"), alt.Y2("high:Q")))
    points = data.chart(table[["N", "D", "loss"]]).mark_circle(size=55, opacity=1).encode(
        across, y, colour, tooltip=_tooltips("loss")
    )  # fmt: skip
    return data.finish(alt.layer(*layers, points).properties(width=560, height=320))


def residuals(fit: Fit) -> Spec:
    """Measured against predicted loss with a 2 % band, and the error of the law for every size."""
    table = fit.rows.table[["N", "D", "loss"]].copy()
    table["predicted"] = fit.predict(table)["loss"]
    table["error"] = 100 * (table["predicted"] / table["loss"] - 1)
    colour = _size_colour(table["N"])
    low, high = 0.98 * table[["loss", "predicted"]].min().min(), 1.02 * table[["loss", "predicted"]].max().max()
    ends = pd.DataFrame({"predicted": [low, high], "loss": [low, high]})
    ends["under"], ends["over"] = 0.98 * ends["predicted"], 1.02 * ends["predicted"]
    scale = alt.Scale(domain=[low, high], zero=False, nice=False)
    x = alt.X("predicted:Q", title="predicted " + _loss_title(fit), scale=scale)
    y = alt.Y("loss:Q", title="measured " + _loss_title(fit), scale=scale)
    data = Data()
    line = data.chart(ends).encode(x)
    points = (
        data.chart(table)
        .mark_circle(size=60, opacity=1)
        .encode(colour, tooltip=_tooltips("loss", "predicted", "error"))
    )
    left = alt.layer(
        line.mark_area(color=FAINT, opacity=0.25, clip=True).encode(alt.Y("under:Q", scale=scale), alt.Y2("over:Q")),
        line.mark_line(color=INK, strokeWidth=1).encode(y),
        points.encode(x, y),
    ).properties(width=330, height=330)
    reach = max(2.5, 1.1 * table["error"].abs().max())
    error_title, scale = "predicted / measured - 1 (%)", alt.Scale(domain=[-reach, reach])
    error = alt.Y("error:Q", title=error_title, scale=scale)
    band = data.chart(pd.DataFrame({"under": [-2.0], "over": [2.0], "error": [0.0]}))
    right = alt.layer(
        band.mark_rect(color=FAINT, opacity=0.25).encode(
            alt.Y("under:Q", title=error_title, scale=scale), alt.Y2("over:Q")
        ),
        band.mark_rule(color=INK).encode(y="error:Q"),
        points.encode(log_axis(alt.X, "N", "model size N (parameters)", table["N"], COUNT_LABEL), error),
    ).properties(width=430, height=330)
    return data.finish(alt.hconcat(left, right, spacing=40))


def allocation(exact: Allocation, approximate: Allocation | None, ran: pd.DataFrame) -> Spec:
    """Best size, best token count and loss against budget, with intervals; dashed: what C = 6 N D would say.

    `ran` (the fitted rows: N, D, C, loss) is drawn as small points, and its range of C is shaded.
    """
    data = Data()
    shaded = data.chart(pd.DataFrame({"from": [ran["C"].min()], "to": [ran["C"].max()]}))
    kinds = [("exact FLOPs" if approximate is not None else exact.convention, exact)]
    if approximate is not None:
        kinds.append(("C = 6 N D", approximate))
    tables = [a.table.assign(counted=name) for name, a in kinds]
    points = ran[["N", "D", "C", "loss"]]
    colour = alt.Color(
        "counted:N", title=None, scale=alt.Scale(domain=[k for k, _ in kinds], range=[ACCENT, INK][: len(kinds)])
    )
    dash = alt.StrokeDash(
        "counted:N", title=None, scale=alt.Scale(domain=[k for k, _ in kinds], range=[[1, 0], [5, 4]][: len(kinds)])
    )
    panels = []
    for name, title in (
        ("N", "best size N (parameters)"),
        ("D", "best tokens D"),
        ("loss", "loss at the best size"),
    ):
        across = log_axis(alt.X, "C", "training FLOPs C", [*exact.table["C"], *ran["C"]], FLOPS_LABEL)
        drawn = [exact.table[c] for c in (name, f"{name}_low", f"{name}_high") if c in exact.table]
        shown = np.concatenate([*drawn, kinds[-1][1].table[name], ran[name]])
        y = alt.Y(f"{name}:Q", title=title, scale=alt.Scale(zero=False))
        if name != "loss":
            y = log_axis(alt.Y, name, title, shown, COUNT_LABEL)
        layers = [
            shaded.mark_rect(color=FAINT, opacity=0.15).encode(alt.X("from:Q"), alt.X2("to:Q")),
            data.chart(points).mark_circle(size=14, color=FAINT, opacity=0.9).encode(across, y),
        ]
        if f"{name}_low" in exact.table:
            layers.append(
                data.chart(tables[0])
                .mark_area(color=ACCENT, opacity=0.2)
                .encode(across, alt.Y(f"{name}_low:Q"), alt.Y2(f"{name}_high:Q"))
            )
        layers += [data.chart(t).mark_line(strokeWidth=2).encode(across, y, colour, dash) for t in reversed(tables)]
        panels.append(alt.layer(*layers).properties(width=245, height=260))
    return data.finish(alt.hconcat(*panels, spacing=24), legend="top")


def _size_colour(sizes: Any) -> alt.Color:
    """Colour by N: one named step per size, or a scale of log N where the sizes are too many to name."""
    sizes = np.unique(np.asarray(sizes, float))
    viridis = alt.SchemeParams("viridis", extent=[0, 0.88])
    if len(sizes) > _NAMED:
        scale = alt.Scale(type="log", domain=[sizes[0], sizes[-1]], scheme=viridis)
        legend = alt.Legend(type="gradient", labelExpr=COUNT_LABEL, values=ticks(sizes[0], sizes[-1]))
        return alt.Color("N:Q", title="N", scale=scale, legend=legend)
    names = list(dict.fromkeys(short(size) for size in sizes))
    return alt.Color(
        "size:O",
        title="N",
        sort=names,
        scale=alt.Scale(domain=names, scheme=viridis),
        legend=alt.Legend(symbolOpacity=1, symbolType="circle"),
    )


def _loss_title(fit: Fit) -> str:
    names = {"eval_loss": "held-out loss (nats per token)", "eval_bits_per_byte": "held-out loss (bits per byte)"}
    return names.get(fit.rows.columns["loss"], fit.rows.columns["loss"])


def _tooltips(*names: str) -> list[Any]:
    return [
        alt.Tooltip("size:N", title="N"),
        alt.Tooltip("D:Q", format=".3s"),
        *(alt.Tooltip(f"{n}:Q", format=".4f") for n in names),
    ]
