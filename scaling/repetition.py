"""Runs on few distinct tokens, many times over: what repetition costs, and what a repeated token is worth.

runs --repeated--> rows with U and epochs --equivalent--> fresh tokens that reach the same loss (no law needed)
                                          --fit--> the data-constrained law --worth--> worth of a repeated token
                                                                          --best_epochs--> size and epochs for a budget
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from scaling.allocate import Family
from scaling.fit import Fit
from scaling.settings import counted

_REACH = 30.0  # sizes are searched this factor below and above those that were run
_GRID = 400
OVERFIT = 0.02  # nats that the held-out loss of a run may end above its lowest; more is overfitting, not noise


def repeated(runs: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """The runs that ended, with N, D, C, U (distinct tokens there were), `epochs` = D / U (below 1: not all were seen),
    `loss` (held out, final), `train_loss`, `rise`, how far the held-out loss ended above its lowest along the run's
    curve (0 where none was logged), and `overfits`, whether that is more than `OVERFIT`.

    ValueError where no run has ended, none repeats its tokens, or none does not: repetition then has nothing to be
    compared with.
    """
    missing = [name for name in ("N", "D", "unique_tokens", "eval_loss") if name not in runs]
    if missing:
        raise ValueError(f"The runs have no column {missing[0]}: give records of Fulcrum.")
    rows = runs[counted(runs)].dropna(subset=["N", "D", "unique_tokens"])
    if rows.empty:
        raise ValueError(f"None of the {len(runs)} runs has ended at its budget with a held-out loss.")
    names = ["run_id", "N", "D", "C", "seed", "flops_per_token"]
    found = rows[[name for name in names if name in rows]].assign(
        U=rows["unique_tokens"].astype(float), loss=rows["eval_loss"].astype(float)
    )
    found["epochs"] = found["D"] / found["U"]
    found["train_loss"] = rows["loss"].astype(float) if "loss" in rows else np.nan
    lowest = curves.groupby("run_id")["eval_loss"].min() if "eval_loss" in curves else pd.Series(dtype=float)
    found["rise"] = (found["loss"] - found["run_id"].map(lowest).astype(float)).fillna(0.0)
    found["overfits"] = found["rise"] > OVERFIT
    if not (found["epochs"] > 1).any():
        raise ValueError("No run repeats its tokens: set unique_tokens below total_tokens.")
    if not (found["epochs"] <= 1).any():
        raise ValueError("Every run repeats its tokens: add runs with unique_tokens of total_tokens or more.")
    return found.sort_values(["N", "U", "D"], ignore_index=True)


def equivalent(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of `repeated` with `fresh`, the tokens without repetition that reach the same loss at the same size, and
    `worth`, the share of a fresh token that a repeated one was worth: (fresh - U) / (D - U).

    `fresh` is read off the losses of the runs that do not repeat, means at each D, straight in log D. It is nan where
    those have no such loss, or too few sizes of D; `excess` is the loss above that of no repetition at the same D.
    """
    parts = []
    for _, group in rows.groupby("N"):
        once = group[group["epochs"] <= 1].groupby("D")["loss"].mean()
        losses, tokens = once.to_numpy(), np.log(once.index.to_numpy(float))
        fresh = np.full(len(group), np.nan)
        if len(once) > 1 and (np.diff(losses) < 0).all():
            inside = group["loss"].between(losses[-1], losses[0])
            fresh = np.where(inside, np.exp(np.interp(-group["loss"], -losses, tokens)), np.nan)
        excess = group["loss"] - group["D"].map(once)
        parts.append(group.assign(fresh=fresh, excess=excess))
    found = pd.concat(parts, ignore_index=True)
    again = found["epochs"] > 1
    return found.assign(worth=((found["fresh"] - found["U"]) / (found["D"] - found["U"])).where(again))


def worth(lasting: Any, epochs: Any) -> tuple[np.ndarray, np.ndarray]:
    """What a repeated token is worth after `epochs` passes, in fresh ones: the mean over the repeated tokens, and the
    next one. `lasting` is R_D*; Muennighoff et al. 2023 (arXiv:2305.16264): D' = U + U R* (1 - e^(-R / R*))."""
    again = np.asarray(epochs, float) - 1.0
    lasting = np.asarray(lasting, float)
    mean = np.where(again > 0, -lasting * np.expm1(-again / lasting) / np.where(again > 0, again, 1.0), 1.0)
    return mean, np.exp(-again / lasting)


@dataclass(frozen=True)
class Best:
    """Size N, tokens D and epochs of least predicted loss for a budget; `table` has one row with _low and _high."""

    C: float
    table: pd.Series
    edge: bool
    """whether the best size of most refits lies at an end of the search"""


def best_epochs(fit: Fit, distinct: float, budget: float, along: Family | None, level: float = 0.9) -> Best:
    """How to spend `budget` training FLOPs on `distinct` tokens by a fitted data-constrained law: on a larger model or
    on more epochs. Along `along`, or with C = 6 N D; with percentiles over the bootstrap replicates."""
    ran = fit.rows.table["N"]
    sizes = np.geomspace(ran.min() / _REACH, ran.max() * _REACH, _GRID)
    tokens = budget / (along.flops_per_token(sizes) if along else 6 * sizes)
    columns = fit.law.features({"N": sizes, "D": tokens, "U": np.full(len(sizes), distinct)})

    def best(p: Mapping[str, Any]) -> np.ndarray:
        return np.atleast_2d(fit.law.predict(p, columns)).argmin(axis=-1)

    middle = best(fit.params)[0]
    drawn = best({name: values[:, None] for name, values in fit.replicates.items()})
    values = {"N": sizes, "D": tokens, "epochs": tokens / distinct}
    row: dict[str, float] = {}
    for name, value in values.items():
        low, high = np.percentile(value[drawn], (50 * (1 - level), 50 * (1 + level)))
        row |= {name: float(value[middle]), f"{name}_low": float(low), f"{name}_high": float(high)}
    edge = bool(np.isin(drawn, (0, _GRID - 1)).mean() > 0.5)
    return Best(budget, pd.Series(row), edge)


def turning(rows: pd.DataFrame) -> pd.DataFrame:
    """For every N and U with several epochs: the `epochs` of least final held-out loss among those that were run,
    whether these were the `most` (`more`), and the loss after the most and its gap to the training loss."""
    found = []
    for (size, distinct), group in rows.groupby(["N", "U"]):
        means = group.groupby("epochs")[["loss", "train_loss"]].mean()
        if means.index.max() <= 1 or len(means) < 2:
            continue
        at, last = int(means["loss"].argmin()), len(means) - 1
        best, end = means.iloc[at], means.iloc[last]
        row = {"N": size, "U": distinct, "epochs": means.index[at], "loss": best["loss"], "most": means.index[-1]}
        row |= {"loss_at_most": end["loss"], "gap_at_most": end["loss"] - end["train_loss"]}
        found.append(row | {"more": at == last})
    return pd.DataFrame(found)
