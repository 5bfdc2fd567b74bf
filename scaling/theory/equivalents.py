"""Risks of spectral methods trained on n random rows, as their limits for many rows and features give them.

    w(f) = w* - f(S) w* + (noise through S),  S = X'X / n,  x ~ N(0, H);   f = penalty / (s + penalty): ridge

Rows enter through kappa(z) alone, the root of z = kappa (df1(kappa) / n - 1) with df1 = sum_i l_i / (l_i + kappa): S at
the shift -z acts as H at kappa does. For ridge, z = -penalty, and its risk is explicit. Any other f that is analytic,
gradient descent's say, is an integral of resolvents along a contour around the spectrum of S: twice for the bias,

    bias = 1/(2 pi i)^2 oint oint f f' (k k' / z z') sum_i l_i w*_i^2 / ((l_i + k)(l_i + k')) / (1 - g(k, k')) dz dz'
    variance = noise 1/(2 pi i) oint (1 - f)^2 / z^2 (k - kappa(0)) dz

with g(k, k') = sum_i l_i^2 / ((l_i + k)(l_i + k')) / n; of the latter, what has no pole and so cancels is left out.
f may only decay on the spectrum, and grows to its left within 1 / reach. So the contour is a level line of the map that
takes the gap to an annulus: a lens whose nodes crowd towards its ends, of which O(log(reach)) are enough.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import ellipj, ellipkm1

from data.problems import Floats, LinearProblem

Complex = NDArray[np.complex128]

_FIRST_NODES = 32  # of the upper half of a contour
_MOST_NODES = 2048
_HEIGHT = 1.0 / 3.0  # of the contour in the gap: 0 is the spectrum, 1 where f has grown e^2-fold
_TOLERANCE = 1e-9  # of a risk, relative; beside rounding of the terms that cancel in it


def ridge_equivalent(problem: LinearProblem, penalty: ArrayLike, samples: int) -> Floats:
    """Expected excess risk of ridge regression on `samples` Gaussian rows, in the shape of `penalty`.

    penalty: gamma of (1/2n) |y - X w|^2 + (gamma/2) |w|^2; 0 is the solution of smallest norm, infinity w = 0. The
    relative error is O(1/samples), away from penalty 0 at samples = dimension, where the risk is infinite.
    Source: the standard equivalent, e.g. Hastie et al., arXiv:1903.08560, and Cheng and Montanari, arXiv:2210.08571.
    """
    check_samples(samples)
    asked = np.asarray(penalty, dtype=np.float64)
    if not (asked >= 0).all():
        raise ValueError(f"penalty={asked[~(asked >= 0)][0]} must be 0 or more: infinity keeps w at 0.")
    l = problem.eigenvalues
    risks = [_ridge(problem, _shift(l, gamma, samples), samples) for gamma in asked.ravel().tolist()]
    return np.array(risks).reshape(asked.shape) + problem.approximation_error


def spectral_equivalent(
    problem: LinearProblem, kept: Callable[[Complex], Complex], reach: float, samples: int
) -> Floats:
    """Expected excess risks (methods,) of w = w* - f(S) w* + noise on `samples` Gaussian rows, as of ridge above.

    kept: from z (nodes,) to f(z) of every method, (methods, nodes). Each is analytic, real for real z, and bounded
    within about 1 / `reach` of the spectrum [0, `largest_eigenvalue`]; reach is lr t for gradient descent, 1 / penalty
    for ridge. f(0) = 1: what no row shows stays as it was.
    ValueError where the integrals have not converged, instead of a wrong number.
    """
    check_samples(samples)
    nodes, found, scale = _FIRST_NODES, None, np.zeros(())
    while nodes <= _MOST_NODES:
        coarse = found
        found, scale = _integrals(problem, kept, reach, samples, nodes)
        if coarse is not None and (np.abs(found - coarse) <= _TOLERANCE * np.abs(found) + 1e-13 * scale).all():
            return np.maximum(found, 0.0) + problem.approximation_error
        nodes *= 2
    raise ValueError(
        f"the risk has not converged with {_MOST_NODES} nodes at lr * steps = {reach:.3g}: ask for fewer steps, or use "
        "a smaller lr, or give a design."
    )


def largest_eigenvalue(eigenvalues: Floats, samples: int) -> float:
    """Of S, in the limit: the right edge of its spectrum (Silverstein and Choi, 1995).

    A lone large eigenvalue is given a band, of a relative width 1 / sqrt(samples), in which that of drawn rows lies.
    """
    l, top = eigenvalues, float(eigenvalues.max())

    def slope(distance: float) -> float:  # of z in kappa, at kappa = -top - distance: 0 at the edge
        return float(np.sum((l / (top + distance - l)) ** 2)) / samples - 1.0

    one, every = top / np.sqrt(samples), float(np.sqrt(np.sum(l**2) / samples))  # of the sum's terms would be enough
    distance = brentq(slope, 0.9 * one, 1.1 * every, xtol=1e-300, rtol=1e-13)
    kappa = -top - distance
    return float(kappa * (np.sum(l / (l + kappa)) / samples - 1.0))


def smallest_shift(eigenvalues: Floats, samples: int) -> float:
    """kappa of the penalty 0: the regularisation that rows fewer than features imply, else 0."""
    return _shift(eigenvalues, 0.0, samples)


def check_samples(samples: int) -> None:
    """ValueError unless it counts rows."""
    if not (samples >= 1 and float(samples).is_integer()):
        raise ValueError(f"samples={samples} must be a whole number of rows, at least 1.")


def _shift(l: Floats, penalty: float, samples: int) -> float:
    """kappa: Newton's method on a convex function from above, which only descends."""
    if penalty == np.inf or (penalty == 0.0 and samples >= len(l)):
        return penalty
    kappa = penalty + float(l.sum()) / samples
    while True:
        df1, df2 = _spare(l, kappa, samples)
        following = kappa - (kappa * df1 - penalty) / df2
        if not following < kappa * (1.0 - 1e-15):
            return kappa
        kappa = max(following, penalty)


def _spare(l: Floats, kappa: float, samples: int) -> tuple[float, float]:
    """1 - df1 / n and 1 - df2 / n: the share of the rows that the features leave."""
    lost, unused = kappa / (l + kappa), samples - len(l)
    return (unused + float(lost.sum())) / samples, (unused + float((lost * (2.0 - lost)).sum())) / samples


def _ridge(problem: LinearProblem, kappa: float, samples: int) -> float:
    l = problem.eigenvalues
    if kappa == np.inf:
        return float(l @ problem.target**2)
    _, spare = _spare(l, kappa, samples)
    bias = float(l @ (kappa / (l + kappa) * problem.target) ** 2)
    risk = bias + problem.noise_variance / samples * float(np.sum((l / (l + kappa)) ** 2))
    if spare <= 0.0:  # as many rows as features, and no penalty
        return np.inf if risk else 0.0
    return risk / spare


class _Contour(NamedTuple):
    """Nodes z of the upper half, and weights dz / (2 pi i), of the integral counterclockwise; the rest is conjugate."""

    z: Complex
    weights: Complex


def _contour(edge: float, reach: float, nodes: int) -> _Contour:
    """Around [0, edge], in the gap between it and the real numbers beyond -2 / reach and edge + 2 / reach."""
    gap = 2.0 * min(2.0 / reach if reach > 0 else np.inf, edge) / edge
    m = 1.0 / (1.0 + gap) ** 2
    complement = 1.0 - m
    period, height = ellipkm1(complement), _HEIGHT * ellipkm1(m)
    step = 2.0 * period / nodes
    s, c, _, _ = ellipj((np.arange(nodes) + 0.5) * step, m)
    d = np.sqrt(complement + m * c**2)  # where d is small, ellipj's is not exact
    s1, c1, d1, _ = ellipj(height, complement)
    below = c1**2 + m * (s * s1) ** 2
    sn = (s * d1 + 1j * c * d * s1 * c1) / below
    cn = (c * c1 - 1j * s * d * s1 * d1) / below
    dn = (d * c1 * d1 - 1j * m * s * c * s1) / below
    # z / edge = (1 - cn / dn) / 2, written so that it is exact near 0
    near = complement * sn**2 / (dn * np.where(cn.real > 0, dn + cn, 1.0))
    z = 0.5 * edge * np.where(cn.real > 0, near, (dn - cn) / dn)
    along = 0.5 * edge * complement * sn / dn**2 * step
    return _Contour(z, -along / (2j * np.pi))


def _companion(l: Floats, z: Complex, samples: int) -> tuple[Complex, Complex]:
    """kappa(z) for z in the upper half plane, and (kappa - kappa(0)) / -z, in which nothing cancels.

    The map kappa -> -z + kappa df1 / n takes the lower half plane into itself, so its iterates approach the one root
    that is there; Newton's method finishes what they have begun. As df1(kappa(0)) = n if rows are fewer than features,

        z = -(kappa - kappa(0)) rest / n,   rest = max(n - d, 0) + sum_i l_i kappa / ((l_i + kappa(0)) (l_i + kappa))
    """
    floor, more = smallest_shift(l, samples), max(samples - len(l), 0)
    start = -z + l.sum() / samples
    above, inverse = np.empty_like(z), np.empty_like(z)
    missing = np.arange(len(z))
    for _ in range(200):
        at, k = z[missing], start[missing]
        for _ in range(10):
            k = -at + k * (l / (l + k[:, None])).sum(-1) / samples
        start[missing] = k
        e = k - floor
        for _ in range(12):
            share = l / (l + k[:, None])
            rest = (more + k * (share / (l + floor)).sum(-1)) / samples
            change = (at + e * rest) / (1.0 - (share**2).sum(-1) / samples)
            e = e - change
            k = floor + e
        done = (np.abs(change) <= 1e-12 * np.abs(e)) & (k.imag < 0)
        above[missing[done]], inverse[missing[done]] = e[done], 1.0 / rest[done]
        missing = missing[~done]
        if not len(missing):
            return floor + above, inverse
    raise ValueError(f"samples={samples}: no equivalent of the spectrum was found near z={z[missing[0]]:.3g}.")


def _integrals(
    problem: LinearProblem, kept: Callable[[Complex], Complex], reach: float, samples: int, nodes: int
) -> tuple[Floats, Floats]:
    """Risks (methods,) without the approximation error, and the size (methods,) of the terms they are sums of."""
    l, start = problem.eigenvalues, problem.eigenvalues * problem.target**2
    z, weights = _contour(largest_eigenvalue(l, samples), reach, nodes)
    kappa, inverse = _companion(l, z, samples)
    f = kept(z)
    resolvent = 1.0 / (l + kappa[:, None])
    u = f * (weights * (smallest_shift(l, samples) / z - inverse))
    bias, size = np.zeros(len(u)), np.zeros(len(u))
    for other, v in ((resolvent, u), (resolvent.conj(), u.conj())):
        kernel = (resolvent * start) @ other.T / (1.0 - (resolvent * l**2) @ other.T / samples)
        bias += 2.0 * ((u @ kernel) * v).sum(-1).real
        size += 2.0 * ((np.abs(u) @ np.abs(kernel)) * np.abs(v)).sum(-1)
    terms = problem.noise_variance * (1.0 - f) ** 2 * (-weights * inverse / z)
    return bias + 2.0 * terms.sum(-1).real, size + 2.0 * np.abs(terms).sum(-1)
