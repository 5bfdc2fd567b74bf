"""`fulcrum slurm submit` and `resubmit` against a real Slurm: what is handed over, and what a crash leaves."""

import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import yaml

from data.version import ROOT

from .helpers import HELD, SMALL, ended, lives, queue, release, rows, status_of, submit, talk_to, wait_for

pytestmark = pytest.mark.slurm


@pytest.fixture
def slurm(cluster, monkeypatch):
    """The cluster, with this process on its login node."""
    talk_to(cluster, monkeypatch)
    return cluster


@pytest.fixture
def prepared(fulcrum, tiny, cache):
    """Overrides of a small run whose data are prepared."""
    if not (cache / "tokens").exists():
        assert fulcrum("data", *tiny).returncode == 0
    return [*tiny, *SMALL, "launch.experiment=sweep"]


@pytest.fixture
def sweep(tmp_path):
    return tmp_path / "runs" / "sweep"


def arrays(sweep: Path) -> list[list[str]]:
    """The runs of each array that Slurm took."""
    events = rows(sweep / ".jobs" / "manifest.jsonl")[1:]
    taken = {event["submission"] for event in events if "job" in event}
    return [event["run_ids"] for event in events if event.get("kind") == "slurm" and event["submission"] in taken]


# ---------------------------------------------------------------------------------------------------- what is new


def test_only_what_failed_is_submitted_again(fulcrum, prepared, slurm, sweep):
    """A file lies where the checkpoints of one of two points should."""
    submit(fulcrum, "-m", *prepared, HELD, "seed=0,1")
    good, bad = status_of(sweep)
    in_the_way = sweep / bad / "checkpoints"
    in_the_way.write_text("")
    release(slurm)
    first = ended(sweep)
    assert (first[good]["state"], first[bad]["state"]) == ("completed", "failed")
    assert "OSError" in first[bad]["reason"] and str(in_the_way) in first[bad]["reason"]

    wait_for(lambda: not queue(slurm), "no jobs")
    in_the_way.unlink()
    untouched = {path.name: path.stat().st_mtime_ns for path in (sweep / good).iterdir()}
    again = fulcrum("slurm", "resubmit", str(sweep), "slurm.sbatch=[]")
    assert again.returncode == 0, again.stderr
    second = ended(sweep)
    assert second[bad]["state"] == "completed" and second[bad]["tokens"] == 6400
    assert second[good] == first[good] and second[bad]["job"] != first[bad]["job"]
    assert {path.name: path.stat().st_mtime_ns for path in (sweep / good).iterdir()} == untouched
    assert arrays(sweep) == [[good, bad], [bad]] and lives(sweep / good) == 1
    third = fulcrum("slurm", "resubmit", str(sweep))
    assert third.returncode == 0 and "nothing was submitted" in third.stderr and len(arrays(sweep)) == 2


def test_the_same_command_again_does_nothing_and_a_wider_grid_adds_what_is_new(fulcrum, prepared, slurm, sweep):
    grid = ["-m", *prepared, HELD]
    submit(fulcrum, *grid, "seed=0,1")
    asked = queue(slurm)
    assert len(asked) == 2
    assert "2 points, none of them new: nothing was submitted" in submit(fulcrum, *grid, "seed=0,1")
    assert queue(slurm) == asked and len(arrays(sweep)) == 1
    submit(fulcrum, *grid, "seed=0,1,2")
    first, second = arrays(sweep)
    assert len(first) == 2 and len(second) == 1 and second[0] not in first
    assert len(queue(slurm)) == 3 and set(asked) < set(queue(slurm))
    assert {run["state"] for run in status_of(sweep).values()} == {"pending"}
    assert fulcrum("slurm", "cancel", str(sweep)).returncode == 0
    wait_for(lambda: not queue(slurm), "no jobs")
    said = submit(fulcrum, *grid, "seed=0,1,2")
    assert "3 points ended early: `fulcrum slurm resubmit runs/sweep`" in said and not queue(slurm)


def test_a_run_out_of_memory_completes_with_more(fulcrum, prepared, slurm, sweep):
    if not slurm.limits_memory:
        pytest.skip("Slurm limits memory here only with the first version of cgroups")
    submit(fulcrum, *prepared, "slurm.mem=150")
    ((run_id, run),) = ended(sweep).items()
    assert run["state"] == "out of memory", run
    again = fulcrum("slurm", "resubmit", str(sweep), "slurm.mem=1500")
    assert again.returncode == 0, again.stderr
    assert ended(sweep)[run_id]["state"] == "completed"


# ---------------------------------------------------------------------------------------------------- in the queue


def test_a_run_that_waits_shows_why(fulcrum, prepared, slurm, sweep):
    slurm.call("sbatch", "--nodes=2", "--exclusive", "--mem=0", "--output=/dev/null", "--wrap", "sleep 300")
    wait_for(lambda: queue(slurm, "%T") == ["RUNNING"], "all nodes are taken")
    submit(fulcrum, *prepared)
    submit(fulcrum, *prepared, HELD, "seed=1")

    def waiting() -> list[tuple[str, str]]:
        return sorted((run["state"], run["reason"]) for run in status_of(sweep).values())

    wait_for(lambda: waiting() == [("pending", "JobHeldUser"), ("pending", "Resources")], "both reasons are known")
    text = fulcrum("slurm", "status", str(sweep)).stdout
    assert "Resources" in text and "2 runs: 2 pending" in text


def test_nodes_that_are_away_for_now_are_waited_for(fulcrum, prepared, slurm, sweep):
    """A test of sbatch refuses what they alone could run, in the words it has for what no node could."""
    nodes = f"nodename={','.join(slurm.nodes)}"
    slurm.call("scontrol", "update", nodes, "state=drain", "reason=maintenance")
    try:
        submit(fulcrum, *prepared)
        assert [run["state"] for run in status_of(sweep).values()] == ["pending"]
        assert len(queue(slurm)) == 1
    finally:
        slurm.call("scontrol", "update", nodes, "state=resume")


@pytest.mark.parametrize(("points", "chunk"), [(50, 16), pytest.param(200, 64, marks=pytest.mark.long)])
def test_many_points_go_in_chunks_that_wait_for_one_another(
    fulcrum, prepared, new_cluster, monkeypatch, sweep, points, chunk
):
    small = new_cluster(nodes=1, max_array_size=chunk)
    talk_to(small, monkeypatch)
    submit(fulcrum, "-m", *prepared, HELD, f"seed=range({points})", "slurm.parallel=3")
    last = points - 3 * chunk
    assert [len(array) for array in arrays(sweep)] == [chunk, chunk, chunk, last]
    assert len({run_id for array in arrays(sweep) for run_id in array}) == points
    listed = small.call("squeue", "--noheader", "--sort=i", "--format=%F %K %E").splitlines()
    jobs, tasks, waits_for = zip(*(line.split() for line in listed), strict=True)
    assert tasks == (f"0-{chunk - 1}%3",) * 3 + (f"0-{last - 1}%3",)
    assert waits_for == ("(null)", *(f"afterany:{job}_*(unfulfilled)" for job in jobs[:-1]))
    runs = status_of(sweep)
    assert len(runs) == points and {run["state"] for run in runs.values()} == {"pending"}
    assert len({run["job"] for run in runs.values()}) == points
    assert fulcrum("slurm", "cancel", str(sweep)).returncode == 0
    wait_for(lambda: not queue(small), "no jobs")
    assert {run["state"] for run in status_of(sweep).values()} == {"cancelled"}


# ---------------------------------------------------------------------------------------------------- names and code


def test_names_that_a_shell_would_change_train_and_are_recorded_as_they_are(fulcrum, prepared, slurm, tmp_path):
    name = 'a b, "c" $HOME'
    quoted = "'" + name + "'"
    (tmp_path / name).mkdir()
    options = [f"label={quoted}", f"launch.runs={quoted}", f"launch.experiment={quoted}"]
    submit(fulcrum, *prepared, *options, cwd=tmp_path / name)
    sweep = tmp_path / name / name / name
    ((run_id, run),) = ended(sweep).items()
    assert run["state"] == "completed", [path.read_text() for path in sweep.rglob("*.out")]
    config = yaml.safe_load((sweep / run_id / "config.yaml").read_text())
    record = json.loads((sweep / run_id / "run.json").read_text())
    assert config["label"] == config["launch"]["runs"] == name
    assert (record["experiment"], record["run_id"]) == (name, run_id)
    assert sorted(path.name for path in tmp_path.iterdir()) == [name], "nothing lies anywhere else"


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout of the code as it is now, which `fulcrum` runs from."""
    folder = tmp_path / "checkout"
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-coz", "--exclude-standard"], text=True, capture_output=True, check=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "as it was"]):
        own = ["-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "core.hooksPath=/dev/null"]
        subprocess.run(["git", "-C", str(folder), *own, *words], check=True)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return folder


def test_what_is_edited_after_a_submission_does_not_change_its_runs(
    fulcrum, prepared, slurm, sweep, checkout, monkeypatch
):
    conf = sweep.parents[1] / "conf" / "experiment"
    conf.mkdir(parents=True)
    (conf / "mine.yaml").write_text("# @package _global_\nseed: 7\n")
    submit(fulcrum, *prepared, "experiment=mine", HELD)
    (version,) = {event["code"] for event in rows(sweep / ".jobs" / "manifest.jsonl") if "code" in event}
    head = subprocess.run(
        ["git", "-C", str(checkout), "rev-parse", "HEAD"], text=True, capture_output=True, check=True
    ).stdout
    assert head.startswith(version.partition("+")[2]) and "+" in version
    (copied,) = (sweep / ".jobs" / "code").glob("[!.]*")
    assert (copied / "user_conf" / "experiment" / "mine.yaml").read_text().endswith("seed: 7\n")

    for name in ("train/__main__.py", "slurm/task.py", "slurm/run.sbatch", "data/version.py"):
        (checkout / name).write_text("raise SystemExit('the wrong code')\n")
    release(slurm)
    monkeypatch.delenv("PYTHONPATH")
    ((run_id, run),) = ended(sweep).items()
    assert run["state"] == "completed", (sweep / run_id / "output.log").read_text()
    record = json.loads((sweep / run_id / "run.json").read_text())
    assert record["code_version"] == version and record["seed"] == 7


# ---------------------------------------------------------------------------------------------------- crashes


@pytest.fixture
def killed(fulcrum, prepared, tmp_path, monkeypatch):
    """A script for an sbatch, in which `kill` ends the command that submits and `sbatch` is Slurm's own -> the
    overrides of two points, after a submission that was killed by it."""

    def killed(script: str) -> list[str]:
        grid = ["-m", *prepared, HELD, "seed=0,1"]
        shim = tmp_path / "shim" / "sbatch"
        shim.parent.mkdir()
        real = shutil.which("sbatch")
        functions = f'sbatch() {{ {real} "$@"; }}; kill() {{ command kill -KILL $PPID; }}'
        test_only = 'case "$*" in *--test-only*) sbatch "$@"; exit ;; esac'
        shim.write_text(f"#!/bin/bash\n{functions}\n{test_only}\n{script}\n")
        shim.chmod(0o755)
        with monkeypatch.context() as patch:
            patch.setenv("PATH", f"{shim.parent}:{os.environ['PATH']}")
            assert fulcrum("slurm", "submit", *grid).returncode == -signal.SIGKILL
        return grid

    return killed


def test_a_submission_killed_before_it_noted_the_job_is_found_again(fulcrum, killed, slurm, sweep):
    grid = killed('sbatch "$@"; kill')
    wait_for(lambda: len(queue(slurm)) == 2, "Slurm has the jobs")
    assert not arrays(sweep), "the manifest does not know the job"
    found = status_of(sweep)
    assert {run["job"]: run["state"] for run in found.values()} == dict.fromkeys(queue(slurm), "pending")
    assert "none of them new: nothing was submitted" in submit(fulcrum, *grid)
    assert len(queue(slurm)) == 2 and arrays(sweep) == [list(found)]


def test_a_submission_that_slurm_never_got_is_submitted_once_by_the_next_command(fulcrum, killed, slurm, sweep):
    grid = killed("kill")
    wait_for(lambda: {run["state"] for run in status_of(sweep).values()} == {"not submitted"}, "its sbatch is gone")
    assert not queue(slurm)
    submit(fulcrum, *grid)
    assert "none of them new" in submit(fulcrum, *grid)
    assert len(queue(slurm)) == 2 and [len(array) for array in arrays(sweep)] == [2]


def test_a_lost_submission_is_found_by_its_own_trace_when_slurm_has_forgotten_it(fulcrum, killed, slurm, sweep):
    grid = killed("kill")
    (folder,) = (path for path in (sweep / ".jobs").iterdir() if (path / "folders").exists())
    (folder / "job").write_text("4711\n")  # as a job leaves it when it starts
    runs = status_of(sweep).values()
    assert {run["job"]: run["state"] for run in runs} == {"4711_0": "lost", "4711_1": "lost"}
    assert "2 points ended early" in submit(fulcrum, *grid) and not queue(slurm)


def test_nobody_submits_while_the_sbatch_of_a_killed_command_is_still_at_it(fulcrum, killed, slurm, sweep, tmp_path):
    grid = killed(f'kill; until [ -e "{tmp_path}/go" ]; do sleep 0.1; done; sbatch "$@"')
    assert {run["state"] for run in status_of(sweep).values()} == {"pending"}
    second = fulcrum("slurm", "submit", *grid)
    assert second.returncode == 1 and "is being written by process" in second.stderr and not queue(slurm)
    (tmp_path / "go").touch()
    wait_for(lambda: len(queue(slurm)) == 2, "Slurm has the jobs")
    wait_for(lambda: fulcrum("slurm", "submit", *grid).returncode == 0, "the sweep is free")
    assert len(queue(slurm)) == 2 and [len(array) for array in arrays(sweep)] == [2]


# ---------------------------------------------------------------------------------------------------- bad input


def refusal(fulcrum, slurm, sweep: Path, *words: str) -> str:
    """What a submission says that is refused as a whole."""
    result = fulcrum("slurm", "submit", *words)
    assert result.returncode == 1 and "Traceback" not in result.stderr, result.stderr
    assert not queue(slurm) and not arrays(sweep)
    return result.stderr


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        (["ramp.batch_size=6,100000,200000"], ["2 of 3 points are not valid", "100000", "200000"]),
        (["slurm.mem=1500,2000"], ["1 of 2 points", "slurm.mem=2000", "is the same run as", "slurm.mem=1500"]),
        (
            ["launch.devices=2,3,5", "strategy=ddp", "slurm.nodes=2"],
            ["2 of 3 points", "slurm.nodes=2", "launch.devices=3", "launch.devices=5"],
        ),
        (["slurm.time=90"], ["slurm.time=90", "write '12:00:00'"]),
    ],
    ids=["plan", "same run", "resources", "time"],
)
def test_bad_points_are_all_listed_and_nothing_is_submitted(fulcrum, prepared, slurm, sweep, grid, said):
    told = refusal(fulcrum, slurm, sweep, "-m", *prepared, *grid)
    assert [text for text in said if text not in told] == [], told
    assert not sweep.exists()


@pytest.mark.parametrize("resource", ["slurm.partition=nosuch", "slurm.mem=900G", "slurm.cpus_per_task=64"])
def test_resources_that_slurm_refuses_are_refused_in_its_words(fulcrum, prepared, slurm, sweep, resource):
    option = resource.removeprefix("slurm.").replace("_", "-")
    with pytest.raises(RuntimeError) as slurms:
        slurm.call("sbatch", "--test-only", f"--{option}", "--wrap", "true")
    words = re.findall(r"error: (.*)|failure: (.*)", str(slurms.value))
    told = refusal(fulcrum, slurm, sweep, "-m", *prepared, resource, "seed=0,1")
    assert "Slurm refuses these resources; nothing was submitted" in told and "2 points" in told
    assert words and all((first or second) in told for first, second in words), (words, told)
    assert not list(sweep.rglob("config.yaml"))


def test_without_a_slurm_the_way_out_is_named(fulcrum, prepared, slurm, sweep, tmp_path, monkeypatch):
    (tmp_path / "slurm.conf").touch()
    for key, value, why in (
        ("SLURM_CONF", str(tmp_path / "slurm.conf"), "Slurm cannot be reached here"),
        ("PATH", str(tmp_path), "there is no Slurm here: sbatch is not on the path"),
    ):
        with monkeypatch.context() as patch:
            patch.setenv(key, value)
            result = fulcrum("slurm", "submit", *prepared)
        assert result.returncode == 1 and why in result.stderr and "slurm=local" in result.stderr, result.stderr
        assert "Traceback" not in result.stderr and not sweep.exists()


def test_a_manifest_of_another_version_is_refused(fulcrum, prepared, slurm, sweep):
    (sweep / ".jobs").mkdir(parents=True)
    (sweep / ".jobs" / "manifest.jsonl").write_text('{"version": 99}\n{"something": "else"}\n')
    told = refusal(fulcrum, slurm, sweep, *prepared)
    assert "manifest.jsonl has version 99" in told and "launch.experiment" in told


# ---------------------------------------------------------------------------------------------------- data


@pytest.fixture
def unprepared(prepared, texts, tmp_path):
    """Overrides of a small run whose data are not prepared: own texts, an own cache."""
    (tmp_path / "texts").mkdir()
    shutil.copy(texts / "docs.jsonl", tmp_path / "texts")
    return [*prepared, f"data.sources.files.paths=[{tmp_path}/texts/*.jsonl]", f"launch.cache={tmp_path}/own_cache"]


def test_data_that_would_be_downloaded_are_refused(fulcrum, prepared, slurm, sweep):
    others = [text for text in prepared if not text.startswith("data")]
    told = refusal(fulcrum, slurm, sweep, *others, "data=hub", "data.sources.hub.dataset=nobody/nothing")
    assert "data.sources.hub.dataset=nobody/nothing is not prepared" in told and "Run `fulcrum data`" in told


def test_data_are_prepared_first_and_the_arrays_wait_for_it(fulcrum, unprepared, slurm, sweep):
    said = submit(
        fulcrum,
        "-m",
        *unprepared,
        HELD,
        "seed=0,1",
        "total_tokens=6400,9600",
        "slurm.rules=[{when: 'tokens > 8000', cpus_per_task: 2}]",
    )
    (data,) = re.findall(r"job (\d+) prepares the data first", said)
    assert len(arrays(sweep)) == 2 and len(queue(slurm)) == 5
    waiting = dict(line.split() for line in queue(slurm, "%i %E"))
    assert waiting.pop(data) == "(null)"
    assert {dependency.split("(")[0] for dependency in waiting.values()} == {f"afterok:{data}"}


def test_cancel_ends_the_job_that_prepares_data_too(fulcrum, unprepared, slurm, sweep):
    submit(fulcrum, *unprepared, "slurm.setup=sleep 300")
    wait_for(lambda: sorted(queue(slurm, "%T")) == ["PENDING", "RUNNING"], "the data are being prepared")
    assert [run["reason"] for run in status_of(sweep).values()] == ["Dependency"]
    assert fulcrum("slurm", "cancel", str(sweep)).returncode == 0
    wait_for(lambda: not queue(slurm), "no jobs")
    assert [run["state"] for run in status_of(sweep).values()] == ["cancelled"]


def test_a_failed_preparation_is_the_reason_of_its_runs_which_train_once_it_is_mended(
    fulcrum, unprepared, slurm, sweep, tmp_path
):
    docs = tmp_path / "texts" / "docs.jsonl"
    good = docs.read_text()
    docs.write_text("{")
    submit(fulcrum, "-m", *unprepared, "seed=0,1")
    runs = ended(sweep)
    assert [(run["state"], run["tokens"]) for run in runs.values()] == [("failed", None)] * 2
    for run in runs.values():
        assert "its data could not be prepared: " in run["reason"] and str(docs) in run["reason"]
    docs.write_text(good)
    first, second = runs
    again = fulcrum("slurm", "resubmit", str(sweep), first)
    assert again.returncode == 0 and "prepares the data first" in again.stderr, again.stderr
    runs = ended(sweep)
    assert (runs[first]["state"], runs[second]["state"]) == ("completed", "failed"), "only one was asked for"
