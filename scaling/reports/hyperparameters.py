"""The hyperparameter part of a report: best rate, batch and weight decay, their laws, and what published laws say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from scaling import hyperparameters as found_by
from scaling.hyperparameters import Best, FittedLaw, Found, rate_of
from scaling.laws import OptimalTimescale, StepLawBatch
from scaling.reports import figures_hyperparameters as figures
from scaling.reports.answers_hyperparameters import answers, horizon_law, law_line, sharpen
from scaling.reports.page import (
    Cell,
    Constant,
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
from scaling.wording import plain, plain_value, short, three

_TITLE = "Learning rate, batch size and weight decay"
_HOW = (
    "Runs that are equal in all but the setting in question are one group. Near its lowest loss (within 3 %, or beside "
    "it in the grid) a quadratic in logarithms of the setting is fitted, robustly; the best value is where it is least "
    "among the values that were run, with a 90 % interval from the scatter of the runs about it, of the seeds' means "
    "where these scatter by more, and of a cubic term where five values allow one. An optimum at an end "
    "of the grid, or one whose interval spans it, is told as such and enters no law. B is the batch in tokens, D the "
    "budget in tokens, N the parameters without embedding and head; tau = B / (rate x weight decay x D) is the "
    "timescale of AdamW's average of weights as a share of the run."
)


def hyperparameters(records: Records) -> Section:
    """Best rate, batch and weight decay of the runs with intervals, their laws over N and D, and what would sharpen."""
    try:
        runs, notes = found_by.prepared(records.runs)
    except ValueError as error:
        return _nothing(str(error))
    parts = found_by.find(runs)
    if not parts:
        return _nothing("no three rates, nor three weight decays, were run with all else equal.")
    main = max(parts, key=lambda name: (len(parts[name].surfaces), len(parts[name].lines), name))
    lines, surfaces, decays = (
        [one for part in parts.values() for one in getattr(part, kind)] for kind in ("lines", "surfaces", "decays")
    )
    whole = Found(lines, surfaces, decays, {})
    wanted = sharpen(whole)
    drawn = _figures(parts, main)
    blocks = [paragraph(_HOW), listing(notes), *(figure(one) for one in drawn), *_tables(whole, len(parts) > 1)]
    blocks += [paragraph("What would sharpen it:"), listing(wanted)] if wanted else []
    laws = {name: law for name, law in parts[main].laws.items() if isinstance(law, FittedLaw)}
    numbers = {
        "settings": {name: _numbers(part) for name, part in parts.items()},
        "main": main,
        "sequence_length": int(pd.to_numeric(runs["sequence_length"]).mode()[0]),
        "notes": notes,
        "sharpen": wanted,
    }
    said = answers(parts, main) + ([f"To sharpen it: {escape(wanted[0])}"] if wanted else [])
    constants = [constant for name, law in laws.items() for constant in _constants(name, law)]
    line = "\n".join(law_line(law) for law in laws.values())
    return Section(said, [section(_TITLE, *blocks)], drawn, numbers, line, constants)


def _nothing(why: str) -> Section:
    said = f"No best rate, batch or weight decay was found: {escape(why)}"
    return Section([said], [section(_TITLE, paragraph(said))])


# ---------------------------------------------------------------------------------------------------- tables, figures


def _tables(whole: Found, several: bool) -> list[str]:
    blocks = []
    if whole.surfaces:
        header = [*_heads(several), "best rate", "90 % interval", "rate", "best batch B", "90 % interval", "batch"]
        rows = []
        for one in whole.surfaces:
            rate, low, high, _ = rate_of(one)
            cells = [number(rate), interval(low, high, three), Cell(one.found.verdict["relative"])]
            cells += [Cell(short(one.found.best["batch"]), one.found.best["batch"])]
            cells += [
                interval(one.found.low["batch"], one.found.high["batch"], short),
                Cell(one.found.verdict["batch"]),
            ]
            rows.append([*_where(one, several), *cells, *_quality(one)])
        blocks += [paragraph("Rate and batch together:"), table([*header, *_QUALITY], rows, sortable=True)]
    for title, name, found in (
        ("The best rate at each batch:", "peak_lr", whole.lines),
        ("The best timescale of weight decay:", "tau", whole.decays),
    ):
        header = [*_heads(several), "batch B", "best", "90 % interval", "verdict", "rise at x2 (nats)"]
        rows = []
        for one in found:
            cells = [Cell(short(one.where["batch"]), one.where["batch"]), number(one.found.best[name])]
            cells += [interval(one.found.low[name], one.found.high[name], three), Cell(one.found.verdict[name])]
            rows.append([*_where(one, several), *cells, number(one.found.rise[name], ".4f"), *_quality(one)])
        if rows:
            blocks += [paragraph(title), table([*header, *_QUALITY], rows, sortable=True)]
    return blocks


_QUALITY = ["loss there", "scatter (nats)", "runs fitted", "of", "diverged", "seeds"]


def _quality(one: Best) -> list[Cell]:
    found = one.found
    counts = (found.fitted, found.runs, found.diverged, found.seeds)
    return [number(found.loss, ".4f"), number(found.noise, ".4f"), *(Cell(str(n), float(n)) for n in counts)]


def _heads(several: bool) -> list[str]:
    return [*(["setting"] if several else []), "N", "tokens D"]


def _where(one: Best, several: bool) -> list[Cell]:
    named = [Cell(str(one.where["setting"]))] if several else []
    return [*named, *(Cell(short(one.where[name]), float(one.where[name])) for name in ("N", "D"))]


def _constants(name: str, law: FittedLaw) -> list[Constant]:
    """The exponents with their intervals, and k, whose own interval says nothing."""
    title = name.replace("_", " ")
    made = [Constant(title, "k", law.params["k"], np.nan, np.nan)]
    return made + [Constant(title, key, law.params[key], *ends) for key, ends in law.intervals.items()]


def _numbers(part: Found) -> dict[str, Any]:
    def told(one: Best) -> dict[str, Any]:
        found = one.found
        return plain(one.where) | {
            "best": plain(found.best), "low": plain(found.low), "high": plain(found.high), "verdict": found.verdict,
            "rise": plain(found.rise), **plain({"loss": found.loss, "noise": found.noise}), "fitted": found.fitted,
            "runs": sorted(map(str, one.runs["run_id"])), "diverged": found.diverged,
        }  # fmt: skip

    return {
        "laws": {name: law if isinstance(law, str) else law.numbers() for name, law in part.laws.items()},
        "lines": [told(one) for one in part.lines],
        "surfaces": [
            told(one) | dict(zip(("rate", "rate_low", "rate_high"), map(plain_value, rate_of(one)), strict=False))
            for one in part.surfaces
        ],
        "decays": [told(one) for one in part.decays],
    }  # fmt: skip


def _ids(found: Sequence[Best]) -> list[str]:
    return sorted({str(run) for one in found for run in one.runs["run_id"]})


def _line_of(law: FittedLaw | str | None) -> str:
    return law_line(law) if isinstance(law, FittedLaw) else law or ""


def _fitted(law: FittedLaw | str | None) -> FittedLaw | None:
    return law if isinstance(law, FittedLaw) else None


def _wanted(lines: Sequence[Best] = (), surfaces: Sequence[Best] = (), decays: Sequence[Best] = ()) -> str:
    """What would sharpen a figure of these."""
    return next(iter(sharpen(Found([*lines], [*surfaces], [*decays], {}))), "more seeds.")


def _figures(parts: dict[str, Found], main: str) -> list[Figure]:
    part, drawn = parts[main], []
    laws = part.laws
    if part.surfaces:
        drawn.append(
            Figure(
                "hyperparameters_surfaces",
                figures.surfaces(part.surfaces),
                "Held-out loss against peak rate, a colour per batch B (tokens), a panel per N and D. Points: runs "
                "(means over seeds); lines: the quadratic in both logarithms, fitted to those near the lowest; cross: "
                "its optimum, with the 90 % interval of the rate. Losses far above the lowest are not drawn.",
                _ids(part.surfaces),
                _line_of(laws["best_rate"]),
                _wanted(surfaces=part.surfaces),
            )
        )
        drawn.append(
            Figure(
                "hyperparameters_batch",
                figures.best_batches(part.surfaces, _fitted(laws["best_batch"]), StepLawBatch()),
                "Best batch against tokens with 90 % intervals, cut where the grid ends. Hollow: not bracketed. Line: "
                "the law, where there is one; dashed: Step Law as reviews quote it, far outside its own range here.",
                _ids(part.surfaces),
                _line_of(laws["best_batch"]),
                _wanted(surfaces=part.surfaces),
            )
        )
    if part.lines:
        drawn.append(
            Figure(
                "hyperparameters_rates",
                figures.rates(part.lines, _fitted(laws["rate"])),
                "Best peak rate at each batch with 90 % intervals. Hollow: the interval reaches an end of the rates "
                "that were run, or the optimum does; the latter enter no law. Lines: the law.",
                _ids(part.lines),
                _line_of(laws["rate"]),
                _wanted(lines=part.lines),
            )
        )
    if part.decays:
        drawn.append(
            Figure(
                "hyperparameters_decay",
                figures.timescales(part.decays, _fitted(laws["timescale"]), OptimalTimescale()),
                "Left: loss above the lowest of each line against the timescale, means over seeds. Right: the best "
                "timescale with 90 % intervals against tokens per parameter; dashed: Power Lines, recalled. Hollow: "
                "not bracketed.",
                _ids(part.decays),
                _line_of(laws["timescale"]),
                _wanted(decays=part.decays),
            )
        )
    horizons = {}
    for name, each in parts.items():
        found = horizon_law(each.lines)
        if found is not None:
            horizons[name or "standard"] = found
    if horizons:
        used = {name: lines for name, (_, lines) in horizons.items()}
        drawn.append(
            Figure(
                "hyperparameters_horizon",
                figures.horizons(used),
                "Best peak rate against tokens at one size and batch, in units of the best one on the fewest tokens, "
                "with 90 % intervals.",
                _ids([one for lines in used.values() for one in lines]),
                "; ".join(f"{name}: {law_line(law)}" for name, (law, _) in horizons.items()),
                _wanted([one for lines in used.values() for one in lines]),
            )
        )
    return drawn
