"""The spike guard: an update is skipped when its loss or gradient norm stands out from the recent ones. No torch.

    guard = SpikeGuard(window_tokens=2e6)
    guard.is_spike(tokens, loss, grad_norm)     before the update, from numbers that the step's one sync brings anyway

The window is in tokens, so a batch ramp does not change what it looks back on. Its history goes into the checkpoint.
Spikes enter it as well: where the loss has risen for good, the window learns it, and training goes on.
"""

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

LEAST = 32  # steps that make a spread


@dataclass
class SpikeGuard:
    window_tokens: float
    """tokens that the window looks back on"""
    sigmas: float = 6.0
    """a spike is so many standard deviations above the window's mean"""
    skipped: int = field(default=0, init=False, repr=False)
    """updates that were left out, in all lives"""
    history: list[tuple[int, float, float | None]] = field(default_factory=list, init=False, repr=False)
    """(tokens before the step, loss, gradient norm or None) of the window's steps"""

    def __post_init__(self) -> None:
        for key in ("window_tokens", "sigmas"):
            if not getattr(self, key) > 0:
                raise ValueError(f"spike_guard.{key}={getattr(self, key)} must be positive.")

    def is_spike(self, tokens: int, loss: float, grad_norm: float | None) -> bool:
        """Whether the step after `tokens` stands out; takes it into the window. `grad_norm` is None where the strategy
        knows it only after the update. Fewer than 32 steps in the window are no measure, and nothing stands out."""
        recent = [row for row in self.history if row[0] >= tokens - self.window_tokens]
        losses = [row[1] for row in recent]
        norms = [row[2] for row in recent if row[2] is not None]
        self.history = [*recent, (tokens, loss, grad_norm)]
        spike = self._stands_out(loss, losses) or (grad_norm is not None and self._stands_out(grad_norm, norms))
        self.skipped += spike
        return spike

    def _stands_out(self, value: float, window: list[float]) -> bool:
        if len(window) < LEAST:
            return False
        mean = statistics.fmean(window)
        spread = math.sqrt(statistics.fmean((x - mean) ** 2 for x in window))
        return value > mean + self.sigmas * spread

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped, "history": self.history}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.skipped, self.history = state["skipped"], [tuple(row) for row in state["history"]]
