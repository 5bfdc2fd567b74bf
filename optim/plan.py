"""The plan: learning rate and batch size as one pure function of tokens.

    plan = Plan(total_tokens=10**6, sequence_length=256, peak_lr=3e-3, schedule=Cosine(), ramp=ConstantBatch(16))
    plan.at(tokens)   what the step under way after `tokens` does
    plan.steps()      every step of the run, before it starts

Nothing here has state, so nothing is checkpointed and a resumed run cannot drift. The last batch is cut to the
sequences that remain: all plans of one budget see exactly the same samples. A plan that starts at a later token (a
branch of another run) follows the same schedule and ramp from there on.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from optim.ramps import Ramp
from optim.schedules import Schedule, of_progress

_MOST_AT_ONCE = 10  # a last batch that is cut may be so many times the one before it


class PlanPoint(NamedTuple):
    lr: float
    batch_size: int


class Steps(NamedTuple):
    """One entry per optimizer step."""

    tokens_before: NDArray[np.int64]
    batch_size: NDArray[np.int64]
    lr: NDArray[np.float64]


class Segments(NamedTuple):
    """Stretches of equal steps, one entry each. A segment of the ramp in which no step starts is left out."""

    tokens: NDArray[np.int64]
    """before the first step"""
    steps: NDArray[np.int64]
    batch_size: NDArray[np.int64]
    lr_scale: NDArray[np.float64]
    follows_schedule: NDArray[np.bool_]


@dataclass(frozen=True)
class Plan:
    """Raises ValueError, with the key and the fix, where no run can follow it."""

    total_tokens: int
    """budget in tokens; the run ends with the first whole sequence that reaches it"""
    sequence_length: int
    """tokens per sequence"""
    peak_lr: float
    """learning rate at the end of warm-up"""
    schedule: Schedule
    """progress after warm-up -> multiplier of the peak rate"""
    ramp: Ramp
    """tokens -> batch size in sequences"""
    warmup_tokens: int = 0
    """tokens over which the rate rises linearly to its peak"""
    warmup_start: float = 0.0
    """multiplier of the peak rate at token 0"""
    start_tokens: int = 0
    """tokens before the first step: a branch goes on where its parent was"""

    def __post_init__(self) -> None:
        if self.sequence_length < 1:
            raise ValueError(f"sequence_length={self.sequence_length} must be at least 1.")
        if self.total_tokens < self.sequence_length:
            raise ValueError(
                f"total_tokens={self.total_tokens} is not one sequence of sequence_length={self.sequence_length} "
                f"tokens: use at least {self.sequence_length}."
            )
        if not self.peak_lr > 0:
            raise ValueError(f"peak_lr={self.peak_lr} must be positive.")
        if not 0 <= self.warmup_tokens < self.total_tokens:
            raise ValueError(
                f"warmup_tokens={self.warmup_tokens} must be at least 0 and less than total_tokens={self.total_tokens}."
            )
        if not 0 <= self.warmup_start <= 1:
            raise ValueError(f"warmup_start={self.warmup_start} must be in [0, 1]: it is a multiplier of peak_lr.")
        if self.start_tokens < 0 or self.start_tokens % self.sequence_length:
            raise ValueError(
                f"parent.tokens={self.start_tokens} must be whole sequences of sequence_length={self.sequence_length}."
            )
        if self.start_tokens >= self.total_tokens:
            raise ValueError(
                f"parent.tokens={self.start_tokens} leaves nothing of total_tokens={self.total_tokens}, which counts "
                "the parent's tokens too: use a larger budget, or branch off earlier."
            )
        _ = self.segments  # a ramp that does not fit is refused here
        multipliers = self._schedule(np.linspace(0, 1, 1025))
        if not (np.isfinite(multipliers).all() and (multipliers >= 0).all()):
            raise ValueError(f"schedule={self.schedule!r} has multipliers that are negative or not finite.")

    @cached_property
    def _schedule(self) -> Schedule:
        return of_progress(self.schedule, self.warmup_tokens, self.total_tokens)

    @cached_property
    def segments(self) -> Segments:
        planned = self.ramp.segments(self._schedule, self.warmup_tokens, self.total_tokens)
        ends = [segment.tokens for segment in planned[1:]] + [self.total_tokens]
        rows: list[tuple[int, int, int, float, bool]] = []
        tokens = self.start_tokens
        for segment, end in zip(planned, ends, strict=True):
            left = -(-(self.total_tokens - tokens) // self.sequence_length)
            batch_size = min(segment.batch_size, left) if self.ramp.cuts_last_batch else segment.batch_size
            if end > tokens and segment.batch_size > left:
                self._check_cut(segment.batch_size, left, before=rows[-1][2] if rows else None)
            step_tokens = batch_size * self.sequence_length
            steps = max(0, -(-(end - tokens) // step_tokens)) if left > 0 else 0  # none in a segment within a step
            if steps:
                rows.append((tokens, steps, batch_size, segment.lr_scale, segment.follows_schedule))
            tokens += steps * step_tokens
        return Segments(*(np.array(column) for column in zip(*rows, strict=True)))

    def _check_cut(self, batch_size: int, left: int, before: int | None) -> None:
        """A batch that is cut to what is `left` may end a run, but not be most of it."""
        if before is None:
            after = f" after parent.tokens={self.start_tokens}" if self.start_tokens else ""
            raise ValueError(
                f"ramp.batch_size={batch_size} is more than the {left} sequences of total_tokens={self.total_tokens}"
                f"{after}: no step could be made. Use a smaller batch or a larger budget."
            )
        if left > _MOST_AT_ONCE * before:
            share = left * self.sequence_length / self.total_tokens
            raise ValueError(
                f"the ramp grows from {before} to {batch_size} sequences at once, more than the {left} that are left: "
                f"one step would take {share:.0%} of the run. Set ramp.max_batch_size, or give the schedule a floor."
            )

    @property
    def total_samples(self) -> int:
        return self.final_tokens // self.sequence_length

    @cached_property
    def final_tokens(self) -> int:
        """Tokens seen when the run ends: the budget, rounded up to whole sequences where it is not a multiple.

        Under rounding="reference" the last batch is whole, and the run ends up to a batch above its budget.
        """
        if self.ramp.cuts_last_batch:
            return -(-self.total_tokens // self.sequence_length) * self.sequence_length
        last = self.segments
        return int(last.tokens[-1] + last.steps[-1] * last.batch_size[-1] * self.sequence_length)

    @property
    def serial_steps(self) -> int:
        """Optimizer steps of the run, one after another; a branch's own."""
        return int(self.segments.steps.sum())

    def lr(self, tokens: ArrayLike) -> NDArray[np.float64]:
        """Learning rate of the steps under way after `tokens` (any shape; start_tokens <= tokens < final_tokens)."""
        return self._rate(*self._step_under_way(np.atleast_1d(tokens))).reshape(np.shape(tokens))

    def at(self, tokens: int) -> PlanPoint:
        """Rate and batch of the step that is under way after `tokens` (start_tokens <= tokens < final_tokens)."""
        if not self.start_tokens <= tokens < self.final_tokens:
            covered = f"{self.start_tokens} to {self.final_tokens}"
            raise ValueError(f"the plan has no step after {tokens} tokens: it covers {covered}.")
        # an array of one: NumPy's powers of a single number can differ from those of an array in the last bit
        index, start = self._step_under_way(np.array([tokens]))
        left = (self.final_tokens - int(start[0])) // self.sequence_length
        return PlanPoint(float(self._rate(index, start)[0]), min(int(self.segments.batch_size[index[0]]), left))

    def steps(self) -> Steps:
        """The whole run, one entry per step."""
        segments = self.segments
        batch_size = np.repeat(segments.batch_size, segments.steps)
        ends = self.start_tokens + np.cumsum(batch_size) * self.sequence_length
        tokens_before = np.append(self.start_tokens, ends[:-1])
        batch_size[-1] = (self.final_tokens - tokens_before[-1]) // self.sequence_length
        return Steps(tokens_before, batch_size, self.lr(tokens_before))

    def boundary(self, tokens: float) -> int:
        """Tokens at the end of the last step that is made by `tokens`; start_tokens where none is."""
        if tokens >= self.final_tokens:
            return self.final_tokens
        return int(self._step_under_way(np.array([max(math.floor(tokens), self.start_tokens)]))[1][0])

    def _rate(self, index: NDArray[np.intp], start: NDArray[np.int64]) -> NDArray[np.float64]:
        """Learning rate of steps that begin after `start` tokens, in the segments `index`."""
        warmup = self.warmup_start + (1 - self.warmup_start) * start / max(self.warmup_tokens, 1)
        x = (start - self.warmup_tokens) / (self.total_tokens - self.warmup_tokens)
        scheduled = np.where(self.segments.follows_schedule[index], self._schedule(np.clip(x, 0, 1)), 1.0)
        multiplier = np.where(start < self.warmup_tokens, warmup, scheduled)
        return self.peak_lr * self.segments.lr_scale[index] * multiplier

    def _step_under_way(self, tokens: NDArray[np.int64]) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
        """The segment, and the tokens at the start, of the step that is under way after `tokens`."""
        index = np.searchsorted(self.segments.tokens, tokens, side="right") - 1
        first, step_tokens = self.segments.tokens[index], self.segments.batch_size[index] * self.sequence_length
        return index, first + (tokens - first) // step_tokens * step_tokens


def plan_of(config: Mapping[str, Any]) -> Plan:
    """The plan of one point's configuration. `warmup_tokens: null` is 5 % of the budget; a branch starts at the tokens
    of its `parent`."""
    from hydra.utils import instantiate

    total, warmup = config["total_tokens"], config["warmup_tokens"]
    return Plan(
        total_tokens=total,
        sequence_length=config["sequence_length"],
        peak_lr=config["peak_lr"],
        schedule=instantiate(config["schedule"]),
        ramp=instantiate(config["ramp"]),
        warmup_tokens=total // 20 if warmup is None else warmup,
        warmup_start=config["warmup_start"],
        start_tokens=(config.get("parent") or {}).get("tokens", 0),
    )
