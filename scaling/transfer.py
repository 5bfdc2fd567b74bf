"""Does the best peak rate of a narrow model serve a wide one? Runs of several widths and rates, by parametrization.

    runs --one setting, one width--> Optimum of peak_lr --over the widths--> drift per doubling, cost of the first rate

Widths are compared where all else is one setting (scaling.settings), but for what grows with the width. The drift is
the slope of log2(best rate) over log2(width), through all widths; its interval is that of the draws of their optima.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from scaling.naming import first_batch, ramp_names, schedule_names
from scaling.seeds import Seeds, over_seeds
from scaling.settings import apart, comparable, counted, text, why_not
from scaling.surface import BRACKETED, Optimum, optimum

STANDARD, MUP = "standard", "mup"
FAMILY = ["parametrization", "setting"]
_WIDTHS = ("d_model", "n_heads", "n_kv_heads", "head_dim", "d_ff")  # of the model, what may grow with the width
_BASE = ("model.base_width", "model.base_head_dim")  # say nothing of a standard run
LEVEL = 0.9


@dataclass(frozen=True)
class Widths:
    """The runs of one parametrization and setting. `optima`: of peak_lr by width, narrow to wide. `drift`: slope of
    log2(best rate) over log2(width), `drift_low` and `drift_high` its 90 % interval (nan without draws). `cost`: by
    width, what the narrowest model's best rate costs there against its own, over seeds; those that diverged are out."""

    parametrization: str
    setting: str
    optima: dict[float, Optimum]
    drift: float
    drift_low: float
    drift_high: float
    cost: dict[float, Seeds]

    @property
    def bracketed(self) -> bool:
        """Whether the best rate of every width lies between rates that were tried, with its interval."""
        return all(one.verdict["peak_lr"] == BRACKETED for one in self.optima.values())

    @property
    def transfers(self) -> bool | None:
        """Whether no drift is within the interval, where all optima are bracketed; None: not decided."""
        if not self.bracketed or not np.isfinite(self.drift_low):
            return None
        return self.drift_low <= 0 <= self.drift_high


@dataclass(frozen=True)
class Transfer:
    """`families`: by setting, standard first; `results`: a row per run that counts or diverged, with width,
    parametrization, setting, peak_lr, seed, eval_loss (nan where it diverged); `notes`: what has to be said."""

    families: tuple[Widths, ...]
    results: pd.DataFrame
    notes: tuple[str, ...]


def transfer(runs: pd.DataFrame) -> Transfer:
    """Best rates over widths. ValueError where no parametrization has two widths with a result."""
    results, notes = _results(runs)
    families = []
    for (parametrization, setting), group in results.groupby(FAMILY):
        by_width = {float(width): rows for width, rows in group.groupby("width") if rows["eval_loss"].notna().any()}
        if len(by_width) < 2:
            where = f"{parametrization} ({setting})" if setting else parametrization
            notes.append(f"{where} has results at fewer than two widths: nothing to compare.")
            continue
        families.append(_widths(str(parametrization), str(setting), by_width))
    if not families:
        raise ValueError("no parametrization has completed runs at two widths.")
    families.sort(key=lambda one: (one.setting, one.parametrization != STANDARD))
    return Transfer(tuple(families), results, tuple(notes))


def _results(runs: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    if "model.d_model" not in runs or runs["model.d_model"].isna().all():
        raise ValueError("the records do not say how wide the models are (model.d_model).")
    if not counted(runs).any():
        raise ValueError("no parametrization has completed runs at two widths: none has ended with a held-out loss.")
    runs = runs.assign(eval_loss=pd.to_numeric(runs["eval_loss"], errors="coerce"))
    table = runs[["run_id", "N", "total_tokens", "peak_lr", "seed", "eval_loss"]].assign(
        width=pd.to_numeric(runs["model.d_model"]), parametrization=_parametrization(runs)
    )
    settings = comparable(runs).assign(
        tokens=runs["total_tokens"].map(text),
        schedule=schedule_names(runs).map(text),
        ramp=ramp_names(runs).map(text),
        batch=first_batch(runs).map(text),
    )
    settings.loc[table["parametrization"] == STANDARD, [name for name in _BASE if name in settings]] = "null"
    widths = [f"model.{name}" for name in _WIDTHS if f"model.{name}" in settings]
    others = settings.drop(columns=[*widths, "model.parametrization"], errors="ignore")
    setting, notes = apart(others, [table["parametrization"]])
    shape, unlike = apart(settings[widths], [table["parametrization"], setting, table["width"]])
    table["setting"] = [", ".join(filter(None, pair)) for pair in zip(setting, shape, strict=True)]
    diverged = runs["status"] == "diverged"
    table["eval_loss"] = table["eval_loss"].where(~diverged)
    kept = counted(runs) | diverged
    left = runs.loc[~kept, "status"].map(why_not).value_counts()
    notes = [*notes, *unlike, *(f"{count} runs are left out: {why}." for why, count in left.items())]
    return table[kept].sort_values(["width", "peak_lr", "seed", "run_id"]), notes


def _parametrization(runs: pd.DataFrame) -> pd.Series:
    if "model.parametrization" not in runs:
        return pd.Series(STANDARD, runs.index)
    return runs["model.parametrization"].astype(object).where(runs["model.parametrization"].notna(), STANDARD)


def _widths(parametrization: str, setting: str, by_width: dict[float, pd.DataFrame]) -> Widths:
    # draws of different widths are independent: each has a seed of its own
    groups = enumerate(by_width.items())
    optima = {width: optimum(rows, ["peak_lr"], level=LEVEL, seed=k) for k, (width, rows) in groups}
    logs = np.log2(list(optima))
    slope = (logs - logs.mean()) / ((logs - logs.mean()) ** 2).sum()
    drift = float(slope @ np.log2([one.best["peak_lr"] for one in optima.values()]))
    low = high = np.nan
    if all(len(one.draws) for one in optima.values()):
        drawn = slope @ np.log2(np.stack([one.draws[:, 0] for one in optima.values()]))
        low, high = np.percentile(drawn, (50 * (1 - LEVEL), 50 * (1 + LEVEL)))
    narrow = next(iter(optima.values())).best["peak_lr"]
    cost = {width: over_seeds(_cost(by_width[width], narrow, one.best["peak_lr"])) for width, one in optima.items()}
    return Widths(parametrization, setting, optima, drift, float(low), float(high), cost)


def _cost(rows: pd.DataFrame, rate: float, best: float) -> list[float]:
    """By seed, the loss at `rate` minus that at `best`, both read off straight lines in log(rate) between the seed's
    runs; nan beyond them or beside a run that diverged."""
    found = []
    for _, own in rows.groupby("seed"):
        own = own.groupby("peak_lr")["eval_loss"].mean().sort_index()
        at, tried = (np.round(np.log2(rates), 6) for rates in ([rate, best], own.index.to_numpy(float)))
        losses = np.interp(at, tried, own.to_numpy(float), left=np.nan, right=np.nan)
        found.append(float(losses[0] - losses[1]))
    return found
