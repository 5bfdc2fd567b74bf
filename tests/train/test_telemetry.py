import time
from types import SimpleNamespace

import pytest
import torch

from train import telemetry
from train.measure import StepTimes
from train.telemetry import Telemetry


def three_ranks(own):
    """What the first of three ranks sees: `own` gives the seconds of each rank's own work."""
    return SimpleNamespace(
        device=torch.device("cpu"), world_size=3, is_global_zero=True, all_gather=lambda mine: torch.tensor(own)
    )


@pytest.mark.parametrize(("own", "named"), [([0.1, 0.1, 0.5], True), ([0.1, 0.11, 0.12], False)])
def test_a_rank_that_lags_twice_in_a_row_is_named(capsys, own, named):
    watch = Telemetry(three_ranks(own), flops_per_token=1.0, precision="float32")
    watch.start(0, 0.0)
    for tokens in (10, 20):
        watch._times = StepTimes(seconds=0.6, communication=0.3)
        row = watch.row(tokens)
        assert row["communication"] == 0.5
        said = capsys.readouterr().err
        assert ("rank 2 lags: 0.5 s of its own in a step, the others 0.1 to 0.1 s" in said) == (named and tokens == 20)
    assert watch.row(30)["communication"] is None


def test_a_step_is_profiled_after_a_while_and_only_on_several_ranks(monkeypatch):
    monkeypatch.setattr(telemetry, "PROFILE_SECONDS", 0.05)
    several = Telemetry(three_ranks([0.1] * 3), flops_per_token=1.0, precision="float32")
    one = Telemetry(SimpleNamespace(device=torch.device("cpu"), world_size=1), flops_per_token=1.0, precision="float32")
    for watch in (several, one):
        watch.start(0, 0.0)
        assert not watch.profile_due()
    time.sleep(0.06)
    assert several.profile_due() and not one.profile_due()
    with several.profiled(True):
        torch.ones(10).sum()
    assert not several.profile_due()
    row = several.row(100)
    assert row["communication"] == 0.0 and row["seconds"] > 0.05 and row["tokens_per_second"] > 0


def test_seconds_go_on_over_lives_and_phases_begin_anew_with_each_row():
    watch = Telemetry(three_ranks([0.1] * 3), flops_per_token=1.0, precision="float32")
    watch.start(1000, 500.0)
    with watch.clock("data"):
        time.sleep(0.02)
    first, second = watch.row(1100), watch.row(1200)
    assert first["seconds"] > 500.02 and first["seconds_data"] >= 0.02 and second["seconds_data"] == 0
    assert first["tokens_per_second"] < 100 / 0.02 and first["mfu"] is None
