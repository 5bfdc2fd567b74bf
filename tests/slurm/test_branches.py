"""Sweeps with branches as a user runs them: real processes, real checkpoints, real signals."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conf.points import expand

STEP = 6 * 32
KEYS = ("tokens", "samples", "flops", "lr", "batch_size", "loss", "grad_norm", "eval_loss", "eval_bits_per_byte")
TRUNK = ["schedule=constant", "warmup_tokens=640", "total_tokens=12800"]
EVERY_STEP = "launch.log_every_tokens=1"


def rows(folder: Path) -> list[dict]:
    """Of metrics.jsonl, without time and memory."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key in ("step", *KEYS)} for line in lines]


def runs_below(runs: Path) -> tuple[Path, list[Path]]:
    """The folder of the one parent, and those of its branches by their budget."""
    folders = {path.parent: json.loads(path.read_text()) for path in runs.rglob("run.json")}
    (parent,) = [folder for folder, run in folders.items() if run["parent"] is None]
    branches = [folder for folder, run in folders.items() if run["parent"] is not None]
    return parent, sorted(branches, key=lambda folder: folders[folder]["total_tokens"])


@pytest.fixture
def decays(tiny):
    """Overrides of a grid of two decays of one trunk."""
    grid = [text for text in tiny if not text.startswith("total_tokens")]
    parent = f"parent.overrides=[{','.join(TRUNK)}]"
    tokens = "parent.tokens=${mul:0.75,${total_tokens}}"
    return [
        "train",
        "-m",
        *grid,
        EVERY_STEP,
        "schedule=wsd",
        "warmup_tokens=640",
        "total_tokens=6400,9600",
        tokens,
        parent,
    ]


def test_branches_go_on_with_the_clock_of_their_parent_which_is_trained_once(fulcrum, decays, tmp_path):
    result = fulcrum(*decays)
    assert result.returncode == 0, (result.stderr, [p.read_text() for p in tmp_path.rglob("output.log")])
    assert "3 points: 0 finished, 3 to train" in result.stderr and "3 of 3 points completed" in result.stderr
    trunk, branches = runs_below(tmp_path / "runs")
    trained = rows(trunk)
    assert len(branches) == 2 and trained[-1]["tokens"] == 12800
    for folder, total in zip(branches, (6400, 9600), strict=True):
        start = int(0.75 * total) // STEP * STEP
        record, own = json.loads((folder / "run.json").read_text()), rows(folder)
        assert record["parent"] == {"run_id": trunk.name, "tokens": start}
        assert (trunk / "checkpoints" / f"{start:012d}" / "manifest.json").exists(), "kept for good"
        assert [row["tokens"] for row in own] == [*range(start + STEP, total, STEP), total]
        assert [row["step"] for row in own] == list(range(1, len(own) + 1))
        assert all(row["samples"] * 32 == row["tokens"] for row in own)
        assert own[0]["flops"] / own[0]["tokens"] == pytest.approx(record["flops_per_token"])
        (same,) = [row for row in trained if row["tokens"] == own[0]["tokens"]]
        keys = ("loss", "grad_norm", "lr", "samples", "flops", "batch_size")
        assert [own[0][key] for key in keys] == [same[key] for key in keys], "the weights and samples of its parent"
        lives = [json.loads(line) for line in (folder / "lives.jsonl").read_text().splitlines()]
        assert len(lives) == 1 and lives[0]["tokens_end"] == total
    again = fulcrum(*decays)
    assert again.returncode == 0 and "3 points: 3 finished, 0 to train" in again.stderr
    listed = fulcrum("runs", "runs=runs")
    assert trunk.name in listed.stdout and "own FLOPs" in listed.stdout


def test_a_branch_that_changes_nothing_is_the_rest_of_its_parent_bit_for_bit(fulcrum, tiny, tmp_path):
    """Optimizer state included: a momentum that was lost would show in the first step."""
    result = fulcrum("train", *tiny, EVERY_STEP, f"parent.tokens={15 * STEP}", "schedule=linear")
    assert result.returncode == 0, (result.stderr, [p.read_text() for p in tmp_path.rglob("output.log")])
    trunk, (branch,) = runs_below(tmp_path / "runs")
    rest = [row for row in rows(trunk) if row["tokens"] > 15 * STEP]
    own = rows(branch)
    assert len(rest) == len(own) > 10
    assert [{**row, "step": row["step"] + 15} for row in own] == rest
    assert {"loss", "grad_norm", "eval_loss"} <= set(own[-1])


def test_a_later_sweep_branches_off_a_finished_run_where_it_kept_a_checkpoint(fulcrum, tiny, tmp_path):
    grid = [text for text in tiny if not text.startswith("total_tokens")]
    first = fulcrum("train", *grid, *TRUNK, f"launch.checkpoint.marks=[{20 * STEP}]")
    assert first.returncode == 0, first.stderr
    branch = ["train", *grid, "schedule=wsd", "warmup_tokens=640", "total_tokens=6400"]
    parent = f"parent.overrides=[{','.join(TRUNK)}]"
    missing = fulcrum(*branch, parent, f"parent.tokens={10 * STEP}")
    assert missing.returncode == 1 and f"at {10 * STEP} tokens; it has " in missing.stderr
    assert len(list((tmp_path / "runs").rglob("config.yaml"))) == 1, "nothing was started"
    there = fulcrum(*branch, parent, f"parent.tokens={20 * STEP}")
    assert there.returncode == 0 and "2 points: 1 finished, 1 to train" in there.stderr, there.stderr


def test_a_branch_whose_parent_fell_is_listed_and_the_others_go_on(fulcrum, decays, tmp_path):
    """The trunk diverges before it reaches a mark; a point beside it does not care."""
    bad = [
        *decays[:-1],
        f"parent.overrides=[{','.join(TRUNK)},peak_lr=1e30]",
        "clip_norm=0",
        "optimizer.weight_decay=0",
    ]
    result = fulcrum(*bad)
    assert result.returncode == 1
    assert result.stderr.count("not started: ") == 2 and "is diverged" in result.stderr
    assert "0 of 3 points completed" in result.stderr and "Traceback" not in result.stderr
    assert len(list((tmp_path / "runs").rglob("run.json"))) == 1, "the branches have no record"
    again = fulcrum(*bad)
    assert again.returncode == 1 and again.stderr.count("not started: ") == 2


def test_a_sweep_of_branches_that_was_stopped_goes_on_as_if_it_had_not_been(fulcrum, tiny, tmp_path):
    """Stopped while the trunk trains and its branch waits."""
    sweep = ["train", *tiny, EVERY_STEP, "schedule=wsd", f"parent.tokens={20 * STEP}", "launch.parallel=1"]
    sweep.append("parent.overrides=[schedule=linear]")
    undisturbed = fulcrum(*sweep, f"launch.runs={tmp_path}/undisturbed")
    assert undisturbed.returncode == 0, undisturbed.stderr
    runs = tmp_path / "stopped"
    process = subprocess.Popen(
        [sys.executable, "-m", "fulcrum", *sweep, f"launch.runs={runs}"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONSAFEPATH": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and not any(path.stat().st_size for path in runs.rglob("metrics.jsonl")):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 85 and "not started" not in said, "a branch that waits is no failure"
    last = fulcrum(*sweep, f"launch.runs={runs}")
    assert last.returncode == 0 and "2 of 2 points completed" in last.stderr, last.stderr
    folders = list((tmp_path / "undisturbed" / "default").glob("r*"))
    assert len(folders) == 2
    for folder in folders:
        assert rows(runs / "default" / folder.name) == rows(folder)


@pytest.mark.usefixtures("hydra_conf")
def test_a_branch_starts_once_its_checkpoint_is_there_or_when_it_has_its_own(tiny):
    from slurm.local import startable

    parent, child = expand([[*tiny, f"parent.tokens={10 * STEP}", "schedule=linear"]])
    assert startable(parent) and not startable(child)
    kept = parent.folder / "checkpoints" / f"{10 * STEP:012d}"
    kept.mkdir(parents=True)
    assert not startable(child), "without its manifest a checkpoint does not count"
    (kept / "manifest.json").write_text("{}")
    assert startable(child)
    (parent.folder / "summary.json").write_text('{"status": "diverged"}')
    assert startable(child)
    child.config["launch"]["retry"] = "diverged"
    assert not startable(child), "the parent starts anew and takes its checkpoints with it"
    shutil.rmtree(kept)
    own = child.folder / "checkpoints" / f"{15 * STEP:012d}"
    own.mkdir(parents=True)
    (own / "manifest.json").write_text("{}")
    assert startable(child), "it resumes"


@pytest.mark.usefixtures("hydra_conf")
def test_a_label_says_where_a_branch_starts_and_not_how_that_was_written(tiny):
    from slurm.display import short_labels

    grid = [[*tiny, f"clip_norm={norm}", "parent.tokens=2000", "parent.overrides=[clip_norm=1]"] for norm in (2, 3)]
    points = expand(grid)
    labels = short_labels(points)
    parent, first, second = (labels[point.run_id].removeprefix(point.run_id).strip() for point in points)
    origin = f"from {points[0].run_id} at 1,920 tokens"
    assert (parent, first, second) == ("clip_norm=1", f"clip_norm=2 {origin}", f"clip_norm=3 {origin}")


def test_a_plan_shows_where_a_branch_goes_on(fulcrum, decays, tmp_path):
    shown = fulcrum("plan", *decays[1:], "format=json")
    assert shown.returncode == 0, shown.stderr
    described = json.loads(shown.stdout)
    assert [plan["start_tokens"] for plan in described] == [4800 // STEP * STEP, 7200 // STEP * STEP]
    (parent,) = {plan["parent"] for plan in described}
    for plan in described:
        assert f"from {parent} at {plan['start_tokens']:,} tokens" in plan["label"]
        assert plan["segments"][0]["tokens"] == plan["start_tokens"]
    table = fulcrum("plan", *decays[1:])
    assert "Steps of a branch are those it makes itself" in table.stdout
    assert not (tmp_path / "runs").exists()
