"""The Seesaw part of a report: does growing the batch do what lowering the rate does, and what does it save?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from scaling.compare_ramps import (
    AGREES,
    COSTS,
    DIVERGED,
    FAMILY,
    FREE,
    LOWER,
    TOO_FEW,
    UNDECIDED,
    Comparison,
    Range,
    compare,
    drawn_runs,
    ranges,
    significant,
)
from scaling.naming import in_order
from scaling.reports import figures_optim
from scaling.reports.page import (
    Cell,
    Figure,
    Section,
    escape,
    figure,
    interval,
    listing,
    number,
    paragraph,
    section,
    table,
)
from scaling.reports.records import Records
from scaling.seeds import ENOUGH
from scaling.wording import between, plain, short, signed

_PANELS = 4  # first batches whose loss curves are drawn
_RULE = (
    f"From at least {ENOUGH} pairs of runs, a ramp agrees with the constant batch when the mean difference of their "
    "final held-out losses, paired by seed, is no larger than the standard deviation over seeds of the constant "
    "batch's own final loss. Beyond that it ends lower or higher when the 95 % t-interval of the mean difference "
    "leaves zero out, and is undecided when it does not. A ramp of which a run diverged counts as ending higher."
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
        f"first batch, in sequences. {_RULE} Where the interval of a "
        "ramp that agrees leaves zero out, the difference is small but no accident of these seeds. Where agreement "
        "ends is measured at the B0 that were run only, and is no measurement of the critical batch size itself."
    )
    body = [paragraph(text), _table(rows), listing(comparison.notes), *(figure(one) for one in drawn)]
    numbers = {
        "rule": _RULE,
        "comparisons": [plain(row) for row in rows.drop(columns="point").to_dict("records")],
        "ranges": [_range_numbers(one) for one in found],
        "notes": list(comparison.notes),
    }
    return Section(_answers(rows, found), [section(title, *body)], drawn, numbers)


def _range_numbers(one: Range) -> dict[str, Any]:
    return plain(one.family) | {
        "ramp": one.ramp,
        **{verdict.replace(" ", "_"): list(firsts) for verdict, firsts in one.first.items()},
        "free_up_to": one.free_up_to,
        "ends_higher_from": one.higher_from,
    }


# ---------------------------------------------------------------------------------------------------- sentences


def _answers(rows: pd.DataFrame, found: Sequence[Range]) -> list[str]:
    answers = []
    order = in_order(rows["ramp"])
    for one in sorted(found, key=lambda one: order.index(one.ramp)):
        same = (rows[FAMILY] == pd.Series(one.family)).all(axis=1) & (rows["ramp"] == one.ramp)
        group = rows[same].sort_values("B0")
        where = _where(one.family, rows)
        answers.append(f"<b>{escape(one.ramp)}</b>{where} {_steps(group)} {_losses(one, group)}")
    return answers


def _where(family: dict[str, Any], rows: pd.DataFrame) -> str:
    """Which family is meant, where there are several."""
    several = [name for name in FAMILY if rows[name].nunique() > 1]
    words = {
        "N": f"N = {short(family['N'])}",
        "total_tokens": f"{short(family['total_tokens'])} tokens",
        "schedule": str(family["schedule"]),
        "setting": str(family["setting"]),
    }
    return f" ({escape(', '.join(words[name] for name in several))})" if several else ""


def _steps(group: pd.DataFrame) -> str:
    """The serial steps that are saved, in a sentence."""
    known = group[group["steps_saved"].notna()]
    if known.empty:
        return "has saved no serial steps so far: no pair of runs is complete."
    percent = (100 * known["steps_saved"]).round(1)  # 37.5 is 37.5, whatever the sums were
    low, high = f"{percent.min():.0f}", f"{percent.max():.0f}"
    first = known.iloc[0]
    return (
        f"saves {low if low == high else f'{low} to {high}'} % of the serial steps "
        f"of {escape(str(first['schedule']))} with a constant batch on the same tokens "
        f"(B0 = {first['B0']:g}: {first['steps']:.0f} instead of {first['baseline_steps']:.0f})."
    )


def _losses(one: Range, group: pd.DataFrame) -> str:
    """Where the ramp ends at the constant batch's loss, where lower, where higher, and by how much."""
    free, costs = ([b for verdict in kind for b in one.first[verdict]] for kind in (FREE, COSTS))
    if not free and not costs and not one.first[UNDECIDED]:
        known = "; ".join(_difference(row) for _, row in group.iterrows() if np.isfinite(row["difference"]))
        return (
            f"Where it ends is not decided: that takes {ENOUGH} seeds of both.{f' So far: {known}.' if known else ''}"
        )
    agrees, lower = (group[group["verdict"] == verdict] for verdict in (AGREES, LOWER))
    higher = group[group["verdict"].isin(COSTS)]
    sentences = []
    if len(agrees):
        at = f"at {_where_run(agrees['B0'], group)}"
        sentences.append(f"It ends at the loss of the constant batch within the seed spread {at}")
    if len(higher):
        from_ = one.higher_from if len(higher) > 1 else None
        at = f"from B0 = {from_:g} on" if from_ == higher["B0"].min() else f"at {_where_run(higher['B0'], group)}"
        diverged = higher["verdict"] == DIVERGED
        how = "diverges" if diverged.all() else "ends higher or diverges" if diverged.any() else "ends higher"
        said = f"{at} it {how}{_amount(higher)}"
        sentences = [f"{sentences[0]}; {said}"] if sentences else [said[0].upper() + said[1:]]
    if len(lower):
        sentences.append(
            f"At {_where_run(lower['B0'], group)} it ends lower{_amount(lower)}: possibly the constant batch was "
            "not at its best there (its peak rate or betas may not suit that batch)"
        )
    for _, row in group.iterrows():
        if row["verdict"] == DIVERGED:
            sentences.append(f"At {_difference(row)}")
    small = [_difference(row) for _, row in agrees.iterrows() if significant(row)]
    if small:
        sentences.append(f"Within the spread, yet not zero by its interval: {'; '.join(small)}")
    beyond = [_difference(row) for _, row in group.iterrows() if row["verdict"] == UNDECIDED]
    if beyond:
        sentences.append(f"Undecided, beyond the seed spread with zero in the interval: {'; '.join(beyond)}")
    if one.first[TOO_FEW]:
        sentences.append(f"Too few seeds at B0 = {_list(one.first[TOO_FEW])}")
    return ". ".join(sentences) + "."


def _where_run(firsts: pd.Series, group: pd.DataFrame) -> str:
    """B0 = 4 and 8; of a whole sweep: every B0 that was run (4, 8)."""
    listed = _list(list(firsts))
    return f"every B0 that was run ({listed})" if 1 < len(firsts) == len(group) else f"B0 = {listed}"


def _amount(rows: pd.DataFrame) -> str:
    """How far the ramp ends from the constant batch, where no run diverged: (by 0.02 to 0.07 nats)."""
    sizes = rows["difference"].abs().dropna()
    sizes = sizes[rows["verdict"] != DIVERGED]
    if sizes.empty:
        return ""
    low, high = (f"{size:.2g}" for size in (sizes.min(), sizes.max()))
    return f" (by {low if low == high else f'{low} to {high}'} nats)"


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


def _list(firsts: Sequence[float]) -> str:
    *most, last = (f"{first:g}" for first in firsts)
    return f"{', '.join(most)} and {last}" if most else last


# ---------------------------------------------------------------------------------------------------- table, figures


def _table(rows: pd.DataFrame) -> str:
    several = [name for name in FAMILY if rows[name].nunique() > 1]
    names = {"N": "N", "total_tokens": "tokens D", "schedule": "schedule", "setting": "setting"}
    header = [*(names[name] for name in several), "B0", "ramp", "pairs", "steps saved (%)", "verdict", "difference"]
    header += ["95 % interval", "its spread", "standard error", "loss of the ramp", "constant-batch loss"]
    header += ["its seed spread", "steps", "constant-batch steps", "peak rate"]
    order = {ramp: k for k, ramp in enumerate(in_order(rows["ramp"]))}
    lines = []
    for _, row in rows.assign(order=rows["ramp"].map(order)).sort_values([*FAMILY, "B0", "order"]).iterrows():
        cells = [
            Cell(short(row[name]), float(row[name])) if name in ("N", "total_tokens") else Cell(str(row[name]))
            for name in several
        ]
        cells += [Cell(f"{row['B0']:g}", float(row["B0"])), Cell(row["ramp"])]
        cells += [
            Cell(f"{row['pairs']} of {row['runs']}", float(row["pairs"])),
            number(100 * row["steps_saved"], ".1f"),
        ]
        cells += [Cell(_verdict(row)), number(row["difference"], "+.4f")]
        cells += [interval(row["difference_low"], row["difference_high"], signed)]
        losses = ("difference_spread", "difference_error", "loss", "baseline_loss", "baseline_spread")
        cells += [number(row[name], ".4f") for name in losses]
        cells += [number(row["steps"], ".0f"), number(row["baseline_steps"], ".0f"), number(row["peak_lr"], ".3g")]
        lines.append(cells)
    return table(header, lines, sortable=True)


def _verdict(row: pd.Series) -> str:
    """The verdict, and what the interval adds to it."""
    verdict = str(row["verdict"])
    if verdict == DIVERGED:
        return f"diverged ({row['diverged']} of {row['runs']})"
    if verdict == TOO_FEW:
        return f"{verdict} ({row['pairs']})"
    return f"{verdict}, yet not zero" if verdict == AGREES and significant(row) else verdict


def _figures(comparison: Comparison, curves: pd.DataFrame) -> list[Figure]:
    """The figures of the family with the most first batches (the largest N of those)."""
    sizes = comparison.rows.groupby(FAMILY)["B0"].nunique()
    family = sizes[sizes == sizes.max()].index[-1]
    rows = comparison.rows[(comparison.rows[FAMILY] == pd.Series(dict(zip(FAMILY, family, strict=True)))).all(axis=1)]
    runs = drawn_runs(comparison, rows)
    firsts = np.sort(rows["B0"].unique())
    shown = firsts[np.unique(np.linspace(0, len(firsts) - 1, _PANELS).round().astype(int))]
    which = f"{family[2]}, N = {short(family[0])}, {short(family[1])} tokens" + (f", {family[3]}" if family[3] else "")
    drawn = []
    if rows["difference"].notna().any():
        drawn.append(
            Figure(
                "seesaw_difference",
                figures_optim.ramp_differences(rows),
                f"Final held-out loss of the ramp minus that of the constant batch ({escape(which)}). Points: mean "
                "over seeds, with its 95 % interval; short lines: single seeds; grey: the constant batch's seed "
                "spread. Every panel has a scale of its own; first batches without a completed pair have no point.",
                list(runs.loc[runs["counts"], "run_id"]),
                sharpen=_sharpen(rows),
            )
        )
    logged = curves[curves["run_id"].isin(runs["run_id"])]
    if not logged.empty:
        of = runs[runs["B0"].isin(shown)]
        lines = "training loss, mean over seeds within narrow bins of tokens; points: held-out loss of single seeds"
        if figures_optim.evaluated_often(of, logged):
            lines = "held-out loss, mean over seeds; points: single seeds"
        drawn.append(
            Figure(
                "seesaw_loss",
                figures_optim.ramp_losses(of, logged),
                f"Loss against tokens and against serial steps ({escape(which)}). Lines: {lines}. The first tenth is "
                "not drawn, nor what lies above the constant batch's loss there. Dashed: single runs that diverged or "
                "did not end.",
                list(of["run_id"]),
            )
        )
        one = runs[(runs["B0"] == firsts[0]) & runs["run_id"].isin(logged["run_id"])]
        one = one.sort_values(["counts", "seed"], ascending=[False, True]).drop_duplicates("ramp")
        drawn.append(
            Figure(
                "seesaw_plan",
                figures_optim.ramp_plans(one, logged),
                f"Batch size and learning rate of the runs with B0 = {firsts[0]:g}, as logged.",
                list(one["run_id"]),
            )
        )
    return drawn


def _sharpen(rows: pd.DataFrame) -> str:
    """Which runs would decide more: seeds where there is no verdict, else first batches around where agreement ends."""
    said = []
    for words, verdict in (("more seeds at", UNDECIDED), (f"{ENOUGH} seeds at", TOO_FEW)):
        open_ = sorted(rows.loc[rows["verdict"] == verdict, "B0"].unique())
        said += [f"{words} B0 = {_list(open_)}"] if open_ else []
    for one in () if said else ranges(rows):
        if one.free_up_to is None:
            said.append(f"{one.ramp} from smaller first batches")
        elif one.higher_from is None:
            said.append(f"{one.ramp} from larger first batches")
        elif one.higher_from > one.free_up_to:
            said.append(f"{one.ramp} from first batches between {one.free_up_to:g} and {one.higher_from:g}")
    return f"{'; '.join(said)}." if said else "more seeds."
