"""Updates that are not made: under every strategy weights stay as they were, and the run goes on or ends."""

import itertools
import json
import math

import pytest
import torch

from train.checkpoint import read_weights

pytestmark = pytest.mark.usefixtures("hydra_conf")

RUN = ["launch.micro_batch_size=2", "launch.log_every_tokens=1", "launch.collective_timeout=60"]
# from the 33rd step on, all stand out whose loss is above the mean of those before; the loss hardly falls
IMPATIENT = ["spike_guard=standard", "spike_guard.window_tokens=1e9", "spike_guard.sigmas=1e-9"]
IMPATIENT += ["total_tokens=7680", "schedule=constant", "warmup_tokens=0", "peak_lr=1e-5"]


def rows(point):
    return [json.loads(line) for line in (point.folder / "metrics.jsonl").read_text().splitlines()]


def test_weights_stay_where_an_update_is_skipped_and_lives_count_on(pool, make, layout):
    strategy, world_size = layout
    how = [f"strategy={strategy}", f"launch.devices={world_size}"]
    how += ["launch.checkpoint.keep=9", "launch.checkpoint.every_tokens=1"]
    whole, cut = make("whole", *IMPATIENT, *how), make("cut", *IMPATIENT, *how)
    assert pool.train(whole, world_size) == "completed"
    changed = {True: 0, False: 0}
    for before, after in list(itertools.pairwise(rows(whole)))[-8:]:
        folders = [whole.folder / "checkpoints" / f"{row['tokens']:012d}" for row in (before, after)]
        old, new = (read_weights(folder) for folder in folders)
        skipped = after["skipped_updates"] > before["skipped_updates"]
        assert skipped == all(torch.equal(new[name], old[name]) for name in old)
        changed[skipped] += 1
    assert changed[True] and changed[False]
    assert pool.train(cut, world_size, steps=36) == "preempted"
    assert pool.train(cut, world_size) == "completed"
    for key in ("skipped_updates", "loss"):
        assert [row[key] for row in rows(cut)] == [row[key] for row in rows(whole)]


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_gradient_that_is_not_finite_stops_before_the_update(pool, make, layout, precision):
    """The loss is finite; its gradient overflows, as z_loss is huge."""
    strategy, world_size = layout
    how = [f"strategy={strategy}", f"launch.devices={world_size}", f"precision={precision}"]
    point = make("overflow", *how, "z_loss=1e38", "clip_norm=0")
    assert pool.train(point, world_size) == "diverged"
    end = json.loads((point.folder / "summary.json").read_text())
    assert end["status"] == "diverged" and end["steps"] == 0 and end["samples"] == [0, 6]
    assert end["loss"] < 10 and not math.isfinite(end["grad_norm"])
    assert end["ranks"] is None
