"""Runs on mixtures of sources: their shares and losses as a table, a law of each target, and its best weights.

runs --mixed--> h_<domain>, loss on every domain and their mean --fit_target--> law --best_weights--> h with intervals
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from scaling.fit import Fit, Loss, fit
from scaling.laws.mixtures import Mixture, optimal_weights
from scaling.settings import counted

MEAN = "mean"  # the target that weighs all domains alike
CHECK = "check"  # label of the runs that test a law and enter none
_DRAWS = 100  # replicates that the interval of the best weights is read from
_WEIGHT, _LOSS = "data.weights.", "eval_loss/"


@dataclass(frozen=True)
class Mixed:
    """`table`: a row per run with run_id, N, D, C, seed, label, h_<domain> (a sum of 1), and the held-out losses
    loss_<domain> and loss_mean. `notes`: what was left out."""

    domains: tuple[str, ...]
    table: pd.DataFrame
    notes: tuple[str, ...]

    @property
    def targets(self) -> list[str]:
        return [*self.domains, MEAN]

    @property
    def fitted(self) -> pd.DataFrame:
        """The rows that laws are fitted to: all but the checks."""
        return self.table[self.table["label"] != CHECK]


def mixed(runs: pd.DataFrame) -> Mixed:
    """The runs that ended and say their weights. ValueError where there are none, or not two sources."""
    weights = [str(name) for name in runs if str(name).startswith(_WEIGHT)]
    domains = tuple(name.removeprefix(_WEIGHT) for name in weights)
    missing = [domain for domain in domains if f"{_LOSS}{domain}" not in runs]
    if len(domains) < 2 or missing:
        raise ValueError(
            "No run mixes two sources or more with data.weights and has a held-out loss on each"
            + (f" (none on {missing[0]})." if missing else ".")
        )
    ended = runs[counted(runs)]
    known = ended.dropna(subset=["N", "D", *weights, *(f"{_LOSS}{domain}" for domain in domains)])
    if known.empty:
        raise ValueError("No run with data.weights has ended.")
    notes = []
    if len(known) < len(ended):
        notes.append(f"{len(ended) - len(known)} runs without data.weights are left out: their shares are not told.")
    total = known[weights].astype(float).sum(axis=1)
    names = [
        "run_id",
        "N",
        "D",
        "C",
        "seed",
        "N_total",
        "flops_per_token",
        "heldout_fingerprint",
        "tokenizer_fingerprint",
    ]
    table = known[[name for name in names if name in known]].copy()
    table["label"] = known["label"].fillna("") if "label" in known else ""
    for domain, weight in zip(domains, weights, strict=True):
        table[f"h_{domain}"] = known[weight].astype(float) / total
        table[f"loss_{domain}"] = known[f"{_LOSS}{domain}"].astype(float)
    table[f"loss_{MEAN}"] = table[[f"loss_{domain}" for domain in domains]].mean(axis=1)
    return Mixed(domains, table.reset_index(drop=True), tuple(notes))


def fit_target(law: Mixture, found: Mixed, target: str, loss: Loss, starts: int, seed: int) -> Fit:
    """`law` fitted to the losses on `target`. A term in N or D that no run varies is held at nothing."""
    table = found.fitted
    fixed: dict[str, float] = {}
    for column, names in (("N", ("A", "alpha")), ("D", ("B", "beta"))):
        if table[column].nunique() == 1 and set(names) <= set(law.names):
            fixed |= dict(zip(names, (1e-9, 1.0), strict=True))
    return fit(law, table, loss, starts, seed, fixed, columns={"loss": f"loss_{target}"})


def best_weights(fitted: Fit, size: float, tokens: float, level: float = 0.9) -> pd.DataFrame:
    """The weights of least predicted loss at N = `size` and D = `tokens`: a row per domain with `weight`, and where the
    fit has bootstrap replicates with `low` and `high`, percentiles over the best weights of some of them."""
    law = fitted.law
    assert isinstance(law, Mixture)
    best = optimal_weights(law, fitted.params, size, tokens)
    found = pd.DataFrame({"weight": best})
    if fitted.free_replicates is not None:
        every = max(1, len(fitted.free_replicates) // _DRAWS)
        draws = pd.DataFrame(
            optimal_weights(law, p, size, tokens, starts=0)
            for p in pd.DataFrame(fitted.replicates).iloc[::every].to_dict("records")
        )
        tail = 50 * (1 - level)
        found["low"], found["high"] = np.percentile(draws[list(found.index)], (tail, 100 - tail), axis=0)
    return found


def told(weights: pd.Series) -> str:
    """python .50, prose .30, headers .20: weights by domain, the largest first."""
    return ", ".join(f"{domain} {weight:.2f}" for domain, weight in weights.sort_values(ascending=False).items())
