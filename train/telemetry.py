"""What a logged row says of speed, time, memory and ranks.

with telemetry.clock("data"): ...                 every step, by phase
with telemetry.profiled(due): ...                 every ten seconds: communication, ranks that lag
telemetry.row(tokens)                             when a row is due
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.fabric import Fabric

from train.measure import Clock, StepTimes, device_name, lagging, mfu, peak_flops, peak_memory, profiled_step

PROFILE_SECONDS = 10.0  # the profiler takes up to a tenth of a second


class Telemetry:
    """Of one life of a run. All ranks make the same calls."""

    def __init__(self, fabric: Fabric, flops_per_token: float, precision: str) -> None:
        self.fabric, self.flops_per_token = fabric, flops_per_token
        self.clock = Clock(fabric.device)
        # a CPU has no peak to speak of, and no warning that says so in every run
        self.peak = None if fabric.device.type == "cpu" else peak_flops(device_name(fabric.device), precision)
        self._times: StepTimes | None = None
        self._lagged: set[int] = set()

    def start(self, tokens: int, seconds_before: float) -> None:
        """The run goes on after `tokens`; earlier lives took `seconds_before`."""
        self._started = self._logged_at = time.perf_counter()
        self._before, self._logged_tokens, self._profiled_at = seconds_before, tokens, time.monotonic()

    @property
    def seconds(self) -> float:
        """Of all lives together."""
        return self._before + time.perf_counter() - self._started

    def profile_due(self) -> bool:
        """Whether this rank wants a step to be profiled: PROFILE_SECONDS after the last one, on several ranks."""
        return self.fabric.world_size > 1 and time.monotonic() - self._profiled_at > PROFILE_SECONDS

    @contextmanager
    def profiled(self, due: bool) -> Iterator[None]:
        """Around a step: where `due`, on all ranks, it is measured what of it was communication."""
        if not due:
            yield
            return
        with profiled_step(self.fabric.device) as times:
            yield
        self._times, self._profiled_at = times, time.monotonic()

    def row(self, tokens: int) -> dict[str, Any]:
        """Since the last row: tokens/s and MFU (evaluation and checkpoints left out), seconds by phase, peak memory in
        bytes; `communication` is its share of the last profiled step, null where there was none. A collective on
        several ranks."""
        now, logged_at, logged_tokens = time.perf_counter(), self._logged_at, self._logged_tokens
        phases = self.clock.read()
        training = max(now - logged_at - phases["evaluation"] - phases["checkpoint"], 1e-9)
        speed = (tokens - logged_tokens) / training
        self._logged_at, self._logged_tokens = now, tokens
        times, self._times = self._times, None
        if times is not None:
            self._name_lagging(times)
        return {
            "tokens_per_second": speed,
            "mfu": mfu(self.flops_per_token * speed, 1.0, self.fabric.world_size, self.peak),
            "seconds": self.seconds,
            **{f"seconds_{phase}": seconds for phase, seconds in phases.items()},
            "communication": None if times is None else times.communication / times.seconds,
            "peak_memory": peak_memory(self.fabric.device),
        }

    def _name_lagging(self, times: StepTimes) -> None:
        """Warns of ranks that were slow in two measured steps in a row: one alone is noise."""
        mine = torch.tensor(times.own, dtype=torch.float64, device=self.fabric.device)
        own = torch.as_tensor(self.fabric.all_gather(mine)).flatten().tolist()
        slow = set(lagging(own))
        for rank in sorted(slow & self._lagged) if self.fabric.is_global_zero else ():
            others = sorted(seconds for other, seconds in enumerate(own) if other != rank)
            print(
                f"warning: rank {rank} lags: {own[rank]:.3g} s of its own in a step, the others {others[0]:.3g} to "
                f"{others[-1]:.3g} s (communication left out). All ranks wait for it.",
                file=sys.stderr,
            )
        self._lagged = slow
