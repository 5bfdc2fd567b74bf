"""Data filtering: the worth of a pool that is repeated, and of several pools that are mixed (Goyal et al. 2024).

A clean pool is small and wears out; a larger, worse one lasts. The law says from which number of samples on the
larger one wins, which is why filtering cannot be decided without the compute in view.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scaling import jets
from scaling.laws.law import Column, Law, Parameter, Reference
from scaling.laws.terms import coefficient, floor

_PRODUCT = "prod_{j=2..k} (n_j / n_{j-1})^(b (1/2)^((j-1)/tau))"
_POOLS = {  # b and tau of the best 10 % of samples, the next 10 %, and so on
    "0-10 %": (-0.16, 6.7272727272727275),
    "10-20 %": (-0.125, 8.545454545454547),
    "20-30 %": (-0.1, 5.2727272727272725),
    "30-40 %": (-0.085, 2.2727272727272725),
}


@dataclass(frozen=True)
class Filtering(Law):
    """y = a n_1^b prod_{j=2..k} (n_j / n_{j-1})^(b_j) + d with b_j = b (1/2)^((j - 1) / tau), after k epochs.

    n is the number of samples seen, U the number in the pool, n_j = min(j U, n) the samples seen by the end of epoch
    j, k = ceil(n / U); y an error (map the column for a loss). b < 0 is the utility of a fresh sample, which halves
    every tau epochs. Model and budget per sample are fixed. Source: Goyal et al. 2024 (arXiv:2404.07177).

    `scales_floor`: the authors' code (locuslab/scaling_laws_data_filtering, objective.py) multiplies (a n_1^b + d) by
    the product, so that the floor shrinks with every epoch; the paper adds d afterwards. True follows the code: what
    its published constants were fitted with. The code also writes a n^b as (a' n / 1e5)^b: a = (a' / 1e5)^b.
    """

    scales_floor: bool = False

    name = "data filtering"
    formula = f"y(n, U) = a n_1^b {_PRODUCT} + d, n_j = min(j U, n)"
    source = "Goyal et al. 2024, arXiv:2404.07177, and locuslab/scaling_laws_data_filtering"
    target = "error"
    inputs = (
        Column("n", "samples seen, repeated ones included", ("a", "b")),
        Column("U", "samples in the pool"),
    )
    parameters = (
        coefficient("a", "size of the reducible error", {"error": 1, "n_1": lambda p: -p["b"]}),
        Parameter("b", "identity", (-5.0, 0.0), (-2.0, -0.02), "utility of a fresh sample: the exponent of n"),
        Parameter("tau", "log", (1e-2, 1e4), (0.3, 100.0), "half-life of the utility, in epochs"),
        floor("d", "error", "error of infinitely many fresh samples"),
    )
    linear = ("a", "d")
    references = tuple(
        Reference(
            {"a": (0.025 / 1e5) ** b, "b": b, "tau": tau, "d": 0.1},
            f"Goyal et al. 2024, T-MARS {pool} of DataComp, ImageNet error, in locuslab/scaling_laws_data_filtering, "
            "results/parameter_values.jsonl; fitted with scales_floor=True and d fixed",
            "code",
        )
        for pool, (b, tau) in _POOLS.items()
    )

    def __post_init__(self) -> None:
        if self.scales_floor:
            object.__setattr__(self, "formula", f"y(n, U) = (a n_1^b + d) {_PRODUCT}, n_j = min(j U, n)")

    def features(self, table: Mapping[str, Any]) -> dict[str, Any]:
        """n_1, the samples seen in the first epoch, and the epochs, which have no unit."""
        n, pool = (np.asarray(table[name], float) for name in ("n", "U"))
        return {"n_1": np.minimum(n, pool), "epochs": n / pool}

    def predict(self, p: Mapping[str, Any], columns: Mapping[str, Any]) -> Any:
        """The error at `columns` n_1 and epochs, as `features` makes them."""
        growth: Any = 0.0
        for j, ratio in _epochs(columns["epochs"]):
            growth = growth + jets.exp(-np.log(2.0) * (j - 1) / p["tau"]) * np.log(ratio)
        repeated = jets.exp(p["b"] * growth)
        first = p["a"] * columns["n_1"] ** p["b"]
        return (first + p["d"]) * repeated if self.scales_floor else first * repeated + p["d"]


def effective_utility(b: Sequence[float], tau: Sequence[float], epoch: Any) -> Any:
    """The utility of a sample in epoch 1, 2, ... of a mixture of equal pools with utilities `b` and half-lives `tau`.

    The mean over pools of b_i (1/2)^((epoch - 1) / (p tau_i)): in a mixture of p pools a pool's samples come back
    after p times as many others, and the half-life in epochs of the mixture is p times the pool's own.
    """
    own, half_life = np.asarray(b, float), len(b) * np.asarray(tau, float)
    return np.mean(own * 0.5 ** ((np.asarray(epoch, float)[..., None] - 1) / half_life), axis=-1)


def mixed_error(
    pools: Sequence[Mapping[str, float]], n: Any, size: float, a: float, d: float, scales_floor: bool = False
) -> Any:
    """The error after `n` samples of a mixture of `pools` ({"b": ..., "tau": ...}) of `size` samples each.

    `a` and `d` are common to the pools, as in Goyal et al.'s fits; a is in the unit of n, at the utility of the
    mixture: pass (a' / 1e5)^(mean of b) for the a' of their code.
    """
    law = Filtering()
    columns = law.features({"n": n, "U": len(pools) * size})
    b, tau = [pool["b"] for pool in pools], [pool["tau"] for pool in pools]
    power = np.zeros_like(columns["epochs"])
    for j, ratio in _epochs(columns["epochs"]):
        power = power + effective_utility(b, tau, j) * np.log(ratio)
    first = a * columns["n_1"] ** effective_utility(b, tau, 1)
    return (first + d) * np.exp(power) if scales_floor else first * np.exp(power) + d


def _epochs(epochs: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """(j, n_j / n_{j-1}) for the epochs j = 2, 3, ... of any row; a ratio is 1 in rows that ended before."""
    last = int(np.ceil(np.max(epochs)))
    return [(j, np.clip(epochs, j - 1, j) / (j - 1)) for j in range(2, last + 1)]
