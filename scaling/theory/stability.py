"""Which steps converge, what they converge to, and how noisy a gradient is: one-pass SGD on a linear problem.

    rho(lr, B) = sum_i (lr^2 / B) l_i^2 / (1 - D_i)     mean-square stable iff every D_i < 1 and rho < 1

D_i = (1 - lr l_i)^2 + (kurtosis - 2) / B (lr l_i)^2 is what a step keeps of the coordinate's own risk, and rho what the
noise that a unit of risk makes comes to in the end: a nonnegative diagonal plus rank one, so the condition is exact.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq

from data.problems import Floats, LinearProblem


class NoiseScales(NamedTuple):
    """Batch sizes, in rows, at which noise and signal of a gradient are alike (McCandlish et al., arXiv:1812.06162)."""

    simple: float
    """tr Cov(g_1) / |G|^2, for a gradient g_1 of one row and its mean G"""
    preconditioned: float
    """tr(H Cov(g_1)) / G' H G"""
    variance_share: float
    """share of E|g|^2 at this batch size that is noise of the answers; Seesaw's second assumption wants it near 1"""


def check_batch_size(batch_size: float | Floats) -> None:
    """ValueError below 1."""
    smallest = np.min(np.asarray(batch_size, dtype=np.float64), initial=np.inf)
    if not smallest >= 1:
        raise ValueError(f"batch_size={smallest:g} must be at least 1 row.")


def check_rates(lr: Floats) -> None:
    """ValueError for rates that are negative or not finite."""
    bad = ~(np.isfinite(lr) & (lr >= 0))
    if bad.any():
        raise ValueError(f"lr={lr[bad].ravel()[0]}: a learning rate must be 0 or more, and finite.")


def noise_gain(
    problem: LinearProblem, lr: float, batch_size: float, kurtosis: float = 3.0, weight_decay: float = 0.0
) -> float:
    """rho; infinite where a coordinate alone does not converge. Without a step it is 0."""
    l = problem.eigenvalues
    pull = l + weight_decay
    lost = 2.0 * pull - lr * (pull**2 + (kurtosis - 2.0) / batch_size * l**2)  # (1 - D_i) / lr
    if not (lost > 0).all():
        return np.inf if lr > 0 else 0.0
    return float(np.sum(lr * l**2 / batch_size / lost))


def max_stable_lr(problem: LinearProblem, batch_size: float, kurtosis: float = 3.0, weight_decay: float = 0.0) -> float:
    """The rate from which on the mean risk grows without bound: the root of rho = 1, below where some D_i = 1."""
    check_batch_size(batch_size)
    _check_moments(kurtosis, weight_decay)
    l = problem.eigenvalues
    pull = l + weight_decay
    share = pull**2 + (kurtosis - 2.0) / batch_size * l**2
    alone = np.min(np.where(share > 0, 2.0 * pull / np.where(share > 0, share, 1.0), np.inf))
    at_most = min(alone * (1 - 1e-15), 2.0 * batch_size / np.sum(l**2 / pull))  # where rho is at least 1

    def above(lr: float) -> float:
        return 1.0 - 1.0 / noise_gain(problem, lr, batch_size, kurtosis, weight_decay)

    if above(at_most) <= 0.0:  # only to rounding
        return float(at_most)
    return float(brentq(above, at_most * 1e-12, at_most, xtol=1e-300, rtol=1e-14))


def stationary_risk(problem: LinearProblem, lr: float, batch_size: float, kurtosis: float = 3.0) -> float:
    """Risk after endless steps: noise rho / (1 - rho), plus the approximation error. ValueError for unstable steps."""
    check_stable(problem, np.array([lr]), np.array([batch_size]), kurtosis)
    gain = noise_gain(problem, lr, batch_size, kurtosis)
    return problem.noise_variance * gain / (1.0 - gain) + problem.approximation_error


def check_stable(
    problem: LinearProblem, lr: Floats, batch_size: Floats, kurtosis: float = 3.0, weight_decay: float = 0.0
) -> None:
    """ValueError that names the first step whose rate is too large for its batch, and the largest that is not."""
    check_batch_size(batch_size)
    check_rates(lr)
    _check_moments(kurtosis, weight_decay)
    l = problem.eigenvalues
    share = (1.0 + (kurtosis - 2.0) / batch_size) * l.max()
    if not weight_decay and (lr * (l.sum() / batch_size + share) < 2.0).all():  # enough, and no root to be found
        return
    unstable = []
    for batch in np.unique(batch_size):
        limit = max_stable_lr(problem, batch, kurtosis, weight_decay)
        steps = np.flatnonzero((batch_size == batch) & (lr >= limit))
        unstable += [(int(steps[0]), limit)] if len(steps) else []
    if unstable:
        step, limit = min(unstable)
        raise ValueError(
            f"lr={lr[step]:.6g} at step {step} is unstable: repeated with batch_size={batch_size[step]:g}, the mean "
            f"risk grows without bound from lr={limit:.6g} on. Use a smaller rate or a larger batch."
        )


def _check_moments(kurtosis: float, weight_decay: float) -> None:
    if not 1 <= kurtosis < np.inf:
        raise ValueError(f"kurtosis={kurtosis} must be at least 1, and finite: E z^4 of a coordinate with E z^2 = 1.")
    if not 0 <= weight_decay < np.inf:
        raise ValueError(f"weight_decay={weight_decay} must be 0 or more, and finite.")


def squared_gradient(problem: LinearProblem, c: Floats, batch_size: float) -> float:
    """E|g|^2 of a mini-batch at coordinates with E[(w - w*)_i^2] = c_i."""
    l = problem.eigenvalues
    signal, risk = float(l**2 @ c), float(l @ c)
    return signal + (signal + (risk + problem.noise_variance) * l.sum()) / batch_size


def noise_scales(problem: LinearProblem, c: Floats | None = None, batch_size: float = 1.0) -> NoiseScales:
    """At coordinates with E[(w - w*)_i^2] = c_i (those of w = 0 by default)."""
    check_batch_size(batch_size)
    l = problem.eigenvalues
    c = problem.target**2 if c is None else np.asarray(c, dtype=np.float64)
    outside = float(l @ c) + problem.noise_variance
    signal, curved = float(l**2 @ c), float(l**3 @ c)
    noise = problem.noise_variance * l.sum() / batch_size
    return NoiseScales(
        simple=(signal + outside * l.sum()) / signal if signal else np.inf,
        preconditioned=(curved + outside * float(l @ l)) / curved if curved else np.inf,
        variance_share=noise / squared_gradient(problem, c, batch_size),
    )
