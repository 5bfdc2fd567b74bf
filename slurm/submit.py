"""Handing points over to Slurm, or to a runner in the background of this machine; it returns at once.

    points --asked--> resource groups --> [a job for the data] --> arrays, children after their parents

Nothing is handed over unless every point is good and Slurm would take every group. Points that are finished or under
way are left alone, so the same command twice does nothing, and a wider grid adds what is new.
"""

import dataclasses
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from conf.branches import needs_parent
from conf.errors import user_errors
from conf.points import Point, expand
from data.__main__ import problems
from data.files import read_yaml
from data.prepare import NotPrepared, cache_folder
from data.records import COMPLETED, DIVERGED
from data.version import code_version
from slurm import background, cluster, manifest
from slurm.display import console
from slurm.dry_run import describe
from slurm.local import check_launch, data_requests, forget_divergence
from slurm.manifest import DATA, LOCAL, SLURM, Submission
from slurm.resources import Slurm, asked, for_data, options
from slurm.snapshot import snapshot
from slurm.states import NOT_SUBMITTED, RUNNING, State, reconcile, states

LOCAL_TARGET = "slurm.resources.Local"


def submit(overrides: Sequence[Sequence[str]]) -> None:
    """`fulcrum slurm submit`: hands over the points that are new."""
    with user_errors():
        points = expand(overrides, "submit")
        local = is_local(points)
        if any(point.config["dry_run"] for point in points):
            print(describe(points))
            for group in [] if local else groups_of(points):
                print(f"{plural(len(group.points))}: sbatch {shlex.join(group.options)}")
            return
        for sweep in dict.fromkeys(point.folder.parent for point in points):
            submit_new(sweep, [point for point in points if point.folder.parent == sweep])


def submit_new(sweep: Path, points: Sequence[Point]) -> None:
    """Hands over the points that were never submitted, and parents that did not get to where those branch off."""
    require(points)
    with manifest.locked(sweep) as lock:
        found = states(sweep, reconcile(sweep), [point.run_id for point in points])
        new = {point.run_id for point in points if found[point.run_id].kind == NOT_SUBMITTED}
        for point in reversed(points):  # parents come before their children
            if point.run_id in new and point.parent and needs_parent(point):
                above = found[point.parent.name]
                if not above.live and not above.finished:
                    new.add(point.parent.name)
        if new:
            keep_for_branches(points, found)
            hand_over(sweep, [point for point in points if point.run_id in new], found, lock)
        else:
            console.print(f"{plural(len(points))}, none of them new: nothing was submitted")
    ended = [p for p in points if p.run_id not in new and not (found[p.run_id].live or found[p.run_id].finished)]
    if ended:
        console.print(f"{plural(len(ended))} ended early: `fulcrum slurm resubmit {shown(sweep)}`", markup=False)
    console.print(f"`fulcrum slurm status {shown(sweep)}` shows how they stand", markup=False)


def resubmit(sweep: Path, changes: Mapping[str, Any], wanted: Sequence[str]) -> None:
    """Hands over again what is neither finished nor live, of the runs `wanted` or of all, with `changes` to how it is
    run, as {"slurm.mem": "8G"}; with launch.retry=diverged also what diverged."""
    with manifest.locked(sweep) as lock:
        submissions = reconcile(sweep)
        found = states(sweep, submissions)
        again = (COMPLETED,) if changes.get("launch.retry") == DIVERGED else (COMPLETED, DIVERGED)
        chosen = [
            run for run, s in found.items() if not s.live and s.kind not in again and (run in wanted or not wanted)
        ]
        if not chosen:
            console.print("every point is finished or under way: nothing was submitted")
            return
        if submissions:  # paths in the configurations may be relative to where they were submitted
            os.chdir(submissions[-1].cwd)
        latest = {run_id: s.kind for s in submissions if s.kind != DATA for run_id in s.run_ids}
        if all(latest.get(run_id) == LOCAL for run_id in chosen):  # this machine trained them: it does again
            changes = {"slurm._target_": LOCAL_TARGET, **changes}
        points = manifest.points_of(sweep, chosen, changes)
        require(points)
        hand_over(sweep, points, found, lock)


def require(points: Sequence[Point]) -> None:
    """Refuses what this machine, or Slurm, does not have, before anything is written."""
    if is_local(points):
        check_launch(points)
    else:
        cluster.largest_array()


def is_local(points: Sequence[Point]) -> bool:
    """Whether the points train on this machine. ValueError where some do and some do not."""
    local = {point.config["slurm"]["_target_"] == LOCAL_TARGET for point in points}
    if len(local) > 1:
        raise ValueError("slurm: some points would train on this machine and some on Slurm: submit them apart.")
    return local.pop()


def keep_for_branches(points: Sequence[Point], found: Mapping[str, State]) -> None:
    """Has parents that wait in the queue keep what new branches need; ValueError where one is past being asked."""
    for point in points:
        path, state = point.folder / "config.yaml", found[point.run_id]
        marks = point.config["launch"]["checkpoint"]["marks"]
        config = read_yaml(path)
        if state.live and config and (new := set(marks) - set(config["launch"]["checkpoint"]["marks"])):
            if state.kind == RUNNING:
                raise ValueError(
                    f"{point.run_id} is running and was not asked to keep its checkpoint at {min(new)} tokens, where a "
                    "new point branches off. Wait for its end, or cancel it and submit again."
                )
            config["launch"]["checkpoint"]["marks"] = marks
            manifest.write_config(point.folder, config)


def shown(sweep: Path) -> str:
    return shlex.quote(os.path.relpath(sweep))


def plural(points: int) -> str:
    return f"{points} point{'s' * (points != 1)}"


# ---------------------------------------------------------------------------------------------------- handing over


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


def hand_over(sweep: Path, points: Sequence[Point], found: Mapping[str, State], lock: IO[str]) -> None:
    """Writes the configurations of the points and submits them; none, where Slurm refuses what one of them asks for."""
    points = [point for point in points if not tell_stuck(point, found, points)]
    if not points:
        return
    if is_local(points):
        manifest.record_points(points)
        background.start(sweep, points)
        console.print(f"{plural(len(points))} in the background of this machine", markup=False)
        return
    refused = []
    for group in groups_of(points):
        if said := cluster.check(group.options):
            refused.append(f"  {plural(len(group.points))}: sbatch {shlex.join(group.options)}\n    {said}")
    if refused:
        raise ValueError("Slurm refuses these resources; nothing was submitted.\n" + "\n".join(refused))
    for point in points:  # as it is on this machine: a job may have another $FULCRUM_CACHE, or none
        point.config["launch"]["cache"] = str(cache_folder(point.config["launch"]["cache"]).absolute())
    requests = unprepared(points)
    code = snapshot(
        manifest.jobs_folder(sweep) / "code", leave_out=[sweep.parent, Path(points[0].config["launch"]["cache"])]
    )
    manifest.record_points(points)
    for point in points:
        if found[point.run_id].kind == DIVERGED:
            forget_divergence(point)
    before: list[str] = []
    jobs = len(manifest.read(sweep))
    try:
        if requests:
            slurm = for_data(asked(points[0]))
            data = begin(sweep, DATA, points, slurm, code, slurm.cpus_per_task or 1)
            (data.folder / "requests.json").write_text(json.dumps(requests))
            send(sweep, data, options(slurm, 1), slurm, lock)
            console.print(f"job {data.job} prepares the data first", markup=False)
            before = [f"afterok:{data.job}"]
        submit_generations(sweep, points, before, code, lock)
    except ValueError as error:
        if len(manifest.read(sweep)) > jobs + 1:
            error = ValueError(f"{error}\nWhat was submitted before stays; the same command again submits the rest.")
        raise error from None


def tell_stuck(point: Point, found: Mapping[str, State], points: Sequence[Point]) -> bool:
    """Whether a branch cannot start because its parent ended before it, and is not submitted with it; says so."""
    if not point.parent or not needs_parent(point) or point.parent.name in {p.run_id for p in points}:
        return False
    above = found[point.parent.name]
    if not above.live:
        console.print(f"not submitted: {point.run_id}: its parent {point.parent.name} is {above.kind}", markup=False)
    return not above.live


def submit_generations(
    sweep: Path, points: Sequence[Point], before: list[str], code: Path | None, lock: IO[str]
) -> None:
    """The points whose parents are there, then those that wait for these, and so on."""
    arrays = [s for s in manifest.read(sweep) if s.kind == SLURM and s.job]
    waiting = list(points)
    while waiting:
        names = {point.run_id for point in waiting}
        ready = [point for point in waiting if not (point.parent and point.parent.name in names)]
        waiting = [point for point in waiting if point not in ready]
        by_parent: dict[str | None, list[Point]] = {}
        for point in ready:
            by_parent.setdefault(parents_job(point, arrays), []).append(point)
        for parent, children in by_parent.items():
            after = [*before, *([f"afterok:{parent}"] if parent else [])]
            for group in groups_of(children):
                arrays += submit_arrays(sweep, group, after, code, lock)


def parents_job(point: Point, arrays: Sequence[Submission]) -> str | None:
    """The job that a branch waits for; None where what it starts from is there already."""
    if not point.parent or not needs_parent(point):
        return None
    for array in reversed(arrays):
        if point.parent.name in array.run_ids:
            return array.task(point.parent.name)
    raise ValueError(
        f"{point.parent.name}, the parent of {point.run_id}, is trained on this machine: wait for its end."
    )


def submit_arrays(sweep: Path, group: Group, before: list[str], code: Path | None, lock: IO[str]) -> list[Submission]:
    """Arrays as large as Slurm takes. Where only `slurm.parallel` may run at once, each waits for the one before."""
    size = cluster.largest_array()
    sent: list[Submission] = []
    chunks = [group.points[start : start + size] for start in range(0, len(group.points), size)]
    for chunk in chunks:
        array = begin(sweep, SLURM, chunk, group.slurm, code, group.threads)
        (array.folder / "folders").write_text("".join(f"{point.folder}\n" for point in chunk))
        after = [*before, *([f"afterany:{sent[-1].job}"] if sent and group.slurm.parallel else [])]
        at_once = f"%{group.slurm.parallel}" if group.slurm.parallel else ""
        words = [f"--array=0-{len(chunk) - 1}{at_once}", *([f"--dependency={','.join(after)}"] if after else [])]
        send(sweep, array, [*group.options, *words], group.slurm, lock)
        sent.append(array)
        console.print(f"job {array.job}: {plural(len(chunk))}" + (f", after {', '.join(after)}" if after else ""))
    return sent


def begin(sweep: Path, kind: str, points: Sequence[Point], slurm: Slurm, code: Path | None, threads: int) -> Submission:
    """Notes a submission and writes what its jobs read: arguments as files, a word a line, safe from every shell."""
    submission = manifest.begin(sweep, kind, [point.run_id for point in points], code_version())
    environment = {
        "PYTHONSAFEPATH": "1",  # a user's own data/ or train.py must not shadow ours
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",  # compute nodes never download
        "HF_DATASETS_OFFLINE": "1",
        **({"PYTHONPATH": str(code)} if code else {}),
    }
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in environment.items())
    (submission.folder / "environment.sh").write_text(f"{exports}{slurm.setup}\n")
    words = [*slurm.prefix, slurm.python or sys.executable]
    (submission.folder / "python").write_text("".join(f"{word}\n" for word in words))
    return submission


def send(sweep: Path, submission: Submission, words: Sequence[str], slurm: Slurm, lock: IO[str]) -> None:
    """Calls sbatch between two notes in the manifest. ValueError with Slurm's words, and a note that it was refused."""
    folder = str(submission.folder).replace("%", "%%")
    task = "data" if submission.kind == DATA else "%a"
    named = [f"--job-name={sweep.name}", f"--chdir={Path.cwd()}", f"--output={folder}/{task}.out"]
    fixed = ["--open-mode=append", "--kill-on-invalid-dep=yes"]
    try:
        submission.job = cluster.sbatch(
            [*named, *fixed, *words], [str(submission.folder), str(slurm.max_restarts)], submission.id, lock
        )
    except ValueError:
        manifest.note(sweep, {"submission": submission.id, "void": True})
        raise
    manifest.note(sweep, {"submission": submission.id, "job": submission.job})


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
