"""What early stopping does for logistic regression: population risks along gradient descent and along the ridge path.

    model --sample--> problem;   model, problem, lr, at --early_stopping_path--> both paths, scored

Rows are Gaussian, so <x, w> and <x, w*> are jointly so, and risks are integrals over one variable. Trained to the end,
gradient descent on separable data grows without bound, and so does its risk; stopped in time it does about as well as a
penalty of 1 / (lr t) (Wu et al., arXiv:2502.13283).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit

from data.problems import Floats
from data.separable import LogisticModel, LogisticProblem
from scaling.theory.logistic import logistic_gd, logistic_optima

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(96)  # on (-1, 1)
_FAR = 40.0  # e^-40 is below rounding
_DEVIATIONS = 9.0  # of a Gaussian, that leave out 2e-19


class Scored(NamedTuple):
    """Weights `w` (k, d), their `norm` (k,), and what they risk in excess of w*, (k,) each."""

    w: Floats
    norm: Floats
    risk: Floats
    error: Floats


class EarlyStopping(NamedTuple):
    """Gradient descent after `steps` (k,), and the minimisers with the `penalties` (k,) 1 / (lr t) beside them."""

    steps: np.ndarray
    penalties: Floats
    stopped: Scored
    ridge: Scored
    cosine: Floats
    """of the angle between the two (k,)"""


def population_risk(model: LogisticModel, w: ArrayLike) -> Floats:
    """E log(1 + exp(-y <x, w>)) at w (..., d), in the shape (...), to rounding.

    For s = <x, w>, s* = <x, w*> and the logistic function f it is E log(2 cosh(s / 2)) - Cov(s, s*) E f'(s*), since
    E[y s] = 2 E[s f(s*)] and by Stein's lemma.
    """
    w = np.asarray(w, dtype=np.float64)
    scale = np.sqrt(w**2 @ model.eigenvalues)
    shared = w @ (model.eigenvalues * model.target)
    far = scale * np.sqrt(2.0 / np.pi)  # E|s|, as log(2 cosh(s / 2)) = |s| / 2 + log(1 + exp(-|s|))
    return far / 2.0 + _folded(scale, lambda u: np.log1p(np.exp(-u))) - shared * _slope(_deviation(model))


def population_error(model: LogisticModel, w: ArrayLike) -> Floats:
    """P(y <x, w> < 0) at w (..., d), in the shape (...): 1/2 at w = 0. To about 1e-12 while |<x, w*>| is below some 30.

    With sin(a) the correlation of s = <x, w> and s* = <x, w*>, and S the deviation of s*, it is 1/2 - S sqrt(2 / pi)
    times the integral over b from 0 to a of E f'(N(0, S^2 cos^2 b)) cos b, by Price's theorem on E[tanh(s* / 2)
    sign(s)].
    """
    w = np.asarray(w, dtype=np.float64)
    scale, best = np.sqrt(w**2 @ model.eigenvalues), _deviation(model)
    shared = w @ (model.eigenvalues * model.target)
    product = scale * best
    angle = np.arcsin(np.clip(np.divide(shared, product, out=np.zeros_like(shared), where=product > 0), -1.0, 1.0))
    b = angle[..., None] * (_NODES + 1.0) / 2.0
    integral = (np.cos(b) * _slope(best * np.cos(b))) @ _WEIGHTS * angle / 2.0
    return 0.5 - best * np.sqrt(2.0 / np.pi) * integral


def early_stopping_path(model: LogisticModel, problem: LogisticProblem, lr: float, at: ArrayLike) -> EarlyStopping:
    """Gradient descent with the constant `lr` after `at` steps (k,), each at least 1, and ridge with 1 / (lr t).

    With lr <= 1 / sharpness at w = 0 the two differ by at most |w_t| / sqrt(2), whatever the data: their angle is below
    45 degrees, and their norms are within a factor of 1 - 1 / sqrt(2) to 1 + 1 / sqrt(2) (derived in docs/theory.md).
    """
    steps = np.asarray(at)
    if problem.dimension != model.dimension:
        raise ValueError(f"problem has the dimension {problem.dimension}, model {model.dimension}: sample it there.")
    if steps.ndim != 1 or not steps.size or not (steps >= 1).all():
        raise ValueError(f"at={steps} must be numbers (k,) of steps, each at least 1: a penalty is 1 / (lr steps).")
    if not 0 < lr < np.inf:
        raise ValueError(f"lr={lr} must be above 0, and finite.")
    penalties = 1.0 / (lr * steps)
    w = logistic_gd(problem, lr, int(steps.max()), at=steps).iterates
    ridge = np.stack([optimum.w for optimum in logistic_optima(problem, penalties)])
    stopped, penalised = scored(model, w), scored(model, ridge)
    cosine = (w * ridge).sum(-1) / (stopped.norm * penalised.norm)
    return EarlyStopping(steps, penalties, stopped, penalised, cosine)


def scored(model: LogisticModel, w: ArrayLike) -> Scored:
    """Of weights w (k, d)."""
    w = np.asarray(w, dtype=np.float64)
    risk = population_risk(model, w) - population_risk(model, model.target)
    error = population_error(model, w) - population_error(model, model.target)
    return Scored(w, np.linalg.norm(w, axis=-1), risk, error)


def _deviation(model: LogisticModel) -> Floats:
    """Of <x, w*>."""
    return np.sqrt(model.target**2 @ model.eigenvalues)


def _slope(scale: Floats) -> Floats:
    """E f'(s) for s ~ N(0, scale^2)."""
    return _folded(scale, lambda u: expit(u) * expit(-u))


def _folded(scale: Floats, function: Callable[[Floats], Floats]) -> Floats:
    """E function(|s|) for s ~ N(0, scale^2) and functions that fall like exp(-|s|)."""
    scale = np.asarray(scale, dtype=np.float64)
    safe = np.where(scale > 0, scale, 1.0)[..., None]
    reach = np.minimum(_FAR, _DEVIATIONS * safe)
    u = reach * (_NODES + 1.0) / 2.0
    density = np.exp(-((u / safe) ** 2) / 2.0) * np.sqrt(2.0 / np.pi) / safe
    found = (function(u) * density) @ _WEIGHTS * reach[..., 0] / 2.0
    return np.where(scale > 0, found, function(np.zeros(())))
