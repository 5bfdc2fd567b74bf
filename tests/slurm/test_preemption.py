"""Pre-emption as most clusters do it: TERM to the processes of a job, and time to end."""

import os
import shutil
from pathlib import Path

import pytest

from .helpers import SMALL, queue, rows, status_of, submit, talk_to, wait_for

pytestmark = pytest.mark.slurm

FLAKY = """#!/bin/bash
if [ "$1" = requeue ] && mkdir {folder}/failed 2> /dev/null; then
    echo "slurm_requeue error: Unable to contact slurm controller" >&2
    exit 1
fi
exec {scontrol} "$@"
"""


@pytest.fixture
def flaky_controller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The first requeue fails, as while a controller restarts; the folder that says so once it has."""
    shim = tmp_path / "shim" / "scontrol"
    shim.parent.mkdir()
    shim.write_text(FLAKY.format(folder=tmp_path, scontrol=shutil.which("scontrol")))
    shim.chmod(0o755)
    monkeypatch.setenv("PATH", f"{shim.parent}{os.pathsep}{os.environ['PATH']}")
    return tmp_path / "failed"


def test_a_run_that_ends_in_its_grace_is_requeued_although_slurm_would_let_it_go(
    new_cluster, monkeypatch, fulcrum, tiny, tmp_path, flaky_controller
):
    cluster = new_cluster(nodes=1, asks_first=False)
    talk_to(cluster, monkeypatch)
    submit(fulcrum, *tiny, *SMALL, "total_tokens=250000", "launch.log_every_tokens=1", "slurm.partition=low")
    (run,) = (tmp_path / "runs" / "default").glob("r*")
    wait_for(lambda: len(rows(run / "metrics.jsonl")) > 3, "it trains")
    cluster.call("sbatch", "--partition=high", "--exclusive", "--output=/dev/null", "--wrap", "true")
    wait_for(lambda: any(row.get("requeued") for row in rows(run / "jobs.jsonl")), "it made room")
    wait_for(lambda: not queue(cluster), "both have ended")
    assert flaky_controller.is_dir(), "the first requeue failed"
    assert status_of(run.parent)[run.name]["state"] == "completed"
    first, second = rows(run / "lives.jsonl")
    assert first["exit"] == "preempted" and second["tokens_start"] == first["tokens_end"] > 0
    assert [row["reason"] for row in rows(run / "jobs.jsonl") if "status" in row] == ["SIGTERM", "budget"]
