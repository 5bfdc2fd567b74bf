"""Runs points on this machine: each in processes of its own, several at once, in any state of completion.

    finished points are skipped -> the others start, longest first -> metrics.jsonl is watched -> a summary

A branch starts when its parent's checkpoint is there, and never if the parent ended without writing it.

A worker writes its own record; this runner only starts it, watches it and passes signals on. If the runner is killed,
its workers end with it (they hold the other end of a pipe), and the next call resumes from their checkpoints.
"""

import contextlib
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conf.branches import needs_parent
from conf.points import Point
from data.files import read_json, read_lines
from data.records import (
    COMPLETED,
    DIVERGED,
    FAILED,
    LOCKED_EXIT,
    PREEMPTED,
    PREEMPTED_EXIT,
    checkpoint_folder,
    end_life,
    latest_row,
    live_holder,
    write_summary,
)
from slurm.display import Display, console, short_labels

GRACE = 10.0  # seconds that the other processes of a point get after one of them failed


# ---------------------------------------------------------------------------------------------------- data


def check_launch(points: Sequence[Point]) -> None:
    """Refuses what this machine lacks, and settings of the runner itself that differ from point to point."""
    for key in ("parallel", "threads", "devices", "retry"):
        values = {str(point.config["launch"][key]) for point in points}
        if len(values) > 1:
            raise ValueError(f"launch.{key} is {' and '.join(sorted(values))} in this sweep: use one for all points.")
    if any(point.config["launch"]["accelerator"] == "cuda" for point in points) and not _has_cuda():
        raise ValueError("launch.accelerator=cuda: this machine has no CUDA device. Use auto or cpu.")


def prepare_data(points: Sequence[Point], stop: "Stop") -> None:
    """Prepares what is missing and checks the points against it, in a process of its own. ValueError if it fails.

    A signal ends it, and this process with the code of a preempted sweep: what is prepared already stays.
    """
    requests = data_requests([point for point in points if status_of(point) != COMPLETED])
    if not requests:
        return
    command = [sys.executable, "-m", "data"]
    reader, _writer = os.pipe()  # open until this process ends: so long does the child live
    environment = child_environment(FULCRUM_PARENT_PIPE=reader)
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, text=True, env=environment, pass_fds=[reader], start_new_session=True
    )
    os.close(reader)
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError), process.stdin as pipe:  # its exit code tells of a child that fell
        pipe.write(json.dumps(requests))
    while process.poll() is None:
        time.sleep(0.05)
        if stop.asked:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
            sys.exit(PREEMPTED_EXIT)
    if process.returncode:
        raise ValueError("the data could not be prepared (see above); nothing was started.")


def data_requests(points: Sequence[Point]) -> list[dict[str, Any]]:
    """What `python -m data` is asked to prepare and to check."""
    return [
        {
            "run_id": point.run_id,
            "data": point.config["data"],
            "tokenizer": point.config["tokenizer"],
            "cache": point.config["launch"]["cache"],
            "sequence_length": point.config["sequence_length"],
            "unique_tokens": point.config["unique_tokens"],
            "seed": point.config["seed"],
            "largest_batch": int(point.plan.segments.batch_size.max()),
            "verify": point.config["launch"]["verify_data"],
        }
        for point in points
    ]


def child_environment(**extra: object) -> dict[str, str]:
    """A user's own data/ or train.py in the working directory must not shadow ours."""
    return os.environ | {"PYTHONSAFEPATH": "1"} | {key: str(value) for key, value in extra.items()}


# ---------------------------------------------------------------------------------------------------- points


@dataclass
class Running:
    """One point under way."""

    point: Point
    processes: list[subprocess.Popen]
    parent_pipe: int
    tokens_at_start: int
    log_start: int
    """where this life begins in output.log"""
    failed_at: float | None = None
    failed_rank: int | None = None
    """the rank that failed first: the others fail because of it"""
    signalled: bool = False
    """the runner asked it to end"""

    def signal(self, number: int) -> None:
        self.signalled = True
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number)


@dataclass
class Layout:
    """How many points at once, with how many threads a process."""

    parallel: int
    threads: int


def layout(points: Sequence[Point], cores: int | None = None) -> Layout:
    """Derived from all points of the sweep, finished or not: a resumed sweep must keep its thread count."""
    cores = cores or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    launch = points[0].config["launch"]
    on_cuda = launch["accelerator"] == "cuda" or (launch["accelerator"] == "auto" and _has_cuda())
    # Small models gain little from a second thread: points in parallel were 1.2 to 2 times as fast (docs/log.md).
    parallel = launch["parallel"] or (1 if on_cuda else max(1, min(cores // launch["devices"], len(points))))
    return Layout(parallel, launch["threads"] or max(1, cores // (parallel * launch["devices"])))


def _has_cuda() -> bool:
    return Path("/dev/nvidiactl").exists() or Path("/dev/nvidia0").exists()


def status_of(point: Point) -> str | None:
    return status_in(point.folder)


def status_in(folder: Path) -> str | None:
    return read_json(folder / "summary.json").get("status")


def run_points(points: Sequence[Point], stop: "Stop") -> int:
    """Trains what is not finished; returns 0 if all completed, 85 if stopped by a signal, else 1."""
    retry = points[0].config["launch"]["retry"]
    finished = {COMPLETED} if retry == DIVERGED else {COMPLETED, DIVERGED}
    skipped = [point for point in points if status_of(point) in finished]
    waiting = sorted((p for p in points if p not in skipped), key=lambda p: p.flops, reverse=True)
    plan = layout(points)
    how = f", {plan.parallel} at once, {plan.threads} thread{'s' * (plan.threads > 1)} each" if waiting else ""
    console.print(
        f"{len(points)} point{'s' * (len(points) > 1)}: {len(skipped)} finished, {len(waiting)} to train{how}"
    )

    running: list[Running] = []
    with Display(points, waiting) as display:
        while running or (waiting and not stop.asked):
            while len(running) < plan.parallel and not stop.asked:
                under_way = {point.folder for point in [*waiting, *(run.point for run in running)]}
                waiting = [point for point in waiting if startable(point) or point.parent in under_way]
                point = next(filter(startable, waiting), None)
                if point is None:
                    break
                waiting.remove(point)
                try:
                    running.append(start(point, plan.threads))
                except (OSError, ValueError) as error:  # a damaged record, a full disk: the others go on
                    console.print(f"{point.run_id} could not be started: {error}", markup=False)
                    continue
                display.started(point, running[-1].tokens_at_start)
            time.sleep(0.1)
            stop.deliver(running)
            for run in list(running):
                if ended(run):
                    running.remove(run)
                    try:
                        conclude(run)
                    except (OSError, ValueError) as error:
                        console.print(f"{run.point.run_id}: its end could not be recorded: {error}", markup=False)
                    display.ended(run.point)
                else:
                    display.update(run.point)
    return summarize(points, stopped=bool(stop.asked))


def startable(point: Point) -> bool:
    """Whether a point has what it starts from: a branch, its parent's checkpoint or one of its own."""
    if not needs_parent(point):
        return True
    assert point.parent
    retried = status_in(point.parent) == DIVERGED and point.config["launch"]["retry"] == DIVERGED  # it starts anew
    checkpoint = checkpoint_folder(point.parent, point.config["parent"]["tokens"])
    return (checkpoint / "manifest.json").exists() and not retried


def start(point: Point, threads: int) -> Running:
    """Starts the processes of a point, one per device; its config.yaml is there.

    A run that goes on keeps the thread count of its last life: other counts sum in another order.
    """
    if point.config["launch"]["retry"] == status_of(point) == DIVERGED:
        forget_divergence(point)
    write_summary(point.folder, {})
    lives = read_lines(point.folder / "lives.jsonl")
    if lives and point.config["launch"]["threads"] is None:
        threads = lives[-1]["threads"]
    reader, writer = os.pipe()
    world_size = point.config["launch"]["devices"]
    port = _free_port()
    log = point.folder / "output.log"
    log_start = log.stat().st_size if log.exists() else 0
    processes = []
    for rank in range(world_size):
        environment = child_environment(
            OMP_NUM_THREADS=threads,
            RANK=rank,
            LOCAL_RANK=rank,
            WORLD_SIZE=world_size,
            LOCAL_WORLD_SIZE=world_size,
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=port,
            FULCRUM_PARENT_PIPE=reader,
        )
        with log.open("a") as output:
            command = [sys.executable, "-m", "train", str(point.folder)]
            processes.append(
                # a session of its own: Ctrl-C reaches the runner, which passes one signal on
                subprocess.Popen(
                    command, env=environment, stdout=output, stderr=output, pass_fds=[reader], start_new_session=True
                )
            )
    os.close(reader)
    return Running(point, processes, writer, latest_row(point.folder).get("tokens", 0), log_start)


def forget_divergence(point: Point) -> None:
    """The run begins anew: from its last checkpoint it would diverge again."""
    write_summary(point.folder, {})
    shutil.rmtree(point.folder / "checkpoints", ignore_errors=True)
    (point.folder / "metrics.jsonl").unlink(missing_ok=True)


def ended(run: Running) -> bool:
    """Whether all processes of the point are gone; after one failed, the others are ended too."""
    codes = [process.poll() for process in run.processes]
    failed = [rank for rank, code in enumerate(codes) if code not in (None, 0, PREEMPTED_EXIT)]
    if failed and run.failed_at is None:
        killed = [rank for rank in failed if (codes[rank] or 0) < 0]  # of those seen at once: the others saw it go
        run.failed_at, run.failed_rank = time.monotonic(), (killed or failed)[0]
    if run.failed_at is not None and time.monotonic() - run.failed_at > GRACE:
        for process in run.processes:
            process.kill()
    return None not in codes


def conclude(run: Running) -> None:
    """Sees to it that the record says how a run ended that could not say so itself (killed, out of memory)."""
    os.close(run.parent_pipe)
    folder = run.point.folder
    with (folder / "output.log").open(errors="replace") as log:
        log.seek(run.log_start)
        for line in log:
            if line.startswith("warning: "):
                console.print(f"{run.point.run_id}: {line.rstrip()}", markup=False)
    if run.failed_rank is None or run.processes[run.failed_rank].returncode == LOCKED_EXIT:
        return
    code = run.processes[run.failed_rank].returncode
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    reason = f"rank {run.failed_rank}: {how}"
    summary = read_json(folder / "summary.json")
    if run.signalled and code < 0:
        write_summary(folder, {"status": PREEMPTED, "stop_reason": reason})
    elif "status" not in summary:
        write_summary(folder, {"status": FAILED, "stop_reason": reason})
    elif summary["status"] == FAILED and run.failed_rank > 0:  # rank 0 only saw the others go
        write_summary(folder, summary | {"stop_reason": f"{reason}; then {summary['stop_reason']}"})
    end_life(folder, status_of(run.point) or FAILED)


def summarize(points: Sequence[Point], stopped: bool) -> int:
    """Lists what did not complete; the sweep's exit code."""
    bad = [(p, read_json(p.folder / "summary.json")) for p in points if status_of(p) != COMPLETED]
    labels = short_labels(points)
    for point, summary in bad:
        status = summary.get("status", "unfinished")
        if not startable(point) and not stopped:
            assert point.parent
            reason = f"its parent {point.parent.name} is {status_in(point.parent) or 'unfinished'}"
            console.print(f"not started: {labels[point.run_id]}: {reason}", markup=False)
        elif status in (FAILED, DIVERGED) or not stopped:
            holder = live_holder(point.folder)
            reason = f"is being written by {holder}" if holder else summary.get("stop_reason", "has no end on record")
            console.print(f"{status}: {labels[point.run_id]}: {reason}", markup=False)
            console.print(f"    {point.folder / 'output.log'}", markup=False)
    done = len(points) - len(bad)
    console.print(f"{done} of {len(points)} points completed" + (", stopped by a signal" if stopped and bad else ""))
    if stopped and bad:
        console.print("the same command resumes them")
        return PREEMPTED_EXIT
    return 1 if bad else 0


class Stop:
    """SIGINT, SIGTERM or SIGUSR1 asks the running points to checkpoint and end; a second one ends them at once."""

    def __init__(self) -> None:
        self.asked = 0
        self._delivered = 0
        self._last = -math.inf
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._on_signal)

    def _on_signal(self, *_: Any) -> None:
        if time.monotonic() - self._last > 1:  # a batch system may send one signal twice
            self.asked += 1
        self._last = time.monotonic()

    def deliver(self, running: Sequence[Running]) -> None:
        if self.asked > self._delivered:
            first = self._delivered == 0
            self._delivered = self.asked
            words = "stopping: running points checkpoint first (a second signal ends them at once)"
            console.print(words if first else "ending the running points now")
            for run in running:
                run.signal(signal.SIGTERM if first else signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
