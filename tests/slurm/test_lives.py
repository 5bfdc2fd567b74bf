"""A run on a cluster may have many lives: requeued, preempted, cancelled, its node lost. The numbers stay the same."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from data.files import read_json
from data.records import checkpoints, latest_row, live_holder

from ..conftest import TINY
from .cluster import Cluster
from .conftest import up
from .helpers import HELD, SMALL, queue, release, rows, status_of, submit, talk_to, wait_for

pytestmark = pytest.mark.slurm

TOKENS = 149_952
LONG = [f"total_tokens={TOKENS}", "launch.log_every_tokens=1"]
"""seconds of training, whole steps: a signal hits it in the middle"""


@pytest.fixture(autouse=True)
def login(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "cluster" in request.fixturenames:
        talk_to(request.getfixturevalue("cluster"), monkeypatch)


@pytest.fixture(scope="module")
def kept() -> dict[str, list[dict[str, Any]]]:
    return {}


@pytest.fixture
def undisturbed(kept, logged, fulcrum, tiny, tmp_path) -> Callable[[Path], list[dict[str, Any]]]:
    """A run's folder, of seed 0 or 1 -> what the same run logs that nobody disturbs, without Slurm."""

    def undisturbed(folder: Path) -> list[dict[str, Any]]:
        if not kept:
            result = fulcrum("train", "-m", *tiny, *LONG, "seed=0,1", f"launch.runs={tmp_path}/undisturbed")
            assert result.returncode == 0, result.stderr
            kept.update({path.name: logged(path) for path in (tmp_path / "undisturbed" / "default").glob("r*")})
        return kept[folder.name]

    return undisturbed


@pytest.fixture
def sweep(fulcrum, tiny, tmp_path) -> Callable[..., list[Path]]:
    """Overrides -> the folders of the points that they were submitted as, in the order of the grid."""

    def sweep(*overrides: str) -> list[Path]:
        submit(fulcrum, "-m", *tiny, *LONG, *SMALL, *overrides)
        folder = tmp_path / "runs" / "default"
        return [folder / point["run_id"] for point in read_json(folder / "sweep.json")["points"]]

    return sweep


def trains(*folders: Path) -> None:
    """Waits until these runs are in the middle of a life."""

    def trains(folder: Path) -> bool:
        life = (rows(folder / "lives.jsonl") or [{"exit": "not begun"}])[-1]
        return life["exit"] is None and latest_row(folder).get("tokens", 0) > life["tokens_start"] + 10_000

    wait_for(lambda: all(map(trains, folders)), "they train")


def ended(cluster: Cluster, sweep: Path) -> dict[str, dict[str, Any]]:
    """The status of a sweep once nothing runs or waits."""
    wait_for(lambda: not queue(cluster), "the queue is empty")  # squeue leaves the processors to the runs
    return status_of(sweep)


def task(folder: Path) -> str:
    """The job of a run as Slurm names it."""
    return began(folder)[-1]["job"]


def began(folder: Path) -> list[dict[str, Any]]:
    """Where its lives began, as the batch script saw it."""
    return [row for row in rows(folder / "jobs.jsonl") if "node" in row]


def ends(folder: Path) -> list[dict[str, Any]]:
    """How the lives of a run ended, as its batch script saw it."""
    return [row for row in rows(folder / "jobs.jsonl") if "status" in row]


def lives(folder: Path) -> list[tuple[str, int, int]]:
    """How each life of a run ended, and the tokens where it began and ended."""
    return [(life["exit"], life["tokens_start"], life["tokens_end"]) for life in rows(folder / "lives.jsonl")]


def test_usr1_requeues_exactly_this_task_which_goes_on_bit_for_bit(cluster, sweep, undisturbed, logged, fulcrum):
    """The last task of an array, whose job id is the array's own."""
    other, last = sweep("seed=0,1")
    trains(other, last)
    cluster.call("scancel", "--signal=USR1", task(last))
    wait_for(lambda: ends(last), "the signal ended the life")
    wait_for(lambda: status_of(last.parent)[last.name]["state"] == "pending", "it is requeued")
    assert status_of(last.parent)[last.name]["job"] == task(last)
    found = ended(cluster, last.parent)
    assert [found[folder.name]["state"] for folder in (other, last)] == ["completed", "completed"]
    (first, second) = lives(last)
    assert first[:2] == ("preempted", 0) and second == ("completed", first[2], TOKENS)
    assert [(end["reason"], end["requeued"]) for end in ends(last)] == [("SIGUSR1", True), ("budget", False)]
    assert len(lives(other)) == len(ends(other)) == 1
    assert len({row["job"] for row in began(last)}) == 1 and len(list(last.parent.glob("r*"))) == 2
    assert logged(last) == undisturbed(last) and logged(other) == undisturbed(other)


def test_a_preempted_run_waits_for_its_turn_and_goes_on_bit_for_bit(
    cluster, sweep, undisturbed, logged, fulcrum, tmp_path
):
    (run,) = sweep("seed=0", "slurm.partition=low")
    trains(run)
    until_gone = f"until [ -e {tmp_path}/go ]; do sleep 0.1; done"
    cluster.call("sbatch", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap", until_gone)
    wait_for(lambda: queue(cluster, "%P %T") == ["low PENDING", "high RUNNING"], "the run makes room")
    waits = status_of(run.parent)[run.name]
    assert waits["state"] == "pending" and waits["reason"] and 0 < waits["tokens"] < TOKENS
    (tmp_path / "go").touch()
    assert ended(cluster, run.parent)[run.name]["state"] == "completed"
    (first, second) = lives(run)
    assert first[0] == "preempted" and second == ("completed", first[2], TOKENS)
    assert ends(run)[0]["reason"] == "SIGUSR1"
    assert logged(run) == undisturbed(run)


def test_a_run_whose_node_fails_goes_on_on_another_bit_for_bit(cluster, sweep, undisturbed, logged, fulcrum):
    (run,) = sweep("seed=0")
    wait_for(lambda: len(checkpoints(run)) > 1, "there is a checkpoint")
    cluster.fail_node(began(run)[0]["node"])
    assert ended(cluster, run.parent)[run.name]["state"] == "completed"
    assert {row["node"] for row in began(run)} == set(cluster.nodes)
    (killed, second) = lives(run)
    assert killed[:2] == (None, 0) and second[0] == "completed" and 0 < second[1] < TOKENS
    assert logged(run) == undisturbed(run)


def test_lives_without_progress_and_too_many_lives_wait_for_resubmit(cluster, sweep, undisturbed, logged, fulcrum):
    """Requeued for ever, they would train nothing, or hide that a cluster never lets them finish."""
    often, early = sweep("seed=0,1", "slurm.max_restarts=1")
    for life in (1, 2):
        wait_for(lambda life=life: len(began(early)) == life and live_holder(early), "a process is starting")
        cluster.call("scancel", "--signal=USR1", task(early))
        trains(often)
        cluster.call("scancel", "--signal=USR1", task(often))
        wait_for(lambda life=life: len(ends(often)) == len(ends(early)) == life, "both have heard it")
    found = ended(cluster, often.parent)
    assert [found[run.name]["state"] for run in (often, early)] == ["preempted", "preempted"]
    assert found[often.name]["reason"] == "not requeued: slurm.max_restarts=1 is reached"
    assert found[early.name]["reason"].startswith("not requeued: two lives made no progress past 0 tokens; ")
    assert [end["requeued"] for run in (often, early) for end in ends(run)] == [True, False] * 2
    again = fulcrum("slurm", "resubmit", str(often.parent), often.name)
    assert again.returncode == 0 and "1 point" in again.stderr
    found = ended(cluster, often.parent)
    assert [found[run.name]["state"] for run in (often, early)] == ["completed", "preempted"]
    assert [start for _, start, _ in lives(often)] == [0, *(end for _, _, end in lives(often)[:-1])]
    assert logged(often) == undisturbed(often)


def test_cancelled_runs_are_not_requeued_and_resubmit_goes_on(cluster, sweep, undisturbed, logged, fulcrum):
    """By our command, which may name a run, and by a scancel by hand."""
    ours, by_hand = sweep("seed=0,1")
    trains(ours, by_hand)
    asked = fulcrum("slurm", "cancel", str(ours.parent), ours.name)
    assert asked.returncode == 0 and "asked 1 run to end" in asked.stderr
    assert status_of(ours.parent)[by_hand.name]["state"] == "running"
    cluster.call("scancel", task(by_hand))
    found = ended(cluster, ours.parent)
    assert [found[run.name]["state"] for run in (ours, by_hand)] == ["cancelled", "cancelled"]
    assert found[ours.name]["reason"] == "by `fulcrum slurm cancel`" and "CANCELLED" in found[by_hand.name]["reason"]
    again = fulcrum("slurm", "resubmit", str(ours.parent), ours.name)
    assert again.returncode == 0 and "1 point" in again.stderr
    found = ended(cluster, ours.parent)
    assert [found[run.name]["state"] for run in (ours, by_hand)] == ["completed", "cancelled"]
    (first, second) = lives(ours)
    assert first[0] == "preempted" and second == ("completed", first[2], TOKENS)
    assert logged(ours) == undisturbed(ours)


def test_a_requeue_in_mid_ramp_on_two_nodes_changes_no_bit(cluster, sweep, fulcrum, tiny, logged, tmp_path):
    """One process on each, ZeRO over gloo; the other run is on this machine, without Slurm."""
    ramp = ["ramp=seesaw", "ramp.batch_size=6", "total_tokens=60000", "strategy=zero2", "launch.devices=2"]
    (run,) = sweep(*ramp, "slurm.nodes=2")
    wait_for(lambda: latest_row(run).get("tokens", 0) > 20_000, "the ramp is under way")
    cluster.call("scancel", "--signal=USR1", task(run))
    assert ended(cluster, run.parent)[run.name]["state"] == "completed"
    (first, second) = lives(run)
    assert first[0] == "preempted" and second == ("completed", first[2], rows(run / "metrics.jsonl")[-1]["tokens"])
    result = fulcrum("train", *tiny, *LONG, *ramp, f"launch.runs={tmp_path}/undisturbed")
    assert result.returncode == 0, result.stderr
    steps = logged(run)
    assert steps == logged(tmp_path / "undisturbed" / "default" / run.name)
    (at_the_cut,) = [step["batch_size"] for step in steps if step["tokens"] == first[2]]
    assert steps[0]["batch_size"] < at_the_cut < steps[-1]["batch_size"]


def test_branches_wait_for_their_parent_and_a_failed_parent_is_named(cluster, fulcrum, tiny, tmp_path):
    """A file where the parent's checkpoints should lie is a disk's fault; mended, both are submitted again."""
    branch = [*tiny, "launch.log_every_tokens=1", f"parent.tokens={15 * 192}", "schedule=linear"]
    submit(fulcrum, *branch, *SMALL, HELD)
    folder = tmp_path / "runs" / "default"
    child, parent = sorted(folder.glob("r*"), key=lambda run: "parent: null" in (run / "config.yaml").read_text())
    (parent / "checkpoints").write_text("in the way")
    release(cluster)
    found = ended(cluster, folder)
    assert found[parent.name]["state"] == "failed"
    assert found[child.name]["reason"].startswith(f"its parent {parent.name} is failed: ") and not ends(child)

    (parent / "checkpoints").unlink()
    again = fulcrum("slurm", "resubmit", str(folder), "slurm.sbatch=[]")
    assert again.returncode == 0, again.stderr
    wait_for(lambda: status_of(folder)[child.name]["reason"] == "Dependency", "it waits for its parent")
    found = ended(cluster, folder)
    assert found[parent.name]["state"] == found[child.name]["state"] == "completed"
    assert lives(child) == [("completed", 15 * 192, 6400)]


# ---------------------------------------------------------------------------------------------------- ends


@dataclass
class Watched:
    """What became of one sweep on one cluster."""

    cluster: Cluster
    folders: dict[str, Path]
    """what was done to a run -> its folder"""
    after: dict[str, dict[str, Any]]
    """its status when it had ended"""
    forgotten: dict[str, dict[str, Any]]
    """and when squeue knew of none of them any more"""


def command(cluster: Cluster, cwd: Path, *words: object) -> None:
    """`fulcrum` on the login node of a cluster."""
    environment = os.environ | cluster.environment | {"PYTHONSAFEPATH": "1"}
    call = [sys.executable, "-m", "fulcrum", *map(str, words)]
    done = subprocess.run(call, cwd=cwd, env=environment, text=True, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def watched(texts: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[bool, Watched]]:
    """The same runs on a cluster without accounting and on one with it, until squeue has forgotten all their jobs."""
    data = [f"data.sources.files.paths=[{texts}/*.jsonl]", "data.heldout=0.1", f"launch.cache={cache}"]
    found, done = {}, []
    with ExitStack() as stack:
        clusters = [
            stack.enter_context(up(accounting=which, min_job_age=20, memory_mb=8000)) for which in (False, True)
        ]
        deeds = stack.enter_context(ThreadPoolExecutor())
        for cluster in clusters:
            where = tmp_path_factory.mktemp("ends")
            command(cluster, where, "data", *TINY, *data)
            told = found[cluster.accounting] = Watched(cluster, hand_over(cluster, where, [*TINY, *data]), {}, {})
            done += [deeds.submit(deed, told) for deed in (kill, time_out, ask) if deed.__name__ in told.folders]
        watch(found)
        for deed in done:
            deed.result()
        yield found


def hand_over(cluster: Cluster, where: Path, overrides: list[str]) -> dict[str, Path]:
    """Submits a run for every end that there is."""
    cases = {"breaks": '*"-m train"*) exit 3;; *) exec "$@";;', "hangs": '*"task begin"*) exec "$@";; *) sleep 1000;;'}
    for name, case in cases.items():
        (where / name).write_text(f"#!/bin/bash\ntrap '' TERM\ncase \"$*\" in {case} esac")
        (where / name).chmod(0o755)
    wanted = {
        "bad": [f"slurm.prefix=[{where}/breaks]", "seed=3"],
        "time_out": [f"slurm.prefix=[{where}/hangs]", "slurm.time=0:10:00", "seed=4"],
        "greedy": ["slurm.mem=150", "seed=5"],
        "good": [*SMALL, "seed=2"],
        "kill": [*LONG, *SMALL, "seed=1"],
        "ask": [*LONG, *SMALL, "seed=0"],
    }
    del wanted["ask" if cluster.accounting else "good"]  # both complete
    if not cluster.limits_memory:
        del wanted["greedy"]
    for words in wanted.values():
        command(cluster, where, "slurm", "submit", *overrides, *words)
    sweep = where / "runs/default"
    ids = [point["run_id"] for point in read_json(sweep / "sweep.json")["points"]]
    return {name: sweep / run_id for name, run_id in zip(wanted, ids, strict=True)}


def watch(found: dict[bool, Watched]) -> None:
    end = time.monotonic() + 200
    while not all(told.forgotten for told in found.values()):
        assert time.monotonic() < end, found
        for told in found.values():
            known = told.cluster.call("squeue", "--noheader", "--states=all")
            runs = status(told)
            told.after |= {name: r for name, r in runs.items() if r["state"] not in ("running", "pending", "lost")}
            told.forgotten = {} if known else runs
        time.sleep(0.5)


def kill(told: Watched) -> None:
    """Kills a run in mid-training, and at the same moment the script that would tell of it."""
    run = told.folders["kill"]
    wait_for(lambda: checkpoints(run), "there is a checkpoint")
    (submission,) = [path.parent for path in run.parent.glob(".jobs/*/folders") if str(run) in path.read_text()]
    script = subprocess.run(["pgrep", "-f", f"slurm_script {submission}"], text=True, capture_output=True).stdout
    for pid in (int(script), worker(run)):
        os.kill(pid, signal.SIGKILL)


def time_out(told: Watched) -> None:
    run = told.folders["time_out"]
    wait_for(lambda: began(run), "it hangs")
    limit(told.cluster, run, 0)


def ask(told: Watched) -> None:
    """Stops a run in mid-training, until Slurm wakes it with the signal, which may take half a minute."""
    run = told.folders["ask"]
    trains(run)
    os.kill(worker(run), signal.SIGSTOP)
    limit(told.cluster, run, 120)


def limit(cluster: Cluster, run: Path, seconds: int) -> None:
    """Gives the job of a run so many seconds more; the signal comes slurm.grace=120 seconds before that."""
    cluster.call("scontrol", "update", f"jobid={task(run)}", f"endtime=now+{seconds}seconds")


def status(told: Watched) -> dict[str, dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        talk_to(told.cluster, patch)
        sweep = told.folders["kill"].parent
        runs = status_of(sweep)
    return {name: runs[folder.name] for name, folder in told.folders.items()}


def worker(folder: Path) -> int:
    """The process that trains a run now."""
    return rows(folder / "lives.jsonl")[-1]["pid"]


def test_every_end_is_told_the_same_with_and_without_accounting(watched):
    ends = {
        "good": ("completed", "budget"),
        "bad": ("failed", "exit code 3: "),
        "greedy": ("out of memory", "emory"),  # two lines say it, in any order
        "time_out": ("timed out", "Slurm: TIMEOUT"),
        "kill": ("failed", "Slurm: FAILED"),
    }
    for told in watched.values():
        assert set(told.after) == set(told.folders)
        for name, run in told.after.items():
            state, reason = ends[name if name != "ask" else "good"]
            assert run["state"] == state and reason in run["reason"], (name, run)


def test_a_run_that_is_asked_before_its_time_limit_goes_on_bit_for_bit(watched, logged, undisturbed):
    """The time limit, which Slurm looks at twice a minute, was moved near once the run was in mid-training."""
    run = watched[False].folders["ask"]
    (first, second) = lives(run)
    assert first[0] == "preempted" and second == ("completed", first[2], TOKENS)
    assert [(end["reason"], end["requeued"]) for end in ends(run)] == [("SIGUSR1", True), ("budget", False)]
    assert logged(run) == undisturbed(run)


def test_a_job_that_is_killed_with_its_script_is_lost_or_known_to_the_accounting(watched):
    """Nothing was written, and squeue has forgotten it. What was written is still told."""
    without, having = watched[False].forgotten, watched[True].forgotten
    assert without["kill"]["state"] == without["time_out"]["state"] == "lost"
    assert "Slurm has forgotten the job" in without["kill"]["reason"]
    assert having["kill"]["state"] == "failed" and having["time_out"]["state"] == "timed out"
    for told in watched.values():
        written = {"good", "bad", "greedy"} & set(told.folders)
        assert all(told.forgotten[name] == told.after[name] for name in written)


def test_resubmit_takes_a_lost_run_from_its_checkpoint(watched, logged, undisturbed):
    told = watched[False]
    run = told.folders["kill"]
    command(told.cluster, run.parents[2], "slurm", "resubmit", run.parent, run.name)
    wait_for(lambda: not queue(told.cluster), "the queue is empty")
    assert status(told)["kill"]["state"] == "completed" and status(told)["time_out"]["state"] == "lost"
    (killed, second) = lives(run)
    assert killed[0] is None and second[0] == "completed" and second[1] > 0
    assert logged(run) == undisturbed(run)
