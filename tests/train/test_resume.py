"""Checkpoints and exact resumption, in this process: a run that is stopped and goes on is the run that was not."""

import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml

from conf.points import expand
from data.prepare import prepare
from train.run import build_run

pytestmark = pytest.mark.usefixtures("hydra_conf", "one_thread")


@pytest.fixture
def point(tiny, cache):
    (point,) = expand([[*tiny, "launch.log_every_tokens=1", "launch.checkpoint.every_tokens=1"]])
    prepare(point.config["data"], point.config["tokenizer"], cache, processes=1)
    point.folder.mkdir(parents=True)
    return point


@pytest.fixture
def rows(logged):
    return lambda point: logged(point.folder)


@pytest.mark.parametrize("stops", [[1], [7, 1, 11], [33]])
def test_a_stopped_run_goes_on_bit_for_bit(rows, life, weights, point, stops):
    status, whole = life(point)
    undisturbed = rows(point)
    assert status == "completed" and len(undisturbed) == 34
    shutil.rmtree(point.folder)
    point.folder.mkdir()
    for steps in stops:
        assert life(point, steps)[0] == "preempted"
    status, resumed = life(point)
    assert status == "completed"
    assert rows(point) == undisturbed
    torch.testing.assert_close(weights(resumed), weights(whole), rtol=0, atol=0)


@pytest.mark.parametrize("where", ["inside a segment", "at its edge", "in the last, cut batch"])
def test_a_ramp_killed_anywhere_goes_on_bit_for_bit(rows, life, weights, tiny, cache, where):
    """SIGKILL while a chosen step is under way, checkpoints every 7 steps or so; then the run is finished."""
    ramp = ["ramp=seesaw", "ramp.alpha=1.5", "total_tokens=12800"]
    (point,) = expand([[*tiny, *ramp, "launch.log_every_tokens=1", "launch.checkpoint.every_tokens=1400"]])
    segments, steps = point.plan.segments, point.plan.steps()
    edges = np.cumsum(segments.steps)
    planned = point.plan.ramp.segments(point.plan.schedule, point.plan.warmup_tokens, point.plan.total_tokens)
    assert len(edges) > 3 and steps.batch_size[-1] < planned[-1].batch_size
    killed = {"inside a segment": edges[1] - 2, "at its edge": edges[1], "in the last, cut batch": len(steps.lr) - 1}
    prepare(point.config["data"], point.config["tokenizer"], cache, processes=1)
    point.folder.mkdir(parents=True)
    status, whole = life(point)
    undisturbed = rows(point)
    assert status == "completed" and [row["batch_size"] for row in undisturbed] == steps.batch_size.tolist()
    shutil.rmtree(point.folder)
    point.folder.mkdir()
    (point.folder / "config.yaml").write_text(yaml.safe_dump(point.config))
    died = subprocess.run([sys.executable, "-c", KILLED_LIFE, str(point.folder), str(killed[where])])
    assert died.returncode == -signal.SIGKILL
    assert len(rows(point)) == killed[where]
    assert life(point)[0] == "completed"
    assert rows(point) == undisturbed
    finished = life(point)[1]  # a finished run only loads what it saved
    torch.testing.assert_close(weights(finished), weights(whole), rtol=0, atol=0)


KILLED_LIFE = """
import itertools, os, signal, sys
from pathlib import Path
import torch, yaml
from train.loop import train
from train.run import build_run

torch.set_num_threads(1)
folder, step = Path(sys.argv[1]), itertools.count()
kill = lambda: next(step) == int(sys.argv[2]) and os.kill(os.getpid(), signal.SIGKILL)
train(build_run(yaml.safe_load((folder / "config.yaml").read_text()), folder), {}, kill)
"""


def test_other_data_than_the_run_began_with_is_refused(life, point, texts, tmp_path):
    from data.records import write_once

    life(point, 3)
    run = build_run(point.config, point.folder)
    write_once(point.folder, run.identity)
    with pytest.raises(ValueError, match="data_fingerprint"):
        write_once(point.folder, run.identity | {"data_fingerprint": "another"})


@pytest.mark.parametrize("logger", ["tensorboard", "wandb"])
def test_loggers_write_beside_the_record(rows, life, point, tiny, logger):
    extra = ["launch.logger.offline=true"] if logger == "wandb" else []
    (logged,) = expand([[*tiny, f"logger={logger}", *extra]])
    assert logged.run_id == point.run_id
    status, _ = life(logged)
    assert status == "completed" and rows(logged)
    written = {"tensorboard": "tensorboard/events.out.*", "wandb": "wandb/offline-run-*/run-*.wandb"}
    assert list(point.folder.glob(written[logger]))
