"""Exact expected risks of learning algorithms on linear and logistic problems."""

from data.problems import LinearProblem, power_law
from scaling.theory.sgd import sgd_risk
from scaling.theory.stability import max_stable_lr, noise_scales, stationary_risk

__all__ = ["LinearProblem", "max_stable_lr", "noise_scales", "power_law", "sgd_risk", "stationary_risk"]
