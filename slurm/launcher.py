"""`fulcrum train`: from override lists to a finished sweep. One road for a single run, a grid and Hydra's launcher.

overrides of all points -> conf.points (validate every one) -> data prepared and checked -> slurm.local
"""

import contextlib
import json
import re
import shutil
import sys
from collections.abc import Iterator, Sequence

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from conf.branches import without_parent
from conf.errors import user_errors
from conf.points import Point, compose_config, expand, listed, plan_alone
from conf.search import outcomes, searched
from data.records import COMPLETED, DIVERGED, PREEMPTED_EXIT, live_holder, lock_run
from slurm import background, manifest
from slurm.display import branched, console, short_labels, telling
from slurm.dry_run import describe
from slurm.local import Stop, check_launch, prepare_data, run_points, status_of
from slurm.manifest import SLURM
from slurm.states import standing


def launch(overrides: Sequence[Sequence[str]]) -> None:
    """Validates and runs the points, and those that a search adds to them; ends the process with the sweep's exit code
    unless all completed. A dry run only validates and describes them."""
    stop = Stop()
    with user_errors():
        points = searched(expand(overrides))
        if any(re.match(r"\+*slurm[.=]", text) for own in overrides for text in own):
            print("warning: `fulcrum train` ignores slurm: it trains on this machine, here and now.", file=sys.stderr)
        if any(point.config["dry_run"] for point in points):
            print(describe(points))
            return
        code, due = 0, points
        while due and code != PREEMPTED_EXIT:
            check_launch(due)
            refuse_live(due)
            prepare_data(due, stop)
            refuse_live(due)  # preparing takes its time, and two sweeps may have been started at once
            with recorded(due):
                code = run_points(due, stop) or code
            longer = searched(points)
            points, due = longer, longer[len(points) :]
        for line in outcomes(points):
            console.print(f"search: {line}", markup=False)
    if code:
        sys.exit(code)


def refuse_live(points: Sequence[Point]) -> None:
    """ValueError where another process writes one of these runs, or a job that would waits in Slurm's queue."""
    live = {point.folder: holder for point in points if (holder := live_holder(point.folder))}
    for sweep in {point.folder.parent for point in points} if shutil.which("squeue") else ():
        in_slurm = {run_id for s in manifest.read(sweep) if s.kind == SLURM and not s.void for run_id in s.run_ids}
        waiting = [point for point in points if point.folder.parent == sweep and point.run_id in in_slurm]
        found = standing(sweep) if waiting else {}
        for point in waiting:
            if found[point.run_id].live:
                live.setdefault(point.folder, f"job {found[point.run_id].job}")
    if live:
        lines = "\n".join(f"  {folder} by {holder}" for folder, holder in live.items())
        raise ValueError(
            f"{len(live)} of these runs are being written right now, or wait for it:\n{lines}\nWait for them, or stop "
            "them (`fulcrum slurm cancel`)."
        )


@contextlib.contextmanager
def recorded(points: Sequence[Point]) -> Iterator[None]:
    """Records what is about to train, and that this process does it, for `fulcrum slurm status` and `cancel`."""
    unfinished = [point for point in points if status_of(point) not in (COMPLETED, DIVERGED)]
    with contextlib.ExitStack() as stack:
        for sweep in {point.folder.parent for point in points}:
            with manifest.locked(sweep):  # another sweep of this experiment may add its points at the same time
                manifest.record_points([point for point in points if point.folder.parent == sweep])
                mine = [point for point in unfinished if point.folder.parent == sweep]
                if mine:
                    stack.enter_context(lock_run(background.register(sweep, mine).folder))
        yield


def prepare(overrides: Sequence[Sequence[str]]) -> None:
    """What `fulcrum data` does with several points: each distinct data, tokenizer and cache once."""
    from data.__main__ import command

    with user_errors():
        configs = [compose_config(point) for point in overrides]
        for config in {json.dumps([c["data"], c["tokenizer"], c["launch"]["cache"]]): c for c in configs}.values():
            command(config)


def plan(overrides: Sequence[Sequence[str]]) -> None:
    """What `fulcrum plan` does: shows the plans of the points; how, the first point says."""
    from hydra import compose

    from scaling.plans import PlannedRun, show

    with user_errors():
        asked = listed(overrides)
        points = [point for point in expand(overrides, "plan") if point.config["launch"]["overrides"] in asked]
        options = compose("plan", list(overrides[0]))
        labels = short_labels(points)
        if len(points) == 1:
            labels = {
                p.run_id: " ".join([*without_parent(p.config["launch"]["overrides"]), *branched(p.config)])
                for p in points
            }
        runs = [
            PlannedRun(
                labels[p.run_id].removeprefix(p.run_id).strip() or "the plan",
                p.plan,
                p.shape.N,
                p.config["parent"]["run_id"] if p.config["parent"] else None,
            )
            for p in points
        ]
        show(runs, options.format, options.records, options.out)


def theory(overrides: Sequence[Sequence[str]]) -> None:
    """What `fulcrum theory` does: exact risks of the points' plans; how they are shown, the first point says."""
    from hydra import compose

    from data.problems import power_law
    from scaling.theory.show import Followed, show

    with user_errors():
        labels = telling({str(k): list(own) for k, own in enumerate(overrides)})
        options = [compose("theory", list(own)) for own in overrides]
        runs = [
            Followed(" ".join(label) or "the plan", power_law(**chosen.problem), *plan_alone(own, "theory"))
            for label, chosen, own in zip(labels.values(), options, overrides, strict=True)
        ]
        first = options[0]
        show(runs, list(first.algorithms), list(first.compare), first.format, first.out)


def plan_command(config: DictConfig) -> None:
    """What `fulcrum plan` runs without -m: one plan, by the same road."""
    plan([list(HydraConfig.get().overrides.task)])


def theory_command(config: DictConfig) -> None:
    """What `fulcrum theory` runs without -m: one plan, by the same road."""
    theory([list(HydraConfig.get().overrides.task)])


def submit_command(config: DictConfig) -> None:
    """What `fulcrum slurm submit` runs without -m: one point, by the same road."""
    from slurm.submit import submit

    submit([list(HydraConfig.get().overrides.task)])


def train_command(config: DictConfig) -> None:
    """What `fulcrum train` runs without -m, where Hydra calls no launcher: one point, by the same road."""
    launch([list(HydraConfig.get().overrides.task)])
