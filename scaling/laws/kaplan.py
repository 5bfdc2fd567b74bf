"""The laws of Kaplan et al. 2020: loss from model size, from data, and from both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scaling.laws.law import Column, Law, Parameter, Reference
from scaling.laws.terms import exponent

_SIZE = Column("N", "parameters without embeddings", ("Nc", "alpha_N"))
_DATA = Column("D", "training tokens", ("Dc", "alpha_D"))


def _constant(name: str, meaning: str, column: str, power: str) -> Parameter:
    """Nc or Dc: centred, its `power` is the share of the loss, so its own range is that of shares^(1 / power)."""
    return Parameter(name, "log", (1e-130, 1e130), (1e-30, 1e4), meaning, {column: 1, "loss": lambda p: 1.0 / p[power]})


_NC = _constant("Nc", "size at which model size alone would give a loss of 1", "N", "alpha_N")
_DC = _constant("Dc", "tokens at which data alone would give a loss of 1", "D", "alpha_D")
# Above zero, because units enter Nc and Dc to the power 1 / alpha.
_ALPHA_N = exponent("alpha_N", "exponent of model size", (0.01, 5.0))
_ALPHA_D = exponent("alpha_D", "exponent of data", (0.01, 5.0))


@dataclass(frozen=True)
class KaplanSize(Law):
    """L(N) = (Nc / N)^alpha_N, for models trained to convergence on enough data.

    N is the number of parameters without embeddings. There is no floor: the loss falls to zero, so the law holds over
    a range of sizes only. The unit of the loss is part of Nc. Source: Kaplan et al. 2020 (arXiv:2001.08361),
    equation 1.1.
    """

    name = "Kaplan L(N)"
    formula = "L(N) = (Nc / N)^alpha_N"
    source = "Kaplan et al. 2020, arXiv:2001.08361, equation 1.1"
    inputs = (_SIZE,)
    parameters = (_NC, _ALPHA_N)
    references = (Reference({"Nc": 8.8e13, "alpha_N": 0.076}, "Kaplan et al. 2020, equation 1.1", "secondary"),)

    def predict(self, p: Mapping[str, Any], columns: Mapping[str, Any]) -> Any:
        """The loss at `columns` N (parameters without embeddings)."""
        return (p["Nc"] / columns["N"]) ** p["alpha_N"]


@dataclass(frozen=True)
class KaplanData(Law):
    """L(D) = (Dc / D)^alpha_D, for large models stopped early on D tokens.

    D is the number of distinct training tokens. No floor, as in `KaplanSize`. Source: Kaplan et al. 2020
    (arXiv:2001.08361), equation 1.2.
    """

    name = "Kaplan L(D)"
    formula = "L(D) = (Dc / D)^alpha_D"
    source = "Kaplan et al. 2020, arXiv:2001.08361, equation 1.2"
    inputs = (_DATA,)
    parameters = (_DC, _ALPHA_D)
    references = (Reference({"Dc": 5.4e13, "alpha_D": 0.095}, "Kaplan et al. 2020, equation 1.2", "secondary"),)

    def predict(self, p: Mapping[str, Any], columns: Mapping[str, Any]) -> Any:
        """The loss at `columns` D (tokens)."""
        return (p["Dc"] / columns["D"]) ** p["alpha_D"]


@dataclass(frozen=True)
class Kaplan(Law):
    """L(N, D) = ((Nc / N)^(alpha_N / alpha_D) + Dc / D)^alpha_D, for large models stopped early on D tokens.

    N is the number of parameters without embeddings, D the number of distinct training tokens. With much data it is
    (Nc / N)^alpha_N, with a large model (Dc / D)^alpha_D; there is no floor. The published constants of this joint
    fit differ from those of the two separate ones. Source: Kaplan et al. 2020 (arXiv:2001.08361), equation 1.5.
    """

    name = "Kaplan L(N, D)"
    formula = "L(N, D) = ((Nc / N)^(alpha_N / alpha_D) + Dc / D)^alpha_D"
    source = "Kaplan et al. 2020, arXiv:2001.08361, equation 1.5"
    inputs = (_SIZE, _DATA)
    parameters = (_NC, _ALPHA_N, _DC, _ALPHA_D)
    references = (
        Reference(
            {"Nc": 6.4e13, "alpha_N": 0.076, "Dc": 1.8e13, "alpha_D": 0.103},
            "Kaplan et al. 2020, joint fit of L(N, D)",
            "secondary",
        ),
    )

    def predict(self, p: Mapping[str, Any], columns: Mapping[str, Any]) -> Any:
        """The loss at `columns` N (parameters without embeddings) and D (tokens)."""
        size = (p["Nc"] / columns["N"]) ** (p["alpha_N"] / p["alpha_D"])
        return (size + p["Dc"] / columns["D"]) ** p["alpha_D"]
