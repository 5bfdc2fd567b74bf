"""Gradient descent and ridge regression: expected excess risks on a given design, on random rows, and on endless ones.

    problem, lr, steps | penalty --what each direction keeps of w*, and gains from the answers--> risk

Both are spectral methods. With S = X'X / n they end at w = w* - f(S) w* + g(S) X' noise / n: a direction of S with
eigenvalue s keeps f(s) of the error at w = 0, and 1 - f(s) = s g(s).

    gradient descent  f = prod_t (1 - lr_t s)         g = (1 - f) / s
    ridge             f = penalty / (s + penalty)     g = 1 / (s + penalty)

Without a design or a number of samples S is H, and nothing is noisy. Samples: `equivalents`.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import log1p

from data.problems import Floats, LinearProblem
from scaling.theory.equivalents import (
    Complex,
    check_samples,
    largest_eigenvalue,
    ridge_equivalent,
    spectral_equivalent,
)
from scaling.theory.sgd import asked_steps
from scaling.theory.stability import check_rates
from scaling.theory.stages import powers, sums


class Filter(NamedTuple):
    """What methods do to directions of S, (methods, directions) each."""

    kept: Floats
    """f: share of the error at w = 0 that stays"""
    gain: Floats
    """g = (1 - f) / s: what the gradient at w = 0 is multiplied with"""


def gd_risk(
    problem: LinearProblem,
    lr: ArrayLike,
    steps: int | None = None,
    *,
    at: ArrayLike | None = None,
    design: ArrayLike | None = None,
    samples: int | None = None,
    in_sample: bool = False,
) -> Floats:
    """Excess risk of full-batch gradient descent on (1/2n) |y - X w|^2 after `at` steps (any shape; by default all).

    lr: a number, or one per step. design: rows X (n, d) in the problem's coordinates; the risk is exact, in expectation
    over the noise of the answers. samples: n, for Gaussian rows; the risk is its limit for many rows and features, with
    an error of O(1/n). With neither, the gradient is the population's: SGD with an endless batch.
    in_sample: of the design's own rows, E |X (w - w*)|^2 / n, without the approximation error.
    ValueError for a rate from 2 / (largest eigenvalue) on. Source: derived in docs/theory.md.
    """
    schedule, count = _schedule(lr, steps)
    asked = asked_steps(at, count)
    flat = asked.ravel()
    _check_data(design, samples, in_sample)
    if samples is not None:
        check_samples(samples)
        _check_rates(schedule, largest_eigenvalue(problem.eigenvalues, samples))
        reach = sum(rate * more for rate, more, _ in _stretches(schedule, flat))
        risks = spectral_equivalent(problem, lambda z: _kept(z, schedule, flat), reach, samples)
    elif design is not None:
        spectrum = _spectrum(problem, design)
        _check_rates(schedule, float(spectrum.s.max(initial=0.0)))
        risks = _design_risk(problem, spectrum, descent_filter(spectrum.s, schedule, flat), in_sample)
    else:
        _check_rates(schedule, float(problem.eigenvalues.max()))
        risks = _population_risk(problem, descent_filter(problem.eigenvalues, schedule, flat))
    return risks.reshape(asked.shape)


def ridge_risk(
    problem: LinearProblem,
    penalty: ArrayLike,
    *,
    design: ArrayLike | None = None,
    samples: int | None = None,
    in_sample: bool = False,
) -> Floats:
    """Excess risk of the minimum of (1/2n) |y - X w|^2 + (penalty / 2) |w|^2, in the shape of `penalty`.

    penalty: 0 is the solution of smallest norm, infinity w = 0. design, samples, in_sample: as of `gd_risk`; with
    neither design nor samples, of endlessly many rows.
    """
    asked = np.asarray(penalty, dtype=np.float64)
    if not (asked >= 0).all():
        raise ValueError(f"penalty={asked[~(asked >= 0)][0]} must be 0 or more: infinity keeps w at 0.")
    _check_data(design, samples, in_sample)
    if samples is not None:
        return ridge_equivalent(problem, asked, samples)
    if design is not None:
        spectrum = _spectrum(problem, design)
        risks = _design_risk(problem, spectrum, ridge_filter(spectrum.s, asked.ravel()), in_sample)
    else:
        risks = _population_risk(problem, ridge_filter(problem.eigenvalues, asked.ravel()))
    return risks.reshape(asked.shape)


def descent_filter(s: Floats, lr: Floats, asked: np.ndarray) -> Filter:
    """Of gradient descent after `asked` steps (asked,), for eigenvalues `s` and a rate or one per step."""
    kept, gain = np.ones((len(asked), len(s))), np.zeros((len(asked), len(s)))
    now_kept, now_gain = np.ones_like(s), np.zeros_like(s)
    for rate, count, reached in _stretches(lr, asked):
        now_gain = now_gain + now_kept * rate * sums(rate * s, np.asarray(count))
        now_kept = now_kept * powers(rate * s, np.asarray(count))
        kept[reached], gain[reached] = now_kept, now_gain
    return Filter(kept, gain)


def ridge_filter(s: Floats, penalty: Floats) -> Filter:
    """Of ridge regression with each `penalty` (penalties,). A direction without rows, s = 0, gains nothing at 0."""
    gamma = penalty[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        kept = np.where((s == 0) & (gamma == 0), 1.0, 1.0 / (1.0 + s / gamma))
        gain = np.where((s == 0) & (gamma == 0), 0.0, 1.0 / (s + gamma))
    return Filter(kept, gain)


class _Spectrum(NamedTuple):
    """S = basis' diag(s) basis, of n rows: (r,) and (r, d) with r = min(n, d)."""

    s: Floats
    basis: Floats
    rows: int


def _spectrum(problem: LinearProblem, design: ArrayLike) -> _Spectrum:
    rows = np.asarray(design, dtype=np.float64)
    if rows.ndim != 2 or not len(rows) or rows.shape[1] != problem.dimension or not np.isfinite(rows).all():
        raise ValueError(f"design must be finite numbers of shape (rows, {problem.dimension}), not {rows.shape}.")
    _, singular, basis = np.linalg.svd(rows, full_matrices=False)
    singular[singular <= np.finfo(float).eps * max(rows.shape) * singular[0]] = 0.0
    return _Spectrum(singular**2 / len(rows), basis, len(rows))


def _design_risk(problem: LinearProblem, spectrum: _Spectrum, of: Filter, in_sample: bool) -> Floats:
    s, basis, rows = spectrum
    noise = problem.noise_variance / rows
    start = basis @ problem.target
    if in_sample:
        return of.kept**2 @ (s * start**2) + noise * ((s * of.gain) ** 2).sum(-1)
    unseen = problem.target - start @ basis
    bias = (unseen + (of.kept * start) @ basis) ** 2 @ problem.eigenvalues
    return bias + noise * (of.gain**2 @ (s * (basis**2 @ problem.eigenvalues))) + problem.approximation_error


def _population_risk(problem: LinearProblem, of: Filter) -> Floats:
    return of.kept**2 @ (problem.eigenvalues * problem.target**2) + problem.approximation_error


def _kept(z: Complex, lr: Floats, asked: np.ndarray) -> Complex:
    """f (asked, nodes) of gradient descent at complex z."""
    logs = np.zeros((len(asked), len(z)), dtype=np.complex128)
    now = np.zeros_like(z)
    for rate, count, reached in _stretches(lr, asked):
        now = now + count * log1p(-rate * z)  # NumPy's is not exact near 0 where z is complex
        logs[reached] = now
    return np.exp(logs)


def _stretches(lr: Floats, asked: np.ndarray) -> Iterator[tuple[float, int, np.ndarray]]:
    """(rate, equal steps, which of `asked` lie at their end) in order, up to the last asked."""
    last = int(asked.max(initial=0))
    changes = np.flatnonzero(np.diff(lr[:last])) + 1 if lr.ndim else np.empty(0, dtype=int)
    for begin, end in pairwise(np.unique(np.concatenate([[0], changes, asked])).tolist()):
        yield float(lr[begin] if lr.ndim else lr), end - begin, asked == end


def _schedule(lr: ArrayLike, steps: int | None) -> tuple[Floats, int]:
    """The rate, or one per step, and the number of steps."""
    rates = np.asarray(lr, dtype=np.float64)
    if rates.ndim > 1 or (rates.ndim == 1 and steps not in (None, len(rates))):
        raise ValueError(f"lr has the shape {rates.shape}: give a number, or one for each of steps={steps}.")
    if steps is None and not rates.ndim:
        raise ValueError("say how many steps are made: steps=..., or one lr per step.")
    count = len(rates) if steps is None else steps
    if count < 0:
        raise ValueError(f"steps={count} must be 0 or more.")
    return rates, count


def _check_rates(lr: Floats, largest: float) -> None:
    check_rates(lr)
    if (lr * largest >= 2.0).any():
        raise ValueError(
            f"lr={lr.max():.6g} is unstable: the largest eigenvalue is {largest:.6g}, so gradient descent diverges "
            f"from lr={2.0 / largest:.6g} on. Use a smaller rate."
        )


def _check_data(design: ArrayLike | None, samples: int | None, in_sample: bool) -> None:
    if design is not None and samples is not None:
        raise ValueError("give a design or a number of samples, not both: a design has its own.")
    if in_sample and design is None:
        raise ValueError("in_sample=True is the risk on a design's own rows: give the design.")
