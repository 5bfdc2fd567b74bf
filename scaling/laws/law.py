"""What a law has to say about itself so that one engine can fit it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from scaling import jets


@dataclass(frozen=True)
class Parameter:
    """One parameter of a law.

    `bounds` and `start` are in centred units, where every column and the loss are divided by their geometric mean
    over the rows: there a coefficient is the share of the loss that its term has in the middle of the data, so the
    same numbers serve every table. `start` is the range that starting points are drawn from.
    """

    name: str
    transform: Literal["log", "identity"]
    bounds: tuple[float, float]
    start: tuple[float, float]
    meaning: str

    def to_free(self, natural: Any) -> Any:
        """The coordinate that the engine moves in: log(p) for a positive parameter, p otherwise."""
        return np.log(natural) if self.transform == "log" else natural

    def to_natural(self, free: Any) -> Any:
        """The inverse of `to_free`; arrays and jets."""
        return jets.exp(free) if self.transform == "log" else free


class Law:
    """A formula for a positive quantity (usually the loss) in the columns of a table of runs.

    A subclass sets the fields below and defines `predict` and `rescale`; nothing else is needed to fit it.
    """

    name: str
    formula: str
    """The formula in plain text."""
    source: str
    parameters: tuple[Parameter, ...]
    columns: Mapping[str, tuple[str, ...]]
    """The columns that the formula reads, each with the parameters that only its variation can tell apart."""

    def predict(self, p: Mapping[str, Any], columns: Mapping[str, Any]) -> Any:
        """The formula. `p`: floats, arrays (problems, 1) or jets by name; `columns`: arrays (rows,)."""
        raise NotImplementedError

    def written(self, p: Mapping[str, float]) -> str:
        """The law with its numbers, in plain text."""
        return f"{self.formula} with " + ", ".join(f"{name} = {p[name]:.4g}" for name in self.names)

    def rescale(self, p: Mapping[str, Any], scale: Mapping[str, float]) -> dict[str, Any]:
        """The parameters in raw units, from those in units of `scale`, a number for each column and for "loss":

        predict(rescale(p, s), {c: s[c] * x[c]}) = s["loss"] * predict(p, x)
        """
        raise NotImplementedError

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters' names, in order."""
        return tuple(parameter.name for parameter in self.parameters)

    def natural(self, free: list[Any]) -> dict[str, Any]:
        """Natural parameters by name from free coordinates in the order of `parameters`."""
        return {p.name: p.to_natural(x) for p, x in zip(self.parameters, free, strict=True)}

    def box(self) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper bounds (parameters,) in free coordinates."""
        lower, upper = (np.array([p.to_free(p.bounds[end]) for p in self.parameters]) for end in (0, 1))
        return lower, upper
