"""Regression problems with a known answer, for which expected risks can be computed exactly. NumPy alone.

    problem = power_law(dimension=1000, a=1.5, b=2.0, noise_variance=0.1)

Rows are (x, y) with x ~ N(0, H) and y = <w*, x> + noise, in the eigenbasis of H: coordinate i has the eigenvalue l_i.
Everything starts at w = 0. Risk is the excess risk E(w) = (w - w*)' H (w - w*), without a factor 1/2; gradients are
those of the half-square loss.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LinearProblem:
    """`eigenvalues` of H (d,), positive; `target` w* in their basis (d,); `noise_variance` of y given x.

    `approximation_error`: risk of the best w where these features do not hold the whole answer. It adds to every risk,
    and is noise to whoever sees these features alone, so `noise_variance` holds it too.
    """

    eigenvalues: Floats
    target: Floats
    noise_variance: float
    approximation_error: float = 0.0

    def __post_init__(self) -> None:
        eigenvalues, target = (np.array(x, dtype=np.float64) for x in (self.eigenvalues, self.target))
        if eigenvalues.ndim != 1 or not eigenvalues.size or not (np.isfinite(eigenvalues) & (eigenvalues > 0)).all():
            raise ValueError(
                "eigenvalues must be positive and finite numbers, at least one: drop directions without variance."
            )
        if target.shape != eigenvalues.shape or not np.isfinite(target).all():
            raise ValueError(
                f"target must have one finite number per eigenvalue: {eigenvalues.size}, not {target.shape}."
            )
        for name in ("noise_variance", "approximation_error"):
            if not 0 <= getattr(self, name) < np.inf:
                raise ValueError(f"{name}={getattr(self, name)} must be 0 or more, and finite.")
        eigenvalues.setflags(write=False)
        target.setflags(write=False)
        object.__setattr__(self, "eigenvalues", eigenvalues)
        object.__setattr__(self, "target", target)

    @property
    def dimension(self) -> int:
        return self.eigenvalues.size

    @property
    def initial_risk(self) -> float:
        """Of w = 0."""
        return float(self.eigenvalues @ self.target**2) + self.approximation_error

    def bias(self) -> LinearProblem:
        """Without noise: its risk is the bias of the problem's risk, where that is bias + variance + approximation."""
        return replace(self, noise_variance=0.0, approximation_error=0.0)

    def variance(self) -> LinearProblem:
        """Started at the answer: its risk is the variance of the problem's risk."""
        return replace(self, target=np.zeros_like(self.target), approximation_error=0.0)

    def truncated(self, features: int) -> LinearProblem:
        """The same problem seen through the `features` coordinates of largest eigenvalue."""
        if not 1 <= features <= self.dimension:
            raise ValueError(f"features={features} must be between 1 and the problem's {self.dimension}.")
        order = np.argsort(-self.eigenvalues, kind="stable")
        kept, lost = order[:features], order[features:]
        missed = float(self.eigenvalues[lost] @ self.target[lost] ** 2)
        return LinearProblem(
            self.eigenvalues[kept], self.target[kept], self.noise_variance + missed, self.approximation_error + missed
        )

    def sketched(self, sketch: ArrayLike) -> LinearProblem:
        """The same problem seen through the features S x, for a fixed sketch S (features, d) of full row rank.

        Exact: features and answer are Gaussian together, so what S x does not hold of the answer is independent noise.
        """
        matrix = np.asarray(sketch, dtype=np.float64)
        if matrix.ndim != 2 or matrix.shape[1] != self.dimension or not np.isfinite(matrix).all():
            raise ValueError(
                f"sketch must be finite numbers of shape (features, {self.dimension}), not {matrix.shape}."
            )
        half = matrix * np.sqrt(self.eigenvalues)
        _, singular, right = np.linalg.svd(half, full_matrices=False)
        if len(matrix) > self.dimension or singular[-1] <= 1e-12 * singular[0]:
            raise ValueError("sketch has rows that depend on each other: use at most d features, linearly independent.")
        answer = np.sqrt(self.eigenvalues) * self.target  # <w*, x> in whitened coordinates
        held = right @ answer
        missed = max(0.0, float(answer @ answer - held @ held))
        return LinearProblem(
            singular**2, held / singular, self.noise_variance + missed, self.approximation_error + missed
        )


def power_law(dimension: int, a: float, b: float, noise_variance: float) -> LinearProblem:
    """l_i = i^-a and w*_i = i^((a-b)/2), so that the term i of the initial risk is i^-b: capacity a, source b.

    Both exceed 1, so that variance and risk stay finite as the dimension grows (Lin et al., arXiv:2406.08466).
    """
    if dimension < 1 or dimension != int(dimension):
        raise ValueError(f"dimension={dimension} must be a whole number, at least 1.")
    for name, value, sums in (("a", a, "the eigenvalues i^-a"), ("b", b, "the risks i^-b")):
        if not 1 < value < np.inf:
            raise ValueError(f"{name}={value}: {sums} do not sum. Use more than 1.")
    i = np.arange(1, int(dimension) + 1, dtype=np.float64)
    return LinearProblem(i**-a, i ** ((a - b) / 2), noise_variance)
