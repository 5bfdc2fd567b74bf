"""Which law to believe: held-out error, and criteria that weigh fit against parameters.

A better training objective is not a better law. The tests that count fit the small runs and predict the large ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import special

from scaling.losses import has_scale
from scaling.uncertainty import freedom, noise

if TYPE_CHECKING:
    from scaling.fit import Fit

_ALIASES = {"flops": "C", "parameters": "N", "tokens": "D"}


@dataclass(frozen=True)
class Holdout:
    """A law fitted without the rows of largest `by`, and how it predicts them.

    `table` has the law's columns, its target, `predicted` and `error` = predicted / measured - 1 (their difference,
    for laws fitted to values), one row per held-out row.
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


def holdout(fit: Fit, by: str, fraction: float) -> Holdout:
    """See `Fit.holdout`."""
    if not 0 < fraction < 1:
        raise ValueError(f"holdout={fraction} must lie between 0 and 1: the fraction of rows with the largest {by}.")
    table, by = _ordered_by(fit, by)
    count = max(1, round(fraction * len(table)))
    cutoff = np.sort(table[by].to_numpy())[-count] * (1 - 1e-9)
    return _tested(fit, by, cutoff, np.inf)


def expanding(fit: Fit, by: str, windows: int) -> pd.DataFrame:
    """One row per window: fitted to the rows of `by` up to `fitted_up_to`, tested on the next ones.

    The distinct values of `by` are cut into `windows` + 1 parts of equal length (in values); the first must hold
    enough settings for the law, else it grows. Columns: fitted_up_to, tested_up_to, rows, tested, rms_error,
    worst_error.
    """
    if windows < 1:
        raise ValueError(f"windows={windows} must be at least 1.")
    table, by = _ordered_by(fit, by)
    values = np.sort(table[by].unique())
    edges = np.unique(np.linspace(0, len(values), windows + 2).round().astype(int)[1:])
    found, reasons = [], []
    for first, last in pairwise(edges):
        try:
            test = _tested(fit, by, values[first] * (1 - 1e-9), values[last - 1] * (1 + 1e-9))
        except ValueError as error:
            reasons.append(str(error))
            continue
        found.append(
            {
                "fitted_up_to": test.above,
                "tested_up_to": float(values[last - 1]),
                "rows": len(test.fit.rows.table),
                "tested": len(test.table),
                "rms_error": test.typical,
                "worst_error": test.worst,
            }
        )
    if not found:
        raise ValueError(f"No window by {by} leaves enough rows to fit. {reasons[-1] if reasons else ''}")
    return pd.DataFrame(found)


def compare(fit: Fit, other: Fit, by: str | None) -> pd.DataFrame:
    """One row per law: parameters, objective, log likelihood, AICc, BIC, p-value of the ratio test (F) where the
    smaller law nests in the larger, and the held-out error by expanding window.

    The log likelihood is the fit's own for Student's t. For other losses it is minus the objective in units of the
    noise of the larger law's residuals, which makes these the robust criteria of Ronchetti (1985). Raises ValueError
    where the two were fitted to other rows or with another loss.
    """
    if not all(_by_row(fit, name).equals(_by_row(other, name)) for name in ("target", "weight")):
        raise ValueError("The two fits are of different rows or weights: fit both laws to one table.")
    if repr(fit.problem.loss) != repr(other.problem.loss) or fit.problem.residuals != other.problem.residuals:
        raise ValueError("The two fits used different losses: fit both with one loss.")
    if by is not None:
        _, by = _ordered_by(fit, by)
        _ordered_by(other, by)
    by = by or next((name for name in ("C", "N", "D") if name in fit.rows.table and name in other.rows.table), None)
    small, large = sorted((fit, other), key=lambda each: len(each.problem.names))
    unit = noise(large.problem, large.free, large.rows)
    rows = [_criteria(each, unit) | _window_error(each, by) for each in (fit, other)]
    more = len(large.problem.names) - len(small.problem.names)
    p_value = np.nan
    if more and nests(small, large):
        ratio = max(2 * (small.objective - large.objective) / unit, 0.0)
        p_value = float(special.fdtrc(more, freedom(large), ratio / more))
    return pd.DataFrame(rows, index=[fit.law.name, other.law.name]).assign(ratio_test_p=p_value)


def nests(small: Fit, large: Fit) -> bool:
    """Whether `small` is `large` with parameters fixed (the same law), or a law that says so (`law.nested_in`)."""
    if small.law == large.law:
        return set(large.problem.fixed.items()) <= set(small.problem.fixed.items())
    return type(large.law).__name__ in small.law.nested_in and not large.problem.fixed


def _by_row(fit: Fit, name: str) -> pd.Series:
    """A column under the caller's index, in an order that does not depend on the law."""
    values = fit.rows.table[fit.law.target if name == "target" else name].rename(name)
    return values.sort_values(kind="stable").sort_index(kind="stable")


def _ordered_by(fit: Fit, by: str) -> tuple[pd.DataFrame, str]:
    by = _ALIASES.get(by, by)
    table = fit.rows.table
    known = [c for c in table if c not in ("group", "weight") and pd.api.types.is_numeric_dtype(table[c])]
    if by not in known:
        raise ValueError(f"holdout by {by!r}: the fit has {', '.join(known)}.")
    return table, by


def _tested(fit: Fit, by: str, low: float, high: float) -> Holdout:
    """Fitted to the rows of `by` below `low`, tested on those from `low` to `high`."""
    table = fit.rows.table
    kept, out = table[table[by] < low], table[(table[by] >= low) & (table[by] <= high)]
    without = fit.refitted(kept)
    target = fit.law.target
    tested = out[list(dict.fromkeys([*fit.law.columns, by, target]))].copy()
    if fit.law.along_curves:  # a curve's rows need their past
        tested["predicted"] = without.predict(table)[target].loc[out.index]
    else:
        tested["predicted"] = without.predict(tested)[target]
    difference = tested["predicted"] - tested[target]
    tested["error"] = difference / tested[target] if fit.problem.residuals == "log" else difference
    return Holdout(by, float(kept[by].max()) if len(kept) else 0.0, without, tested)


def _window_error(fit: Fit, by: str | None) -> dict[str, float]:
    if by is None:
        return {}
    try:
        table = expanding(fit, by, 4)
    except ValueError:
        return {"held_out_rms": np.nan}
    return {"held_out_rms": float(np.sqrt(np.average(table["rms_error"] ** 2, weights=table["tested"])))}


def _criteria(fit: Fit, unit: float) -> dict[str, float]:
    n, k = len(fit.rows.table), len(fit.problem.names)
    likelihood = -fit.objective / unit
    spare = n - k - 1
    return {
        "parameters": len(fit.problem.names) - has_scale(fit.problem.loss),
        "objective": fit.objective,
        "log_likelihood": likelihood,
        "AICc": 2 * k - 2 * likelihood + (2 * k * (k + 1) / spare if spare > 0 else np.inf),
        "BIC": k * np.log(n) - 2 * likelihood,
    }
