"""Arrays of jobs: points that ask for the same, in pieces as large as Slurm takes, children after their parents.

    points --groups_of--> groups --submit_points--> [a job for the data] and arrays

sbatch is called between two notes in the manifest. What a job reads lies in a file, a word a line,
safe from every shell (run.sbatch).
"""

import dataclasses
import json
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from conf.branches import needs_parent
from conf.points import Point
from data.__main__ import problems
from data.prepare import NotPrepared
from data.version import code_version
from slurm import cluster, manifest
from slurm.display import console
from slurm.local import data_requests
from slurm.manifest import DATA, LOCAL, SLURM, Submission
from slurm.resources import Slurm, asked, for_data, options


def plural(points: int) -> str:
    return f"{points} point{'s' * (points != 1)}"


@dataclass
class Group:
    """Points whose jobs ask for the same: they can be one array."""

    slurm: Slurm
    options: list[str]
    threads: int
    points: list[Point]


def groups_of(points: Sequence[Point]) -> list[Group]:
    """The points by what they ask for, the longest first. ValueError names all whose resources make no sense."""
    groups: dict[str, Group] = {}
    bad = []
    for point in sorted(points, key=lambda point: -point.flops):
        launch = point.config["launch"]
        try:
            slurm = asked(point)
        except ValueError as error:
            bad.append(f"  {' '.join(launch['overrides'])}\n    {error}")
            continue
        assert slurm.cpus_per_task
        threads = launch["threads"] or slurm.cpus_per_task
        key = json.dumps([dataclasses.asdict(slurm), launch["devices"], threads])
        new = Group(slurm, options(slurm, launch["devices"]), threads, [])
        groups.setdefault(key, new).points.append(point)
    if bad:
        raise ValueError(f"{len(bad)} of {len(points)} points are not valid; nothing was submitted.\n" + "\n".join(bad))
    return list(groups.values())


def submit_points(
    sweep: Path, points: Sequence[Point], code: Path | None, requests: list[dict[str, Any]], lock: IO[str]
) -> None:
    """Submits the points with the copy `code`, after a job for the data that the `requests` name, if any.

    ValueError with Slurm's words where it refuses, and with what was submitted before that.
    """
    jobs = len(manifest.read(sweep))
    handover = Handover(sweep, code, lock)
    try:
        if requests:
            handover.prepare_data(points, requests)
        waiting = list(points)
        while waiting:  # those whose parents are there, then those that wait for these, and so on
            names = {point.run_id for point in waiting}
            ready = [point for point in waiting if not (point.parent and point.parent.name in names)]
            waiting = [point for point in waiting if point not in ready]
            by_parent: dict[str | None, list[Point]] = {}
            for point in ready:
                by_parent.setdefault(parents_job(point), []).append(point)
            for parent, children in by_parent.items():
                for group in groups_of(children):
                    handover.submit_arrays(group, parent)
    except ValueError as error:
        if len(manifest.read(sweep)) > jobs + 1:
            error = ValueError(f"{error}\nWhat was submitted before stays; the same command again submits the rest.")
        raise error from None


def parents_job(point: Point) -> str | None:
    """The job that a branch waits for; None where what it starts from is there already."""
    if not point.parent or not needs_parent(point):
        return None
    name = point.parent.name
    latest = manifest.latest(manifest.read(point.parent.parent))[name]
    if latest.kind == LOCAL:
        raise ValueError(f"{name}, the parent of {point.run_id}, is trained on this machine: wait for its end.")
    return latest.task(name)


@dataclass
class Handover:
    """What the jobs of one command share."""

    sweep: Path
    code: Path | None
    """the copy of the code that they run; None: the installation"""
    lock: IO[str]
    """of the manifest"""
    data: Submission | None = None
    """prepares the data before they start"""

    def prepare_data(self, points: Sequence[Point], requests: list[dict[str, Any]]) -> None:
        slurm = for_data(asked(points[0]))
        data = self.begin(DATA, points, slurm, slurm.cpus_per_task or 1)
        (data.folder / "requests.json").write_text(json.dumps(requests))
        self.send(data, options(slurm, 1), slurm)
        console.print(f"job {data.job} prepares the data first", markup=False)
        self.data = data

    def submit_arrays(self, group: Group, parent: str | None) -> None:
        """As large as Slurm takes; where only `slurm.parallel` may run at once, each waits for the one before."""
        largest, before = cluster.largest_array(), None
        size = min(largest, group.slurm.array_size or largest)
        for start in range(0, len(group.points), size):
            chunk = group.points[start : start + size]
            array = self.begin(SLURM, chunk, group.slurm, group.threads)
            (array.folder / "folders").write_text("".join(f"{point.folder}\n" for point in chunk))
            after = {"afterok": [job for job in (self.data.job if self.data else None, parent) if job]}
            after["afterany"] = [before] if before and group.slurm.parallel else []
            dependency = ",".join(f"{how}:{job}" for how, jobs in after.items() for job in jobs)
            at_once = f"%{group.slurm.parallel}" if group.slurm.parallel else ""
            words = [f"--array=0-{len(chunk) - 1}{at_once}", *([f"--dependency={dependency}"] if dependency else [])]
            self.send(array, [*group.options, *words], group.slurm)
            before = array.job
            console.print(f"job {array.job}: {plural(len(chunk))}" + (f", {dependency}" if dependency else ""))

    def begin(self, kind: str, points: Sequence[Point], slurm: Slurm, threads: int) -> Submission:
        """Notes a submission and writes what its jobs read."""
        run_ids, data = [point.run_id for point in points], self.data.id if self.data else None
        submission = manifest.begin(self.sweep, kind, run_ids, code_version(), data, cluster.name())
        environment = {
            "PYTHONSAFEPATH": "1",  # a user's own data/ or train.py must not shadow ours
            "OMP_NUM_THREADS": str(threads),
            "HF_HUB_OFFLINE": "1",  # compute nodes never download
            "HF_DATASETS_OFFLINE": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, [str(self.code or ""), os.environ.get("PYTHONPATH")])),
        }
        exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in environment.items())
        (submission.folder / "environment.sh").write_text(f"{exports}{slurm.setup}\n")
        words = [*slurm.prefix, slurm.python or sys.executable]
        (submission.folder / "python").write_text("".join(f"{word}\n" for word in words))
        return submission

    def send(self, submission: Submission, words: Sequence[str], slurm: Slurm) -> None:
        """Calls sbatch and notes the job's id. ValueError with Slurm's words; as it may have taken the job all the same
        (its answer was lost), only its queue tells: the next command asks it."""
        folder = str(submission.folder).replace("%", "%%")
        task = "data" if submission.kind == DATA else "%a"
        named = [f"--job-name={self.sweep.name}", f"--chdir={Path.cwd()}", f"--output={folder}/{task}.out"]
        fixed = ["--open-mode=append", "--kill-on-invalid-dep=yes"]
        arguments = [str(submission.folder), str(slurm.max_restarts)]
        submission.job = cluster.sbatch([*named, *fixed, *words], arguments, submission.id, self.lock)
        manifest.note(self.sweep, {"submission": submission.id, "job": submission.job})


def unprepared(points: Sequence[Point]) -> list[dict[str, Any]]:
    """What a job has to prepare, [] where all is there and fits. ValueError where it does not fit, and where it would
    have to be downloaded: compute nodes have no network."""
    requests = data_requests(points)
    try:
        found = problems(requests, make=False)
    except NotPrepared as error:
        for point in points:
            for name, source in point.config["data"]["sources"].items():
                if source["_target_"] == "data.sources.Hub" and not os.path.isdir(source["dataset"]):
                    raise ValueError(
                        f"data.sources.{name}.dataset={source['dataset']} is not prepared ({error}), and compute nodes "
                        "do not download. Run `fulcrum data` with the same data, tokenizer and launch.cache here first."
                    ) from None
        return requests
    if found:
        raise ValueError("\n".join(f"{message} ({', '.join(runs)})" for message, runs in found.items()))
    return []
