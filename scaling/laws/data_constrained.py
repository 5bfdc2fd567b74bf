"""The data-constrained law of Muennighoff et al. 2023: repeated tokens and excess parameters are worth less."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp
from typing import Any

import numpy as np

from scaling import jets
from scaling.laws.law import Column, Law, Parameter, Reference
from scaling.laws.terms import coefficient, exponent, floor


def _lasting(name: str, meaning: str) -> Parameter:
    return Parameter(name, "log", (1e-3, 1e6), (0.1, 1e3), f"how many {meaning} keep their worth")


def _parameters(beta: str) -> tuple[Parameter, ...]:
    data = (exponent("beta", "exponent of data", (0.01, 5.0)),) if beta == "beta" else ()
    return (
        floor("E"),
        coefficient("A", "size of the term in model size", {"loss": 1, "N": "alpha"}),
        exponent("alpha", "exponent of model size", (0.01, 5.0)),
        coefficient("B", "size of the term in data", {"loss": 1, "U": beta}),
        *data,
        _lasting("R_D", "repetitions of the data (R_D*)"),
        _lasting("R_N", "multiples of the compute-optimal size (R_N*)"),
    )


def _published(beta: str) -> Reference:
    e, a, b, alpha = 0.6254804, 6.255414, 7.3049974, 0.3526596
    return Reference(
        {"E": exp(e), "A": exp(a), "alpha": alpha, "B": exp(b), beta: alpha, "R_D": 15.387756, "R_N": 5.309743},
        "Muennighoff et al. 2023, fit to C4, as in huggingface/datablations, README.md",
        "code",
    )


@dataclass(frozen=True)
class DataConstrained(Law):
    """L = E + A / N'^alpha + B / D'^beta, the Chinchilla law in effective parameters N' and effective tokens D'.

    D' = U_D + U_D R_D* (1 - e^(-R_D / R_D*)) with U_D = min(U, D) distinct tokens, seen R_D = D / U_D - 1 more times;
    N' alike, from U_N = min(N, the compute-optimal size for U_D tokens) and the excess R_N = N / U_N - 1. R_D* and
    R_N* are the parameters R_D and R_N: the number of repetitions after which another one is worth 1/e of a fresh
    one; infinite ones give the Chinchilla law. N, D and U as the table counts them (the published constants: all
    parameters, GPT-2 tokens of C4). Less than an epoch (D < U) counts as D distinct tokens seen once.

    `tied` makes alpha and beta one parameter, alpha, as in the published fit. Source: Muennighoff et al. 2023
    (arXiv:2305.16264). Known limits: repetition costs nothing but its worth, so the loss never rises with epochs,
    and fits to the published runs have several minima and leave R_D open upwards.
    """

    tied: bool = False

    name = "data-constrained"
    source = "Muennighoff et al. 2023, arXiv:2305.16264, and huggingface/datablations"
    inputs = (
        Column("N", "parameters", ("A", "alpha", "R_N")),
        Column("D", "training tokens, repeated ones included", ("B", "beta", "R_D")),
        Column("U", "distinct tokens available"),
    )
    formula = (
        "L(N, D, U) = E + A / (U_N + U_N R_N* (1 - e^(-R_N / R_N*)))^alpha"
        " + B / (U_D + U_D R_D* (1 - e^(-R_D / R_D*)))^beta"
    )
    parameters = _parameters("beta")
    references = (_published("beta"),)

    def __post_init__(self) -> None:
        if self.tied:
            object.__setattr__(self, "formula", self.formula.replace("beta", "alpha"))
            object.__setattr__(self, "parameters", _parameters("alpha"))
            object.__setattr__(self, "references", (_published("alpha"),))

    @property
    def _beta(self) -> str:
        return "alpha" if self.tied else "beta"

    def features(self, table: Mapping[str, Any]) -> dict[str, Any]:
        """N; U, the distinct tokens that were seen; and how often they were repeated, which has no unit."""
        n, d, available = (np.asarray(table[name], float) for name in ("N", "D", "U"))
        seen = np.minimum(available, d)
        return {"N": n, "U": seen, "repetitions": d / seen - 1.0}

    def predict(self, p: Mapping[str, Any], columns: Mapping[str, Any]) -> Any:
        """The loss at `columns` N, U and repetitions, as `features` makes them."""
        alpha, beta = p["alpha"], p[self._beta]
        g = (alpha * p["A"] / (beta * p["B"])) ** (1.0 / (alpha + beta))
        optimal = g * jets.exp((beta / alpha) * jets.log(g * columns["U"]))
        excess = columns["N"] / optimal
        larger = (excess.value if isinstance(excess, jets.Jet) else excess) > 1.0
        unique = jets.where(larger, optimal, columns["N"])
        size = unique * (1.0 + _worth(jets.where(larger, excess - 1.0, 0.0), p["R_N"]))
        data = columns["U"] * (1.0 + _worth(columns["repetitions"], p["R_D"]))
        return p["E"] + p["A"] * size**-alpha + p["B"] * data**-beta


def _worth(repeated: Any, lasting: Any) -> Any:
    """R* (1 - e^(-R / R*)); by expm1, for 1 - exp(-x) rounds to steps at large R* and makes a false minimum there."""
    return -lasting * jets.expm1(-repeated / lasting)
