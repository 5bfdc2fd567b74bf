"""The law of routed language models (Clark et al. 2022), and the number of experts after saturation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from scaling import jets
from scaling.laws.law import Column, Law, Parameter, Reference

_LN10 = float(np.log(10.0))


class Shifted(Parameter):
    """A parameter that units shift instead of multiply: the slope or offset of logarithms of columns with units.

    `units` says how the raw parameter follows: {"N": power} means raw = centred + power * ln(scale of N).
    """

    def rescaled(self, p: Mapping[str, Any], scale: Mapping[str, float]) -> Any:
        """p[name] plus the power times ln(scale), summed over its units."""
        value = p[self.name]
        for unit, power in self.units.items():
            factor = p[power] if isinstance(power, str) else power(p) if callable(power) else power
            value = value + factor * np.log(scale[unit])
        return value


def expert_count() -> Column:
    """The column E of laws that saturate in the number of experts."""
    return Column("E", "experts that a token is routed among; 1 is a dense model", ("E_start", "E_max"))


def saturation() -> tuple[Parameter, Parameter]:
    """E_start and E_max of `effective_experts`. Their ranges do not meet, so 1/E_start - 1/E_max stays positive."""
    return (
        Parameter("E_start", "log", (0.1, 20.0), (0.7, 10.0), "effective experts of a dense model"),
        Parameter("E_max", "log", (20.0, 1e6), (40.0, 3e3), "effective experts of infinitely many"),
    )


def effective_experts(p: Mapping[str, Any], experts: Any) -> Any:
    """E-hat, from 1 / E-hat = 1 / (E - 1 + 1 / (1/E_start - 1/E_max)) + 1 / E_max: from E_start at E = 1 to E_max."""
    first = 1.0 / (1.0 / p["E_start"] - 1.0 / p["E_max"])
    return 1.0 / (1.0 / (first + (experts - 1.0)) + 1.0 / p["E_max"])


def at_least_one_expert(table: Mapping[str, Any]) -> None:
    """ValueError where a row has fewer than one expert."""
    least = float(np.min(np.asarray(table["E"], float)))
    if least < 1:
        raise ValueError(f"E = {least:g} is below 1: count the experts of a layer, and a dense model as E = 1.")


@dataclass(frozen=True)
class Routed(Law):
    """log10 L(N, E) = a log10 N + b log10 E-hat + c log10 N log10 E-hat + d, at one number of training tokens.

    N is the number of parameters of the dense model that is routed, which are the ones that a token meets when it goes
    to one expert per layer; E the number of experts, saturating as `effective_experts`. All logarithms are base 10:
    only so does the law give the paper's effective parameter count. Units shift b and d, so their values belong to
    N in parameters and the loss in nats.

    Source: Clark et al. 2022 (arXiv:2202.01169), equation 1. All their models saw 130B tokens; there is no term in
    data and no floor, and with c > 0 experts harm beyond `cutoff`, which extrapolates a small slope a long way.
    """

    name = "Routed"
    formula = (
        "log10 L(N, E) = a log10 N + b log10 Eh + c log10 N log10 Eh + d, "
        "1 / Eh = 1 / (E - 1 + 1 / (1/E_start - 1/E_max)) + 1 / E_max"
    )
    source = "Clark et al. 2022, arXiv:2202.01169, equation 1"
    inputs = (Column("N", "parameters of the dense model that is routed", ("a", "c")), expert_count())
    parameters = (
        Parameter("a", "identity", (-3.0, 1.0), (-0.4, 0.0), "slope of log loss in log size at Eh = 1"),
        Shifted(
            "b", "identity", (-3.0, 3.0), (-0.3, 0.1), "slope of log loss in log experts at N = 1",
            {"N": lambda p: -p["c"] / _LN10},
        ),
        Parameter("c", "identity", (-1.0, 1.0), (-0.1, 0.1), "how one slope changes with the other's logarithm"),
        Shifted(
            "d", "identity", (-5.0, 5.0), (-0.3, 0.3), "log10 of the loss at N = 1 and Eh = 1",
            {"loss": 1 / _LN10, "N": lambda p: -p["a"] / _LN10},
        ),
        *saturation(),
    )  # fmt: skip
    references = (
        Reference(
            {"a": -0.082, "b": -0.108, "c": 0.009, "d": 1.104, "E_start": 1.847, "E_max": 314.478},
            "Clark et al. 2022, Table 3, S-BASE, to three decimals",
            "secondary",
        ),
        Reference(
            {"a": -0.083, "b": -0.126, "c": 0.012, "d": 1.111, "E_start": 1.880, "E_max": 469.982},
            "Clark et al. 2022, Table 3, RL-R, to three decimals",
            "secondary",
        ),
        Reference(
            {"a": -0.087, "b": -0.136, "c": 0.012, "d": 1.157, "E_start": 4.175, "E_max": 477.741},
            "Clark et al. 2022, Table 3, HASH, to three decimals",
            "secondary",
        ),
    )

    def predict(self, p: Mapping[str, Any], columns: Mapping[str, Any]) -> Any:
        """The loss of a model of `columns` N (parameters) with E (experts)."""
        size, experts = np.log(columns["N"]), jets.log(effective_experts(p, columns["E"]))
        log_loss = size * p["a"] + experts * p["b"] + experts * p["c"] * (size / _LN10) + p["d"] * _LN10
        return jets.exp(log_loss)

    def check(self, table: Mapping[str, Any]) -> None:
        """ValueError where a row has fewer than one expert."""
        at_least_one_expert(table)

    def effective_parameters(self, p: Mapping[str, Any], size: Any, experts: Any) -> Any:
        """The parameters of the dense model whose loss a model of `size` with `experts` has (equation 11)."""
        wide, dense = np.log10(effective_experts(p, experts)), np.log10(p["E_start"])
        top = (p["a"] + p["c"] * wide) * np.log10(size) + p["b"] * (wide - dense)
        return 10.0 ** (top / (p["a"] + p["c"] * dense))

    def cutoff(self, p: Mapping[str, Any]) -> Any:
        """The size N beyond which more experts do not help: 10^(-b / c). For c > 0; sensitive to c."""
        return 10.0 ** (-p["b"] / p["c"])
