"""The theory_check part of a report: measured risks of the trainer's runs over the exact curves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from optim.plan import plan_of
from scaling.drawing import ACCENT, COUNT_LABEL, FAINT, Data, Spec, category, log_axis
from scaling.naming import plan_names
from scaling.reports.figures_theory import measured_beside_exact
from scaling.reports.page import Cell, Figure, Section, escape, figure, listing, number, paragraph, section, table
from scaling.reports.records import Records
from scaling.theory.check import LEVEL, Checked, check, exact_curve
from scaling.wording import plain

_TITLE = "The trainer against exact risk"
_CURVE = 150  # points
_TEXT = (
    "Each run trains many replicas of linear regression on rows of their own, by the loop, plan and optimizer that "
    "train language models. Points: the mean excess risk over replicas; lines: the exact expected risk of the run's "
    "own plan. z is their difference in standard errors over replicas."
)


def theory_check(records: Records) -> Section:
    """Whether measured risks are the exact ones, run by run and point by point."""
    try:
        found = check(records.runs, records.curves)
    except ValueError as error:
        said = f"Nothing could be checked: {escape(str(error))}"
        return Section([said], [section(_TITLE, paragraph(said))])
    names = plan_names(records.runs[records.runs["run_id"].isin(found.points["run_id"])])
    points = found.points.assign(run=[names[run] for run in found.points["run_id"]])
    data = list(dict.fromkeys(points["run_id"]))
    sharpen = "more replicas (model.replicas): the standard error falls with their root"
    drawn = [
        Figure(
            "theory_risk", _risks(found, points, names),
            "Excess risk of the weights against rows seen: points are means over replicas, lines exact.",
            data=data, law="exact expected risk of one-pass SGD, no parameter fitted", sharpen=sharpen,
        ),
        Figure(
            "theory_z", _z(points, found.limit),
            f"Difference in standard errors, weights and averages. Dashed: what the largest of {len(points)} "
            f"independent ones stays below with probability {LEVEL:.1%}.", data=data, law="none: z", sharpen=sharpen,
        ),
    ]  # fmt: skip
    header = ["run", "of", "points", "largest |z|", "mean z", "last risk", "exact"]
    rows = [
        [
            Cell(escape(str(run))), Cell(str(of)), Cell(str(len(group)), float(len(group))),
            number(group["z"].abs().max(), ".2f"), number(group["z"].mean(), ".2f"),
            number(group["measured"].iloc[-1], ".4g"), number(group["exact"].iloc[-1], ".4g"),
        ]
        for (run, of), group in points.groupby(["run", "of"], sort=False)
    ]  # fmt: skip
    blocks = [
        paragraph(_TEXT),
        *(figure(one) for one in drawn),
        table(header, rows, sortable=True),
        listing(found.notes),
    ]
    numbers = {
        "largest_z": found.largest, "limit": found.limit, "level": LEVEL, "agrees": found.agrees,
        "points": [plain(row) for row in points.to_dict("records")], "notes": list(found.notes),
    }  # fmt: skip
    return Section([_answer(found, names)], [section(_TITLE, *blocks)], drawn, numbers)


def _answer(found: Checked, names: dict[str, str]) -> str:
    worst = found.points.loc[found.points["z"].abs().idxmax()]
    verdict = "so the trainer does what theory says" if found.agrees else "so the two do not agree"
    return (
        f"At <b>{len(found.points)}</b> logged points of {found.points['run_id'].nunique()} runs the measured risk is "
        f"at most <b>{found.largest:.2f}</b> standard errors from the exact one (largest at {worst['tokens']} rows of "
        f"{escape(names[worst['run_id']])}); so many independent points stay below {found.limit:.2f} with probability "
        f"{LEVEL:.1%}, {verdict}."
    )


def _risks(found: Checked, points: pd.DataFrame, names: dict[str, str]) -> Spec:
    weights = points[points["of"] == "weights"]
    lines = pd.concat([_curve(found.configs[run]).assign(run=name) for run, name in names.items()])
    data, colour = Data(), category("run", list(dict.fromkeys(names.values())))
    across = log_axis(alt.X, "tokens", "rows seen", weights["tokens"], COUNT_LABEL)
    values = np.concatenate([lines["exact"], weights["measured"]])
    up = log_axis(alt.Y, "exact", "excess risk", values, "format(datum.value, '~g')")
    layers = measured_beside_exact(data, lines, weights, across, up, "measured", colour)
    return data.finish(alt.layer(*layers).properties(width=620, height=360), legend="top")


def _curve(config: Mapping[str, Any]) -> pd.DataFrame:
    return exact_curve(config, np.unique(np.geomspace(1, plan_of(config).serial_steps, _CURVE).astype(int)))


def _z(points: pd.DataFrame, limit: float) -> Spec:
    data, colour = Data(), category("run", list(dict.fromkeys(points["run"])))
    across = log_axis(alt.X, "tokens", "rows seen", points["tokens"], COUNT_LABEL)
    edges = pd.DataFrame({"z": [-limit, limit]})
    reach = 1.15 * max(limit, points["z"].abs().max())
    up = alt.Y("z:Q", title="z", scale=alt.Scale(domain=[-reach, reach]))
    marks = data.chart(points).mark_point(filled=True, size=30, opacity=0.8)
    shape = alt.Shape("of:N", title=None) if points["of"].nunique() > 1 else alt.Undefined
    layers = [
        data.chart(edges).mark_rule(strokeDash=[4, 3], color=ACCENT).encode(y="z:Q"),
        data.chart(pd.DataFrame({"z": [0.0]})).mark_rule(color=FAINT).encode(y="z:Q"),
        marks.encode(across, up, color=colour, shape=shape),
    ]
    return data.finish(alt.layer(*layers).properties(width=620, height=220), legend="top")
