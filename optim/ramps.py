"""Batch ramps: the batch as a piecewise constant function of tokens.

A ramp answers `segments(...)` with the whole run's segments, computed before it starts; the plan does the rest.
"""

from dataclasses import dataclass
from typing import NamedTuple


class Segment(NamedTuple):
    """From `tokens` on, every step takes `batch_size` sequences."""

    tokens: int
    batch_size: int


@dataclass(frozen=True)
class ConstantBatch:
    """The same global batch, in sequences, throughout."""

    batch_size: int
    """global batch in sequences"""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"ramp.batch_size={self.batch_size} must be at least 1 sequence.")

    def segments(self) -> list[Segment]:
        return [Segment(0, self.batch_size)]
