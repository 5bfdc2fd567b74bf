"""What the papers predict for SGD on a power law, up to constants: rates, bounds, and what limits a run.

    a, b, features, samples, steps --> rates, term by term --> regime: the largest term and its exponents
    problem, lr, steps             --> bounds, term by term, beside the exact `sgd_risk`

Everything here is a constant-factor statement: it says how a risk scales, not what it is. Eigenvalues fall as i^-a and
the terms of the initial risk as i^-b, as in `power_law`, with noise of order 1; features M, samples (rows) N, steps L.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from data.problems import Floats, LinearProblem
from scaling.theory.stability import check_batch_size, check_stable


class Terms(NamedTuple):
    """Parts of an excess risk, each up to a constant factor."""

    approximation: float
    """of the best w these features allow"""
    bias: float
    """what is left of w* on the mean path"""
    variance: float
    """noise of the answers that got into w"""
    feedback: float = 0.0
    """gradient noise that the bias makes on its way: an upper bound, far too large once a burn-in has forgotten it"""

    @property
    def total(self) -> float:
        return sum(self)

    @property
    def largest(self) -> str:
        """Its name."""
        return self._fields[int(np.argmax(self))]


@dataclass(frozen=True)
class Regime:
    """What limits a run, to leading order: logarithms, rates and constants are left out."""

    name: str
    """"feature-limited", "step-limited" or "variance-limited" """
    term: str
    """the term of `Terms` that dominates"""
    exponents: dict[str, float]
    """of that term, in "features", "samples" and "steps": the risk scales as the product of their powers"""


def halving_rates(lr: float, steps: int) -> Floats:
    """(steps,): log2(steps) stages of equal length, the first at `lr`, each next at half of it (arXiv:2110.06198)."""
    if steps < 1:
        raise ValueError(f"steps={steps} must be at least 1.")
    return lr * 0.5 ** np.floor(np.arange(steps) / effective_steps(steps))


def effective_steps(steps: float) -> float:
    """Length of a stage of `halving_rates`: steps / log2(steps)."""
    return steps / max(float(np.log2(steps)), 1.0)


def one_pass_rate(
    a: float, b: float, features: float, samples: float, *, lr: float = 1.0, batch_size: float = 1.0
) -> Terms:
    """One pass of SGD with `halving_rates` from `lr` (in units of 1 / l_1), up to constants:

        M^(1-b)  +  (L' lr)^((1-b)/a)  +  min(M, (L' lr)^(1/a)) / (B L'),    L = N / B,  L' = L / log2 L

    `features` may be infinite. Exponents and variance are published (arXiv:2506.08415 for a > b; arXiv:2605.24316 for
    batches). How lr enters the bias, and the base of the logarithm, are recalled from arXiv:2406.08466, not confirmed.
    """
    check_batch_size(batch_size)
    return multi_pass_rate(a, b, features, samples, samples / batch_size, lr=lr, batch_size=batch_size)


def multi_pass_rate(
    a: float, b: float, features: float, samples: float, steps: float, *, lr: float = 1.0, batch_size: float = 1.0
) -> Terms:
    """`steps` of SGD that draw from `samples` rows, again and again where they exceed them, up to constants:

        M^(1-b)  +  (L' lr)^((1-b)/a)  +  min(M, (L' lr)^(1/a)) / min(N, B L')

    The first two are published for a > b > 1 and L up to N^(a/b) (arXiv:2506.08415), where they dominate. The variance
    is derived, not published: gradient descent's on N rows beyond a pass, one pass's before. See `one_pass_rate`.
    """
    check_batch_size(batch_size)
    if not 0 < lr < np.inf:
        raise ValueError(f"lr={lr} must be more than 0, and finite.")
    _check(a, b, features, samples, steps)
    return _terms(a, b, features, effective_steps(steps) * lr, min(samples, batch_size * effective_steps(steps)))


def useful_steps(a: float, b: float, samples: float) -> float:
    """N^(a/b): steps from which on noise outweighs what more steps would learn, the risk being N^((1-b)/b).

    More than N where a > b: then further passes over the same rows help (arXiv:2506.08415).
    """
    _check(a, b, np.inf, samples, samples)
    return float(samples ** (a / b))


def regime(a: float, b: float, features: float, samples: float, steps: float | None = None) -> Regime:
    """What limits `steps` of SGD on `samples` rows (by default one pass, row by row), seen through `features`.

    Compares the powers of `multi_pass_rate` alone, so the borders are exact powers: features M = L^(1/a), and steps
    L = N^(a/b). Near a border, and for small numbers, constants decide: compute the risk itself there.
    """
    steps = samples if steps is None else steps
    _check(a, b, features, samples, steps)
    term = _terms(a, b, features, steps, min(samples, steps)).largest
    if term == "approximation":
        return Regime("feature-limited", term, {"features": 1.0 - b})
    if term == "bias":
        return Regime("step-limited", term, {"steps": (1.0 - b) / a})
    learned = {"features": 1.0} if features <= steps ** (1.0 / a) else {"steps": 1.0 / a}
    fewer = "samples" if samples <= steps else "steps"
    return Regime("variance-limited", term, learned | {fewer: learned.get(fewer, 0.0) - 1.0})


def tail_averaged_bound(
    problem: LinearProblem, lr: float, burn_in: int, averaged: int, batch_size: float = 1.0
) -> Terms:
    """Mean of `averaged` iterates after `burn_in` steps at one rate, up to constants. With N = averaged, s = burn_in,
    d_i = (1 - lr l_i)^s w*_i, and the k eigenvalues of at least 1 / (lr N):

        bias      sum_(i<=k) d_i^2 / (l_i (lr N)^2) + sum_(i>k) l_i d_i^2
        variance  noise / B (k / N + sum_(i>k) min(lr l_i, lr^2 l_i^2 (s + N)))
        feedback  as variance, with sum_(i<=k) w*_i^2 / (lr N) + sum_(i>k) l_i w*_i^2 in place of the noise

    The form is recalled from Zou et al. (arXiv:2103.12692; a shorter proof: arXiv:2506.15535), its constants are not
    theirs. Measured up to half of the largest stable rate: exact risks are at most the total, and at least 0.2 of it
    for noise of order 1, any s and N. Nearer to that rate they exceed it. ValueError for an unstable rate.
    """
    if burn_in < 0 or averaged < 1:
        raise ValueError(f"burn_in={burn_in} must be 0 or more steps, averaged={averaged} at least 1.")
    l, learned = problem.eigenvalues, _learned(problem, lr, averaged, batch_size)
    c = problem.target**2 * (1.0 - lr * l) ** (2 * burn_in)
    bias = np.where(learned, c / (l * (lr * averaged) ** 2), l * c).sum()
    gathered = np.minimum(lr * l, (lr * l) ** 2 * (burn_in + averaged))
    gain = np.where(learned, 1.0 / averaged, gathered).sum() / batch_size
    return _bound(problem, float(bias), float(gain), np.where(learned, 1.0 / (lr * averaged), l))


def last_iterate_bound(problem: LinearProblem, lr: float, steps: int, batch_size: float = 1.0) -> Terms:
    """Last iterate of `steps` with `halving_rates` from `lr`, up to constants. With L' = steps / log2(steps), and the k
    eigenvalues of at least 1 / (lr L'):

        bias      sum_i l_i w*_i^2 prod_t (1 - lr_t l_i)^2, which is exact for the mean path
        variance  noise / B (k / L' + lr^2 L' sum_(i>k) l_i^2)
        feedback  as variance, with sum_(i<=k) w*_i^2 / (lr L') + sum_(i>k) l_i w*_i^2 in place of the noise

    The form is recalled from Wu et al. (arXiv:2110.06198), its constants are not theirs: up to half of the
    largest stable rate, exact risks were 0.19 to 1 times the total, for any noise. ValueError for an unstable rate.
    """
    rates, counts = np.unique(halving_rates(lr, steps), return_counts=True)
    l, length = problem.eigenvalues, effective_steps(steps)
    learned = _learned(problem, lr, length, batch_size)
    kept = np.prod([(1.0 - rate * l) ** (2 * count) for rate, count in zip(rates, counts, strict=True)], axis=0)
    gain = np.where(learned, 1.0 / length, (lr * l) ** 2 * length).sum() / batch_size
    bias = float(l * problem.target**2 @ kept)
    return _bound(problem, bias, float(gain), np.where(learned, 1.0 / (lr * length), l))


def _bound(problem: LinearProblem, bias: float, gain: float, passed: Floats) -> Terms:
    """`gain`: risk per unit of noise; `passed` (d,): mean risk on the way, per unit of w*_i^2."""
    feedback = gain * float(problem.target**2 @ passed)
    return Terms(problem.approximation_error, bias, problem.noise_variance * gain, feedback)


def _learned(problem: LinearProblem, lr: float, steps: float, batch_size: float) -> np.ndarray:
    """Which eigenvalues (d,) such steps learn."""
    check_stable(problem, np.array([lr]), np.array([batch_size]))
    if not lr > 0:
        raise ValueError(f"lr={lr} must be more than 0.")
    return problem.eigenvalues * lr * steps >= 1.0


def _terms(a: float, b: float, features: float, time: float, rows: float) -> Terms:
    """`time`: steps times rate; `rows`: how many of the answers' noise averages over."""
    return Terms(features ** (1.0 - b), time ** ((1.0 - b) / a), min(features, time ** (1.0 / a)) / rows)


def _check(a: float, b: float, features: float, samples: float, steps: float) -> None:
    for name, value in (("a", a), ("b", b)):
        if not 1 < value < np.inf:
            raise ValueError(f"{name}={value}: the power law does not sum. Use more than 1.")
    if not features >= 1:
        raise ValueError(f"features={features} must be at least 1; infinity is allowed.")
    for name, value in (("samples", samples), ("steps", steps)):
        if not 1 <= value < np.inf:
            raise ValueError(f"{name}={value} must be at least 1, and finite.")
