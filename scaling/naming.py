"""How a run's schedule and ramp are called in tables and figures: "WSD linear", "Seesaw", "naive ramp (batch x4)"."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pandas as pd

from optim.ramps import Seesaw

CONSTANT_BATCH = "constant batch"
_SCHEDULES = {"QuarterCosine": "Quarter cosine", "InverseSqrt": "Inverse sqrt", "WSDS": "WSD-S", "Rex": "REX"}


def described(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs with columns `schedule`, `ramp` and `batch_size` (the first one) in place of schedule.* and ramp.*."""
    names = {"schedule": schedule_names(runs), "ramp": ramp_names(runs), "batch_size": first_batch(runs)}
    known = {name: column for name, column in names.items() if column.notna().any()}
    replaced = [name for name in map(str, runs) if name.startswith(("schedule.", "ramp."))]
    return runs.drop(columns=replaced).assign(**known)


def schedule_names(runs: pd.DataFrame) -> pd.Series:
    """A short name of every run's schedule; what differs between runs of one kind and budget is part of it."""
    return _names(runs, "schedule.", _schedule, {"shape"}, _settings(runs))


def ramp_names(runs: pd.DataFrame) -> pd.Series:
    """A short name of every run's ramp, without the batch that it starts at."""
    named = {"batch_size", "batch_sizes", "lr_cut", "batch_growth", "allow_unstable"}
    return _names(runs, "ramp.", _ramp, named, [*_settings(runs), first_batch(runs)])


def plan_labels(runs: pd.DataFrame) -> list[str]:
    """Schedule and ramp of every run: "Cosine, Seesaw"; of a constant batch the schedule alone."""
    both = zip(schedule_names(runs), ramp_names(runs), strict=True)
    return [schedule if ramp == CONSTANT_BATCH else f"{schedule}, {ramp}" for schedule, ramp in both]


def plan_names(runs: pd.DataFrame) -> dict[str, str]:
    """run_id -> schedule and ramp, and the run_id where these do not tell runs apart."""
    named = dict(zip(runs["run_id"], plan_labels(runs), strict=True))
    twice = {name for name, count in Counter(named.values()).items() if count > 1}
    return {run: f"{name} {run}" if name in twice else name for run, name in named.items()}


def in_order(names: Iterable[Any]) -> list[Any]:
    """Distinct names or numbers as legends and tables list them: the constant batch first, then Seesaw."""
    rank = {CONSTANT_BATCH: 0, "Seesaw": 1}
    return sorted(set(names), key=lambda name: (rank.get(name, 2), name))


def first_batch(runs: pd.DataFrame) -> pd.Series:
    """The batch, in sequences, that every run starts at."""

    def first(run: pd.Series) -> float:
        sizes = _value(run, "ramp.batch_sizes")
        return float(sizes[0] if isinstance(sizes, list | tuple) else _value(run, "ramp.batch_size") or math.nan)

    return _by_row(runs, first, float)


def _names(
    runs: pd.DataFrame, prefix: str, kind: Callable[[pd.Series], str | None], named: set[str], within: list[pd.Series]
) -> pd.Series:
    """`kind` of every run, and the fields below `prefix` in which runs of one kind differ at equal `within`."""
    kinds = _by_row(runs, kind, object)
    names = kinds.copy()
    fields = [c for c in map(str, runs) if c.startswith(prefix) and c.removeprefix(prefix) not in named]
    for _, same in runs.groupby(kinds):
        settings = [column[same.index].astype(str) for column in within]
        for field in fields:
            if same[field].map(lambda x: isinstance(x, list | dict)).any():
                continue
            if same[field].map(_text).groupby(settings).nunique().max() > 1:
                names[same.index] += same[field].map(lambda x, f=field: f", {f.removeprefix(prefix)} {_text(x)}")
    return names


def _settings(runs: pd.DataFrame) -> list[pd.Series]:
    """Size and budget: a field that only follows them is no part of a name."""
    return [runs.get(name, pd.Series("", runs.index)) for name in ("N", "total_tokens")]


def _by_row(runs: pd.DataFrame, function: Callable[[pd.Series], Any], kind: type) -> pd.Series:
    return pd.Series([function(run) for _, run in runs.iterrows()], index=runs.index, dtype=kind)


def _schedule(run: pd.Series) -> str | None:
    target = _value(run, "schedule._target_")
    if target is None:
        return None
    kind = target.rsplit(".", 1)[-1]
    shape = _value(run, "schedule.shape")
    return _SCHEDULES.get(kind, kind) + (f" {shape.replace('_', ' ')}" if shape else "")


def _ramp(run: pd.Series) -> str | None:
    target = _value(run, "ramp._target_")
    if target is None:
        return None
    kind = target.rsplit(".", 1)[-1]
    if kind == "ConstantBatch":
        return CONSTANT_BATCH
    if kind == "StepBatch":
        sizes = _value(run, "ramp.batch_sizes")
        return "batch steps " + ", ".join(f"x{size / sizes[0]:.3g}" for size in sizes)
    if kind != "Seesaw":
        return kind
    factors = {key: _value(run, f"ramp.{key}") for key in ("alpha", "lr_cut", "batch_growth")}
    ramp = Seesaw(batch_size=1, allow_unstable=True, **factors)
    alpha, cut, growth = (float(value or 1) for value in (ramp.alpha, ramp.lr_cut, ramp.batch_growth))
    if cut == 1 and math.isclose(alpha, growth, rel_tol=1e-6):
        return "batch for rate"  # what the schedule would take from the rate goes to the batch
    if math.isclose(cut, math.sqrt(growth), rel_tol=1e-6):
        return "Seesaw"
    return f"naive ramp (batch x{growth:.3g})" if cut == 1 else f"ramp (rate /{cut:.3g}, batch x{growth:.3g})"


def _value(run: pd.Series, name: str) -> Any:
    """The value of a field; None where it is null or not there."""
    value = run.get(name)
    return None if isinstance(value, float) and np.isnan(value) else value


def _text(value: Any) -> str:
    if isinstance(value, int | float | np.number) and not isinstance(value, bool):
        return "null" if np.isnan(value) else f"{value:.6g}"
    return "null" if value is None else str(value)
