"""Laws of data mixtures, and the mixture that they call best.

weights h on the simplex, N, D --law--> loss on one target --optimal_weights--> the h of least loss
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize

from scaling import jets
from scaling.laws.law import Column, Law, Parameter
from scaling.laws.terms import coefficient, exponent, floor

_SUM = 1e-6  # how far from 1 the weights of a row may sum: files round them
_FLOOR = 1e-9  # smallest weight of the search: h^gamma with gamma < 1 is vertical at 0


class Mixture(Law):
    """What both laws share: the domains, their columns, and the term in the weights."""

    domains: tuple[str, ...]

    def check(self, table: Mapping[str, Any]) -> None:
        """The weights of each row sum to one."""
        total = np.sum([np.asarray(table[column], float) for column in self.weight_columns], axis=0)
        worst = float(total[np.argmax(np.abs(total - 1.0))])
        if abs(worst - 1.0) > _SUM:
            raise ValueError(
                f"{' + '.join(self.weight_columns)} is {worst:.6g} in a row and must be 1 in all: "
                "divide the weights by their sum, or name the missing domains."
            )

    @property
    def weight_columns(self) -> list[str]:
        """The columns of the weights, in the order of `domains`."""
        return [f"h_{domain}" for domain in self.domains]

    def _mixed(self, p: Mapping[str, Any], columns: Mapping[str, Any]) -> Any:
        """1 / sum_i C_i h_i^gamma_i."""
        return 1.0 / sum(p[f"C_{i}"] * _power(columns[f"h_{i}"], p[f"gamma_{i}"]) for i in self.domains)

    def _set_up(self, *rest: Parameter) -> None:
        if len(set(self.domains)) < max(2, len(self.domains)):
            raise ValueError(f"domains={self.domains} must be two or more different names, as ('web', 'code').")
        object.__setattr__(self, "domains", tuple(self.domains))
        sizes = (
            Column("N", "parameters, as the table counts them", ("alpha",)),
            Column("D", "training tokens", ("beta",)),
        )
        weights = (
            Column(f"h_{i}", f"share of {i} in the training tokens", (f"C_{i}", f"gamma_{i}"), "fraction")
            for i in self.domains
        )
        object.__setattr__(self, "inputs", (*weights, *sizes))
        own = [
            parameter
            for i in self.domains
            for parameter in (
                Parameter(f"C_{i}", "log", (1e-8, 1e8), (0.1, 1e3), f"worth of {i} for the target", {"loss": -1}),
                exponent(f"gamma_{i}", f"how fast more {i} saturates", start=(0.05, 1.5)),
            )
        ]
        object.__setattr__(self, "parameters", (floor("E"), *own, *rest))


@dataclass(frozen=True)
class AdditiveMixture(Mixture):
    """L(N, D, h) = E + 1 / sum_i C_i h_i^gamma_i + A / N^alpha + B / D^beta, for the loss on one target.

    h_i is the share of domain i in the training tokens (columns h_<domain>, a sum of 1), N the number of parameters
    and D of training tokens, as the table counts them. Weights and scale do not interact: the best mixture is the
    same at every N and D. A domain without weight adds nothing, whatever its gamma. Source: Shukor et al. 2025
    (arXiv:2507.09404); that the law is additive is public, the exact shape of the term in h is recalled.
    """

    domains: tuple[str, ...]

    name = "additive data mixture"
    formula = "L(N, D, h) = E + 1 / sum_i C_i h_i^gamma_i + A / N^alpha + B / D^beta"
    source = "Shukor et al. 2025, arXiv:2507.09404, additive law (shape of the term in h recalled)"
    linear = ("E", "A", "B")

    def __post_init__(self) -> None:
        self._set_up(
            coefficient("A", "size of the term in model size", {"loss": 1, "N": "alpha"}),
            exponent("alpha", "exponent of model size"),
            coefficient("B", "size of the term in data", {"loss": 1, "D": "beta"}),
            exponent("beta", "exponent of data"),
        )

    def predict(self, p: Mapping[str, Any], columns: Mapping[str, Any]) -> Any:
        """The target's loss at `columns` h_<domain>, N and D."""
        scale = p["A"] * columns["N"] ** -p["alpha"] + p["B"] * columns["D"] ** -p["beta"]
        return p["E"] + self._mixed(p, columns) + scale


@dataclass(frozen=True)
class JointMixture(Mixture):
    """L(N, D, h) = E + 1 / sum_i C_i h_i^gamma_i + A_h / N^alpha + B_h / D^beta, the best mixture moving with scale.

    A_h = (sum_i CA_i h_i)^gammaA and B_h = (sum_i CB_i h_i)^gammaB; all else as in `AdditiveMixture`, which this law
    becomes where all CA_i and all CB_i are equal. The powers gammaA and gammaB are kept positive. Source: Shukor et
    al. 2025 (arXiv:2507.09404), joint law; its exact shape is recalled. The law has 4 parameters per domain and 5
    more: it needs mixtures that move independently, at several N and D.
    """

    domains: tuple[str, ...]

    name = "joint data mixture"
    formula = (
        "L(N, D, h) = E + 1 / sum_i C_i h_i^gamma_i + (sum_i CA_i h_i)^gammaA / N^alpha"
        " + (sum_i CB_i h_i)^gammaB / D^beta"
    )
    source = "Shukor et al. 2025, arXiv:2507.09404, joint law (shape recalled)"
    linear = ("E",)

    def __post_init__(self) -> None:
        size = (_inner("CA", i, "N", "gammaA", "alpha") for i in self.domains)
        data = (_inner("CB", i, "D", "gammaB", "beta") for i in self.domains)
        self._set_up(
            *size,
            exponent("gammaA", "power of the mixture in the term in model size", (0.05, 5.0), (0.2, 2.0)),
            exponent("alpha", "exponent of model size"),
            *data,
            exponent("gammaB", "power of the mixture in the term in data", (0.05, 5.0), (0.2, 2.0)),
            exponent("beta", "exponent of data"),
        )

    def predict(self, p: Mapping[str, Any], columns: Mapping[str, Any]) -> Any:
        """The target's loss at `columns` h_<domain>, N and D."""
        size = sum(p[f"CA_{i}"] * columns[f"h_{i}"] for i in self.domains) ** p["gammaA"]
        data = sum(p[f"CB_{i}"] * columns[f"h_{i}"] for i in self.domains) ** p["gammaB"]
        scale = size * columns["N"] ** -p["alpha"] + data * columns["D"] ** -p["beta"]
        return p["E"] + self._mixed(p, columns) + scale


def optimal_weights(
    law: Mixture, params: Mapping[str, float], N: float, D: float, starts: int = 8, seed: int = 0
) -> dict[str, float]:
    """The weights of least predicted loss at N parameters and D tokens, by domain.

    With exponents gamma above 1 the loss has several minima on the simplex: the search (SLSQP with exact gradients)
    starts in the middle, near every corner and from `starts` random mixtures.
    """
    k = len(law.domains)
    points = [
        np.full(k, 1 / k),
        *(0.1 / k + 0.9 * np.eye(k)),
        *np.random.default_rng(seed).dirichlet(np.ones(k), starts),
    ]

    def loss(h: np.ndarray) -> float:
        columns = dict(zip(law.weight_columns, h, strict=True))
        return float(law.predict(params, {**columns, "N": N, "D": D}))

    scale = loss(points[0])

    def objective(h: np.ndarray) -> tuple[float, np.ndarray]:
        columns = dict(zip(law.weight_columns, jets.variables(np.asarray(h)[None]), strict=True))
        predicted = law.predict(params, {**columns, "N": N, "D": D})
        slope = [np.broadcast_to(predicted.grad[i], (1, 1)).item() for i in range(k)]
        return float(predicted.value.item()) / scale, np.array(slope) / scale

    found: list[np.ndarray] = []
    for point in points:
        end = minimize(
            objective, point, jac=True, method="SLSQP", bounds=[(_FLOOR, 1.0)] * k,
            constraints={"type": "eq", "fun": lambda h: h.sum() - 1.0, "jac": lambda h: np.ones(k)},
            options={"ftol": 1e-15, "maxiter": 500},
        )  # fmt: skip
        kept = np.where(end.x > 2 * _FLOOR, end.x, 0.0)
        found += [h / h.sum() for h in (end.x, kept)]
    best = min(found, key=loss)
    return {domain: float(share) for domain, share in zip(law.domains, best, strict=True)}


def _inner(kind: str, domain: str, column: str, gamma: str, exponent: str) -> Parameter:
    """A coefficient inside a power: centred, its `gamma`-th power is a share of the loss."""
    what = "model size" if column == "N" else "data"
    return Parameter(
        f"{kind}_{domain}", "log", (1e-30, 1e10), (1e-4, 3.0), f"weight of {domain} in the term in {what}",
        {"loss": lambda p: 1.0 / p[gamma], column: lambda p: p[exponent] / p[gamma]},
    )  # fmt: skip


def _power(h: Any, gamma: Any) -> Any:
    """h^gamma, and zero, derivatives included, where h is."""
    positive = (h.value if isinstance(h, jets.Jet) else h) > 0
    return jets.where(positive, jets.where(positive, h, 1.0) ** gamma, 0.0)
