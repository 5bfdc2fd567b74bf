"""Batch ramps: batch size, and what it does to the rate, as piecewise constant functions of tokens.

A ramp answers `segments(schedule, warmup_tokens, total_tokens)` with the whole run's segments, computed before it
starts. The plan turns them into steps: a segment begins with the first step that starts at or after its `tokens`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from optim.schedules import Schedule

DEFAULT_ALPHA = 1.1  # as in the Seesaw paper's experiments
_GRID = 4096  # cells of progress in which a crossing is looked for before it is bisected
_REFINED, _PASSES = 32, 5  # cells and passes by which the grid closes in on the ends of a schedule's falls
_HALVINGS = 64
_MOST_CUTS = 100_000
_NOTHING = 1e-9  # of the peak: where a schedule ends at 0, no cut below this matters
_SAME = 1e-12  # relative: a multiplier this close to a threshold has fallen to it
_STABLE = 1e-6  # relative: lr_cut may lie this far below sqrt(batch_growth), for rounded decimals


class Segment(NamedTuple):
    """From `tokens` on, every step takes `batch_size` sequences."""

    tokens: int
    batch_size: int
    lr_scale: float = 1.0
    """multiplies the rate of the schedule, or the peak rate where the segment does not follow the schedule"""
    follows_schedule: bool = True


class Ramp(Protocol):
    @property
    def cuts_last_batch(self) -> bool:
        """Whether the last batch is cut to the sequences that are left, so that the run ends on its budget."""

    def segments(self, schedule: Schedule, warmup_tokens: int, total_tokens: int) -> list[Segment]: ...


@dataclass(frozen=True)
class ConstantBatch:
    """The same global batch throughout."""

    batch_size: int
    """global batch in sequences"""
    cuts_last_batch = True

    def __post_init__(self) -> None:
        _check_batch("batch_size", self.batch_size)

    def segments(self, schedule: Schedule, warmup_tokens: int, total_tokens: int) -> list[Segment]:
        return [Segment(0, self.batch_size)]


@dataclass(frozen=True)
class StepBatch:
    """Any batch sizes at any token counts, within warm-up too; the rate is the schedule's times (B/B_0)^lr_exponent."""

    thresholds_in_tokens: Sequence[float]
    """tokens at which the batch changes, increasing"""
    batch_sizes: Sequence[int]
    """global batches in sequences: the first from token 0 on, then one for each threshold"""
    lr_exponent: float = 0.0
    """0: the batch does not change the rate; 0.5: the square-root rule"""
    cuts_last_batch = True

    def __post_init__(self) -> None:
        thresholds, sizes = tuple(self.thresholds_in_tokens), tuple(self.batch_sizes)
        for key, values in (("thresholds_in_tokens", thresholds), ("batch_sizes", sizes)):
            if not all(isinstance(value, int | float) and math.isfinite(value) for value in values):
                raise ValueError(f"ramp.{key}={list(values)}: finite numbers are needed.")
        if len(sizes) != len(thresholds) + 1:
            raise ValueError(
                f"ramp.batch_sizes={list(sizes)} must be one more than ramp.thresholds_in_tokens={list(thresholds)}: "
                "the first size holds from token 0 on."
            )
        if any(b <= a for a, b in zip((0, *thresholds), thresholds, strict=False)):
            raise ValueError(f"ramp.thresholds_in_tokens={list(thresholds)} must be positive and increasing.")
        for size in sizes:
            _check_batch("batch_sizes", size)
        object.__setattr__(self, "thresholds_in_tokens", thresholds)
        object.__setattr__(self, "batch_sizes", tuple(int(size) for size in sizes))

    def segments(self, schedule: Schedule, warmup_tokens: int, total_tokens: int) -> list[Segment]:
        if self.thresholds_in_tokens and self.thresholds_in_tokens[-1] >= total_tokens:
            raise ValueError(
                f"ramp.thresholds_in_tokens ends at {self.thresholds_in_tokens[-1]:.10g}, not before the run's own end "
                f"total_tokens={total_tokens}: leave out what the run never reaches."
            )
        return [
            Segment(math.ceil(tokens), size, (size / self.batch_sizes[0]) ** self.lr_exponent)
            for tokens, size in zip((0, *self.thresholds_in_tokens), self.batch_sizes, strict=True)
        ]


@dataclass(frozen=True)
class Seesaw:
    """Cuts and grows where the schedule's multiplier falls through alpha^-1, alpha^-2, ... (arXiv:2510.14717, Alg. 1).

    At each such cut the rate is divided by `lr_cut` and the batch multiplied by `batch_growth`, where
    lr_cut sqrt(batch_growth) = alpha: rate / sqrt(batch) follows the schedule, exactly before batches are rounded to
    integers. Two of the three give the third; alpha alone gives sqrt(alpha) and alpha; all three are taken as they are.
    Between cuts the rate is constant. Warm-up is not ramped, and a schedule that rises again is followed on its
    running minimum.
    """

    batch_size: int
    """global batch in sequences before the first cut"""
    alpha: float | None = None
    """factor by which the schedule falls from cut to cut; null: lr_cut sqrt(batch_growth) if both are given, or 1.1"""
    lr_cut: float | None = None
    """factor by which each cut divides the rate; null: alpha / sqrt(batch_growth)"""
    batch_growth: float | None = None
    """factor by which each cut multiplies the batch; null: (alpha / lr_cut)^2, or alpha where lr_cut is null too"""
    max_batch_size: int | None = None
    """the cut that would pass it grows the batch to it exactly; from there on the rate falls as the schedule does"""
    rounding: str = "nearest"
    """nearest: B_k = round(B_0 growth^k), the last batch cut to the budget; reference: as in the authors' own runs"""
    allow_unstable: bool = False
    """permit lr_cut < sqrt(batch_growth), which diverges (Lemma 4)"""

    def __post_init__(self) -> None:
        _check_batch("batch_size", self.batch_size)
        for key in ("lr_cut", "batch_growth"):
            value = getattr(self, key)
            if value is not None and not value >= 1:
                raise ValueError(f"ramp.{key}={value} must be at least 1: a ramp cuts the rate and grows the batch.")
        if self.alpha is not None and not self.alpha > 1:
            raise ValueError(f"ramp.alpha={self.alpha} must be more than 1: the schedule falls by it from cut to cut.")
        alpha, lr_cut, batch_growth = _factors(self.alpha, self.lr_cut, self.batch_growth)
        if not alpha > 1:
            raise ValueError("ramp.lr_cut=1 and ramp.batch_growth=1 leave nothing to cut or grow: use ramp=constant.")
        if lr_cut < 1 or batch_growth < 1:
            given = f"lr_cut={self.lr_cut}" if self.lr_cut is not None else f"batch_growth={self.batch_growth}"
            raise ValueError(
                f"ramp.{given} alone is more than ramp.alpha={alpha:.6g} allows, as lr_cut * sqrt(batch_growth) = "
                "alpha: use a larger alpha, or give both factors."
            )
        if lr_cut < math.sqrt(batch_growth) * (1 - _STABLE) and not self.allow_unstable:
            raise ValueError(
                f"ramp.lr_cut={lr_cut:.6g} is below sqrt(ramp.batch_growth)={math.sqrt(batch_growth):.6g}: the ramp "
                f"diverges (Seesaw, Lemma 4). Use lr_cut >= {math.sqrt(batch_growth):.6g}, or "
                "ramp.allow_unstable=true to see it happen."
            )
        if self.rounding not in ("nearest", "reference"):
            raise ValueError(f"ramp.rounding={self.rounding!r} is unknown: use nearest or reference.")
        if self.max_batch_size is not None and self.max_batch_size < self.batch_size:
            raise ValueError(
                f"ramp.max_batch_size={self.max_batch_size} is below ramp.batch_size={self.batch_size}, where the run "
                "starts: raise the cap or start smaller."
            )
        if self.max_batch_size is not None and not math.isclose(lr_cut * math.sqrt(batch_growth), alpha, rel_tol=1e-3):
            raise ValueError(
                f"ramp.max_batch_size={self.max_batch_size} needs lr_cut * sqrt(batch_growth) = alpha, not "
                f"{lr_cut * math.sqrt(batch_growth):.6g} and {alpha:.6g}: past the cap the rate follows the schedule."
            )
        for key, factor in (("alpha", alpha), ("lr_cut", lr_cut), ("batch_growth", batch_growth)):
            object.__setattr__(self, key, factor)

    @property
    def cuts_last_batch(self) -> bool:
        return self.rounding == "nearest"

    def segments(self, schedule: Schedule, warmup_tokens: int, total_tokens: int) -> list[Segment]:
        alpha, lr_cut, batch_growth = _factors(self.alpha, self.lr_cut, self.batch_growth)
        span, whole = total_tokens - warmup_tokens, round if self.rounding == "reference" else math.ceil
        segments = [Segment(0, self.batch_size, 1.0, follows_schedule=False)]
        cap, growth = self.max_batch_size or math.inf, 1.0
        for k, x in enumerate(crossings(schedule, alpha, 1 - 1 / span).tolist(), 1):
            tokens = whole(warmup_tokens + x * span)
            growth *= batch_growth  # by repeated products, as the authors' code: floor sees the last bit
            exact = self.batch_size * (growth if self.rounding == "reference" else batch_growth**k)
            if exact > cap:
                scale = alpha**-k * math.sqrt(cap / self.batch_size)
                segments.append(Segment(tokens, int(cap), scale, follows_schedule=False))
                continue
            segments.append(Segment(tokens, min(self._whole(exact), total_tokens), lr_cut**-k, follows_schedule=False))
            if exact > total_tokens:  # a schedule that ends at 0: one batch is all that is left
                break
        if len(segments) == 1:
            raise ValueError(
                f"the schedule does not fall to 1/ramp.alpha = {1 / alpha:.6g} of the peak: the ramp would never grow. "
                "Use a schedule that decays further, a smaller ramp.alpha, or ramp=constant."
            )
        return segments

    def _whole(self, exact: float) -> int:
        if self.rounding == "nearest":
            return round(exact)
        batch = math.floor(exact)
        return batch + 1 if batch % 32 == 1 else batch


def crossings(schedule: Schedule, alpha: float, end: float) -> NDArray[np.float64]:
    """Progress x_1 <= x_2 <= ... <= end where the running minimum of `schedule` is first at most alpha^-1, alpha^-2...

    Bracketed on a grid, which is refined where the schedule rises again, then bisected to the last bit. A schedule that
    falls to 0 crosses infinitely often: `end` < 1 says where nothing more can happen.
    """
    grid = np.linspace(0, end, _GRID + 1)
    for _ in range(_PASSES):
        before_rise = np.flatnonzero(np.diff(schedule(grid)) > 0)
        first = before_rise[np.isin(before_rise - 1, before_rise, invert=True)]  # the first cell of each rise
        if not len(first):
            break
        finer = [np.linspace(grid[i], grid[i + 1], _REFINED + 1) for i in (*first, *(first[first > 0] - 1))]
        grid = np.unique(np.concatenate([grid, *finer]))
    lowest = np.minimum.accumulate(schedule(grid))
    smallest = max(lowest[-1], _NOTHING)
    count = math.floor(-math.log(smallest) / math.log(alpha) + _SAME)
    if count > _MOST_CUTS:
        raise ValueError(f"ramp.alpha={alpha} makes {count} cuts: use a larger one, as 1.001.")
    levels = alpha ** -np.arange(1.0, count + 1) * (1 + _SAME)
    cell = np.searchsorted(-lowest, -levels)  # the first grid point at or below each level
    low, high = grid[np.maximum(cell - 1, 0)], grid[cell]
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        fallen = schedule(middle) <= levels
        low, high = np.where(fallen, low, middle), np.where(fallen, middle, high)
    return high


def _factors(alpha: float | None, lr_cut: float | None, batch_growth: float | None) -> tuple[float, float, float]:
    """alpha, lr_cut and batch_growth; what is None follows from lr_cut sqrt(batch_growth) = alpha."""
    if alpha is None:
        both = lr_cut is not None and batch_growth is not None
        alpha = lr_cut * math.sqrt(batch_growth) if both else DEFAULT_ALPHA  # type: ignore[operator, arg-type]
    if lr_cut is None:
        batch_growth = alpha if batch_growth is None else batch_growth
        return alpha, alpha / math.sqrt(batch_growth), batch_growth
    return alpha, lr_cut, (alpha / lr_cut) ** 2 if batch_growth is None else batch_growth


def _check_batch(key: str, size: int) -> None:
    if size != int(size) or size < 1:
        raise ValueError(f"ramp.{key}={size} must be a whole number of sequences, at least 1.")
