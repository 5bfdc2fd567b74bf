"""One engine that fits every law.

    table --rows.prepare--> rows --problem_of--> Problem --minimise from many starts--> the best of them --> Fit

The objective is the sum over rows of a robust loss of log(predicted) - log(measured). All starts, and later all
bootstrap replicates, advance as one batch. What a Fit can tell beyond its numbers lies beside this file:
`uncertainty` (bootstrap, covariance), `intervals` (of parameters and predictions, profiles), `identify` and `diagnose`
(what to doubt), `choose` (held-out error, comparison of laws), `keep` (a fit as a file).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd

from scaling import choose, diagnose, identify, newton, uncertainty
from scaling.intervals import Profile, parameter_intervals, prediction_interval, profile
from scaling.laws.law import Law, Prior
from scaling.losses import Absolute, Huber, LeastSquares, Loss, StudentT, has_scale
from scaling.problem import Problem
from scaling.rows import Rows, prepare

__all__ = ["Absolute", "Fit", "Huber", "LeastSquares", "Prior", "StudentT", "fit"]

_SAME_OBJECTIVE = 1e-6  # relative: starts that end this close to the best agree with it
_SAME_MINIMUM = 1e-3  # in free centred coordinates: ends closer than this are one minimum
_SCREENED = 20_000  # rows above which starts are first advanced on a sample
_SAMPLE = 4_096


@dataclass(frozen=True)
class Fit:
    """A fitted law, and everything that is needed to judge it.

    `params`: natural parameters in the table's units, fixed ones included. `objective`: the summed robust loss.
    `agreement`: the share of starts that ended at this objective. `minima`: every distinct minimum that a start
    reached (objective, share of starts, params), best first. `converged_share`: of the starts that were advanced on all
    rows (those of many rows are first advanced on a sample). `spread` (p,): how far the ends that agree lie apart.
    `gradient_norm`: of the objective, divided by the objective. `free`, `free_replicates`: the optimum (p,) and the
    bootstrap replicates (n, p; None before `bootstrap`). All of these in the problem's free centred coordinates.
    """

    law: Law
    rows: Rows
    problem: Problem
    free: np.ndarray
    params: dict[str, float]
    objective: float
    agreement: float
    minima: list[dict[str, Any]]
    converged_share: float
    spread: np.ndarray
    gradient_norm: float
    converged: bool
    starts: int
    seed: int
    free_replicates: np.ndarray | None = None
    bootstrap_kind: str = ""

    def predict(
        self,
        table: pd.DataFrame | Mapping[str, Any],
        interval: float | None = None,
        of: Literal["law", "run"] = "law",
        method: Literal["bootstrap", "delta"] = "bootstrap",
    ) -> pd.DataFrame:
        """The law at `table`'s columns (the law's own names): the target, and with `interval` also `low` and `high`.

        The interval is where the law lies (of="law") or where one more run would (of="run": with its own noise, of
        the size of the residuals); from bootstrap replicates, or by the delta method, which needs none.
        """
        columns = self.law.features(table)
        index = table.index if isinstance(table, pd.DataFrame) else None
        predicted = np.atleast_1d(np.asarray(self.law.predict(self.params, columns), float))
        result = pd.DataFrame({self.law.target: predicted}, index=index)
        if interval is not None:
            result["low"], result["high"] = prediction_interval(self, columns, interval, of, method)
        return result

    @cached_property
    def residuals(self) -> pd.Series:
        """log(predicted) - log(measured) for every fitted row (or the plain difference, for laws fitted to values),
        under the caller's index."""
        table = self.rows.table
        predicted = self.predict(table)[self.law.target]
        measured = table[self.law.target]
        if self.problem.residuals == "log":
            return np.log(predicted / measured).rename("residual")
        return (predicted - measured).rename("residual")

    @property
    def residual_rms(self) -> float:
        """Root mean square of the residuals: for logarithms, 0.01 is 1 % of the target."""
        return float(np.sqrt(np.mean(self.residuals[self.rows.table["weight"] > 0] ** 2)))

    @property
    def residual_max(self) -> float:
        """The largest |residual|."""
        return float(self.residuals.abs().max())

    @property
    def r_squared(self) -> float:
        """Share of the target's variance (of its values, not logarithms) that the law explains."""
        measured = self.rows.table[self.law.target]
        left = measured - self.predict(self.rows.table)[self.law.target]
        return float(1 - (left**2).sum() / ((measured - measured.mean()) ** 2).sum())

    def bootstrap(
        self, n: int = 1000, seed: int = 0, kind: Literal["pairs", "residual", "cluster"] | None = None
    ) -> Fit:
        """This fit with `n` `replicates`, each refitted from this optimum.

        `kind`: "pairs" draws rows with replacement; "cluster" draws runs with all their rows, because checkpoints of
        one run are not independent (the default where runs have several rows); "residual" keeps the rows' settings
        and draws residuals, inflated for the parameters that were fitted, for designs with few rows.
        """
        return replace(self, **uncertainty.bootstrap(self, n, seed, kind))

    @property
    def replicates(self) -> dict[str, np.ndarray]:
        """Bootstrapped parameters (n,) by name, in the table's units. ValueError before `bootstrap`."""
        if self.free_replicates is None:
            raise ValueError("The fit has no bootstrap replicates yet: use fit.bootstrap(1000).")
        n = len(self.free_replicates)
        return {k: np.broadcast_to(v, (n,)) for k, v in self.problem.raw(self.free_replicates).items()}

    def intervals(
        self, level: float = 0.9, method: Literal["bootstrap", "delta"] = "bootstrap"
    ) -> dict[str, tuple[float, float]]:
        """Intervals of the free parameters: percentiles of the bootstrap replicates, or by the delta method."""
        return parameter_intervals(self, level, method)

    @cached_property
    def standard_errors(self) -> dict[str, float]:
        """Of the free parameters, by the delta method; relative for positive ones."""
        return uncertainty.standard_errors(self)

    def profile(self, name: str, level: float = 0.9) -> Profile:
        """The objective with `name` held at values around its optimum and all else refitted, and the interval from it.

        An end of the interval is infinite where the objective never rises enough: the data do not bound `name` there.
        """
        return profile(self, name, level)

    def holdout(self, by: str = "C", fraction: float = 0.2) -> choose.Holdout:
        """The law fitted without the `fraction` of rows with the largest `by`, tested on them.

        Rows equal in `by` stay together. Raises ValueError where too few rows would remain to fit.
        """
        return choose.holdout(self, by, fraction)

    def expanding(self, by: str = "C", windows: int = 4) -> pd.DataFrame:
        """Held-out error by expanding window: fitted to ever more of the smallest rows, tested on the next ones."""
        return choose.expanding(self, by, windows)

    def compare(self, other: Fit, by: str | None = None) -> pd.DataFrame:
        """This fit and `other` of the same rows, side by side: AICc, BIC, likelihood ratio where one law nests in the
        other, and held-out error by expanding window where a `by` is known."""
        return choose.compare(self, other, by)

    @property
    def at_bound(self) -> list[str]:
        """Parameters that ended at a bound of the law."""
        held = identify.at_bound(self.problem, self.free)
        return [name for name, at in zip(self.problem.names, held, strict=True) if at]

    @cached_property
    def unidentified(self) -> dict[str, str]:
        """Parameters that the data do not pin down, each with the reason in words."""
        return identify.unidentified(self)

    @cached_property
    def sensitivity(self) -> dict[str, dict[str, float]]:
        """Parameters under other choices of loss and rows; see `diagnose.sensitivity`."""
        return diagnose.sensitivity(self)

    @cached_property
    def warnings(self) -> list[str]:
        """Everything a reader must know before trusting the numbers, one sentence each."""
        return [*self.rows.notes, *identify.doubts(self), *self.unidentified.values(), *diagnose.warnings(self)]

    def jacobian(self, table: pd.DataFrame | None = None) -> np.ndarray:
        """(rows, free parameters of the law): derivatives of the log prediction (of the prediction, for laws fitted to
        values) in free centred coordinates; at the fitted rows, or at those of `table`."""
        return uncertainty.jacobian(self, table)

    def refitted(self, table: pd.DataFrame) -> Fit:
        """The law fitted to `table` (rows of this fit, under the law's own names) as this fit was made."""
        law, problem = self.law, self.problem
        names = {str(c): str(c) for c in table if c in {*law.columns, law.target, "C"}}
        source = table.drop(columns="run_id", errors="ignore").rename(columns={"group": "run_id"})
        return fit(
            law, source, problem.loss, self.starts, self.seed, problem.fixed, problem.priors, "weight", names,
            problem.residuals,
        )  # fmt: skip


def fit(
    law: Law,
    table: pd.DataFrame,
    loss: Loss | None = None,
    starts: int = 256,
    seed: int = 0,
    fixed: Mapping[str, float] | None = None,
    priors: Mapping[str, Prior] | None = None,
    weights: str | np.ndarray | None = None,
    columns: Mapping[str, str] | None = None,
    residuals: Literal["log", "linear"] | None = None,
) -> Fit:
    """The best fit of `law` to `table` (one row per run) from `starts` random starting points.

    `loss` of the residuals is Huber(1e-3) when None. `fixed` holds parameters at values in the table's units;
    `priors` pulls them towards a mean (the law's own when None; {} for none); against a prior the rows of one run count
    as one observation, because what a law misses along a run it misses in all its rows. `weights` (a column's name, or
    an array in the table's order) multiply each row's loss: for measured standard errors use 1 / error^2. `columns`
    maps the law's names to the table's. `residuals`: differences of logarithms or of values; the law's own choice when
    None. The result depends neither on the order of the rows nor on units. Raises ValueError as
    `scaling.rows.prepare` does.
    """
    if starts < 1:
        raise ValueError(f"starts={starts} must be at least 1; the default is 256.")
    fixed = dict(fixed or {})
    priors = {k: v for k, v in law.priors if k not in fixed} if priors is None else dict(priors)
    _known(law, fixed, priors)
    kind = residuals or law.residuals
    if kind not in ("log", "linear"):
        raise ValueError(f"residuals={kind}: log (differences of logarithms) or linear (of values).")
    rows = prepare(law, table, columns, weights, set(fixed), logs=kind == "log")
    problem = problem_of(law, rows, loss or Huber(), kind, fixed)
    # On many rows a sample tells good starts from bad; its distinct ends are then finished on all of them.
    screened = len(rows.table) > _SCREENED and not law.along_curves
    small = problem.sample(_SAMPLE, seed) if screened else problem
    points, share = small.starts(starts, seed), np.full(starts, 1 / starts)
    if priors:
        first = small.minimise(points, progress="starts")
        noise = uncertainty.noise(small, first.theta[int(np.argmin(first.value))], rows)
        problem, small = (replace(each, priors=priors, noise=noise) for each in (problem, small))
    if screened:
        ends = small.minimise(points, progress="starts")
        kept = _distinct(ends, _slack(small, ends))
        points, share = np.array([place for place, _, _ in kept]), np.array([part for _, _, part in kept])
    ends = problem.minimise(points, progress="starts")
    best = int(np.argmin(ends.value))
    slack = _slack(problem, ends)
    agree = ends.value <= ends.value[best] + slack
    return Fit(
        law=law,
        rows=rows,
        problem=problem,
        free=ends.theta[best],
        params=_numbers(problem.raw(ends.theta[best])),
        objective=float(ends.value[best]),
        agreement=min(float(share[agree].sum()), 1.0),
        minima=[
            {"objective": value, "share": part, "params": _numbers(problem.raw(place))}
            for place, value, part in _distinct(ends, slack, share)
        ],
        converged_share=float(np.mean(ends.converged)),
        spread=np.ptp(ends.theta[agree & ends.converged | (np.arange(len(agree)) == best)], axis=0),
        gradient_norm=float(np.linalg.norm(ends.gradient[best]) / max(abs(ends.value[best]), _rounding(problem))),
        converged=bool(ends.converged[best]),
        starts=starts,
        seed=seed,
    )


def problem_of(
    law: Law, rows: Rows, loss: Loss, residuals: Literal["log", "linear"], fixed: Mapping[str, float]
) -> Problem:
    """The minimisation for prepared rows, in centred units."""
    table = rows.table
    features = law.features(table)
    target = table[law.target].to_numpy(float)
    scale = {
        name: float(np.exp(np.log(np.abs(values)).mean()))
        for name, values in {**features, law.target: target}.items()
        if name in law.units
    }
    centred = {name: values / scale[name] if name in scale else values for name, values in features.items()}
    return Problem(
        law, loss, residuals, centred, target / scale.get(law.target, 1.0),
        table["weight"].to_numpy(float), scale, fixed, {},
    )  # fmt: skip


def _known(law: Law, fixed: Mapping[str, float], priors: Mapping[str, Prior]) -> None:
    for option, names in (("fixed", set(fixed)), ("priors", set(priors))):
        unknown = sorted(names - set(law.names))
        if unknown:
            raise ValueError(f"{option}.{unknown[0]}: {law.name} has the parameters {', '.join(law.names)}.")
    both = sorted(set(fixed) & set(priors))
    if both:
        raise ValueError(f"{both[0]} is fixed and has a prior: give one of them.")
    for parameter in law.parameters:
        prior = priors.get(parameter.name)
        for option, value in (("fixed", fixed.get(parameter.name)), ("priors", None if prior is None else prior.mean)):
            if value is not None and (not np.isfinite(value) or (parameter.transform == "log" and not value > 0)):
                wanted = "a positive number" if parameter.transform == "log" else "a finite number"
                raise ValueError(f"{option}.{parameter.name}={value} must be {wanted}: {parameter.meaning}.")
            low, high = parameter.bounds
            if value is not None and not parameter.units and not low <= value <= high:
                raise ValueError(f"{option}.{parameter.name}={value} is outside the law's range, {low:g} to {high:g}.")
        if prior is not None and not prior.sd > 0:
            raise ValueError(f"priors.{parameter.name}: its standard deviation {prior.sd} must be positive.")
    if len(fixed) == len(law.parameters):
        raise ValueError(f"All parameters of {law.name} are fixed: nothing is left to fit.")


def _rounding(problem: Problem) -> float:
    return len(problem.target) * problem.loss.rounding


def _slack(problem: Problem, ends: newton.Minima) -> float:
    """Objectives closer than this are equal."""
    size = max(abs(float(ends.value.min())), len(problem.target) * 1e-3 if has_scale(problem.loss) else 0.0)
    return _SAME_OBJECTIVE * size + _rounding(problem)


def _numbers(p: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in p.items()}


def _distinct(
    ends: newton.Minima, slack: float, weight: np.ndarray | None = None
) -> list[tuple[np.ndarray, float, float]]:
    """(place, objective, share of all starts) of the distinct minima among converged ends, best first."""
    weight = np.full(len(ends.value), 1 / len(ends.value)) if weight is None else weight
    places: list[np.ndarray] = []
    values: list[float] = []
    shares: list[float] = []
    for k in np.argsort(ends.value, kind="stable"):
        if not ends.converged[k] and places:
            continue
        for i, (place, value) in enumerate(zip(places, values, strict=True)):
            level = abs(ends.value[k] - value) <= slack + _SAME_OBJECTIVE * abs(value)
            if level or np.abs(ends.theta[k] - place).max() < _SAME_MINIMUM:
                shares[i] += weight[k]
                break
        else:
            places.append(ends.theta[k])
            values.append(float(ends.value[k]))
            shares.append(float(weight[k]))
    return list(zip(places, values, shares, strict=True))
