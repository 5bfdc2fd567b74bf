"""How the best size grows with the budget, by all three approaches of Hoffmann et al. 2022, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from scaling import isoflop
from scaling.fit import Fit
from scaling.reports.page import Cell, Constant, escape, interval, listing, paragraph, table
from scaling.reports.records import Records
from scaling.settings import counted
from scaling.wording import three

Exponent = tuple[float, float, float]  # value, and the ends of its 90 % interval
ENVELOPE, PARABOLAS = "1 (envelope of curves)", "2 (parabolas at each budget)"
EXACT, SIX_ND = "3 (the law, exact FLOPs)", "3 (the law, C = 6 N D)"


def approaches(records: Records, fitted: Fit) -> tuple[list[str], dict[str, Any]]:
    """Blocks of a report, and the same as numbers: the exponents of N_opt and D_opt in C, by each approach that the
    runs allow, with why the others have none."""
    found: dict[str, dict[str, Exponent]] = {SIX_ND: six_nd_exponents(fitted)}
    said = []
    for name, optima in ((ENVELOPE, envelope_of), (PARABOLAS, parabolas_of)):
        try:
            best = optima(records)
            found[name] = exponents_of(isoflop.frontier(best.table, records.settings.bootstrap))
            said += [f"Approach {name}: {note}" for note in best.notes]
        except ValueError as error:
            said.append(f"Approach {name}: none. {error}")
    rows = [
        [Cell(name), *(cell for column in ("N", "D") for cell in _cells(exponents.get(column)))]
        for name, exponents in sorted(found.items())
    ]
    text = (
        "How the best size and token count grow with the budget: the exponent a of N or D = k C^a, with 90 % "
        "intervals. Approach 1 takes points within a run for ends of shorter ones; approach 2 is biased by how wide "
        "and how centred the sizes are. Where they disagree with the law, look at the runs, not at the mean."
    )
    blocks = [paragraph(escape(text)), table(["approach", "N", "90 %", "D", "90 %"], rows), listing(said)]
    return blocks, {"exponents": found, "notes": said}


def six_nd_exponents(fitted: Fit) -> dict[str, Exponent]:
    """Of the law, where C = 6 N D: N grows as C^(beta / (alpha + beta))."""
    drawn = fitted.replicates
    share = drawn["beta"] / (drawn["alpha"] + drawn["beta"])
    value = fitted.params["beta"] / (fitted.params["alpha"] + fitted.params["beta"])
    low, high = (float(x) for x in np.nanpercentile(share, (5, 95)))
    return {"N": (value, low, high), "D": (1 - value, 1 - high, 1 - low)}


def exponents_of(frontier: Mapping[str, Fit]) -> dict[str, Exponent]:
    """The exponents of N and D in C of a fitted frontier."""
    return {column: (found.params["a_C"], *found.intervals()["a_C"]) for column, found in frontier.items()}


def envelope_of(records: Records) -> isoflop.Optima:
    """Approach 1 on the held-out losses along the runs' curves. ValueError where there are none, or no optimum."""
    curves = records.curves
    if "eval_loss" not in curves:
        raise ValueError("The curves have no held-out losses (eval.every_tokens).")
    sizes = records.runs.set_index("run_id")["N"]
    points = curves.dropna(subset=["eval_loss"])
    points = points.assign(
        N=points["run_id"].map(sizes), D=points["tokens"], C=points["flops"], loss=points["eval_loss"]
    )
    return isoflop.envelope(points[["run_id", "N", "D", "C", "loss"]].dropna())


def parabolas_of(records: Records) -> isoflop.Optima:
    """Approach 2 on the final held-out losses. ValueError where no budget has an optimum."""
    counts = counted(records.runs)
    if not counts.any():
        raise ValueError(f"None of the {len(counts)} runs has ended at its budget with a held-out loss.")
    runs = records.runs[counts].dropna(subset=["N", "C"])
    return isoflop.parabolas(
        runs[["N", "D", "C"]].assign(loss=runs["eval_loss"]).astype(float).assign(run_id=runs["run_id"])
    )


def exponent_constants(found: Mapping[str, Mapping[str, Exponent]]) -> list[Constant]:
    """The exponents of `approaches` as constants."""
    return [
        Constant(f"Best {column} against C, approach {name}", "exponent", *exponent)
        for name, exponents in sorted(found.items())
        for column, exponent in exponents.items()
    ]


def _cells(exponent: Exponent | None) -> list[Cell]:
    if exponent is None:
        return [Cell(""), Cell("")]
    return [Cell(three(exponent[0]), exponent[0]), interval(*exponent[1:])]
