"""What a residual costs: losses for one engine.

A loss is called with residuals r (any shape) and returns value, slope and curvature, elementwise. The objective of a
fit is the sum over rows, weights included. Residuals are log(predicted) - log(measured) unless the law or the caller
asks for plain differences, which come divided by the target's typical size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Parts = tuple[np.ndarray, np.ndarray, np.ndarray]


class Loss(ABC):
    """`loss(r)` -> value, slope and curvature, elementwise."""

    rounding: float
    """Objective per row that rounding alone can cause: below it, fits are exact and equal."""

    @abstractmethod
    def __call__(self, r: np.ndarray) -> Parts: ...

    @property
    def path(self) -> Sequence[Loss]:
        """The losses to minimise one after the other, each from the end of the one before; the last is this one."""
        return (self,)


@dataclass(frozen=True)
class LeastSquares(Loss):
    """r^2 / 2."""

    rounding = 1e-22

    def __call__(self, r: np.ndarray) -> Parts:
        return 0.5 * r * r, r, np.ones_like(r)


@dataclass(frozen=True)
class Huber(Loss):
    """r^2 / 2 up to |r| = `width`, straight beyond (Huber 1964); Hoffmann et al. 2022 use width 1e-3 on log loss.

    With `above` below 1, rows that were measured above the law (r < 0) count that much less: the law follows the
    lower envelope, for runs of which some were badly tuned.
    """

    width: float = 1e-3
    above: float = 1.0
    rounding = 1e-22

    def __post_init__(self) -> None:
        if not self.width > 0:
            raise ValueError(f"width={self.width} (huber=, loss.width=) must be positive: in log residuals, as 1e-3.")
        if not 0 < self.above <= 1:
            raise ValueError(f"above={self.above} must lie in (0, 1]: the weight of rows measured above the law.")

    def __call__(self, r: np.ndarray) -> Parts:
        slope = np.clip(r, -self.width, self.width)
        value = self.width * (np.abs(r) - np.abs(slope)) + 0.5 * slope * slope
        curvature = (np.abs(r) <= self.width).astype(float)
        if self.above == 1.0:
            return value, slope, curvature
        side = np.where(r < 0, self.above, 1.0)
        return side * value, side * slope, side * curvature


@dataclass(frozen=True)
class Absolute(Loss):
    """|r|: the law runs through the median of its rows.

    The limit of Huber's loss over its width. Newton's method cannot start at that limit, where there is no curvature;
    `path` narrows the width by steps of 10 and ends with exact values outside a band of `width`, which at 1e-9 is
    far inside the noise of any measurement.
    """

    width: float = 1e-9
    rounding = 1e-15

    @property
    def path(self) -> Sequence[Loss]:
        widths = [10.0**-k for k in range(1, 16) if 10.0**-k > 1.5 * self.width]
        return (*(Absolute(width) for width in widths), self)

    def __call__(self, r: np.ndarray) -> Parts:
        value, slope, curvature = Huber(self.width)(r)
        return value / self.width, slope / self.width, curvature / self.width


@dataclass(frozen=True)
class StudentT(Loss):
    """Minus the log likelihood of Student's t with `df` degrees of freedom, up to a constant.

    Its scale is fitted with the law: the engine divides residuals by it and adds its logarithm for every row. Heavy
    tails, yet smooth; the only loss here whose objective is a likelihood, as AICc, BIC and ratio tests want.
    """

    df: float = 4.0
    rounding = 1e-12

    def __post_init__(self) -> None:
        if not self.df > 0:
            raise ValueError(f"df={self.df} must be positive: degrees of freedom, as 4; large ones are Gaussian.")

    def __call__(self, r: np.ndarray) -> Parts:
        half, square = 0.5 * (self.df + 1), r * r
        total = self.df + square
        return half * np.log1p(square / self.df), 2 * half * r / total, 2 * half * (self.df - square) / (total * total)


def has_scale(loss: Loss) -> bool:
    """Whether the scale of the residuals is fitted too."""
    return isinstance(loss, StudentT)
