"""What a law has to say about itself so that one engine can fit it.

    table --features--> columns as arrays --predict(parameters, columns)--> the target, usually the loss

A law is a frozen dataclass; its fields are choices that are not fitted (the names of the domains of a mixture, the
number of breaks). Formula, parameters, units and source are data; the formula is written once, as the paper does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from typing import Any, Literal

import numpy as np

from scaling import jets

Power = float | str | Callable[[Mapping[str, Any]], Any]


@dataclass(frozen=True)
class Parameter:
    """One fitted number of a law.

    `bounds` and `start` are in centred units, where every column and the target that appear in anybody's `units` are
    divided by their geometric mean over the rows: there a coefficient is the share of the loss that its term has in
    the middle of the data, so the same numbers serve every table. `start` is the range that starting points are drawn
    from. `units` says how the raw parameter follows from the centred one: {"loss": 1, "N": "alpha"} means
    raw = centred * loss^1 * N^alpha with the geometric means of both; a power is a number, the name of a
    dimensionless parameter, or a function of the parameters.
    """

    name: str
    transform: Literal["log", "identity"]
    bounds: tuple[float, float]
    start: tuple[float, float]
    meaning: str
    units: Mapping[str, Power] = field(default_factory=dict)

    def to_free(self, natural: Any) -> Any:
        """The coordinate that the engine moves in: log(p) for a positive parameter, p otherwise."""
        return np.log(natural) if self.transform == "log" else natural

    def to_natural(self, free: Any) -> Any:
        """The inverse of `to_free`; arrays and jets."""
        return jets.exp(free) if self.transform == "log" else free

    def rescaled(self, p: Mapping[str, Any], scale: Mapping[str, float]) -> Any:
        """p[name] times the product of scale^power over its units."""
        value = p[self.name]
        for unit, power in self.units.items():
            exponent = p[power] if isinstance(power, str) else power(p) if callable(power) else power
            value = value * scale[unit] ** exponent
        return value


@dataclass(frozen=True)
class Prior:
    """A normal prior on a parameter: `mean` in the table's units; `sd` is relative for a positive (log) parameter."""

    mean: float
    sd: float


@dataclass(frozen=True)
class Column:
    """A column that a law reads.

    `tells`: the parameters that only its variation can tell apart. `domain`: which values it may have: "positive",
    "nonnegative", "fraction" (0 to 1, both included) or "label" (any text).
    """

    name: str
    meaning: str
    tells: tuple[str, ...] = ()
    domain: Literal["positive", "nonnegative", "fraction", "label"] = "positive"


@dataclass(frozen=True)
class Reference:
    """Published values of a law's parameters, and how sure we are that they are what was published.

    `known_from`: "code" (the authors' official repository), "abstract" (the paper's own abstract), "secondary"
    (other people's public material, not authoritative), "refit" (a fit of ours to published data) or "recalled"
    (not confirmed anywhere: a default to start from, never a fact).
    """

    params: Mapping[str, float]
    source: str
    known_from: Literal["code", "abstract", "secondary", "refit", "recalled"]


class Law(ABC):
    """A formula for a quantity (usually the loss) in the columns of a table of runs.

    A subclass is a frozen dataclass that sets the fields below and defines `predict`; nothing else is needed to fit it.
    """

    name: str
    formula: str
    """The formula in plain text."""
    source: str
    parameters: tuple[Parameter, ...]
    inputs: tuple[Column, ...]
    target: str = "loss"
    """The column that the formula predicts."""
    residuals: Literal["log", "linear"] = "log"
    """Whether a fit compares logarithms, or values as shares of the target's typical size (for targets that may be
    zero or negative, or bounded scores)."""
    linear: tuple[str, ...] = ()
    """Parameters in which the formula is linear: a start draws the others and solves for these."""
    priors: tuple[tuple[str, Prior], ...] = ()
    """Weak priors that a fit uses unless it is told otherwise: for parameters that few data determine badly."""
    references: tuple[Reference, ...] = ()
    nested_in: tuple[str, ...] = ()
    """Classes of laws that become this one when some of their parameters are held: what ratio tests may compare."""
    along_curves = False
    """The formula reads a row's own past: rows of one run_id in the order of `step` are one curve."""

    @abstractmethod
    def predict(self, p: Mapping[str, Any], columns: Mapping[str, Any]) -> Any:
        """The formula. `p`: floats, arrays (problems, 1) or jets by name; `columns`: arrays (rows,)."""

    def features(self, table: Mapping[str, Any]) -> dict[str, Any]:
        """What `predict` reads, from the columns of a table of runs: the columns themselves as floats."""
        return {name: np.asarray(table[name], float) for name in self.columns}

    def check(self, table: Mapping[str, Any]) -> None:  # noqa: B027 - most laws have no such rule
        """ValueError where rows break a rule that concerns several columns at once (weights that sum to one)."""

    def written(self, p: Mapping[str, float]) -> str:
        """The law with its numbers, in plain text."""
        return f"{self.formula} with " + ", ".join(f"{name} = {p[name]:.4g}" for name in self.names)

    def rescale(self, p: Mapping[str, Any], scale: Mapping[str, float]) -> dict[str, Any]:
        """The parameters in raw units, from those in units of `scale`, a number for each of `units`:

        predict(rescale(p, s), {c: s[c] * x[c]}) = s[target] * predict(p, x)
        """
        return {parameter.name: parameter.rescaled(p, scale) for parameter in self.parameters}

    @property
    def columns(self) -> dict[str, Column]:
        """The columns that the formula reads, by name."""
        return {column.name: column for column in self.inputs}

    @property
    def units(self) -> frozenset[str]:
        """The columns, and the target, that are divided by their geometric mean before a fit."""
        return frozenset(unit for parameter in self.parameters for unit in parameter.units)

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters' names, in order."""
        return tuple(parameter.name for parameter in self.parameters)

    def spec(self) -> dict[str, Any]:
        """The class and its fields, from which `scaling.keep.law_from` makes the law again."""
        return {"_target_": f"scaling.laws.{type(self).__name__}", **(asdict(self) if is_dataclass(self) else {})}
