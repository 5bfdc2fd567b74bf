"""How a run stands, as a function of its record, of what Slurm says of its job, and of what run.sbatch noted."""

import json
import os
import socket
from pathlib import Path

import pytest

from data.files import append_line, write_json
from data.records import lock_run
from slurm import manifest
from slurm.cluster import Job
from slurm.manifest import LOCAL, SLURM, Submission
from slurm.states import ORDER, SLURM_ENDS, State, by_record, local_state, slurm_state, states

RUN, OTHER = "r1", "r0"
BEGUN = {"job": "12_1", "restart": 0, "node": "n1", "log_start": 0}
COMPLETED = {"job": "12_1", "restart": 0, "code": 0, "status": "completed", "reason": "budget", "requeued": False}
FAILED = COMPLETED | {"code": 1, "status": "failed", "reason": "OSError: the disk is full"}
PREEMPTED = COMPLETED | {"code": 85, "status": "preempted", "reason": "SIGUSR1"}
NO_WORD = "Slurm has forgotten the job, and it left no word of its end"
NEVER = "Slurm has forgotten the job, and it never began: cancelled while it waited, perhaps"


@pytest.fixture
def submission(tmp_path: Path) -> Submission:
    """An array 12 of two runs, of which ours is the second."""
    submission = manifest.begin(tmp_path, SLURM, [OTHER, RUN], "1.0")
    submission.job = "12"
    return submission


@pytest.fixture
def told(tmp_path, submission):
    """Slurm's word (state, reason) and the lines of jobs.jsonl -> (kind, reason) of the run."""

    def told(slurms: str | None, *lines: dict, reason: str = "") -> tuple[str, str]:
        folder = tmp_path / RUN
        folder.mkdir(exist_ok=True)
        (folder / "jobs.jsonl").unlink(missing_ok=True)
        for line in lines:
            append_line(folder / "jobs.jsonl", line)
        job = Job("12_1", slurms, reason) if slurms else None
        state = slurm_state(folder, {}, submission, job)
        assert state.job == "12_1" and state.kind in ORDER
        return state.kind, state.reason

    return told


# ---------------------------------------------------------------------------------------------------- on Slurm


def test_a_job_that_waits_or_runs_is_what_slurm_says_whatever_was_noted_before(told):
    for lines in ([], [BEGUN], [BEGUN, PREEMPTED | {"requeued": True}], [BEGUN, PREEMPTED]):
        assert told("PENDING", *lines, reason="BeginTime") == ("pending", "BeginTime")
        assert told("RUNNING", *lines, reason="None") == ("running", "")
        assert told("REQUEUE_HOLD", *lines, reason="launch failed") == ("pending", "launch failed")
        assert told("SUSPENDED", *lines)[0] == "running"


def test_a_job_that_completes_has_ended_once_its_script_said_how(told):
    assert told("COMPLETING", BEGUN) == ("running", "")
    assert told("COMPLETING", BEGUN, FAILED) == ("failed", "OSError: the disk is full")
    assert told("COMPLETING", BEGUN, PREEMPTED | {"requeued": True}) == ("running", ""), "it goes on"
    assert told("COMPLETING", BEGUN, PREEMPTED | {"reason": "SIGTERM"}) == ("running", ""), "or Slurm requeues it"


@pytest.mark.parametrize(("slurms", "kind"), SLURM_ENDS.items())
def test_slurms_own_end_is_told_where_the_script_could_say_nothing(told, slurms, kind):
    assert told(slurms, BEGUN) == (kind, f"Slurm: {slurms}")
    assert told(slurms, BEGUN, reason="NonZeroExitCode") == (kind, f"Slurm: {slurms}, NonZeroExitCode")
    assert told(slurms)[0] == kind, "it never began"


def test_the_scripts_word_says_more_than_slurms(told):
    memory = FAILED | {"code": 137, "status": "out of memory", "reason": "srun: error: n1: task 0: Out Of Memory"}
    assert told("FAILED", BEGUN, memory) == ("out of memory", memory["reason"])
    assert told("OUT_OF_MEMORY", BEGUN, memory) == ("out of memory", memory["reason"])
    assert told("NODE_FAIL", BEGUN, FAILED) == ("failed", FAILED["reason"])
    slow = PREEMPTED | {"reason": "not requeued: no progress"}
    assert told("FAILED", BEGUN, slow) == ("preempted", "not requeued: no progress")
    assert told("TIMEOUT", BEGUN, slow) == ("timed out", "Slurm: TIMEOUT; not requeued: no progress"), "both know"


def test_a_job_that_was_cancelled_by_hand_is_cancelled_even_where_its_script_ended_well(told):
    assert told("CANCELLED", BEGUN, PREEMPTED | {"reason": "SIGTERM"}) == ("cancelled", "Slurm: CANCELLED")


def test_what_we_cancelled_says_so_once_it_has_ended(told, submission):
    submission.cancelled.add(RUN)
    assert told("RUNNING", BEGUN)[0] == "running", "it checkpoints first"
    for slurms in ("CANCELLED", "COMPLETED", None):
        assert told(slurms, BEGUN, PREEMPTED) == ("cancelled", "by `fulcrum slurm cancel`")
    submission.cancelled = {OTHER}
    assert told(None, BEGUN, FAILED)[0] == "failed", "another run of the array was cancelled"


def test_a_job_that_slurm_has_forgotten_is_what_it_noted_or_lost(told):
    assert told(None, BEGUN, FAILED) == ("failed", FAILED["reason"])
    assert told(None, BEGUN) == ("lost", NO_WORD) and told(None) == ("lost", NEVER)
    assert told(None, BEGUN, PREEMPTED | {"requeued": True}) == ("lost", NO_WORD), "it should have gone on"
    assert told(None, BEGUN, PREEMPTED | {"requeued": True}, BEGUN | {"restart": 1}) == ("lost", NO_WORD)


def test_an_end_in_an_earlier_life_or_job_says_nothing_of_this_one(told):
    earlier = [{**line, "job": "7_1"} for line in (BEGUN, FAILED)]
    assert told(None, *earlier) == ("lost", NEVER)
    assert told(None, *earlier, BEGUN) == ("lost", NO_WORD)
    assert told("TIMEOUT", *earlier, BEGUN) == ("timed out", "Slurm: TIMEOUT")
    assert told(None, *earlier, BEGUN, COMPLETED)[0] == "completed"
    assert told("NODE_FAIL", BEGUN, PREEMPTED, BEGUN | {"restart": 1}) == ("failed", "Slurm: NODE_FAIL")


def test_a_job_that_failed_before_its_script_could_say_why_shows_what_it_printed(told, submission):
    (submission.folder / "1.out").write_text("fine\nrun.sbatch: line 7: apptainer: command not found\n\n")
    (submission.folder / "0.out").write_text("of another run\n")
    assert told("FAILED", BEGUN) == ("failed", "Slurm: FAILED; run.sbatch: line 7: apptainer: command not found")


# ---------------------------------------------------------------------------------------------------- on this machine


@pytest.fixture
def local(tmp_path: Path) -> Submission:
    (tmp_path / RUN).mkdir()
    submission = manifest.begin(tmp_path, LOCAL, [OTHER, RUN], "1.0")
    submission.at = "2026-01-01T00:00:00+0000"
    return submission


def test_a_run_that_is_held_is_running_and_names_its_holder(tmp_path, local):
    with lock_run(tmp_path / RUN):
        state = local_state(tmp_path / RUN, {"status": "failed", "stop_reason": "of an earlier life"}, local)
    assert (state.kind, state.job) == ("running", f"process {os.getpid()} on {socket.gethostname()}")


def test_a_run_whose_turn_comes_waits_whatever_its_earlier_life_said(tmp_path, local):
    early = {"started": "2025-12-31T23:59:59+0000"}
    with lock_run(local.folder):
        for summary in ({}, {"status": "preempted", "stop_reason": "SIGTERM"}, {"status": "failed"}):
            assert local_state(tmp_path / RUN, summary, local).kind == "pending"
            append_line(tmp_path / RUN / "lives.jsonl", early)
    assert local_state(tmp_path / RUN, {"status": "preempted"}, local).kind == "preempted", "its runner is gone"


def test_a_run_that_had_its_turn_is_what_its_record_says_while_the_others_train(tmp_path, local):
    append_line(tmp_path / RUN / "lives.jsonl", {"started": "2026-01-01T00:00:09+0000"})
    with lock_run(local.folder):
        state = local_state(tmp_path / RUN, {"status": "failed", "stop_reason": "OSError: full"}, local)
    assert state == State("failed", "OSError: full")


def test_a_run_whose_runner_is_gone_is_lost_and_tells_the_runners_last_words(tmp_path, local):
    state = local_state(tmp_path / RUN, {}, local)
    assert state.kind == "lost" and "runner" in state.reason and state.job is None
    (local.folder / "output.log").write_text("one\ntwo points: 0 finished, 2 to train\n\n")
    state = local_state(tmp_path / RUN, {}, local)
    assert state.kind == "lost" and state.reason.endswith("two points: 0 finished, 2 to train")
    local.cancelled = {RUN}
    assert local_state(tmp_path / RUN, {}, local) == State("cancelled", "by `fulcrum slurm cancel`")


def test_a_runner_that_could_not_begin_gives_its_error_as_the_reason(tmp_path, local):
    (local.folder / "output.log").write_text("error: paths=x matches no file\nerror: the data could not be prepared\n")
    assert local_state(tmp_path / RUN, {}, local) == State("failed", "paths=x matches no file")
    ended = {"status": "preempted", "stop_reason": "SIGTERM"}
    assert local_state(tmp_path / RUN, ended, local).kind == "failed", "what an earlier life said is not about this one"
    append_line(tmp_path / RUN / "lives.jsonl", {"started": "2026-01-01T00:00:09+0000"})
    assert local_state(tmp_path / RUN, ended, local) == State("preempted", "SIGTERM")


def test_a_cancelled_run_is_live_until_it_ended_and_cancelled_before_its_runner_is_gone(tmp_path, local):
    local.cancelled = {RUN}
    with lock_run(local.folder):
        assert local_state(tmp_path / RUN, {}, local).live, "it waits still"
        append_line(tmp_path / RUN / "lives.jsonl", {"started": "2026-01-01T00:00:09+0000"})
        with lock_run(tmp_path / RUN):
            assert local_state(tmp_path / RUN, {}, local).live, "it checkpoints"
        ended = {"status": "preempted", "stop_reason": "SIGTERM"}
        assert local_state(tmp_path / RUN, ended, local) == State("cancelled", "by `fulcrum slurm cancel`")


def test_a_record_that_tells_of_memory_is_out_of_memory(tmp_path):
    cuda = "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"
    assert by_record({"status": "failed", "stop_reason": cuda}, "lost") == State("out of memory", cuda)
    assert by_record({"status": "failed", "stop_reason": "ValueError: x"}, "lost") == State("failed", "ValueError: x")
    assert by_record({"status": "preempted", "stop_reason": "SIGTERM"}, "lost") == State("preempted", "SIGTERM")
    assert by_record({}, "lost", "why") == State("lost", "why")


# ---------------------------------------------------------------------------------------------------- sweeps


def record(sweep: Path, *runs: str, **parents: str) -> None:
    """A sweep of runs with what `states` reads of a configuration."""
    for run in runs:
        (sweep / run).mkdir(parents=True)
        above = {"run_id": parents[run], "tokens": 640} if run in parents else None
        (sweep / run / "config.yaml").write_text(json.dumps({"parent": above}))
    write_json(sweep / "sweep.json", {"points": [{"run_id": run, "overrides": []} for run in runs]})


def test_a_finished_record_is_believed_before_anybody_is_asked(tmp_path, monkeypatch):
    """Also that of a run that a Slurm array trained, where there is no Slurm any more."""
    monkeypatch.setenv("PATH", "")
    record(tmp_path, "ra", "rb")
    array = manifest.begin(tmp_path, SLURM, ["ra", "rb"], "1.0")
    manifest.note(tmp_path, {"submission": array.id, "job": "12", "cancelled": ["rb"]})
    write_json(tmp_path / "ra" / "summary.json", {"status": "completed", "stop_reason": "budget"})
    write_json(tmp_path / "rb" / "summary.json", {"status": "diverged", "stop_reason": "non-finite loss"})
    found = states(tmp_path, manifest.read(tmp_path))
    assert found == {"ra": State("completed", "budget"), "rb": State("diverged", "non-finite loss")}


def test_a_run_that_nobody_submitted_is_what_its_record_says(tmp_path):
    record(tmp_path, "ra", "rb", "rc")
    write_json(tmp_path / "rb" / "summary.json", {"status": "failed", "stop_reason": "OSError: full"})
    with lock_run(tmp_path / "rc"):
        found = states(tmp_path, [], asked=["rd"])
    assert {run: state.kind for run, state in found.items()} == {
        "ra": "not submitted", "rb": "failed", "rc": "running", "rd": "not submitted",
    }  # fmt: skip


def test_the_last_submission_of_a_run_says_how_it_stands(tmp_path):
    record(tmp_path, "ra", "rb")
    first = manifest.begin(tmp_path, LOCAL, ["ra", "rb"], "1.0")
    manifest.note(tmp_path, {"submission": first.id, "cancelled": ["ra", "rb"]})
    second = manifest.begin(tmp_path, LOCAL, ["rb"], "1.0")
    with lock_run(second.folder):
        found = states(tmp_path, manifest.read(tmp_path))
    assert (found["ra"].kind, found["rb"].kind) == ("cancelled", "pending")


def test_a_branch_that_cannot_start_names_its_parent_and_the_parents_reason(tmp_path):
    record(tmp_path, "trunk", "ra", "rb", ra="trunk", rb="ra")
    write_json(tmp_path / "trunk" / "summary.json", {"status": "failed", "stop_reason": "OSError: full"})
    found = states(tmp_path, [])
    assert found["ra"] == State("not submitted", "its parent trunk is failed: OSError: full")
    assert found["rb"].reason.startswith("its parent ra is not submitted")
    with lock_run(tmp_path / "trunk"):
        assert states(tmp_path, [])["ra"].reason == "", "its parent may still get there"
    write_json(tmp_path / "trunk" / "summary.json", {"status": "completed", "stop_reason": "budget"})
    assert states(tmp_path, [])["ra"].reason == ""


def test_a_damaged_summary_of_one_run_does_not_hide_the_others(tmp_path):
    record(tmp_path, "ra", "rb")
    (tmp_path / "ra" / "summary.json").write_text('{"status": "compl')
    write_json(tmp_path / "rb" / "summary.json", {"status": "completed", "stop_reason": "budget"})
    found = states(tmp_path, [])
    assert found["ra"].kind == "failed" and "summary.json is not valid JSON" in found["ra"].reason
    assert found["rb"].kind == "completed"


@pytest.fixture
def handed_over(tmp_path, monkeypatch):
    """Jobs of a queue -> the states of two runs that were submitted as array 12 of the cluster `here`."""
    record(tmp_path, OTHER, RUN)
    array = manifest.begin(tmp_path, SLURM, [OTHER, RUN], "1.0", cluster="here")
    manifest.note(tmp_path, {"submission": array.id, "job": "12"})
    monkeypatch.setattr("slurm.cluster.name", lambda: "here")
    monkeypatch.setattr("slurm.cluster.accounted", lambda jobs: None)

    def handed_over(*jobs: tuple[str, str, str]) -> dict[str, State]:
        queue = {name: Job(name, state, "", comment.format(id=array.id)) for name, state, comment in jobs}
        monkeypatch.setattr("slurm.cluster.queue", lambda users: queue)
        return states(tmp_path, manifest.read(tmp_path))

    return handed_over


def test_a_job_of_the_same_number_is_ours_only_by_its_comment(handed_over):
    found = handed_over(("12_0", "RUNNING", "fulcrum:{id}"), ("12_1", "RUNNING", "fulcrum:another"))
    assert (found[OTHER].kind, found[RUN].kind) == ("running", "lost")
    found = handed_over(("12_0", "RUNNING", ""), ("12_1", "PENDING", "as the site wants it"))
    assert (found[OTHER].kind, found[RUN].kind) == ("running", "pending"), "where comments are not kept"


def test_an_array_that_was_cancelled_before_it_began_is_one_job(handed_over):
    assert {state.kind for state in handed_over(("12", "CANCELLED", "fulcrum:{id}")).values()} == {"cancelled"}


def test_a_state_that_a_later_slurm_may_add_is_live(handed_over):
    assert {state.kind for state in handed_over(("12", "EXPEDITING", "fulcrum:{id}")).values()} == {"running"}


def test_a_line_that_was_cut_off_in_one_run_does_not_hide_the_others(handed_over, tmp_path):
    (tmp_path / RUN / "jobs.jsonl").write_text('{"job": "12_1", "rest\n{"job": "12_1", "restart": 1}\n')
    found = handed_over(("12_0", "RUNNING", "fulcrum:{id}"), ("12_1", "FAILED", "fulcrum:{id}"))
    assert found[OTHER].kind == "running"
    assert found[RUN].kind == "failed" and "jobs.jsonl, line 1: not valid JSON" in found[RUN].reason
    assert handed_over(("12_1", "RUNNING", "fulcrum:{id}"))[RUN].kind == "running", "a live job is live all the same"


def test_jobs_of_another_cluster_are_not_taken_for_ours(handed_over, monkeypatch):
    monkeypatch.setattr("slurm.cluster.name", lambda: "there")
    with pytest.raises(ValueError, match="submitted to cluster here, and this is there: ask there"):
        handed_over()
