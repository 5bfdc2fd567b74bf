"""What the rows say about a fit: outliers and their leverage, patterns in the residuals, and how much the answer
depends on choices (the width of the loss, the smallest runs)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import special

from scaling.losses import Huber, LeastSquares, has_scale
from scaling.uncertainty import noise

if TYPE_CHECKING:
    from scaling.fit import Fit

_OUTLIER = 4.0  # robust standard deviations, and more where so many rows have some that far by chance
_LEVERAGE = 3.0  # times the mean leverage p / n
_PATTERN = 0.01  # p-value of a rank correlation or of curvature along an axis
_LEVELS = 6
_MOVED = 2.0  # standard errors by which a choice may move a parameter unnoticed
_SMALLEST = 0.2  # share of rows with the least compute (or first column) that are dropped


def rows(fit: Fit) -> pd.DataFrame:
    """One row per fitted row, under the caller's index: `residual`, `z` (in robust standard deviations), `leverage`
    (how much the row pulls its own prediction, 0 to 1) and `influence` (largest change of a parameter, in its standard
    errors, if the row were left out; one Newton step)."""
    # Rows of unit weight have the noise that is judged; a fit by nearly absolute values passes through about as many
    # rows as it has parameters, which say nothing about it.
    root = np.sqrt(fit.rows.table["weight"].to_numpy(float))
    first, r = fit.jacobian() * root[:, None], fit.residuals.to_numpy() * root
    center = np.median(r[root > 0])
    away = np.sort(np.abs(r - center)[root > 0])
    spread = 1.4826 * np.median(away[min(first.shape[1], len(away) // 2) :]) or r.std() or 1.0
    inverse = np.linalg.pinv(first.T @ first, rcond=1e-12, hermitian=True)
    leverage = np.einsum("rp,pq,rq->r", first, inverse, first)
    errors = np.sqrt(np.maximum(np.diag(inverse), 0)) * spread
    moves = (first @ inverse) * (r / np.maximum(1 - leverage, 1e-6))[:, None]
    influence = np.abs(moves / np.where(errors > 0, errors, np.inf)).max(axis=1)
    table = {
        "residual": fit.residuals.to_numpy(),
        "z": np.where(root > 0, (r - center) / spread, 0.0),
        "leverage": leverage,
        "influence": influence,
    }
    return pd.DataFrame(table, index=fit.rows.table.index)


def outliers(fit: Fit) -> pd.DataFrame:
    """The rows of `rows` that lie further off than chance explains, worst first."""
    return _outliers(rows(fit))


def _outliers(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["z"].abs() > _far(len(table))].sort_values("z", key=np.abs, ascending=False)


def _far(count: int) -> float:
    """Normal residuals of `count` rows exceed this in one of twenty tables, and 4 at least."""
    return max(_OUTLIER, float(-special.ndtri(0.025 / count)))


def patterns(fit: Fit) -> dict[str, dict[str, float]]:
    """For each numeric column: p-values of a slope (Spearman's rank correlation of the residuals with it), of a bend
    (with its distance from the middle of the ranks), and of any difference between its levels (Kruskal and Wallis
    1952). Small ones mean the law's form misses something there."""
    r = fit.residuals.to_numpy()
    found = {}
    for column in fit.law.inputs:
        values = fit.rows.table[column.name]
        if column.domain == "label" or values.nunique() < 4 or np.ptp(r) == 0:
            continue
        rank = values.rank().to_numpy()
        found[column.name] = {
            "slope_p": _rank_p(rank, r),
            "bend_p": _rank_p(np.abs(rank - rank.mean()), r),
            "levels_p": _levels_p(values, r),
        }
    return found


def _levels_p(values: pd.Series, y: np.ndarray) -> float:
    """p-value of the Kruskal-Wallis test between the levels of a column, or sixths of it where there are many."""
    levels = values if values.nunique() <= _LEVELS else pd.qcut(values.rank(method="first"), _LEVELS, labels=False)
    ranks = pd.Series(y).rank().groupby(levels.to_numpy())
    n = len(y)
    statistic = 12 / (n * (n + 1)) * float((ranks.sum() ** 2 / ranks.size()).sum()) - 3 * (n + 1)
    return float(special.chdtrc(ranks.ngroups - 1, max(statistic, 0.0)))


def _rank_p(x: np.ndarray, y: np.ndarray) -> float:
    """Two-sided p-value of Spearman's rank correlation, by Student's t with n - 2 degrees of freedom."""
    correlation = float(np.corrcoef(pd.Series(x).rank(), pd.Series(y).rank())[0, 1])
    freedom = len(x) - 2
    t = correlation * np.sqrt(freedom / max(1 - correlation**2, 1e-300))
    return float(2 * special.stdtr(freedom, -abs(t)))


def sensitivity(fit: Fit) -> dict[str, dict[str, float]]:
    """Parameters under other choices: a loss ten times wider and ten times narrower (Huber), least squares, and
    without the smallest fifth of the rows; each refitted from this optimum."""
    problem = fit.problem
    others: dict[str, Any] = {}
    loss = problem.loss
    if isinstance(loss, Huber):
        for factor in (10.0, 0.1):
            others[f"Huber width {loss.width * factor:g}"] = replace(
                problem, loss=replace(loss, width=loss.width * factor)
            )
    if not isinstance(loss, LeastSquares) and not has_scale(loss):
        others["least squares"] = replace(problem, loss=LeastSquares())
    found = {}
    for name, other in others.items():
        if problem.priors:  # which weigh against the noise as this loss sees it
            other = replace(other, noise=noise(other, fit.free, fit.rows))
        found[name] = other.raw(other.minimise(fit.free[None]).theta[0])
    by = "C" if "C" in fit.rows.table else next((c.name for c in fit.law.inputs if c.domain == "positive"), None)
    if by is not None:
        size = fit.rows.table[by]
        kept = (size > size.quantile(_SMALLEST)).to_numpy().astype(float)
        if kept.sum() > fit.jacobian().shape[1]:
            ends = problem.minimise(fit.free[None], weights=kept[None])
            found[f"without the smallest fifth by {by}"] = problem.raw(ends.theta[0])
    return {name: {k: float(v) for k, v in p.items()} for name, p in found.items()}


def numbers(fit: Fit) -> dict[str, Any]:
    """Outliers, patterns and sensitivity as plain numbers."""
    found = outliers(fit)
    return {
        "outliers": [{"row": str(index), **{k: float(v) for k, v in row.items()}} for index, row in found.iterrows()],
        "patterns": patterns(fit),
        "sensitivity": fit.sensitivity,
    }


def _size(fit: Fit, residual: float) -> str:
    """A residual in words: per cent of the target, or the plain difference."""
    return f"{np.expm1(residual):+.2%}" if fit.problem.residuals == "log" else f"{residual:+.4g}"


def warnings(fit: Fit) -> list[str]:
    """The findings that deserve a sentence."""
    if fit.residual_max < 1e-9:  # an exact law: its residuals are rounding
        return []
    said = []
    table = rows(fit)
    far = _outliers(table)
    if len(far):
        worst = far.iloc[0]
        heavy = far["leverage"] > _LEVERAGE * table["leverage"].mean()
        said.append(
            f"{len(far)} of {len(table)} rows lie more than {_far(len(table)):.2g} robust standard deviations off; the "
            f"worst is row {far.index[0]} ({_size(fit, worst['residual'])}, leverage {worst['leverage']:.2f})"
            + (f"; {int(heavy.sum())} of them have high leverage: look at those runs first." if heavy.any() else ".")
        )
    seen = patterns(fit)
    limit = _PATTERN / max(3 * len(seen), 1)  # one false alarm in a hundred tables, whatever the number of tests
    for column, p in seen.items():
        for kind, words in (("slope_p", "drift"), ("bend_p", "bend"), ("levels_p", "differ between levels")):
            if p[kind] < limit:
                said.append(
                    f"Residuals {words} along {column} (p = {p[kind]:.1g}): the law's form misses something there."
                )
    errors = fit.standard_errors
    for name, params in fit.sensitivity.items():
        moved = {}
        for parameter in fit.problem.free_parameters:
            if parameter.name in errors and errors[parameter.name] > 0:
                before, after = (parameter.to_free(p[parameter.name]) for p in (fit.params, params))
                moved[parameter.name] = abs(after - before) / errors[parameter.name]
        large = [f"{k} from {fit.params[k]:.4g} to {params[k]:.4g}" for k, v in moved.items() if v > _MOVED]
        if large:
            moves = ", ".join(large)
            said.append(f"With other choices ({name}) the law moves by more than {_MOVED:g} standard errors: {moves}.")
    return said
