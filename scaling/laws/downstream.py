"""From loss to downstream error (Gadre et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scaling import jets
from scaling.laws.law import Column, Law, Parameter, Reference
from scaling.laws.terms import floor


@dataclass(frozen=True)
class DownstreamError(Law):
    """Err(L) = eps - k exp(-gamma L): the average top-1 error of downstream tasks at validation loss L.

    L is in nats per token of one validation set and tokenizer, which gamma and k belong to. As L grows the error tends
    to eps, about that of guessing; it falls exponentially as the loss falls and, as nothing stops it at zero, must not
    be read beyond the smallest losses fitted. Source: Gadre et al. 2024 (arXiv:2403.08540); single tasks follow it
    much less well than averages do.

    To predict error from compute, chain two fits: a law of the loss in N and D gives L, which this law maps to error
    (`error.predict({"loss": loss.predict(runs)["loss"]})`); the error of the first fit adds to that of the second.
    """

    name = "Downstream error"
    formula = "Err(L) = eps - k exp(-gamma L)"
    source = "Gadre et al. 2024, arXiv:2403.08540"
    target = "error"
    residuals = "linear"
    inputs = (Column("loss", "validation loss in nats per token", ("eps", "k", "gamma")),)
    parameters = (
        floor("eps", "error", "error at large loss"),
        Parameter("k", "log", (1e-8, 1e16), (1e-2, 1e2), "how far the error falls below eps at L = 0", {"error": 1}),
        Parameter("gamma", "log", (1e-3, 40.0), (0.1, 15.0), "rate of the fall with loss", {"loss": -1}),
    )
    linear = ("eps", "k")
    references = (
        Reference(
            {"eps": 0.75719, "k": 2.12593, "gamma": 1.06629},
            "our least squares on 35 RedPajama runs (mlfoundations/scaling), all tasks, loss on C4 validation",
            "refit",
        ),
        Reference(
            {"eps": 0.86019, "k": 2.27766, "gamma": 0.72059},
            "our least squares on 35 RedPajama runs (mlfoundations/scaling), the task subset, loss on C4 validation",
            "refit",
        ),
    )

    def predict(self, p: Mapping[str, Any], columns: Mapping[str, Any]) -> Any:
        """The error at `columns` loss."""
        return p["eps"] - p["k"] * jets.exp(columns["loss"] * -p["gamma"])
