"""What a fit's data cannot tell, in words.

Looks at it, from the surest: parameters at a bound; directions at the optimum in which all predictions stay the same
(tiny singular values of the Jacobian), which hold for any noise; starts that ended equally low at different places;
profiles that never rise; and bootstrap intervals that span more than a factor of three of a coefficient, or more than
half of an exponent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scaling.intervals import profile
from scaling.losses import has_scale
from scaling.problem import Problem
from scaling.uncertainty import FEW_RUNS, law_free

if TYPE_CHECKING:
    from scaling.fit import Fit

WIDE_FACTOR = 3.0  # of a coefficient's 90 % interval
WIDE_EXPONENT = 0.5  # width of an exponent's 90 % interval relative to its value
_PROFILE_POINTS = 9
_KNOWN = 0.1  # relative standard error below which a parameter is not profiled
_IMITATION = 1e3  # condition number
_SPREAD = 0.05  # in free coordinates, among starts that fit equally well
_FLAT = 1e-4  # singular value relative to the largest, for columns of unit length


def unidentified(fit: Fit) -> dict[str, str]:
    """One sentence for each parameter that the data do not pin down."""
    words = {name: f"{name} ended at a bound of its range: the data do not determine it." for name in fit.at_bound}
    flat = flat_direction(fit)
    together = f"{' and '.join(flat)} can move together and hardly change any prediction at these runs."
    # Bootstrap refits start from the optimum and do not wander along such a direction: their intervals hide it.
    words |= {
        name: f"{name} is not identified, whatever its interval: {together}" for name in flat if name not in words
    }
    loose = [name for name, spread in zip(fit.problem.names, fit.spread, strict=True) if spread > _SPREAD]
    words |= {
        name: f"{name} is not identified: starts that ended at the same objective differ in {' and '.join(loose)}."
        for name in loose
        if name not in words
    }
    # A parameter that is known locally to a few per cent has a steep profile: no need to draw it.
    size = {p.name: 1.0 if p.transform == "log" else abs(fit.params[p.name]) for p in fit.law.parameters}
    loose = [name for name, error in fit.standard_errors.items() if not error < _KNOWN * size[name]]
    for name in [name for name in loose if name not in words]:
        found = profile(fit, name, 0.9, _PROFILE_POINTS)
        if found.flat:
            ends = {"below": found.low, "above": found.high}
            open_ends = [text for text, end in ends.items() if end in (0.0, -np.inf, np.inf)]
            tried = found.table[name]
            lies = f"from {max(found.low, tried.min()):.3g} to {min(found.high, tried.max()):.3g}"
            words[name] = (
                f"{name} is not bounded {' or '.join(open_ends)}: held anywhere {lies}, with all else refitted, it "
                "fits about as well (flat profile)."
            )
    if fit.free_replicates is None:
        return words
    intervals = fit.intervals(0.9)
    shares = at_bound(fit.problem, fit.free_replicates).mean(axis=0)
    for parameter, share in zip(fit.problem.free_parameters, shares, strict=True):
        name = parameter.name
        if name in words or name not in intervals:
            continue
        low, high = intervals[name]
        if share > 0.05:
            words[name] = f"{name} is not identified: {share:.0%} of the bootstrap refits end at its bound."
        elif parameter.transform == "log" and high > WIDE_FACTOR * low:
            words[name] = f"{name} is known only within a factor of {high / low:.2g} ({low:.4g} to {high:.4g})."
        elif parameter.transform == "identity" and high - low > WIDE_EXPONENT * abs(fit.params[name]):
            words[name] = f"{name} is known only as {low:.2g} to {high:.2g}."
    return words


def at_bound(problem: Problem, free: np.ndarray) -> np.ndarray:
    """For free centred coordinates (..., parameters): which are at a bound of the law."""
    lower, upper = problem.box()
    return (free <= lower + 1e-9) | (free >= upper - 1e-9)


def doubts(fit: Fit) -> list[str]:
    """Sentences on the optimum itself: convergence, agreement of the starts, other minima, few rows."""
    said = []
    if not fit.converged:
        said.append(f"The minimisation did not converge (relative gradient {fit.gradient_norm:.1e}).")
    if fit.agreement < 0.5:
        said.append(f"Only {fit.agreement:.0%} of {fit.starts} starts reached the best objective: use more starts.")
    if fit.converged_share < 0.9:
        said.append(
            f"{1 - fit.converged_share:.0%} of the starts did not arrive anywhere: minima may be missing from the list."
        )
    likelihood = has_scale(fit.problem.loss)  # a likelihood has no zero: differences count
    near = fit.objective + 3.0 if likelihood else 1.1 * fit.objective
    close = [m for m in fit.minima[1:] if m["objective"] < near]
    if close:
        within = "3 units of log likelihood" if likelihood else "10 %"
        said.append(f"{len(close)} other minima come within {within} of the best objective: the law is not unique.")
    runs = fit.rows.table["group"].nunique()
    if runs < min(FEW_RUNS, len(fit.rows.table)):
        said.append(
            f"{len(fit.rows.table)} rows of {runs} run{'s' * (runs > 1)}: rows of one run are not independent, and so "
            "few runs do not say how runs differ. Intervals are too narrow by an unknown factor."
        )
    condition = condition_number(fit)
    if condition > _IMITATION:
        said.append(
            f"The parameters imitate each other (condition number {condition:.1g}): take their values "
            "together or not at all."
        )
    rows, parameters = len(fit.rows.table), len(law_free(fit))
    if rows < 2 * parameters:
        said.append(f"{rows} rows for {parameters} parameters: small residuals prove little here.")
    return said


def flat_direction(fit: Fit) -> list[str]:
    """The parameters that trade against each other without changing the predictions; empty where there are none."""
    length, values, vectors = _directions(fit)
    if not (length > 0).all():
        return [name for name, size in zip(law_free(fit), length, strict=True) if not size > 0]
    if values[0] > _FLAT * values[-1]:
        return []
    weight = np.abs(vectors[:, 0])
    return [name for name, w in zip(law_free(fit), weight, strict=True) if w > 0.2 * weight.max()]


def condition_number(fit: Fit) -> float:
    """Of the Jacobian of the log predictions with columns of unit length: how far parameters imitate each other."""
    _, values, _ = _directions(fit)
    return float(values[-1] / values[0]) if values[0] > 0 else float("inf")


def _directions(fit: Fit) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lengths of the Jacobian's columns, and its singular values (ascending) and directions once they are 1."""
    jacobian = fit.jacobian()
    length = np.linalg.norm(jacobian, axis=0)
    scaled = jacobian / np.where(length > 0, length, 1.0)
    squares, vectors = np.linalg.eigh(scaled.T @ scaled)
    return length, np.sqrt(np.maximum(squares, 0.0)), vectors
