"""The critical batch size in runs beside the exact one: best risks by batch at fixed budgets.

points of constant runs with the second half averaged --best rate--> risk by batch --where it is a fifth above--> B*
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.interpolate import PchipInterpolator

from data.problems import Floats, LinearProblem
from scaling.theory.check import problem_of
from scaling.theory.critical import best_risk, critical_batch_size_at

OVERHEAD = 0.2
_POINTS = 14  # of a curve
_DRAWS = 1000
_FINE = 1000  # points of a curve on which its crossing is looked for
_TAIL, _CONSTANT_BATCH, _CONSTANT = "optim.averaging.Tail", "optim.ramps.ConstantBatch", "optim.schedules.Constant"
_APART = ("total_tokens", "ramp", "peak_lr", "seed", "model", "averages", "eval", "launch", "slurm", "vars", "label")


@dataclass(frozen=True)
class Batches:
    """`best`: a row per budget (rows) and batch: lr, measured, error, exact (at that rate), rates (how many were run),
    edge (whether the best is the least or largest of them), run_id. `curves`: rows, batch, risk, by theory, the rate
    tuned. `critical`: rows, measured (nan where the runs do not reach it), low, high (90 %; infinite where some of what
    the standard errors allow does not), exact."""

    problem: LinearProblem
    best: pd.DataFrame
    curves: pd.DataFrame
    critical: pd.DataFrame
    notes: tuple[str, ...]


def batches(configs: Mapping[str, Mapping[str, Any]], points: pd.DataFrame, seed: int = 0) -> Batches:
    """From runs (run_id -> configuration) at constant rates and batches that average their second half; `points` as
    `check` has them. ValueError where no budget was run at two batches."""
    rows, notes = [], []
    for run, config in configs.items():
        name = _tail(config)
        if name is None:
            notes.append(f"{run} is left out: its rate or batch changes, or no average is Tail(start=0.5).")
            continue
        last = points[(points["run_id"] == run) & (points["of"] == name)].iloc[-1]
        rows.append({
            "setting": repr({key: value for key, value in sorted(config.items()) if key not in _APART}),
            "rows": int(last["tokens"]), "batch": config["ramp"]["batch_size"], "lr": config["peak_lr"],
            "measured": last["measured"], "error": last["error"], "exact": last["exact"], "run_id": run,
        })  # fmt: skip
    table = pd.DataFrame(rows)
    if table.empty or table.groupby(["setting", "rows"])["batch"].nunique().max() < 2:
        raise ValueError("no budget was run at two batches, at constant rates and with averages.tail of start=0.5.")
    sizes = table["setting"].value_counts()
    if len(sizes) > 1:
        notes.append(f"{len(table) - sizes.iloc[0]} runs of other problems or settings are left out.")
        table = table[table["setting"] == sizes.index[0]]
    problem = problem_of(configs[table["run_id"].iloc[0]])
    best = _best(table)
    smallest = int(best["batch"].min())
    curves = pd.DataFrame([
        {"rows": budget, "batch": batch, "risk": best_risk(problem, batch, budget).value}
        for budget, group in best.groupby("rows")
        for batch in np.geomspace(group["batch"].min(), group["batch"].max(), _POINTS)
    ])  # fmt: skip
    generator = np.random.default_rng(seed)
    critical = pd.DataFrame([
        {"rows": budget, **_crossing(group, generator),
         "exact": critical_batch_size_at(problem, budget, OVERHEAD, smallest)}
        for budget, group in best.groupby("rows")
        if len(group) > 1 and group["batch"].min() == smallest
    ])  # fmt: skip
    return Batches(problem, best, curves, critical, tuple(notes))


def _tail(config: Mapping[str, Any]) -> str | None:
    """The name of the average of the second half; None where there is none, or the plan is not constant."""
    if config["ramp"]["_target_"] != _CONSTANT_BATCH or config["schedule"]["_target_"] != _CONSTANT:
        return None
    if config["warmup_tokens"] != 0 or config["optimizer"]["weight_decay"]:
        return None
    averages = config["averages"] or {}
    return next((name for name, one in averages.items() if one == {"_target_": _TAIL, "start": 0.5}), None)


def _best(table: pd.DataFrame) -> pd.DataFrame:
    kept = []
    for _, group in table.groupby(["rows", "batch"]):
        row = group.loc[group["measured"].idxmin()]
        edge = row["lr"] in (group["lr"].min(), group["lr"].max())
        kept.append({**row.drop("setting"), "rates": len(group), "edge": edge})
    return pd.DataFrame(kept)


def _crossing(group: pd.DataFrame, generator: np.random.Generator) -> dict[str, float]:
    """Where measured risks pass 1 + OVERHEAD times that of the smallest batch, and the ends of 90 % of what the
    standard errors allow."""
    group = group.sort_values("batch")
    batch, mean, error = (group[name].to_numpy(float) for name in ("batch", "measured", "error"))
    drawn = np.array([crossing(batch, row) for row in generator.normal(mean, error, (_DRAWS, len(mean)))])
    low, high = np.quantile(np.where(np.isnan(drawn), np.inf, drawn), [0.05, 0.95], method="nearest")
    return {"measured": crossing(batch, mean), "low": float(low), "high": float(high)}


def crossing(batch: Floats, risk: Floats) -> float:
    """The first batch at which `risk` (n,) is 1 + OVERHEAD times that of the first one, on a smooth curve through the
    logarithms that turns nowhere between two points; nan where it is nowhere."""
    excess = np.log(np.maximum(risk, 1e-300) / risk[0] / (1.0 + OVERHEAD))
    fine = np.linspace(np.log(batch[0]), np.log(batch[-1]), _FINE)
    above = PchipInterpolator(np.log(batch), excess)(fine)
    k = int(np.argmax(above >= 0))
    if above[k] < 0:
        return np.nan
    return float(np.exp(np.interp(0.0, above[k - 1 : k + 1], fine[k - 1 : k + 1])))
