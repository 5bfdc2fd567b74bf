"""Figures of batch ramps and learning-rate schedules: what the runs did, and what their losses were."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import numpy as np
import pandas as pd

from scaling.drawing import ACCENT, COUNT_LABEL, FAINT, INK, Data, Spec, category, panel_title
from scaling.naming import CONSTANT_BATCH, in_order
from scaling.wording import short

_BINS = 40  # points of a training curve
_FROM = 0.1  # share of the tokens from which on losses are drawn: before it they are those of a new model
_OFTEN = 5  # evaluations from which on a line through them is a curve
_LOSS = "loss (nats per token)"


def ramp_losses(runs: pd.DataFrame, logged: pd.DataFrame) -> Spec:
    """Loss against tokens and against serial steps, a row of panels per first batch, coloured by ramp.

    Lines are the held-out loss where it is measured often enough, since training losses of a few sequences are noise.

    `runs`: run_id, ramp, B0, counts (runs that do not are drawn singly, dashed); `logged`: run_id, step, tokens, loss,
    eval_loss.
    """
    table = logged.merge(runs[["run_id", "ramp", "B0", "counts"]], on="run_id")
    table["line"] = table["run_id"].where(~table["counts"], "mean")
    table["ended"] = np.where(table["counts"], "ended", "did not end")
    colour = category("ramp", in_order(runs["ramp"]))
    dash = alt.StrokeDash(
        "ended:N", scale=alt.Scale(domain=["ended", "did not end"], range=[[1, 0], [5, 3]]), legend=None
    )
    data, rows = Data(), []
    often = evaluated_often(runs, logged)
    title_of_loss = f"held-out {_LOSS}" if often else _LOSS
    curves = _mean_evaluations if often else mean_curves
    for first, group in table.groupby("B0"):
        means = curves(group, ["ramp", "line", "ended"], ["tokens", "step"])
        points = _evaluations(group, ["ramp", "tokens", "step"])
        # what a diverging ramp does above the constant batch's first point would flatten everything else
        calm = means[means["ramp"] == CONSTANT_BATCH] if (means["ramp"] == CONSTANT_BATCH).any() else means
        limits = _limits(pd.concat([means["loss"], points["loss"]]), calm["loss"].max())
        y = alt.Y("loss:Q", title=title_of_loss, scale=limits)
        panels = []
        for x, title in (("tokens", "training tokens"), ("step", "serial steps")):
            across = alt.X(
                f"{x}:Q",
                title=title,
                axis=alt.Axis(labelExpr=COUNT_LABEL, tickCount=6),
                scale=alt.Scale(domain=[0, float(group[x].max())], nice=False),
            )
            lines = data.chart(means).mark_line(strokeWidth=1.6, clip=True)
            lines = lines.encode(across, y, colour, dash, detail="line:N")
            single = data.chart(points).mark_circle(size=12 if often else 16, opacity=0.45, clip=True)
            told = ["ramp:N", alt.Tooltip(f"{x}:Q", format=".3s"), alt.Tooltip("loss:Q", format=".4f")]
            panels.append(
                alt.layer(lines, single.encode(across, y, colour, tooltip=told)).properties(width=390, height=215)
            )
        named = panel_title(f"B0 = {first:g} sequences")
        rows.append(alt.hconcat(*panels, spacing=28, title=named))
    return data.finish(alt.vconcat(*rows, spacing=18), legend="top")


def ramp_differences(rows: pd.DataFrame) -> Spec:
    """Final loss of the ramp minus that of the constant batch against the first batch, a panel per ramp.

    `rows` as of compare_ramps, of one family: points with 95 % intervals, single seeds small, the baseline's spread
    as a grey band.
    """
    data, panels = Data(), []
    firsts = [float(b) for b in sorted(rows["B0"].unique())]
    for ramp in in_order(rows["ramp"]):
        whole = rows[rows["ramp"] == ramp].sort_values("B0")
        group = whole[whole["difference"].notna()]
        if group.empty:
            continue
        diverged = whole.loc[whole["diverged"] > 0, ["B0", "diverged", "runs"]]
        diverged["text"] = diverged["diverged"].astype(str) + " of " + diverged["runs"].astype(str) + " diverged"
        table = group[["B0", "difference", "difference_low", "difference_high", "verdict"]]
        band = pd.DataFrame(
            {"B0": group["B0"], "under": -group["baseline_spread"], "over": group["baseline_spread"]}
        ).dropna()
        seeds = group[["B0", "differences"]].explode("differences").rename(columns={"differences": "difference"})
        seeds["difference"] = seeds["difference"].astype(float)
        across = alt.X(
            "B0:Q",
            title="first batch B0 (sequences)",
            scale=alt.Scale(type="log", base=2, domain=[firsts[0] / 1.4, firsts[-1] * 1.4], nice=False),
            axis=alt.Axis(values=firsts, format="d"),
        )
        title = "difference in final loss (nats per token)"
        y = alt.Y("difference:Q", title=title)
        marks = data.chart(table)
        zero = data.chart(pd.DataFrame({"difference": [0.0]}))
        told = ["B0:Q", alt.Tooltip("difference:Q", format=".4f"), "verdict:N"]
        layers = [
            data.chart(band).mark_bar(size=26, color=FAINT, opacity=0.35).encode(
                across, alt.Y("under:Q", title=title), alt.Y2("over:Q")
            ),
            zero.mark_rule(color=INK, strokeWidth=1).encode(y),
            data.chart(seeds).mark_tick(color=ACCENT, thickness=1, size=16, opacity=0.7, orient="horizontal").encode(
                across, y
            ),
            marks.mark_rule(color=ACCENT, strokeWidth=2).encode(
                across, alt.Y("difference_low:Q", title=title), alt.Y2("difference_high:Q")
            ),
            data.chart(diverged).mark_text(angle=270, align="right", xOffset=16, fontSize=12, color=INK).encode(
                across, y=alt.value(6), text="text:N"
            ),
            marks.mark_circle(color=ACCENT, size=50, opacity=1).encode(across, y, tooltip=told),
        ]  # fmt: skip
        named = panel_title(ramp)
        panels.append(alt.layer(*layers).properties(width=340, height=250, title=named))
    return data.finish(alt.hconcat(*panels, spacing=36))


def ramp_plans(runs: pd.DataFrame, logged: pd.DataFrame) -> Spec:
    """Batch size and learning rate against tokens, one run per ramp. `runs`: run_id, ramp; `logged`: its rows."""
    table = logged.merge(runs[["run_id", "ramp"]], on="run_id")[["ramp", "tokens", "batch_size", "lr"]]
    table = table[table["tokens"] < table.groupby("ramp")["tokens"].transform("max")]  # the last batch is cut short
    table = _thinned(table, "ramp")
    colour = category("ramp", in_order(runs["ramp"]))
    data, panels = Data(), []
    across = _tokens(table)
    size = alt.Y("batch_size:Q", title="batch size (sequences)", scale=alt.Scale(type="log", base=2, nice=False))
    for y in (size, alt.Y("lr:Q", title="learning rate")):
        lines = data.chart(table).mark_line(strokeWidth=1.6, interpolate="step-before").encode(across, y, colour)
        panels.append(lines.properties(width=390, height=215))
    return data.finish(alt.hconcat(*panels, spacing=28), legend="top")


def schedule_ranks(rows: pd.DataFrame, seeds: pd.DataFrame, order: Sequence[str]) -> Spec:
    """Final loss of every schedule, a panel per budget, best schedules on top.

    `rows`: schedule, total_tokens, loss, spread, average_loss (nan where no average is lower); `seeds`: schedule,
    total_tokens, loss of single runs; `order`: schedules from best to worst.
    """
    data, panels = Data(), []
    budgets = sorted(rows["total_tokens"].unique())
    kinds = ["last iterate", "best average"]
    colour = alt.Color(
        "kind:N", title=None, scale=alt.Scale(domain=kinds, range=[ACCENT, INK]), legend=alt.Legend(symbolOpacity=1)
    )
    shape = alt.Shape("kind:N", title=None, scale=alt.Scale(domain=kinds, range=["circle", "diamond"]))
    for number, budget in enumerate(budgets):
        at = rows[rows["total_tokens"] == budget]
        points = pd.concat([
            at[["schedule", "loss"]].assign(kind=kinds[0]),
            at[["schedule"]].assign(loss=at["average_loss"], kind=kinds[1]).dropna(),
        ])  # fmt: skip
        bars = at.assign(low=at["loss"] - at["spread"], high=at["loss"] + at["spread"])[["schedule", "low", "high"]]
        single = seeds.loc[seeds["total_tokens"] == budget, ["schedule", "loss"]]
        labels = alt.Axis(labelLimit=220) if number == 0 else alt.Axis(labels=False, ticks=False)
        y = alt.Y("schedule:N", sort=list(order), title=None, scale=alt.Scale(domain=list(order)), axis=labels)
        title = f"final held-out {_LOSS}" if len(budgets) == 1 else "final held-out loss"
        x = alt.X("loss:Q", title=title, scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=5))
        told = ["schedule:N", "kind:N", alt.Tooltip("loss:Q", format=".4f")]
        layers = [
            data.chart(single).mark_tick(color=FAINT, thickness=1.2, size=9).encode(x, y),
            data.chart(bars.dropna()).mark_rule(color=ACCENT, strokeWidth=1.6).encode(
                alt.X("low:Q", title=title), alt.X2("high:Q"), y
            ),
            data.chart(points).mark_point(filled=True, size=60, opacity=1).encode(x, y, colour, shape, tooltip=told),
        ]  # fmt: skip
        named = panel_title(f"{short(budget)} tokens")
        panels.append(alt.layer(*layers).properties(width=750 / len(budgets), height={"step": 22}, title=named))
    return data.finish(alt.hconcat(*panels, spacing=14), legend="top")


def schedule_losses(runs: pd.DataFrame, logged: pd.DataFrame, order: Sequence[str]) -> Spec:
    """Learning rate and training loss against tokens, means over seeds, coloured by schedule.

    `runs`: run_id, schedule; `logged`: run_id, tokens, lr, loss, eval_loss; `order`: schedules as the legend has them.
    """
    table = logged.merge(runs[["run_id", "schedule"]], on="run_id")
    means = mean_curves(table, ["schedule"], ["tokens"])
    points = _evaluations(table, ["schedule", "tokens"]).groupby(["schedule", "tokens"], as_index=False).mean()
    one = table[table["run_id"].isin(runs.drop_duplicates("schedule")["run_id"])]
    rates = _thinned(one[["schedule", "tokens", "lr"]], "schedule")
    colour = category("schedule", [name for name in order if name in set(runs["schedule"])])
    across = _tokens(table)
    y = alt.Y("loss:Q", title=_LOSS, scale=_limits(pd.concat([means["loss"], points["loss"]]), np.inf))
    data = Data()
    left = data.chart(rates).mark_line(strokeWidth=1.4).encode(across, alt.Y("lr:Q", title="learning rate"), colour)
    told = ["schedule:N", alt.Tooltip("tokens:Q", format=".3s"), alt.Tooltip("loss:Q", format=".4f")]
    right = alt.layer(
        data.chart(means).mark_line(strokeWidth=1.3, opacity=0.8, clip=True).encode(across, y, colour),
        data.chart(points).mark_circle(size=26, opacity=0.9, clip=True).encode(across, y, colour, tooltip=told),
    )
    panels = [left.properties(width=260, height=300), right.properties(width=390, height=300)]
    return data.finish(alt.hconcat(*panels, spacing=28))


def mean_curves(table: pd.DataFrame, by: list[str], across: list[str]) -> pd.DataFrame:
    """Training loss as means over the runs of each group and over bins of tokens, past the first tenth.

    A bin that not every run of its group reached (one diverged) is left out: a mean over others would jump.
    """
    table = table[np.isfinite(table["loss"].astype(float))]
    span = table["tokens"].max()
    table = table[table["tokens"] >= _FROM * span]
    which = np.minimum((table["tokens"] / span * _BINS).astype(int), _BINS - 1).rename("bin")
    bins = table.groupby([*(table[name] for name in by), which])
    means = bins[[*across, "loss"]].mean()
    runs = bins["run_id"].nunique()
    whole = runs == runs.groupby(level=by).transform("max")
    return means[whole].reset_index().drop(columns="bin")


def evaluated_often(runs: pd.DataFrame, logged: pd.DataFrame) -> bool:
    """Whether every run that counts has enough evaluations to be drawn as a curve of held-out loss."""
    if "eval_loss" not in logged or not runs["counts"].any():
        return False
    counts = logged.groupby("run_id")["eval_loss"].count()
    return bool((counts.reindex(runs.loc[runs["counts"], "run_id"], fill_value=0) >= _OFTEN).all())


def _mean_evaluations(table: pd.DataFrame, by: list[str], across: list[str]) -> pd.DataFrame:
    """Held-out loss at each evaluation as means over the runs of each group, where every one of them has it."""
    means = _evaluations(table, [*by, *across]).groupby([*by, *across])["loss"].agg(["mean", "size"]).reset_index()
    runs = table.groupby(by)["run_id"].nunique().rename("runs").reset_index()
    whole = means.merge(runs, on=by)
    return whole[whole["size"] == whole["runs"]].rename(columns={"mean": "loss"})[[*by, *across, "loss"]]


def _evaluations(table: pd.DataFrame, kept: list[str]) -> pd.DataFrame:
    """Held-out losses past the first tenth, under the name `loss`."""
    if "eval_loss" not in table:
        return pd.DataFrame({name: [] for name in [*kept, "loss"]})
    table = table[table["eval_loss"].notna() & (table["tokens"] >= _FROM * table["tokens"].max())]
    return table[kept].assign(loss=table["eval_loss"].astype(float))


def _tokens(table: pd.DataFrame) -> alt.X:
    """A linear axis of tokens, to the end of the runs."""
    scale = alt.Scale(domain=[0, float(table["tokens"].max())], nice=False)
    return alt.X("tokens:Q", title="training tokens", axis=alt.Axis(labelExpr=COUNT_LABEL, tickCount=6), scale=scale)


def _thinned(table: pd.DataFrame, by: str) -> pd.DataFrame:
    """At most some 200 rows of every group: a plan needs no more."""
    return table[table.groupby(by).cumcount() % max(1, len(table) // (200 * table[by].nunique())) == 0]


def _limits(losses: pd.Series, high: float) -> alt.Scale:
    """A scale over the losses, at most up to `high`."""
    low, high = float(losses.min()), float(min(losses.max(), high))
    pad = 0.05 * (high - low) or 0.01
    return alt.Scale(domain=[low - pad, high + pad], nice=False)
