"""The report of a folder of runs: what was run, what law it follows, and what to train next.

    <runs>/**/run.json, metrics.jsonl --load--> tables --sections--> <runs>/report/index.html
                                                                     <runs>/report/figures/*.svg, .pdf, .png
                                                                     <runs>/report/fit.json, seesaw.json, ...

The runs and their curves are always shown. Which analyses follow is a list of names in <runs>/sweep.json, key
"report"; each name is a function in `SECTIONS`. An analysis that the runs do not allow says why and the rest stands.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from data.files import read_json, write_atomic, write_json
from data.records import load_curves, load_runs
from scaling import drawing
from scaling.naming import described
from scaling.reports import figures
from scaling.reports.chinchilla import chinchilla
from scaling.reports.page import Cell, Figure, Section, escape, figure, page, paragraph, section, table
from scaling.reports.records import Records, Settings
from scaling.reports.schedules import schedules
from scaling.reports.seesaw import seesaw
from scaling.wording import cell, choices, has_branches, heading, results, short, shown

_DEFAULT_SECTIONS = ("chinchilla",)
_ASKED = (
    "N",
    "D",
    "own_tokens",
    "tokens_per_parameter",
    "C",
    "own_flops",
)  # columns of the table of runs that stand before its configuration


@dataclass(frozen=True)
class Report:
    """Where the page was written, and the law in one line (empty when none was fitted)."""

    path: Path
    line: str


def write_report(
    runs: Path,
    sections: Sequence[str] | None = None,
    settings: Settings | None = None,
    out: Path | None = None,
    command: str | None = None,
) -> Report:
    """Writes the report of the runs below `runs` to `out` (default: `runs`/report).

    `sections` None takes the list in sweep.json, or ["chinchilla"]; `command` is noted with the
    numbers of each section, in <section>.json (fit.json for the law). ValueError for an unknown section or no runs.
    """
    out = out or runs / "report"
    names = list(sections if sections is not None else read_json(runs / "sweep.json").get("report", _DEFAULT_SECTIONS))
    unknown = [name for name in names if name not in SECTIONS]
    if unknown:
        raise ValueError(f"sections={names}: no section {unknown[0]!r}; there are {', '.join(SECTIONS)}.")
    table_of_runs = load_runs(runs)
    curves, no_curves = _load_curves(runs)
    records = Records(table_of_runs, curves, settings or Settings())
    done = {name: SECTIONS[name](records) for name in names}
    opening = [_runs_section(table_of_runs), _curves_section(records, no_curves)]
    parts = [*opening, *done.values()]
    for drawn in (drawn for part in parts for drawn in part.figures):
        drawing.save(drawn.spec, out / "figures", drawn.name)
    text = page(
        title=f"Runs in {runs.resolve().name}",
        subtitle=_subtitle(table_of_runs),
        answers=[answer for part in [*done.values(), *opening] for answer in part.answers],
        body=[block for part in parts for block in part.blocks],
        foot="N counts parameters without embedding and output head; loss is in nats per token; C is exact training "
        "FLOPs of the model's shape unless said otherwise. Written by Fulcrum from the records beside this page.",
    )
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "index.html", text)
    for name in SECTIONS:  # numbers of an earlier report: this one may have none
        _numbers_file(out, name).unlink(missing_ok=True)
    for name, part in done.items():
        if part.numbers is not None:
            write_json(_numbers_file(out, name), part.numbers | {"command": command})
    return Report(out / "index.html", "\n".join(part.line for part in done.values() if part.line))


def _numbers_file(out: Path, name: str) -> Path:
    return out / ("fit.json" if name == "chinchilla" else f"{name}.json")


def _load_curves(runs: Path) -> tuple[pd.DataFrame, str]:
    """The logged curves, or none and why."""
    try:
        return load_curves(runs), ""
    except ValueError as error:
        return pd.DataFrame({"run_id": [], "step": [], "tokens": [], "loss": []}), str(error)


# ---------------------------------------------------------------------------------------------------- runs


def _subtitle(runs: pd.DataFrame) -> str:
    counts = runs["status"].value_counts()
    listed = ", ".join(f"{count} {status}" for status, count in counts.items())
    flops = pd.to_numeric(runs.get("own_flops"), errors="coerce").sum()
    return f"{len(runs)} runs ({escape(listed)}), {flops:.2g} training FLOPs in all".replace("e+", "e")


def _runs_section(runs: pd.DataFrame) -> Section:
    runs = described(runs.assign(tokens_per_parameter=pd.to_numeric(runs["D"]) / runs["N"]))
    order = ["N", "total_tokens", "D", "schedule", "ramp", "batch_size", "peak_lr", "seed"]
    runs = runs.sort_values([name for name in order if name in runs])
    one_size = runs["N"].nunique() == 1
    said_once = ("N", "tokens_per_parameter") if one_size else ()
    known = [name for name in results(runs) if name not in said_once]
    branches = has_branches(runs)
    asked, got = [name for name in known if name in _ASKED], [name for name in known if name not in _ASKED]
    varying = choices(runs)
    rows = []
    for _, run in runs.iterrows():
        cells = [Cell(str(run["run_id"])), Cell(str(run["status"]))]
        cells += [Cell(*cell(run["parent"]))] if branches else []
        cells += [Cell(*shown(run, name)) for name in asked]
        cells += [Cell(*cell(run[name])) for name in varying]
        cells += [Cell(*shown(run, name)) for name in got]
        rows.append(cells)
    parent = ["parent"] if branches else []
    header = ["run", "status", *parent, *map(heading, asked), *varying, *map(heading, got)]
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
    completed = runs[runs["status"] == "completed"]
    if unigram is None or "eval_loss" not in completed or completed["eval_loss"].isna().all():
        return []
    losses = completed["eval_loss"].astype(float)
    worst = f"the worst held-out loss is {losses.max():.3f} nats against a unigram entropy of {unigram:.3f}"
    idle = int((losses >= unigram).sum())
    if idle:
        return [f"{idle} of {len(losses)} models learned no more than token frequencies: {worst}; they bend any law."]
    return [f"Every model learned: {worst}."]


def _curves_section(records: Records, no_curves: str) -> Section:
    title = "Loss curves"
    if no_curves:
        return Section([], [section(title, paragraph(f"No curves: {escape(no_curves)}"))])
    runs = described(records.runs)
    by = _coloured_by(runs)
    beside = f" and against {figures.BESIDE[by][1]}" if by in figures.BESIDE else ""
    drawn = Figure(
        "curves",
        figures.curves(runs, records.curves, _unigram(runs), by),
        f"Loss against training tokens{beside}, coloured by {by.replace('_', ' ')}. Lines: training loss, averaged "
        "within narrow bins of log tokens. Points: loss on the fixed held-out set, as measured. "
        "The first steps, below 2 % of the smallest run, are not drawn.",
    )
    return Section([], [section(title, figure(drawn))], [drawn])


def _coloured_by(runs: pd.DataFrame) -> str:
    """The column that tells the curves apart: N, or in an experiment of one size what else was varied."""
    for name in ("N", "schedule", "ramp", "batch_size", "peak_lr"):
        if name in runs and runs[name].nunique() > 1:
            return name
    return "N"


SECTIONS: dict[str, Callable[[Records], Section]] = {
    "chinchilla": chinchilla,
    "seesaw": seesaw,
    "schedules": schedules,
}
