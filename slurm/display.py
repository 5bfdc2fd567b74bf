"""What a sweep shows while it runs: a bar per running point and one for the sweep, read from the points' own records.

Where stderr is no terminal there are no bars, only a line for each point that ends.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from conf.branches import without_parent
from conf.points import Point
from data.files import read_json
from data.records import latest_row

console = Console(stderr=True, highlight=False, soft_wrap=True)


def short_labels(points: Sequence[Point]) -> dict[str, str]:
    """run_id -> the run_id, the overrides that tell the points apart, and where a branch starts."""
    apart = telling({point.run_id: point.config["launch"]["overrides"] for point in points})
    return {point.run_id: " ".join([point.run_id, *apart[point.run_id], *branched(point.config)]) for point in points}


def telling(overrides: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """run_id -> those of its overrides that not all runs have; none where there is one run."""
    own = {run_id: without_parent(given) for run_id, given in overrides.items()}
    common = set.intersection(*(set(given) for given in own.values())) if own else set()
    return {run_id: [_short(o) for o in given if o not in common] for run_id, given in own.items()}


def branched(config: Mapping[str, Any]) -> list[str]:
    """["from <run_id> at <tokens> tokens"] of a branch, else []."""
    parent = config.get("parent")
    return [f"from {parent['run_id']} at {parent['tokens']:,} tokens"] if parent else []


def _short(override: str) -> str:
    """`vars.scale=64000000.0` as `vars.scale=6.4e+07`."""
    key, _, value = override.partition("=")
    try:
        return f"{key}={float(value):g}"
    except ValueError:
        return override


@dataclass
class Display:
    """One bar per running point and one for the sweep, in FLOPs; plain lines where there is no terminal."""

    points: Sequence[Point]
    waiting: Sequence[Point]
    tasks: dict[str, Any] = field(default_factory=dict)

    def __enter__(self) -> "Display":
        self.labels = short_labels(self.points)
        self.count = 0
        self.total = len(self.waiting)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[detail]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self.progress.start()
        self.sweep = self.progress.add_task("sweep", total=sum(p.flops for p in self.waiting), detail="")
        self.seen = {point.run_id: 0.0 for point in self.waiting}
        return self

    def __exit__(self, *_: Any) -> None:
        self.progress.stop()

    def started(self, point: Point, tokens: int) -> None:
        task = self.progress.add_task(
            self.labels[point.run_id],
            total=_own(point, point.plan.final_tokens),
            completed=_own(point, tokens),
            detail="",
        )
        self.tasks[point.run_id] = task
        if tokens:
            console.print(f"resumes: {self.labels[point.run_id]}", markup=False)

    def update(self, point: Point) -> None:
        row = latest_row(point.folder)
        if row:
            detail = (
                f"{row['tokens'] / 1e6:.2f}M tokens  loss {row['loss']:.3f}  {row['tokens_per_second'] / 1e3:.1f}k/s"
            )
            self.progress.update(self.tasks[point.run_id], completed=_own(point, row["tokens"]), detail=detail)
            self._advance(point, row["tokens"])

    def ended(self, point: Point) -> None:
        self.progress.remove_task(self.tasks.pop(point.run_id))
        self._advance(point, point.plan.final_tokens)
        self.count += 1
        summary = read_json(point.folder / "summary.json")
        loss = f"  eval loss {summary['eval_loss']:.4f}" if "eval_loss" in summary else ""
        seconds = f"  {summary['seconds']:.0f} s" if "seconds" in summary else ""
        status = summary.get("status", "unfinished")
        line = f"[{self.count}/{self.total}] {status}: {self.labels[point.run_id]}{loss}{seconds}"
        console.print(line, markup=False)

    def _advance(self, point: Point, tokens: int) -> None:
        self.seen[point.run_id] = point.flops * _own(point, tokens) / _own(point, point.plan.final_tokens)
        done = f"{self.count}/{self.total} points"
        self.progress.update(self.sweep, completed=sum(self.seen.values()), detail=done)


def _own(point: Point, tokens: int) -> int:
    """Of so many tokens those that the point itself has seen: a branch's clock goes on from its parent's."""
    return max(0, tokens - point.plan.start_tokens)
