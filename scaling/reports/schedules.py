"""The schedules part of a report: which learning-rate schedule ends lowest at each budget, and by how much."""

from __future__ import annotations

import numpy as np
import pandas as pd

from scaling.compare_schedules import PLACE, Ranking, rank, results_at
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
from scaling.wording import DASH, between, plain, short, signed

_RULE = (
    "A schedule is told apart from the best when the 95 % t-interval of its excess, paired by seed, leaves zero out; "
    f"with fewer than {ENOUGH} pairs of seeds there is no verdict."
)


def schedules(records: Records) -> Section:
    """Every schedule at every budget at its best peak rate: final loss, seed spread, rank, best weight average."""
    title = "Learning-rate schedules"
    try:
        ranking = rank(records.runs, records.curves)
    except ValueError as error:
        said = f"No schedules were compared: {escape(str(error))}"
        return Section([said], [section(title, paragraph(said))])
    drawn = _figures(ranking, records.curves)
    rows = ranking.rows
    text = (
        "Every schedule stands at the peak rate whose mean held-out loss over seeds is lowest, among the rates with "
        f"the most completed seeds. {_RULE} Excess is the mean loss above that of the best schedule of the same "
        "budget. The best is the lowest of several means, picked on the same seeds, so its lead is slightly "
        "optimistic. Peak rates are chosen on the held-out set that the losses are measured on, for all schedules "
        "alike."
    )
    blocks = [paragraph(text), _table(rows)]
    if rows["average"].notna().any():
        blocks.append(
            paragraph(
                "An average of the weights is shown where its loss is below the last iterate's. It is the best of "
                "several averages and peak rates, chosen on the same held-out set, so its loss is slightly too "
                "favourable; ranks are those of the last iterates."
            )
        )
    blocks += [paragraph(cost) for cost in _costs(rows)]
    if not ranking.overall.empty and len(rows[PLACE].drop_duplicates()) > 1:
        blocks += [
            paragraph(f"Over all {_places(rows)}, the schedules that have a result at each:"),
            _overall(ranking.overall),
        ]
    body = [*blocks, listing(ranking.notes), *(figure(one) for one in drawn)]
    numbers = {
        "rule": _RULE,
        "schedules": [plain(row) for row in rows.to_dict("records")],
        "overall": [plain(row) for row in ranking.overall.to_dict("records")],
        "notes": list(ranking.notes),
    }
    return Section(_answers(ranking), [section(title, *body)], drawn, numbers)


# ---------------------------------------------------------------------------------------------------- sentences


def _answers(ranking: Ranking) -> list[str]:
    rows = ranking.rows
    answers = [_best(group, rows) for _, group in rows.groupby(PLACE)]
    first = ranking.overall.head(3)
    if len(rows[PLACE].drop_duplicates()) > 1 and len(first) > 1:
        listed = ", ".join(f"{escape(row['schedule'])} ({row['rank']:.1f})" for _, row in first.iterrows())
        answers.append(f"Over all {_places(rows)} the best mean ranks are those of {listed}.")
    edges = rows[rows["edge"].isin(["lowest", "highest"])]
    if len(edges):
        names = ", ".join(escape(name) for name in sorted(edges["schedule"].unique()))
        answers.append(
            f"In {len(edges)} of {len(rows)} cases the best peak rate lies at an end of the rates that were run "
            f"({names}): these schedules may do better than shown."
        )
    averaged = rows[rows["average"].notna()]
    if len(averaged):
        gains = averaged.assign(gain=averaged["loss"] - averaged["average_loss"])
        most = gains.sort_values(["gain", "schedule"]).iloc[-1]
        answers.append(
            f"In {len(averaged)} of {len(rows)} cases an average of the weights ends below the last iterate; most for "
            f"{escape(most['schedule'])} at {short(most['total_tokens'])} tokens: {most['average_loss']:.4f} "
            f"({escape(most['average'])}) against {most['loss']:.4f}."
        )
    return answers


def _places(rows: pd.DataFrame) -> str:
    """What the rankings differ in: budgets, or sizes, budgets and settings."""
    words = {"N": "sizes", "total_tokens": "budgets", "setting": "settings"}
    *most, last = (words[name] for name in PLACE if rows[name].nunique() > 1)
    return f"{', '.join(most)} and {last}" if most else last


def _best(group: pd.DataFrame, rows: pd.DataFrame) -> str:
    """Which schedule ends lowest at one budget, and which the seeds cannot tell from it."""
    best, others = group.iloc[0], group.iloc[1:]
    size = f", N = {short(best['N'])}" if rows["N"].nunique() > 1 else ""
    size += f", {escape(best['setting'])}," if best["setting"] else ""
    spread = f"seed spread {best['spread']:.4f}, {best['seeds']} seeds"
    if not np.isfinite(best["spread"]):
        spread = "one seed: no spread"
    sentence = (
        f"At {short(best['total_tokens'])} tokens{size} <b>{escape(best['schedule'])}</b> ends lowest"
        f"{f' of {len(group)}' if len(others) else ''}: {best['loss']:.4f} ({spread})."
    )
    if others.empty:
        return sentence + _lower_average(group, best)
    known = others[others["told_apart"].notna()]
    if known.empty:
        after = others.iloc[0]
        return (
            f"{sentence} Next is {escape(after['schedule'])}, {after['excess']:.4f} above it; with fewer than {ENOUGH} "
            f"seeds nothing is told apart.{_lower_average(group, best)}"
        )
    apart = known[known["told_apart"].eq(True)]
    alike = known.drop(apart.index)
    if len(alike):
        names = ", ".join(f"{escape(row['schedule'])} ({signed(row['excess'])})" for _, row in alike.iterrows())
        sentence += f" Not told apart from it by the seeds: {names}."
    if len(apart):
        after = apart.iloc[0]
        sentence += f" The nearest that is told apart is {escape(after['schedule'])}, {after['excess']:.4f} above it"
        sentence += f" (95 % interval {between(after['excess_low'], after['excess_high'], signed)})."
    if len(known) < len(others):
        names = ", ".join(escape(name) for name in others.drop(known.index)["schedule"])
        sentence += f" No verdict, for too few seeds: {names}."
    return sentence + _lower_average(group, best)


def _lower_average(group: pd.DataFrame, best: pd.Series) -> str:
    """The lowest average of weights, where it is below every last iterate."""
    averaged = group[group["average_loss"] < best["loss"]].sort_values(["average_loss", "schedule"])
    if averaged.empty:
        return ""
    lowest = averaged.iloc[0]
    return (
        f" Lower than any last iterate is an average of weights: {lowest['average_loss']:.4f}, "
        f"{escape(lowest['average'])} of {escape(lowest['schedule'])} (the best of {lowest['average_candidates']})."
    )


def _costs(rows: pd.DataFrame) -> list[str]:
    """What schedules that are one run with several budgets cost, beside independent runs."""
    sentences = []
    for (*_, name), group in rows[rows["single_run"]].groupby(["N", "setting", "schedule"]):
        budgets = sorted(group["total_tokens"])
        sentences.append(
            f"{escape(name)} is one run: its loss is read off at each of its {len(budgets)} budgets, at the peak rate "
            f"that is best at the last. It costs {short(budgets[-1])} tokens per seed, where independent runs of these "
            f"budgets take {short(sum(budgets))}."
        )
    return sentences


# ---------------------------------------------------------------------------------------------------- tables, figures


def _table(rows: pd.DataFrame) -> str:
    sizes = ["N"] if rows["N"].nunique() > 1 else []
    settings = ["setting"] if rows["setting"].nunique() > 1 else []
    averages = rows["average"].notna().any()
    header = [
        *sizes,
        "tokens D",
        *settings,
        "rank",
        "schedule",
        "peak rate",
        "rates that were run",
        "seeds",
        "final loss",
        "seed spread",
    ]
    intervals = rows["excess_low"].notna().any()
    header += ["excess", *(["95 % interval"] if intervals else []), "told from the best"]
    header += ["best average", "its loss", "its spread", "best of"] if averages else []
    lines = []
    for _, row in rows.iterrows():
        edge = {"only": "the only one", "lowest": "lowest", "highest": "highest"}.get(row["edge"], "")
        among = between(row["peak_lrs"][0], row["peak_lrs"][-1], lambda x: f"{x:.3g}")
        cells = [Cell(short(row[name]), row[name]) for name in (*sizes, "total_tokens")]
        cells += [Cell(str(row[name])) for name in settings]
        cells += [Cell(str(row["rank"]), float(row["rank"])), Cell(row["schedule"]), number(row["peak_lr"], ".3g")]
        cells += [Cell(f"{edge} of {among}" if edge in ("lowest", "highest") else edge or among)]
        cells += [Cell(str(row["seeds"]), float(row["seeds"])), number(row["loss"], ".4f")]
        cells += [number(row["spread"], ".4f"), number(row["excess"], ".4f")]
        cells += [interval(row["excess_low"], row["excess_high"], signed)] if intervals else []
        cells += [Cell(_told(row))]
        if averages and pd.notna(row["average"]):
            cells += [Cell(f"{row['average']} at {row['average_peak_lr']:.3g}"), number(row["average_loss"], ".4f")]
            cells += [number(row["average_spread"], ".4f"), number(row["average_candidates"], ".0f")]
        elif averages:
            cells += [Cell(DASH)] * 4
        lines.append(cells)
    return table(header, lines, sortable=True)


def _told(row: pd.Series) -> str:
    """Whether the seeds tell a schedule from the best."""
    if row["rank"] == 1:
        return "best"
    return {True: "yes", False: "no"}.get(row["told_apart"], "too few seeds")


def _overall(overall: pd.DataFrame) -> str:
    rows = [
        [Cell(row["schedule"]), number(row["rank"], ".2f"), number(row["excess"], ".4f")]
        for _, row in overall.iterrows()
    ]
    return table(["schedule", "mean rank", "mean excess"], rows)


def _figures(ranking: Ranking, curves: pd.DataFrame) -> list[Figure]:
    """The figures of the largest N and of its setting with the most results."""
    rows = ranking.rows[ranking.rows["N"] == ranking.rows["N"].max()]
    setting = rows["setting"].value_counts().sort_index().idxmax()
    rows = rows[rows["setting"] == setting]
    of = f" (N = {short(rows['N'].iloc[0])}{f', {escape(setting)}' if setting else ''})"
    order = list(rows.groupby("schedule")["excess"].mean().sort_values(kind="stable").index)
    seeds = pd.concat([results_at(ranking.results, row) for _, row in rows.iterrows()])
    drawn = [
        Figure(
            "schedules_rank",
            figures_optim.schedule_ranks(rows, seeds, order),
            f"Final held-out loss by schedule and budget{of}, at each schedule's best peak rate; sorted by mean excess "
            "over the best. Circles: mean over seeds of the last iterate, with one standard deviation to either side; "
            "grey lines: single seeds; diamonds: the best weight average, where it is lower (best of several).",
            list(seeds["run_id"]),
            sharpen=_sharpen(rows),
        )
    ]
    largest = rows[rows["total_tokens"] == rows["total_tokens"].max()]
    runs = pd.concat([results_at(ranking.results, row) for _, row in largest.iterrows()])
    logged = curves[curves["run_id"].isin(runs["run_id"])]
    if not logged.empty:
        budget = short(largest["total_tokens"].iloc[0])
        drawn.append(
            Figure(
                "schedules_loss",
                figures_optim.schedule_losses(runs, logged, order),
                f"Learning rate and loss at the largest budget, {budget} tokens{of}, at each schedule's best peak "
                "rate. Lines: training loss, mean over seeds within narrow bins of tokens; points: held-out loss, mean "
                "over seeds. The losses of the first tenth are not drawn.",
                list(logged["run_id"].unique()),
            )
        )
    return drawn


def _sharpen(rows: pd.DataFrame) -> str:
    """What would decide more: peak rates beyond those that were run, and seeds of what is not told from the best."""
    said = []
    for which, words in (("lowest", "lower"), ("highest", "higher"), ("only", "other")):
        names = sorted(rows.loc[rows["edge"] == which, "schedule"].unique())
        said += [f"{words} peak rates for {', '.join(names)}"] if names else []
    close = rows[(rows["rank"] > 1) & ~rows["told_apart"].eq(True)]
    names = sorted(close["schedule"].unique())
    said += [f"more seeds of the best and of {', '.join(names)}, which they do not tell apart"] if names else []
    return f"{'; '.join(said)}." if said else ""
