"""The best model size and token count for a training budget, under a fitted law.

    runs --family--> flops_per_token(N) --+
    Fit (and its replicates) -------------+--> allocate --> N, D and loss for every budget, with intervals

Training C FLOPs on a model of N parameters buys D = C / flops_per_token(N) tokens. The records know flops_per_token
exactly for every shape that was run, head and attention included; between those shapes it is interpolated, smoothly
in log-log, and beyond them continued as a power law. C = 6 N D holds in the limit of large models only, and serves
tables that say nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.interpolate import PchipInterpolator

from scaling.fit import Fit

_REACH = 1e4  # sizes are searched this factor below and above those that were run
_GRID = 81  # sizes of the first look, before the bracket is narrowed
_GOLDEN = 0.5 * (5**0.5 - 1)


@dataclass(frozen=True)
class Family:
    """How much one token costs to train on, along the sizes that were run: `sizes` (parameters) and `cost` (FLOPs)."""

    sizes: np.ndarray
    cost: np.ndarray
    notes: tuple[str, ...] = ()

    def flops_per_token(self, size: Any) -> np.ndarray:
        """Training FLOPs per token at `size` parameters: monotone cubic in log-log, straight beyond the ends."""
        x, y = np.log(self.sizes), np.log(self.cost)
        at = np.log(size)
        if len(x) == 1:
            return np.exp(y[0] + at - x[0])
        curve = PchipInterpolator(x, y)
        inside = np.clip(at, x[0], x[-1])
        slopes = curve.derivative()(x[[0, -1]])
        return np.exp(curve(inside) + np.where(at < x[0], slopes[0], slopes[1]) * (at - inside))


@dataclass(frozen=True)
class Allocation:
    """One row of `table` per budget C: N, D, loss and tokens_per_parameter at the optimum, each with _low and _high;
    `extrapolated` where N lies outside the sizes that were run. `convention` says in words how C was counted."""

    table: pd.DataFrame
    convention: str
    notes: tuple[str, ...]


def family(runs: pd.DataFrame) -> Family | None:
    """The family in `runs`' columns N and flops_per_token; None without them. One cost per size, the middle one."""
    if not {"N", "flops_per_token"} <= set(runs) or runs["flops_per_token"].isna().all():
        return None
    known = runs[["N", "flops_per_token"]].dropna().astype(float)
    groups = known.groupby("N")["flops_per_token"]
    middle = groups.median()
    notes = []
    if (groups.max() > 1.001 * groups.min()).any():
        notes.append(
            "Runs of one size differ in FLOPs per token (other sequence lengths or shapes); the median of each size "
            "stands for the family."
        )
    return Family(middle.index.to_numpy(float), middle.to_numpy(float), tuple(notes))


def check_law(fit: Fit) -> None:
    """ValueError unless the law predicts a loss from N and D: nothing else has a best size for a budget."""
    if set(fit.law.columns) != {"N", "D"} or fit.law.target != "loss":
        raise ValueError(
            f"{fit.law.name} predicts {fit.law.target} from {', '.join(fit.law.columns)}: best sizes need a law of the "
            "loss in N and D."
        )


def allocate(fit: Fit, budgets: Any, family: Family | None, level: float = 0.9) -> Allocation:
    """The sizes of least predicted loss for every budget of `budgets` (training FLOPs).

    Along `family`, or with C = 6 N D where it is None. Intervals are percentiles over the fit's bootstrap replicates,
    each of which is allocated on its own; without replicates there are none. The law must read N and D.
    """
    budgets = np.atleast_1d(np.asarray(budgets, float))
    if not (np.isfinite(budgets) & (budgets > 0)).all():
        raise ValueError(f"Budgets must be positive training FLOPs, got {budgets.tolist()}.")
    check_law(fit)
    ran = fit.rows.table["N"]
    span = (float(ran.min()), float(ran.max()))
    best = {name: value[0] for name, value in _optimum(fit, fit.params, budgets, family, span).items()}
    result = {"C": budgets, **best}
    notes = list(family.notes) if family else []
    if fit.free_replicates is not None:
        draws = _optimum(fit, {k: v[:, None] for k, v in fit.replicates.items()}, budgets, family, span)
        for name, values in draws.items():
            result[f"{name}_low"], result[f"{name}_high"] = np.percentile(
                values, (50 * (1 - level), 50 * (1 + level)), axis=0
            )
        edge = (draws["N"] < 1.01 * span[0] / _REACH) | (draws["N"] > 0.99 * span[1] * _REACH)
        if edge.mean() > 0.5 * (1 - level):
            notes.append(
                f"{edge.mean():.0%} of the bootstrap refits have no best size within a factor {_REACH:g} of the runs: "
                "their intervals end where the search does."
            )
    table = pd.DataFrame(result)
    table["extrapolated"] = (table["N"] < span[0]) | (table["N"] > span[1])
    convention = (
        "C = 6 N D"
        if family is None
        else "exact training FLOPs along the family that was run"
        + (", continued as a power law beyond its sizes" if table["extrapolated"].any() else "")
    )
    return Allocation(table, convention, tuple(notes))


def growth(
    fit: Fit, low: float, high: float, family: Family | None, level: float = 0.9
) -> dict[str, tuple[float, float, float]]:
    """The mean exponents of the best N and D in the budget between `low` and `high` FLOPs, each with the ends of its
    interval (percentiles over the fit's bootstrap replicates). As `allocate` otherwise."""
    check_law(fit)
    ran, budgets = fit.rows.table["N"], np.array([low, high], float)
    span = (float(ran.min()), float(ran.max()))
    values, draws = (
        _optimum(fit, p, budgets, family, span)
        for p in (fit.params, {name: drawn[:, None] for name, drawn in fit.replicates.items()})
    )
    ends = (50 * (1 - level), 50 * (1 + level))
    found: dict[str, tuple[float, float, float]] = {}
    for name in ("N", "D"):
        value, drawn = (np.log(x[name][:, 1] / x[name][:, 0]) / np.log(high / low) for x in (values, draws))
        least, most = np.percentile(drawn, ends)
        found[name] = (float(value[0]), float(least), float(most))
    return found


def _optimum(
    fit: Fit, p: Mapping[str, Any], budgets: np.ndarray, family: Family | None, span: tuple[float, float]
) -> dict[str, np.ndarray]:
    """N, D, loss and tokens_per_parameter (replicates, budgets); parameters are floats or (replicates, 1)."""
    closed = getattr(fit.law, "compute_optimal", None)
    positive = all(np.all(np.asarray(value) > 0) for value in p.values())  # at a bound it divides by 0
    if family is None and closed is not None and positive:
        size, tokens = closed(p, budgets[None])
    else:
        cost = family.flops_per_token if family else lambda n: 6.0 * n

        def loss(log_size: np.ndarray) -> np.ndarray:
            size = np.exp(log_size)
            return fit.law.predict(p, {"N": size, "D": budgets / cost(size)})

        size = np.exp(_narrow(loss, len(budgets), np.log(span[0] / _REACH), np.log(span[1] * _REACH), p))
        tokens = budgets / cost(size)
    columns = {"N": size, "D": tokens}
    return {**columns, "loss": fit.law.predict(p, columns), "tokens_per_parameter": tokens / size}


def _narrow(loss: Any, budgets: int, low: float, high: float, p: Mapping[str, Any]) -> np.ndarray:
    """Where `loss` (of (replicates, budgets) log sizes) is least: a grid, then golden sections around its best."""
    replicates = max(np.size(value) for value in p.values())
    grid = np.linspace(low, high, _GRID)
    values = np.stack([np.broadcast_to(loss(np.full((1, budgets), x)), (replicates, budgets)) for x in grid])
    at = values.argmin(axis=0)
    left, right = grid[np.maximum(at - 1, 0)], grid[np.minimum(at + 1, _GRID - 1)]
    # Loss is flat at its minimum, so its value resolves log N no better than about sqrt(rounding) = 1e-8.
    for _ in range(40):
        a, b = right - _GOLDEN * (right - left), left + _GOLDEN * (right - left)
        lower = loss(a) < loss(b)
        left, right = np.where(lower, left, a), np.where(lower, b, right)
    return 0.5 * (left + right)
