"""What tests of `fulcrum slurm` share: overrides, waiting, and what a sweep and its cluster say."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slurm.commands import described, standing

from .cluster import Cluster

SMALL = ["slurm.mem=1500", "slurm.time=0:10:00"]
"""fits the test clusters; importing torch takes about 600 MB"""
HELD = "slurm.sbatch=[--hold]"
"""Slurm takes the jobs and starts none of them; see `release`"""


def talk_to(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes this process, and the `fulcrum` that it calls, one on the cluster's login node."""
    for key, value in cluster.environment.items():
        monkeypatch.setenv(key, value)


def wait_for(done: Callable[[], Any], what: str, seconds: float = 120) -> Any:
    """What `done` gives as soon as that is true."""
    end = time.monotonic() + seconds
    while not (found := done()):
        assert time.monotonic() < end, f"after {seconds:g} s still not: {what}"
        time.sleep(0.2)
    return found


def submit(fulcrum: Callable[..., Any], *overrides: str, **how: Any) -> str:
    """What a submission says that goes well."""
    result = fulcrum("slurm", "submit", *overrides, **how)
    assert result.returncode == 0, result.stderr
    return result.stderr


def status_of(sweep: Path) -> dict[str, dict[str, Any]]:
    """run_id -> {label, state, reason, job, step, tokens, ...}, which `fulcrum slurm status --json` prints"""
    return {run["run_id"]: run for run in described(sweep, standing(sweep))["runs"]}


def ended(sweep: Path, seconds: float = 120) -> dict[str, dict[str, Any]]:
    """The status of a sweep once nothing of it runs or waits."""

    def all_ended() -> dict[str, dict[str, Any]]:
        runs = status_of(sweep)
        return {} if any(run["state"] in ("running", "pending") for run in runs.values()) else runs

    return wait_for(all_ended, f"{sweep} has ended", seconds)


def queue(cluster: Cluster, form: str = "%i") -> list[str]:
    """A line of squeue for each task that runs or waits."""
    return cluster.call("squeue", "--noheader", "--array", "--sort=i", f"--format={form}").splitlines()


def release(cluster: Cluster) -> None:
    """Lets all jobs go that were submitted with HELD."""
    for job in {task.split("_")[0] for task in queue(cluster)}:
        cluster.call("scontrol", "release", job)


def rows(path: Path) -> list[dict[str, Any]]:
    """Of a JSON-lines file; none where there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def lives(folder: Path) -> int:
    """How often a run was begun."""
    return len(rows(folder / "lives.jsonl"))
