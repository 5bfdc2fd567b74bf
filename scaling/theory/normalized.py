"""Normalized SGD: steps of lr g / sqrt(E|g|^2), as a stand-in for Adam whose expected risk is still exact.

The norm is an expectation, so the step is that of SGD with the deterministic rate lr / sqrt(E|g_t|^2), which the state
of the recursion gives (Seesaw, arXiv:2510.14717, normalizes so).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from data.problems import Floats, LinearProblem
from optim.plan import Plan
from scaling.theory.modes import exact_modes
from scaling.theory.sgd import asked_steps, schedule_of
from scaling.theory.stability import check_batch_size, check_rates


def normalized_sgd_risk(
    problem: LinearProblem,
    lr: ArrayLike | None = None,
    batch_size: ArrayLike | None = None,
    steps: int | None = None,
    *,
    plan: Plan | None = None,
    at: ArrayLike | None = None,
    noise_only: bool = False,
) -> Floats:
    """Excess risk after `at` steps, as `sgd_risk` gives it.

    `noise_only`: divide by the root of noise_variance tr(H) / B alone, as if gradients were nothing but the noise of
    the answers (Seesaw's second assumption); then a ramp that is too steep diverges, and risks grow to infinity. With
    the whole norm nothing diverges: steps that are too large end in a ring around the answer.
    """
    run = schedule_of(lr, batch_size, steps, plan)
    check_batch_size(run.batch_size)
    check_rates(run.lr)
    asked = asked_steps(at, len(run.lr))
    if noise_only and problem.noise_variance == 0:
        raise ValueError("noise_variance=0: without noise there is nothing to divide by. Use noise_only=False.")
    _, risks = effective_rates(problem, run.lr, run.batch_size, noise_only)
    return risks[asked] + problem.approximation_error


def effective_rates(
    problem: LinearProblem, lr: Floats, batch_size: Floats, noise_only: bool = False
) -> tuple[Floats, Floats]:
    """The rates (T,) of the SGD that normalized SGD is, and its risks (T + 1,) without the approximation error."""
    modes = exact_modes(problem)
    r, q, noise, trace = modes.r.copy(), modes.q, problem.noise_variance, problem.eigenvalues.sum()
    rates, risks = np.empty(len(lr)), np.empty(len(lr) + 1)
    with np.errstate(over="ignore", invalid="ignore"):
        for t, (rate, batch) in enumerate(zip(lr.tolist(), batch_size.tolist(), strict=True)):
            risk, signal = r.sum(), modes.rates @ r
            risks[t] = risk
            square = noise * trace / batch if noise_only else signal + (signal + (risk + noise) * trace) / batch
            rates[t] = step = rate / np.sqrt(square) if square > 0 else 0.0  # at the answer, without noise: no gradient
            r = modes.kept(step, batch) * r + step**2 / batch * (risk + noise) * q
    risks[-1] = r.sum()
    return rates, np.where(np.isnan(risks), np.inf, risks)
