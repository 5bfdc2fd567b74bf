"""What a run measures of itself: peaks, MFU, clocks, memory, ranks that lag."""

import re
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from train import measure
from train.measure import PHASES, Clock, covered, lagging, mfu, peak_flops, peak_memory, profiled_step

CPU = torch.device("cpu")


@pytest.fixture
def fresh_warnings():
    measure.warn_once.cache_clear()
    measure.peak_flops.cache_clear()


@pytest.mark.parametrize(
    ("name", "precision", "peak"),
    [  # dense, from the vendors' datasheets
        ("NVIDIA A100-SXM4-80GB", "bf16", 312e12),
        ("NVIDIA A100-SXM4-80GB", "float32", 19.5e12),
        ("A100-SXM4-40GB", "bf16", 312e12),
        ("NVIDIA H100 80GB HBM3", "bf16", 1979e12 / 2),
        ("NVIDIA H100 PCIe", "bf16", 1513e12 / 2),
        ("NVIDIA H100 NVL", "bf16", 1671e12 / 2),
        ("NVIDIA H200", "bf16", 1979e12 / 2),
        ("NVIDIA B200", "bf16", 4500e12 / 2),
        ("NVIDIA L40S", "float32", 91.6e12),
        ("AMD Instinct MI300X", "bf16", 1307.4e12),
    ],
)
def test_peaks_are_the_dense_ones_of_the_precision(name, precision, peak):
    assert peak_flops(name, precision) == pytest.approx(peak)


@pytest.mark.parametrize("name", ["cpu", "NVIDIA A100-SXM4-40GB MIG 1g.5gb", "NVIDIA A100-SXM-64GB", "NVIDIA A10G"])
def test_an_unknown_device_has_no_mfu_and_that_is_said_once(name, capsys, fresh_warnings):
    for precision in ("bf16", "float32"):
        assert peak_flops(name, precision) is None
    said = capsys.readouterr().err
    assert said.count("warning: no MFU") == 1 and repr(name) in said


def test_only_the_first_rank_warns(capsys, fresh_warnings, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert peak_flops("cpu", "bf16") is None and capsys.readouterr().err == ""


def test_mfu_is_the_share_of_what_all_devices_could_do():
    assert mfu(8e12, seconds=2.0, world_size=4, peak=2e12) == pytest.approx(0.5)
    assert mfu(8e12, seconds=2.0, world_size=4, peak=None) is None


def test_a_clock_has_the_seconds_of_each_phase_since_it_was_read():
    clock = Clock(CPU)
    for _ in range(2):
        with clock("data"):
            time.sleep(0.02)
    with pytest.raises(KeyError), clock("optimizer"):
        time.sleep(0.01)
        raise KeyError
    seconds = clock.read()
    assert tuple(seconds) == PHASES
    assert 0.04 <= seconds["data"] < 1 and 0.01 <= seconds["optimizer"] < 1
    assert seconds["forward_backward"] == seconds["checkpoint"] == 0
    assert set(clock.read().values()) == {0.0}


def test_a_clock_costs_microseconds():
    clock = Clock(CPU)
    started = time.perf_counter()
    for _ in range(1000):
        with clock("data"):
            pass
    assert (time.perf_counter() - started) / 1000 < 50e-6


class DeviceTime:
    """torch.cuda.Event as a device sees it: its stream runs behind the host, and `now` is how far it has come."""

    recorded, now, made = 0.0, 0.0, 0

    def __init__(self, enable_timing):
        assert enable_timing
        DeviceTime.made += 1

    def record(self):
        DeviceTime.recorded += 10.0  # milliseconds of device work before this event
        self.at = DeviceTime.recorded

    def query(self):
        return self.at <= DeviceTime.now

    def synchronize(self):
        DeviceTime.now = max(DeviceTime.now, self.at)

    def elapsed_time(self, end):
        assert end.query(), "read before the device was there"
        return end.at - self.at


def test_on_a_device_events_are_read_when_they_are_done_and_used_again(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", DeviceTime)
    monkeypatch.setattr(DeviceTime, "made", 0)
    clock = Clock(torch.device("cuda"))
    for _ in range(100):
        with clock("forward_backward"):
            pass
        with clock("optimizer"):
            pass
        DeviceTime.now = DeviceTime.recorded - 25  # the device is two events behind
    seconds = clock.read()
    assert seconds["forward_backward"] == pytest.approx(100 * 0.01) == seconds["optimizer"]
    assert DeviceTime.made <= 10 and set(clock.read().values()) == {0.0}


def test_peak_memory_on_cpu_is_the_largest_resident_set_in_bytes():
    held = torch.ones(2**23)
    (kibibytes,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert held.nbytes < peak_memory(CPU) == pytest.approx(int(kibibytes) * 1024, rel=0.05)


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 10))))
def test_covered_is_the_length_of_the_union(intervals):
    intervals = [(begin, begin + length) for begin, length in intervals]
    assert covered(intervals) == len({t for begin, end in intervals for t in range(begin, end)})


def test_a_profiled_step_without_collectives_is_all_the_ranks_own():
    with profiled_step(CPU) as step:
        time.sleep(0.02)
    assert step.communication == 0 and 0.02 <= step.own == step.seconds


@pytest.mark.parametrize(
    ("own", "ranks"),
    [
        ([1.0], []),
        ([1.0, 1.2], []),
        ([1.0, 1.3], [1]),
        ([2.0, 1.0, 1.0], [0]),
        ([1.0, 1.0, 3.0, 3.0], [2, 3]),
        ([1.0, 1.1, 1.0, 1.2], []),
    ],
)
def test_ranks_lag_when_their_own_time_is_above_the_others(own, ranks):
    assert lagging(own) == ranks
