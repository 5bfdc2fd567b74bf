"""The Chinchilla part of a report: the law, what it leaves open, the best sizes, and a held-out test."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from scaling import next_runs
from scaling.allocate import Allocation, allocate, family
from scaling.choose import Holdout
from scaling.design import plan_next
from scaling.fit import Fit, Huber, fit
from scaling.keep import numbers as fit_numbers
from scaling.laws import Chinchilla
from scaling.reports import figures
from scaling.reports.approaches import approaches, exponent_constants
from scaling.reports.page import (
    Cell,
    Figure,
    Section,
    escape,
    figure,
    interval,
    listing,
    math,
    paragraph,
    section,
    table,
)
from scaling.reports.records import Records
from scaling.reports.tables import constants_of
from scaling.wording import between, flops, minima, short, thousandth, three

_NEXT_RUNS = 8
_BEYOND = 10.0  # budgets are shown up to this many times the largest that was run


def chinchilla(records: Records) -> Section:
    """The Chinchilla law of the runs: how well it holds, what it leaves open, the best sizes, a held-out test."""
    runs, settings = records.runs, records.settings
    try:
        fitted = fit(Chinchilla(), runs, loss=Huber(settings.huber), starts=settings.starts, seed=settings.seed)
    except ValueError as error:
        return Section([f"No Chinchilla law was fitted: {escape(str(error))}"], [])
    fitted = fitted.bootstrap(settings.bootstrap, seed=settings.seed)
    try:
        held_out: Holdout | str = fitted.holdout(fraction=settings.holdout)
    except ValueError as error:
        held_out = str(error)
    ran = fitted.rows.table
    along = family(runs[runs["status"] == "completed"])
    budgets = np.geomspace(ran["C"].min(), _BEYOND * ran["C"].max(), 48)
    best, six = allocate(fitted, budgets, along), allocate(fitted, budgets, None)
    few = np.append(np.geomspace(ran["C"].min(), ran["C"].max(), 4), [_BEYOND**0.5 * ran["C"].max(), budgets[-1]])
    listed, listed_six = allocate(fitted, few, along), allocate(fitted, few, None)
    compared, exponents = approaches(records, fitted)
    shapes = next_runs.shapes(runs)
    cost = float(runs["own_flops"][ran.index].sum() if "own_flops" in runs else ran["C"].sum())
    next_blocks, next_design = _next_blocks(fitted, shapes, cost, budgets[-1])
    sharpen = _sharpen(next_design)
    about: dict[str, Any] = {"data": list(runs["run_id"][ran.index]), "law": law_line(fitted), "sharpen": sharpen}
    drawn = [
        Figure(
            "law",
            figures.law(fitted),
            "The law (lines, with 90 % intervals of the law itself) and the runs (points).",
            **about,
        ),
        Figure(
            "residuals",
            figures.residuals(fitted),
            "Left: measured against predicted loss. Right: the error of the law at every size. Grey: within 2 %.",
            **about,
        ),
        Figure(
            "allocation",
            figures.allocation(best, six if along else None, ran),
            f"Best size, best token count and loss for every budget: {best.convention}, with 90 % intervals. "
            "Dashed: the answer under C = 6 N D, which leaves out embeddings, output head and attention. Grey: the "
            "runs, and the range of their budgets.",
            **about,
        ),
    ]
    numbers = fit_numbers(fitted, shapes=shapes) | {
        "next_runs": next_design,
        "approaches": exponents,
        "allocation": {"convention": listed.convention, "rows": listed.table.to_dict("records")},
        "holdout": held_out if isinstance(held_out, str) else held_out.to_json(),
    }
    blocks = [
        section("Measured and predicted loss", figure(drawn[1])),
        section("The law", *_law_blocks(fitted), figure(drawn[0])),
        section("Best sizes", *_allocation_blocks(listed, listed_six if along else None), figure(drawn[2]), *compared),
        section("The largest runs, held out", *_holdout_blocks(held_out)),
        section("What to train next", *next_blocks),
    ]
    answers = _answers(fitted, held_out, listed)
    if next_design:
        answers.append(f"What to train next: {sharpen}")
    constants = constants_of(fitted) + exponent_constants(exponents["exponents"])
    return Section(answers, blocks, drawn, numbers, law_line(fitted), constants)


def _sharpen(design: Any) -> str:
    """What the planned runs would do to the law's interval; nothing where none could be planned."""
    if not design:
        return ""
    at = design["target"]
    return (
        f"the {len(design['runs'])} runs in the table of next runs would bring the interval of the law at "
        f"{short(at['N'])} parameters on {short(at['D'])} tokens from {design['before']:.1%} down to "
        f"{design['after']:.1%} to either side."
    )


def law_line(fitted: Fit) -> str:
    """The law with its numbers and the intervals of its parameters, in one line of plain text."""
    intervals = ", ".join(f"{name} {between(low, high, three)}" for name, (low, high) in fitted.intervals().items())
    return f"{fitted.law.written(fitted.params)}  (90 % intervals: {intervals})"


def _answers(fitted: Fit, held_out: Holdout | str, listed: Allocation) -> list[str]:
    ran, law = fitted.rows.table, math(fitted.law.written(fitted.params))
    intervals = fitted.intervals()
    exponents = ", ".join(f"{n} {between(*intervals[n], three)}" for n in ("E", "alpha", "beta"))
    answers = [
        f"{len(ran)} runs of {between(ran['N'].min(), ran['N'].max(), short)} parameters on "
        f"{between(ran['D'].min(), ran['D'].max(), short)} tokens follow <b>{law}</b> "
        f"(90 % intervals: {math(exponents)}); the law misses its own runs by {fitted.residual_rms:.2%} (rms) and "
        f"{fitted.residual_max:.2%} at worst."
    ]
    if fitted.unidentified:
        names = math(", ".join(fitted.unidentified))
        answers.append(f"These runs do not pin down {names}: see the law below for how far each may lie.")
    rows = listed.table
    inside, beyond = rows.iloc[-3], rows.iloc[-1]
    for row, words in (
        (inside, "the largest budget that was run"),
        (beyond, f"{_BEYOND:g} times that, an extrapolation"),
    ):
        answers.append(
            f"For {flops(row['C'])} FLOPs ({words}) the best model has <b>{short(row['N'])}</b> parameters "
            f"({between(row['N_low'], row['N_high'], short)}) and sees <b>{short(row['D'])}</b> tokens "
            f"({between(row['D_low'], row['D_high'], short)}), for a loss of {row['loss']:.3f} "
            f"({row['loss_low']:.3f} to {row['loss_high']:.3f})."
        )
    if isinstance(held_out, str):
        answers.append(f"No run could be held out to test the law: {escape(held_out)}")
    else:
        answers.append(
            f"Fitted without its {len(held_out.table)} largest runs, the law predicts them with an error of "
            f"{held_out.typical:.2%} (rms), {held_out.worst:.2%} at worst."
        )
    return answers


def _law_blocks(fitted: Fit) -> list[str]:
    intervals, doubts = fitted.intervals(), fitted.unidentified
    rows = [
        [
            Cell(p.name),
            Cell(f"{fitted.params[p.name]:.4g}", fitted.params[p.name]),
            interval(*intervals[p.name]),
            Cell(p.meaning),
            Cell("not pinned down" if p.name in doubts else ""),
        ]
        for p in fitted.law.parameters
    ]
    agreement = (
        f"{fitted.agreement:.0%} of {fitted.starts} random starts end at the same optimum, "
        f"{minima(len(fitted.minima))}. Objective {fitted.objective:.4g}: the sum over {len(fitted.rows.table)} runs "
        f"of {fitted.problem.loss!r} on log residuals. Intervals are percentiles of bootstrap refits (by "
        f"{fitted.bootstrap_kind}); they hold the noise of these runs, not the error of the law's form. Source: "
        + fitted.law.source
        + "."
    )
    said = fitted.warnings
    return [
        f'<p class="equation">{math(fitted.law.written(fitted.params))}</p>',
        table(["parameter", "value", "90 % interval", "meaning", ""], rows),
        paragraph(escape(agreement)),
        *([paragraph("What to know before trusting it:"), listing(said)] if said else []),
    ]


def _allocation_blocks(exact: Allocation, six: Allocation | None) -> list[str]:
    header = ["FLOPs C", "best N", "90 %", "best D", "90 %", "D / N", "loss", "90 %"]
    header += ["N by 6ND", "D by 6ND"] if six else []
    rows = []
    for k, row in exact.table.iterrows():
        cells = [Cell(flops(row["C"]), row["C"])]
        for name, shown in (("N", short), ("D", short)):
            cells += [
                Cell(shown(row[name]), row[name]),
                interval(row[f"{name}_low"], row[f"{name}_high"], shown),
            ]
        cells.append(Cell(three(row["tokens_per_parameter"]), row["tokens_per_parameter"]))
        cells += [
            Cell(f"{row['loss']:.3f}", row["loss"]),
            interval(row["loss_low"], row["loss_high"], thousandth),
        ]
        if six:
            cells += [Cell(short(six.table.loc[k, c]), six.table.loc[k, c]) for c in ("N", "D")]
        rows.append(cells)
    beyond = exact.table["extrapolated"]
    notes = list(exact.notes)
    if beyond.any():
        notes.append(
            f"The best sizes at {int(beyond.sum())} of these {len(beyond)} budgets lie outside the sizes that were run."
        )
    return [paragraph(f"Budgets are {escape(exact.convention)}."), listing(notes), table(header, rows)]


def _holdout_blocks(held_out: Holdout | str) -> list[str]:
    if isinstance(held_out, str):
        return [paragraph(f"No test: {escape(held_out)}")]
    rows = [
        [
            Cell(short(row["N"]), row["N"]),
            Cell(short(row["D"]), row["D"]),
            Cell(flops(row["C"]), row["C"]),
            Cell(f"{row['loss']:.4f}", row["loss"]),
            Cell(f"{row['predicted']:.4f}", row["predicted"]),
            Cell(f"{100 * row['error']:+.2f}", 100 * row["error"]),
        ]
        for _, row in held_out.table.sort_values("C").iterrows()
    ]
    text = (
        f"The law is fitted to the {len(held_out.fit.rows.table)} runs of at most {flops(held_out.above)} FLOPs and "
        f"asked about the {len(rows)} larger ones. This error, not the residuals of the fit, says how far to trust the "
        "law beyond its runs."
    )
    return [paragraph(text), table(["N", "tokens D", "FLOPs C", "measured loss", "predicted", "error (%)"], rows)]


def _next_blocks(fitted: Fit, shapes: list[dict[str, Any]], spent: float, budget: float) -> tuple[list[str], Any]:
    """The runs, of `spent` FLOPs together as those done, that make the law surest at the best size for `budget`."""
    try:
        sizes = next_runs.sizes(shapes)
        target = allocate(fitted, budget, family(pd.DataFrame(shapes))).table[["N", "D"]]
        design = plan_next(fitted, sizes, spent, target, _NEXT_RUNS)
    except ValueError as error:
        return [paragraph(f"No plan: {escape(str(error))}")], None
    rows = [
        [
            Cell(short(run["N"]), run["N"]),
            Cell(short(run["D"]), run["D"]),
            Cell(flops(run["C"]), run["C"]),
            Cell(" ".join(next_runs.overrides(run))),
        ]
        for _, run in design.runs.iterrows()
    ]
    at = target.iloc[0]
    text = (
        f"For as many FLOPs as these runs together ({flops(spent)}), the {len(rows)} runs below would shrink the 90 % "
        f"interval of the law at N = {short(at['N'])}, D = {short(at['D'])} from about {design.before:.1%} of the loss "
        f"to {design.after:.1%} to either side. With another budget or target: fulcrum plan-next "
        "fit=<this folder>/fit.json budget=<FLOPs> writes them as a file for fulcrum train points=<file>."
    )
    plan = {"target": {"N": float(at["N"]), "D": float(at["D"])}, "before": design.before, "after": design.after,
            "runs": design.runs[["N", "D", "C", "overrides"]].to_dict("records")}  # fmt: skip
    return [paragraph(escape(text)), table(["N", "tokens D", "FLOPs C", "overrides"], rows)], plan
