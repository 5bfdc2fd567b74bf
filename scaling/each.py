"""One law for every value of a column: skills, tasks, domains that have nothing in common but their formula."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from scaling.fit import Fit, fit
from scaling.laws.law import Law


def fit_each(law: Law, table: pd.DataFrame, by: str, **settings: Any) -> dict[str, Fit]:
    """`law` fitted to the rows of each value of column `by`, under the value's text, in sorted order.

    `settings` are those of `scaling.fit.fit`, the same for all. Raises ValueError naming the group that cannot be
    fitted, or rows without a group.
    """
    if by not in table:
        raise ValueError(f"by={by}: the table has no such column; it has {', '.join(map(str, table))}.")
    if table[by].isna().any():
        raise ValueError(f"by={by}: {int(table[by].isna().sum())} rows have no value there. Remove or name them.")
    weights = settings.pop("weights", None)
    of_rows = table[by].astype(str)
    fits = {}
    for group in sorted(of_rows.unique()):
        kept = (of_rows == group).to_numpy()
        own = weights if weights is None or isinstance(weights, str) else np.asarray(weights)[kept]
        try:
            fits[group] = fit(law, table[kept], weights=own, **settings)
        except ValueError as error:
            raise ValueError(f"{by}={group}: {error}") from error
    return fits


def summary(fits: Mapping[str, Fit], level: float = 0.9) -> pd.DataFrame:
    """One row per group: the parameters, with _low and _high for fits that were bootstrapped, `rows`, `residual_rms`,
    `agreement` of the starts, and how many `warnings` the fit has."""
    lines = {}
    for group, found in fits.items():
        drawn = found.intervals(level) if found.free_replicates is not None else {}
        line: dict[str, float] = {}
        for name, value in found.params.items():
            line[name] = value
            if name in drawn:
                line[f"{name}_low"], line[f"{name}_high"] = drawn[name]
        lines[group] = line | {
            "rows": len(found.rows.table),
            "residual_rms": found.residual_rms,
            "agreement": found.agreement,
            "warnings": len(found.warnings),
        }
    return pd.DataFrame.from_dict(lines, orient="index")
