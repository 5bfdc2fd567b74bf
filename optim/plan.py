"""The plan: learning rate and batch size as one pure function of tokens.

    plan = Plan(total_tokens=10**6, sequence_length=256, peak_lr=3e-3, schedule=Cosine(), ramp=ConstantBatch(16))
    plan.at(tokens)   what the step under way after `tokens` does
    plan.steps()      every step of the run, before it starts

Nothing here has state, so nothing is checkpointed and a resumed run cannot drift. The last batch is cut to the
sequences that remain: all plans of one budget see exactly the same samples.
"""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from optim.ramps import ConstantBatch
from optim.schedules import Schedule


class PlanPoint(NamedTuple):
    lr: float
    batch_size: int


class Steps(NamedTuple):
    """One entry per optimizer step."""

    tokens_before: NDArray[np.int64]
    batch_size: NDArray[np.int64]
    lr: NDArray[np.float64]


@dataclass(frozen=True)
class Plan:
    """Raises ValueError, with the key and the fix, where no run can follow it."""

    total_tokens: int
    """budget in tokens, a multiple of the sequence length"""
    sequence_length: int
    """tokens per sequence"""
    peak_lr: float
    """learning rate at the end of warm-up"""
    schedule: Schedule
    """progress after warm-up -> multiplier of the peak rate"""
    ramp: ConstantBatch
    """tokens -> batch size in sequences"""
    warmup_tokens: int = 0
    """tokens over which the rate rises linearly to its peak"""
    warmup_start: float = 0.0
    """multiplier of the peak rate at token 0"""

    def __post_init__(self) -> None:
        if self.sequence_length < 1:
            raise ValueError(f"sequence_length={self.sequence_length} must be at least 1.")
        if self.total_tokens < self.sequence_length or self.total_tokens % self.sequence_length:
            below = self.total_tokens // self.sequence_length * self.sequence_length
            near = max(below, self.sequence_length)
            raise ValueError(
                f"total_tokens={self.total_tokens} is not a whole number of sequences of "
                f"sequence_length={self.sequence_length} tokens: use {near} or {near + self.sequence_length}."
            )
        if not self.peak_lr > 0:
            raise ValueError(f"peak_lr={self.peak_lr} must be positive.")
        if not 0 <= self.warmup_tokens < self.total_tokens:
            raise ValueError(
                f"warmup_tokens={self.warmup_tokens} must be at least 0 and less than total_tokens={self.total_tokens}."
            )
        if not 0 <= self.warmup_start <= 1:
            raise ValueError(f"warmup_start={self.warmup_start} must be in [0, 1]: it is a multiplier of peak_lr.")
        if self._segments[0].batch_size > self.total_samples:
            raise ValueError(
                f"ramp.batch_size={self._segments[0].batch_size} is more than the {self.total_samples} sequences of "
                f"total_tokens={self.total_tokens}: no step could be made. Use a smaller batch or a larger budget."
            )

    @cached_property
    def _segments(self):
        return self.ramp.segments()

    @property
    def total_samples(self) -> int:
        return self.total_tokens // self.sequence_length

    @property
    def final_tokens(self) -> int:
        """Tokens seen when the run ends: the budget, exactly."""
        return self.total_tokens

    @cached_property
    def serial_steps(self) -> int:
        return len(self.steps().batch_size)

    def lr(self, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
        """Learning rate of the steps under way after `tokens` (any shape)."""
        warmup = self.warmup_start + (1 - self.warmup_start) * tokens / max(self.warmup_tokens, 1)
        x = (tokens - self.warmup_tokens) / (self.total_tokens - self.warmup_tokens)
        return self.peak_lr * np.where(tokens < self.warmup_tokens, warmup, self.schedule(np.clip(x, 0, 1)))

    def at(self, tokens: int) -> PlanPoint:
        """Rate and batch of the step that is under way after `tokens` (0 <= tokens < total_tokens)."""
        if not 0 <= tokens < self.total_tokens:
            raise ValueError(f"the plan has no step after {tokens} tokens: it covers 0 to {self.total_tokens}.")
        segment = self._segments[bisect_right([s.tokens for s in self._segments], tokens) - 1]
        left = (self.total_tokens - tokens) // self.sequence_length
        return PlanPoint(float(self.lr(np.array(tokens))), min(segment.batch_size, left))

    def steps(self) -> Steps:
        """The whole run, one entry per step."""
        tokens, before, sizes = 0, [], []
        for (_, batch_size), end in zip(
            self._segments, [s.tokens for s in self._segments[1:]] + [self.total_tokens], strict=True
        ):
            step_tokens = batch_size * self.sequence_length
            starts = np.arange(tokens, end, step_tokens, dtype=np.int64)
            before.append(starts)
            sizes.append(np.full(len(starts), batch_size, dtype=np.int64))
            tokens += len(starts) * step_tokens
        tokens_before, batch_size_ = np.concatenate(before), np.concatenate(sizes)
        batch_size_[-1] = (self.total_tokens - tokens_before[-1]) // self.sequence_length
        return Steps(tokens_before, batch_size_, self.lr(tokens_before))


def plan_of(config: Mapping[str, Any]) -> Plan:
    """The plan of one point's configuration. `warmup_tokens: null` is 5 % of the budget."""
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
    )
