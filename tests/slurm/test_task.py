"""The end of a life on a compute node: what is written of it, and whether the run goes on."""

import json
import os
import time
from pathlib import Path

import pytest

from conf.points import expand
from data.files import append_line, read_json, read_lines, write_json
from slurm import manifest
from slurm.task import begin, end, judge, why_not_again

ENVIRONMENT = {"SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3", "SLURM_RESTART_COUNT": "0"}
KILLED_BY_MEMORY = "slurmstepd: error: Detected 1 oom_kill event in StepId=12.0. Some of the step tasks have been OOM"


@pytest.fixture
def begun(tiny, hydra_conf) -> Path:
    """The folder of a run, steps of 192 tokens, in which a job began."""
    (point,) = expand([tiny])
    point.folder.mkdir(parents=True)
    manifest.write_config(point.folder, point.config)
    begins(point.folder, 0)
    return point.folder


@pytest.fixture
def run(begun: Path) -> Path:
    """The same with a life that began at 640 tokens, and went on to a checkpoint at 1280."""
    append_line(begun / "lives.jsonl", {"tokens_start": 640, "tokens_end": None, "exit": None})
    checkpoint(begun, 1280)
    return begun


def begins(folder: Path, restart: int) -> int:
    """What run.sbatch does before it starts the processes; where the life begins in the log."""
    begin(folder, ENVIRONMENT | {"SLURM_RESTART_COUNT": str(restart), "SLURMD_NODENAME": "n1"})
    now = time.time()
    os.utime(folder / "jobs.jsonl", (now - 1, now - 1))  # a life takes seconds, a test less than a clock may tell
    if (folder / "summary.json").exists():
        os.utime(folder / "summary.json", (now - 2, now - 2))
    return read_lines(folder / "jobs.jsonl")[-1]["log_start"]


def checkpoint(folder: Path, tokens: int) -> None:
    (folder / "checkpoints" / f"{tokens:012d}").mkdir(parents=True)
    (folder / "checkpoints" / f"{tokens:012d}" / "manifest.json").write_text("{}")


def ends(folder: Path, status: str | None = None, reason: str = "", printed: str = "") -> None:
    """What the processes of a run leave."""
    if status:
        write_json(folder / "summary.json", {"status": status, "stop_reason": reason, "loss": 1.5})
    with (folder / "output.log").open("a") as log:
        log.write(printed)


# ---------------------------------------------------------------------------------------------------- judging


@pytest.mark.parametrize(
    ("status", "reason", "code"),
    [
        ("completed", "budget", 0),
        ("diverged", "non-finite loss", 1),
        ("preempted", "SIGTERM", 85),
        ("failed", "E: x", 1),
    ],
)
def test_a_life_that_could_say_how_it_ended_is_believed(run, status, reason, code):
    ends(run, status, reason, "some\nwords\n")
    assert judge(run, code, 0) == (status, reason)


@pytest.mark.parametrize(
    ("code", "printed", "reason"),
    [
        (137, "", "killed by signal 9"),
        (139, "step 1\nSegmentation fault\n\n", "killed by signal 11: Segmentation fault"),
        (1, "Traceback\nModuleNotFoundError: No module named 'torch'\n", "exit code 1: ModuleNotFoundError: No module"),
        (127, "", "exit code 127"),
        (0, "", "exit code 0"),
    ],
)
def test_a_life_that_could_not_is_told_by_its_exit_code_and_last_words(run, code, printed, reason):
    ends(run, printed=printed)
    status, why = judge(run, code, 0)
    assert status == "failed" and why.startswith(reason)


@pytest.mark.parametrize(
    "words", [KILLED_BY_MEMORY, "srun: error: n1: task 0: Out Of Memory", "Cannot allocate memory"]
)
def test_a_life_that_memory_ended_is_told_by_sruns_words(run, words):
    ends(run, printed=f"step 1\n{words}\nsrun: error: n1: task 0: Killed\n")
    assert judge(run, 137, 0) == ("out of memory", words)


def test_memory_of_an_earlier_life_says_nothing_of_this_one(run):
    ends(run, printed=f"{KILLED_BY_MEMORY}\n")
    log_start = begins(run, 1)
    ends(run, printed="step 9\nOSError: the disk is full\n")
    assert judge(run, 1, log_start) == ("failed", "exit code 1: OSError: the disk is full")


def test_memory_of_a_device_is_told_by_the_record(run):
    reason = "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"
    ends(run, "failed", reason, "Traceback\n")
    assert judge(run, 1, 0) == ("out of memory", reason)


def test_a_run_that_another_process_writes_is_left_as_it_is(run):
    ends(run, "preempted", "SIGTERM", "error: /runs/r1 is being written by process 7 on n2: wait for it, or stop it.\n")
    before = read_json(run / "summary.json")
    assert end(run, 75, 50, "none", ENVIRONMENT) == 0
    line = read_lines(run / "jobs.jsonl")[-1]
    assert line["status"] == "failed" and "is being written by process 7 on n2" in line["reason"]
    assert read_json(run / "summary.json") == before and read_lines(run / "lives.jsonl")[-1]["exit"] is None


# ---------------------------------------------------------------------------------------------------- going on


def test_a_life_that_made_progress_may_go_on_until_the_restarts_are_used_up(run):
    assert why_not_again(run, 0, 50, None) is None and why_not_again(run, 49, 50, None) is None
    assert why_not_again(run, 50, 50, None) == "not requeued: slurm.max_restarts=50 is reached"
    assert "max_restarts=0" in str(why_not_again(run, 0, 0, None))


def test_two_lives_without_a_checkpoint_past_their_start_are_enough(run):
    """One may have been stopped while it started, by somebody else's job."""
    append_line(run / "lives.jsonl", {"tokens_start": 1280, "tokens_end": None, "exit": "preempted"})
    assert why_not_again(run, 1, 50, None) is None
    append_line(run / "lives.jsonl", {"tokens_start": 1280, "tokens_end": None, "exit": None})
    why = str(why_not_again(run, 2, 50, None))
    assert "two lives made no progress past 1280 tokens; give it more slurm.time or slurm.grace" in why
    checkpoint(run, 1920)
    assert why_not_again(run, 2, 50, None) is None


def test_a_single_step_is_no_progress(run):
    """The loop hears a signal at the end of a step: a life that had no time makes one."""
    for start in (1280, 1280 + 192):
        append_line(run / "lives.jsonl", {"tokens_start": start, "tokens_end": None, "exit": None})
    checkpoint(run, 1280 + 2 * 192)
    assert "two lives made no progress past 1280 tokens" in str(why_not_again(run, 1, 50, None))
    checkpoint(run, 1280 + 3 * 192)
    assert why_not_again(run, 1, 50, None) is None


def test_a_second_life_without_any_checkpoint_does_not_go_on(begun):
    append_line(begun / "lives.jsonl", {"tokens_start": 0, "tokens_end": None, "exit": None})
    ends(begun, "preempted", "SIGUSR1")
    assert end(begun, 85, 50, "none", ENVIRONMENT) == 85, "it may have been stopped while it started"
    append_line(begun / "jobs.jsonl", {"job": "12_3", "restart": 1, "log_start": 0})
    append_line(begun / "lives.jsonl", {"tokens_start": 0, "tokens_end": None, "exit": None})
    ends(begun, "preempted", "SIGUSR1")
    assert end(begun, 85, 50, "none", ENVIRONMENT) == 0
    assert "no progress past 0 tokens" in read_json(begun / "summary.json")["stop_reason"]


# ---------------------------------------------------------------------------------------------------- recording


def test_a_run_that_was_asked_to_stop_is_requeued_and_says_so(run):
    ends(run, "preempted", "SIGUSR1")
    assert end(run, 85, 50, "none", ENVIRONMENT | {"SLURM_RESTART_COUNT": "4"}) == 85
    line = read_lines(run / "jobs.jsonl")[-1]
    wanted = {"job": "12_3", "restart": 4, "code": 85, "status": "preempted", "reason": "SIGUSR1", "requeued": True}
    assert {key: line[key] for key in wanted} == wanted and line["at"]
    assert read_json(run / "summary.json")["status"] == "preempted"


@pytest.mark.parametrize(
    ("status", "reason", "code"),
    [("preempted", "SIGTERM", 85), ("completed", "budget", 0), ("diverged", "non-finite", 1), ("failed", "E", 1)],
)
def test_nothing_else_is_requeued(run, status, reason, code):
    """SIGTERM is scancel's, or a preemption's, which Slurm itself requeues."""
    ends(run, status, reason)
    assert end(run, code, 50, "none", ENVIRONMENT) == 0
    line = read_lines(run / "jobs.jsonl")[-1]
    assert (line["status"], line["reason"], line["requeued"]) == (status, reason, False)
    assert read_json(run / "summary.json") == {"status": status, "stop_reason": reason, "loss": 1.5}


def test_a_refusal_to_go_on_is_the_reason_that_is_kept(run):
    ends(run, "preempted", "SIGUSR1")
    assert end(run, 85, 2, "none", ENVIRONMENT | {"SLURM_RESTART_COUNT": "2"}) == 0
    reason = "not requeued: slurm.max_restarts=2 is reached"
    assert read_lines(run / "jobs.jsonl")[-1]["reason"] == read_json(run / "summary.json")["stop_reason"] == reason


def test_a_life_that_was_killed_gets_the_end_that_it_could_not_write(run):
    ends(run, printed=f"{KILLED_BY_MEMORY}\n")
    (run / "metrics.jsonl").write_text(json.dumps({"tokens": 960}) + "\n")
    write_json(run / "summary.json", {"err.arc": 0.4})
    assert end(run, 137, 50, "none", ENVIRONMENT) == 0
    assert read_json(run / "summary.json") == {
        "status": "failed", "stop_reason": KILLED_BY_MEMORY, "err.arc": 0.4,
    }  # fmt: skip
    life = read_lines(run / "lives.jsonl")[-1]
    assert (life["tokens_end"], life["exit"]) == (960, "out of memory")
    line = read_lines(run / "jobs.jsonl")[-1]
    assert (line["status"], line["code"], line["requeued"]) == ("out of memory", 137, False)


def test_the_word_of_an_earlier_life_is_not_believed_of_one_that_never_started(run):
    """Its container, or its node, was broken: that must not requeue it again and again."""
    ends(run, "preempted", "SIGUSR1")
    assert end(run, 85, 50, "none", ENVIRONMENT) == 85
    begins(run, 1)
    ends(run, printed="srun: error: n1: task 0: Exited with exit code 127\n")
    assert end(run, 127, 50, "none", ENVIRONMENT | {"SLURM_RESTART_COUNT": "1"}) == 0
    line = read_lines(run / "jobs.jsonl")[-1]
    assert line["status"] == "failed" and "exit code 127" in line["reason"]
