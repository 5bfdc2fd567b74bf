"""Data pruning by difficulty, in the one model where everything is known: a perceptron that learns from a perceptron.

    teacher --labels--> P = alpha_tot n examples --probe ranks by |margin|--> share kept --max margin--> student

The model of Sorscher et al. 2022 (arXiv:2206.14486): Gaussian inputs in n dimensions, a probe at angle theta to the
teacher that says how hard each example is, a student of maximal margin on what is kept, and its test error, which is
its angle to the teacher over pi. `simulate` draws it at finite n. `limit` is what the simulation tends to at large n;
the paper derives that by replicas, here it follows from Gordon's comparison inequality (Communications on Pure and
Applied Mathematics 1985; Thrampoulidis et al. 2015 for its converse). Both show what the paper says: with many
examples per parameter keep the hard ones, with few the easy ones, and with an imperfect probe (theta > 0) keeping only
the hardest stops paying.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import brentq, minimize, nnls
from scipy.special import ndtr, ndtri

Kept = Literal["hard", "easy"]


@dataclass(frozen=True)
class Pruned:
    """What a simulation found. `error`: mean test error of the student, `standard_error` of that mean over trials;
    `alpha`: examples kept per parameter."""

    error: float
    standard_error: float
    alpha: float


def simulate(
    alpha_tot: float,
    keep: float = 1.0,
    theta: float = 0.0,
    which: Kept = "hard",
    dimension: int = 60,
    trials: int = 20,
    seed: int = 0,
) -> Pruned:
    """Test error of a student trained on the share `keep` of `alpha_tot` examples per parameter.

    `which`: whether the examples nearest the probe's boundary are kept ("hard") or the farthest ones. `theta`: angle
    in radians between probe and teacher, 0 for perfect knowledge of difficulty.
    """
    _check(alpha_tot, keep, theta)
    kept = round(alpha_tot * keep * dimension)
    if kept < 1 or dimension < 2 or trials < 2:
        raise ValueError(
            f"alpha_tot={alpha_tot}, keep={keep}, dimension={dimension}, trials={trials}: at least one kept example, "
            "two dimensions and two trials are needed."
        )
    rng = np.random.default_rng(seed)
    examples = round(alpha_tot * dimension)
    errors = [_error(rng, examples, kept, theta, which, dimension) for _ in range(trials)]
    return Pruned(float(np.mean(errors)), float(np.std(errors, ddof=1) / np.sqrt(trials)), kept / dimension)


def limit(alpha_tot: float, keep: float = 1.0, theta: float = 0.0, which: Kept = "hard", nodes: int = 30) -> float:
    """The test error of `simulate` at infinite dimension.

    A student R teacher + S (the probe's part across the teacher) + sqrt(1 - R^2 - S^2) (all else) can have all margins
    at least kappa if and only if alpha E[max(0, kappa - margin)^2] <= 1 - R^2 - S^2, where the expectation is over a
    kept example and the margin's Gaussian part from all else; the student of maximal margin is at the R and S that
    allow the largest kappa.
    """
    _check(alpha_tot, keep, theta)
    along, across, weights = _kept_margins(keep, theta, which, nodes)
    alpha = alpha_tot * keep

    def margin(direction: np.ndarray) -> float:
        rest = 1.0 / np.hypot(1.0, np.hypot(*direction))  # the size of all else
        fixed = direction[0] * along + direction[1] * across

        def excess(kappa: float) -> float:
            short = kappa / rest - fixed
            density = np.exp(-0.5 * short * short) / np.sqrt(2 * np.pi)
            return alpha * float(weights @ ((1 + short * short) * ndtr(short) + short * density)) - 1.0

        return brentq(excess, -50.0, 50.0, xtol=1e-13)

    start = np.array([np.sqrt(2 * alpha / np.pi), 0.0])
    options = {"xatol": 1e-7, "fatol": 1e-13, "maxiter": 2000, "maxfev": 2000}
    best = minimize(lambda direction: -margin(direction), start, method="Nelder-Mead", options=options).x
    return float(np.arctan2(np.hypot(1.0, best[1]), best[0]) / np.pi)


def max_margin(inputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The unit vector (n,) with the largest min over rows of label * inputs @ w, for separable `inputs` (rows, n).

    The shortest w with every margin at least 1 is a least-distance problem, which non-negative least squares solves
    exactly (Lawson and Hanson, Solving Least Squares Problems, chapter 23).
    """
    signed = labels[:, None] * inputs
    system = np.concatenate([signed.T, np.ones((1, len(signed)))])
    goal = np.zeros(len(system))
    goal[-1] = 1.0
    weights, _ = nnls(system, goal, maxiter=50 * len(signed))
    w = signed.T @ weights
    return w / np.linalg.norm(w)


def _check(alpha_tot: float, keep: float, theta: float) -> None:
    if not alpha_tot > 0:
        raise ValueError(f"alpha_tot={alpha_tot} must be positive: examples per parameter before pruning.")
    if not 0 < keep <= 1:
        raise ValueError(f"keep={keep} must lie in (0, 1]: the share of the examples that is kept.")
    if not 0 <= theta <= np.pi / 2:
        raise ValueError(f"theta={theta} must lie between 0 and pi / 2 radians.")


def _error(rng: np.random.Generator, examples: int, kept: int, theta: float, which: Kept, dimension: int) -> float:
    """One draw: the teacher is the first axis, the probe lies between the first two."""
    inputs = rng.standard_normal((examples, dimension))
    labels = np.sign(inputs[:, 0])
    difficulty = np.abs(np.cos(theta) * inputs[:, 0] + np.sin(theta) * inputs[:, 1])
    order = np.argsort(difficulty)
    chosen = order[:kept] if which == "hard" else order[len(order) - kept :]
    student = max_margin(inputs[chosen], labels[chosen])
    return float(np.arccos(np.clip(student[0], -1.0, 1.0)) / np.pi)


def _kept_margins(keep: float, theta: float, which: Kept, nodes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Label times component of kept examples, along the teacher and across it towards the probe, and their weights.

    Gauss-Legendre in the quantiles of the probe's component and of the one orthogonal to it, in pieces that end at the
    teacher's boundary, with nodes that crowd there: that is where the student's margins are.
    """
    places, sizes = np.polynomial.legendre.leggauss(nodes)
    crowded = (0.5 * (places + 1.0)) ** 2  # from 0 to 1
    sizes = 0.5 * sizes * (places + 1.0)
    share = keep * crowded if which == "hard" else 1.0 - keep + keep * crowded
    probe = ndtri(0.5 * (1.0 + share))[:, None]
    with np.errstate(divide="ignore"):
        boundary = ndtr(probe * (np.cos(theta) / np.sin(theta)))  # below this quantile, the teacher says yes
    quantiles = np.concatenate([boundary * (1.0 - crowded), boundary + (1.0 - boundary) * crowded], axis=1)
    weights = sizes[:, None] * np.concatenate([boundary * sizes, (1.0 - boundary) * sizes], axis=1)
    other = ndtri(np.clip(quantiles, 1e-300, 1.0 - 1e-16))
    along = np.cos(theta) * probe - np.sin(theta) * other
    across = np.sin(theta) * probe + np.cos(theta) * other
    return np.abs(along).ravel(), (np.sign(along) * across).ravel(), weights.ravel()
