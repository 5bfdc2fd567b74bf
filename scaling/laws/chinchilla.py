"""The Chinchilla law (approach 3 of Hoffmann et al. 2022) and its compute-optimal sizes."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from scaling.laws.law import Law, Parameter

_COEFFICIENT = {"transform": "log", "bounds": (1e-8, 1e4), "start": (1e-3, 3.0)}
_EXPONENT = {"transform": "identity", "bounds": (0.0, 5.0), "start": (0.02, 2.0)}


class Chinchilla(Law):
    """L(N, D) = E + A / N^alpha + B / D^beta, for training data that is not repeated.

    N is the number of parameters and D the number of training tokens, as the table counts them: the records of
    Fulcrum count N without embedding and output head, Hoffmann et al. with. Source: Hoffmann et al. 2022
    (arXiv:2203.15556), equations 2 and 4.
    """

    name = "Chinchilla"
    formula = "L(N, D) = E + A / N^alpha + B / D^beta"
    source = "Hoffmann et al. 2022, arXiv:2203.15556, equation 2"
    columns = MappingProxyType({"N": ("A", "alpha"), "D": ("B", "beta")})
    parameters = (
        Parameter("E", "log", (1e-6, 1e2), (1e-2, 1.0), "loss of an infinite model on infinite data"),
        Parameter("A", meaning="size of the term in model size", **_COEFFICIENT),  # type: ignore[arg-type]
        Parameter("alpha", meaning="exponent of model size", **_EXPONENT),  # type: ignore[arg-type]
        Parameter("B", meaning="size of the term in data", **_COEFFICIENT),  # type: ignore[arg-type]
        Parameter("beta", meaning="exponent of data", **_EXPONENT),  # type: ignore[arg-type]
    )

    def predict(self, p: Mapping[str, Any], columns: Mapping[str, Any]) -> Any:
        """The loss at `columns` N (parameters) and D (tokens)."""
        return p["E"] + p["A"] * columns["N"] ** -p["alpha"] + p["B"] * columns["D"] ** -p["beta"]

    def written(self, p: Mapping[str, float]) -> str:
        """The formula with its numbers."""
        return f"L = {p['E']:.4g} + {p['A']:.4g} / N^{p['alpha']:.3g} + {p['B']:.4g} / D^{p['beta']:.3g}"

    def rescale(self, p: Mapping[str, Any], scale: Mapping[str, float]) -> dict[str, Any]:
        """Raw parameters from those fitted to N / scale["N"], D / scale["D"] and loss / scale["loss"]."""
        loss = scale["loss"]
        return {
            "E": p["E"] * loss,
            "A": p["A"] * loss * scale["N"] ** p["alpha"],
            "alpha": p["alpha"],
            "B": p["B"] * loss * scale["D"] ** p["beta"],
            "beta": p["beta"],
        }

    def compute_optimal(self, p: Mapping[str, Any], flops: Any) -> tuple[Any, Any]:
        """(N, D) of least loss under flops = 6 N D, in closed form (Hoffmann et al. 2022, equation 4)."""
        alpha, beta = p["alpha"], p["beta"]
        balance = (alpha * p["A"] / (beta * p["B"])) ** (1 / (alpha + beta))
        size = balance * (flops / 6) ** (beta / (alpha + beta))
        return size, flops / (6 * size)
