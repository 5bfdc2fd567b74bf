"""The theory_cbs part of a report: the critical batch size of linear regression, in runs beside the exact one."""

from __future__ import annotations

import altair as alt
import numpy as np
import pandas as pd

from scaling.drawing import COUNT_LABEL, INK, Data, Spec, category, log_axis
from scaling.reports.figures_theory import measured_beside_exact
from scaling.reports.page import (
    Cell,
    Figure,
    Section,
    escape,
    figure,
    listing,
    number,
    paragraph,
    section,
    table,
)
from scaling.reports.records import Records
from scaling.theory.batches import OVERHEAD, Batches, batches
from scaling.theory.check import check, quantile
from scaling.theory.critical import critical_batch_size_at
from scaling.wording import plain, short

_TITLE = "The critical batch size, in theory and in runs"
_POINTS = 8  # of theory's curve
_LARGE = 200  # dimensions: one critical batch takes seconds from here on
_TEXT = (
    "Each run is linear regression at a constant rate and batch, its risk that of the mean of the second half's "
    "iterates, over many replicas. For every budget of rows and every batch the best of the rates that were run is "
    f"taken; the critical batch is where that risk is {1 + OVERHEAD:g} times that of the smallest batch, on a smooth "
    "curve through the points. Theory is exact; once for the rates that were run, once with the rate tuned."
)


def theory_cbs(records: Records) -> Section:
    """Best risks by batch and the critical batch by budget, measured and exact."""
    try:
        checked = check(records.runs, records.curves)
        found = batches(checked.configs, checked.points, records.settings.seed)
    except ValueError as error:
        said = f"No critical batch was measured beside theory's: {escape(str(error))}"
        return Section([said], [section(_TITLE, paragraph(said))])
    best, critical = found.best, found.critical
    line = _theory(found)
    sharpen = "more replicas (model.replicas), rates between those of the grid, batches around the crossing"
    data = list(best["run_id"])
    drawn = [
        Figure(
            "theory_cbs_risk", _risks(found),
            "Least excess risk over rates by batch, for each budget of rows, over the exact one of the smallest batch. "
            f"Points: runs, with two standard errors; lines: exact. Dashed: {1 + OVERHEAD:g}.",
            data=data, law="exact expected risk, the rate tuned; no parameter fitted", sharpen=sharpen,
        ),
        Figure(
            "theory_cbs", _critical(critical, line),
            "Critical batch by rows of training. Points: runs, with 90 % of what their standard errors allow; circles: "
            "exact, at the rates of these runs; line: exact, the rate tuned.",
            data=data, law="exact expected risk, the rate tuned; no parameter fitted", sharpen=sharpen,
        ),
    ]  # fmt: skip
    header = ["rows", "critical batch, runs", "90 %", "exact, same runs", "exact, rate tuned", "rates bracketed"]
    lines = [
        [
            _count(row["rows"]), number(row["measured"], ".1f"), Cell(_interval(row["low"], row["high"])),
            number(row["same"], ".1f"), number(row["exact"], ".1f"), Cell("yes" if row["bracketed"] else "no"),
        ]
        for row in critical.to_dict("records")
    ]  # fmt: skip
    of_batch = ["rows", "batch", "best rate", "of rates", "risk, runs", "standard error", "exact at that rate"]
    every = [
        [
            _count(row["rows"]), _count(row["batch"]), number(row["lr"], ".3g"),
            Cell(f"{row['rates']}{', an end of them' if row['edge'] else ''}", float(row["rates"])),
            number(row["measured"], ".4g"), number(row["error"], ".2g"), number(row["exact"], ".4g"),
        ]
        for row in best.to_dict("records")
    ]  # fmt: skip
    blocks = [paragraph(_TEXT), *(figure(one) for one in drawn), table(header, lines), table(of_batch, every)]
    blocks.append(listing([*found.notes, *checked.notes]))
    numbers = {
        "overhead": OVERHEAD, "critical": [plain(row) for row in critical.to_dict("records")],
        "best": [plain(row) for row in best.to_dict("records")],
        "theory": [plain(row) for row in line.to_dict("records")],
        "largest_z": checked.largest, "limit": checked.limit, "notes": [*found.notes, *checked.notes],
    }  # fmt: skip
    z = (best["measured"] - best["exact"]) / best["error"]
    replicas = min(config["model"]["replicas"] for config in checked.configs.values())
    agreement = _agreement(float(z.abs().max()), quantile(len(z), replicas), checked.largest)
    answers = [*_answers(best, critical, line), agreement]
    return Section(answers, [section(_TITLE, *blocks)], drawn, numbers)


def _interval(low: float, high: float) -> str:
    if not np.isfinite(low):
        return "not reached"
    return f"{low:.1f} to {high:.1f}" if np.isfinite(high) else f"at least {low:.1f}"


def _count(value: float) -> Cell:
    return Cell(short(value), float(value))


def _theory(found: Batches) -> pd.DataFrame:
    """The exact critical batch over the budgets that were run: rows, batch; of a large problem at those alone."""
    known = found.critical.rename(columns={"exact": "batch"})
    smallest, rows = known["smallest"].iloc[0], known["rows"]
    if found.problem.dimension <= _LARGE and len(rows) > 1:
        between = np.geomspace(rows.min(), rows.max(), _POINTS)[1:-1]
        exact = [critical_batch_size_at(found.problem, budget, OVERHEAD, smallest) for budget in between]
        known = pd.concat([known, pd.DataFrame({"rows": between, "smallest": smallest, "batch": exact})])
    known = known[np.isfinite(known["batch"]) & (known["smallest"] == smallest)]
    return known[["rows", "batch"]].sort_values("rows", ignore_index=True)


def _agreement(largest: float, limit: float, of_all: float) -> str:
    agree = "agree" if largest <= limit else "do not agree"
    return (
        f"At the best rates, risks {agree} with exact ones: the largest |z| is {largest:.2f} (99.9 % limit "
        f"{limit:.2f}). Over all points it is {of_all:.2f}; near the largest stable rate risks are heavy-tailed, and z "
        "says little."
    )


def _answers(best: pd.DataFrame, critical: pd.DataFrame, line: pd.DataFrame) -> list[str]:
    said = []
    for row in critical[critical["measured"].notna()].to_dict("records"):
        surely = _interval(row["low"], row["high"]) if row["bracketed"] else "its rates are not bracketed"
        exact = f"exact {row['same']:.1f} at the same rates, {row['exact']:.1f} at the best"
        said.append(f"{row['measured']:.1f} ({surely}; {exact}) after {short(row['rows'])} rows")
    missing = critical[critical["measured"].isna()]["rows"]
    answers = [f"The critical batch of the regression is <b>{'; '.join(said)}</b>."] if said else []
    if len(missing):
        answers.append(
            f"After {', '.join(short(rows) for rows in missing)} rows no batch that was run has {OVERHEAD:.0%} more "
            "risk than the smallest: larger batches would show it."
        )
    if len(line) > 1:
        slope = np.polyfit(np.log(line["rows"]), np.log(line["batch"]), 1)[0]
        answers.append(f"In theory it grows as rows^{slope:.2f} between these budgets.")
    if best["edge"].any():
        answers.append(
            f"At {best['edge'].sum()} of {len(best)} batches and budgets the best rate is an end of those that were "
            "run: the measured risk is no minimum there."
        )
    return answers


def _risks(found: Batches) -> Spec:
    data, best = Data(), found.best
    start = found.curves.loc[found.curves.groupby("rows")["batch"].idxmin()].set_index("rows")["risk"]
    of_start = best[["measured", "error"]].div(best["rows"].map(start), axis=0)
    points = best.assign(budget=best["rows"].map(short), ratio=of_start["measured"], error=of_start["error"])
    lines = found.curves.assign(
        budget=found.curves["rows"].map(short), ratio=found.curves["risk"] / found.curves["rows"].map(start)
    )
    across = log_axis(alt.X, "batch", "batch (rows)", points["batch"], COUNT_LABEL)
    reach = 2 * points["error"]
    ends = np.append((points["ratio"] - reach).clip(lower=0.1), points["ratio"] + reach)
    up = log_axis(alt.Y, "ratio", "risk / that of the smallest batch", ends, "format(datum.value, '~g')")
    colour = category("budget", [short(rows) for rows in sorted(set(best["rows"]))], "rows")
    edge = data.chart(pd.DataFrame({"ratio": [1 + OVERHEAD]})).mark_rule(strokeDash=[4, 3], color=INK)
    layers = [
        edge.encode(y="ratio:Q"),
        *measured_beside_exact(data, lines, points, across, up, "ratio", colour),
    ]
    return data.finish(alt.layer(*layers).properties(width=560, height=320), legend="top")


def _critical(critical: pd.DataFrame, line: pd.DataFrame) -> Spec:
    data, known = Data(), critical[critical["measured"].notna()].replace(np.inf, np.nan)
    values = np.concatenate(
        [known["measured"], known["same"].dropna(), known["low"].dropna(), known["high"].dropna(), line["batch"]]
    )
    across = log_axis(alt.X, "rows", "rows of training", np.append(critical["rows"], line["rows"]), COUNT_LABEL)
    up = log_axis(alt.Y, "batch", "critical batch (rows)", values if len(values) else [1.0, 2.0], COUNT_LABEL)
    layers = [
        data.chart(line).mark_line(strokeWidth=1.6).encode(across, up),
        data.chart(known).mark_point(filled=False, size=70, color=INK).encode(across, y=alt.Y("same:Q")),
        data.chart(known).mark_rule().encode(across, y=alt.Y("low:Q"), y2="high:Q"),
        data.chart(known).mark_point(filled=True, size=40, color=INK).encode(across, y=alt.Y("measured:Q")),
    ]
    return data.finish(alt.layer(*layers).properties(width=460, height=280))
