"""Learning-rate schedules: progress -> multiplier of the peak rate.

Progress x in [0, 1] is the share of the tokens after warm-up that were seen. A schedule knows nothing of batches,
steps or warm-up; it is vectorised over NumPy arrays.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray


class Schedule(Protocol):
    def __call__(self, x: ArrayLike) -> NDArray[np.float64]: ...


@dataclass(frozen=True)
class Constant:
    """Multiplier 1 throughout."""

    def __call__(self, x: ArrayLike) -> NDArray[np.float64]:
        return np.ones_like(x, dtype=np.float64)


@dataclass(frozen=True)
class Cosine:
    """Half cosine from 1 to `final`: final + (1 - final)(1 + cos(pi x))/2."""

    final: float = 0.1
    """multiplier at the end"""

    def __post_init__(self) -> None:
        if not 0 <= self.final <= 1:
            raise ValueError(
                f"schedule.final={self.final} must be in [0, 1]: it is the last multiplier of the peak rate."
            )

    def __call__(self, x: ArrayLike) -> NDArray[np.float64]:
        return self.final + (1 - self.final) * (1 + np.cos(np.pi * np.asarray(x, dtype=np.float64))) / 2
