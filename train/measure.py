"""What a run measures of itself: peak FLOP/s and MFU, where the seconds go, peak memory, ranks that lag.

peak = peak_flops(device_name(device), precision)             # None, said once, where it is not known
clock = Clock(device)
with clock("data"): ...                                       # in every step
seconds = clock.read()                                        # when a row is logged: {"data": 0.31, ...}
mfu(flops, elapsed, world_size, peak)

with profiled_step(device) as times: ...                      # one step every so often, on several ranks
lagging(own seconds of every rank)                            # times.own, gathered
"""

import functools
import os
import platform
import resource
import statistics
import sys
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile

PHASES = ("data", "forward_backward", "optimizer", "evaluation", "checkpoint")


@functools.cache
def warn_once(message: str) -> None:
    """One line on stderr, from the first rank only, once per process."""
    if int(os.environ.get("RANK", 0)) == 0:
        print(f"warning: {message}", file=sys.stderr)


# ---------------------------------------------------------------------------------------------------- FLOP/s

# Device, as torch.cuda.get_device_name says it (without the vendor) -> dense TFLOP/s in float32 and bf16.
# float32 is what torch does by default: no TF32, so the vector units. Vendors' datasheets print the bf16 number with
# 2:4 sparsity, which is twice the dense one. Only whole devices and only names that are certain: a MIG slice or a
# custom part (A100-SXM-64GB) has another peak under a similar name.
PEAK_TFLOPS: dict[str, tuple[float, float]] = {
    # NVIDIA A100 datasheet
    **dict.fromkeys(("A100-SXM4-40GB", "A100-SXM4-80GB"), (19.5, 312.0)),
    **dict.fromkeys(("A100-PCIE-40GB", "A100 80GB PCIe", "A100-PCIE-80GB"), (19.5, 312.0)),
    # NVIDIA A10, A30, A40 datasheets
    "A10": (31.2, 125.0),
    "A30": (10.3, 165.0),
    "A40": (37.4, 149.7),
    # NVIDIA H100 datasheet (bf16 1979, 1513 and 1671 with sparsity)
    "H100 80GB HBM3": (67.0, 989.5),
    "H100 PCIe": (51.0, 756.5),
    "H100 NVL": (60.0, 835.5),
    # NVIDIA H200 datasheet (bf16 1979 and 1671 with sparsity); GH200 datasheet (1979)
    "H200": (67.0, 989.5),
    "H200 NVL": (60.0, 835.5),
    **dict.fromkeys(("GH200 480GB", "GH200 120GB"), (67.0, 989.5)),
    # NVIDIA Blackwell datasheet, HGX B200 column, per GPU (bf16 4500 with sparsity)
    "B200": (75.0, 2250.0),
    # NVIDIA L4, L40, L40S datasheets (bf16 242, 362.1 and 733 with sparsity; L40 and L40S print the dense one too)
    "L4": (30.3, 121.0),
    "L40": (90.5, 181.05),
    "L40S": (91.6, 362.05),
    # NVIDIA whitepapers on the GA102 and Ada architectures, bf16 with float32 accumulation
    "GeForce RTX 3090": (35.6, 71.0),
    "GeForce RTX 4090": (82.6, 165.2),
    # AMD Instinct MI300X datasheet
    "Instinct MI300X": (163.4, 1307.4),
}


def device_name(device: torch.device) -> str:
    """As torch.cuda.get_device_name gives it, or "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


@functools.cache
def peak_flops(name: str, precision: str) -> float | None:
    """Dense peak FLOP/s of one device in "float32" or "bf16"; None, and a warning once, where it is not known."""
    peaks = PEAK_TFLOPS.get(name.removeprefix("NVIDIA ").removeprefix("AMD "))
    if peaks is None:
        warn_once(f"no MFU: the peak FLOP/s of {name!r} are not known (train/measure.py lists the devices that are).")
        return None
    return {"float32": peaks[0], "bf16": peaks[1]}[precision] * 1e12


def mfu(flops: float, seconds: float, world_size: int, peak: float | None) -> float | None:
    """Model FLOPs utilisation in [0, 1]: `flops` of all ranks over what their devices could do in `seconds`."""
    return None if peak is None else flops / (seconds * world_size * peak)


# ---------------------------------------------------------------------------------------------------- seconds


class Clock:
    """Seconds spent in each phase of a step since the last `read`: `with clock("data"):`. Phases do not nest.

    On CUDA the seconds are the device's, between events in its stream, so nothing waits; host work such as data counts
    where it keeps the device waiting. Elsewhere they are the host's.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_device = device.type == "cuda"
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._running: deque[tuple[str, torch.cuda.Event, torch.cuda.Event]] = deque()
        self._free: list[torch.cuda.Event] = []

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        assert phase in PHASES, phase
        if self._on_device:
            begin, end = self._event(), self._event()
            begin.record()
            try:
                yield
            finally:
                end.record()
                self._running.append((phase, begin, end))
                self._collect()
        else:
            started = time.perf_counter()
            try:
                yield
            finally:
                self._seconds[phase] += time.perf_counter() - started

    def read(self) -> dict[str, float]:
        """Seconds by phase since the last read, 0.0 where there were none; waits for the device's last event."""
        if self._running:
            self._running[-1][2].synchronize()
        self._collect()
        seconds = {phase: self._seconds[phase] for phase in PHASES}
        self._seconds.clear()
        return seconds

    def _collect(self) -> None:
        """Takes in what the device is done with, so that a long interval holds few events."""
        while self._running and self._running[0][2].query():
            phase, begin, end = self._running.popleft()
            self._seconds[phase] += begin.elapsed_time(end) / 1e3  # milliseconds
            self._free += [begin, end]

    def _event(self) -> torch.cuda.Event:
        return self._free.pop() if self._free else torch.cuda.Event(enable_timing=True)


# ---------------------------------------------------------------------------------------------------- memory


def peak_memory(device: torch.device) -> int:
    """Bytes. CUDA: the most that tensors took since the process started, or since
    torch.cuda.reset_peak_memory_stats. Elsewhere: the process's largest resident set since it started, all of
    Python and its libraries included; it cannot be reset."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024  # Linux counts in KiB


# ---------------------------------------------------------------------------------------------------- ranks

COLLECTIVES = ("gloo:", "ncclDevKernel", "ncclKernel")  # as gloo's threads and NCCL's (RCCL's) kernels are named
# set before the first profile, or torch writes lines of its own to stderr at each
os.environ.setdefault("KINETO_LOG_LEVEL", "99")


@dataclass
class StepTimes:
    """Seconds of one step on this rank."""

    seconds: float = 0.0
    """the whole step"""
    communication: float = 0.0
    """in which a collective was under way, also where computation went on beside it"""

    @property
    def own(self) -> float:
        """The rest: a rank that others wait for has more of it than they have."""
        return self.seconds - self.communication


@contextmanager
def profiled_step(device: torch.device) -> Iterator[StepTimes]:
    """Measures the step within it, by the profiler's view of the collectives; filled in when it ends.

    It waits for the device, and the profiler takes some milliseconds: for one step every so often.
    """
    times = StepTimes()
    on_device = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_device else ProfilerActivity.CPU]) as profiler:
        started = time.perf_counter()
        yield times
        if on_device:
            torch.cuda.synchronize(device)
        times.seconds = time.perf_counter() - started
    events = profiler.profiler.kineto_results.events()
    collectives = (e for e in events if e.name().startswith(COLLECTIVES))
    times.communication = covered((e.start_ns(), e.start_ns() + e.duration_ns()) for e in collectives) / 1e9


def covered(intervals: Iterable[tuple[int, int]]) -> int:
    """Length of the union of intervals [begin, end)."""
    total, reached = 0, 0
    for begin, end in sorted(intervals):
        total += max(0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def lagging(own_seconds: Sequence[float], factor: float = 1.25) -> list[int]:
    """Ranks whose own time (step without communication) is above `factor` x the median of the other ranks'."""
    others = [[*own_seconds[:rank], *own_seconds[rank + 1 :]] for rank in range(len(own_seconds))]
    return [
        rank
        for rank, (own, rest) in enumerate(zip(own_seconds, others, strict=True))
        if rest and own > factor * statistics.median(rest)
    ]
