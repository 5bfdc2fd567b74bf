"""The parameters that most laws share: a floor, coefficients and exponents, with ranges that serve centred units."""

from __future__ import annotations

from collections.abc import Mapping

from scaling.laws.law import Parameter, Power


def floor(
    name: str = "E", target: str = "loss", meaning: str = "loss of an infinite model on infinite data"
) -> Parameter:
    """What is left when every other term is gone; positive, in units of the target."""
    return Parameter(name, "log", (1e-6, 1e2), (1e-2, 1.0), meaning, {target: 1})


def coefficient(
    name: str, meaning: str, units: Mapping[str, Power], start: tuple[float, float] = (1e-3, 3.0)
) -> Parameter:
    """A positive coefficient; in centred units the share of the target that its term has amid the data."""
    return Parameter(name, "log", (1e-8, 1e4), start, meaning, units)


def exponent(
    name: str, meaning: str, bounds: tuple[float, float] = (0.0, 5.0), start: tuple[float, float] = (0.02, 2.0)
) -> Parameter:
    """A dimensionless power."""
    return Parameter(name, "identity", bounds, start, meaning)
