"""One engine that fits every law.

    table --rows.prepare--> rows --centre--> residuals as jets --newton.minimise--> the best of many starts --> Fit

The objective is the sum over rows of a robust loss of log(predicted) - log(measured). Columns and loss are divided
by their geometric means, so units do not matter and the same starting ranges serve every table. All starts, and
later all bootstrap replicates (multiplicities of the same rows), advance as one batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any, Protocol

import numpy as np
import pandas as pd

from scaling import identify, jets, newton
from scaling.laws.law import Law
from scaling.rows import Rows, prepare

_SAME_OBJECTIVE = 1e-6  # relative: starts that end this close to the best agree with it
_SAME_MINIMUM = 1e-3  # in free centred coordinates: ends closer than this are one minimum
_ROUNDING = 1e-22  # of the mean squared log residual: a fit this close is exact


class Loss(Protocol):
    """A loss of log residuals: `loss(r)` -> value, slope and curvature, elementwise."""

    def __call__(self, r: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]: ...


@dataclass(frozen=True)
class Huber:
    """r^2 / 2 up to |r| = `width`, straight beyond (Huber 1964); Hoffmann et al. 2022 use width 1e-3 on log loss."""

    width: float = 1e-3

    def __post_init__(self) -> None:
        if not self.width > 0:
            raise ValueError(f"huber={self.width} must be positive: a width in log residuals, as 1e-3.")

    def __call__(self, r: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        slope = np.clip(r, -self.width, self.width)
        value = self.width * (np.abs(r) - np.abs(slope)) + 0.5 * slope * slope
        return value, slope, (np.abs(r) <= self.width).astype(float)


@dataclass(frozen=True)
class Holdout:
    """A law fitted without the rows of largest `by`, and how it predicts them.

    `table` has the law's columns, `loss`, `predicted` and `error` = predicted / loss - 1, one row per held-out row.
    """

    by: str
    above: float
    fit: Fit
    table: pd.DataFrame

    @property
    def worst(self) -> float:
        """The largest |error|."""
        return float(self.table["error"].abs().max())

    @property
    def typical(self) -> float:
        """The root mean square error."""
        return float(np.sqrt((self.table["error"] ** 2).mean()))

    def to_json(self) -> dict[str, Any]:
        """The test as plain numbers."""
        return {
            "by": self.by,
            "fitted_up_to": self.above,
            "rows": len(self.table),
            "rms_error": self.typical,
            "worst_error": self.worst,
            "params": self.fit.params,
        }


@dataclass(frozen=True)
class Fit:
    """A fitted law, and everything that is needed to judge it.

    `params`: natural parameters in the table's units. `objective`: the summed robust loss. `agreement`: the share of
    starts that ended at this objective. `minima`: every distinct minimum that a start reached (objective, share of
    starts, params), best first. `gradient_norm`: of the objective in free centred coordinates, divided by the
    objective. `scale`: the geometric means. `free`, `free_replicates`: the optimum (p,) and the
    bootstrap replicates (n, p; None before `bootstrap`) in free centred coordinates.
    """

    law: Law
    loss: Loss
    rows: Rows
    scale: dict[str, float]
    free: np.ndarray
    params: dict[str, float]
    objective: float
    agreement: float
    minima: list[dict[str, Any]]
    gradient_norm: float
    converged: bool
    starts: int
    seed: int
    free_replicates: np.ndarray | None = None

    def predict(self, table: pd.DataFrame | Mapping[str, Any], interval: float | None = None) -> pd.DataFrame:
        """The law at `table`'s columns (the law's own names): `loss`, and with `interval` also `low` and `high`.

        The interval is where the law lies (percentiles over bootstrap replicates), not where one more run would:
        a run adds its own noise, of the size of the residuals.
        """
        columns = {name: np.asarray(table[name], float) for name in self.law.columns}
        index = table.index if isinstance(table, pd.DataFrame) else None
        result = pd.DataFrame({"loss": np.atleast_1d(self.law.predict(self.params, columns))}, index=index)
        if interval is not None:
            draws = self.law.predict({k: v[:, None] for k, v in self.replicates.items()}, columns)
            result["low"], result["high"] = np.percentile(draws, _percentiles(interval), axis=0)
        return result

    @property
    def residuals(self) -> pd.Series:
        """log(predicted) - log(measured) for every fitted row, under the caller's index."""
        table = self.rows.table
        return np.log(self.predict(table)["loss"] / table["loss"]).rename("residual")

    @property
    def residual_rms(self) -> float:
        """Root mean square of the log residuals: 0.01 is 1 % of the loss."""
        return float(np.sqrt(np.mean(self.residuals**2)))

    @property
    def residual_max(self) -> float:
        """The largest |log residual|."""
        return float(self.residuals.abs().max())

    def bootstrap(self, n: int = 1000, seed: int = 0) -> Fit:
        """This fit with `n` `replicates`: refits on runs drawn with replacement, each from this optimum.

        Rows of one `run_id` are drawn together, because checkpoints of one run are not independent.
        """
        if n < 2:
            raise ValueError(
                f"bootstrap={n} must be at least 2; 1000 gives 90 % intervals that hardly change with the seed."
            )
        groups, member = np.unique(self.rows.table["group"].to_numpy(), return_inverse=True)
        first = np.full(len(groups), len(member))
        np.minimum.at(first, member, np.arange(len(member)))
        rank = np.argsort(np.argsort(first))  # groups in the canonical order of their rows, whatever their names
        draws = np.random.default_rng(seed).multinomial(len(groups), np.full(len(groups), 1 / len(groups)), size=n)
        weights = draws[:, rank[member]].astype(float)
        ends = _minimise(self.law, self.loss, self.rows.table, self.scale, np.repeat(self.free[None], n, 0), weights)
        return replace(self, free_replicates=ends.theta)

    @property
    def replicates(self) -> dict[str, np.ndarray]:
        """Bootstrapped parameters (n,) by name, in the table's units. ValueError before `bootstrap`."""
        if self.free_replicates is None:
            raise ValueError("The fit has no bootstrap replicates yet: use fit.bootstrap(1000).")
        return self.law.rescale(self.law.natural(list(self.free_replicates.T)), self.scale)

    def intervals(self, level: float = 0.9) -> dict[str, tuple[float, float]]:
        """Percentile intervals of the parameters over the bootstrap replicates."""
        return {
            name: tuple(float(x) for x in np.percentile(values, _percentiles(level)))  # type: ignore[misc]
            for name, values in self.replicates.items()
        }

    def holdout(self, by: str = "C", share: float = 0.2) -> Holdout:
        """The law fitted without the `share` of rows with the largest `by`, tested on them.

        Rows equal in `by` stay together. Raises ValueError where too few rows would remain to fit.
        """
        if not 0 < share < 1:
            raise ValueError(f"holdout={share} must lie between 0 and 1: the share of rows with the largest {by}.")
        table = self.rows.table
        if by not in table:
            raise ValueError(f"holdout by {by!r}: the fit has {', '.join(c for c in table if c != 'group')}.")
        count = max(1, round(share * len(table)))
        cutoff = np.sort(table[by].to_numpy())[-count]
        out = table[by] >= cutoff * (1 - 1e-9)
        kept = table[~out]
        above = float(kept[by].max()) if len(kept) else 0.0
        names = {c: c for c in kept if c != "group"}
        source = kept.rename(columns={"group": "run_id"})
        without = fit(self.law, source, loss=self.loss, starts=self.starts, seed=self.seed, columns=names)
        tested = table.loc[out, [*self.law.columns, *([by] if by not in self.law.columns else []), "loss"]].copy()
        tested["predicted"] = without.predict(tested)["loss"]
        tested["error"] = tested["predicted"] / tested["loss"] - 1
        return Holdout(by, above, without, tested)

    @property
    def at_bound(self) -> list[str]:
        """Parameters that ended at a bound of the law."""
        held = identify.at_bound(self.law, self.free)
        return [name for name, at in zip(self.law.names, held, strict=True) if at]

    @property
    def unidentified(self) -> dict[str, str]:
        """Parameters that the data do not pin down, each with the reason in words."""
        return identify.unidentified(self)

    @property
    def warnings(self) -> list[str]:
        """Everything a reader must know before trusting the numbers, one sentence each."""
        return [*self.rows.notes, *identify.doubts(self), *self.unidentified.values()]

    def jacobian(self) -> np.ndarray:
        """(rows, parameters): derivatives of the log prediction in free centred coordinates."""
        columns, _ = _centred(self.law, self.rows.table, self.scale)
        prediction = jets.log(self.law.predict(self.law.natural(jets.variables(self.free[None])), columns))
        shape = (1, len(self.rows.table))
        return np.stack([np.broadcast_to(prediction.grad.get(i, 0.0), shape)[0] for i in range(len(self.free))], axis=1)

    def to_json(self, level: float = 0.9) -> dict[str, Any]:
        """Everything of the fit that is worth keeping, as plain numbers and words."""
        intervals = self.intervals(level) if self.free_replicates is not None else {}
        return {
            "law": self.law.name,
            "formula": self.law.formula,
            "source": self.law.source,
            "params": self.params,
            "interval": {"level": level, "kind": "percentile bootstrap over runs", **intervals},
            "replicates": 0 if self.free_replicates is None else len(self.free_replicates),
            "objective": self.objective,
            "loss": repr(self.loss),
            "starts": self.starts,
            "seed": self.seed,
            "agreement": self.agreement,
            "minima": self.minima,
            "converged": self.converged,
            "gradient_norm": self.gradient_norm,
            "condition_number": identify.condition_number(self),
            "rows": len(self.rows.table),
            "residual_rms": self.residual_rms,
            "residual_max": self.residual_max,
            "at_bound": self.at_bound,
            "unidentified": self.unidentified,
            "warnings": self.warnings,
            "columns": self.rows.columns,
            "convention": self.rows.convention,
            "excluded": self.rows.excluded,
            "data_hash": self.rows.fingerprint,
            "versions": {name: version(name) for name in ("numpy", "scipy", "pandas")},
        }


def fit(
    law: Law,
    table: pd.DataFrame,
    loss: Loss | None = None,
    starts: int = 256,
    seed: int = 0,
    columns: Mapping[str, str] | None = None,
) -> Fit:
    """The best fit of `law` to `table` (one row per run) from `starts` random starting points.

    `loss` of the log residuals is Huber(1e-3) when None; `columns` maps the law's names to the table's. The result
    depends neither on the order of the rows nor on units. Raises ValueError as `scaling.rows.prepare` does.
    """
    if starts < 1:
        raise ValueError(f"starts={starts} must be at least 1; the default is 256.")
    loss = loss or Huber()
    rows = prepare(law, table, columns)
    scale = {c: float(np.exp(np.log(rows.table[c]).mean())) for c in [*law.columns, "loss"]}
    low, high = (np.array([p.to_free(p.start[end]) for p in law.parameters]) for end in (0, 1))
    points = low + (high - low) * np.random.default_rng(seed).random((starts, len(low)))
    ends = _minimise(law, loss, rows.table, scale, points, np.ones((1, len(rows.table))))
    best = int(np.argmin(ends.value))
    objective = float(ends.value[best])
    slack = _SAME_OBJECTIVE * objective + len(rows.table) * _ROUNDING
    return Fit(
        law=law,
        loss=loss,
        rows=rows,
        scale=scale,
        free=ends.theta[best],
        params=_raw(law, ends.theta[best], scale),
        objective=objective,
        agreement=float(np.mean(ends.value <= objective + slack)),
        minima=_distinct(law, ends, scale, slack),
        gradient_norm=float(np.linalg.norm(ends.gradient[best]) / max(objective, len(rows.table) * _ROUNDING)),
        converged=bool(ends.converged[best]),
        starts=starts,
        seed=seed,
    )


def _minimise(
    law: Law, loss: Loss, table: pd.DataFrame, scale: Mapping[str, float], points: np.ndarray, weights: np.ndarray
) -> newton.Minima:
    """Ends of the minimisations from `points` (k, p) with `weights` (k or 1, rows) on the rows."""
    columns, target = _centred(law, table, scale)
    count = len(law.parameters)

    def objective(theta: np.ndarray, which: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        with np.errstate(all="ignore"):  # a trial step may overflow; its objective is then not finite, and refused
            residual = jets.log(law.predict(law.natural(jets.variables(theta)), columns)) - target
            value, slope, curvature = loss(residual.value)
            weight = weights if len(weights) == 1 else weights[which]
            # slope / r: the curvature of the parabola that touches the loss at r and at -r from above
            above = weight * np.where(residual.value == 0, curvature, slope / residual.value)
            slope, curvature = weight * slope, weight * curvature
            first = np.zeros((len(theta), count, len(target)))
            for i, entry in residual.grad.items():
                first[:, i] = entry
            gradient = np.einsum("kpr,kr->kp", first, slope)
            hessian = (first * curvature[:, None]) @ first.transpose(0, 2, 1)
            for (i, j), entry in residual.hess.items():
                term = (slope * entry).sum(axis=1)
                hessian[:, i, j] += term
                if i != j:
                    hessian[:, j, i] += term
            metric = (first * above[:, None]) @ first.transpose(0, 2, 1)
            total = (weight * value).sum(axis=1)
        wrong = ~(np.isfinite(total) & np.isfinite(gradient).all(1) & np.isfinite(hessian).all((1, 2)))
        total[wrong], gradient[wrong], hessian[wrong], metric[wrong] = np.inf, 0.0, 0.0, 0.0
        return total, gradient, hessian, metric

    return newton.minimise(objective, points, *law.box(), floor=len(target) * _ROUNDING)


def _centred(law: Law, table: pd.DataFrame, scale: Mapping[str, float]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The law's columns (rows,) and the log loss (rows,), both over their geometric means."""
    columns = {name: table[name].to_numpy(float) / scale[name] for name in law.columns}
    return columns, np.log(table["loss"].to_numpy(float) / scale["loss"])


def _raw(law: Law, free: np.ndarray, scale: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in law.rescale(law.natural(list(free)), scale).items()}


def _distinct(law: Law, ends: newton.Minima, scale: Mapping[str, float], slack: float) -> list[dict[str, Any]]:
    """The distinct minima among converged ends, best first, with the share of all starts that reached each."""
    minima: list[dict[str, Any]] = []
    places: list[np.ndarray] = []
    for k in np.argsort(ends.value, kind="stable"):
        if not ends.converged[k]:
            continue
        for minimum, place in zip(minima, places, strict=True):
            level = abs(ends.value[k] - minimum["objective"]) <= slack + _SAME_OBJECTIVE * minimum["objective"]
            if level or np.abs(ends.theta[k] - place).max() < _SAME_MINIMUM:
                minimum["share"] += 1 / len(ends.value)
                break
        else:
            params = _raw(law, ends.theta[k], scale)
            minima.append({"objective": float(ends.value[k]), "share": 1 / len(ends.value), "params": params})
            places.append(ends.theta[k])
    return minima


def _percentiles(level: float) -> tuple[float, float]:
    if not 0 < level < 1:
        raise ValueError(f"interval={level} must lie between 0 and 1, as in 0.9 for 90 %.")
    return 50 * (1 - level), 50 * (1 + level)
