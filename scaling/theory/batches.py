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
from optim.plan import plan_of
from scaling.recorded import problem_and_plan
from scaling.theory.check import problem_of
from scaling.theory.critical import best_risk, critical_batch_size_at

OVERHEAD = 0.2
_POINTS = 14  # of a curve
_DRAWS = 1000
_FINE = 1000  # points of a curve on which its crossing is looked for
_TAIL, _CONSTANT_BATCH, _CONSTANT = "optim.averaging.Tail", "optim.ramps.ConstantBatch", "optim.schedules.Constant"


@dataclass(frozen=True)
class Batches:
    """`best`: a row per budget (rows) and batch, with its best rate: lr, measured and error (means over seeds), exact
    (at that rate), rates (how many were run), edge (whether the best is the least or largest of them), run_id.
    `curves`: rows, batch, risk, by theory with the rate tuned, over the batches of each budget. `critical`: rows,
    smallest (batch), measured (nan where the runs do not reach it), low, high (90 %, without the choice of the rate;
    infinite where some of what the standard errors allow does not reach it), bracketed (whether the best rates that it
    rests on lie within those that were run), same (from the exact risks of the same runs), exact (the rate tuned)."""

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
        name, why = _tail(config)
        own = points[(points["run_id"] == run) & (points["of"] == name)]
        plan = plan_of(config)
        if not why and (own.empty or own["tokens"].iloc[-1] < plan.final_tokens):
            why = "it did not reach its budget, or its average was not evaluated there"
        if not why and plan.total_samples % plan.segments.batch_size[0]:
            why = "its budget is no multiple of its batch, so the last one is cut"
        if why:
            notes.append(f"{run} is left out: {why}.")
            continue
        last = own.iloc[-1]
        rows.append({
            "setting": problem_and_plan(config, "total_tokens", "ramp", "peak_lr"), "rows": int(last["tokens"]),
            "batch": config["ramp"]["batch_size"], "lr": config["peak_lr"], "measured": last["measured"],
            "error": last["error"], "exact": last["exact"], "seed": config["seed"], "run_id": run,
        })  # fmt: skip
    table = pd.DataFrame(rows)
    several = table.groupby(["setting", "rows"])["batch"].transform("nunique") > 1 if rows else pd.Series(dtype=bool)
    if not several.any():
        raise ValueError(
            "no budget was run at two batches, at constant rates and with averages.tail of start=0.5. "
            + " ".join(notes)
        )
    setting = table.loc[several, "setting"].mode()[0]
    kept = several & (table["setting"] == setting)
    if not kept.all():
        notes.append(f"{(~kept).sum()} runs of other problems or settings, or alone at a budget, are left out.")
    table = table[kept]
    best = _best(table)
    if table.groupby("rows")["seed"].nunique().max() < table.groupby("rows")["batch"].nunique().max():
        notes.append("Batches share seeds, and with them their rows: intervals are wider than 90 %.")
    problem, generator = problem_of(configs[table["run_id"].iloc[0]]), np.random.default_rng(seed)
    curves, critical = [], []
    for budget, group in best.groupby("rows"):
        smallest, largest = group["batch"].min(), group["batch"].max()
        tuned = np.geomspace(smallest, largest, _POINTS)
        curves += [{"rows": budget, "batch": batch, "risk": best_risk(problem, batch, budget).value} for batch in tuned]
        exact = critical_batch_size_at(problem, budget, OVERHEAD, smallest)
        critical.append({"rows": budget, "smallest": smallest, **_measured(group, generator), "exact": exact})
    return Batches(problem, best, pd.DataFrame(curves), pd.DataFrame(critical), tuple(notes))


def _tail(config: Mapping[str, Any]) -> tuple[str, str]:
    """The name of the average of the second half; or why the run is none that theory is about."""
    if config["ramp"]["_target_"] != _CONSTANT_BATCH or config["schedule"]["_target_"] != _CONSTANT:
        return "", "its rate or batch changes"
    if config["warmup_tokens"] != 0:
        return "", "it has a warm-up"
    if config["optimizer"]["weight_decay"]:
        return "", "it has weight decay"
    averages = config["averages"] or {}
    name = next((name for name, one in averages.items() if one == {"_target_": _TAIL, "start": 0.5}), "")
    return name, "" if name else "no average of it is optim.averaging.Tail with start=0.5"


def _best(table: pd.DataFrame) -> pd.DataFrame:
    """The best rate of every budget and batch, over means of seeds."""
    keys = ["rows", "batch", "lr"]
    over_seeds = table.groupby(keys, as_index=False).agg(
        measured=("measured", "mean"),
        error=("error", lambda error: float(np.sqrt((error**2).sum()) / len(error))),
        exact=("exact", "mean"),
        run_id=("run_id", "first"),
    )
    by_batch = over_seeds.groupby(keys[:2])["lr"]
    over_seeds["rates"] = by_batch.transform("size")
    least, most = by_batch.transform("min"), by_batch.transform("max")
    over_seeds["edge"] = (over_seeds["lr"] == least) | (over_seeds["lr"] == most)
    return over_seeds.loc[over_seeds.groupby(keys[:2])["measured"].idxmin()].reset_index(drop=True)


def _measured(group: pd.DataFrame, generator: np.random.Generator) -> dict[str, float]:
    """Where risks pass 1 + OVERHEAD times that of the smallest batch: `critical` of one budget."""
    group = group.sort_values("batch")
    batch, mean, error, exact = (group[name].to_numpy(float) for name in ("batch", "measured", "error", "exact"))
    drawn = np.array([crossing(batch, row) for row in generator.normal(mean, error, (_DRAWS, len(mean)))])
    low, high = np.quantile(np.where(np.isnan(drawn), np.inf, drawn), [0.05, 0.95], method="nearest")
    found = crossing(batch, mean)
    upper = int(np.searchsorted(batch, found)) if np.isfinite(found) else len(batch) - 1
    bracketed = not group["edge"].iloc[[0, upper - 1, upper]].any()
    return {
        "measured": found, "low": float(low), "high": float(high), "bracketed": bracketed,
        "same": crossing(batch, exact),
    }  # fmt: skip


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
