"""The theory_seesaw part of a report: is growing the batch cutting the rate? Exact risks, and the runs beside them."""

from __future__ import annotations

import altair as alt
import numpy as np
import pandas as pd

from scaling.drawing import COUNT_LABEL, FAINT, Data, Spec, category, log_axis, panel_title
from scaling.naming import in_order, plan_names
from scaling.recorded import first_batch_in
from scaling.reports.figures_theory import measured_beside_exact
from scaling.reports.page import Cell, Figure, Section, escape, figure, listing, number, paragraph, section, table
from scaling.reports.records import Records
from scaling.theory.check import check, problem_of
from scaling.theory.equivalence import CUT, along_line, by_first_batch, over_constant
from scaling.wording import plain, short

_TITLE = "Growing the batch for cutting the rate, in theory and in runs"
_TEXT = (
    "To first order in the rate, SGD knows a schedule by lr / B alone, and normalized SGD, which stands for Adam here, "
    "by lr / sqrt(B) as long as its gradients are mostly noise: on such a line a cut of the rate may be made by the "
    "batch instead, in any share. At a real rate and batch the two differ, and exact risks say by how much. At a share "
    "of one half normalized SGD's line is at Seesaw; beyond it the rate that normalized SGD takes grows from phase to "
    "phase, which diverges sooner or later where gradients are noise alone (Lemma 4 of arXiv:2510.14717). Rates are "
    "shares of the largest stable one; normalized SGD has none, so there it is what that would be for such gradients."
)


def theory_seesaw(records: Records) -> Section:
    """Ratios of risk, ramp over decay, at equal rows: measured and exact; and theory's for other rates and batches."""
    try:
        found = check(records.runs, records.curves)
        configs = found.configs
        first = next(iter(configs.values()))
        problem, rows, batch = problem_of(first), first["total_tokens"], first_batch_in(first)
        line = along_line(problem, batch, rows)
    except ValueError as error:
        said = f"Theory's ramps have nothing to stand beside: {escape(str(error))}"
        return Section([said], [section(_TITLE, paragraph(said))])
    batches = by_first_batch(problem, rows)
    lines, points = over_constant(configs, found.points)
    drawn, notes = [], list(found.notes)
    if len({repr(config["data"]["sources"]) for config in configs.values()}) > 1:
        notes.append(f"There are several problems: theory alone is shown for that of {next(iter(configs))}.")
    if not lines.empty:
        names = plan_names(records.runs[records.runs["run_id"].isin(lines["run_id"])])
        lines, points = (one.assign(run=one["run_id"].map(names)) for one in (lines, points))
        drawn.append(Figure(
            "theory_seesaw_runs", _runs(lines, points),
            "Excess risk over that of the same schedule with a constant batch, after as many rows. Points: runs, with "
            "two standard errors; lines: exact. These runs are plain SGD, and a ramp moves in steps, each a little "
            "later than the schedule it follows.",
            data=list(dict.fromkeys(lines["run_id"])), law="exact expected risk of one-pass SGD, no parameter fitted",
            sharpen="more replicas (model.replicas): the standard error falls with their root",
        ))  # fmt: skip
    where = f"{problem.dimension} dimensions, noise of variance {problem.noise_variance:g}"
    drawn.append(
        Figure(
            "theory_seesaw_line", _line(line),
            f"Final risk of ramps on the line of equivalence over that of the decay, which cuts the rate by {CUT:g} in "
            f"each of {line['phases'].iloc[0]} phases of equal rows ({short(line['rows'].iloc[0])} in all; {where}; "
            f"first batch {batch}). Lines: rates. Dashed: Seesaw.", law="exact expected risk, no run",
        )
    )  # fmt: skip
    if not batches.empty:
        drawn.append(Figure(
            "theory_seesaw_batch", _batches(batches),
            f"Seesaw over the decay for normalized SGD by the first batch ({short(rows)} rows, three phases; {where}), "
            "and the share of the squared gradient that is noise when the decay ends. A ratio that falls again at "
            "large batches is of runs so short that neither schedule has arrived.", law="exact expected risk, no run",
        ))  # fmt: skip
    header = ["algorithm", "share by the batch", "rate cut by", "batch grown by", "steps", "steps saved (%)"]
    rates = list(dict.fromkeys(line["rate"]))
    header += [f"risk / decay at {rate:g} of the stable rate" for rate in rates]
    cells = []
    for (algorithm, share), group in line.groupby(["algorithm", "share"], sort=False):
        one = group.iloc[0]
        cells.append([
            Cell(str(algorithm)), number(share, ".1f"), number(one["lr_cut"], ".3f"),
            number(one["batch_growth"], ".3f"), Cell(str(one["steps"]), float(one["steps"])),
            number(100 * one["saved"], ".1f"),
            *(number(ratio, ".4f") for ratio in group.set_index("rate")["ratio"][rates]),
        ])  # fmt: skip
    blocks = [paragraph(_TEXT), *(figure(one) for one in drawn), table(header, cells), listing(notes)]
    numbers = {
        "line": [plain(row) for row in line.to_dict("records")],
        "by_first_batch": [plain(row) for row in batches.to_dict("records")],
        "runs": [plain(row) for row in points.to_dict("records")], "notes": notes,
    }  # fmt: skip
    return Section(_answers(line, batches, lines, points), [section(_TITLE, *blocks)], drawn, numbers)


def _answers(line: pd.DataFrame, batches: pd.DataFrame, lines: pd.DataFrame, points: pd.DataFrame) -> list[str]:
    said = []
    for algorithm, share, what in (("SGD", 1.0, "the batch makes the whole cut"), ("normalized SGD", 0.5, "Seesaw")):
        own = line[(line["algorithm"] == algorithm) & np.isclose(line["share"], share)]
        if own.empty:
            continue
        risks = "; ".join(f"{row['ratio']:.3f} at {row['rate']:g}" for _, row in own.iterrows())
        said.append(
            f"Theory, {algorithm}: where {what}, the final risk is that of the decay times <b>{risks}</b> of the "
            f"largest stable rate, in {own['saved'].iloc[0]:.0%} fewer steps."
        )
    if not batches.empty:
        worst = batches.loc[batches["ratio"].idxmax()]
        small = batches[batches["batch"] == batches["batch"].min()]["ratio"]
        more = " or more, the largest that was looked at" if worst["batch"] == batches["batch"].max() else ""
        said.append(
            f"For normalized SGD Seesaw costs {small.min() - 1:.1%} to {small.max() - 1:.1%} of the risk at the "
            f"smallest first batch and most, {worst['ratio'] - 1:.0%}, at {worst['batch']:g} rows{more} (at "
            f"{worst['rate']:g} of the stable rate), with noise {worst['noise']:.0%} of the squared gradient in the end"
            + (": past the critical batch." if worst["noise"] < 0.5 else ".")
        )
    if not lines.empty:
        last = points.loc[points.groupby("run")["tokens"].idxmax()]
        exact = lines.loc[lines.groupby("run")["tokens"].idxmax()].set_index("run")["ratio"]
        ramps = [
            f"{escape(row['run'])} {row['ratio']:.3f} +- {row['error']:.3f} (exact {exact[row['run']]:.3f})"
            for _, row in last[last["ramp"]].iterrows()
        ]
        if ramps:
            said.append(f"Runs, at the end, over the exact constant batch: {'; '.join(ramps)}.")
    return said


def _runs(lines: pd.DataFrame, points: pd.DataFrame) -> Spec:
    data, colour = Data(), category("run", in_order(lines["run"]))
    across = alt.X("tokens:Q", title="rows seen", axis=alt.Axis(labelExpr=COUNT_LABEL))
    kept = points[points["error"] < 0.5 * points["ratio"]]
    values = np.concatenate([lines["ratio"], kept["ratio"]])
    up = log_axis(alt.Y, "ratio", "risk / that of a constant batch", values, "format(datum.value, '~g')")
    layers = measured_beside_exact(data, lines, points, across, up, "ratio", colour)
    return data.finish(alt.layer(*layers).properties(width=620, height=320), legend="top")


def _line(line: pd.DataFrame) -> Spec:
    data, panels = Data(), []
    colour = category("rate", sorted(set(line["rate"])), "rate / stable")
    for algorithm, group in line.groupby("algorithm", sort=False):
        across = alt.X("share:Q", title="share of the cut made by the batch", scale=alt.Scale(domain=[0, 1]))
        up = alt.Y("ratio:Q", title="final risk / the decay's", scale=alt.Scale(zero=False))
        layers = [data.chart(group).mark_line(strokeWidth=1.8, point=True).encode(across, up, color=colour)]
        if algorithm != "SGD":
            edge = data.chart(pd.DataFrame({"share": [0.5]})).mark_rule(strokeDash=[4, 3], color=FAINT)
            layers.insert(0, edge.encode(x="share:Q"))
        panels.append(alt.layer(*layers).properties(width=290, height=240, title=panel_title(str(algorithm))))
    return data.finish(alt.hconcat(*panels, spacing=28), legend="top")


def _batches(batches: pd.DataFrame) -> Spec:
    data = Data()
    colour = category("rate", sorted(set(batches["rate"])), "rate / stable")
    across = log_axis(alt.X, "batch", "first batch (rows)", batches["batch"], COUNT_LABEL)
    drawn = data.chart(batches).mark_line(strokeWidth=1.8, point=True)
    ratio = alt.Y("ratio:Q", title="Seesaw's risk / the decay's", scale=alt.Scale(zero=False))
    noise = alt.Y("noise:Q", title="noise in the squared gradient", scale=alt.Scale(domain=[0, 1]))
    panels = [drawn.encode(across, up, color=colour).properties(width=290, height=240) for up in (ratio, noise)]
    return data.finish(alt.hconcat(*panels, spacing=28), legend="top")
