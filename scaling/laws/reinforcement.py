"""Laws of reinforcement learning: reward by compute, and data by updates per datum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from scaling.laws.law import Column, Law, Parameter
from scaling.laws.terms import floor


@dataclass(frozen=True)
class ScaleRL(Law):
    """R(C) = R_0 + (A - R_0) / (1 + (C_mid / C)^B): the pass rate after RL training with compute C.

    R is the mean pass rate on held-out prompts of the training distribution, from 0 to 1; C is compute in any unit
    (the paper counts GPU-hours), and C_mid has the same. R_0 is where the sigmoid starts, A where it ends, B its
    steepness, C_mid where half of the gain is made. Source: Khatri et al. 2025 (arXiv:2510.13786), equation 1. The
    paper leaves the first 1.5k GPU-hours or so out of its fits: filter those rows out. Runs that end before C_mid do
    not bound A.
    """

    name = "ScaleRL"
    formula = "R(C) = R_0 + (A - R_0) / (1 + (C_mid / C)^B)"
    source = "Khatri et al. 2025, arXiv:2510.13786, equation 1"
    target = "reward"
    residuals = "linear"
    inputs = (Column("C", "compute of RL training, in any unit", ("R_0", "A", "C_mid", "B")),)
    parameters = (
        Parameter("R_0", "identity", (0.0, 1.0), (0.0, 0.6), "pass rate at little compute"),
        Parameter("A", "identity", (0.0, 1.0), (0.3, 1.0), "pass rate at infinite compute"),
        Parameter("C_mid", "log", (1e-8, 1e8), (1e-2, 1e2), "compute of half the gain", {"C": 1}),
        Parameter("B", "log", (1e-2, 50.0), (0.1, 8.0), "steepness of the sigmoid in ln C"),
    )
    linear = ("R_0", "A")

    def predict(self, p: Mapping[str, Any], columns: Mapping[str, Any]) -> Any:
        """The reward at `columns` C."""
        share = 1.0 / ((p["C_mid"] / columns["C"]) ** p["B"] + 1.0)
        return p["R_0"] + (p["A"] - p["R_0"]) * share

    def check(self, table: Mapping[str, Any]) -> None:
        """ValueError where rewards are no shares."""
        reward = np.asarray(table["reward"], float)
        if (reward < 0).any() or (reward > 1).any():
            raise ValueError(
                f"reward runs from {reward.min():g} to {reward.max():g}, but {self.name} is a law of pass rates from 0 "
                "to 1: divide percentages by 100."
            )


@dataclass(frozen=True)
class DataEfficiency(Law):
    """D_J(s) = D_min + (beta / s)^alpha: the data that value-based RL needs to reach performance J.

    s is the ratio of updates to data (UTD), D the number of environment steps at which performance J is reached, with
    the best batch size and learning rate for that s. More updates per datum replace data, down to D_min. One fit is of
    one J on one task. Source: Rybkin et al. 2025 (arXiv:2502.04327); shape as in the authors' code (prestonfu/qscaled).
    """

    name = "RL data efficiency"
    formula = "D_J(s) = D_min + (beta / s)^alpha"
    source = "Rybkin et al. 2025, arXiv:2502.04327"
    target = "D"
    inputs = (Column("s", "updates per environment step (UTD ratio)", ("D_min", "beta", "alpha")),)
    parameters = (
        floor("D_min", "D", "data needed however many updates are made"),
        Parameter(
            "beta", "log", (1e-30, 1e30), (1e-3, 10.0), "UTD ratio scale: at s = beta the second term is one datum",
            {"s": 1, "D": lambda p: 1.0 / p["alpha"]},
        ),
        Parameter("alpha", "log", (0.02, 10.0), (0.1, 3.0), "exponent of the UTD ratio"),
    )  # fmt: skip
    linear = ("D_min",)

    def predict(self, p: Mapping[str, Any], columns: Mapping[str, Any]) -> Any:
        """Environment steps to reach J at `columns` s."""
        return p["D_min"] + (p["beta"] / columns["s"]) ** p["alpha"]

    def compute(self, p: Mapping[str, Any], ratio: Any, size: Any, batch: Any) -> Any:
        """FLOPs to reach J: 10 N B(s) s D_J(s), for N = `size` parameters and batches of `batch` transitions."""
        return 10.0 * size * batch * ratio * self.predict(p, {"s": ratio})
