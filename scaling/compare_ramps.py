"""Batch ramps against the constant batch: runs are paired, and their final losses compared over seeds.

    runs --same everything but the ramp--> pairs of one seed --over seeds--> one row per ramp and first batch B0
                                                             --over B0-----> where the ramp agrees, and where not

The rule, from at least three pairs: a ramp agrees where its mean difference is no larger than the standard deviation
over seeds of the constant batch's own final loss (what another seed would have changed). Beyond that it ends lower or
higher where the 95 % t-interval of the mean difference leaves zero out, and is undecided where it does not. The
interval stands beside every verdict, so that a small difference that is no accident is seen as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from scaling.naming import CONSTANT_BATCH, first_batch, ramp_names, schedule_names
from scaling.seeds import ENOUGH, Seeds, over_seeds
from scaling.settings import apart, comparable, counted, text, why_not
from scaling.wording import short

AGREES, LOWER, HIGHER, UNDECIDED = "agrees", "ends lower", "ends higher", "undecided"
DIVERGED, TOO_FEW = "diverged", "too few seeds"
FREE, COSTS = (AGREES, LOWER), (HIGHER, DIVERGED)
FAMILY = ["N", "total_tokens", "schedule", "setting"]  # what is compared apart from each other


@dataclass(frozen=True)
class Comparison:
    """`rows`: a row per FAMILY, B0 and ramp; `runs`: the runs with their names, B0 and whether they count; `notes`."""

    rows: pd.DataFrame
    runs: pd.DataFrame
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Range:
    """Over which of the first batches one ramp costs no loss, of those that were run."""

    family: dict[str, object]
    ramp: str
    first: dict[str, tuple[float, ...]]
    """verdict -> the B0 that have it, every verdict being a key"""
    free_up_to: float | None
    """the largest B0 up to which it agrees or ends lower at every B0 that was decided"""
    higher_from: float | None
    """the smallest B0 from which on it ends higher or diverges at every B0 that was decided"""


def compare(runs: pd.DataFrame) -> Comparison:
    """Pairs every ramp run with the constant-batch run of the same everything else. ValueError where there is none."""
    runs, differing = _prepared(runs)
    if not (runs["ramp"] == CONSTANT_BATCH).any():
        raise ValueError("no run has a constant batch, so there is no baseline: add ramp=constant to the sweep.")
    if (runs["ramp"] == CONSTANT_BATCH).all():
        raise ValueError("every run has a constant batch, so there is no ramp to compare.")
    notes = [*differing, *_left_out(runs)]
    baselines = {point: group for point, group in runs[runs["ramp"] == CONSTANT_BATCH].groupby("point")}
    rows = []
    for (point, ramp), group in runs[runs["ramp"] != CONSTANT_BATCH].groupby(["point", "ramp"]):
        baseline = baselines.get(point)
        first = group.iloc[0]
        where = f"{ramp} at B0 = {first['B0']:g} (N = {short(first['N'])}, peak rate {first['peak_lr']:g}"
        where += f", {first['setting']})" if first["setting"] else ")"
        if baseline is None:
            notes.append(f"{where} has no baseline: no constant-batch run of the same settings was made.")
            continue
        rows.append(_row(group, baseline))
        if not rows[-1]["pairs"] and not rows[-1]["diverged"]:
            notes.append(f"{where} has no pair: no seed has both runs completed.")
    if not rows:
        raise ValueError("no ramp run has a constant-batch run of the same settings: " + " ".join(notes))
    table, more = _one_rate(pd.DataFrame(rows))
    return Comparison(table, runs, tuple(notes + more))


def ranges(rows: pd.DataFrame) -> list[Range]:
    """Where every ramp costs no loss, for every family."""
    found = []
    for key, group in rows.sort_values("B0").groupby([*FAMILY, "ramp"], sort=True):
        verdicts = (AGREES, LOWER, HIGHER, UNDECIDED, DIVERGED, TOO_FEW)
        first = {one: tuple(float(b) for b in group.loc[group["verdict"] == one, "B0"]) for one in verdicts}
        free, costs = ([b for one in kind for b in first[one]] for kind in (FREE, COSTS))
        below = [b for b in free if b < min(costs, default=np.inf)]
        above = [b for b in costs if b > max(free, default=-np.inf)]
        family = dict(zip(FAMILY, key, strict=False))
        found.append(Range(family, key[-1], first, max(below, default=None), min(above, default=None)))
    return found


def _prepared(runs: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Runs with names, B0, setting, `point` (all but the ramp) and `counts`: completed to the budget with a loss."""
    settings = comparable(runs)
    runs = runs.assign(ramp=ramp_names(runs), schedule=schedule_names(runs), B0=first_batch(runs))
    for name in ("eval_loss", "steps", "seed", "peak_lr"):
        runs[name] = pd.to_numeric(runs[name], errors="coerce") if name in runs else np.nan
    runs["counts"] = counted(runs)
    runs = runs[runs["ramp"].notna() & runs["B0"].notna()]
    settings = settings.loc[runs.index]
    of_schedule = [name for name in map(str, runs) if name.startswith("schedule.")]
    keys = [*(runs[name].map(text) for name in ["N", "total_tokens", "B0", "peak_lr", *of_schedule])]
    point = pd.concat([*keys, settings], axis=1).agg("|".join, axis=1)
    # what differs only from one first batch to the next (as betas may) follows it, and makes no other family
    labels, notes = apart(settings, [runs[name] for name in ("N", "total_tokens", "schedule", "B0")])
    return runs.assign(setting=labels, point=point), notes


def _left_out(runs: pd.DataFrame) -> list[str]:
    lost = runs[~runs["counts"]]
    notes = []
    for (ramp, first, status), group in lost.groupby(["ramp", "B0", "status"]):
        which = f"{len(group)} run{'s' if len(group) > 1 else ''} of {ramp} at B0 = {first:g}"
        seeds = ", ".join(f"{seed:g}" for seed in sorted(group["seed"].dropna()))
        notes.append(f"{which} (seed {seeds}) not averaged: {why_not(status)}.")
    return notes


def _row(ramp: pd.DataFrame, baseline: pd.DataFrame) -> dict[str, object]:
    """The statistics of one ramp against its baseline."""
    both = _by_seed(ramp).join(_by_seed(baseline), how="inner", rsuffix="_baseline")
    difference = over_seeds(both["eval_loss"] - both["eval_loss_baseline"])
    own, reference = over_seeds(both["eval_loss"]), over_seeds(both["eval_loss_baseline"])
    spread = over_seeds(_by_seed(baseline)["eval_loss"])
    diverged = int((ramp["status"] == "diverged").sum())
    return {name: ramp.iloc[0][name] for name in (*FAMILY, "peak_lr", "B0", "ramp", "point")} | {
        "runs": len(ramp),
        "diverged": diverged,
        "pairs": difference.count,
        "baseline_loss": reference.mean,
        "baseline_spread": spread.spread,
        "baseline_seeds": spread.count,
        "loss": own.mean,
        "loss_spread": own.spread,
        "difference": difference.mean,
        "difference_spread": difference.spread,
        "difference_error": difference.error,
        "difference_low": difference.low,
        "difference_high": difference.high,
        "differences": [float(x) for x in both["eval_loss"] - both["eval_loss_baseline"]],
        "baseline_steps": float(both["steps_baseline"].mean()),
        "steps": float(both["steps"].mean()),
        "steps_saved": float((1 - both["steps"] / both["steps_baseline"]).mean()),
        "verdict": DIVERGED if diverged else _verdict(difference, spread.spread),
    }


def _verdict(difference: Seeds, spread: float) -> str:
    if difference.count < ENOUGH:
        return TOO_FEW
    if abs(difference.mean) <= spread:
        return AGREES
    if difference.low <= 0 <= difference.high:
        return UNDECIDED
    return LOWER if difference.mean < 0 else HIGHER


def _by_seed(runs: pd.DataFrame) -> pd.DataFrame:
    """Loss and steps of the runs that count; runs of one seed that differ only by label are averaged."""
    return runs[runs["counts"]].groupby("seed")[["eval_loss", "steps"]].mean().sort_index()


def _one_rate(rows: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """One row per family, B0 and ramp: of several peak rates the one where the constant batch is best."""
    place = [*FAMILY, "B0", "ramp"]
    rows = rows.sort_values([*place, "baseline_loss", "peak_lr"], na_position="last", ignore_index=True)
    notes = [
        f"{ramp} at B0 = {first:g} {f'({setting}) ' if setting else ''}was run at {len(group)} peak rates "
        f"({', '.join(f'{rate:g}' for rate in sorted(group['peak_lr']))}): the one at which the constant batch ends "
        "lowest is shown."
        for (*_, setting, first, ramp), group in rows.groupby(place)
        if len(group) > 1
    ]
    return rows.drop_duplicates(place, ignore_index=True), notes


def significant(row: pd.Series) -> bool:
    """Whether the 95 % interval of the mean difference leaves zero out."""
    return bool(row["difference_low"] > 0 or row["difference_high"] < 0)


def drawn_runs(comparison: Comparison, rows: pd.DataFrame) -> pd.DataFrame:
    """The runs behind `rows`, ramps and baselines."""
    return comparison.runs[comparison.runs["point"].isin(rows["point"])]
