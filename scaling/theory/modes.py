"""The spectrum as the risk recursion sees it: every eigenvalue, or few nodes that stand for many.

The expected risk of SGD is a sum over modes, S_t = sum_k r_k, with r_k = l_k E[delta_k^2]. A step takes r to

    r'_k = D_k r_k + beta q_k (S + noise),   D = (1 - lr l)^2 + (kurtosis - 2) / B lr^2 l^2,   beta = lr^2 / B

with q_k = l_k^2. What is there at the start and what the noise brings evolve as sums over two measures on l, with
weights r and q, of which a polynomial in l is asked. So the eigenvalues of a bin are replaced by the two Gauss nodes of
each measure, which have the bin's first four moments: nodes of the first have q = 0, of the second r = 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data.problems import Floats, LinearProblem


@dataclass(frozen=True, eq=False)
class Modes:
    """`rates` l, `q` weights of the noise, `r` risk at w = 0; (modes,) each. `noise`: variance of y given x."""

    rates: Floats
    q: Floats
    r: Floats
    noise: float

    def kept(
        self, lr: Floats | float, batch_size: Floats | float, kurtosis: float = 3.0, weight_decay: float = 0.0
    ) -> Floats:
        """D (..., modes) of steps with these rates (...) and a batch, or one each."""
        rate, batch = np.asarray(lr)[..., None], np.asarray(batch_size)[..., None]
        x = rate * self.rates
        left = 1.0 - rate * weight_decay - x
        left *= left
        x *= x  # in place: new memory costs more than the arithmetic
        x *= (kurtosis - 2.0) / batch
        left += x
        return left


def exact_modes(problem: LinearProblem) -> Modes:
    """One mode per eigenvalue."""
    l = problem.eigenvalues
    return Modes(l, l**2, l * problem.target**2, problem.noise_variance)


def binned_modes(problem: LinearProblem, bins: int) -> Modes:
    """The `bins` largest eigenvalues as they are, and the others in `bins` bins of equal width in log l."""
    if problem.dimension <= 2 * bins:
        return exact_modes(problem)
    order = np.argsort(-problem.eigenvalues, kind="stable")
    l, target = problem.eigenvalues[order], problem.target[order]
    tail = np.log(l[bins:])
    place = np.floor((tail[0] - tail) / max(tail[0] - tail[-1], 1e-12) * bins)
    bounds = bins + np.flatnonzero(np.diff(np.minimum(place, bins - 1), prepend=-1))  # empty bins are left out
    q, r = l**2, l * target**2
    noise, start = _gauss(l, q, bounds), _gauss(l, r, bounds)
    none = np.zeros(len(noise[0]))
    return Modes(
        np.concatenate([l[:bins], noise[0], start[0]]),
        np.concatenate([q[:bins], noise[1], none]),
        np.concatenate([r[:bins], none, start[1]]),
        problem.noise_variance,
    )


def _gauss(x: Floats, weights: Floats, bounds: np.ndarray) -> tuple[Floats, Floats]:
    """Nodes and weights (2 bins,) with the first four moments of `weights` on `x` in bins that begin at `bounds`."""

    def total(values: Floats) -> Floats:
        return np.add.reduceat(values, bounds)

    of_bin = np.repeat(np.arange(len(bounds)), np.diff(bounds, append=len(x)))
    inside, first = slice(bounds[0], None), bounds - bounds[0]
    x, weights = x[inside], weights[inside]
    bounds = first
    mass = total(weights)
    safe = np.where(mass > 0, mass, 1.0)
    mean = np.where(mass > 0, total(weights * x) / safe, x[first])
    left = x - mean[of_bin]
    variance = total(weights * left**2) / safe
    spread = np.sqrt(variance)
    skew = np.where(spread > 1e-9 * mean, total(weights * left**3) / safe / np.where(spread > 0, spread, 1.0) ** 3, 0.0)
    root = np.sqrt(skew**2 + 4.0)
    low, high = (skew - root) / 2.0, (skew + root) / 2.0  # roots of z^2 - skew z - 1
    nodes = np.concatenate([mean + spread * low, mean + spread * high])
    return nodes, np.concatenate([mass * high, mass * -low]) / np.concatenate([root, root])
