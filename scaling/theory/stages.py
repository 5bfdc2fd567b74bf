"""Many steps of one rate and batch at once: the step as a symmetric matrix, diagonal plus rank one.

With y_k = r_k / sqrt(q_k) a step is y' = A y + beta noise s, A = diag(D) + beta s s', s = sqrt(q): one decomposition a
stage, and any number of steps is a power. Modes without noise (q = 0) only decay; what they bring to the others
is a divided difference of powers. Sums over the past use doubling, in which every term is positive.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from data.problems import Floats
from scaling.theory.modes import Modes


@dataclass(frozen=True, eq=False)
class Stage:
    """Steps at one `lr` and `batch_size`."""

    modes: Modes
    lr: float
    batch_size: float
    kurtosis: float = 3.0

    @cached_property
    def coupled(self) -> np.ndarray:
        return self.modes.q > 0

    @cached_property
    def root(self) -> Floats:
        """s of the coupled modes."""
        return np.sqrt(self.modes.q[self.coupled])

    @cached_property
    def beta(self) -> float:
        return self.lr**2 / self.batch_size

    @cached_property
    def kept(self) -> Floats:
        return self.modes.kept(self.lr, self.batch_size, self.kurtosis)

    @cached_property
    def eigen(self) -> tuple[Floats, Floats]:
        """1 - mu and Q of A = Q mu Q'. 1 - mu is what decides when many steps are made, so it is what is computed."""
        lost = np.diag(1.0 - self.kept[self.coupled]) - self.beta * np.outer(self.root, self.root)
        return np.linalg.eigh(lost)

    def after(self, r: Floats, counts: np.ndarray) -> Floats:
        """r (counts, modes) after so many steps."""
        lost, basis = self.eigen
        counts = np.asarray(counts, dtype=np.float64)[:, None]
        source = basis.T @ self.root * self.beta
        z = powers(lost, counts) * (basis.T @ (r[self.coupled] / self.root))
        z += self.modes.noise * source * sums(lost, counts)
        free = ~self.coupled
        alone = powers(1.0 - self.kept[free], counts) * r[free]
        if free.any():
            decayed = 1.0 - self.kept[free]
            for z_row, count in zip(z, counts[:, 0], strict=True):
                z_row += source * (divided(lost[:, None], decayed[None, :], count) @ r[free])
        found = np.empty((len(counts), len(r)))
        found[:, self.coupled] = (z @ basis.T) * self.root
        found[:, free] = alone
        return found

    def mean_risk(self, r: Floats, counts: np.ndarray) -> Floats:
        """Risks (counts,) of the mean of so many iterates, the first of them r (tail averaging, in closed form).

        A pair of iterates t < u has the expected product M^(u-t) r_t, M = 1 - lr l, so the risk is a sum over t and
        u - t of products of powers, for every eigenvector and mode.
        """
        assert self.coupled.all()
        lost, basis = self.eigen
        contraction = self.lr * self.modes.rates  # 1 - M
        start = basis.T @ (r / self.root)
        source = self.modes.noise * self.beta * (basis.T @ self.root)
        by_mode = self.root[:, None] * basis  # [mode, eigenvector]
        risks = []
        for count in np.asarray(counts).tolist():
            # of r, each power once; of the noise, each power as often as there were steps to bring it
            twice, _ = products(lost, np.zeros_like(lost), count - 1)
            pairs, noisy = ((1.0 - contraction)[:, None] * x for x in products(contraction[:, None], lost, count - 1))
            moved = (by_mode * (sums(lost, count) + 2.0 * pairs)) @ start + (by_mode * (twice + 2.0 * noisy)) @ source
            risks.append(float(moved.sum()) / count**2)
        return np.array(risks)


def powers(lost: Floats, count: np.ndarray | float) -> Floats:
    """(1 - lost)^count, for the lost share of a step; broadcasts."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.where(lost < 1.0, np.exp(count * np.log1p(-np.minimum(lost, 1.0))), 0.0)
    odd = np.where(np.asarray(count) % 2 == 0, 1.0, -1.0)
    negative = np.abs(1.0 - lost) ** count * odd  # where a step overshoots
    return np.where(count == 0, 1.0, np.where(lost > 1.0, negative, found))


def sums(lost: Floats, count: np.ndarray | float) -> Floats:
    """Sum over t < count of (1 - lost)^t; broadcasts."""
    safe = np.where(lost == 0.0, 1.0, lost)
    with np.errstate(divide="ignore", over="ignore"):
        some = -np.expm1(count * np.log1p(-np.minimum(lost, 1.0))) / safe
    some = np.where(lost > 1.0, (1.0 - powers(lost, count)) / safe, some)
    return np.where(lost == 0.0, count, some)


def divided(lost: Floats, other: Floats, count: float) -> Floats:
    """Sum over t + u = count - 1 of (1 - lost)^t (1 - other)^u: the divided difference of x^count; both below 1."""
    kept, kept_other = np.maximum(1.0 - lost, 1e-300), np.maximum(1.0 - other, 1e-300)
    x = np.log(kept / kept_other)
    ratio = np.where(np.abs(x) < 1e-14, count, np.expm1(count * x) / np.where(np.abs(x) < 1e-14, 1.0, np.expm1(x)))
    return ratio * kept_other ** (count - 1.0)


def products(lost: Floats, other: Floats, count: int) -> tuple[Floats, Floats]:
    """Sums over t + u < n of a^t b^u, a = 1 - lost, b = 1 - other, for n = `count`, and over all n < `count`.

    By doubling of the count, in which every term is positive where a and b are; broadcasts.
    """
    a, b = np.broadcast_arrays(1.0 - lost, 1.0 - other)
    zero = np.zeros(a.shape)
    edge, total, summed = zero, zero, zero  # F_n = sum over t + u = n - 1, H_n = F_1 + ... + F_n, T_n = H_1 + ... + H_n
    power_a, power_b, sum_a, summed_a = np.ones(a.shape), np.ones(a.shape), zero, zero  # G_n, and G_1 + ... + G_n
    n = 0
    for bit in bin(max(count, 0))[2:]:
        # F_2n = a^n F + b^n F, H_2n = H + a G F + b^n H, T_2n = T + n H + a (G_1 + ... + G_n) F + b^n T
        summed = summed + n * total + a * summed_a * edge + power_b * summed
        total = total + a * sum_a * edge + power_b * total
        edge = power_a * edge + power_b * edge
        summed_a = summed_a + n * sum_a + power_a * summed_a
        sum_a = sum_a + power_a * sum_a
        power_a, power_b, n = power_a**2, power_b**2, 2 * n
        if bit == "1":  # F_(n+1) = a^n + b F_n
            edge = power_a + b * edge
            total, sum_a = total + edge, sum_a + power_a
            summed, summed_a = summed + total, summed_a + sum_a
            power_a, power_b, n = power_a * a, power_b * b, n + 1
    return total, summed - total
