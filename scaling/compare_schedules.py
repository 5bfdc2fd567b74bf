"""Learning-rate schedules compared at equal budgets: each at its best peak rate, over seeds, ranked.

    runs --WSD-S read off at each of its budgets--> results --best peak rate--> one row per schedule and budget, ranked

Schedules are compared where everything else is one setting (scaling.settings); of several settings each by itself.
A result is the final held-out loss of one run at one budget, with the held-out losses of its weight averages. The
peak rate is the one of least mean loss among those with the most completed seeds. WSD-S is one run with several
budgets, so it has one rate for all of them: the best at its last.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from scaling.naming import CONSTANT_BATCH, first_batch, ramp_names, schedule_names
from scaling.seeds import ENOUGH, Seeds, over_seeds
from scaling.settings import apart, comparable, counted, why_not
from scaling.wording import short

_AVERAGE = "eval_loss_"
PLACE = ["N", "total_tokens", "setting"]  # what is ranked apart from each other


@dataclass(frozen=True)
class Ranking:
    """`rows`: a row per schedule and budget, ranked; `results`: the single results behind them; `overall`: a row per
    schedule that has a result wherever several were ranked; `notes`: what has to be said."""

    rows: pd.DataFrame
    results: pd.DataFrame
    overall: pd.DataFrame
    notes: tuple[str, ...]


def rank(runs: pd.DataFrame, curves: pd.DataFrame) -> Ranking:
    """Ranks the schedules of `runs`; `curves` has WSD-S at its earlier budgets. ValueError where nothing is to rank."""
    results, notes = _results(runs, curves)
    if not results["counts"].any():
        raise ValueError("no run of a schedule was completed with a held-out loss.")
    one_rate = _rates_of_single_runs(results)
    rows = []
    for (size, name, budget, setting), group in results.groupby(["N", "schedule", "total_tokens", "setting"]):
        row = _row(group, one_rate.get((size, name, setting)))
        if row is None:
            where = f" ({setting})" if setting else ""
            notes.append(f"{name}{where} has no completed run at {short(budget)} tokens.")
        else:
            rows.append(row)
    table = pd.DataFrame(rows)
    table["rank"] = table.groupby(PLACE)["loss"].rank(method="min").astype(int)
    table["excess"] = table["loss"] - table.groupby(PLACE)["loss"].transform("min")
    table = _against_the_best(table, results)
    table = table.sort_values([*PLACE, "rank", "schedule"], ignore_index=True)
    return Ranking(table, results, _overall(table), tuple(notes))


# ---------------------------------------------------------------------------------------------------- results


def _results(runs: pd.DataFrame, curves: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """A row per run and budget: its place, schedule, peak_lr, seed, loss, its averages, and whether it counts."""
    settings = comparable(runs)
    runs = runs.assign(schedule=_names(runs))
    runs = runs[runs["schedule"].notna()]
    if "seed" not in runs:
        runs["seed"] = 0
    averages = [str(c) for c in runs if str(c).startswith(_AVERAGE)]
    for name in ("eval_loss", "peak_lr", "seed", "total_tokens", *averages):
        runs[name] = pd.to_numeric(runs[name], errors="coerce") if name in runs else np.nan
    runs["counts"] = counted(runs)
    notes = _left_out(runs)
    kept = ["run_id", "N", "total_tokens", "schedule", "peak_lr", "seed", "counts"]
    rows: list[dict[str, object]] = []
    of_run: list[object] = []
    for index, run in runs.iterrows():
        given = run.get("schedule.budgets")
        given = given if isinstance(given, list | tuple) else []
        budgets = [float(b) for b in given if float(b) < run["total_tokens"]]  # the last is the run's own
        own = run[kept].to_dict() | {"loss": run["eval_loss"], "single_run": bool(budgets)}
        rows.append(own | run[averages].to_dict())
        if budgets:
            earlier, missing = _read_off(run, budgets, curves, runs["total_tokens"])
            rows += [own | read for read in earlier]
            notes += missing
        of_run += [index] * (len(rows) - len(of_run))
    results = pd.DataFrame(rows, columns=None if rows else [*kept, "loss", "single_run"])
    settings = settings.loc[of_run].set_axis(results.index)
    results["setting"], differing = apart(settings, [results["N"], results["total_tokens"]])
    return results, [*differing, *notes]


def _names(runs: pd.DataFrame) -> pd.Series:
    """Names of the schedules; a ramp, or one of several batch sizes, makes another one of the same schedule."""
    names, ramps, batches = schedule_names(runs), ramp_names(runs), first_batch(runs)
    ramped = ramps.notna() & ramps.ne(CONSTANT_BATCH) & names.notna()
    names = names.where(~ramped, names + ", " + ramps)
    several = batches[names.notna()].groupby([runs["N"], runs["total_tokens"]]).transform("nunique") > 1
    several = several.reindex(runs.index, fill_value=False)
    return names.where(~several, names + ", B0 = " + batches.map("{:g}".format))


def _read_off(
    run: pd.Series, budgets: list[float], curves: pd.DataFrame, known: pd.Series
) -> tuple[list[dict[str, object]], list[str]]:
    """The results of one run at its earlier budgets: its evaluation there, or within one step of there.

    A budget of other runs (`known`) within one step is the same budget: theirs are whole sequences.
    """
    logged = curves[(curves["run_id"] == run["run_id"])]
    logged = logged[logged["eval_loss"].notna()] if "eval_loss" in logged else logged.iloc[:0]
    rows: list[dict[str, object]] = []
    missing = []
    for budget in budgets:
        distance = (logged["tokens"] - budget).abs()
        step = logged["batch_size"] * run["sequence_length"] if "batch_size" in logged else 0 * distance
        if not (distance <= step).any():
            if run["counts"]:
                missing.append(f"{run['schedule']} (run {run['run_id']}) has no evaluation at {short(budget)} tokens.")
            continue
        found = logged.loc[distance.idxmin()]
        others = known.iloc[(known - budget).abs().argmin()]
        budget = float(others) if abs(others - budget) <= step.loc[found.name] else budget
        averages = found[[name for name in map(str, logged) if name.startswith(_AVERAGE)]].to_dict()
        rows.append({"total_tokens": budget, "loss": float(found["eval_loss"]), **averages})
    return rows, missing


def _left_out(runs: pd.DataFrame) -> list[str]:
    notes = []
    lost = runs[~runs["counts"]]
    for (name, budget, status), group in lost.groupby(["schedule", "total_tokens", "status"]):
        which = f"{len(group)} run{'s' if len(group) > 1 else ''} of {name} at {short(budget)} tokens"
        rates = ", ".join(f"{rate:g}" for rate in sorted(group["peak_lr"].unique()))
        notes.append(f"{which} (peak rate {rates}) not averaged: {why_not(status)}.")
    return notes


# ---------------------------------------------------------------------------------------------------- one schedule


def _rates_of_single_runs(results: pd.DataFrame) -> Mapping[tuple[float, str, str], float]:
    """The one rate of schedules that are one run with several budgets: the best at their last budget."""
    rates = {}
    for (size, name, setting), group in results[results["single_run"]].groupby(["N", "schedule", "setting"]):
        last = group[group["total_tokens"] == group["total_tokens"].max()]
        complete = _complete(last)
        if complete:
            rates[size, name, setting] = min(complete, key=lambda rate: (complete[rate].mean, rate))
    return rates


def _complete(group: pd.DataFrame, column: str = "loss") -> dict[float, Seeds]:
    """Peak rate -> statistics over seeds, for the rates with the most completed seeds."""
    by_rate = {rate: over_seeds(_by_seed(same, column)) for rate, same in group[group["counts"]].groupby("peak_lr")}
    most = max((seeds.count for seeds in by_rate.values()), default=0)
    return {float(rate): seeds for rate, seeds in by_rate.items() if seeds.count == most and most}


def _by_seed(results: pd.DataFrame, column: str = "loss") -> pd.Series:
    return results[results["counts"]].groupby("seed")[column].mean()


def _row(group: pd.DataFrame, one_rate: float | None) -> dict[str, object] | None:
    """The statistics of one schedule at one budget, at its best peak rate; None when no run was completed."""
    complete = _complete(group)
    if one_rate is not None:  # one run for all budgets
        complete = {rate: seeds for rate, seeds in complete.items() if rate == one_rate}
    if not complete:
        return None
    rate = min(complete, key=lambda rate: (complete[rate].mean, rate))
    rates = sorted(group["peak_lr"].unique())
    best, first = complete[rate], group.iloc[0]
    return {
        "N": float(first["N"]),
        "total_tokens": float(first["total_tokens"]),
        "setting": first["setting"],
        "schedule": first["schedule"],
        "single_run": bool(first["single_run"]),
        "peak_lr": rate,
        "peak_lrs": [float(r) for r in rates],
        "edge": _edge(rate, rates),
        "seeds": best.count,
        "loss": best.mean,
        "spread": best.spread,
        "low": best.low,
        "high": best.high,
        "not_completed": int((~group["counts"]).sum()),
        **_best_average(group, best.mean, one_rate),
    }


def _edge(rate: float, rates: list[float]) -> str | None:
    """At which end of the grid the best rate lies, diverged rates being part of the grid; None inside it."""
    if len(rates) == 1:
        return "only"
    return "lowest" if rate == rates[0] else "highest" if rate == rates[-1] else None


def _best_average(group: pd.DataFrame, last: float, one_rate: float | None) -> dict[str, object]:
    """The lowest mean loss of a weight average over averages and complete rates, where it is below the last iterate's.

    It is the best of `average_candidates`, chosen on the set that it is measured on.
    """
    found = []
    for name in [str(c) for c in group if str(c).startswith(_AVERAGE)]:
        for rate, seeds in _complete(group.dropna(subset=[name]), name).items():
            if one_rate is None or rate == one_rate:
                found.append((seeds.mean, name, rate, seeds))
    row: dict[str, object] = {
        "average": None, "average_loss": np.nan, "average_spread": np.nan, "average_peak_lr": np.nan,
        "average_candidates": len(found),
    }  # fmt: skip
    if found and min(found, key=lambda one: one[:3])[0] < last:
        mean, name, rate, seeds = min(found, key=lambda one: one[:3])
        name = name.removeprefix(_AVERAGE)
        row |= {"average": name, "average_loss": mean, "average_spread": seeds.spread, "average_peak_lr": rate}
    return row


# ---------------------------------------------------------------------------------------------------- against others


def results_at(results: pd.DataFrame, row: pd.Series) -> pd.DataFrame:
    """The single results behind one row of the table."""
    same = (results[[*PLACE, "schedule", "peak_lr"]] == row[[*PLACE, "schedule", "peak_lr"]]).all(axis=1)
    return results[same & results["counts"]]


def _against_the_best(table: pd.DataFrame, results: pd.DataFrame) -> pd.DataFrame:
    """Adds the interval of the excess over the best schedule, paired by seed, and whether it tells the two apart.

    Two schedules are told apart where the 95 % t-interval leaves zero out; with fewer than three pairs there is none
    and no verdict. The best is the lowest of several means over these very seeds, so its lead is slightly optimistic.
    """
    table = table.assign(excess_low=np.nan, excess_high=np.nan, told_apart=None)
    for _, group in table.groupby(PLACE):
        best = group.sort_values(["loss", "schedule"]).iloc[0]
        reference = _by_seed(results_at(results, best))
        for index, row in group.drop(best.name).iterrows():
            paired = over_seeds((_by_seed(results_at(results, row)) - reference).dropna())
            table.loc[index, ["excess_low", "excess_high"]] = [paired.low, paired.high]
            if paired.count >= ENOUGH:
                table.at[index, "told_apart"] = bool(paired.low > 0 or paired.high < 0)
    return table


def _overall(table: pd.DataFrame) -> pd.DataFrame:
    """Mean rank and mean excess of the schedules that have a result wherever several were ranked, best first."""
    table = table[table.groupby(PLACE)["rank"].transform("size") > 1]
    places = len(table[PLACE].drop_duplicates())
    means = table.groupby("schedule").agg(rank=("rank", "mean"), excess=("excess", "mean"), places=("rank", "size"))
    return means[means["places"] == places].reset_index().sort_values(["rank", "excess", "schedule"], ignore_index=True)
