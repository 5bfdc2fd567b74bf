"""Gradient descent, ridge and one-pass SGD on the same rows of one problem: which wins, and by what factor.

    comparison = compare(problem, samples=1000)
    comparison.matched              risk of gradient descent over ridge's, where lr t = 1 / penalty
    comparison.winner               the name of the smallest of the risks, each tuned
    comparison.factor("ridge", "gd")

Wu et al. (arXiv:2509.17251) prove that gradient descent is never worse than ridge by more than a constant at a
matched penalty, and can be better by a power of the samples; that it and one-pass SGD are not comparable in general;
and that it beats SGD where the spectrum decays fast and continuously, power laws among them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from data.problems import Floats, LinearProblem
from optim.averaging import Average, Tail
from scaling.theory.descent import gd_risk, ridge_risk
from scaling.theory.equivalents import check_samples, largest_eigenvalue, smallest_shift
from scaling.theory.sgd import sgd_risk
from scaling.theory.stability import max_stable_lr

_STEPS_A_UNIT = 10  # steps of gradient descent while lr * t grows by 1 / largest eigenvalue
_A_DECADE = 8  # settings tried, and as many between the neighbours of the best
_FARTHEST = 1e9  # lr * t * largest eigenvalue
_SLOWEST = 1e-4  # of the largest stable rate of SGD


class Tuned(NamedTuple):
    """The best setting of a method: `reach` lr t, 1 / penalty or lr samples / batch_size, and the risk there."""

    reach: float
    risk: float


@dataclass(frozen=True, eq=False)
class Comparison:
    """Expected excess risks; `reach` (settings,), rising, is lr t of gradient descent and 1 / penalty of ridge."""

    reach: Floats
    gd: Floats
    """of gradient descent (settings,)"""
    ridge: Floats
    """of ridge regression (settings,)"""
    tuned: dict[str, Tuned]
    """the best of "gd", "ridge" and, at a constant rate, "sgd" (last iterate) and "averaged_sgd" (of the last half)"""

    @property
    def matched(self) -> Floats:
        """Risk of gradient descent over ridge's at 1 / penalty = lr t (settings,)."""
        return self.gd / self.ridge

    @property
    def winner(self) -> str:
        return min(self.tuned, key=lambda name: self.tuned[name].risk)

    def factor(self, name: str, other: str) -> float:
        """Tuned risk of the method `name` over that of `other`: below 1 where it wins."""
        return self.tuned[name].risk / self.tuned[other].risk


def compare(problem: LinearProblem, samples: int, batch_size: int = 1, *, reach: ArrayLike | None = None) -> Comparison:
    """Risks of the methods on `samples` Gaussian rows, all of them equivalents but those of SGD, which are exact.

    batch_size: rows a step of SGD, which sees every row once; what is left over is not used. reach: values of lr t =
    1 / penalty to compare at and tune over, rounded to whole steps; by default from where nothing is learned to where
    nothing changes any more. Tuning refines around the best of the tried settings: a risk with several minima may hide
    a better one, and a best setting at an end of `reach` is one of the range, not of the method.
    """
    check_samples(samples)
    if not 1 <= batch_size <= samples:
        raise ValueError(f"batch_size={batch_size} must be from 1 to the {samples} samples.")
    lr = 1.0 / (_STEPS_A_UNIT * largest_eigenvalue(problem.eigenvalues, samples))
    asked = _default_reach(problem, samples) if reach is None else np.asarray(reach, dtype=np.float64)
    if asked.ndim != 1 or not asked.size or not (np.isfinite(asked) & (asked > 0)).all():
        raise ValueError("reach must be a row of positive and finite numbers, at least one: values of lr * steps.")
    matched = lr * np.unique(np.maximum(np.rint(asked / lr), 1.0))
    updates = samples // batch_size

    def descent(reach: Floats) -> Floats:
        at = np.rint(reach / lr).astype(np.int64)
        return gd_risk(problem, lr, int(at.max()), at=at, samples=samples)

    def ridge(reach: Floats) -> Floats:
        return ridge_risk(problem, 1.0 / reach, samples=samples)

    def one_pass(reach: Floats, average: Average | None = None) -> Floats:
        rates = (reach / updates).tolist()
        return np.array([sgd_risk(problem, rate, batch_size, updates, average=average) for rate in rates])

    best = _tuned(descent, matched)
    slow_to_fast = 0.98 * max_stable_lr(problem, batch_size) * updates * _grid(_SLOWEST, 1.0)
    tuned = {
        "gd": Tuned(lr * float(np.rint(best.reach / lr)), best.risk),
        "ridge": _tuned(ridge, matched),
        "sgd": _tuned(one_pass, slow_to_fast),
        "averaged_sgd": _tuned(partial(one_pass, average=Tail(0.5)), slow_to_fast),
    }
    return Comparison(matched, descent(matched), ridge(matched), tuned)


def _tuned(risk: Callable[[Floats], Floats], reach: Floats) -> Tuned:
    """The best of a grid, then of a finer one between its neighbours."""
    best = int(np.argmin(risk(reach)))
    near = np.geomspace(reach[max(best - 1, 0)], reach[min(best + 1, len(reach) - 1)], 2 * _A_DECADE + 1)
    near = np.append(near, reach[best])
    risks = risk(near)
    return Tuned(float(near[risks.argmin()]), float(risks.min()))


def _default_reach(problem: LinearProblem, samples: int) -> Floats:
    """From a tenth of 1 / largest eigenvalue to a hundred times 1 / the least that noise lets be told from 0."""
    largest = largest_eigenvalue(problem.eigenvalues, samples)
    resolved = smallest_shift(problem.eigenvalues, samples) or float(problem.eigenvalues.min()) / samples
    return _grid(0.1 / largest, min(100.0 / resolved, _FARTHEST / largest))


def _grid(low: float, high: float) -> Floats:
    return np.geomspace(low, high, int(np.ceil(_A_DECADE * np.log10(high / low))) + 1)
