"""Begin and end of a life on a compute node, as run.sbatch tells them; no torch.

    python -m slurm.task begin <run folder>
    python -m slurm.task end <run folder> <srun's exit code> <max_restarts> <fate>

Each appends a line to the run's jobs.jsonl. The end also writes the summary of a run that was killed before it could,
and exits with 85 where the run is to be requeued.
"""

import os
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from data.files import append_line, read_json, read_lines, read_yaml
from data.records import (
    COMPLETED,
    DIVERGED,
    FAILED,
    LOCKED_EXIT,
    PREEMPTED,
    PREEMPTED_EXIT,
    checkpoints,
    end_life,
    write_summary,
)
from optim.plan import plan_of

OUT_OF_MEMORY = "out of memory"
NOISE = ("_step_signal: Terminating", "Job step aborted", "Force Terminated")  # srun's, after what it is about
MEMORY_WORDS = ("oom-kill", "oom_kill", "out of memory", "outofmemoryerror", "cannot allocate memory")


def begin(folder: Path, environment: Mapping[str, str]) -> None:
    log = folder / "output.log"
    life = {
        "job": task_of(environment),
        "restart": int(environment.get("SLURM_RESTART_COUNT", 0)),
        "node": environment.get("SLURMD_NODENAME"),
        "log_start": log.stat().st_size if log.exists() else 0,
        "at": time.strftime("%FT%T%z"),
    }
    append_line(folder / "jobs.jsonl", life)


def task_of(environment: Mapping[str, str]) -> str:
    """As Slurm names it: 12_3."""
    return f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"


def end(folder: Path, code: int, max_restarts: int, fate: str, environment: Mapping[str, str]) -> int:
    """The exit code: 85 where the run is to be requeued.

    `fate` is what run.sbatch knows of the job: `cancelled` (or at its time limit), `preempted` by Slurm, or neither.
    """
    task, restarts = task_of(environment), int(environment.get("SLURM_RESTART_COUNT", 0))
    began = [row for row in read_lines(folder / "jobs.jsonl") if row["job"] == task][-1]
    status, reason = judge(folder, code, began["log_start"])
    requeue = False
    if status == PREEMPTED and fate != "cancelled" and (reason == "SIGUSR1" or fate == "preempted"):
        refusal = why_not_again(folder, restarts, max_restarts, environment.get("SLURM_JOB_ID"))
        requeue, reason = not refusal, refusal or reason
    if code != LOCKED_EXIT and status not in (COMPLETED, DIVERGED):
        summary = read_json(folder / "summary.json")
        kept = FAILED if status == OUT_OF_MEMORY else status
        write_summary(folder, summary | {"status": kept, "stop_reason": reason})
        end_life(folder, status)
    ended = {"code": code, "status": status, "reason": reason, "requeued": requeue}
    append_line(folder / "jobs.jsonl", {"job": task, "restart": restarts, **ended, "at": time.strftime("%FT%T%z")})
    return PREEMPTED_EXIT if requeue else 0


def judge(folder: Path, code: int, log_start: int) -> tuple[str, str]:
    """How a life ended, and why: by the run's own summary, or by what its processes left in output.log."""
    path, begin = folder / "summary.json", folder / "jobs.jsonl"
    # a summary older than the line with which this life began is of an earlier one
    fresh = path.exists() and path.stat().st_mtime_ns > begin.stat().st_mtime_ns
    summary = read_json(path) if fresh else {}
    status, reason = summary.get("status"), str(summary.get("stop_reason", ""))
    said = [line for line in lines_since(folder / "output.log", log_start) if not any(word in line for word in NOISE)]
    if code == LOCKED_EXIT:
        return FAILED, said[-1] if said else "another process writes this run"
    if status in (COMPLETED, DIVERGED, PREEMPTED):
        return status, reason
    for line in [reason, *(line for line in said if "warning" not in line.lower())]:
        if any(word in line.lower() for word in MEMORY_WORDS):
            return OUT_OF_MEMORY, line.strip()
    if status == FAILED:  # the first rank may only have seen another one go
        others = [line for line in said if re.search(r"^srun: error: .*: task [1-9]\d*: ", line)]
        return FAILED, f"{others[0]}; then {reason}" if others else reason
    killed = f"killed by signal {code - 128}" if code > 128 else f"exit code {code}"
    return FAILED, f"{killed}: {said[-1]}" if said else killed


def why_not_again(folder: Path, restarts: int, max_restarts: int, job_id: str | None) -> str | None:
    """Why a run that was asked to stop is not requeued; None where it is.

    Two lives in a row of this job that made no progress are enough: one may have been stopped while it started, by
    another's job. A single step is no progress, as the loop makes that one before it hears a signal from before.
    """
    lives = [life for life in read_lines(folder / "lives.jsonl") if life.get("job_id") == job_id]
    plan = plan_of(read_yaml(folder / "config.yaml"))
    starts = [life["tokens_start"] for life in lives[-2:]]
    ends = [*starts[1:], max(checkpoints(folder), default=0)]
    moved = [b - a > plan.at(a).batch_size * plan.sequence_length for a, b in zip(starts, ends, strict=True)]
    if len(moved) == 2 and not any(moved):
        why = f"two lives made no progress past {starts[0]} tokens"
        return f"not requeued: {why}; give it more slurm.time or slurm.grace"
    if restarts >= max_restarts:
        return f"not requeued: slurm.max_restarts={max_restarts} is reached"
    return None


def lines_since(log: Path, start: int) -> list[str]:
    """What a life printed, without empty lines."""
    try:
        with log.open("rb") as file:
            file.seek(start)
            return [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    except FileNotFoundError:
        return []


if __name__ == "__main__":
    if sys.argv[1] == "begin":
        begin(Path(sys.argv[2]), os.environ)
    else:
        sys.exit(end(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5], os.environ))
