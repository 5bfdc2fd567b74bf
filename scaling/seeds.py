"""Means over seeds, and what may be said about them.

the standard deviation over seeds   what another seed would have changed ("seed spread"); needs two seeds
the t-interval of the mean          where the mean over all seeds lies; shown from three seeds on
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import nan, sqrt

import numpy as np
from scipy.special import stdtrit

ENOUGH = 3  # seeds from which on an interval is shown and a verdict given
LEVEL = 0.95


@dataclass(frozen=True)
class Seeds:
    """Statistics of one number over seeds; nan where there are too few."""

    count: int
    mean: float
    spread: float
    """standard deviation over seeds, with count - 1"""
    error: float
    """standard error of the mean"""
    low: float
    """95 % t-interval of the mean"""
    high: float


def over_seeds(values: Iterable[float]) -> Seeds:
    """Mean, spread and interval of the finite ones of `values`, one per seed."""
    given = np.asarray(list(values), float)
    given = np.sort(given[np.isfinite(given)])  # sums do not depend on the order of the rows
    count = len(given)
    mean = float(given.mean()) if count else nan
    spread = float(given.std(ddof=1)) if count > 1 else nan
    error = spread / sqrt(count) if count else nan
    reach = float(stdtrit(count - 1, (1 + LEVEL) / 2)) * error if count >= ENOUGH else nan
    return Seeds(count, mean, spread, error, mean - reach, mean + reach)
