"""How the runs of a sweep stand: their own records first, then squeue, then sacct, then what run.sbatch noted.

    states(sweep) -> {run_id: State}

A record that says `completed` or `diverged` is believed. Whatever else it says may be of an earlier life, so Slurm is
asked whether there is another; where Slurm has forgotten a job and nothing noted its end, the run is lost.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.files import read_json, read_lines, read_yaml
from data.records import COMPLETED, DIVERGED, FAILED, PREEMPTED, live_holder
from slurm import cluster, manifest
from slurm.cluster import Job
from slurm.manifest import LOCAL, SLURM, Submission
from slurm.task import MEMORY_WORDS, OUT_OF_MEMORY, lines_since

RUNNING, PENDING, CANCELLED, LOST, TIMED_OUT = "running", "pending", "cancelled", "lost", "timed out"
NOT_SUBMITTED = "not submitted"
ORDER = (RUNNING, PENDING, COMPLETED, DIVERGED, FAILED, OUT_OF_MEMORY, TIMED_OUT, PREEMPTED, CANCELLED, LOST,
         NOT_SUBMITTED)  # fmt: skip
SLURM_ENDS = {
    "OUT_OF_MEMORY": OUT_OF_MEMORY,
    "TIMEOUT": TIMED_OUT,
    "DEADLINE": TIMED_OUT,
    "PREEMPTED": PREEMPTED,
    "NODE_FAIL": FAILED,
    "BOOT_FAIL": FAILED,
    "CANCELLED": CANCELLED,
    "REVOKED": CANCELLED,
}


@dataclass(frozen=True)
class State:
    """How a run stands, why, and in which job (Slurm's name of it, or the process on this machine)."""

    kind: str
    reason: str = ""
    job: str | None = None

    @property
    def live(self) -> bool:
        return self.kind in (RUNNING, PENDING)

    @property
    def finished(self) -> bool:
        return self.kind in (COMPLETED, DIVERGED)


def reconcile(sweep: Path) -> list[Submission]:
    """The sweep's submissions, after finding out what became of those that were cut off between sbatch and the
    manifest. Needs the manifest's lock: while sbatch is at work, somebody holds it."""
    submissions = manifest.read(sweep)
    open_ones = [submission for submission in submissions if submission.cut_off]
    if open_ones:
        refuse_elsewhere(open_ones)
        known = {job.comment: job.id.split("_")[0] for job in cluster.queue({s.user for s in open_ones}).values()}
        for submission in open_ones:
            # the job's own trace serves when the queue has forgotten it
            trace = submission.folder / "job"
            job = known.get(cluster.COMMENT + submission.id) or (trace.read_text().strip() if trace.exists() else None)
            event = {"job": job} if job else {"void": True}
            manifest.note(sweep, {"submission": submission.id, **event})
        submissions = manifest.read(sweep)
    return [submission for submission in submissions if not submission.void]


def refuse_elsewhere(submissions: Collection[Submission]) -> None:
    """ValueError where another cluster has these jobs: this one knows other jobs by their numbers."""
    others = {s.cluster for s in submissions} - {cluster.name()} if submissions else set()
    if others:
        raise ValueError(
            f"these runs were submitted to cluster {others.pop()}, and this is {cluster.name()}: ask there."
        )


def standing(sweep: Path) -> dict[str, State]:
    """How every run stands; what a crash cut off is found again first, unless a submission is under way."""
    submissions = manifest.read(sweep)
    if any(s.cut_off for s in submissions) and not live_holder(manifest.jobs_folder(sweep)):
        with manifest.locked(sweep):
            reconcile(sweep)
        submissions = manifest.read(sweep)
    return states(sweep, [s for s in submissions if not s.void])


def states(sweep: Path, submissions: Sequence[Submission], asked: Sequence[str] = ()) -> dict[str, State]:
    """How every run stands that was ever asked for, or is `asked` for now."""
    latest = manifest.latest(submissions)
    summaries = {run_id: summary_of(sweep / run_id) for run_id in [*manifest.run_ids(sweep), *asked]}
    ended = {run_id for run_id, summary in summaries.items() if summary.get("status") in (COMPLETED, DIVERGED)}
    arrays = {s.job: s for run_id, s in latest.items() if s.kind == SLURM and s.job and run_id not in ended}
    refuse_elsewhere(arrays.values())
    jobs = cluster.queue({s.user for s in arrays.values()}) if arrays else {}
    ours = {cluster.COMMENT + s.id for s in arrays.values()}
    jobs = {key: job for key, job in jobs.items() if job.comment in ours or cluster.COMMENT not in job.comment}
    forgotten = [job for job, s in arrays.items() if not all(s.task(r) in jobs for r in s.run_ids if r not in ended)]
    jobs = (cluster.accounted(forgotten) or {}) | jobs
    found = {}
    for run_id, summary in summaries.items():
        try:
            found[run_id] = state_of(sweep / run_id, summary, latest.get(run_id), jobs)
        except ValueError as error:  # a damaged record: the others go on
            found[run_id] = State(FAILED, str(error))
    return with_parents(sweep, found)


def state_of(folder: Path, summary: dict[str, Any], submission: Submission | None, jobs: Mapping[str, Job]) -> State:
    if summary.get("status") in (COMPLETED, DIVERGED):
        return State(summary["status"], str(summary.get("stop_reason", "")))
    if submission is None:
        holder = live_holder(folder)
        return State(RUNNING, job=holder) if holder else by_record(summary, NOT_SUBMITTED)
    if submission.kind == LOCAL:
        return local_state(folder, summary, submission)
    if submission.job is None:
        return State(PENDING, "is being submitted")
    whole = jobs.get(submission.job)  # an array that was cancelled before any of it began is one job
    return slurm_state(folder, summary, submission, jobs.get(submission.task(folder.name)) or whole)


def summary_of(folder: Path) -> dict[str, Any]:
    """The run's summary.json; that it is damaged is a way to have failed."""
    try:
        return read_json(folder / "summary.json")
    except ValueError as error:
        return {"status": FAILED, "stop_reason": str(error)}


def slurm_state(folder: Path, summary: dict[str, Any], submission: Submission, job: Job | None) -> State:
    name, run_id = submission.task(folder.name), folder.name
    if job and job.live and job.state != "COMPLETING":
        return State(PENDING if job.pending else RUNNING, job.reason if job.pending else "", name)
    noted = [row for row in read_lines(folder / "jobs.jsonl") if row["job"] == name]
    end = noted[-1] if noted and "status" in noted[-1] and not noted[-1]["requeued"] else None
    if job and job.live and not (end and end["status"] != PREEMPTED):  # by scancel: Slurm will say so
        return State(RUNNING, "", name)
    if run_id in submission.cancelled:
        return State(CANCELLED, "by `fulcrum slurm cancel`", name)
    kind = SLURM_ENDS.get(job.state, FAILED) if job else None
    if kind in (CANCELLED, None) and submission.data and not noted:  # it never began
        said = lines_since(submission.folder.with_name(submission.data) / "data.out", 0)
        errors = [
            line for line in said if line.startswith("error: ") or any(word in line.lower() for word in MEMORY_WORDS)
        ]
        if errors:
            return State(FAILED, f"its data could not be prepared: {errors[0].removeprefix('error: ')}", name)
    if kind == TIMED_OUT and end:
        return State(kind, f"{_slurms_words(job)}; {end['reason']}", name)
    if kind == CANCELLED or (kind and kind != FAILED and not end):
        return State(str(kind), _slurms_words(job), name)
    if end:
        return State(end["status"], end["reason"], name)
    if kind and job:  # Slurm knows that it ended, the script could not say how
        said = lines_since(submission.folder / f"{submission.run_ids.index(run_id)}.out", 0)
        return State(kind, "; ".join([_slurms_words(job), *said[-1:]]), name)
    left = "it left no word of its end" if noted else "it never began: cancelled while it waited, perhaps"
    return State(LOST, f"Slurm has forgotten the job, and {left}", name)


def _slurms_words(job: Job | None) -> str:
    assert job
    return f"Slurm: {job.state}" + (f", {job.reason}" if job.reason else "")


def local_state(folder: Path, summary: dict[str, Any], submission: Submission) -> State:
    holder = live_holder(folder)
    if holder:
        return State(RUNNING, job=holder)
    runner, lives = live_holder(submission.folder), read_lines(folder / "lives.jsonl")
    begun, cancelled = bool(lives) and lives[-1]["started"] >= submission.at, folder.name in submission.cancelled
    if runner and not begun:
        return State(PENDING, "waits for its turn", runner)
    if cancelled:
        return State(CANCELLED, "by `fulcrum slurm cancel`")
    if runner:
        return by_record(summary, RUNNING)
    said = lines_since(submission.folder / "output.log", 0)
    errors = [line for line in said if line.startswith("error: ")]
    if errors and not begun:
        return State(FAILED, errors[0].removeprefix("error: "))
    return by_record(summary, LOST, f"its runner on this machine is gone: {said[-1] if said else 'it said nothing'}")


def by_record(summary: dict[str, Any], otherwise: str, reason: str = "") -> State:
    """What the record alone says; `otherwise` where it says nothing."""
    status, why = summary.get("status"), str(summary.get("stop_reason", ""))
    if status == FAILED and any(word in why.lower() for word in MEMORY_WORDS):
        return State(OUT_OF_MEMORY, why)
    return State(status, why) if status else State(otherwise, reason)


def with_parents(sweep: Path, found: dict[str, State]) -> dict[str, State]:
    """The states with the reason of branches that cannot start: their parent did not get there."""
    told = dict(found)
    for run_id, state in found.items():
        if state.kind in (PENDING, CANCELLED, LOST, NOT_SUBMITTED):
            parent = parent_of(sweep / run_id)
            above = found.get(parent) if parent else None
            if above and not above.live and above.kind != COMPLETED:
                told[run_id] = State(state.kind, f"its parent {parent} is {above.kind}: {above.reason}", state.job)
    return told


def parent_of(folder: Path) -> str | None:
    """The run_id of a branch's parent. A damaged configuration tells none: resubmitting it will say so."""
    try:
        return (read_yaml(folder / "config.yaml").get("parent") or {}).get("run_id")
    except ValueError:
        return None
