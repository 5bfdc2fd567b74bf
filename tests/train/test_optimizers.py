"""Every optimizer of conf/optimizer on a real transformer, through the real loop."""

import json
from pathlib import Path

import pytest
import torch

import conf
from conf.points import expand
from data.prepare import prepare
from train.loop import train
from train.run import build_run

pytestmark = pytest.mark.usefixtures("hydra_conf", "one_thread")

NAMES = sorted(path.stem for path in (Path(conf.__file__).parent / "optimizer").glob("*.yaml"))
RATES = {"sgd": 1.0, "normalized_sgd": 0.5, "lion": 3e-3}  # others are at home near the rate of `tiny`


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", NAMES)
def test_each_optimizer_lowers_the_loss_and_resumes_bit_for_bit(life, weights, name, tiny, cache, tmp_path):
    overrides = [
        *tiny,
        f"optimizer={name}",
        f"peak_lr={RATES.get(name, 1e-2)}",
        "total_tokens=2304",
        "ramp.batch_size=6",
    ]
    overrides += ["launch.log_every_tokens=1", "launch.checkpoint.every_tokens=1e9", "eval.tokens=64"]
    if name in ("shampoo", "soap"):
        overrides += ["optimizer.refresh_every=3"]
    first, again = expand([[*overrides, f"label={label}"] for label in ("", "again")])
    prepare(first.config["data"], first.config["tokenizer"], cache, processes=1)
    for point in (first, again):
        point.folder.mkdir(parents=True)
    status, undisturbed = life(first)
    assert status == "completed" and len(losses(first.folder)) == first.plan.serial_steps == 12
    assert losses(first.folder)[-1] < losses(first.folder)[0] - 0.3

    assert life(again, 5)[0] == "preempted"
    status, resumed = life(again)
    assert status == "completed" and losses(again.folder) == losses(first.folder)
    torch.testing.assert_close(weights(resumed), weights(undisturbed), rtol=0, atol=0)


def test_the_loop_gives_each_group_its_multiple_of_the_plans_rate(tiny, cache):
    (point,) = expand([[*tiny, "optimizer=muon", "optimizer.adamw_lr_scale=0.25", "warmup_start=0.5"]])
    prepare(point.config["data"], point.config["tokenizer"], cache, processes=1)
    point.folder.mkdir(parents=True)
    run = build_run(point.config, point.folder)
    train(run, {"threads": 1}, lambda: "SIGTERM")
    lr = point.plan.at(0).lr
    assert [group["lr"] for group in run.engine.optimizer.param_groups] == [lr, lr / 4, lr / 4]
