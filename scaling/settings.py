"""Which runs may be compared: those with one setting, which is all that they were asked apart from what is compared.

    runs --comparable--> every other setting, as text --apart--> a label ("optimizer = Muon", empty where all agree)

What a loss is measured on belongs to the setting: losses on two held-out sets have no difference. How often a run is
evaluated, how it was launched and what it averages do not.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import pandas as pd

from scaling.wording import configuration

_COMPARED = ("schedule.", "ramp.", "averages.")
_NOT_SETTINGS = {"peak_lr", "seed", "label"}
_MEASURED = ("eval.tokens", "unique_tokens", "data_fingerprint", "heldout_fingerprint", "tokenizer_fingerprint")
_IN_TOKENS = ("_tokens", "parent.tokens")
_NAMED = 6  # differing settings that a note names
STOPPED = {
    "target": "at the target loss",
    "hopeless": "because a rival was there first",
}  # stop_reason of a completed run that ended before its budget -> in words
_SAME_SHARE = 0.02  # budgets are rounded to whole sequences, and shares of them with it


def comparable(runs: pd.DataFrame) -> pd.DataFrame:
    """The settings of every run, as text. Tokens in fixed proportion to the budget are shares of it."""
    names = [name for name in configuration(runs) if not name.startswith(_COMPARED) and name not in _NOT_SETTINGS]
    names += [name for name in _MEASURED if name in runs and name not in names]
    columns = {name: _share(runs, name) if name.endswith(_IN_TOKENS) else runs[name] for name in names}
    return pd.DataFrame({name: column.map(text) for name, column in columns.items()}, index=runs.index)


def apart(settings: pd.DataFrame, within: Sequence[pd.Series]) -> tuple[pd.Series, list[str]]:
    """A label of every run's setting, and a note where runs of one group of `within` differ; else labels are empty.

    The label names only what it takes to tell the settings apart, the note what differs.
    """
    groups = list(within)
    differing = [name for name in settings if settings[name].groupby(groups, dropna=False).nunique().max() > 1]
    differing.sort(key=lambda name: (name in _MEASURED, not name.endswith("_target_"), name))
    labels, told = pd.Series("", settings.index), 1
    for name in differing:
        longer = labels.where(labels == "", labels + ", ") + _named(name, settings[name])
        if longer.nunique() > told:
            labels, told = longer, longer.nunique()
    if not differing:
        return labels, []
    named = [f"{name} ({_listed(settings[name])})" for name in differing[:_NAMED]]
    more = f" and {len(differing) - _NAMED} more" if len(differing) > _NAMED else ""
    return labels, [f"The runs differ in {', '.join(named)}{more}: each setting is compared by itself."]


def counted(runs: pd.DataFrame) -> pd.Series:
    """Whether a run enters a mean: completed to its budget, with a held-out loss (a column `eval_loss` of numbers; it
    is not there before a first run has ended)."""
    if "eval_loss" not in runs:
        return pd.Series(False, runs.index)
    early = runs["stop_reason"].fillna("budget").ne("budget") if "stop_reason" in runs else False
    return (runs["status"] == "completed") & runs["eval_loss"].notna() & ~np.asarray(early)


def stopped(runs: pd.DataFrame) -> pd.Series:
    """The stop_reason of the runs that ended before their budget, by `STOPPED`; None for all others. The last loss of
    such a run is not that of its budget."""
    if "stop_reason" not in runs or "status" not in runs:
        return pd.Series(None, runs.index, dtype=object)
    early = (runs["status"] == "completed") & runs["stop_reason"].isin(list(STOPPED))
    return runs["stop_reason"].astype(object).where(early, None)


def told_stopped(counts: Mapping[str, int]) -> str:
    """In words: 4 runs stopped before the budget (3 at the target loss and 1 because a rival was there first)."""
    number = sum(counts.values())
    listed = " and ".join(f"{counts[why]} {words}" for why, words in STOPPED.items() if why in counts)
    return f"{number} run{'s' if number != 1 else ''} stopped before the budget ({listed})"


def why_not(status: object) -> str:
    """Why a run of this status does not count."""
    return "stopped before the budget or has no held-out loss" if status == "completed" else str(status)


def text(value: object) -> str:
    """A setting as a key: equal settings have one text, whatever their type."""
    if isinstance(value, bool | np.bool_):
        return str(bool(value)).lower()
    if isinstance(value, int | float | np.number):
        return "null" if np.isnan(value) else f"{value:.12g}"
    return "null" if value is None or value is pd.NA else str(value)


def _share(runs: pd.DataFrame, name: str) -> pd.Series:
    """The column, or its shares of the budget where those have fewer values and tell the same runs apart."""
    numbers, budgets = pd.to_numeric(runs[name], errors="coerce"), pd.to_numeric(runs["total_tokens"], errors="coerce")
    shares = (numbers / budgets).sort_values()
    which = (shares.diff() > _SAME_SHARE * shares.abs()).cumsum().reindex(runs.index).where(numbers.notna())
    same = which.groupby(budgets).nunique() == numbers.groupby(budgets).nunique()
    if not same.all() or which.nunique() >= numbers.nunique():
        return runs[name]
    typical = shares.groupby(which).transform("median")
    return typical.map(lambda share: f"{share:.2g} of the budget", na_action="ignore")


def _named(name: str, values: pd.Series) -> pd.Series:
    """optimizer = Muon, optimizer.beta2 = 0.99, heldout_fingerprint = e113ea7f."""
    return name.removesuffix("._target_") + " = " + values.map(lambda value: _shown(name, value))


def _shown(name: str, value: str) -> str:
    return value.rsplit(".", 1)[-1] if name.endswith("_target_") else value[:8] if "fingerprint" in name else value


def _listed(values: pd.Series) -> str:
    distinct: Sequence[Hashable] = sorted(values.unique())
    shown = [_shown(str(values.name), str(value)) for value in distinct[:3]]
    return ", ".join(shown) + (", ..." if len(distinct) > 3 else "")
