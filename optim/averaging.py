"""Averages of the iterates: how much the newest weights count, at every step of a run.

    average <- average + a_t (weights_t - average),    t = 1 ... T,    average_0 = the initial weights

An average is its `weights`: a_1 ... a_T, from `tokens`, the T + 1 counts of tokens seen before the first step and
after every step. With a_t = 1 at the first iterate that counts, what came before it is forgotten, and the average is a
weighted mean of iterates alone. So an average has no state but its own weights: where the plan is known, all else
follows. `train.averages` keeps the weights.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


class Average(Protocol):
    def weights(self, tokens: ArrayLike) -> Floats:
        """a_1 ... a_T, each in [0, 1]; the average begins at the first that is not 0."""


@dataclass(frozen=True)
class HalfLife:
    """Exponential in tokens: an iterate counts half as much when `tokens` more tokens were seen.

    A step of n tokens decays what was there by 2^(-n/tokens), so a batch ramp does not change the window. Corrected for
    its start, as EWA is: the initial weights do not count.
    """

    tokens: float
    """half-life in tokens"""

    def __post_init__(self) -> None:
        if not self.tokens > 0:
            raise ValueError(f"averages.<name>.tokens={self.tokens} must be positive: it is a half-life in tokens.")

    def weights(self, tokens: ArrayLike) -> Floats:
        seen = np.asarray(tokens, dtype=np.float64)
        return _corrected(np.diff(seen) * (np.log(2) / self.tokens))


@dataclass(frozen=True)
class EWA:
    """Exponential in steps: m <- decay m + (1 - decay) w_t from m = 0, and the average is m / (1 - decay^t).

    Zhang et al., How does critical batch size scale in pre-training? (arXiv:2410.21676), as their code has it.
    """

    decay: float
    """share of the average that each step keeps"""

    def __post_init__(self) -> None:
        if not 0 < self.decay < 1:
            raise ValueError(f"averages.<name>.decay={self.decay} must be in (0, 1): each step keeps this share.")

    def weights(self, tokens: ArrayLike) -> Floats:
        return _corrected(np.full(len(np.asarray(tokens)) - 1, -np.log(self.decay)))


@dataclass(frozen=True)
class GrowingWindow:
    """Step t keeps 2^(-gamma/(t+1)) of the average: its half-life is t/gamma steps, a share of the run so far.

    Anytime Pretraining: Horizon-Free Learning-Rate Schedules with Weight Averaging, as its code has it
    (github.com/alexandrumeterez/anytime-training, olmo/train.py: t counts from 1, from the initial weights).
    """

    gamma: float = 25.0
    """the half-life is 1/gamma of the run so far; 25 is the paper's, 4 %"""

    def __post_init__(self) -> None:
        if not self.gamma > 0:
            raise ValueError(
                f"averages.<name>.gamma={self.gamma} must be positive: the half-life is 1/gamma of the run."
            )

    def weights(self, tokens: ArrayLike) -> Floats:
        t = np.arange(1, len(np.asarray(tokens)))
        return -np.expm1(-self.gamma / (t + 1) * np.log(2))


@dataclass(frozen=True)
class Tail:
    """The arithmetic mean of all iterates after a share `start` of the run's tokens; no average before it."""

    start: float
    """share of the run's tokens after which iterates count; 0: all but the initial weights"""

    def __post_init__(self) -> None:
        if not 0 <= self.start < 1:
            raise ValueError(
                f"averages.<name>.start={self.start} must be in [0, 1): it is a share of the run's tokens."
            )

    def weights(self, tokens: ArrayLike) -> Floats:
        seen = np.asarray(tokens)
        burn_in = min(round(self.start * float(seen[-1])), seen[-1] - 1)  # the last iterate always counts
        counted = np.cumsum(seen[1:] > burn_in)  # 1, 2, 3, ... from the first that counts
        return np.divide(1.0, counted, out=np.zeros(len(counted)), where=counted > 0)


def _corrected(rates: Floats) -> Floats:
    """a_t of an average that step t decays by exp(-rates_t), corrected so that its iterates' weights sum to 1."""
    return np.expm1(-rates) / np.expm1(-np.cumsum(rates))
