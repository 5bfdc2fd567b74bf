"""`fulcrum slurm status | resubmit | cancel | logs`: what became of a sweep, on Slurm or on this machine.

`fulcrum slurm submit` is a Hydra application, as `fulcrum train` is: slurm.submit.
"""

import argparse
import contextlib
import json
import math
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from conf.errors import user_errors
from data.files import read_json, read_yaml
from data.records import COMPLETED, DIVERGED, find_run, latest_row
from slurm import background, cluster, manifest
from slurm.display import branched, console, telling
from slurm.manifest import DATA, LOCAL, SLURM, Submission
from slurm.states import ORDER, RUNNING, State, reconcile, standing, states

COLORS = {RUNNING: "cyan", "pending": "dim", COMPLETED: "green", "not submitted": "dim"}

DESCRIPTION = "what became of a sweep, on Slurm or in the background of this machine (slurm=local)"
SWEEP = "the sweep's folder, runs/<experiment>, or the experiment's name below ./runs"


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="fulcrum slurm", description=DESCRIPTION)
    commands = parser.add_subparsers(dest="command", required=True, metavar="{submit,status,resubmit,cancel,logs}")
    commands.add_parser("submit", help="hand a sweep over and leave: `fulcrum slurm submit --help`")
    shows = commands.add_parser("status", help="how every run stands")
    shows.add_argument("sweep", help=SWEEP)
    shows.add_argument("--json", action="store_true", help="for programs")
    shows.add_argument("--watch", nargs="?", type=float, const=5.0, metavar="SECONDS", help="until all runs have ended")
    again = commands.add_parser("resubmit", help="submit again what is neither finished nor under way")
    again.add_argument("sweep", help=SWEEP)
    again.add_argument("words", nargs="*", metavar="run | key=value", help="these runs only; slurm.mem=64G and other "
                       "keys of slurm and launch, slurm=<name>, strategy=<name>; launch.retry=diverged")  # fmt: skip
    ends = commands.add_parser("cancel", help="end what waits or runs; running points checkpoint first")
    ends.add_argument("sweep", help=SWEEP)
    ends.add_argument("words", nargs="*", metavar="run", help="these runs only")
    logs = commands.add_parser("logs", help="what a run printed")
    logs.add_argument("run", help="run_id below ./runs, or the run's folder")
    logs.add_argument("-n", "--lines", type=int, default=50, help="how many last lines of each file")
    logs.add_argument("-f", "--follow", action="store_true", help="go on as the run prints more")
    asked = parser.parse_args(arguments)
    with user_errors():
        if asked.command == "logs":
            show_logs(asked.run, asked.lines, asked.follow)
            return
        sweep = manifest.find_sweep(asked.sweep)
        if asked.command == "status":
            show_status(sweep, asked.json, asked.watch)
            return
        runs = [word for word in asked.words if "=" not in word]
        if unknown := set(runs) - set(manifest.run_ids(sweep)):
            raise ValueError(f"{' '.join(sorted(unknown))}: no run of {sweep}; `fulcrum slurm status` lists them.")
        if asked.command == "cancel":
            cancel(sweep, runs)
        else:
            from slurm.submit import resubmit

            resubmit(sweep, changes_of([word for word in asked.words if "=" in word]), runs)


# ---------------------------------------------------------------------------------------------------- status


def show_status(sweep: Path, as_json: bool, every: float | None) -> None:
    screen = Console(highlight=False)
    if not screen.is_terminal:  # a file or a program cuts its lines itself
        screen.width = 10_000
    if as_json:
        print(json.dumps(described(sweep, standing(sweep)), indent=1))
    elif every is None:
        screen.print(table(sweep, standing(sweep)))
    else:
        with contextlib.suppress(KeyboardInterrupt), Live(console=screen, auto_refresh=False) as live:
            over = False
            while not over:
                try:
                    found = standing(sweep)
                    live.update(table(sweep, found), refresh=True)
                    over = not any(state.live for state in found.values())
                except ValueError as error:  # a controller that restarts will answer again
                    live.update(Text(str(error)), refresh=True)
                time.sleep(0 if over else every)


def described(sweep: Path, found: Mapping[str, State]) -> dict[str, Any]:
    """{sweep, counts, runs}: numbers in tokens, nats and seconds; null where there is none."""
    overrides = {row["run_id"]: row["overrides"] for row in read_json(sweep / "sweep.json").get("points", [])}
    labels, counts = telling(overrides), Counter(state.kind for state in found.values())
    runs = [described_run(sweep / run_id, labels.get(run_id, []), state) for run_id, state in found.items()]
    return {"sweep": str(sweep), "counts": {kind: counts[kind] for kind in ORDER if counts[kind]}, "runs": runs}


def described_run(folder: Path, label: list[str], state: State) -> dict[str, Any]:
    """A damaged file of its record is a reason, and costs what it would have told."""
    told: dict[str, Any] = {"run_id": folder.name, "label": " ".join(label), "state": state.kind}
    told |= {"reason": state.reason, "job": state.job}
    try:
        told["label"] = " ".join([*label, *branched(read_yaml(folder / "config.yaml"))])
        return told | progress(folder, state)
    except ValueError as error:
        unknown = dict.fromkeys(("step", "tokens", "loss", "total_tokens", "seconds_left"))
        return told | unknown | {"reason": state.reason or str(error)}


def progress(folder: Path, state: State) -> dict[str, Any]:
    """Where a run is: step, tokens, its budget, the last logged loss, and the seconds left where it is running."""
    row, total = latest_row(folder), read_json(folder / "run.json").get("total_tokens")
    left = None
    if state.kind == RUNNING and row and total:
        left = max(0.0, total - row["tokens"]) / row["tokens_per_second"]
    loss = row.get("loss")
    return {
        "step": row.get("step"),
        "tokens": row.get("tokens"),
        "loss": loss if loss is not None and math.isfinite(loss) else None,  # JSON has no NaN
        "total_tokens": total,
        "seconds_left": left,
    }


def table(sweep: Path, found: Mapping[str, State]) -> Group:
    told = described(sweep, found)
    grid = Table(box=None, pad_edge=False)
    for name in ("run", "", "state", "step", "tokens", "of", "loss", "left", "job", ""):
        numbers = name in ("step", "tokens", "of", "loss", "left")
        grid.add_column(name, justify="right" if numbers else "left", no_wrap=numbers or name == "state")
    for run in told["runs"]:
        share = f"{run['tokens'] / run['total_tokens']:.0%}" if run["tokens"] and run["total_tokens"] else ""
        cells = [
            run["run_id"],
            run["label"],
            Text(run["state"], style=COLORS.get(run["state"], "red")),
            f"{run['step']:,}" if run["step"] else "",
            f"{run['tokens']:,}" if run["tokens"] else "",
            share,
            f"{run['loss']:.4f}" if run["loss"] is not None else "",
            in_hours(run["seconds_left"]) if run["seconds_left"] is not None else "",
            run["job"] or "",
            run["reason"] if run["state"] not in (COMPLETED, RUNNING) else "",
        ]
        grid.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells))
    counts = ", ".join(f"{count} {kind}" for kind, count in told["counts"].items())
    lines = [Text(f"{len(told['runs'])} run{'s' * (len(told['runs']) != 1)}: {counts}")]
    if any(not state.live and state.kind not in (COMPLETED, DIVERGED) for state in found.values()):
        from slurm.submit import shown

        lines.append(Text(f"`fulcrum slurm resubmit {shown(sweep)}` submits again what is neither finished nor live"))
    return Group(grid, "", *lines)


def in_hours(seconds: float) -> str:
    """As 3:07:45."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


# ---------------------------------------------------------------------------------------------------- others


def changes_of(words: Sequence[str]) -> dict[str, Any]:
    """`slurm=a100 slurm.mem=8G strategy=fsdp` as {"slurm": {...}, "slurm.mem": "8G", "launch.strategy": {...}}."""
    from hydra import compose, initialize_config_module
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    groups = {"slurm": "slurm", "strategy": "launch.strategy", "logger": "launch.logger"}
    changes: dict[str, Any] = {}
    for word in words:
        try:
            parsed = OverridesParser.create().parse_override(word)
            key = parsed.key_or_group
            if parsed.is_sweep_override():
                raise ValueError(f"{word}: give one value; submit points that differ in it apart.")
            if key in groups:
                with initialize_config_module("conf", version_base="1.3"):
                    config = compose("config", [word])
                chosen = OmegaConf.select(config, groups[key])
                changes = {groups[key]: OmegaConf.to_container(chosen, resolve=True)} | changes
            else:
                changes[key] = parsed.value()
        except HydraException as error:
            raise ValueError(f"{word}: {' '.join(str(error).split())}") from None
    return changes


def cancel(sweep: Path, wanted: Sequence[str]) -> None:
    """Ends the live runs, or those of them that are `wanted`; a job that prepares data for none else ends too."""
    with manifest.locked(sweep):
        submissions = reconcile(sweep)
        found = states(sweep, submissions)
        live = {run_id for run_id, state in found.items() if state.live and (run_id in wanted or not wanted)}
        latest = manifest.latest(submissions)
        ended = []
        for submission in submissions:
            runs = [run for run in submission.run_ids if run in live and latest.get(run) is submission]
            if submission.kind == SLURM and runs:
                whole = all(not found[run].live or run in live for run in submission.run_ids)
                cluster.cancel([str(submission.job)] if whole else [submission.task(run) for run in runs])
            elif submission.kind == LOCAL and runs:
                refuse_some(submission, found, live)
                background.stop(submission)
            if runs:
                manifest.note(sweep, {"submission": submission.id, "cancelled": runs})
                ended += runs
        idle = [
            s for s in submissions if s.kind == DATA and not any(found[r].live and r not in live for r in s.run_ids)
        ]
        if ended and idle:
            jobs = cluster.queue({s.user for s in idle})
            cluster.cancel([str(s.job) for s in idle if s.job in jobs and jobs[s.job].live])
    console.print(f"asked {len(ended)} run{'s' * (len(ended) != 1)} to end" if ended else "nothing is live")


def refuse_some(submission: Submission, found: Mapping[str, State], live: set[str]) -> None:
    others = [run for run in submission.run_ids if found[run].live and run not in live]
    if others:
        raise ValueError(f"one runner trains these points and {', '.join(others)}: cancel the whole sweep.")


def show_logs(run: str, lines: int, follow: bool) -> None:
    """The last lines of what a run printed, and of its job's own output, by `tail`."""
    folder = find_run(run, Path("runs")).resolve()
    files = [folder / "output.log"]
    for submission in manifest.read(folder.parent):
        if folder.name in submission.run_ids:
            number = submission.run_ids.index(folder.name)
            files += [submission.folder / name for name in (f"{number}.out", "data.out", "output.log")]
    files = [file for file in files if file.exists() and (file.stat().st_size or follow)]
    if not files:
        raise ValueError(f"{folder} has printed nothing yet.")
    os.execvp("tail", ["tail", f"--lines={lines}", *(["--follow=name"] if follow else []), "--", *map(str, files)])
