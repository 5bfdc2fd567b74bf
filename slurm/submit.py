"""`fulcrum slurm submit` and `resubmit`: which points are handed over, to Slurm or to the background of this machine.

Nothing is handed over unless every point is good and Slurm would take every group. Points that are finished or under
way are left alone, so the same command twice does nothing, and a wider grid adds what is new.
"""

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from conf.branches import needs_parent
from conf.errors import user_errors
from conf.points import Point, expand
from conf.search import searched
from data.files import read_yaml
from data.prepare import cache_folder
from data.records import COMPLETED, DIVERGED
from slurm import background, cluster, manifest
from slurm.arrays import groups_of, plural, submit_points, unprepared
from slurm.display import console
from slurm.dry_run import describe
from slurm.local import check_launch, forget_divergence
from slurm.manifest import LOCAL
from slurm.resources import asked, for_data, options
from slurm.snapshot import snapshot
from slurm.states import NOT_SUBMITTED, RUNNING, State, reconcile, states

LOCAL_TARGET = "slurm.resources.Local"


def submit(overrides: Sequence[Sequence[str]]) -> None:
    """`fulcrum slurm submit`: hands over the points that are new."""
    with user_errors():
        points = searched(expand(overrides, "submit"), "submit")
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
        if submissions and Path(submissions[-1].cwd).is_dir():  # relative paths mean what they meant there
            os.chdir(submissions[-1].cwd)
        latest = manifest.latest(submissions)
        # what this machine trained, it trains again
        if all(run_id in latest and latest[run_id].kind == LOCAL for run_id in chosen):
            changes = {"slurm._target_": LOCAL_TARGET, **changes}
        points = manifest.points_of(sweep, chosen, changes)
        require(points)
        hand_over(sweep, points, found, lock)


def require(points: Sequence[Point]) -> None:
    """Refuses what this machine, or Slurm, does not have, before anything is written."""
    if is_local(points):
        check_launch(points)
    else:
        cluster.settings()


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
    asks = [(group.options, plural(len(group.points))) for group in groups_of(points)]
    for point in points:  # as it is on this machine: a job may have another $FULCRUM_CACHE, or none
        point.config["launch"]["cache"] = str(cache_folder(point.config["launch"]["cache"]).absolute())
    requests = unprepared(points)
    if requests:
        asks.append((options(for_data(asked(points[0])), 1), "the preparation of data"))
    refused = [
        f"  {what}: sbatch {shlex.join(words)}\n    {said}" for words, what in asks if (said := cluster.check(words))
    ]
    if refused:
        raise ValueError("Slurm refuses these resources; nothing was submitted.\n" + "\n".join(refused))
    data = [Path(point.config["launch"]["cache"]) for point in points]
    records = [sweep, *(path.parent for path in sweep.parent.glob("*/sweep.json"))]
    code = snapshot(manifest.jobs_folder(sweep) / "code", leave_out=[*records, *data])
    manifest.record_points(points)
    for point in points:
        if found[point.run_id].kind == DIVERGED:
            forget_divergence(point)
    submit_points(sweep, points, code, requests, lock)


def tell_stuck(point: Point, found: Mapping[str, State], points: Sequence[Point]) -> bool:
    """Whether a branch cannot start because its parent ended before it, and is not submitted with it; says so."""
    if not point.parent or not needs_parent(point) or point.parent.name in {p.run_id for p in points}:
        return False
    above = found[point.parent.name]
    if not above.live:
        console.print(f"not submitted: {point.run_id}: its parent {point.parent.name} is {above.kind}", markup=False)
    return not above.live
