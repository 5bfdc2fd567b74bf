"""How the best size grows with the budget, by all three approaches of Hoffmann et al. 2022, side by side."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from scaling import isoflop
from scaling.fit import Fit
from scaling.reports.page import Cell, escape, listing, paragraph, table
from scaling.reports.records import Records
from scaling.wording import between, three

Exponent = tuple[float, float, float]  # value, and the ends of its 90 % interval


def approaches(records: Records, fitted: Fit) -> tuple[list[str], dict[str, Any]]:
    """Blocks of a report, and the same as numbers: the exponents of N_opt and D_opt in C, by each approach that the
    runs allow, with why the others have none."""
    found: dict[str, dict[str, Exponent]] = {"3 (the law, C = 6 N D)": _of_law(fitted)}
    said = []
    for name, optima in (("1 (envelope of curves)", _envelope), ("2 (parabolas at each budget)", _parabolas)):
        try:
            points, notes = optima(records)
            found[name] = {c: _exponent(f) for c, f in isoflop.frontier(points, records.settings.bootstrap).items()}
            said += [f"Approach {name}: {note}" for note in notes]
        except ValueError as error:
            said.append(f"Approach {name}: none. {error}")
    rows = [
        [Cell(name), *(_cell(exponents.get(column)) for column in ("N", "D"))]
        for name, exponents in sorted(found.items())
    ]
    text = (
        "How the best size and token count grow with the budget: the exponent a of N or D = k C^a, with 90 % "
        "intervals. Approach 1 takes points within a run for ends of shorter ones; approach 2 is biased by how wide "
        "and how centred the sizes are. Where they disagree with the law, look at the runs, not at the mean."
    )
    blocks = [paragraph(escape(text)), table(["approach", "N", "D"], rows), listing(said)]
    return blocks, {"exponents": found, "notes": said}


def _of_law(fitted: Fit) -> dict[str, Exponent]:
    drawn = fitted.replicates
    share = drawn["beta"] / (drawn["alpha"] + drawn["beta"])
    value = fitted.params["beta"] / (fitted.params["alpha"] + fitted.params["beta"])
    low, high = (float(x) for x in np.nanpercentile(share, (5, 95)))
    return {"N": (value, low, high), "D": (1 - value, 1 - high, 1 - low)}


def _exponent(found: Fit) -> Exponent:
    return (found.params["a_C"], *found.intervals()["a_C"])


def _envelope(records: Records) -> tuple[pd.DataFrame, list[str]]:
    curves = records.curves
    if "eval_loss" not in curves:
        raise ValueError("The curves have no held-out losses (eval.every_tokens).")
    sizes = records.runs.set_index("run_id")["N"]
    points = curves.dropna(subset=["eval_loss"])
    points = points.assign(
        N=points["run_id"].map(sizes), D=points["tokens"], C=points["flops"], loss=points["eval_loss"]
    )
    optima = isoflop.envelope(points[["run_id", "N", "D", "C", "loss"]].dropna())
    return optima.table, optima.notes


def _parabolas(records: Records) -> tuple[pd.DataFrame, list[str]]:
    runs = records.runs[records.runs["status"] == "completed"].dropna(subset=["N", "C", "eval_loss"])
    optima = isoflop.parabolas(runs[["N", "D", "C"]].assign(loss=runs["eval_loss"]).astype(float))
    return optima.table, optima.notes


def _cell(exponent: Exponent | None) -> Cell:
    if exponent is None:
        return Cell("")
    value, low, high = exponent
    return Cell(f"{three(value)} ({between(low, high)})", value)
