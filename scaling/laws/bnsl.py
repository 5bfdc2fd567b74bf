"""The broken neural scaling law (Caballero et al. 2022): power laws that pass smoothly into one another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from scaling import jets
from scaling.laws.law import Column, Law, Parameter, Reference
from scaling.laws.terms import floor


@dataclass(frozen=True)
class BNSL(Law):
    """y(x) = a + b x^-c0 prod_i (1 + (x / d_i)^(1 / f_i))^(-c_i f_i), with `breaks` factors.

    x is whatever is scaled (parameters, tokens, FLOPs, in any unit), y what is measured. Left of every break y - a
    falls as x^-c0; break i lies at x = d_i, adds c_i to the exponent, which may be negative so that y rises, and is
    the sharper the smaller f_i. No break is a power law with a floor. Source: Caballero et al. 2022
    (arXiv:2210.14891), equation 1.

    Breaks can be exchanged without changing the formula; so that a fit has one answer, the second and later ones are
    given by their ratio to the one before, r_i = d_i / d_(i-1) > 1. The authors fit log(1 + y) by least squares from a
    grid; here residuals are of log y. Rows well beyond the last break are needed: before it, c_i and f_i are free.
    """

    breaks: int = 1
    """How many breaks; 0 is a power law with a floor."""

    name = "BNSL"
    formula = "y(x) = a + b x^-c0 prod_i (1 + (x / d_i)^(1 / f_i))^(-c_i f_i), r_i = d_i / d_(i-1)"
    source = "Caballero et al. 2022, arXiv:2210.14891, equation 1"
    target = "y"
    linear = ("a", "b")

    def __post_init__(self) -> None:
        if self.breaks < 0:
            raise ValueError(f"breaks={self.breaks} must be 0 (a power law with a floor) or more.")

    @property
    def inputs(self) -> tuple[Column, ...]:  # type: ignore[override]
        """x, which has to pass every break."""
        return (Column("x", "what is scaled", self.names[1:]),)

    @property
    def parameters(self) -> tuple[Parameter, ...]:  # type: ignore[override]
        """a, b and c0, then c, d (r after the first) and f of every break."""
        shared = (
            floor("a", self.target, "y of infinite x"),
            Parameter("b", "log", (1e-10, 1e6), (1e-2, 3.0), "size of the first segment", {self.target: 1, "x": "c0"}),
            Parameter("c0", "identity", (-5.0, 10.0), (0.0, 1.5), "exponent of the first segment"),
        )
        return shared + tuple(parameter for i in range(1, self.breaks + 1) for parameter in _of_break(i))

    @property
    def references(self) -> tuple[Reference, ...]:  # type: ignore[override]
        """The noiseless simulation in the authors' code, for one break."""
        four_digits = Reference(
            {
                "a": 0.41388453071629455, "b": 2.2772722897737556, "c0": 0.055077348404973955,
                "c1": 5.662903816010331, "d1": 612.5836172918001, "f1": 0.059193036393742314,
            },
            "ethancaballero/broken_neural_scaling_laws: cross-entropy of 4-digit addition (Figure 4), x in examples",
            "code",
        )  # fmt: skip
        return (four_digits,) if self.breaks == 1 else ()

    def predict(self, p: Mapping[str, Any], columns: Mapping[str, Any]) -> Any:
        """y at `columns` x."""
        x = np.log(columns["x"])
        slope = x * -p["c0"]
        for i, at in enumerate(self.break_points(p), 1):
            slope = slope - p[f"c{i}"] * p[f"f{i}"] * jets.softplus((x - jets.log(at)) / p[f"f{i}"])
        return p["a"] + p["b"] * jets.exp(slope)

    def break_points(self, p: Mapping[str, Any]) -> list[Any]:
        """d_i of every break, in the units of x, ascending."""
        points: list[Any] = []
        for i in range(1, self.breaks + 1):
            points.append(points[-1] * p[f"r{i}"] if points else p["d1"])
        return points


def _of_break(i: int) -> tuple[Parameter, ...]:
    first = Parameter("d1", "log", (1e-8, 1e8), (1e-2, 1e2), "where the first break lies", {"x": 1})
    later = Parameter(f"r{i}", "log", (1.0, 1e12), (2.0, 1e3), f"break {i} over break {i - 1}")
    return (
        Parameter(f"c{i}", "identity", (-20.0, 20.0), (-1.0, 2.0), f"change of the exponent at break {i}"),
        first if i == 1 else later,
        Parameter(f"f{i}", "log", (1e-3, 20.0), (0.03, 1.5), f"width of break {i} in ln x"),
    )
