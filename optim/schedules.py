"""Learning-rate schedules: progress -> multiplier of the peak rate.

Progress x in [0, 1] is the share of the tokens after warm-up that were seen. A schedule is any function of x that is
vectorised over NumPy arrays; it knows nothing of batches, steps or warm-up. Those with a parameter in tokens
(`in_tokens`) are told by the plan where warm-up and run end; called with x alone, such a parameter is a share of the
run. A floor `final` = m turns any falling s(x) into m + (1 - m) s(x).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


class Schedule(Protocol):
    def __call__(self, x: ArrayLike, /) -> Floats: ...


def of_progress(schedule: Schedule, warmup_tokens: int, total_tokens: int) -> Schedule:
    """`schedule` as a function of progress alone, in a run of `total_tokens` of which the first are warm-up."""
    if getattr(schedule, "in_tokens", False):
        return partial(schedule, warmup_tokens=warmup_tokens, total_tokens=total_tokens)  # type: ignore[call-arg]
    return schedule


@dataclass(frozen=True)
class Constant:
    """Multiplier 1 throughout."""

    def __call__(self, x: ArrayLike) -> Floats:
        return np.ones_like(x, dtype=np.float64)


@dataclass(frozen=True)
class Linear:
    """From 1 to `final` in a straight line."""

    final: float = 0.0
    """multiplier at the end"""

    def __post_init__(self) -> None:
        _check_final(self.final)

    def __call__(self, x: ArrayLike) -> Floats:
        return _above(self.final, 1 - _array(x))


@dataclass(frozen=True)
class Cosine:
    """Half cosine: (1 + cos(pi x))/2 above `final`."""

    final: float = 0.1
    """multiplier at the end"""

    def __post_init__(self) -> None:
        _check_final(self.final)

    def __call__(self, x: ArrayLike) -> Floats:
        return _above(self.final, (1 + np.cos(np.pi * _array(x))) / 2)


@dataclass(frozen=True)
class QuarterCosine:
    """Quarter cosine: cos(pi x/2) above `final`, the cosine of Seesaw's theory (arXiv:2510.14717)."""

    final: float = 0.0
    """multiplier at the end"""

    def __post_init__(self) -> None:
        _check_final(self.final)

    def __call__(self, x: ArrayLike) -> Floats:
        return _above(self.final, np.cos(np.pi / 2 * _array(x)).clip(0))


@dataclass(frozen=True)
class Rex:
    """Reflected exponential: z/((1 - d) + d z) with z = 1 - x; d = 1/2 is REX, d = 0 is linear (arXiv:2107.04197)."""

    d: float = 0.5
    """curvature: the larger, the later the fall"""
    final: float = 0.0
    """multiplier at the end"""

    def __post_init__(self) -> None:
        _check_final(self.final)
        if not self.d < 1:
            raise ValueError(f"schedule.d={self.d} must be less than 1: at 1 the rate would never fall.")

    def __call__(self, x: ArrayLike) -> Floats:
        z = 1 - _array(x)
        return _above(self.final, z / ((1 - self.d) + self.d * z))


@dataclass(frozen=True)
class UBA:
    """Budget-aware schedule: 2(1 + c)/(2 phi + (2 - phi)(1 + c)), c = cos(pi x) in each cycle (arXiv:2505.24452).

    phi = 2 is the half cosine; a smaller phi falls later (towards constant as phi -> 0), a larger one earlier.
    """

    phi: float = 1.0
    """shape, positive"""
    cycles: int = 1
    """equal parts of the run, each from the peak down"""
    final: float = 0.0
    """multiplier at the end of each cycle"""

    def __post_init__(self) -> None:
        _check_final(self.final)
        if not self.phi > 0:
            raise ValueError(f"schedule.phi={self.phi} must be positive: towards 0 the schedule becomes constant.")
        if self.cycles < 1:
            raise ValueError(f"schedule.cycles={self.cycles} must be at least 1.")

    def __call__(self, x: ArrayLike) -> Floats:
        turns = self.cycles * _array(x)
        c = 1 + np.cos(np.pi * (turns - np.minimum(np.floor(turns), self.cycles - 1)))
        return _above(self.final, 2 * c / (2 * self.phi + (2 - self.phi) * c))


@dataclass(frozen=True)
class Step:
    """`factor`^floor(cuts x): equal stretches, each at `factor` times the rate of the one before it."""

    factor: float = 0.5
    """what each cut multiplies the rate by"""
    cuts: int = 4
    """stretches"""

    def __post_init__(self) -> None:
        if not 0 < self.factor <= 1:
            raise ValueError(f"schedule.factor={self.factor} must be in (0, 1].")
        if self.cuts < 1:
            raise ValueError(f"schedule.cuts={self.cuts} must be at least 1.")

    def __call__(self, x: ArrayLike) -> Floats:
        return self.factor ** np.floor(self.cuts * _array(x))


@dataclass(frozen=True)
class InverseSqrt:
    """1/sqrt(1 + t/scale), t the tokens since warm-up."""

    scale: float
    """tokens after which the rate has fallen to 1/sqrt(2)"""
    in_tokens: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_scale(self.scale)

    def __call__(self, x: ArrayLike, warmup_tokens: float = 0.0, total_tokens: float = 1.0) -> Floats:
        return 1 / np.sqrt(1 + _array(x) * (total_tokens - warmup_tokens) / self.scale)


@dataclass(frozen=True)
class Power:
    """(1 + t/scale)^-exponent, t the tokens since warm-up; with a plateau min(1, (t/scale)^-exponent)."""

    scale: float
    """tokens at which the fall sets in"""
    exponent: float = 0.5
    """power with which the rate falls"""
    plateau: bool = False
    """stay at the peak until `scale`, and meet b t^-exponent there"""
    in_tokens: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_scale(self.scale)
        if not self.exponent > 0:
            raise ValueError(f"schedule.exponent={self.exponent} must be positive: the rate falls as t^-exponent.")

    def __call__(self, x: ArrayLike, warmup_tokens: float = 0.0, total_tokens: float = 1.0) -> Floats:
        t = _array(x) * (total_tokens - warmup_tokens) / self.scale
        return (np.maximum(t, 1) if self.plateau else 1 + t) ** -self.exponent


# Decay over r in [0, 1] down to the floor m.
DECAYS: dict[str, Callable[[Floats, float], Floats]] = {
    "linear": lambda r, m: m + (1 - m) * (1 - r),
    "exponential": lambda r, m: m**r,
    "1-sqrt": lambda r, m: m + (1 - m) * (1 - np.sqrt(r)),
    "inverse-proportional": lambda r, m: 1 / ((1 - r) + r / m),
}


@dataclass(frozen=True)
class WSD:
    """Warm-up, stable, decay: 1, then down to `final` over the last `decay_fraction`."""

    decay_fraction: float = 0.2
    """share of the tokens after warm-up over which the rate decays"""
    shape: str = "linear"
    """linear, exponential, 1-sqrt (arXiv:2405.18392) or inverse-proportional (arXiv:2410.05192)"""
    final: float = 0.0
    """multiplier at the end; exponential and inverse-proportional need one above 0"""

    def __post_init__(self) -> None:
        _check_decay(self.decay_fraction, self.shape, self.final)

    def __call__(self, x: ArrayLike) -> Floats:
        r = (_array(x) - (1 - self.decay_fraction)) / self.decay_fraction
        return DECAYS[self.shape](r.clip(0, 1), self.final)


@dataclass(frozen=True)
class WSDS:
    """WSD-S: several budgets on one branch. Each decays, then training goes on from its weights at the peak rate."""

    budgets: Sequence[float]
    """tokens of the budgets before the last, which is the run's own; increasing"""
    decay_fraction: float = 0.1
    """share of each budget's own tokens (warm-up included) over which the rate decays before it"""
    shape: str = "linear"
    """as in WSD"""
    final: float = 0.0
    """multiplier at each budget; exponential and inverse-proportional need one above 0"""
    in_tokens: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_decay(self.decay_fraction, self.shape, self.final)
        object.__setattr__(self, "budgets", tuple(self.budgets))

    def __call__(self, x: ArrayLike, warmup_tokens: float = 0.0, total_tokens: float = 1.0) -> Floats:
        tokens = warmup_tokens + _array(x) * (total_tokens - warmup_tokens)
        multiplier, before = np.ones_like(tokens), warmup_tokens
        for budget in (*self.budgets, total_tokens):
            start = budget * (1 - self.decay_fraction)
            if start < before:
                raise ValueError(
                    f"schedule.budgets={list(self.budgets)}: the decay towards {budget:.10g} tokens would begin at "
                    f"{start:.10g}, before {before:.10g} where warm-up or the budget before it ends. Lower "
                    "schedule.decay_fraction, or give budgets that increase and lie further apart."
                )
            # at the budget itself, which `tokens` meets up to rounding, the next step is under way, at the peak; the
            # run's own end has no next step
            here = (tokens >= start) & ((tokens < budget * (1 - 1e-12)) | (budget == total_tokens))
            r = ((tokens - start) / (budget - start)).clip(0, 1)
            multiplier, before = np.where(here, DECAYS[self.shape](r, self.final), multiplier), budget
        return multiplier


@dataclass(frozen=True)
class Refined:
    """The refined schedule of arXiv:2310.07831 from the gradient norms G of an earlier run, divided by its maximum.

    eta_t ~ w_t sum_{p > t} w_p with w = G^-power; a constant G gives linear decay. The norms are smoothed by a running
    median first. Positions are shares of the earlier run: it may have had another budget.
    """

    tokens: Sequence[float]
    """tokens at which the norms were logged, increasing; the last is the earlier run's budget"""
    grad_norms: Sequence[float]
    """gradient norms there, positive"""
    power: float = 2.0
    """2 for SGD; the paper has 1 for Adam, with the 1-norm of the gradient, which records do not have"""
    window: float = 0.1
    """width of the running median, as a share of the logged points"""
    in_tokens: ClassVar[bool] = True

    def __post_init__(self) -> None:
        tokens, norms = _array(self.tokens), _array(self.grad_norms)
        if tokens.ndim != 1 or tokens.shape != norms.shape or len(tokens) < 3:
            raise ValueError(
                f"schedule.tokens has {tokens.size} values and schedule.grad_norms {norms.size}: "
                "give one norm for each of at least 3 points."
            )
        if not (tokens[0] > 0 and (np.diff(tokens) > 0).all()):
            raise ValueError("schedule.tokens must be positive and increasing.")
        if not (np.isfinite(norms).all() and (norms > 0).all()):
            raise ValueError("schedule.grad_norms must be positive and finite: the weights are their inverse powers.")
        if not 0 <= self.window < 1:
            raise ValueError(f"schedule.window={self.window} must be in [0, 1): a share of the logged points.")
        object.__setattr__(self, "tokens", tuple(tokens.tolist()))
        object.__setattr__(self, "grad_norms", tuple(norms.tolist()))

    def __call__(self, x: ArrayLike, warmup_tokens: float = 0.0, total_tokens: float = 1.0) -> Floats:
        from scipy.ndimage import median_filter

        ends = np.concatenate([[0], _array(self.tokens) / self.tokens[-1]])
        width = 2 * (int(self.window * len(self.grad_norms)) // 2) + 1
        weight = median_filter(_array(self.grad_norms), width, mode="nearest") ** -self.power
        left = np.append(np.cumsum((weight * np.diff(ends))[::-1])[::-1], 0.0)  # what each end has before it
        rate = np.append(weight[0], weight) * left
        first = warmup_tokens / total_tokens
        largest = max(rate[ends > first].max(), np.interp(first, ends, rate))
        return np.interp(first + _array(x) * (1 - first), ends, rate) / largest


# ---------------------------------------------------------------------------------------------------- checks


def _array(x: ArrayLike) -> Floats:
    return np.asarray(x, dtype=np.float64)


def _above(final: float, falling: Floats) -> Floats:
    return final + (1 - final) * falling


def _check_final(final: float) -> None:
    if not 0 <= final <= 1:
        raise ValueError(f"schedule.final={final} must be in [0, 1]: it is the last multiplier of the peak rate.")


def _check_scale(scale: float) -> None:
    if not scale > 0:
        raise ValueError(f"schedule.scale={scale} must be a positive number of tokens.")


def _check_decay(decay_fraction: float, shape: str, final: float) -> None:
    if not 0 < decay_fraction <= 1:
        raise ValueError(f"schedule.decay_fraction={decay_fraction} must be in (0, 1].")
    if shape not in DECAYS:
        raise ValueError(f"schedule.shape={shape!r} is unknown: use {', '.join(DECAYS)}.")
    _check_final(final)
    if shape in ("exponential", "inverse-proportional") and not final > 0:
        raise ValueError(f"schedule.final={final}: {shape} decay never reaches 0, give a floor such as 0.01.")
