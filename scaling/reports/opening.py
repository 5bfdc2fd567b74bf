"""What every report shows of its runs, whatever was asked of them: their curves, and a table of all of them."""

from __future__ import annotations

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype

from scaling.naming import described
from scaling.reports import figures
from scaling.reports.page import Cell, Figure, Section, escape, figure, paragraph, section, table
from scaling.reports.records import Records
from scaling.settings import counted, stopped, told_stopped
from scaling.wording import cell, choices, has_branches, heading, results, short, shown

# columns of the table of runs that stand before its configuration
_ASKED = ("N", "D", "own_tokens", "tokens_per_parameter", "C", "own_flops")


def runs_section(runs: pd.DataFrame) -> Section:
    runs = described(runs.assign(tokens_per_parameter=pd.to_numeric(runs["D"]) / runs["N"]))
    order = ["N", "total_tokens", "D", "schedule", "ramp", "batch_size", "peak_lr", "seed"]
    runs = runs.sort_values([name for name in order if name in runs])
    one_size = runs["N"].nunique() == 1
    early = stopped(runs)
    ended = runs["status"].astype(str) + (" (" + early + ")").fillna("")
    said_once = ("N", "tokens_per_parameter") if one_size else ()
    known = [name for name in results(runs) if name not in said_once]
    branches = has_branches(runs)
    asked, got = [name for name in known if name in _ASKED], [name for name in known if name not in _ASKED]
    varying = choices(runs)
    rows = []
    for index, run in runs.iterrows():
        cells = [Cell(str(run["run_id"])), Cell(ended[index])]
        cells += [Cell(*cell(run["parent"]))] if branches else []
        cells += [Cell(*shown(run, name)) for name in asked]
        cells += [Cell(*cell(run[name])) for name in varying]
        cells += [Cell(*shown(run, name)) for name in got]
        rows.append(cells)
    parent = ["parent"] if branches else []
    header = ["run", "status", *parent, *map(heading, asked), *varying, *map(heading, got)]
    counts = early.value_counts().to_dict()
    text = "Click a heading to sort. Configuration columns are shown where the runs differ in them."
    if one_size:
        text += f" All runs have N = {short(runs['N'].iloc[0])}."
    if branches:
        text += " A branch has seen its parent's tokens too; what it cost itself is counted as own."
    bad = runs["status"].value_counts().drop("completed", errors="ignore")
    answers = []
    if len(bad):
        listed = ", ".join(f"{count} {escape(str(status))}" for status, count in bad.items())
        answers.append(f"{bad.sum()} of {len(runs)} runs did not complete ({listed}) and enter no fit or mean.")
    if len(counts):
        answers.append(f"{told_stopped(counts)}: laws of final losses are not fitted to their last losses.")
    return Section(
        [*_learned(runs), *answers], [section("The runs", paragraph(text), table(header, rows, sortable=True))]
    )


def _unigram(runs: pd.DataFrame) -> float | None:
    """The entropy of single held-out tokens in nats, where all runs share it."""
    if "unigram_loss" not in runs:
        return None
    known = pd.to_numeric(runs["unigram_loss"], errors="coerce").dropna()
    return float(known.iloc[0]) if len(known) and np.isclose(known.min(), known.max()) else None


def _learned(runs: pd.DataFrame) -> list[str]:
    """Whether every model knows more than how often each token occurs."""
    unigram = _unigram(runs)
    if unigram is None or "eval_loss" not in runs or not counted(runs).any():
        return []
    losses = runs.loc[counted(runs), "eval_loss"].astype(float)
    worst = f"the worst held-out loss is {losses.max():.3f} nats against a unigram entropy of {unigram:.3f}"
    idle = int((losses >= unigram).sum())
    if idle:
        return [f"{idle} of {len(losses)} models end no better than token frequencies: {worst}; they bend any law."]
    return [f"Every model learned: {worst}."]


def curves_section(records: Records, no_curves: str) -> Section:
    title = "Loss curves"
    if no_curves:
        return Section([], [section(title, paragraph(f"No curves: {escape(no_curves)}"))])
    runs = described(records.runs)
    by = _coloured_by(runs)
    if by != "N" and is_numeric_dtype(runs[by]):  # a figure's data are rounded, and its legend has to name their values
        runs = runs.assign(**{by: runs[by].map(lambda value: float(f"{value:.4g}"))})
    beside = f" and against {figures.BESIDE[by][1]}" if by in figures.BESIDE else ""
    drawn = Figure(
        "curves",
        figures.curves(runs, records.curves, _unigram(runs), by),
        f"Loss against training tokens{beside}, coloured by {by.replace('_', ' ')}. Lines: training loss, averaged "
        "within narrow bins of log tokens. Points: loss on the fixed held-out set, as measured. "
        "The first steps, below 2 % of the smallest run, are not drawn.",
        data=[run for run in runs["run_id"] if run in set(records.curves["run_id"])],
    )
    return Section([], [section(title, figure(drawn))], [drawn])


def _coloured_by(runs: pd.DataFrame) -> str:
    """The column that tells the curves apart: N, or in an experiment of one size what else was varied."""
    for name in ("N", "schedule", "ramp", "batch_size", "peak_lr"):
        if name in runs and runs[name].nunique() > 1:
            return name
    return "N"
