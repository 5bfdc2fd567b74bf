"""Batch ramps against the constant batch: runs are paired, and their final losses compared over seeds.

    runs --same everything but the ramp--> pairs of one seed --over seeds--> one row per ramp and first batch B0
                                                             --over B0-----> where the ramp agrees, and where not

The rule: a ramp agrees where its mean difference is no larger than the standard deviation over seeds of the constant
batch's own final loss (what another seed would have changed), from at least three pairs. The t-interval of the mean
difference stands beside it, so that a small difference that is no accident is seen as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from scaling.naming import CONSTANT_BATCH, first_batch, ramp_names, schedule_names
from scaling.seeds import ENOUGH, over_seeds
from scaling.wording import configuration, short

AGREES, DIFFERS, DIVERGED, UNDECIDED = "agrees", "does not agree", "diverged", "too few seeds"
FAMILY = ["N", "total_tokens", "schedule"]  # what is compared apart from each other


@dataclass(frozen=True)
class Comparison:
    """`rows`: a row per FAMILY, B0 and ramp; `runs`: the runs with their names, B0 and whether they count; `notes`."""

    rows: pd.DataFrame
    runs: pd.DataFrame
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Range:
    """Over which of the first batches one ramp agrees with the constant batch, of those that were run."""

    family: dict[str, object]
    ramp: str
    agrees: tuple[float, ...]
    differs: tuple[float, ...]
    """also those where a run diverged"""
    undecided: tuple[float, ...]
    agrees_up_to: float | None
    """the largest B0 up to which it agrees at every B0 that was decided"""
    differs_from: float | None
    """the smallest B0 from which on it agrees at none"""


def compare(runs: pd.DataFrame) -> Comparison:
    """Pairs every ramp run with the constant-batch run of the same everything else. ValueError where there is none."""
    runs = _prepared(runs)
    if not (runs["ramp"] == CONSTANT_BATCH).any():
        raise ValueError("no run has a constant batch, so there is no baseline: add ramp=constant to the sweep.")
    if (runs["ramp"] == CONSTANT_BATCH).all():
        raise ValueError("every run has a constant batch, so there is no ramp to compare.")
    notes = _left_out(runs)
    baselines = {setting: group for setting, group in runs[runs["ramp"] == CONSTANT_BATCH].groupby("setting")}
    rows = []
    for (setting, ramp), group in runs[runs["ramp"] != CONSTANT_BATCH].groupby(["setting", "ramp"]):
        baseline = baselines.get(setting)
        first = group.iloc[0]
        where = f"{ramp} at B0 = {first['B0']:g} (N = {short(first['N'])}, peak rate {first['peak_lr']:g})"
        if baseline is None:
            notes.append(f"{where} has no baseline: no constant-batch run of the same settings was made.")
            continue
        rows.append(_row(group, baseline))
        if not rows[-1]["pairs"] and not rows[-1]["diverged"]:
            notes.append(f"{where} has no pair: no seed has both runs completed.")
    if not rows:
        raise ValueError("no ramp run has a constant-batch run of the same settings: " + " ".join(notes))
    table, more = _one_setting(pd.DataFrame(rows))
    return Comparison(table, runs, tuple(notes + more))


def ranges(rows: pd.DataFrame) -> list[Range]:
    """Where every ramp agrees, for every family."""
    found = []
    for key, group in rows.sort_values("B0").groupby([*FAMILY, "ramp"], sort=True):
        verdicts = dict(zip(group["B0"], group["verdict"], strict=True))
        agrees = tuple(b for b, verdict in verdicts.items() if verdict == AGREES)
        differs = tuple(b for b, verdict in verdicts.items() if verdict in (DIFFERS, DIVERGED))
        below = [b for b in agrees if b < min(differs, default=np.inf)]
        above = [b for b in differs if b > max(agrees, default=-np.inf)]
        found.append(
            Range(
                dict(zip(FAMILY, key, strict=False)),
                key[-1],
                agrees,
                differs,
                tuple(b for b, verdict in verdicts.items() if verdict == UNDECIDED),
                max(below, default=None),
                min(above, default=None),
            )
        )
    return found


def _prepared(runs: pd.DataFrame) -> pd.DataFrame:
    """Runs with names, B0, the key of all other settings, and `counts`: completed to the budget with a loss."""
    apart = ("ramp.", "averages.")  # what a run averages does not change how it trains
    settings = [c for c in configuration(runs) if not c.startswith(apart) and c not in ("seed", "label")]
    runs = runs.assign(ramp=ramp_names(runs), schedule=schedule_names(runs), B0=first_batch(runs))
    for name in ("eval_loss", "steps", "seed", "peak_lr"):
        runs[name] = pd.to_numeric(runs[name], errors="coerce") if name in runs else np.nan
    keys = ["N", "total_tokens", "B0", *settings]
    runs["setting"] = runs[[k for k in keys if k in runs]].map(_key).agg("|".join, axis=1)
    early = runs["stop_reason"].fillna("budget").ne("budget") if "stop_reason" in runs else False
    runs["counts"] = (runs["status"] == "completed") & runs["eval_loss"].notna() & ~np.asarray(early)
    return runs[runs["ramp"].notna() & runs["B0"].notna()]


def _key(value: object) -> str:
    return f"{value:.12g}" if isinstance(value, int | float | np.number) else str(value)


def _left_out(runs: pd.DataFrame) -> list[str]:
    lost = runs[~runs["counts"]]
    notes = []
    for (ramp, first, status), group in lost.groupby(["ramp", "B0", "status"]):
        which = f"{len(group)} run{'s' if len(group) > 1 else ''} of {ramp} at B0 = {first:g}"
        seeds = ", ".join(f"{seed:g}" for seed in sorted(group["seed"].dropna()))
        why = "stopped before the budget or has no held-out loss" if status == "completed" else str(status)
        notes.append(f"{which} (seed {seeds}) not averaged: {why}.")
    return notes


def _row(ramp: pd.DataFrame, baseline: pd.DataFrame) -> dict[str, object]:
    """The statistics of one ramp against its baseline."""
    both = _by_seed(ramp).join(_by_seed(baseline), how="inner", rsuffix="_baseline")
    difference = over_seeds(both["eval_loss"] - both["eval_loss_baseline"])
    own, reference = over_seeds(both["eval_loss"]), over_seeds(both["eval_loss_baseline"])
    spread = over_seeds(_by_seed(baseline)["eval_loss"])
    diverged = int((ramp["status"] == "diverged").sum())
    if diverged:
        verdict = DIVERGED
    elif difference.count < ENOUGH:
        verdict = UNDECIDED
    else:
        verdict = AGREES if abs(difference.mean) <= spread.spread else DIFFERS
    return {name: ramp.iloc[0][name] for name in (*FAMILY, "peak_lr", "B0", "ramp", "setting")} | {
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
        "verdict": verdict,
    }


def _by_seed(runs: pd.DataFrame) -> pd.DataFrame:
    """Loss and steps of the runs that count; runs of one seed that differ only by label are averaged."""
    return runs[runs["counts"]].groupby("seed")[["eval_loss", "steps"]].mean().sort_index()


def _one_setting(rows: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """One row per family, B0 and ramp: of several settings (as peak rates) the one where the constant batch is best."""
    place = [*FAMILY, "B0", "ramp"]
    rows = rows.sort_values([*place, "baseline_loss", "peak_lr"], na_position="last", ignore_index=True)
    notes = [
        f"{ramp} at B0 = {first:g} was run at {len(group)} settings (peak rates "
        f"{', '.join(f'{rate:g}' for rate in sorted(group['peak_lr']))}): the one at which the constant batch ends "
        "lowest is shown."
        for (*_, first, ramp), group in rows.groupby(place)
        if len(group) > 1
    ]
    return rows.drop_duplicates(place, ignore_index=True), notes


def significant(row: pd.Series) -> bool:
    """Whether the 95 % interval of the mean difference leaves zero out."""
    return bool(row["difference_low"] > 0 or row["difference_high"] < 0)


def drawn_runs(comparison: Comparison, rows: pd.DataFrame) -> pd.DataFrame:
    """The runs behind `rows`, ramps and baselines."""
    return comparison.runs[comparison.runs["setting"].isin(rows["setting"])]
