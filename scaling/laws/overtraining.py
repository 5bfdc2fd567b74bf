"""The law of over-training of Gadre et al. 2024: loss from compute and tokens per parameter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scaling.laws.law import Column, Law
from scaling.laws.terms import coefficient, exponent, floor


@dataclass(frozen=True)
class Overtraining(Law):
    """L = E + (a M^eta + b M^-eta) C^-eta with M = D / N tokens per parameter and C = 6 N D FLOPs.

    It is the same as E + A / N^x + B / D^x with one exponent x = 2 eta, A = a / 6^eta and B = b / 6^eta: the Chinchilla
    law with alpha = beta, written so that over-training (a large M) moves a line in log C without turning it. N and D
    as the table counts them; the compute-optimal M does not depend on C, by construction. Source: Gadre et al. 2024
    (arXiv:2403.08540); their code (mlfoundations/scaling) fits it by least squares on the loss, not on its logarithm.
    """

    name = "over-training"
    formula = "L(N, D) = E + (a M^eta + b M^-eta) / C^eta, M = D / N, C = 6 N D"
    source = "Gadre et al. 2024, arXiv:2403.08540"
    inputs = (
        Column("N", "parameters", ("a", "eta")),
        Column("D", "training tokens", ("b", "eta")),
    )
    parameters = (
        floor("E"),
        coefficient("a", "size of the term in model size", {"loss": 1, "N": lambda p: 2 * p["eta"]}),
        coefficient("b", "size of the term in data", {"loss": 1, "D": lambda p: 2 * p["eta"]}),
        exponent("eta", "exponent of compute", (0.0, 2.5), (0.01, 1.0)),
    )
    linear = ("E", "a", "b")
    nested_in = ("Chinchilla",)

    def predict(self, p: Mapping[str, Any], columns: Mapping[str, Any]) -> Any:
        """The loss at `columns` N (parameters) and D (tokens)."""
        m, c = columns["D"] / columns["N"], 6.0 * columns["N"] * columns["D"]
        return p["E"] + (p["a"] * m ** p["eta"] + p["b"] * m ** -p["eta"]) * c ** -p["eta"]

    def chinchilla(self, p: Mapping[str, float]) -> dict[str, float]:
        """The parameters of the Chinchilla law that is the same function."""
        x, six = 2 * p["eta"], 6.0 ** -p["eta"]
        return {"E": p["E"], "A": p["a"] * six, "alpha": x, "B": p["b"] * six, "beta": x}
