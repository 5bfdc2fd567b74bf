"""Sweeps as a user runs them: real processes, real signals."""

import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from slurm import local


def records(runs: Path) -> dict[str, list[dict]]:
    """run_id -> rows of metrics.jsonl without what differs between two runs of the same numbers."""
    measured = {"tokens_per_second", "communication", "peak_memory"}
    return {
        path.parent.name: [
            {k: v for k, v in json.loads(line).items() if k not in measured and not k.startswith("seconds")}
            for line in path.read_text().splitlines()
        ]
        for path in sorted(runs.rglob("metrics.jsonl"))
    }


def summaries(runs: Path) -> dict[str, dict]:
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(runs.rglob("summary.json"))}


def test_a_sweep_trains_every_point_once_and_a_damaged_record_does_not_stop_the_others(fulcrum, tiny, tmp_path):
    grid = ["train", "-m", *tiny, "seed=0,1", "launch.experiment=grid"]
    first = fulcrum(*grid)
    assert first.returncode == 0, first.stderr
    assert "2 points: 0 finished, 2 to train" in first.stderr and "2 of 2 points completed" in first.stderr
    folders = sorted((tmp_path / "runs" / "grid").glob("r*"))
    assert len(folders) == 2
    for folder in folders:
        assert {"config.yaml", "run.json", "metrics.jsonl", "lives.jsonl", "summary.json"} <= set(os.listdir(folder))
        summary = json.loads((folder / "summary.json").read_text())
        assert summary["status"] == "completed" and summary["stop_reason"] == "budget" and summary["tokens"] == 6400
    before = records(tmp_path)
    second = fulcrum(*grid)
    assert second.returncode == 0 and "2 points: 2 finished, 0 to train" in second.stderr
    assert records(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["runs"], "nothing is left in the working directory"

    for folder in folders:
        (folder / "summary.json").unlink()
    (folder / "lives.jsonl").write_text("garbage\n{}\n")
    again = fulcrum(*grid)
    assert again.returncode == 1 and "1 of 2 points completed" in again.stderr
    assert f"{folder.name} could not be started" in again.stderr and "lives.jsonl, line 1" in again.stderr


def test_one_bad_point_starts_nothing(fulcrum, tiny, tmp_path):
    result = fulcrum("train", "-m", *tiny, "ramp.batch_size=4,100000")
    assert result.returncode == 1
    assert "1 of 2 points are not valid; nothing was started" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "runs").exists()


def test_settings_of_the_runner_are_the_same_for_all_points(fulcrum, tiny, tmp_path):
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "mixed.yaml").write_text(
        "# @package _global_\nseed: ${vars.k}\nlaunch: {parallel: '${vars.k}'}\nvars: {k: 1}\n"
    )
    result = fulcrum("train", "-m", *tiny, "experiment=mixed", "vars.k=1,2")
    assert result.returncode == 1 and "launch.parallel is 1 and 2 in this sweep" in result.stderr
    assert not (tmp_path / "runs").exists()


def test_data_that_does_not_fit_starts_nothing(fulcrum, tiny, tmp_path):
    result = fulcrum("train", *tiny, "sequence_length=50000", "total_tokens=100000", "ramp.batch_size=1")
    assert result.returncode == 1
    assert "sequence_length=50000" in result.stderr and "Traceback" not in result.stderr
    assert not list((tmp_path / "runs").rglob("config.yaml"))


def test_a_failed_or_diverged_point_does_not_stop_the_others(fulcrum, tiny, tmp_path):
    """A huge rate without clipping overflows; a file where the checkpoints should lie is a disk's fault."""
    sweep = ["train", "-m", *tiny, "clip_norm=0", "optimizer.weight_decay=0"]
    first = fulcrum(*sweep, "peak_lr=1e-2,1e30")
    assert first.returncode == 1
    assert sorted(s["status"] for s in summaries(tmp_path).values()) == ["completed", "diverged"]
    assert "peak_lr=1e+30: non-finite loss or gradient" in first.stderr and "output.log" in first.stderr
    (diverged,) = [s for s in summaries(tmp_path).values() if s["status"] == "diverged"]
    assert diverged["samples"][1] - diverged["samples"][0] == 6 and "grad_norm" in diverged

    (completed,) = [run for run, s in summaries(tmp_path).items() if s["status"] == "completed"]
    folder = tmp_path / "runs" / "default" / completed
    shutil.rmtree(folder / "checkpoints")
    (folder / "checkpoints").write_text("in the way")
    (folder / "summary.json").unlink()
    second = fulcrum(*sweep, "peak_lr=1e-2,1e30,2e-2")
    assert second.returncode == 1
    assert "3 points: 1 finished, 2 to train" in second.stderr and "1 of 3 points completed" in second.stderr
    assert "peak_lr=0.01: OSError: the checkpoint at" in second.stderr

    (folder / "checkpoints").unlink()
    third = fulcrum(*sweep, "peak_lr=1e-2,1e30", "launch.retry=diverged")
    assert "2 points: 0 finished, 2 to train" in third.stderr and "1 of 2 points completed" in third.stderr


def test_more_unique_tokens_than_there_are_start_nothing(fulcrum, tiny, tmp_path):
    result = fulcrum("train", *tiny, "unique_tokens=1e9")
    assert result.returncode == 1 and "unique_tokens=1000000000" in result.stderr
    assert not list((tmp_path / "runs").rglob("config.yaml"))


def start(*arguments: str, cwd: Path) -> subprocess.Popen:
    environment = os.environ | {"PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-m", "fulcrum", *arguments]
    return subprocess.Popen(command, cwd=cwd, env=environment, stderr=subprocess.DEVNULL, start_new_session=True)


def workers_of(runs: Path) -> list[int]:
    """Processes that train a run below `runs`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"train" in words and any(word.startswith(str(runs).encode()) for word in words):
            found.append(int(path.parent.name))
    return found


@pytest.mark.skipif(not Path("/proc").exists(), reason="needs /proc to find processes")
def test_a_sweep_killed_at_any_moment_ends_as_an_undisturbed_one(fulcrum, tiny, tmp_path):
    """SIGKILL of the runner (its workers must end with it) or of a worker, while they start and while they train."""
    sweep = ["train", "-m", *tiny, "ramp=constant,seesaw", "total_tokens=150000", "launch.checkpoint.every_tokens=9000"]
    undisturbed = fulcrum(*sweep, f"launch.runs={tmp_path}/undisturbed")
    assert undisturbed.returncode == 0, undisturbed.stderr
    runs, draw = tmp_path / "killed", random.Random(0)
    kills = 0
    for kills_worker, trains in [(False, False), (False, True), (True, False), (True, True)]:
        before = logged_bytes(runs)
        process = start(*sweep, f"launch.runs={runs}", cwd=tmp_path)
        while process.poll() is None and not workers_of(runs):
            time.sleep(0.05)
        # importing torch takes seconds, as does the training that follows
        deadline = time.monotonic() + 30
        while process.poll() is None and time.monotonic() < deadline and trains and logged_bytes(runs) <= before:
            time.sleep(0.02)
        time.sleep(draw.uniform(0, 0.6) if trains else draw.uniform(2, 4))
        if process.poll() is None:
            victims = workers_of(runs)[:1] if kills_worker else [process.pid]
            for victim in victims:
                os.kill(victim, signal.SIGKILL)
                kills += 1
        process.kill()
        process.wait()
        deadline = time.monotonic() + 20
        while workers_of(runs) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not workers_of(runs), "workers outlived their runner"
    assert kills >= 3
    final = fulcrum(*sweep, f"launch.runs={runs}")
    assert final.returncode == 0, final.stderr
    assert records(runs) == records(tmp_path / "undisturbed")
    for run_id, summary in summaries(tmp_path / "undisturbed").items():
        assert summaries(runs)[run_id]["eval_loss"] == summary["eval_loss"]


def lives_of(folder: Path) -> int:
    return sum(len(path.read_text().splitlines()) for path in folder.rglob("lives.jsonl"))


def logged_bytes(runs: Path) -> int:
    return sum(path.stat().st_size for path in runs.rglob("metrics.jsonl"))


def test_a_live_run_is_refused_sigterm_checkpoints_it_and_a_kill_leaves_no_word_of_that(fulcrum, tiny, tmp_path):
    """Preempted, resumed, then killed: the run is unfinished, at whatever tokens it had."""
    sweep = ["train", *tiny, "total_tokens=1200000", "launch.log_every_tokens=1000"]

    def started(life: int) -> subprocess.Popen:
        process = start(*sweep, cwd=tmp_path)
        while process.poll() is None and not (lives_of(tmp_path) == life and logged_bytes(tmp_path / "runs")):
            time.sleep(0.05)
        return process

    process = started(1)
    second = fulcrum(*sweep)
    assert second.returncode == 1 and "being written right now" in second.stderr
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 85
    (summary,) = summaries(tmp_path).values()
    assert summary["status"] == "preempted"
    (folder,) = (tmp_path / "runs").rglob("checkpoints")
    (newest,) = sorted(folder.iterdir())[-1:]
    assert 0 < int(newest.name) < 1200000

    process = started(2)
    process.kill()
    process.wait(timeout=60)
    listed = json.loads(fulcrum("runs", "runs=runs", "format=json", "columns=[status]").stdout)
    assert listed == [{"status": "unfinished"}] and not summaries(tmp_path)


def test_the_first_rank_to_fail_is_named_and_the_other_does_not_hang(fulcrum, tiny, tmp_path):
    sweep = ["train", *tiny, "total_tokens=600000", "strategy=ddp", "launch.devices=2", "launch.log_every_tokens=1000"]
    process = start(*sweep, cwd=tmp_path)
    while process.poll() is None and not logged_bytes(tmp_path / "runs"):
        time.sleep(0.05)
    (rank_1,) = [
        worker
        for worker in workers_of(tmp_path / "runs")
        if b"RANK=1" in Path(f"/proc/{worker}/environ").read_bytes().split(b"\0")
    ]
    os.kill(rank_1, signal.SIGKILL)
    assert process.wait(timeout=60) == 1
    (summary,) = summaries(tmp_path).values()
    assert summary["status"] == "failed" and summary["stop_reason"].startswith("rank 1: killed by SIGKILL")


def test_of_processes_seen_to_end_at_once_the_killed_one_is_to_blame(tmp_path):
    wrong, killed = subprocess.Popen(["false"]), subprocess.Popen(["sleep", "60"])
    killed.kill()
    wrong.wait(), killed.wait()
    run = local.Running(SimpleNamespace(folder=tmp_path), [wrong, killed], os.open(tmp_path, os.O_RDONLY), 0, 0)
    (tmp_path / "output.log").touch()
    (tmp_path / "summary.json").write_text('{"status": "failed", "stop_reason": "connection reset"}')
    assert local.ended(run)
    local.conclude(run)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["stop_reason"] == "rank 1: killed by SIGKILL; then connection reset"


def test_a_search_goes_on_until_its_best_is_bracketed_and_then_trains_nothing(fulcrum, tiny, tmp_path):
    search = ["train", *tiny, "launch.search.over=[peak_lr]", "launch.search.factor=30", "peak_lr=1e-2"]
    first = fulcrum(*search, "total_tokens=1920")
    found = {}
    for folder in (tmp_path / "runs" / "default").glob("r*"):
        loss = json.loads((folder / "summary.json").read_text()).get("eval_loss", math.inf)
        found[float(re.search(r"^peak_lr: (.*)$", (folder / "config.yaml").read_text(), re.M)[1])] = loss
    rates = sorted(found)
    assert rates[0] < min(rates, key=found.get) < rates[-1], first.stderr
    again = fulcrum(*search, "total_tokens=1920")
    assert f"{len(rates)} points: {len(rates)} finished, 0 to train" in again.stderr


def test_a_batch_that_is_more_than_the_data_starts_nothing(fulcrum, tiny, tmp_path):
    """Of a sweep whose other point is good: known only once the data are prepared, and still before training."""
    result = fulcrum("train", "-m", *tiny, "ramp.batch_size=6,4000", "total_tokens=640000")
    assert result.returncode == 1 and "the largest batch has 4000 sequences, the data" in result.stderr
    assert not logged_bytes(tmp_path / "runs")


def test_a_users_own_experiment_works_far_from_the_checkout(fulcrum, tiny, tmp_path):
    """Also with a data/ folder and a train.py of the user's own beside it, which must not shadow ours."""
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "data").mkdir()
    (tmp_path / "train.py").write_text("raise SystemExit('the wrong train')")
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text(
        "# @package _global_\nhydra: {mode: MULTIRUN, sweeper: {params: {seed: '0,1'}}}\nschedule: {final: 0.5}\n"
    )
    result = fulcrum("train", *tiny, "experiment=mine")
    assert result.returncode == 0, result.stderr
    assert len(list((tmp_path / "runs" / "mine").glob("r*/summary.json"))) == 2
    shown = fulcrum("data", *tiny, "experiment=mine")
    assert shown.returncode == 0 and "held" in shown.stdout and "points" not in shown.stderr, "data does not train"
    misspelt = tmp_path / "conf" / "experiment" / "misspelt.yaml"
    misspelt.write_text("# @package _global_\ntotl_tokens: 5\n")
    result = fulcrum("train", *tiny, "experiment=misspelt")
    assert result.returncode == 1 and "totl_tokens" in result.stderr


def test_two_processes_follow_the_same_losses_as_one(fulcrum, tiny, tmp_path):
    both = ["launch.log_every_tokens=1", "averages=standard"]
    for name, layout in {
        "single": [],
        "ddp": ["strategy=ddp", "launch.devices=2", "launch.micro_batch_size=2"],
    }.items():
        result = fulcrum("train", *tiny, *layout, *both, f"launch.runs={tmp_path}/{name}")
        assert result.returncode == 0, (result.stderr, [p.read_text() for p in tmp_path.rglob("output.log")])
    (single,), (ddp,) = records(tmp_path / "single").values(), records(tmp_path / "ddp").values()
    assert len(single) == len(ddp) == 34
    for one, two in zip(single, ddp, strict=True):
        assert one.keys() == two.keys()
        for key in one.keys() - {"noise_scale"}:  # one process makes one micro-batch of a step
            assert one[key] == two[key] or abs(one[key] - two[key]) <= 1e-5 * abs(one[key]), key
    assert {"eval_loss_half_life", "eval_loss_growing", "eval_loss_tail"} <= single[-1].keys()
