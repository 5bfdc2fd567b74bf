"""The cbs part of a report: how large the batch may be, and what that grows with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from scaling.critical import OVERHEAD, Critical, Exponent, critical
from scaling.reports import figures_cbs
from scaling.reports.page import (
    Cell,
    Constant,
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
from scaling.wording import between, hundredth, plain, short

_TITLE = "Critical batch size"
_MEANINGS = {
    "a_D": "growing tokens at a fixed size (an intercept for each size)",
    "a_N": "growing size at fixed tokens (an intercept for each token count)",
    "path": "tokens in proportion to the size, as compute-optimal runs have them: the sum of the next two",
    "joint_N": "of N in k N^a D^b, fitted to all cells",
    "joint_D": "of D in the same",
}
# Zhang et al. 2024: the path is refitted to their table of steps (tests do it); the others as a review quotes the paper
_PUBLISHED = {"a_D": (0.47, "Zhang et al., as a review quotes it"), "a_N": (0.087, "the same"),
              "path": (0.468, "refitted to the table of Zhang et al.")}  # fmt: skip


def cbs(records: Records) -> Section:
    """Steps to target losses at every batch, the batch with 20 % more data, and its growth with N and D."""
    try:
        found = critical(records.runs, records.curves, records.settings.bootstrap, records.settings.seed)
    except ValueError as error:
        said = f"No critical batch size was found: {escape(str(error))}"
        return Section([said], [section(_TITLE, paragraph(said))])
    data = list(found.runs["run_id"])
    sharpen = _sharpen(found)
    counts = f"{len(data)} runs, {found.steps['seeds'].min()} to {found.steps['seeds'].max()} seeds"
    drawn = [
        Figure(
            "cbs_steps",
            figures_cbs.steps(found),
            f"Steps to a target loss against the batch. Points: the mean over seeds at the best rate ({counts}); "
            "lines: steps = a + b / B, fitted; dashed: linear scaling from B0, the smallest batch; diamonds: the batch "
            f"that needs {OVERHEAD:.0%} more data than that. A target is named by the tokens that B0 needs.",
            data=data, sharpen=sharpen,
        ),
        Figure(
            "cbs_growth",
            figures_cbs.growth(found),
            "The critical batch against tokens and against size, with 90 % intervals over seeds and rates. Targets of "
            "one size come from the same runs, so their errors go together. Lines: the joint law.",
            data=data, law=_law_text(found.law), sharpen=sharpen,
        ),
        Figure(
            "cbs_rates",
            figures_cbs.rates(found),
            "The peak rate that reached the hardest target first, against the batch. Hollow: at an end of the rates "
            "that were run.",
            data=data,
        ),
    ]  # fmt: skip
    text = (
        "The rate is constant after warm-up and the loss is the lowest of the weights and their averages, on the "
        "held-out set; between evaluations it is taken as linear in log tokens. Of the rates (and values of beta2) "
        "that were run, the one that needs fewest tokens is used at every batch. The critical batch B* needs "
        f"{OVERHEAD:.0%} more data than linear scaling from B0, the smallest batch of all sizes, would (Zhang et al. "
        "2024, arXiv:2410.21676): B* = 0.2 b / a + 1.2 B0. Intervals "
        "draw seeds anew and choose rates again; three seeds make them somewhat too narrow."
    )
    blocks = [
        section(_TITLE, paragraph(text), figure(drawn[0]), _cells(found), listing(found.notes)),
        section("What the critical batch grows with", figure(drawn[1]), *_exponents(found)),
        section("The best rate at every batch", figure(drawn[2])),
    ]
    numbers = {
        "unit": "tokens", "overhead": OVERHEAD,
        "cells": [plain(row) for row in found.cells.to_dict("records")],
        "steps": [plain(row) for row in found.steps.to_dict("records")],
        "law": {name: plain(vars(one)) for name, one in found.law.items()},
        "ratio_law": {name: plain(vars(one)) for name, one in found.ratio_law.items()},
        "notes": list(found.notes),
    }  # fmt: skip
    constants = [Constant("critical batch", name, one.value, one.low, one.high) for name, one in found.law.items()]
    return Section(_answers(found), blocks, drawn, numbers, _law_text(found.law), constants)


def _answers(found: Critical) -> list[str]:
    largest = found.cells.sort_values(["N", "D"]).groupby("N").tail(1)
    answers = []
    ratio, star = found.ratio_law, found.law
    if {"a_D", "a_N"} <= set(ratio):
        with_tokens, with_size = ratio["a_D"], ratio["a_N"]
        verdict = "The intervals do not tell the two apart."
        if np.isnan(with_tokens.low) or np.isnan(with_size.low):
            verdict = "With one seed there is no telling how surely."
        elif with_tokens.low > with_size.high:
            verdict = "It grows with the tokens more than with the size."
        elif with_size.low > with_tokens.high:
            verdict = "It grows with the size more than with the tokens."
        answers.append(
            f"The batch that needs twice the data, b / a, grows as D<sup>{with_tokens.value:.2f}</sup> "
            f"({_interval(with_tokens)}) at a fixed size and as N<sup>{with_size.value:.2f}</sup> "
            f"({_interval(with_size)}) at fixed tokens. {verdict} The critical batch B*, which holds 1.2 B0, grows as "
            f"D<sup>{star['a_D'].value:.2f}</sup> and N<sup>{star['a_N'].value:.2f}</sup>."
        )
    elif "a_D" in ratio:
        answers.append(
            f"At one size the batch that needs twice the data, b / a, grows as D<sup>{ratio['a_D'].value:.2f}</sup> "
            f"({_interval(ratio['a_D'])}), and the critical batch B*, which holds 1.2 B0, as "
            f"D<sup>{star['a_D'].value:.2f}</sup> ({_interval(star['a_D'])})."
        )
    for _, cell in largest.iterrows():
        beyond = " (beyond the largest batch that was run)" if cell["critical"] > cell["largest"] else ""
        answers.append(
            f"At N = {short(cell['N'])} and {short(cell['D'])} tokens a batch of <b>{short(cell['critical'])} "
            f"tokens</b>{_of(cell)} needs {OVERHEAD:.0%} more data than linear scaling{beyond}; no batch needs fewer "
            f"than {cell['a']:.0f} steps."
        )
    reasons = found.runs["stop_reason"].value_counts() if "stop_reason" in found.runs else pd.Series(dtype=int)
    diverged = int((found.runs["status"] == "diverged").sum())
    parts = [f"{reasons.get('target', 0)} stopped at the target loss", f"{reasons.get('hopeless', 0)} gave up because "
             "another rate had been there long before", f"{diverged} diverged"]  # fmt: skip
    answers.append(f"Of {len(found.runs)} runs {', '.join(parts)}; each counts for the targets that it passed.")
    edges = found.steps[found.steps["edge"]]
    if len(edges):
        batches = ", ".join(short(b) for b in sorted(edges["B"].unique()))
        answers.append(
            f"In {len(edges)} of {len(found.steps)} cases the best rate is an end of those that were run (batches of "
            f"{batches} tokens): these batches may do better than shown."
        )
    return answers


def _of(cell: pd.Series) -> str:
    return f" ({between(cell['low'], cell['high'], short)})" if np.isfinite(cell["low"]) else ""


def _interval(one: Exponent) -> str:
    return between(one.low, one.high, hundredth) if np.isfinite(one.low) else "one seed: no interval"


def _law_text(law: dict[str, Exponent]) -> str:
    if "k" not in law:
        return ""
    k, a, b = (law[name] for name in ("k", "joint_N", "joint_D"))
    intervals = f"90 % intervals: N {_interval(a)}, D {_interval(b)}"
    return f"B* = {k.value:.3g} N^{a.value:.3f} D^{b.value:.3f} tokens  ({intervals})"


def _sharpen(found: Critical) -> str:
    edges = found.steps[found.steps["edge"]]
    if len(edges):
        return "launch.search.over=[vars.tune] goes on where the best rate is an end of those run"
    if found.cells["N"].nunique() < 3 or "a_N" not in found.law:
        return "another size at the same tokens, as model=...: the exponent of N hangs on it"
    return "more seeds at the largest batches (seed=3,4,5), and a harder target (vars.target) for more tokens"


def _cells(found: Critical) -> str:
    header = ["N", "tokens D", "target loss", "B*", "90 %", "in sequences", "fewest steps a", "least data b", "batches",
              "largest", "rms of log steps", "seeds"]  # fmt: skip
    length = float(pd.to_numeric(found.runs["sequence_length"]).iloc[0])
    rows = []
    for _, cell in found.cells.iterrows():
        rows.append([
            Cell(short(cell["N"]), cell["N"]), Cell(short(cell["D"]), cell["D"]),
            Cell(f"{cell['target']:.3f}", cell["target"]), Cell(short(cell["critical"]), cell["critical"]),
            interval(cell["low"], cell["high"], short),
            Cell(f"{cell['critical'] / length:.1f}", cell["critical"] / length), Cell(f"{cell['a']:.0f}", cell["a"]),
            Cell(short(cell["b"]), cell["b"]), Cell(f"{cell['batches']:.0f}", float(cell["batches"])),
            Cell(short(cell["largest"]), cell["largest"]), Cell(f"{cell['scatter']:.1%}", cell["scatter"]),
            Cell(f"{cell['seeds']:.0f}", float(cell["seeds"])),
        ])  # fmt: skip
    return table(header, rows, sortable=True)


def _published(name: str, found: Exponent) -> Cell:
    """The published exponent, and whether it lies inside the interval of the one that was found."""
    if name not in _PUBLISHED:
        return Cell("")
    value, source = _PUBLISHED[name]
    inside = ""
    if np.isfinite(found.low):
        inside = ", inside the interval" if found.low <= value <= found.high else ", outside the interval"
    return Cell(f"{value:g} ({source}){inside}", value)


def _exponents(found: Critical) -> list[str]:
    if not found.law:
        return [paragraph("One cell alone has no exponents.")]
    rows: list[list[Any]] = []
    for name, meaning in _MEANINGS.items():
        if name in found.law:
            both = [
                cell
                for one in (found.law[name], found.ratio_law[name])
                for cell in (Cell(f"{one.value:.3f}", one.value), interval(one.low, one.high, hundredth))
            ]
            rows.append([Cell(meaning), *both, _published(name, found.law[name])])
    text = (
        "B* holds 1.2 B0, the smallest batch that was run, which does not grow; where that is no small part of it, "
        "the exponents of b / a, the batch at which twice the data are needed (McCandlish et al. 2018, "
        "arXiv:1812.06162), say more about growth."
    )
    equation = [f'<p class="equation">{math(_law_text(found.law))}</p>'] if "k" in found.law else []
    header = ["exponent", "of B*", "90 %", "of b / a", "90 %", "published, of B*"]
    return [paragraph(text), table(header, rows), *equation]
