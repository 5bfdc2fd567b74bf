"""Seesaw as theory: a schedule that cuts the rate against one that grows the batch, phase by phase, at equal samples.

    phases of equal samples; phase k: rate lr0 lr_cut^-k, batch B0 batch_growth^k
    SGD: two schedules are alike where lr_cut batch_growth is, normalized SGD: where lr_cut sqrt(batch_growth) is

To first order in the rate, SGD's risk depends on lr / B along the cumulative rate alone, so the two agree as the rate
vanishes; normalized SGD's on lr / sqrt(B) where its gradients are noise of the answers, and not beyond. The exact
recursion says by how much they differ (arXiv:2510.14717).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data.problems import Floats, LinearProblem
from scaling.theory.normalized import effective_rates, normalized_sgd_risk
from scaling.theory.sgd import sgd_risk
from scaling.theory.stability import max_stable_lr


@dataclass(frozen=True)
class Phases:
    """A schedule in phases of `samples` rows each (phases,), with a first `lr` and `batch_size`."""

    lr: float
    batch_size: float
    samples: tuple[float, ...]
    lr_cut: float
    batch_growth: float

    def __post_init__(self) -> None:
        for name, least in (("lr_cut", 1.0), ("batch_growth", 1.0), ("batch_size", 1.0)):
            if not least <= getattr(self, name) < np.inf:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least:g}.")
        if not self.samples or not np.isfinite(self.samples).all() or min(self.samples) <= 0:
            raise ValueError(f"samples={self.samples}: give the rows of every phase, all positive.")
        if not 0 <= self.lr < np.inf:
            raise ValueError(f"lr={self.lr}: a learning rate must be 0 or more, and finite.")
        short = self.samples < self.batches
        if short.any():
            k = int(np.argmax(short))
            raise ValueError(f"samples={self.samples[k]:g} of phase {k} are not one batch of {self.batches[k]:g} rows.")

    @property
    def rates(self) -> Floats:
        return self.lr * self.lr_cut ** -np.arange(len(self.samples), dtype=np.float64)

    @property
    def batches(self) -> Floats:
        return self.batch_size * self.batch_growth ** np.arange(len(self.samples), dtype=np.float64)

    @property
    def steps(self) -> np.ndarray:
        """Whole steps of each phase (phases,), at least one. What a phase leaves over, at most half a batch, is made up
        for in the next."""
        left, steps = 0.0, []
        for rows, batch in zip(self.samples, self.batches, strict=True):
            steps.append(max(1, round((rows + left) / batch)))
            left += rows - steps[-1] * batch
        return np.array(steps)

    @property
    def alpha(self) -> float:
        """What normalized SGD (and Adam) sees of the schedule: lr_cut sqrt(batch_growth)."""
        return self.lr_cut * self.batch_growth**0.5

    def risks(self, problem: LinearProblem, normalized: bool = False) -> Floats:
        """At the end of every phase (phases,)."""
        risk = normalized_sgd_risk if normalized else sgd_risk
        steps = self.steps
        return risk(problem, np.repeat(self.rates, steps), np.repeat(self.batches, steps), at=np.cumsum(steps))


def handed_over(decay: Phases, share: float, normalized: bool = False) -> Phases:
    """`decay` with a share of each cut (of its logarithm, 0 to 1) made by the batch instead, along the line on which
    SGD cannot tell schedules apart as the rate vanishes, or normalized SGD where gradients are noise besides. A share
    of 1 leaves the rate as it is."""
    if not 0 <= share <= 1:
        raise ValueError(f"share={share} must lie between 0, all by the rate, and 1, all by the batch.")
    cut = decay.alpha if normalized else decay.lr_cut * decay.batch_growth
    growth = cut ** (share * (2 if normalized else 1))
    return Phases(decay.lr, decay.batch_size, decay.samples, cut ** (1 - share), growth)


def seesaw(decay: Phases) -> Phases:
    """The ramp that normalized SGD cannot tell from `decay` where gradients are noise: cuts by sqrt(alpha), and batches
    that grow by alpha. It is the last one on its line that does not diverge there."""
    return handed_over(decay, 0.5, normalized=True)


def diverges(problem: LinearProblem, phases: Phases) -> int | None:
    """The first phase in which normalized SGD would leave the stable rates if gradients were noise alone; or None.

    Its rate is lr / sqrt(noise_variance tr(H) / B), which grows by sqrt(batch_growth) / lr_cut a phase, while the
    largest stable one ends at 2 / l_1: so lr_cut < sqrt(batch_growth) diverges sooner or later (Lemma 4), and this
    tells when.
    """
    if problem.noise_variance == 0:
        raise ValueError("noise_variance=0: without noise, gradients are not noise alone.")
    own = phases.rates * np.sqrt(phases.batches / (problem.noise_variance * problem.eigenvalues.sum()))
    limits = np.array([max_stable_lr(problem, batch) for batch in phases.batches])
    beyond = np.flatnonzero(own > limits)
    return int(beyond[0]) if len(beyond) else None


def noise_share(problem: LinearProblem, phases: Phases) -> Floats:
    """Share of E|g|^2 that is noise of the answers, at the end of every phase of normalized SGD (phases,).

    Past the critical batch it falls below one: the step is then a normalized gradient descent, which a larger batch
    does not calm, and only a smaller rate does.
    """
    steps = phases.steps
    lr, batch_size = np.repeat(phases.rates, steps), np.repeat(phases.batches, steps)
    rates, _ = effective_rates(problem, lr, batch_size)
    last = np.cumsum(steps) - 1
    square = (lr[last] / rates[last]) ** 2
    return problem.noise_variance * problem.eigenvalues.sum() / batch_size[last] / square
