"""What was ever submitted of a sweep: an append-only file that survives a crash at any line.

    <runs>/<experiment>/.jobs/manifest.jsonl     {"version"}, then one event a line
    <runs>/<experiment>/.jobs/<submission>/      what the jobs of a submission read, and what they print
    <runs>/<experiment>/.jobs/code/<hash>/       the code that they run

A submission is an array of jobs, a job that prepares data, or a runner on this machine. It is noted before it is handed
over and again, with the job's id, after that; the job carries the submission's id as its comment, so one that was cut
off between the two is found again in Slurm's queue and never submitted twice.
"""

import contextlib
import os
import pwd
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import yaml
from hydra.errors import HydraException

from conf.points import Point, innermost, resolve
from conf.schema import Context
from data.files import append_line, read_json, read_lines, read_yaml, write_atomic, write_json
from data.records import COMPLETED, lock_run
from slurm.resources import Slurm

VERSION = 1
SLURM, DATA, LOCAL = "slurm", "data", "local"


@dataclass
class Submission:
    """An array of Slurm jobs, task k of which trains run k; a job that prepares data for them; or a local runner."""

    id: str
    kind: str
    run_ids: list[str]
    at: str
    """when it was submitted"""
    code: str
    """version of the code it runs"""
    cwd: str
    """the working directory that it was submitted from"""
    user: str
    """who submitted it: squeue is asked about their jobs"""
    folder: Path
    job: str | None = None
    """Slurm's id; None of a local runner, and until sbatch has answered"""
    data: str | None = None
    """the submission that prepares its data first"""
    cluster: str | None = None
    """Slurm's name of where it was submitted"""
    void: bool = False
    """it never reached Slurm"""
    cancelled: set[str] = field(default_factory=set)
    """runs that `fulcrum slurm cancel` ended"""

    @property
    def cut_off(self) -> bool:
        """Whether nobody knows if sbatch took it."""
        return self.kind != LOCAL and self.job is None and not self.void

    def task(self, run_id: str) -> str:
        """The job of a run as Slurm names it: 12_3."""
        return f"{self.job}_{self.run_ids.index(run_id)}"


def jobs_folder(sweep: Path) -> Path:
    return sweep / ".jobs"


def find_sweep(name: str) -> Path:
    """The folder of a sweep, given as such or as an experiment's name below ./runs. ValueError where there is none."""
    for folder in (Path(name), Path("runs") / name):
        if (folder / "sweep.json").is_file():
            return folder.resolve()
    near = sorted(str(path.parent) for path in Path("runs").glob("*/sweep.json"))
    raise ValueError(
        f"{name}: no sweep lies there (no sweep.json). Give its folder, as runs/<experiment>."
        + (f" There is: {', '.join(near)}." if near else "")
    )


@contextlib.contextmanager
def locked(sweep: Path) -> Iterator[IO[str]]:
    """Holds the sweep's manifest for this process. A program that inherits the file goes on holding it if this process
    is killed: nobody decides what was submitted while sbatch is still at it."""
    jobs_folder(sweep).mkdir(parents=True, exist_ok=True)
    with lock_run(jobs_folder(sweep)) as file:
        yield file


def note(sweep: Path, event: Mapping[str, Any]) -> None:
    """Appends an event, on disk when this returns."""
    path = jobs_folder(sweep) / "manifest.jsonl"
    if not read_lines(path):
        append_line(path, {"version": VERSION})
    append_line(path, event)


def begin(
    sweep: Path, kind: str, run_ids: Sequence[str], code: str, data: str | None = None, cluster: str | None = None
) -> Submission:
    """Notes a submission that is about to be handed over, and makes its folder."""
    name = uuid.uuid4().hex[:12]
    (jobs_folder(sweep) / name).mkdir(parents=True)
    at, user = time.strftime("%FT%T%z"), pwd.getpwuid(os.getuid()).pw_name
    fields: dict[str, Any] = {
        "kind": kind,
        "run_ids": list(run_ids),
        "at": at,
        "code": code,
        "cwd": os.getcwd(),
        "user": user,
        "data": data,
        "cluster": cluster,
    }
    note(sweep, {"submission": name, **fields})
    return Submission(name, folder=jobs_folder(sweep) / name, **fields)


def read(sweep: Path) -> list[Submission]:
    """Every submission of a sweep, oldest first. ValueError where another version of Fulcrum wrote the manifest."""
    path = jobs_folder(sweep) / "manifest.jsonl"
    first, *events = read_lines(path) or [{"version": VERSION}]
    if first.get("version") != VERSION:
        raise ValueError(
            f"{path} has version {first.get('version')}, this Fulcrum writes version {VERSION}: use the Fulcrum that "
            "wrote it, or give the sweep a launch.experiment of its own."
        )
    found: dict[str, Submission] = {}
    for event in events:
        name = event["submission"]
        if "kind" in event:
            fields = {key: event[key] for key in ("kind", "run_ids", "at", "code", "cwd", "user", "data", "cluster")}
            found[name] = Submission(name, **fields, folder=jobs_folder(sweep) / name)
        found[name].job = event.get("job", found[name].job)
        found[name].void |= event.get("void", False)
        found[name].cancelled |= set(event.get("cancelled", []))
    return list(found.values())


def latest(submissions: Sequence[Submission]) -> dict[str, Submission]:
    """run_id -> the last submission that trains it."""
    return {run_id: s for s in submissions if s.kind != DATA and not s.void for run_id in s.run_ids}


# ---------------------------------------------------------------------------------------------------- points


def run_ids(sweep: Path) -> list[str]:
    """Of all points that were ever asked for."""
    return [row["run_id"] for row in read_json(sweep / "sweep.json").get("points", [])]


def record_points(points: Sequence[Point]) -> None:
    """Writes config.yaml of every point, and sweep.json beside them: the points that were asked for, ever, and what the
    report shows. Needs the lock of the sweep's manifest."""
    for point in points:
        point.folder.mkdir(parents=True, exist_ok=True)
        if read_json(point.folder / "summary.json").get("status") != COMPLETED:
            write_config(point.folder, point.config)
    for sweep in {point.folder.parent for point in points}:
        mine = [point for point in points if point.folder.parent == sweep]
        known = {row["run_id"]: row for row in read_json(sweep / "sweep.json").get("points", [])}
        known |= {p.run_id: {"run_id": p.run_id, "overrides": p.config["launch"]["overrides"]} for p in mine}
        report = mine[-1].config["launch"]["report"]
        write_json(sweep / "sweep.json", {"experiment": sweep.name, "report": report, "points": list(known.values())})


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    write_atomic(folder / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False))


def points_of(sweep: Path, wanted: Sequence[str], changes: Mapping[str, Any] | None = None) -> list[Point]:
    """The points of these runs, from the configurations in their folders, with `changes` to how they are run.

    ValueError where a configuration is missing, and where a change is not one of how a point is run.
    """
    points = []
    for run_id in wanted:
        config = read_yaml(sweep / run_id / "config.yaml")
        if not config:
            raise ValueError(f"{sweep / run_id} has no config.yaml: run the sweep's own command again.")
        config["slurm"] = {"_target_": "slurm.resources.Slurm"} | asdict(Slurm()) | config.get("slurm", {})
        config["context"] = asdict(Context()) | config.get("context", {})
        for key, value in (changes or {}).items():
            change(config, key, value)
        config["launch"] |= {"runs": str(sweep.parent), "experiment": sweep.name}
        try:
            points.append(resolve(config, config["launch"]["overrides"]))
        except (ValueError, TypeError, HydraException) as error:
            raise ValueError(f"{run_id}: {innermost(error)}") from None
    return points


def change(config: dict[str, Any], key: str, value: Any) -> None:
    """Sets one key of `slurm`, `context` or `launch`, or one of these whole, in place."""
    *above, last = key.split(".")
    if (above or [last])[0] not in ("slurm", "context", "launch"):
        raise ValueError(f"{key}={value}: only slurm.*, context.* and launch.* may change, all else is another run.")
    node: Any = config
    for name in above:
        node = node.get(name) if isinstance(node, Mapping) else None
    if not isinstance(node, dict) or last not in node:
        there = f"there is {', '.join(sorted(node))}" if isinstance(node, Mapping) else f"{'.'.join(above)} has none"
        raise ValueError(f"{key}={value}: no such key; {there}.")
    node[last] = value
