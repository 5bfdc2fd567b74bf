"""Laws of loss curves, fitted to runs at a constant rate and on a cosine, and asked about other schedules and ramps.

runs, curves --fit on the two schedules--> laws --each run's own plan--> predicted curves --> errors
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from scaling.fit import Fit, fit
from scaling.laws import Law, MultiPower, SGDRisk
from scaling.losses import Huber
from scaling.naming import CONSTANT_BATCH, plan_labels, ramp_names
from scaling.recorded import plan_in
from scaling.settings import apart, comparable

FITTED = ("Constant", "Cosine")
_BEGINS = 2.0  # times the warm-up: laws of late training are not asked about the first steps
_FOLLOWS = ("total_tokens", "warmup_tokens", "eval.every_tokens", "seed")


@dataclass(frozen=True)
class Transfer:
    """`fits` by law. `curves`: a row per law, run and evaluation (law, run_id, plan, ramp (whether it has one), fitted,
    seed, tokens, loss, predicted). `errors`: a row per law and plan (ramp, fitted, runs, mean |error| over its curves
    and error at the end, relative, and `spread`, what seeds differ by at the end, relative: nan for one). `notes`: what
    was left out."""

    fits: Mapping[str, Fit]
    curves: pd.DataFrame
    errors: pd.DataFrame
    notes: tuple[str, ...]


def transfer(
    runs: pd.DataFrame, curves: pd.DataFrame, huber: float = 1e-3, starts: int = 32, seed: int = 0
) -> Transfer:
    """ValueError where the runs to be fitted are not there, or runs differ in more than their plan and seed."""
    ended = runs["status"] == "completed"
    notes = [f"Left out for they did not complete: {(~ended).sum()} of {len(runs)} runs."] if (~ended).any() else []
    runs = runs[ended].reset_index(drop=True)
    if runs.empty:
        raise ValueError("no run has completed.")
    if "folder" not in runs or "eval_loss" not in curves:
        raise ValueError("there are no records of runs with held-out losses, whose plans the laws follow.")
    plan_keys = [name for name in comparable(runs) if name.startswith(("schedule.", "ramp.")) or name in _FOLLOWS]
    labels, differing = apart(comparable(runs).drop(columns=plan_keys), [pd.Series(0, runs.index)])
    if labels.nunique() > 1:
        raise ValueError(
            f"curves are compared within one setting. {' '.join(differing)} Give each a folder of its own."
        )
    folders = {str(Path(folder).parent) for folder in runs["folder"]}
    if len(folders) > 1:
        raise ValueError(
            f"runs lie in {len(folders)} folders: their plans are looked up in one. Report on one experiment."
        )
    runs["plan"] = plan_labels(runs)
    missing = [name for name in FITTED if name not in set(runs["plan"])]
    if missing or set(runs["plan"]) == set(FITTED):
        wanted = f"schedule={' and '.join(missing).lower()}" if missing else "a schedule or ramp to predict"
        raise ValueError(f"laws are fitted to {' and '.join(FITTED)} and predict the others: {wanted} was not run.")
    table = _rows(runs, curves)
    known = table[table["fitted"]]
    (folder,) = folders
    laws: list[Law] = [SGDRisk(runs=folder), MultiPower(runs=folder)]
    fits = {law.name: fit(law, known, Huber(huber), starts, seed) for law in laws}
    parts = [table.assign(law=name, predicted=found.predict(table)["loss"].to_numpy()) for name, found in fits.items()]
    predicted = pd.concat(parts, ignore_index=True)
    return Transfer(fits, predicted, _errors(predicted), tuple(notes))


def _rows(runs: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """run_id, plan, fitted, seed, step, tokens, lr, batch_size and held-out loss of every evaluation after warm-up."""
    warmup = np.array([plan_in(folder).warmup_tokens for folder in runs["folder"]])
    ramp = ramp_names(runs) != CONSTANT_BATCH
    facts = runs[["run_id", "plan", "seed"]].assign(begins=_BEGINS * warmup, ramp=ramp)
    known = curves.loc[curves["eval_loss"].notna(), ["run_id", "step", "tokens", "lr", "batch_size", "eval_loss"]]
    table = known.merge(facts, on="run_id")
    table = table[table["tokens"] >= table["begins"]].rename(columns={"eval_loss": "loss"})
    table = table.assign(fitted=table["plan"].isin(FITTED))
    order = ["ramp", "fitted", "plan", "run_id", "step"]  # as panels and tables list them
    return table.sort_values(order, ascending=[True, False, True, True, True], ignore_index=True)


def _errors(predicted: pd.DataFrame) -> pd.DataFrame:
    relative = predicted["predicted"] / predicted["loss"] - 1.0
    rows = []
    for (law, plan), group in predicted.assign(error=relative).groupby(["law", "plan"], sort=False):
        last = group.loc[group.groupby("run_id")["tokens"].idxmax()]
        rows.append({
            "law": law, "plan": plan, "ramp": bool(group["ramp"].iloc[0]),
            "fitted": bool(group["fitted"].iloc[0]), "runs": group["run_id"].nunique(),
            "mean": float(group["error"].abs().groupby(group["run_id"]).mean().mean()),
            "end": float(np.mean(last["error"])),
            "spread": float(last["loss"].std(ddof=1) / last["loss"].mean()) if len(last) > 1 else np.nan,
        })  # fmt: skip
    return pd.DataFrame(rows)
