"""The Seesaw part of a report: does growing the batch do what lowering the rate does, and what does it save?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from scaling import figures_optim
from scaling.compare_ramps import (
    DIVERGED,
    FAMILY,
    UNDECIDED,
    Comparison,
    Range,
    compare,
    drawn_runs,
    ranges,
    significant,
)
from scaling.naming import in_order
from scaling.report_page import Cell, Figure, Section, escape, figure, listing, paragraph, section, table
from scaling.report_records import Records
from scaling.seeds import ENOUGH
from scaling.wording import DASH, between, plain, short, signed

_PANELS = 4  # first batches whose loss curves are drawn
_RULE = (
    "A ramp agrees with the constant batch when the mean difference of their final held-out losses, paired by seed, "
    "is no larger than the standard deviation over seeds of the constant batch's own final loss, from at least "
    f"{ENOUGH} pairs. A ramp of which a run diverged does not agree."
)


def seesaw(records: Records) -> Section:
    """Batch ramps against the constant batch of the same schedule: final loss, steps saved, where they agree."""
    title = "Batch ramps against a constant batch"
    try:
        comparison = compare(records.runs)
    except ValueError as error:
        said = f"No ramp was compared with a constant batch: {escape(str(error))}"
        return Section([said], [section(title, paragraph(said))])
    rows, found = comparison.rows, ranges(comparison.rows)
    drawn = _figures(comparison, records.curves)
    text = (
        "Every ramp run is paired with the constant-batch run of the same seed and the same everything else. B0 is the "
        f"first batch, in sequences. {_RULE} The interval is the 95 % t-interval of the mean difference over seeds: "
        "where it leaves zero out, the difference is no accident of these seeds, however small. Where agreement ends "
        "is measured at the B0 that were run only, and is no measurement of the critical batch size itself."
    )
    body = [paragraph(text), _table(rows), listing(comparison.notes), *(figure(one) for one in drawn)]
    numbers = {
        "rule": _RULE,
        "comparisons": [plain(row) for row in rows.drop(columns="setting").to_dict("records")],
        "ranges": [_range_numbers(one) for one in found],
        "notes": list(comparison.notes),
    }
    return Section(_answers(rows, found), [section(title, *body)], drawn, numbers)


def _range_numbers(one: Range) -> dict[str, Any]:
    return plain(one.family) | {
        "ramp": one.ramp,
        "agrees": list(one.agrees),
        "does_not_agree": list(one.differs),
        "too_few_seeds": list(one.undecided),
        "agrees_up_to": one.agrees_up_to,
        "does_not_agree_from": one.differs_from,
    }


# ---------------------------------------------------------------------------------------------------- sentences


def _answers(rows: pd.DataFrame, found: Sequence[Range]) -> list[str]:
    answers = []
    order = in_order(rows["ramp"])
    for one in sorted(found, key=lambda one: order.index(one.ramp)):
        same = (rows[FAMILY] == pd.Series(one.family)).all(axis=1) & (rows["ramp"] == one.ramp)
        group = rows[same].sort_values("B0")
        where = _where(one.family, rows)
        answers.append(f"<b>{escape(one.ramp)}</b>{where}: {_steps(group)} {_agreement(one, group)}")
    return answers


def _where(family: dict[str, Any], rows: pd.DataFrame) -> str:
    """Which family is meant, where there are several."""
    several = [name for name in FAMILY if rows[name].nunique() > 1]
    words = {
        "N": f"N = {short(family['N'])}",
        "total_tokens": f"{short(family['total_tokens'])} tokens",
        "schedule": str(family["schedule"]),
    }
    return f" ({escape(', '.join(words[name] for name in several))})" if several else ""


def _steps(group: pd.DataFrame) -> str:
    """The serial steps that are saved, in a sentence."""
    known = group[group["steps_saved"].notna()]
    if known.empty:
        return ""
    low, high = 100 * known["steps_saved"].min(), 100 * known["steps_saved"].max()
    saved = f"{low:.1f} %" if f"{low:.1f}" == f"{high:.1f}" else between(low, high, lambda x: f"{x:.1f}") + " %"
    first = known.iloc[0]
    return (
        f"{saved} fewer serial steps than {escape(str(first['schedule']))} with a constant batch on the same tokens "
        f"(B0 = {first['B0']:g}: {first['steps']:.0f} instead of {first['baseline_steps']:.0f})."
    )


def _agreement(one: Range, group: pd.DataFrame) -> str:
    """Where the final losses agree, and by how much they do not."""
    by_batch = group.set_index("B0")
    if not one.agrees and not one.differs:
        losses = "; ".join(_difference(row) for _, row in group.iterrows() if np.isfinite(row["difference"]))
        said = f" So far: {losses}." if losses else ""
        return f"Whether its loss agrees is not decided: that takes {ENOUGH} seeds of both.{said}"
    if not one.differs:
        sentence = f"Its final loss agrees within the seed spread at {_every(one)}."
    elif not one.agrees:
        sentence = f"Its final loss agrees at none of the B0 that were run ({_list(one.differs)})."
    elif max(one.agrees) < min(one.differs):
        sentence = (
            f"Its final loss agrees within the seed spread up to B0 = {one.agrees_up_to:g}; "
            f"from B0 = {one.differs_from:g} on it does not."
        )
    else:
        sentence = f"Its final loss agrees at B0 = {_list(one.agrees)} and does not at B0 = {_list(one.differs)}"
        sentence += f"; from B0 = {one.differs_from:g} on it never does." if one.differs_from is not None else "."
    apart = [row for first, row in by_batch.assign(B0=by_batch.index).iterrows() if first in one.differs]
    small = [row for first, row in by_batch.assign(B0=by_batch.index).iterrows() if first in one.agrees]
    small = [row for row in small if significant(row)]
    if apart:
        apart = [apart[0], apart[-1]] if len(apart) > 2 else apart  # the table has them all
        sentence += f" Where it does not: {'; '.join(_difference(row) for row in apart)}."
    if small:
        listed = "; ".join(_difference(row) for row in small)
        sentence += f" Within the spread, yet not zero by its interval: {listed}."
    if one.undecided:
        sentence += f" Too few seeds at B0 = {_list(one.undecided)}."
    return sentence


def _difference(row: pd.Series) -> str:
    """B0 = 8: +0.0031 (95 % interval 0.0011 to 0.0051, seed spread 0.0020)."""
    said = f"B0 = {row['B0']:g}: "
    if row["verdict"] == DIVERGED:
        said += f"{row['diverged']} of {row['runs']} runs diverged"
        if not np.isfinite(row["difference"]):
            return said
        said += ", the others "
    said += signed(row["difference"])
    details = []
    if np.isfinite(row["difference_low"]):
        details.append(f"95 % interval {between(row['difference_low'], row['difference_high'], signed)}")
    if np.isfinite(row["baseline_spread"]):
        details.append(f"seed spread {row['baseline_spread']:.4f}")
    return said + (f" ({', '.join(details)})" if details else " (one seed: no spread)")


def _every(one: Range) -> str:
    word = "decided" if one.undecided else "run"
    if len(one.agrees) == 1:
        return f"the only B0 that was {word} ({one.agrees[0]:g})"
    return f"every B0 that was {word} ({_list(one.agrees)})"


def _list(firsts: Sequence[float]) -> str:
    return ", ".join(f"{first:g}" for first in firsts)


# ---------------------------------------------------------------------------------------------------- table, figures


def _table(rows: pd.DataFrame) -> str:
    several = [name for name in ("N", "total_tokens", "schedule") if rows[name].nunique() > 1]
    names = {"N": "N", "total_tokens": "tokens D", "schedule": "schedule"}
    header = [*(names[name] for name in several), "B0", "ramp", "pairs", "steps saved (%)", "verdict", "difference"]
    header += ["95 % interval", "its spread", "standard error", "loss of the ramp", "constant-batch loss"]
    header += ["its seed spread", "steps", "constant-batch steps", "peak rate"]
    order = {ramp: k for k, ramp in enumerate(in_order(rows["ramp"]))}
    lines = []
    for _, row in rows.assign(order=rows["ramp"].map(order)).sort_values([*FAMILY, "B0", "order"]).iterrows():
        known = np.isfinite(row["difference_low"])
        interval = between(row["difference_low"], row["difference_high"], signed) if known else DASH
        cells = [
            Cell(str(row[name])) if name == "schedule" else Cell(short(row[name]), float(row[name])) for name in several
        ]
        cells += [Cell(f"{row['B0']:g}", float(row["B0"])), Cell(row["ramp"])]
        cells += [
            Cell(f"{row['pairs']} of {row['runs']}", float(row["pairs"])),
            _number(100 * row["steps_saved"], ".1f"),
        ]
        cells += [Cell(_verdict(row)), _number(row["difference"], "+.4f")]
        cells += [Cell(interval, float(row["difference_low"]) if known else None)]
        losses = ("difference_spread", "difference_error", "loss", "baseline_loss", "baseline_spread")
        cells += [_number(row[name], ".4f") for name in losses]
        cells += [_number(row["steps"], ".0f"), _number(row["baseline_steps"], ".0f"), _number(row["peak_lr"], ".3g")]
        lines.append(cells)
    return table(header, lines, sortable=True)


def _verdict(row: pd.Series) -> str:
    """The verdict, and what the interval adds to it."""
    verdict = str(row["verdict"])
    if verdict == DIVERGED:
        return f"diverged ({row['diverged']} of {row['runs']})"
    if verdict == UNDECIDED:
        return f"{verdict} ({row['pairs']})"
    return f"{verdict}, interval {'without' if significant(row) else 'with'} zero"


def _number(value: float, form: str) -> Cell:
    return Cell(format(value, form), float(value)) if np.isfinite(value) else Cell(DASH)


def _figures(comparison: Comparison, curves: pd.DataFrame) -> list[Figure]:
    """The figures of the family with the most first batches (the largest N of those)."""
    sizes = comparison.rows.groupby(FAMILY)["B0"].nunique()
    family = sizes[sizes == sizes.max()].index[-1]
    rows = comparison.rows[(comparison.rows[FAMILY] == pd.Series(dict(zip(FAMILY, family, strict=True)))).all(axis=1)]
    runs = drawn_runs(comparison, rows)
    firsts = np.sort(rows["B0"].unique())
    shown = firsts[np.unique(np.linspace(0, len(firsts) - 1, _PANELS).round().astype(int))]
    which = f"{family[2]}, N = {short(family[0])}, {short(family[1])} tokens"
    drawn = []
    if rows["difference"].notna().any():
        drawn.append(
            Figure(
                "seesaw_difference",
                figures_optim.ramp_differences(rows),
                f"Final held-out loss of the ramp minus that of the constant batch ({escape(which)}). Points: mean "
                "over seeds, with its 95 % interval; short lines: single seeds; grey: the constant batch's seed "
                "spread. Every panel has a scale of its own; first batches without a completed pair have no point.",
            )
        )
    logged = curves[curves["run_id"].isin(runs["run_id"])]
    if not logged.empty:
        drawn.append(
            Figure(
                "seesaw_loss",
                figures_optim.ramp_losses(runs[runs["B0"].isin(shown)], logged),
                f"Loss against tokens and against serial steps ({escape(which)}). Lines: training loss, mean over "
                "seeds within narrow bins of tokens; points: held-out loss of single seeds. The first tenth is not "
                "drawn, nor what lies above the constant batch's loss there. Dashed: single runs that diverged or "
                "did not end.",
            )
        )
        one = runs[(runs["B0"] == firsts[0]) & runs["run_id"].isin(logged["run_id"])]
        one = one.sort_values(["counts", "seed"], ascending=[False, True]).drop_duplicates("ramp")
        drawn.append(
            Figure(
                "seesaw_plan",
                figures_optim.ramp_plans(one, logged),
                f"Batch size and learning rate of the runs with B0 = {firsts[0]:g}, as logged.",
            )
        )
    return drawn
