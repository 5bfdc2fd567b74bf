"""The curve_transfer part of a report: what laws fitted to two schedules say of the others, and of batch ramps."""

from __future__ import annotations

import altair as alt
import pandas as pd

from scaling.curve_transfer import FITTED, Transfer, transfer
from scaling.drawing import COUNT_LABEL, INK, Data, Spec, category, panel_title
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
from scaling.reports.tables import constants_of
from scaling.wording import plain

_TITLE = "Other schedules and ramps, predicted"
_COLUMNS = 3
_STARTS = 8


def curve_transfer(records: Records) -> Section:
    """Errors of the predicted curves by schedule and ramp, for the law of SGD's risk and the multi-power law."""
    settings = records.settings
    try:
        found = transfer(records.runs, records.curves, settings.huber, min(settings.starts, _STARTS), settings.seed)
    except ValueError as error:
        said = f"No curve was predicted: {escape(str(error))}"
        return Section([said], [section(_TITLE, paragraph(said))])
    fitted = found.errors["fitted"]
    lines = {
        name: f"{one.law.written(one.params)} (where {one.agreement:.0%} of the starts end)"
        for name, one in found.fits.items()
    }
    drawn = [
        Figure(
            "curve_transfer", _panels(found),
            f"Held-out loss, mean over seeds (points), and the laws (lines), fitted to {' and '.join(FITTED)}: in all "
            "other panels no run was seen by the fit.",
            data=list(dict.fromkeys(found.curves["run_id"])), law="; ".join(lines.values()),
            sharpen="more seeds of the two fitted schedules; a third with a drop of the rate",
        )
    ]  # fmt: skip
    text = (
        f"Both laws are fitted to the held-out losses of {' and '.join(FITTED)} after twice the warm-up, and follow "
        "each run's own plan step by step. The error of a run is the mean of |predicted / measured - 1| over its "
        "evaluations; at the end it has a sign. Seeds: the standard deviation of final losses over seeds, relative. "
        "The multi-power law knows no batch size, so a ramp is to it a schedule of the rate alone."
    )
    header = ["law", "plan", "fitted to", "runs", "mean error", "error at the end", "seeds"]
    rows = [
        [
            Cell(escape(row["law"])), Cell(escape(row["plan"])), Cell("yes" if row["fitted"] else "no"),
            Cell(str(row["runs"]), float(row["runs"])), _share(row["mean"]), _share(row["end"], "+"),
            _share(row["spread"]),
        ]
        for row in found.errors.to_dict("records")
    ]  # fmt: skip
    blocks = [paragraph(text), *(figure(one) for one in drawn), table(header, rows, sortable=True)]
    blocks.append(listing([*(f"{name}: {escape(line)}" for name, line in lines.items()), *found.notes]))
    numbers = {
        "errors": [plain(row) for row in found.errors.to_dict("records")],
        "params": {name: plain(one.params) for name, one in found.fits.items()},
        "fitted_to": list(FITTED), "residual_rms": {name: one.residual_rms for name, one in found.fits.items()},
        "notes": list(found.notes),
    }  # fmt: skip
    constants = [constant for name, one in found.fits.items() for constant in constants_of(one, name)]
    return Section(_answers(found, found.errors[~fitted]), [section(_TITLE, *blocks)], drawn, numbers, "", constants)


def _share(value: float, sign: str = "") -> Cell:
    return number(value, f"{sign}.2%")


def _answers(found: Transfer, asked: pd.DataFrame) -> list[str]:
    ramps = asked["ramp"]
    said = []
    for name, rows in (("other schedules", asked[~ramps]), ("batch ramps", asked[ramps])):
        if rows.empty:
            continue
        parts = [
            f"{escape(law)} by <b>{own['mean'].mean():.2%}</b> ({own['end'].abs().max():.2%} at most at the end)"
            for law, own in rows.groupby("law", sort=False)
        ]
        plans = ", ".join(dict.fromkeys(rows["plan"]))
        said.append(
            f"Fitted to {' and '.join(FITTED)} alone, the laws miss curves of {name} ({escape(plans)}) on average: "
            f"{' and '.join(parts)}. Seeds differ by {rows['spread'].mean():.2%} at the end."
        )
    return said


def _panels(found: Transfer) -> Spec:
    data = Data()
    measured = found.curves.drop_duplicates(["run_id", "tokens"])
    laws = list(found.fits)
    charts = []
    for plan in dict.fromkeys(found.curves["plan"]):
        seen = measured[measured["plan"] == plan].groupby("step", as_index=False)[["tokens", "loss"]].mean()
        lines = found.curves[found.curves["plan"] == plan].groupby(["law", "step"], as_index=False)[
            ["tokens", "predicted"]
        ].mean()  # fmt: skip
        low, high = min(seen["loss"].min(), lines["predicted"].min()), seen["loss"].max()
        scale = alt.Scale(domain=[low - 0.03 * (high - low), high], nice=False)
        across = alt.X("tokens:Q", title="tokens", axis=alt.Axis(labelExpr=COUNT_LABEL, tickCount=4))
        points = data.chart(seen).mark_point(filled=True, size=16, color=INK)
        drawn = data.chart(lines).mark_line(strokeWidth=1.6)
        layers = [
            points.encode(across, y=alt.Y("loss:Q", title="held-out loss", scale=scale)),
            drawn.encode(across, y=alt.Y("predicted:Q", scale=scale), color=category("law", laws)),
        ]
        title = f"{plan} (fitted)" if plan in FITTED else plan
        charts.append(alt.layer(*layers).properties(width=250, height=190, title=panel_title(title)))
    rows = [alt.hconcat(*charts[k : k + _COLUMNS], spacing=22) for k in range(0, len(charts), _COLUMNS)]
    return data.finish(alt.vconcat(*rows, spacing=18), legend="top")
