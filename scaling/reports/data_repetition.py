"""The repeated-data part of a report: what repetition costs, what a repeated token is worth, how often to repeat."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from scaling.allocate import family
from scaling.fit import Fit, Huber, fit
from scaling.intervals import Profile
from scaling.laws import DataConstrained
from scaling.repetition import OVERFIT, Best, best_epochs, equivalent, repeated, turning, worth
from scaling.reports import figures_repetition
from scaling.reports.chinchilla import law_line
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
from scaling.wording import DASH, between, flops, hundredth, plain, short, three

_TITLE = "Repeated data"
_AT = (4, 16)  # epochs at which a repeated token's worth is told
_BUDGETS = (1.0, 10.0)  # times the largest that was run, for the best number of epochs
_TEXT = (
    "U is the number of distinct tokens that a run may see, D those that it trains on; D / U are its epochs. "
    "The law (Muennighoff et al. 2023) replaces D by U + U R_D* (1 - e^(-R / R_D*)) with R = epochs - 1: R_D* "
    "is the number of repetitions after which another one is worth 1/e of fresh tokens, and R_N* is the same "
    "for parameters beyond the best size for U. It knows no overfitting, its loss never rises with epochs: so "
    f"it is fitted without the runs whose held-out loss ends more than {OVERFIT:g} nats above its lowest on the "
    "way, and tells the worth of repetition that stops in time. The excess is the held-out loss above that of "
    "the runs with the same size and tokens that do not repeat; the worth by interpolation uses no law: it "
    "reads off how many fresh tokens reach the same loss, so it also holds what a model too large for U loses."
)


@dataclass(frozen=True)
class _Law:
    """The fitted law, the profile of R_D*, what it says of the largest U, and R_D* as published; `with_all`: R_D* of a
    fit that takes the overfitted runs too (nan where there are none)."""

    fitted: Fit
    with_all: float
    profile: Profile
    best: list[Best]
    distinct: float
    published: float
    source: str


def data_repetition(records: Records) -> Section:
    """Loss against epochs, the data-constrained law with R_D*, the worth of a repeated token, the best epochs."""
    try:
        rows = equivalent(repeated(records.runs, records.curves))
    except ValueError as error:
        said = f"Repetition was not measured: {escape(str(error))}"
        return Section([said], [section(_TITLE, paragraph(said))])
    turns, law, notes = turning(rows), None, []
    try:
        law = _law(records, rows)
        notes += law.fitted.warnings
    except ValueError as error:
        notes.append(f"No data-constrained law was fitted: {error}")
    about: dict[str, Any] = {"data": list(rows["run_id"]), "law": law_line(law.fitted) if law else ""}
    about["sharpen"] = sharpen = _sharpen(rows, law)
    drawn = [
        Figure(
            "repetition_loss",
            figures_repetition.losses(rows, law.fitted if law else None),
            f"Final held-out loss (filled) and training loss (hollow) against epochs, a colour for each number of "
            f"distinct tokens U; {len(rows)} runs. Left of one epoch not all tokens were seen. Lines: the law."
            if law
            else f"Final held-out (filled) and training loss (hollow) against epochs; {len(rows)} runs.",
            **about,
        )
    ]
    if law:
        drawn += [
            Figure(
                "repetition_worth",
                figures_repetition.worths(rows, law.fitted, law.published),
                "What a repeated token was worth, in fresh ones, on average over all repetitions. Line: the law, with "
                "its 90 % interval; dashed: the published R_D*; points: by interpolation between runs that do not "
                "repeat, without the law (below 0: repetition did harm).",
                **about,
            ),
            Figure(
                "repetition_profile",
                figures_repetition.profile(law.profile, law.published),
                "The objective with R_D* held at each value and all else refitted. Dashed: the level below which a "
                "value belongs to the 90 % interval; grey: the published R_D*.",
                **about,
            ),
        ]
    blocks = [paragraph(escape(_TEXT)), figure(drawn[0]), _turns_table(turns), _rows_table(rows)]
    blocks += [*(_law_blocks(law) if law else []), *(figure(one) for one in drawn[1:]), listing(notes)]
    answers = [*_measured(rows, turns), *(_of_law(law, rows) if law else notes[-1:])]
    answers.append(f"What would sharpen it: {escape(sharpen)}")
    numbers = {
        "rows": [plain(row) for row in rows.to_dict("records")],
        "best_measured": [plain(row) for row in turns.to_dict("records")],
        "law": _law_numbers(law) if law else None,
        "notes": notes,
    }
    constants = constants_of(law.fitted) if law else []
    line = law_line(law.fitted) if law else ""
    return Section(answers, [section(_TITLE, *blocks)], drawn, numbers, line, constants)


def _law(records: Records, rows: pd.DataFrame) -> _Law:
    settings, law = records.settings, DataConstrained()
    runs = records.runs.assign(U=pd.to_numeric(records.runs["unique_tokens"], errors="coerce"))
    over, with_all = set(rows.loc[rows["overfits"], "run_id"]), np.nan
    fitted = fit(law, runs[~runs["run_id"].isin(over)], Huber(settings.huber), settings.starts, settings.seed)
    fitted = fitted.bootstrap(settings.bootstrap, settings.seed)
    if over:
        with_all = fit(law, runs, Huber(settings.huber), settings.starts, settings.seed).params["R_D"]
    distinct = float(rows.loc[rows["epochs"] > 1, "U"].max())
    along, largest = family(rows), float(fitted.rows.table["C"].max())
    best = [best_epochs(fitted, distinct, times * largest, along) for times in _BUDGETS]
    reference = law.references[0]
    return _Law(fitted, with_all, fitted.profile("R_D"), best, distinct, reference.params["R_D"], reference.source)


# ---------------------------------------------------------------------------------------------------- sentences


def _measured(rows: pd.DataFrame, turns: pd.DataFrame) -> list[str]:
    """What the runs say without a law."""
    answers = []
    for epochs in _AT:
        at = rows[np.isclose(rows["epochs"], epochs, rtol=0.02) & rows["excess"].notna()]
        if len(at):
            known = at["worth"].dropna()
            valued = (
                f", as if a repeated token were worth {_range(known, hundredth)} of a fresh one "
                f"({len(known)} of {_runs(len(at))} could be read off)"
                if len(known)
                else "; none could be read off as fresh tokens"
            )
            answers.append(
                f"After {epochs} epochs the held-out loss differs from that of as many fresh tokens by "
                f"{_range(at['excess'], _signed)} nats "
                f"(median {_signed(at['excess'].median())}, {_runs(len(at))}){valued}."
            )
    over, again = rows[rows["overfits"]], rows[rows["epochs"] > 1]
    if len(over):
        worst = over.loc[over["rise"].idxmax()]
        answers.append(
            f"{len(over)} of {len(again)} runs that repeat overfit: their held-out loss ends more than {OVERFIT:g} "
            f"nats above its lowest, by up to {worst['rise']:.2f} ({short(worst['N'])} parameters, {short(worst['U'])} "
            f"distinct tokens, {_count(worst['epochs'])} epochs: {worst['loss']:.3f} held out, "
            f"{worst['train_loss']:.3f} in training); the fewest epochs of them are {_count(over['epochs'].min())}."
        )
    else:
        answers.append(
            f"No run overfitted: none ends with its held-out loss more than {OVERFIT:g} nats above the lowest on its "
            "way."
        )
    ends = turns[~turns["more"].astype(bool)] if len(turns) else turns
    if len(ends):
        listed = "; ".join(
            f"{_count(row['epochs'])} of {_count(row['most'])} for {short(row['N'])} parameters on {short(row['U'])}"
            for _, row in ends.iterrows()
        )
        answers.append(f"Final losses are lowest before the most epochs that were run: {listed} distinct tokens.")
    return answers


def _of_law(law: _Law, rows: pd.DataFrame) -> list[str]:
    fitted, ends = law.fitted, law.profile
    lasting, doubt = fitted.params["R_D"], fitted.unidentified.get("R_D")
    low, high = fitted.intervals()["R_D"]
    said = (
        f"The law over {len(fitted.rows.table)} runs has <b>R_D* = {three(lasting)}</b> (90 % interval "
        f"{between(low, high)} by bootstrap, {_end(ends.low)} to {_end(ends.high)} by profile), beside "
        f"{three(law.published)} published; it misses its runs by {fitted.residual_rms:.2%} (rms)."
    )
    if np.isfinite(law.with_all):
        said += f" Overfitted runs are left out of it; with them R_D* would be {three(law.with_all)}."
    if doubt:
        said += f" R_D* is not pinned down: {math(doubt)}"
    answers = [said]
    parts = []
    drawn = fitted.replicates["R_D"]
    for epochs in _AT:
        mean, nxt = worth(lasting, epochs)
        of_mean, of_next = (_ends(values) for values in worth(drawn, epochs))
        theirs, theirs_next = worth(law.published, epochs)
        parts.append(
            f"after {epochs} epochs a repeated token was worth {mean:.2f} ({of_mean}) of a fresh one on average and "
            f"the next one {nxt:.2f} ({of_next}), where the published R_D* says {theirs:.2f} and {theirs_next:.2f}"
        )
    answers.append(f"By the law{', whose R_D* these runs leave open' if doubt else ''}, {'; '.join(parts)}.")
    for best in law.best:
        one = best.table
        edge = " The best size lies at the end of the search in most refits." if best.edge else ""
        largest = float(fitted.rows.table["C"].max())
        beyond = ", an extrapolation" if best.C / largest > 1.001 else ""
        answers.append(
            f"For {short(law.distinct)} distinct tokens, the most that were repeated, and {flops(best.C)} "
            f"FLOPs{beyond}, the law's best is <b>{_count(one['epochs'])} epochs</b> "
            f"({between(one['epochs_low'], one['epochs_high'], _count)}) on {short(one['N'])} parameters "
            f"({between(one['N_low'], one['N_high'], short)}).{edge}"
        )
    return answers


def _sharpen(rows: pd.DataFrame, law: _Law | None) -> str:
    once = rows[rows["epochs"] <= 1]
    advice = []
    if law and not np.isfinite(law.profile.high):
        most = rows["epochs"].max()
        advice.append(f"runs of more than {_count(most)} epochs bound R_D* above")
    if rows["worth"].isna().sum() > (rows["epochs"] <= 1).sum():
        fewer = short(once["D"].min())
        advice.append(f"fresh-token runs of fewer than {fewer} tokens let more losses be read off as fresh tokens")
    if "seed" not in rows or rows["seed"].nunique() < 3:
        advice.append("three seeds a point tell small excesses from noise (seed=0,1,2)")
    advice.append("a larger set of distinct tokens at the same epochs shows whether R_D* depends on scale")
    return "; ".join(advice) + "."


def _range(values: pd.Series, shown: Callable[[float], str]) -> str:
    """The least to the greatest, or the only one."""
    low, high = shown(values.min()), shown(values.max())
    return low if low == high else f"{low} to {high}"


def _runs(count: int) -> str:
    return f"{count} run{'s' if count != 1 else ''}"


def _signed(value: float) -> str:
    return f"{value:+.3f}"


def _ends(drawn: np.ndarray) -> str:
    """The 90 % interval of replicates."""
    low, high = np.percentile(drawn, (5, 95))
    return between(low, high, hundredth)


def _count(value: float) -> str:
    return f"{value:.0f}" if value >= 9.95 else f"{value:.1f}"


def _end(value: float) -> str:
    return "without bound" if not np.isfinite(value) else three(value)


# ---------------------------------------------------------------------------------------------------- tables


def _rows_table(rows: pd.DataFrame) -> str:
    lines = [
        [
            Cell(short(row["N"]), row["N"]),
            Cell(short(row["U"]), row["U"]),
            Cell(short(row["D"]), row["D"]),
            Cell(three(row["epochs"]), row["epochs"]),
            Cell(f"{row['loss']:.4f}", row["loss"]),
            Cell(f"{row['train_loss']:.4f}", row["train_loss"]),
            _number(row["excess"] if row["epochs"] > 1 else np.nan, "+.4f"),
            _number(row["fresh"] if row["epochs"] > 1 else np.nan, ""),
            _number(row["worth"], ".2f"),
            Cell(f"{row['rise']:.3f}", row["rise"]),
        ]
        for _, row in rows.iterrows()
    ]
    header = ["N", "U", "tokens D", "epochs", "held-out loss", "training loss", "excess", "as fresh tokens", "worth"]
    header += ["held-out loss above its lowest"]
    return table(header, lines, sortable=True)


def _number(value: float, form: str) -> Cell:
    if not np.isfinite(value):
        return Cell(DASH)
    return Cell(format(value, form) if form else short(value), float(value))


def _turns_table(turns: pd.DataFrame) -> str:
    if not len(turns):
        return ""
    lines = [
        [
            Cell(short(row["N"]), row["N"]),
            Cell(short(row["U"]), row["U"]),
            Cell(f"{_count(row['epochs'])}{' (the most that were run)' if row['more'] else ''}", row["epochs"]),
            Cell(f"{row['loss']:.4f}", row["loss"]),
            Cell(_count(row["most"]), row["most"]),
            Cell(f"{row['loss_at_most']:.4f}", row["loss_at_most"]),
            Cell(f"{row['gap_at_most']:+.3f}", row["gap_at_most"]),
        ]
        for _, row in turns.iterrows()
    ]
    header = ["N", "U", "best epochs", "its loss", "most epochs", "their loss", "held-out minus training"]
    return table(header, lines)


def _law_blocks(law: _Law) -> list[str]:
    fitted = law.fitted
    ends, doubts = fitted.intervals(), fitted.unidentified
    published = fitted.law.references[0].params
    rows = [
        [
            Cell(p.name),
            Cell(f"{fitted.params[p.name]:.4g}", fitted.params[p.name]),
            interval(*ends[p.name]),
            Cell(f"{published[p.name]:.4g}", published[p.name]),
            Cell(p.meaning),
            Cell("not pinned down" if p.name in doubts else ""),
        ]
        for p in fitted.law.parameters
    ]
    text = (
        f"{fitted.agreement:.0%} of {fitted.starts} random starts end at the same optimum. Published constants: "
        f"{law.source}; E, A and B count other tokens of other text and do not compare."
    )
    header = ["parameter", "value", "90 % interval", "published", "meaning", ""]
    return [f'<p class="equation">{math(fitted.law.formula)}</p>', table(header, rows), paragraph(escape(text))]


def _law_numbers(law: _Law) -> dict[str, Any]:
    fitted = law.fitted
    return {
        "params": fitted.params,
        "intervals": fitted.intervals(),
        "profile_R_D": [plain({"end": x})["end"] for x in (law.profile.low, law.profile.high)],
        "published_R_D": law.published,
        "R_D_with_overfitted_runs": None if np.isnan(law.with_all) else law.with_all,
        "not_pinned_down": fitted.unidentified,
        "best": [{"C": best.C, "U": law.distinct, **plain(best.table.to_dict())} for best in law.best],
    }
