"""The isoflop part of a report: the best size for a budget by all three approaches of Hoffmann et al. 2022.

curves --envelope--> optima --frontier--+            approach 1
runs --parabolas--> optima --frontier---+--> exponents, best N and D at the largest budget and beyond
runs --fit--> law --allocate------------+            approach 3
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from scaling.allocate import Family, allocate, family, growth
from scaling.fit import Fit, Huber, fit
from scaling.isoflop import Optima, frontier
from scaling.laws import Chinchilla
from scaling.reports import figures_isoflop
from scaling.reports.approaches import (
    ENVELOPE,
    EXACT,
    PARABOLAS,
    SIX_ND,
    Exponent,
    envelope_of,
    exponent_constants,
    exponents_of,
    parabolas_of,
    six_nd_exponents,
)
from scaling.reports.chinchilla import law_line
from scaling.reports.page import Cell, Figure, Section, escape, figure, interval, listing, paragraph, section, table
from scaling.reports.records import Records
from scaling.settings import counted
from scaling.wording import between, flops, plain, short, three

_BEYOND = 10.0  # the approaches are also compared at this many times the largest budget
_WITHIN, _AFTER = 16, 8  # budgets of the lines: among those that were run, and beyond
_NEAR_EDGE = 1.5  # a minimum within this factor of the smallest or largest size has too little on that side
_TEXT = (
    "Every budget is a row of models whose training costs the same FLOPs, counted exactly for their shapes, "
    "embedding and head included. Approach 1 takes the lowest point of the runs' curves at each FLOPs; a point "
    "within a run stands for the end of a shorter one, which a decaying rate makes too high. Approach 2 fits a "
    "parabola in log N to the final losses of each budget and a power law through the minima; it is biased by how "
    "wide and how centred the sizes are. Approach 3 fits the Chinchilla law to all final losses and minimises it "
    "at each budget. The exponent a is that of N or D = k C^a; that of approach 3 along exact FLOPs is the mean "
    "one from the smallest to the largest budget, as embeddings bend it. Intervals are 90 %, by bootstrap: they "
    "hold the scatter of what each approach was given, not its bias."
)


@dataclass(frozen=True)
class _Approach:
    """`exponents` of N and D; `best` has a row per budget C of the lines: N and D, each with _low and _high."""

    name: str
    exponents: dict[str, Exponent]
    best: pd.DataFrame


def isoflop(records: Records) -> Section:
    """Parabolas of every budget, the exponents by approach, and where the approaches disagree."""
    title = "Best sizes at equal FLOPs"
    try:
        optima = parabolas_of(records)
    except ValueError as error:
        said = f"No budget has a best size: {escape(str(error))}"
        return Section([said], [section(title, paragraph(said))])
    points, minima = optima.points, _with_intervals(optima)
    assert points is not None  # approach 2 keeps them
    low, high = points["budget"].min(), points["budget"].max()
    budgets = np.append(np.geomspace(low, high, _WITHIN), np.geomspace(high, _BEYOND * high, _AFTER)[1:])
    found, notes, shown = _by_optima(records, optima, budgets)
    law = ""
    try:
        fitted = _law(records)
        along = family(records.runs[counted(records.runs)])
        found += [_of_law(EXACT, fitted, along, budgets), _of_law(SIX_ND, fitted, None, budgets)]
        law = law_line(fitted)
    except ValueError as error:
        notes.append(f"Approach 3: none. {error}")
    sharpen = _sharpen(points, minima)
    about: dict[str, Any] = {"data": list(points["run_id"]), "law": law, "sharpen": sharpen}
    drawn = [
        Figure(
            "isoflop_parabolas",
            figures_isoflop.parabolas(points, minima),
            f"Final held-out loss against size at {points['budget'].nunique()} budgets, {len(points)} runs. Lines: "
            "parabolas in log N through the filled points; hollow ones lie more than a factor of 10 from the best size "
            "and do not enter. Diamonds: the minima, with 90 % intervals from the scatter of all runs about their "
            "parabolas.",
            **about,
        ),
        Figure(
            "isoflop_frontier",
            figures_isoflop.frontiers({one.name: one.best for one in found}, shown, (low, high)),
            "Best size and best tokens against the budget by each approach, up to ten times the largest budget; "
            "grey: the budgets that were run. Points: minima of the parabolas and runs on the envelope; bands: 90 % "
            "intervals.",
            **about,
        ),
    ]
    blocks = [paragraph(escape(_TEXT)), _table(found), figure(drawn[1]), _minima_table(minima), figure(drawn[0])]
    exponents = {one.name: one.exponents for one in found}
    numbers = {
        "minima": [plain(row) for row in minima.to_dict("records")],
        "approaches": {
            one.name: {"exponents": one.exponents, "best": [plain(row) for row in _told(one).to_dict("records")]}
            for one in found
        },
        "notes": notes,
    }
    answers = [*_answers(found, minima), *([f"What would sharpen it: {escape(sharpen)}"] if sharpen else [])]
    return Section(
        answers, [section(title, *blocks, listing(notes))], drawn, numbers, "", exponent_constants(exponents)
    )


def _by_optima(
    records: Records, optima: Optima, budgets: np.ndarray
) -> tuple[list[_Approach], list[str], dict[str, pd.DataFrame]]:
    """Approaches 1 and 2, what is to be said about them, and the optima that each draws its line through."""
    given: dict[str, Optima] = {PARABOLAS: optima}
    notes = []
    try:
        given = {ENVELOPE: envelope_of(records)} | given
    except ValueError as error:
        notes.append(f"Approach {ENVELOPE}: none. {error}")
    found = []
    for name, best in given.items():
        notes += [f"Approach {name}: {note}" for note in best.notes]
        try:
            lines = frontier(best.table, records.settings.bootstrap)
        except ValueError as error:
            notes.append(f"Approach {name}: no exponent. {error}")
            continue
        columns: dict[str, Any] = {"C": budgets}
        for column, line in lines.items():
            predicted = line.predict({"C": budgets}, interval=0.9)
            columns |= {column: predicted[column]}
            columns |= {f"{column}_{end}": predicted[end] for end in ("low", "high")}
        found.append(_Approach(name, exponents_of(lines), pd.DataFrame(columns)))
    return found, notes, {name: best.table for name, best in given.items()}


def _law(records: Records) -> Fit:
    settings = records.settings
    fitted = fit(Chinchilla(), records.runs, Huber(settings.huber), settings.starts, settings.seed)
    return fitted.bootstrap(settings.bootstrap, settings.seed)


def _of_law(name: str, fitted: Fit, along: Family | None, budgets: np.ndarray) -> _Approach:
    """Approach 3, along exact FLOPs or with C = 6 N D."""
    ran = budgets[[0, _WITHIN - 1]]
    exponents = growth(fitted, ran[0], ran[1], along) if name == EXACT else six_nd_exponents(fitted)
    return _Approach(name, exponents, allocate(fitted, budgets, along).table)


def _with_intervals(optima: Optima) -> pd.DataFrame:
    """The minima of the parabolas with N_low and N_high, the ends of 90 % t-intervals (nan without spare runs)."""
    reach = stdtrit(optima.freedom, 0.95) if optima.freedom else np.nan
    half = reach * optima.table["N_error"]
    return optima.table.assign(
        N_low=optima.table["N"] * np.exp(-half), N_high=optima.table["N"] * np.exp(half), C=optima.table["C"]
    )


# ---------------------------------------------------------------------------------------------------- sentences


def _told(one: _Approach) -> pd.DataFrame:
    """Its best sizes at the largest budget that was run and at `_BEYOND` times that."""
    return one.best.iloc[[_WITHIN - 1, -1]]


def _answers(found: Sequence[_Approach], minima: pd.DataFrame) -> list[str]:
    answers = []
    for place, words in enumerate(("the largest budget that was run", f"{_BEYOND:g} times that, an extrapolation")):
        listed = []
        for one in found:
            row = _told(one).iloc[place]
            listed.append(
                f"<b>{short(row['N'])}</b> ({between(row['N_low'], row['N_high'], short)}) on {short(row['D'])} tokens "
                f"by approach {escape(one.name)}"
            )
        if listed:
            budget = flops(_told(found[0]).iloc[place]["C"])
            answers.append(f"For {budget} FLOPs ({words}) the best size is {'; '.join(listed)}.")
    if found:
        listed = [
            f"{three(one.exponents['N'][0])} ({between(*one.exponents['N'][1:])}) by approach {escape(one.name)}"
            for one in found
        ]
        answers.append(f"The best size grows as C<sup>a</sup> with a = {'; '.join(listed)}.")
    if len(found) > 1:
        answers.append(_disagreement(found))
    few = int(minima["C"].nunique())
    if few < 5:
        answers.append(
            f"{few} budgets over a factor of {three(minima['C'].max() / minima['C'].min())} carry these exponents: an "
            "interval of so few minima is itself uncertain."
        )
    return answers


def _disagreement(found: Sequence[_Approach]) -> str:
    """How far the approaches lie apart at each of the two budgets, and which intervals leave each other out."""
    same = [one for one in found if one.name != SIX_ND]  # it counts the budget otherwise
    ratios = []
    for place in (0, 1):
        sizes = [_told(one).iloc[place]["N"] for one in same]
        ratios.append(max(sizes) / min(sizes))
    apart = [
        f"{a.name} and {b.name}"
        for a, b in combinations(same, 2)
        if a.exponents["N"][2] < b.exponents["N"][1] or b.exponents["N"][2] < a.exponents["N"][1]
    ]
    said = (
        f"The intervals of a do not overlap for approaches {escape('; '.join(apart))}."
        if apart
        else "All intervals of a overlap."
    )
    return (
        f"On exact FLOPs the approaches lie a factor of {three(ratios[0])} apart in the best size at the largest "
        f"budget and {three(ratios[1])} at {_BEYOND:g} times that. {said}"
    )


def _sharpen(points: pd.DataFrame, minima: pd.DataFrame) -> str:
    """Which sizes or budgets would make approach 2 surer; what to train for the law is planned with the law."""
    advice = []
    for budget, group in points.groupby("budget"):
        sizes = group["N"]
        best = minima.loc[np.isclose(minima["C"], budget), "N"]
        where = float(best.iloc[0]) if len(best) else float(sizes[group["loss"].idxmin()])
        if where < _NEAR_EDGE * sizes.min():
            advice.append(f"a size below {short(sizes.min())} at {flops(float(str(budget)))} FLOPs")
        elif where > sizes.max() / _NEAR_EDGE:
            advice.append(f"a size above {short(sizes.max())} at {flops(float(str(budget)))} FLOPs")
    wide = minima[minima["N_high"] > _NEAR_EDGE**2 * minima["N_low"]]
    if len(wide):
        listed = ", ".join(flops(budget) for budget in wide["C"])
        advice.append(f"sizes between those that were run, or a second seed, at {listed} FLOPs")
    largest = points["budget"].max()
    advice.append(f"a further budget, {flops(4 * largest)} FLOPs, around the size that approach 2 names for it")
    return "; ".join(advice) + "."


# ---------------------------------------------------------------------------------------------------- tables


def _table(found: Sequence[_Approach]) -> str:
    header = ["approach", "a of N", "90 %", "a of D", "90 %"]
    told = [_told(one) for one in found]
    for budget in told[0]["C"] if told else []:
        header += [f"N at {flops(budget)} FLOPs", "90 %", f"D at {flops(budget)} FLOPs", "90 %"]
    rows = []
    for one, best in zip(found, told, strict=True):
        cells = [Cell(one.name)]
        for column in ("N", "D"):
            value, low, high = one.exponents[column]
            cells += [Cell(three(value), value), interval(low, high)]
        for _, row in best.iterrows():
            for column in ("N", "D"):
                ends = (row[f"{column}_low"], row[f"{column}_high"])
                cells += [Cell(short(row[column]), row[column]), interval(*ends, short)]
        rows.append(cells)
    return table(header, rows)


def _minima_table(minima: pd.DataFrame) -> str:
    rows = [
        [
            Cell(flops(row["C"]), row["C"]),
            Cell(f"{row['sizes']:.0f}", row["sizes"]),
            Cell(short(row["N"]), row["N"]),
            interval(row["N_low"], row["N_high"], short),
            Cell(short(row["D"]), row["D"]),
            Cell(three(row["D"] / row["N"]), row["D"] / row["N"]),
            Cell(f"{row['loss']:.4f}", row["loss"]),
        ]
        for _, row in minima.iterrows()
    ]
    return table(["FLOPs C", "sizes", "best N", "90 %", "best D", "D / N", "loss at the minimum"], rows)
