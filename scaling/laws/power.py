"""Power laws in any columns: plain, with a floor, with an offset of either sign, and several with one exponent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np

from scaling.laws.law import Column, Law, Parameter, Reference
from scaling.laws.terms import coefficient, exponent, floor

_EITHER_SIGN: dict[str, tuple[float, float]] = {"bounds": (-10.0, 10.0), "start": (-2.0, 2.0)}


@dataclass(frozen=True)
class PowerLaw(Law):
    """y = k * x_1^a_1 * x_2^a_2 * ..., exponents of either sign; linear in logarithms, so it has one optimum.

    `x` names the columns and `y` the target; the exponent of column N is the parameter a_N. The columns may have any
    unit, and k follows. Without a floor it must fail where y approaches one, as losses do.
    """

    x: tuple[str, ...] = ("C",)
    y: str = "loss"

    name = "Power law"
    source = "no one paper; per task of CLIP in compute, E = beta C^alpha: Cherti et al. 2022, arXiv:2212.07143"
    linear = ("k",)
    meanings: ClassVar[Mapping[str, str]] = {
        "N": "parameters, as the table counts them",
        "D": "training tokens",
        "C": "training FLOPs",
    }

    def __post_init__(self) -> None:
        x, y = (self.x,) if isinstance(self.x, str) else tuple(self.x), self.y
        powers = {c: partial(_minus, f"a_{c}") for c in x}
        derived = {
            "x": x,
            "target": y,
            "formula": f"{y} = k * " + " * ".join(f"{c}^a_{c}" for c in x),
            "inputs": tuple(Column(c, self.meanings.get(c, c), (f"a_{c}",)) for c in x),
            "parameters": (
                coefficient("k", f"{y} where every column is 1", {y: 1, **powers}),
                *(exponent(f"a_{c}", f"exponent of {c}", **_EITHER_SIGN) for c in x),
            ),
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    def predict(self, p: Mapping[str, Any], columns: Mapping[str, Any]) -> Any:
        """The target at `columns`."""
        result = p["k"]
        for c in self.x:
            result = result * columns[c] ** p[f"a_{c}"]
        return result

    def written(self, p: Mapping[str, float]) -> str:
        """The formula with its numbers."""
        return f"{self.y} = {p['k']:.4g} * " + " * ".join(f"{c}^{p[f'a_{c}']:.4g}" for c in self.x)


@dataclass(frozen=True)
class DiLoCo(PowerLaw):
    """L(N, M) = k N^a_N M^a_M: the loss of DiLoCo, each N at its compute-optimal tokens, on M replicas.

    N is the number of parameters. Source: Charles et al. 2025 (arXiv:2503.09799). All constants are recalled. A plain
    power law without a floor: it serves within the paper's range of N only.
    """

    x: tuple[str, ...] = ("N", "M")

    name = "DiLoCo"
    source = "Charles et al. 2025, arXiv:2503.09799"
    meanings: ClassVar[Mapping[str, str]] = {"N": "parameters", "M": "replicas that train apart between two averages"}
    references = (
        Reference({"k": 19.226, "a_N": -0.0985, "a_M": 0.0116}, "Charles et al. 2025, joint fit, recalled", "recalled"),
    )


@dataclass(frozen=True)
class PowerLawFloor(Law):
    """y = E + k x^-a with E, k, a > 0: a power law that falls towards a floor.

    Many laws have this form, among them the data that value-based reinforcement learning needs for a target at s
    updates per sample, D_J(s) = D_min + (beta / s)^alpha (arXiv:2502.04327): E = D_min, k = beta^alpha, a = alpha.
    Over less than two decades of x, E and a trade against each other: look at the intervals.
    """

    x: str = "C"
    y: str = "loss"

    name = "Power law with a floor"
    source = "no one paper"
    linear = ("E", "k")

    def __post_init__(self) -> None:
        x, y = self.x, self.y
        derived = {
            "target": y,
            "formula": f"{y} = E + k {x}^-a",
            "inputs": (Column(x, PowerLaw.meanings.get(x, x), ("k", "a")),),
            "parameters": (
                floor("E", y, f"{y} at infinite {x}"),
                coefficient("k", f"size of the term in {x}", {y: 1, x: "a"}),
                exponent("a", f"exponent of {x}"),
            ),
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    def predict(self, p: Mapping[str, Any], columns: Mapping[str, Any]) -> Any:
        """The target at `columns`."""
        return p["E"] + p["k"] * columns[self.x] ** -p["a"]

    def written(self, p: Mapping[str, float]) -> str:
        """The formula with its numbers."""
        return f"{self.y} = {p['E']:.4g} + {p['k']:.4g} {self.x}^-{p['a']:.4g}"


@dataclass(frozen=True)
class OffsetPowerLaw(Law):
    """y = E + k x^a with E, k and a of either sign; fitted to values, because y may be zero or negative.

    For gains in percent against a baseline, as in Wukong (recommendation; arXiv:2403.02545), whose recalled constants
    give y in percent and x in GFLOP per example. At a = 0 the law is E + k + k a log x, and E and k grow without bound
    while a vanishes: with a tiny exponent k a and E + k are determined long before E, k and a are (the bounds of E and
    k in units of the typical |y|, 1e4, are then what stops them).
    """

    x: str = "C"
    y: str = "gain"

    name = "Offset power law"
    source = "as used by Zhang et al. 2024 (Wukong), arXiv:2403.02545"
    residuals = "linear"
    linear = ("E", "k")
    references = (Reference({"E": -100.0, "k": 99.56, "a": 0.00071}, "Zhang et al. 2024, recalled", "recalled"),)

    def __post_init__(self) -> None:
        x, y = self.x, self.y
        wide: dict[str, tuple[float, float]] = {"bounds": (-1e4, 1e4), "start": (-3.0, 3.0)}
        derived = {
            "target": y,
            "formula": f"{y} = E + k {x}^a",
            "inputs": (Column(x, PowerLaw.meanings.get(x, x), ("k", "a")),),
            "parameters": (
                Parameter("E", "identity", meaning="offset", units={y: 1}, **wide),
                Parameter(
                    "k", "identity", meaning=f"size of the term in {x}", units={y: 1, x: partial(_minus, "a")}, **wide
                ),
                exponent("a", f"exponent of {x}", (-5.0, 5.0), (-2.0, 2.0)),
            ),
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    def predict(self, p: Mapping[str, Any], columns: Mapping[str, Any]) -> Any:
        """The target at `columns`."""
        return p["E"] + p["k"] * columns[self.x] ** p["a"]

    def written(self, p: Mapping[str, float]) -> str:
        """The formula with its numbers."""
        return f"{self.y} = {p['E']:.4g} + {p['k']:.4g} {self.x}^{p['a']:.4g}"


@dataclass(frozen=True)
class ParallelPowerLaw(Law):
    """y = k_task x^a: parallel lines in logarithms, one coefficient per task of `groups` and one exponent for all.

    The column `task` holds a name of `groups` in every row. So the best batch size and learning rate of value-based
    reinforcement learning depend on the updates per sample, with a slope that tasks share (Rybkin et al. 2025,
    arXiv:2502.04327). Where every task has its own exponent as well, as in CLIP (arXiv:2212.07143) or the skills of
    arXiv:2503.10061, fit a `PowerLaw` to each with `scaling.each.fit_each`.
    """

    groups: tuple[str, ...] = ()
    x: str = "C"
    y: str = "loss"

    name = "Parallel power laws"
    source = "Rybkin et al. 2025, arXiv:2502.04327, for batch size and learning rate"

    def __post_init__(self) -> None:
        groups, x, y = tuple(map(str, self.groups)), self.x, self.y
        derived = {
            "groups": groups,
            "target": y,
            "formula": f"{y} = k_task {x}^a",
            "inputs": (
                Column("task", "which of the groups", domain="label"),
                Column(x, PowerLaw.meanings.get(x, x), ("a",)),
            ),
            "parameters": (
                *(
                    coefficient(f"k_{group}", f"{y} of {group} where {x} is 1", {y: 1, x: partial(_minus, "a")})
                    for group in groups
                ),
                exponent("a", f"exponent of {x}, the same for all groups", **_EITHER_SIGN),
            ),
            "linear": tuple(f"k_{group}" for group in groups),
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    def check(self, table: Mapping[str, Any]) -> None:
        """ValueError where a group of the law has no row, or a row no group."""
        found = sorted(set(map(str, table["task"])))
        if set(found) != set(self.groups):
            raise ValueError(
                f"groups={list(self.groups)} of {self.name} are not the tasks of the table, {', '.join(found)}. "
                f"Use groups=[{','.join(found)}]."
            )

    def features(self, table: Mapping[str, Any]) -> dict[str, Any]:
        """x, and the place of each row's task in `groups`."""
        tasks = [str(task) for task in table["task"]]
        unknown = sorted(set(tasks) - set(self.groups))
        if unknown:
            raise ValueError(f"task={unknown[0]} is none of the groups of {self.name}: {', '.join(self.groups)}.")
        place = {group: float(i) for i, group in enumerate(self.groups)}
        return {"task": np.array([place[task] for task in tasks]), self.x: np.asarray(table[self.x], float)}

    def predict(self, p: Mapping[str, Any], columns: Mapping[str, Any]) -> Any:
        """The target at `columns`."""
        k = sum((p[f"k_{group}"] * (columns["task"] == i) for i, group in enumerate(self.groups)), start=0.0)
        return k * columns[self.x] ** p["a"]


def _minus(name: str, p: Mapping[str, Any]) -> Any:
    return -p[name]
