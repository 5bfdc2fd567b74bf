"""The critical batch size of a linear problem: how large a batch may be before samples are wasted.

    B --the best constant rate--> samples to the target risk --against linear scaling from B0--> B*

As runs are measured (arXiv:2410.21676): for every batch the rate is tuned, the iterates of the second half are
averaged, and B* is the batch that needs `overhead` more samples than the smallest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq, minimize_scalar

from data.problems import LinearProblem
from scaling.theory.modes import exact_modes
from scaling.theory.stability import check_batch_size, max_stable_lr
from scaling.theory.stages import Stage

_MOST_STEPS = 2**40
_SMOOTH = 1000  # steps from which on a step more or less is nothing
_SLOWEST = 1e-4  # of the largest stable rate: where the search for the best one begins


class Tuned(NamedTuple):
    """The best constant rate for a batch, and what it comes to."""

    lr: float
    value: float
    """steps to the target, or the risk"""


def critical_batch_size(
    problem: LinearProblem, target_risk: float, overhead: float = 0.2, smallest: float = 1.0
) -> float:
    """The batch (rows, a real number) that needs 1 + `overhead` times the samples of `smallest` to reach `target_risk`.

    `overhead=1` is the batch at which twice the samples are needed. ValueError where the target is above the risk at
    the start, or below what can be reached.
    """
    _check(overhead, smallest)
    allowed = (1.0 + overhead) * smallest * steps_to(problem, smallest, target_risk).value

    def excess(log_batch: float) -> float:
        batch = float(np.exp(log_batch))
        return float(np.log(batch * steps_to(problem, batch, target_risk).value / allowed))

    found = _crossing(excess, float(np.log(smallest)), float(np.log(allowed)) + 1e-9)  # there one step is too much
    assert found is not None
    return found


def critical_batch_size_at(
    problem: LinearProblem, samples: float, overhead: float = 0.2, smallest: float = 1.0
) -> float:
    """The batch (rows) whose best risk after `samples` rows is 1 + `overhead` times that of `smallest`; infinite where
    that of a single step on all of them is not."""
    _check(overhead, smallest)
    if not smallest <= samples < np.inf:
        raise ValueError(f"samples={samples} must be at least smallest={smallest}, and finite.")
    allowed = (1.0 + overhead) * best_risk(problem, smallest, samples).value

    def excess(log_batch: float) -> float:
        return float(np.log(best_risk(problem, float(np.exp(log_batch)), samples).value / allowed))

    found = _crossing(excess, float(np.log(smallest)), float(np.log(samples)))
    return np.inf if found is None else found


def _check(overhead: float, smallest: float) -> None:
    check_batch_size(smallest)
    if not 0 < overhead < np.inf:
        raise ValueError(f"overhead={overhead} must be positive: a share of the samples, as 0.2.")


def _crossing(excess: Callable[[float], float], low: float, last: float) -> float | None:
    """The batch at which `excess` of its logarithm rises above 0, which it is below at `low`; looked for up to `last`,
    None: nowhere."""
    while low < last:
        high = min(low + float(np.log(4.0)), last)
        if excess(high) >= 0:
            return float(np.exp(brentq(excess, low, high, xtol=1e-4)))
        low = high
    return None


def steps_to(problem: LinearProblem, batch_size: float, target_risk: float) -> Tuned:
    """Fewest steps (a real number) after which the mean of the second half's iterates has `target_risk`, over rates."""
    check_batch_size(batch_size)
    if not problem.approximation_error < target_risk < problem.initial_risk:
        raise ValueError(
            f"target_risk={target_risk:g} must lie between the approximation error {problem.approximation_error:g} and "
            f"the risk at the start, {problem.initial_risk:g}."
        )
    wanted = np.log(target_risk - problem.approximation_error)

    def steps(stage: Stage) -> float:
        def above(log_steps: float) -> float:
            return float(np.log(_tail_risk(stage, np.exp(log_steps)))) - wanted

        high = 0.0
        while above(high) > 0:
            high += np.log(4.0)
            if high > np.log(_MOST_STEPS):
                return np.inf
        return float(np.exp(brentq(above, max(high - np.log(4.0), 0.0), high, xtol=1e-6))) if high else 1.0

    found = _tuned(problem, batch_size, steps)
    if not np.isfinite(found.value):
        raise ValueError(
            f"target_risk={target_risk:g} is not reached in {_MOST_STEPS:.2g} steps: ask for a larger one."
        )
    return found


def best_risk(problem: LinearProblem, batch_size: float, samples: float) -> Tuned:
    """Least risk of the mean of the second half's iterates after `samples` rows, over rates."""
    found = _tuned(problem, batch_size, lambda stage: _tail_risk(stage, samples / batch_size))
    return Tuned(found.lr, found.value + problem.approximation_error)


def _tail_risk(stage: Stage, steps: float) -> float:
    """Of the second half of so many iterates; between small whole numbers in a straight line of the logarithms."""
    if steps > _SMOOTH:
        return _tail_risk_of(stage, round(steps))
    below = max(1, int(np.floor(steps)))
    share = np.log(max(steps, 1.0) / below) / np.log((below + 1) / below)
    return float(_tail_risk_of(stage, below) ** (1.0 - share) * _tail_risk_of(stage, below + 1) ** share)


def _tail_risk_of(stage: Stage, count: int) -> float:
    first = stage.after(stage.modes.r, np.array([count // 2 + 1]))[0]
    return float(stage.mean_risk(first, np.array([count - count // 2]))[0])


def _tuned(problem: LinearProblem, batch_size: float, value: Callable[[Stage], float]) -> Tuned:
    """The rate of least `value`: the best of a grid, then between its neighbours."""
    modes, limit = exact_modes(problem), max_stable_lr(problem, batch_size)

    def of(log_share: float) -> float:
        return float(np.log(value(Stage(modes, limit * float(np.exp(log_share)), batch_size))))

    grid = np.linspace(np.log(_SLOWEST), np.log(0.98), 12)
    values = np.array([of(x) for x in grid])
    if not np.isfinite(values).any():
        return Tuned(limit, np.inf)
    k = int(np.argmin(values))
    found = minimize_scalar(
        of, bounds=(grid[max(k - 1, 0)], grid[min(k + 1, 11)]), method="bounded", options={"xatol": 1e-3}
    )
    best = min((values[k], grid[k]), (found.fun, found.x))
    return Tuned(limit * float(np.exp(best[1])), float(np.exp(best[0])))
