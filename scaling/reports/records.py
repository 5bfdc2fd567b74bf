"""What every section of a report is given: the runs, their logged curves, and the settings of its fits."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd


@dataclass(frozen=True)
class Settings:
    """How the laws of a report are fitted: see the options of `fulcrum fit`."""

    huber: float = 1e-3
    starts: int = 256
    bootstrap: int = 1000
    seed: int = 0
    holdout: float = 0.2


@dataclass(frozen=True)
class Records:
    """`runs` as of data.records.load_runs, `curves` as of load_curves (no rows where nothing was logged)."""

    runs: pd.DataFrame
    curves: pd.DataFrame
    settings: Settings
