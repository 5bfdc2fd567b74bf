"""The Chinchilla law (approach 3 of Hoffmann et al. 2022) and its compute-optimal sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scaling.laws.law import Column, Law, Reference
from scaling.laws.terms import coefficient, exponent, floor


@dataclass(frozen=True)
class Chinchilla(Law):
    """L(N, D) = E + A / N^alpha + B / D^beta, for training data that is not repeated.

    N is the number of parameters and D the number of training tokens, as the table counts them: the records of
    Fulcrum count N without embedding and output head, Hoffmann et al. with. Source: Hoffmann et al. 2022
    (arXiv:2203.15556), equations 2 and 4.
    """

    name = "Chinchilla"
    formula = "L(N, D) = E + A / N^alpha + B / D^beta"
    source = "Hoffmann et al. 2022, arXiv:2203.15556, equation 2"
    inputs = (
        Column("N", "parameters", ("A", "alpha")),
        Column("D", "training tokens", ("B", "beta")),
    )
    parameters = (
        floor("E"),
        coefficient("A", "size of the term in model size", {"loss": 1, "N": "alpha"}),
        exponent("alpha", "exponent of model size"),
        coefficient("B", "size of the term in data", {"loss": 1, "D": "beta"}),
        exponent("beta", "exponent of data"),
    )
    linear = ("E", "A", "B")
    references = (
        Reference(
            {"E": 1.6934, "A": 406.4, "alpha": 0.3392, "B": 410.7, "beta": 0.2849},
            "Hoffmann et al. 2022, constants as in the paper's TeX",
            "secondary",
        ),
        Reference(
            {"E": 1.8172, "A": 482.01, "alpha": 0.3478, "B": 2085.43, "beta": 0.3658},
            "Besiroglu et al. 2024, arXiv:2404.10102, refit of the points of Hoffmann et al., Figure 4",
            "secondary",
        ),
    )

    def predict(self, p: Mapping[str, Any], columns: Mapping[str, Any]) -> Any:
        """The loss at `columns` N (parameters) and D (tokens)."""
        return p["E"] + p["A"] * columns["N"] ** -p["alpha"] + p["B"] * columns["D"] ** -p["beta"]

    def written(self, p: Mapping[str, float]) -> str:
        """The formula with its numbers."""
        return f"L = {p['E']:.4g} + {p['A']:.4g} / N^{p['alpha']:.3g} + {p['B']:.4g} / D^{p['beta']:.3g}"

    def compute_optimal(self, p: Mapping[str, Any], flops: Any) -> tuple[Any, Any]:
        """(N, D) of least loss under flops = 6 N D, in closed form (Hoffmann et al. 2022, equation 4)."""
        alpha, beta = p["alpha"], p["beta"]
        balance = (alpha * p["A"] / (beta * p["B"])) ** (1 / (alpha + beta))
        size = balance * (flops / 6) ** (beta / (alpha + beta))
        return size, flops / (6 * size)
