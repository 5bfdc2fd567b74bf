"""Data for logistic regression with something known about it: a margin, or the model that drew the labels. NumPy alone.

    problem = separable(samples=50, dimension=10, margin=0.1, seed=0)       the largest margin is 0.1, exactly
    model = LogisticModel(eigenvalues, target); problem = model.sample(samples=100, seed=0)

Rows are x, labels y are -1 or 1, and the loss of w is a mean over the rows of a function of y <x, w>.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from data.problems import Floats, LinearProblem


@dataclass(frozen=True, eq=False)
class LogisticProblem:
    """`rows` x (n, d) and `labels` y (n,), each -1 or 1."""

    rows: Floats
    labels: Floats

    def __post_init__(self) -> None:
        rows, labels = (np.array(x, dtype=np.float64) for x in (self.rows, self.labels))
        if rows.ndim != 2 or not rows.size or not np.isfinite(rows).all():
            raise ValueError(f"rows must be finite numbers of shape (samples, dimension), not {rows.shape}.")
        if labels.shape != rows.shape[:1] or not (np.abs(labels) == 1).all():
            raise ValueError(f"labels must be -1 or 1, one for each of the {len(rows)} rows: write 0 as -1.")
        rows.setflags(write=False)
        labels.setflags(write=False)
        object.__setattr__(self, "rows", rows)
        object.__setattr__(self, "labels", labels)

    @property
    def samples(self) -> int:
        return self.rows.shape[0]

    @property
    def dimension(self) -> int:
        return self.rows.shape[1]

    @cached_property
    def signed(self) -> Floats:
        """y x (n, d): w separates the data where signed @ w > 0, and nothing else of the data matters."""
        return self.labels[:, None] * self.rows

    @property
    def radius(self) -> float:
        """The largest |x|. Results for rows in the unit ball hold in units of it: margin / radius and lr radius^2."""
        return float(np.linalg.norm(self.rows, axis=1).max())


def separable(samples: int, dimension: int, margin: float, seed: int) -> LogisticProblem:
    """Rows on the unit sphere and labels as a hyperplane has them, whose largest margin is `margin`, exactly.

    y x = m u + sqrt(1 - m^2) p for a random direction u, p orthogonal to it, and m uniform from the margin to twice it.
    The first two rows have m = margin and opposite p: their mean is margin u, so u's margin is the largest.
    """
    if samples < 2 or dimension < 2:
        raise ValueError(f"samples={samples}, dimension={dimension}: use at least 2 of each, which fix the margin.")
    if not 0 < margin <= 1:
        raise ValueError(f"margin={margin} must be above 0, and at most 1, the length of a row.")
    rng = np.random.default_rng(seed)
    direction = rng.standard_normal(dimension)
    direction /= np.linalg.norm(direction)
    along = rng.uniform(margin, min(2.0 * margin, 1.0), samples)
    across = rng.standard_normal((samples, dimension))
    along[:2], across[1] = margin, -across[0]
    across -= np.outer(across @ direction, direction)
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    signed = np.outer(along, direction) + np.sqrt(1.0 - along**2)[:, None] * across
    labels = rng.choice([-1.0, 1.0], samples)
    return LogisticProblem(labels[:, None] * signed, labels)


@dataclass(frozen=True, eq=False)
class LogisticModel:
    """x ~ N(0, H) and P(y = 1 | x) = 1 / (1 + exp(-<w*, x>)): labels are noisy, and w* has the least expected loss.

    `eigenvalues` of H (d,), positive; `target` w* in their basis (d,). The setting of Wu et al., arXiv:2502.13283.
    """

    eigenvalues: Floats
    target: Floats

    def __post_init__(self) -> None:
        checked = LinearProblem(self.eigenvalues, self.target, noise_variance=0.0)
        object.__setattr__(self, "eigenvalues", checked.eigenvalues)
        object.__setattr__(self, "target", checked.target)

    @property
    def dimension(self) -> int:
        return self.eigenvalues.size

    def sample(self, samples: int, seed: int) -> LogisticProblem:
        """Independent rows and their labels."""
        if samples < 1:
            raise ValueError(f"samples={samples} must be at least 1.")
        rng = np.random.default_rng(seed)
        rows = rng.standard_normal((samples, self.dimension)) * np.sqrt(self.eigenvalues)
        logistic = -np.log(1.0 / rng.uniform(size=samples) - 1.0)  # its distribution function is the one above
        return LogisticProblem(rows, np.where(rows @ self.target + logistic > 0, 1.0, -1.0))
