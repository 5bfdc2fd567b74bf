"""Exact expected risks of learning algorithms on problems with a known answer. docs/theory.md derives them.

stepwise     modes, recursion, stages: what `sgd` and `normalized` are made of
algorithms   sgd, normalized, multipass, descent (gradient descent and ridge; equivalents for random rows), logistic
questions    stability, critical (batch size), seesaw, regimes (rates and bounds), compare, show (`fulcrum theory`)
"""

from data.problems import LinearProblem, power_law
from scaling.theory.critical import critical_batch_size
from scaling.theory.descent import gd_risk, ridge_risk
from scaling.theory.multipass import multipass_sgd_risk
from scaling.theory.normalized import normalized_sgd_risk
from scaling.theory.sgd import sgd_risk
from scaling.theory.stability import max_stable_lr, noise_scales, stationary_risk

__all__ = [
    "LinearProblem",
    "critical_batch_size",
    "gd_risk",
    "max_stable_lr",
    "multipass_sgd_risk",
    "noise_scales",
    "normalized_sgd_risk",
    "power_law",
    "ridge_risk",
    "sgd_risk",
    "stationary_risk",
]
