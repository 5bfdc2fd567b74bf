"""Logged risks against exact ones: runs of the trainer on a problem whose expected risk is known.

records of model=linear --each run's own plan and averages--> exact risk at every logged point --> z
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from data.problems import Floats, LinearProblem
from optim.averaging import Average
from optim.plan import plan_of
from scaling.recorded import config_in
from scaling.theory.sgd import sgd_risk

LEVEL = 0.999
_PROBLEM = "data.generated.PowerLaw"
_SGD = "optim.sgd.SGD"
_MEASURED = "excess_risk"


@dataclass(frozen=True)
class Checked:
    """`points`: run_id, of ("weights" or the average's name), step, tokens, batch_size, measured, error (standard error
    over replicas), exact, z. `configs`: of the runs checked, by run_id. `largest` |z|, and `limit`, its quantile at
    `LEVEL` for so many independent points."""

    points: pd.DataFrame
    configs: Mapping[str, Mapping[str, Any]]
    largest: float
    limit: float
    notes: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        return self.largest <= self.limit


def check(runs: pd.DataFrame, curves: pd.DataFrame) -> Checked:
    """Every logged point of every run that can be checked. ValueError where there is none.

    A point is one where risk was measured after at least a step. z takes the replicas' mean for normal, which it is not
    near the stability limit, where risks are heavy-tailed: use small rates.
    """
    frames, notes, configs = [], [], {}
    if "folder" not in runs or _MEASURED not in curves:
        raise ValueError("no run of model=linear data=power_law was recorded: excess_risk is missing.")
    for _, run in runs.iterrows():
        config = config_in(run["folder"])
        why = _not_checked(config, run)
        if why:
            notes.append(f"{run['run_id']} is left out: {why}.")
            continue
        logged = curves[(curves["run_id"] == run["run_id"]) & curves[_MEASURED].notna()].sort_values("tokens")
        try:
            frames.append(_points(config, logged).assign(run_id=run["run_id"]))
            configs[run["run_id"]] = config
        except ValueError as error:  # as a last batch that is cut to so few rows that its rate is not stable
            notes.append(f"{run['run_id']} is left out: {error}")
    if not frames:
        raise ValueError("no run of model=linear data=power_law was recorded. " + " ".join(notes))
    points = pd.concat(frames, ignore_index=True)
    points["z"] = (points["measured"] - points["exact"]) / points["error"]
    replicas = min(config["model"]["replicas"] for config in configs.values())
    return Checked(points, configs, float(points["z"].abs().max()), quantile(len(points), replicas), tuple(notes))


def quantile(points: int, replicas: int) -> float:
    """What the largest of so many independent |t| stays below with probability `LEVEL`, for `replicas` - 1 degrees of
    freedom. Points along a run are not independent: the true quantile is lower."""
    from scipy.stats import t

    return float(t.isf((1.0 - LEVEL ** (1.0 / points)) / 2.0, replicas - 1))


def problem_of(config: Mapping[str, Any]) -> LinearProblem:
    """The problem of a run's configuration."""
    from hydra.utils import instantiate

    (source,) = config["data"]["sources"].values()
    return instantiate(source).problem


def exact_risk(config: Mapping[str, Any], at: np.ndarray, average: Average | None = None) -> Floats:
    """Expected excess risk (at,) after so many steps of a run's own plan, of its weights or of their `average`."""
    decay = float(config["optimizer"]["weight_decay"])
    return sgd_risk(problem_of(config), plan=plan_of(config), at=at, weight_decay=decay, average=average)


def exact_curve(config: Mapping[str, Any], at: np.ndarray) -> pd.DataFrame:
    """tokens and exact risk of a run's weights after `at` steps."""
    plan = plan_of(config)
    tokens = np.append(plan.steps().tokens_before, plan.final_tokens)[at]
    return pd.DataFrame({"tokens": tokens, "exact": exact_risk(config, at)})


def _not_checked(config: Mapping[str, Any], run: pd.Series) -> str:
    optimizer, sources = config["optimizer"], config["data"]["sources"]
    if any(source["_target_"] != _PROBLEM for source in sources.values()):
        return "it was not trained on data=power_law"
    if run["status"] != "completed":
        return f"it is {run['status']}"
    if config.get("parent"):
        return "it is a branch, which does not start at w = 0"
    if config.get("unique_tokens") or config.get("spike_guard"):
        return "unique_tokens shows it rows again, or its spike guard may leave updates out"
    if config["model"]["replicas"] < 2:
        return "one replica has no standard error"
    if optimizer["_target_"] != _SGD or optimizer.get("momentum"):
        return f"no exact risk is known for {optimizer['_target_']} with these settings (optimizer=sgd, momentum 0)"
    if optimizer.get("weight_decay") is None or optimizer.get("decay_follows_schedule") is False:
        return "its weight decay is not a number times the rate"
    return ""


def _points(config: Mapping[str, Any], logged: pd.DataFrame) -> pd.DataFrame:
    from hydra.utils import instantiate

    frames = []
    for name, average in {"weights": None, **(config["averages"] or {})}.items():
        end = "" if average is None else f"_{name}"
        if f"{_MEASURED}{end}" not in logged:
            continue
        rows = logged[logged[f"{_MEASURED}{end}"].notna()]
        steps = rows["step"].to_numpy(int)
        exact = exact_risk(config, steps, None if average is None else instantiate(average))
        frames.append(pd.DataFrame({
            "of": name, "step": steps, "tokens": rows["tokens"].to_numpy(int),
            "measured": rows[f"{_MEASURED}{end}"].to_numpy(float),
            "error": rows[f"{_MEASURED}_error{end}"].to_numpy(float), "exact": exact,
        }))  # fmt: skip
    return pd.concat(frames, ignore_index=True)
