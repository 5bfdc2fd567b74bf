"""Which runs to do next: the design that shrinks the prediction interval at a target most, within a FLOP budget.

    fitted law --gradients--> information of every candidate --choose--> the runs worth their FLOPs

The variance of the predicted log loss at the target is g' M^-1 g, with g the gradient there and M the information of
all rows: J'J over the variance of one row. A run adds its own row to M, so its worth is known before it is done
(c-optimal design; Pukelsheim, Optimal Design of Experiments, 2006, chapter 2). The gradients depend on the law that is
not known yet: variances are averaged, as logarithms, over replicates of the fit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.optimize import minimize

from scaling import uncertainty
from scaling.fit import Fit

_LAWS = 12  # replicates that the design is averaged over
_TOKEN_STEP = 2**0.25  # ratio of neighbouring token counts among the candidates
_RATIO_REACH = 2.0  # factor beyond the tokens per parameter that were run, to either side
_MANY = 300  # candidates above which token counts lie twice as far apart
_KNOWN = 0.1  # token counts closer than this are one run
_EXCHANGES = 400


@dataclass(frozen=True)
class Design:
    """`runs`: the chosen candidates. `before`, `after`: half-width of the interval at the target, relative to the loss,
    now and with these runs. `uniform_flops`: what a uniform grid of as many runs costs that leaves `after` too."""

    runs: pd.DataFrame
    before: float
    after: float
    uniform_flops: float

    @property
    def flops(self) -> float:
        """What the chosen runs cost together."""
        return float(self.runs["C"].sum())


def plan_next(
    fit: Fit, sizes: pd.DataFrame, budget: float, target: pd.DataFrame, most: int = 16, level: float = 0.9
) -> Design:
    """The runs, at most `most` and `budget` FLOPs together, after which the law is known best at `target`.

    `sizes`: what can be trained (columns N and flops_per_token; others are kept); `target`: one row with the law's
    columns. Each run is done once. ValueError where the budget pays for nothing.
    """
    if not budget > 0 or most < 1:
        raise ValueError(f"budget={budget:g} FLOPs and most={most} runs must be positive.")
    pool = candidates(fit, sizes, budget)
    state = _State(fit, pool, target)
    best = _exchanged(state, _rounded(state, _relaxed(state, budget, most), budget, most), budget, most)
    half = uncertainty.quantile(fit, level)
    values = state.value(np.zeros(len(pool), bool)), state.value(best)
    before, after = (float(half * np.exp(0.5 * value)) for value in values)
    runs = pool[best].sort_values(["N", "D"]).reset_index(drop=True)
    return Design(runs, before, after, uniform_flops(fit, state, sizes, len(runs), values[1]))


def candidates(fit: Fit, sizes: pd.DataFrame, budget: float) -> pd.DataFrame:
    """Runs that could be done: `sizes` times token counts a factor 2^(1/4) apart, of at most `budget` FLOPs each, with
    tokens per parameter near those that were run and no fewer tokens, where the law may not hold; without those that
    were run already."""
    low, high = _ratios(fit)
    ran = fit.rows.table
    known, start = ran["D"], float(ran["D"].min())
    rows = []
    step = _TOKEN_STEP if len(sizes) * np.log(high / low) / np.log(_TOKEN_STEP) < _MANY else _TOKEN_STEP**2
    for _, size in sizes.iterrows():
        ends = np.log([low * size["N"] / start, min(high * size["N"], budget / size["flops_per_token"]) / start])
        first, last = max(np.ceil(ends[0] / np.log(step)), 0), np.floor(ends[1] / np.log(step) + 1e-9)
        for k in np.arange(first, last + 1):
            tokens = start * step**k
            if (known[np.isclose(ran["N"], size["N"], rtol=1e-3)] / tokens - 1).abs().lt(_KNOWN).any():
                continue
            rows.append({**size.to_dict(), "D": tokens, "C": tokens * size["flops_per_token"]})
    if not rows:
        raise ValueError(
            f"budget={budget:.3g} FLOPs pays for no run of any size with {low:.3g} to {high:.3g} tokens per parameter; "
            f"the cheapest costs {(sizes['N'] * low * sizes['flops_per_token']).min():.3g}."
        )
    return pd.DataFrame(rows)


def _ratios(fit: Fit) -> tuple[float, float]:
    """Tokens per parameter that runs may have: those that were run, and a little beyond."""
    ratio = fit.rows.table["D"] / fit.rows.table["N"]
    return float(ratio.min()) / _RATIO_REACH, float(ratio.max()) * _RATIO_REACH


def uniform_flops(fit: Fit, state: _State, sizes: pd.DataFrame, runs: int, value: float) -> float:
    """FLOPs of the uniform grid of about `runs` runs that leaves a mean log variance of `value`: as many sizes as
    ratios of tokens to parameters, evenly spaced in logarithms, from the smallest size upwards; infinite where none up
    to 1e4 times that size does."""
    low, high = _ratios(fit)
    ordered = sizes.sort_values("N")
    n, cost = np.log(ordered["N"].to_numpy(float)), np.log(ordered["flops_per_token"].to_numpy(float))
    side = max(3, round(runs**0.5))

    def grid(top: float) -> pd.DataFrame:
        size, ratio = (x.ravel() for x in np.meshgrid(np.linspace(n[0], top, side), np.geomspace(low, high, side)))
        slope = (cost[-1] - cost[0]) / (n[-1] - n[0]) if len(n) > 1 else 1.0
        beyond = np.where(size > n[-1], slope * (size - n[-1]), 0.0)
        tokens = np.maximum(np.exp(size) * ratio, fit.rows.table["D"].min())
        table = pd.DataFrame({"N": np.exp(size), "D": tokens})
        return table.assign(C=table["D"] * np.exp(np.interp(size, n, cost) + beyond))

    bottom, top = n[0] + 0.1, n[0] + np.log(1e4)
    if state.value_with(grid(top)) > value:
        return float("inf")
    for _ in range(40):
        middle = 0.5 * (bottom + top)
        bottom, top = (middle, top) if state.value_with(grid(middle)) > value else (bottom, middle)
    return float(grid(top)["C"].sum())


class _State:
    """Gradients under several laws: of the rows that were run (as `information`), the pool and the target."""

    def __init__(self, fit: Fit, pool: pd.DataFrame, target: pd.DataFrame) -> None:
        draws = fit.free[None]
        if fit.free_replicates is not None:
            picked = np.linspace(0, len(fit.free_replicates) - 1, _LAWS).round().astype(int)
            draws = np.concatenate([draws, fit.free_replicates[picked]])
        unit = np.sqrt(uncertainty.row_variance(fit))
        # Rows of one run are one observation, and weights count.
        known = np.sqrt(fit.problem.weights * fit.rows.table["group"].nunique() / len(fit.problem.weights))[:, None]
        lower, upper = fit.problem.box()
        weak = np.diag(1.0 / (upper - lower) ** 2)[: len(uncertainty.law_free(fit)), : len(uncertainty.law_free(fit))]
        self.cost = pool["C"].to_numpy(float)
        self.unit = unit
        self.laws = [replace(fit, free=free) for free in draws]
        information, gains, targets = [], [], []
        for here in self.laws:
            rows = here.jacobian() * known / unit
            information.append(rows.T @ rows + weak)
            gains.append(here.jacobian(pool) / unit)
            targets.append(here.jacobian(target)[0])
        self.information, self.rows, self.target = np.array(information), np.array(gains), np.array(targets)

    def variances(self, inverse: np.ndarray) -> np.ndarray:
        """(laws,) at the target."""
        return np.einsum("kp,kpq,kq->k", self.target, inverse, self.target)

    def with_runs(self, chosen: np.ndarray) -> np.ndarray:
        """(laws, p, p): the inverse information after the chosen runs."""
        rows = self.rows[:, chosen]
        return np.linalg.inv(self.information + rows.transpose(0, 2, 1) @ rows)

    def value(self, chosen: np.ndarray) -> float:
        """The mean log variance at the target after the chosen runs."""
        return float(np.log(self.variances(self.with_runs(chosen))).mean())

    def value_with(self, runs: pd.DataFrame) -> float:
        """The mean log variance at the target after `runs`, which need not be candidates."""
        rows = np.array([here.jacobian(runs) for here in self.laws]) / self.unit
        inverse = np.linalg.inv(self.information + rows.transpose(0, 2, 1) @ rows)
        return float(np.log(self.variances(inverse)).mean())

    def gains(self, inverse: np.ndarray) -> np.ndarray:
        """(candidates,): by how much one more run lowers the mean log variance."""
        reach = np.einsum("kcp,kpq->kcq", self.rows, inverse)
        shared = np.einsum("kcq,kq->kc", reach, self.target)
        own = 1.0 + np.einsum("kcq,kcq->kc", reach, self.rows)
        before = self.variances(inverse)[:, None]
        return -np.log(np.maximum(before - shared**2 / own, 1e-12 * before) / before).mean(axis=0)


def _relaxed(state: _State, budget: float, most: int) -> np.ndarray:
    """(candidates,) shares from 0 to 1 that solve the problem without whole numbers, which is convex."""

    def objective(share: np.ndarray) -> tuple[float, np.ndarray]:
        inverse = np.linalg.inv(state.information + np.einsum("kcp,c,kcq->kpq", state.rows, share, state.rows))
        variance = state.variances(inverse)
        shared = np.einsum("kcp,kpq,kq->kc", state.rows, inverse, state.target)
        return float(np.log(variance).mean()), -(shared**2 / variance[:, None]).mean(axis=0)

    count = len(state.cost)
    limits = [
        {"type": "ineq", "fun": lambda x: 1 - state.cost @ x / budget, "jac": lambda x: -state.cost / budget},
        {"type": "ineq", "fun": lambda x: most - x.sum(), "jac": lambda x: -np.ones(count)},
    ]
    start = np.full(count, min(0.5, most / count, budget / state.cost.sum()))
    found = minimize(objective, start, jac=True, method="SLSQP", bounds=[(0, 1)] * count, constraints=limits)
    return found.x


def _rounded(state: _State, share: np.ndarray, budget: float, most: int) -> np.ndarray:
    """The candidates of largest share, as many as budget and `most` allow."""
    chosen, left = np.zeros(len(share), bool), budget
    for k in np.argsort(-share):
        if chosen.sum() < most and state.cost[k] <= left and share[k] > 1e-6:
            chosen[k] = True
            left -= state.cost[k]
    return chosen


def _exchanged(state: _State, chosen: np.ndarray, budget: float, most: int) -> np.ndarray:
    """One run added, or swapped for another, as long as it helps (Fedorov's exchange)."""
    chosen = chosen.copy()
    for _ in range(_EXCHANGES):
        best, found = state.value(chosen) - 1e-6, None
        spare = budget - state.cost[chosen].sum()
        for out in [None, *np.flatnonzero(chosen)]:
            rest = chosen.copy()
            if out is not None:
                rest[out] = False
            elif chosen.sum() == most:
                continue
            possible = ~rest & (state.cost <= spare + (0.0 if out is None else state.cost[out]))
            inverse = state.with_runs(rest)
            trial = np.log(state.variances(inverse)).mean() - np.where(possible, state.gains(inverse), -np.inf)
            if trial.min() < best:
                best, found = float(trial.min()), (out, int(np.argmin(trial)))
        if found is None:
            return chosen
        if found[0] is not None:
            chosen[found[0]] = False
        chosen[found[1]] = True
    return chosen
