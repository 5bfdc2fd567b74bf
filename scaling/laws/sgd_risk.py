"""The expected risk of SGD as a law of loss curves, under any schedule of rate and batch.

    rows (run_id, step, lr, batch_size) --speed and temperature of every step--> loss

On a power-law spectrum with a soft edge, the risk of one-pass SGD in the limit of small steps is a closed formula in
the time tau (the sum of speeds) and the changes of the temperature. `scaling.theory` computes the same without limits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from scaling.laws.curves import CHANGES, columns_of_curves, history, history_along, planned, summed
from scaling.laws.law import Column, Law, Parameter, Prior
from scaling.laws.terms import exponent, floor


@dataclass(frozen=True)
class SGDRisk(Law):
    """L(t) = L0 + A (1 + K tau)^-alpha + noise sum_k (theta_k - theta_{k-1}) (1 - (1 + K (tau - tau_k))^-beta).

    tau is the sum of the speeds of all steps, theta their temperature. SGD: speed lr, temperature lr / B. Normalized
    SGD, for which Adam is taken: speed lr sqrt(B), temperature lr / sqrt(B), as long as gradients are mostly noise.
    A spectrum l_i = i^-a with a risk i^-b in each direction has alpha = (b - 1) / a and beta = 1 - 1 / a; its edge is
    that of exp(-2 l / K). Noise that the risk itself makes is left out: a share theta K / 2 of it.

    With a constant batch it is the multi-power law at gamma = 0, with the start of the curve at A + L0.
    Source: derived in docs/theory.md from the exact recursion of one-pass SGD.
    """

    batch: Literal["normalized", "sgd", "constant"] = "normalized"
    """How the batch size enters: as for Adam, as for SGD, or not at all (the column is not read)."""
    warmup_steps: int = 0
    """Steps over which the rate rose linearly from 0 to that of a curve's first row, which is not earlier."""
    runs: str | None = None
    """Folder of the records whose plans tell rate and batch of every step; null: the rows do, and should be dense."""

    name = "SGD risk"
    formula = "L(t) = L0 + A (1 + K tau)^-alpha + noise sum_k (theta_k - theta_{k-1}) (1 - (1 + K (tau - tau_k))^-beta)"
    source = "risk of one-pass SGD on a power-law spectrum, small steps; derived in docs/theory.md"
    parameters = (
        floor("L0", meaning="loss of endless training at a rate of zero"),
        Parameter("A", "log", (1e-3, 1e3), (0.1, 3.0), "risk at the start", {"loss": 1}),
        exponent("alpha", "(b - 1) / a: how the risk of the start falls", start=(0.1, 1.5)),
        Parameter("noise", "log", (1e-2, 1e6), (10.0, 3e3), "loss per unit of temperature in the end", {"loss": 1}),
        Parameter("K", "log", (1e-6, 1e7), (1e-1, 1e3), "time scale: twice the edge of the spectrum"),
        exponent("beta", "1 - 1 / a: how noise is forgotten", (0.0, 1.0), (0.1, 1.0)),
    )
    linear = ("L0", "A", "noise")
    # A steep spectrum forgets as 1 / time. The few curves of a fit leave this open, and at its training optimum the law
    # follows what it misses in them.
    priors = (("beta", Prior(1.0, 0.5)),)
    along_curves = True

    def __post_init__(self) -> None:
        if self.batch not in ("normalized", "sgd", "constant"):
            raise ValueError(f"batch={self.batch}: use normalized (Adam), sgd, or constant (no batch_size column).")
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps={self.warmup_steps} must be 0 or more.")
        if self.runs and self.warmup_steps:
            raise ValueError(f"warmup_steps={self.warmup_steps}: the plans of runs={self.runs} have their own: use 0.")
        columns = [
            Column("run_id", "which curve a row belongs to", domain="label"),
            Column("step", "optimizer steps taken, warm-up included"),
        ]
        if not self.runs:
            columns.append(Column("lr", "learning rate at that step", domain="nonnegative"))
        if self.batch != "constant" and not self.runs:
            columns.append(Column("batch_size", "batch size at that step, in sequences"))
        object.__setattr__(self, "inputs", tuple(columns))

    def features(self, table: Mapping[str, Any]) -> dict[str, Any]:
        read = columns_of_curves(self, table, self.warmup_steps)
        if self.runs:
            past = history_along(
                planned(self.runs, read["run_id"], self._dynamics), read["run_id"], read["step"], CHANGES
            )
        else:
            speed, temperature = self._dynamics(read["lr"], read.get("batch_size", np.ones(1)))
            past = history(read["run_id"], read["step"], speed, self.warmup_steps, CHANGES, temperature)
        return {"tau": past.area, "first": past.first, "change": past.change, "gap": past.gap}

    def _dynamics(self, lr: np.ndarray, batch_size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Speed and temperature of steps with these rates and batches."""
        if self.batch == "constant":
            return lr, lr
        cooling = _COOLING[self.batch]
        return lr * batch_size ** (1.0 - cooling), lr * batch_size**-cooling

    def predict(self, p: Mapping[str, Any], columns: Mapping[str, Any]) -> Any:
        """The loss of every row."""
        settled = 1.0 - (1.0 + p["K"] * columns["gap"]) ** -p["beta"]
        start = p["A"] * (1.0 + p["K"] * columns["tau"]) ** -p["alpha"]
        return p["L0"] + start + p["noise"] * summed(columns, settled * columns["change"])


_COOLING = {"normalized": 0.5, "sgd": 1.0}
"""Temperature is lr / B^this, speed lr B^(1 - this)."""
