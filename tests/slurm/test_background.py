"""Sweeps in the background of this machine: `slurm=local`, and `fulcrum train` as the other commands see it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from data.files import read_json, read_lines
from data.records import checkpoints, live_holder
from slurm import manifest
from slurm.commands import described, standing

LONG = ["total_tokens=240000", "launch.log_every_tokens=1000", "launch.checkpoint.every_tokens=60000"]


@pytest.fixture
def sweep(tmp_path: Path) -> Iterator[Path]:
    """Where the sweep of a test will lie; a runner that a failed test left there is ended."""
    folder = tmp_path / "runs" / "grid"
    yield folder
    for submission in manifest.read(folder):
        if holder := live_holder(submission.folder):
            os.kill(pid_of(holder), signal.SIGKILL)


@pytest.fixture
def told(sweep) -> Callable[..., dict]:
    """What `status --json` says once `until` holds for it; asked here, as a process for each time would be the load."""

    def told(until: Callable[[dict], bool] = bool, deadline: float = 120) -> dict:
        end = time.monotonic() + deadline
        while True:
            status = described(sweep, standing(sweep))
            if until(status):
                return status
            assert time.monotonic() < end, status
            time.sleep(0.1)

    return told


def kinds(status: dict) -> list[str]:
    return [run["state"] for run in status["runs"]]


def all_are(*states: str) -> Callable[[dict], bool]:
    return lambda status: set(kinds(status)) <= set(states)


def trains(status: dict) -> bool:
    """Whether a run is under way and has logged something."""
    return any(run["state"] == "running" and run["tokens"] for run in status["runs"])


def pid_of(holder: str) -> int:
    return int(holder.split()[1])


def test_a_sweep_is_handed_over_at_once_and_trains_in_the_background(fulcrum, tiny, sweep, told):
    """Submitting again, while it trains or when it has ended, does nothing; the commands show it from first to last."""
    command = ["slurm", "submit", "-m", *tiny, "slurm=local", "seed=0,1", "launch.experiment=grid"]
    first = fulcrum(*command)
    assert first.returncode == 0, first.stderr
    assert "2 points in the background of this machine" in first.stderr
    assert not list(sweep.rglob("summary.json")), "it returned before anything was trained"
    assert live_holder(manifest.read(sweep)[0].folder), "the runner is there when the command returns"
    status = told()
    assert all_are("pending", "running")(status) and status["counts"].keys() <= {"pending", "running"}
    again = fulcrum(*command)
    assert again.returncode == 0 and "2 points, none of them new: nothing was submitted" in again.stderr

    watched = fulcrum("slurm", "status", "grid", "--watch", "0.2")
    assert watched.returncode == 0 and "2 runs: 2 completed" in watched.stdout
    for run in told()["runs"]:
        assert (run["state"], run["tokens"], run["total_tokens"], run["job"]) == ("completed", 6400, 6400, None)
        assert len(read_lines(sweep / run["run_id"] / "lives.jsonl")) == 1
    assert "none of them new" in fulcrum(*command).stderr
    over = fulcrum("slurm", "resubmit", "grid")
    assert over.returncode == 0 and "every point is finished or under way: nothing was submitted" in over.stderr
    assert len(manifest.read(sweep)) == 1
    assert "nothing is live" in fulcrum("slurm", "cancel", "grid").stderr
    logs = fulcrum("slurm", "logs", f"runs/grid/{run['run_id']}")
    assert "2 of 2 points completed" in logs.stdout, "what the runner printed"


def test_a_killed_runner_leaves_lost_runs_that_go_on_and_a_cancelled_one_its_checkpoint(fulcrum, tiny, sweep, told):
    """SIGKILL of the runner -> lost -> resubmit -> cancel, which checkpoints -> cancelled -> resubmit -> completed."""
    submitted = fulcrum("slurm", "submit", *tiny, *LONG, "slurm=local", "launch.experiment=grid")
    assert submitted.returncode == 0, submitted.stderr
    (run,) = told(trains)["runs"]
    folder = sweep / run["run_id"]
    assert run["total_tokens"] == 240000 and run["loss"] > 0 and run["seconds_left"] > 0
    runner = pid_of(live_holder(manifest.read(sweep)[0].folder))
    assert pid_of(run["job"]) != runner, "the run's own process is shown"
    os.kill(runner, signal.SIGKILL)
    (lost,) = told(lambda status: not all_are("running")(status))["runs"]
    assert lost["state"] == "lost" and lost["job"] is None and lost["seconds_left"] is None
    assert live_holder(folder) is None, "its process ended with it"
    assert (
        "1 point ended early: `fulcrum slurm resubmit runs/grid`"
        in fulcrum("slurm", "submit", *tiny, *LONG, "slurm=local", "launch.experiment=grid").stderr
    )

    assert fulcrum("slurm", "resubmit", "grid").returncode == 0
    started = len(read_lines(folder / "lives.jsonl"))
    told(lambda status: trains(status) and len(read_lines(folder / "lives.jsonl")) > started)
    cancelled = fulcrum("slurm", "cancel", "grid")
    assert cancelled.returncode == 0 and "asked 1 run to end" in cancelled.stderr
    (run,) = told(lambda status: not trains(status))["runs"]
    assert (run["state"], run["reason"]) == ("cancelled", "by `fulcrum slurm cancel`")
    stopped_at = checkpoints(folder)[-1]
    assert read_lines(folder / "lives.jsonl")[-1]["tokens_end"] <= stopped_at < 240000, "it kept all that it did"

    assert fulcrum("slurm", "resubmit", "grid", run["run_id"]).returncode == 0
    assert all_are("pending", "running")(told()), "how the last life ended is no news of this one"
    assert "nothing was submitted" in fulcrum("slurm", "resubmit", "grid").stderr
    told(all_are("completed"))
    lives = read_lines(folder / "lives.jsonl")
    assert lives[-1]["tokens_start"] == stopped_at and lives[-1]["tokens_end"] == 240000
    assert len(manifest.read(sweep)) == 3
    tokens = [row["tokens"] for row in read_lines(folder / "metrics.jsonl")]
    assert tokens == sorted(set(tokens)) and tokens[-1] == 240000


def test_a_sweep_in_the_foreground_is_seen_and_ended_by_the_same_commands(fulcrum, tiny, sweep, told, tmp_path):
    grid = [*tiny, *LONG, "total_tokens=1200000", "seed=0,1", "launch.parallel=1", "launch.experiment=grid"]
    process = subprocess.Popen(
        [sys.executable, "-m", "fulcrum", "train", "-m", *grid],
        cwd=tmp_path,
        env=os.environ | {"PYTHONSAFEPATH": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    while not manifest.read(sweep) and process.poll() is None:
        time.sleep(0.1)
    status = told(trains)
    assert sorted(kinds(status)) == ["pending", "running"]
    (waits,) = [run for run in status["runs"] if run["state"] == "pending"]
    assert waits["reason"] == "waits for its turn" and pid_of(waits["job"]) == process.pid
    refused = fulcrum("slurm", "cancel", "grid", waits["run_id"])
    assert refused.returncode == 1 and "cancel the whole sweep" in refused.stderr
    again = fulcrum("slurm", "submit", "-m", *grid, "slurm=local")
    assert again.returncode == 0 and "none of them new" in again.stderr, "whoever trains them"

    assert fulcrum("slurm", "cancel", "grid").returncode == 0
    _, words = process.communicate(timeout=60)
    assert process.returncode == 85 and "stopped by a signal" in words
    assert kinds(told()) == ["cancelled", "cancelled"]
    (trained,) = [run["run_id"] for run in status["runs"] if run is not waits]
    assert read_json(sweep / trained / "summary.json")["status"] == "preempted" and checkpoints(sweep / trained)


def test_data_that_cannot_be_prepared_is_the_reason_that_is_shown(fulcrum, tiny, sweep, told):
    nowhere = "data.sources.files.paths=[/nowhere/*.jsonl]"
    submitted = fulcrum("slurm", "submit", *tiny, nowhere, "slurm=local", "launch.experiment=grid")
    assert submitted.returncode == 0, submitted.stderr
    (run,) = told(lambda status: not all_are("pending", "running")(status))["runs"]
    assert run["state"] == "failed" and "data.sources.files: paths='/nowhere/*.jsonl' matches no file" in run["reason"]
    assert "matches no file" in fulcrum("slurm", "logs", run["run_id"]).stdout
    assert not (sweep / run["run_id"] / "lives.jsonl").exists()


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ("[[seed=0, slurm=local], [seed=1, slurm=cpu]]", "some points would train on this machine and some on Slurm"),
        ("[[seed=0, launch.threads=1], [seed=1, launch.threads=2]]", "launch.threads is 1 and 2 in this sweep"),
    ],
)
def test_points_that_one_runner_cannot_train_are_refused_before_anything_is_written(
    fulcrum, tiny, sweep, tmp_path, own, message
):
    (tmp_path / "points.yaml").write_text(own)
    refused = fulcrum("slurm", "submit", *tiny, "slurm=local", "launch.experiment=grid", "points=points.yaml")
    assert refused.returncode == 1 and message in refused.stderr and "Traceback" not in refused.stderr
    assert not sweep.exists()
