"""Slurm's own programs: what they are asked and what they answer. ValueError with Slurm's words where they refuse."""

import os
import re
import shutil
import subprocess
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO

SCRIPT = Path(__file__).with_name("run.sbatch")
COMMENT = "fulcrum:"  # before the submission's id, in the comment of its jobs
PENDING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD")
ENDED = ("COMPLETED", "FAILED", "OUT_OF_MEMORY", "TIMEOUT", "DEADLINE", "PREEMPTED", "NODE_FAIL", "BOOT_FAIL",
         "CANCELLED", "REVOKED")  # fmt: skip
FOREIGN = ("SBATCH_WAIT", "SBATCH_CLUSTERS", "SBATCH_ARRAY_INX")  # a user's own wishes that would break what we promise


@dataclass(frozen=True)
class Job:
    """A task of an array, or a job that is none, as squeue or sacct shows it."""

    id: str
    """12_3, or 12"""
    state: str
    """Slurm's long form, as OUT_OF_MEMORY"""
    reason: str = ""
    """why it waits, or why it ended"""
    comment: str = ""

    @property
    def pending(self) -> bool:
        return self.state in PENDING

    @property
    def live(self) -> bool:
        """Also in a state that a later Slurm may have added: better asked again than submitted twice."""
        return self.state not in ENDED


def call(*command: str) -> str:
    """What a program of Slurm prints. ValueError with its own words where it fails or does not answer."""
    try:
        done = subprocess.run(command, text=True, capture_output=True, timeout=120, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        raise ValueError(f"{command[0]} is not on the path: ask where Slurm is.") from None
    except subprocess.TimeoutExpired:
        raise ValueError(f"{command[0]} has not answered for two minutes: is the controller of Slurm up?") from None
    if done.returncode:
        raise ValueError(f"{command[0]}: {_words(done.stderr) or f'exit code {done.returncode}'}")
    return done.stdout


@cache
def settings() -> str:
    """Slurm's own. ValueError with the way out where there is no Slurm."""
    out = "Submit where it is, or take slurm=local to train on this machine in the background."
    if not shutil.which("sbatch"):
        raise ValueError(f"there is no Slurm here: sbatch is not on the path. {out}")
    try:
        return call("scontrol", "show", "config")
    except ValueError as error:
        raise ValueError(f"Slurm cannot be reached here ({error}). {out}") from None


def name() -> str:
    """Of this cluster."""
    found = re.search(r"^ClusterName\s*=\s*(\S+)", settings(), re.MULTILINE)
    return found[1] if found else "?"


def largest_array() -> int:
    """Tasks that an array may have here (MaxArraySize)."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", settings(), re.MULTILINE)
    return int(found[1]) if found else 1000


def check(options: Sequence[str]) -> str | None:
    """Slurm's words where it would refuse a job with these options; none is left behind."""
    tested = _sbatch("--test-only", *options, str(SCRIPT))
    if tested.returncode == 0:
        return None
    # --test-only also refuses what only waits for nodes that are away, and sbatch takes some of what can never run
    later = _sbatch("--parsable", "--begin=now+300days", "--output=/dev/null", *options, str(SCRIPT))
    if later.returncode:
        return _words(later.stderr)
    cancel([_job_id(later.stdout)])
    usual = {f"up {state}" for state in ("idle", "mixed", "allocated", "completing")}
    partition = [word for word in options if word.startswith("--partition=")]
    nodes_are_away = set(call("sinfo", "-h", "-o", "%a %T", *partition).splitlines()) - usual
    return None if nodes_are_away else _words(tested.stderr)


def sbatch(options: Sequence[str], arguments: Sequence[str], submission: str, lock: IO[str]) -> str:
    """Submits run.sbatch and returns the job's id. sbatch holds the sweep's `lock` as long as it lives."""
    fixed = ["--parsable", "--requeue", f"--comment={COMMENT}{submission}"]
    done = _sbatch(*fixed, *options, str(SCRIPT), *arguments, lock=lock)
    if done.returncode:
        raise ValueError(_words(done.stderr) or f"sbatch ended with exit code {done.returncode}")
    return _job_id(done.stdout)


def _sbatch(*words: str, lock: IO[str] | None = None) -> "subprocess.CompletedProcess[str]":
    """Within another job, its SLURM_* would be taken for wishes of the new one."""
    kept = ("SLURM_CONF", "SLURM_CLUSTERS")
    environment = {key: value for key, value in os.environ.items() if key[:6] != "SLURM_" or key in kept}
    environment = {key: value for key, value in environment.items() if key not in FOREIGN}
    inherited = [lock.fileno()] if lock else []
    return subprocess.run(["sbatch", *words], text=True, capture_output=True, env=environment, pass_fds=inherited)


def _job_id(answer: str) -> str:
    """The line that is a number, perhaps with a cluster's name behind it: some sites greet before it."""
    found = re.search(r"^(\d+)(;|$)", answer, re.MULTILINE)
    if not found:
        raise ValueError(f"sbatch answered {answer.strip()!r} and no job id")
    return found[1]


def queue(users: Collection[str]) -> dict[str, Job]:
    """All jobs of these users that the controller remembers, also ended ones, by id."""
    wanted = ("-h", "-a", "-r", "-t", "all", "-u", ",".join(sorted(users)), "-o", "%F|%K|%T|%r|%k")
    jobs = {}
    for line in call("squeue", *wanted).splitlines():
        if line.count("|") < 4:  # the rest of somebody's comment of several lines
            continue
        job, task, state, reason, comment = line.split("|", 4)
        name = job if task == "N/A" else f"{job}_{task}"
        jobs[name] = Job(name, state, "" if reason == "None" else reason, comment)
    return jobs


def accounted(jobs: Sequence[str]) -> dict[str, Job] | None:
    """What the accounting knows of these jobs (arrays whole, by their id), by id; None where there is none just now."""
    if not jobs:
        return {}
    try:
        lines = call(
            "sacct", "-a", "-X", "-n", "-P", "-D", "-j", ",".join(jobs), "-o", "JobID,State,Reason"
        ).splitlines()
    except ValueError as error:
        if re.search("disabled|not on the path|onnect|contact", str(error)):  # or its database is down
            return None
        raise
    found = {}
    for line in lines:
        tasks, state, reason = line.split("|", 2)
        for name in _tasks(tasks):
            found[name] = Job(name, state.split()[0], "" if reason == "None" else reason)  # "CANCELLED by 0"
    return found


def _tasks(name: str) -> list[str]:
    """`7_[0,2-3%2]`, tasks that never began, as 7_0, 7_2 and 7_3; any other name as it is."""
    array = re.fullmatch(r"(\d+)_\[([\d,-]+)(?:%\d+)?\]", name)
    if not array:
        return [name]
    ranges = [part.partition("-") for part in array[2].split(",")]
    return [f"{array[1]}_{k}" for first, _, last in ranges for k in range(int(first), int(last or first) + 1)]


def cancel(jobs: Sequence[str]) -> None:
    if jobs:
        call("scancel", *jobs)


def _words(text: str) -> str:
    """What a program of Slurm said, in one line, without its own name before each."""
    return "; ".join(dict.fromkeys(re.sub(r"^\w+: (error|fatal): ", "", line) for line in text.splitlines() if line))
