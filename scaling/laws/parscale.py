"""The parallel scaling law: loss of models that run several streams of the same weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from scaling import jets
from scaling.laws.law import Column, Law, Parameter, Reference
from scaling.laws.terms import exponent, floor

_FITTED = "our fit to the 24 points of {} in QwenLM/ParScale, parametric_fit.py (Huber(1e-3) on the log of the loss)"


@dataclass(frozen=True)
class ParScale(Law):
    """L(N, P) = E + (A / (N (k ln P + 1)))^alpha: P parallel streams act like a model k ln P + 1 times larger.

    N is the number of parameters without embeddings, P the number of streams (1 is an ordinary model), all at one
    number of training tokens, on which E and A depend. A has the unit of N; the authors' code divides it by 1e9.
    Source: Chen et al. 2025 (arXiv:2505.10475); formula and data as in the code beside it (QwenLM/ParScale).
    """

    name = "ParScale"
    formula = "L(N, P) = E + (A / (N (k ln P + 1)))^alpha"
    source = "Chen et al. 2025, arXiv:2505.10475, and QwenLM/ParScale, parametric_fit.py"
    inputs = (
        Column("N", "parameters without embeddings", ("A", "alpha")),
        Column("P", "parallel streams, 1 or more", ("k",)),
    )
    parameters = (
        floor("E", meaning="loss of an infinite model on these tokens"),
        # Centred, A^alpha is the share of the term in the loss, so A itself ranges over shares^(1 / alpha).
        Parameter(
            "A", "log", (1e-130, 1e130), (1e-15, 10.0), "size at which the term is 1 loss unit, one stream",
            {"N": 1, "loss": lambda p: 1.0 / p["alpha"]},
        ),
        exponent("alpha", "exponent of model size", (0.01, 5.0)),
        Parameter("k", "identity", (0.0, 100.0), (0.02, 2.0), "worth of a stream, in models per unit of ln P"),
    )  # fmt: skip
    linear = ("E",)
    references = (
        Reference(
            {"E": 0.691207, "A": 0.01130707e9, "alpha": 0.1893582, "k": 0.3934568},
            _FITTED.format("Stack-V2 Python"),
            "refit",
        ),
        Reference(
            {"E": 1.2885876, "A": 0.1975166e9, "alpha": 0.1962815, "k": 0.3344424}, _FITTED.format("the Pile"), "refit"
        ),
    )

    def check(self, table: Mapping[str, Any]) -> None:
        """At least one stream in every row."""
        few = float(np.min(table["P"]))
        if few < 1:
            raise ValueError(f"P={few:g} must be at least 1: the number of streams, 1 for an ordinary model.")

    def predict(self, p: Mapping[str, Any], columns: Mapping[str, Any]) -> Any:
        """The loss at `columns` N (parameters without embeddings) and P (streams)."""
        size = columns["N"] * (p["k"] * np.log(columns["P"]) + 1.0)
        return p["E"] + jets.exp(p["alpha"] * jets.log(p["A"] / size))
