"""Intervals: of parameters, of predictions for the law and for one more run, and profiles of the objective."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from scipy import special

from scaling.losses import has_scale
from scaling.uncertainty import (
    CELLS,
    bread,
    covariance,
    freedom,
    law_free,
    law_gradient,
    noise_draws,
    one_of,
    percentiles,
    quantile,
    standard_errors,
)

if TYPE_CHECKING:
    from scaling.fit import Fit

_DRAWS = 4000
_PROFILE_POINTS = 41
_PROFILE_REACH = 8.0  # standard errors that a profile looks to either side before it goes to the bounds


@dataclass(frozen=True)
class Profile:
    """`table`: value of the parameter (table's units) and objective, refitted at each. `low`, `high`: the interval,
    infinite where the objective never rises enough. `threshold`: the objective at the interval's ends."""

    name: str
    level: float
    low: float
    high: float
    threshold: float
    table: pd.DataFrame
    positive: bool

    @property
    def flat(self) -> bool:
        """Whether an end of the interval is open (0 below, for a positive parameter)."""
        return not (np.isfinite(self.low) and np.isfinite(self.high)) or (self.low == 0.0 and self.positive)


def parameter_intervals(
    fit: Fit, level: float, method: Literal["bootstrap", "delta"]
) -> dict[str, tuple[float, float]]:
    """Of the law's free parameters, in the table's units."""
    one_of("method", method, ("bootstrap", "delta"))
    if method == "bootstrap":
        drawn = fit.replicates
        ends = {name: np.percentile(drawn[name], percentiles(level)) for name in law_free(fit)}
    else:
        errors, half = standard_errors(fit), quantile(fit, level)
        ends = {}
        for parameter in fit.problem.free_parameters:
            name = parameter.name
            if name in errors:
                middle = parameter.to_free(fit.params[name])
                ends[name] = parameter.to_natural(middle + half * errors[name] * np.array([-1.0, 1.0]))
    return {name: (float(low), float(high)) for name, (low, high) in ends.items()}


def prediction_interval(
    fit: Fit, columns: dict[str, Any], level: float, of: Literal["law", "run"], method: Literal["bootstrap", "delta"]
) -> tuple[np.ndarray, np.ndarray]:
    """Ends (rows,) of the interval for the law, or for one more run, at `columns` (features in the table's units)."""
    one_of("of", of, ("law", "run"))
    one_of("method", method, ("bootstrap", "delta"))
    logs = fit.problem.residuals == "log"
    middle = np.atleast_1d(np.asarray(fit.law.predict(fit.params, columns), float))
    middle = np.log(middle) if logs else middle
    rng = np.random.default_rng(0)
    unit = 1.0 if logs else fit.problem.typical * fit.problem.scale.get(fit.law.target, 1.0)
    if method == "delta":
        first = law_gradient(fit, columns)
        error = np.sqrt(np.maximum(np.einsum("pr,pq,qr->r", first, covariance(fit), first), 0.0))
        half = quantile(fit, level) * error
        ends = middle - half, middle + half
        away = rng.standard_t(freedom(fit), size=(_DRAWS, 1))
        parts = (middle[rows] + error[rows] * away for rows in _row_blocks(len(middle), _DRAWS))
    else:
        replicates = {name: value[:, None] for name, value in fit.replicates.items()}
        drawn = np.asarray(fit.law.predict(replicates, columns))
        drawn = np.broadcast_to(np.log(drawn) if logs else drawn, (len(next(iter(replicates.values()))), len(middle)))
        low, high = np.percentile(drawn, percentiles(level), axis=0)
        ends = low, high
        # Each replicate with several noises, so that few replicates do not make the tails coarse.
        often = max(1, -(-_DRAWS // len(drawn)))
        parts = (np.repeat(drawn[:, rows], often, axis=0) for rows in _row_blocks(len(middle), often * len(drawn)))
    if of == "run":
        noisy = (part - unit * noise_draws(fit, rng, part.shape) for part in parts)
        low, high = np.concatenate([np.percentile(part, percentiles(level), axis=0) for part in noisy], axis=1)
        ends = low, high
    return (np.exp(ends[0]), np.exp(ends[1])) if logs else ends


def _row_blocks(rows: int, draws: int) -> list[slice]:
    size = max(1, CELLS // draws)
    return [slice(at, at + size) for at in range(0, rows, size)]


def profile(fit: Fit, name: str, level: float, points: int = _PROFILE_POINTS) -> Profile:
    """See `Fit.profile`. The objective's rise is measured in the covariance's units, so that the interval is
    valid for robust losses and dependent rows: 2 rise * (A^-1)_ii / V_ii < F(level; 1, n - p)."""
    law = fit.law
    percentiles(level)
    if name not in law_free(fit):
        raise ValueError(f"profile({name!r}): the free parameters are {', '.join(law_free(fit))}.")
    problem = replace(fit.problem, uncentred=frozenset({name}))
    at = problem.names.index(name)
    start = problem.free(fit.params)
    if has_scale(problem.loss):
        start = np.append(start, fit.free[-1])
    shifted = replace(fit, problem=problem, free=start)
    inverse = np.linalg.pinv(bread(problem, start), rcond=1e-14, hermitian=True)
    spread = covariance(shifted)
    error = float(np.sqrt(spread[at, at]))
    lower, upper = problem.box()
    parameter = next(p for p in law.parameters if p.name == name)
    unit = max(error, 1e-12 * max(abs(start[at]), 1.0))
    reach = min(_PROFILE_REACH * unit, 40.0 if parameter.transform == "log" else np.inf)
    offsets = np.linspace(-1.0, 1.0, points)
    values = np.unique(np.clip(start[at] + reach * np.sign(offsets) * np.abs(offsets) ** 1.5, lower[at], upper[at]))
    # Far out, to the bounds of the parameter (or a factor e^20): a profile that is still flat there is open.
    far = [max(lower[at], start[at] - 20.0 - reach), min(upper[at], start[at] + 20.0 + reach)]
    few = points // 5 + 1
    values = np.unique(
        np.concatenate([values, np.linspace(far[0], values[0], few), np.linspace(values[-1], far[1], few)])
    )
    tangent = inverse[:, at] / inverse[at, at] if inverse[at, at] > 0 else np.zeros(len(start))
    ahead = start + np.clip(values - start[at], -reach, reach)[:, None] * tangent
    ahead[:, at] = values
    low_box, high_box = np.repeat(lower[None], len(values), 0), np.repeat(upper[None], len(values), 0)
    low_box[:, at] = high_box[:, at] = values
    ends = problem.minimise(ahead, box=(low_box, high_box))
    again = np.repeat(start[None], len(values), 0)  # a second try from the optimum itself
    again[:, at] = values
    other = problem.minimise(again, box=(low_box, high_box))
    objective = np.minimum(ends.value, other.value)
    factor = inverse[at, at] / spread[at, at] if spread[at, at] > 0 else np.inf
    rise = 2 * np.maximum(objective - fit.objective, 0.0) * factor
    limit = float(special.fdtri(1, freedom(fit), level))
    low, high = _crossings(values, np.sqrt(rise), start[at], np.sqrt(limit))
    table = pd.DataFrame({name: parameter.to_natural(values), "objective": objective})
    ends_of = [float(parameter.to_natural(x)) if np.isfinite(x) else float(x) for x in (low, high)]
    if parameter.transform == "log" and not np.isfinite(low):
        ends_of[0] = 0.0
    threshold = fit.objective + (limit / (2 * factor) if factor > 0 else np.inf)
    return Profile(name, level, ends_of[0], ends_of[1], float(threshold), table, parameter.transform == "log")


def _crossings(values: np.ndarray, root: np.ndarray, middle: float, limit: float) -> tuple[float, float]:
    """Where the signed root of the rise, nearly straight, first exceeds the limit to either side; infinite if never."""
    found = []
    for side in (-1.0, 1.0):
        order = np.argsort(side * values)
        x, y = values[order], root[order]
        ahead = side * (x - middle) > 0
        x, y = np.append(middle, x[ahead]), np.append(0.0, y[ahead])
        over = np.flatnonzero(~(y < limit))
        if not len(over):
            found.append(side * np.inf)
            continue
        k = over[0]
        span = y[k] - y[k - 1]
        found.append(float(x[k - 1] + (x[k] - x[k - 1]) * ((limit - y[k - 1]) / span if np.isfinite(span) else 0.5)))
    return found[0], found[1]
