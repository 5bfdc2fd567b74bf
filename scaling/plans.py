"""`fulcrum plan`: what plans would do, without training: table, picture, JSON.

[PlannedRun(label, plan, N)] --show--> terminal, or JSON; a file with learning rate and batch size against tokens
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.markup import escape
from rich.table import Table

from data.records import load_curves, load_runs
from optim.plan import Plan
from optim.ramps import ConstantBatch
from scaling.terminal import console
from scaling.wording import short

_BARS = " ▁▂▃▄▅▆▇█"
_WIDTH = 32  # characters of a picture in the terminal
_LISTED = 30  # rows of a plan's segments on the terminal; JSON has them all
_POINTS = 400  # of a curve in the figure
_BEYOND = 2  # times the largest measured batch: so far seconds are extrapolated


@dataclass(frozen=True)
class PlannedRun:
    """One point of a sweep: `label` tells it from the others, `N` finds records of the same model; `parent` is the
    run_id that a branch goes on from."""

    label: str
    plan: Plan
    N: int
    parent: str | None = None

    @property
    def constant(self) -> Plan:
        """The same plan with the first batch throughout: what steps and seconds are saved against."""
        return dataclasses.replace(self.plan, ramp=ConstantBatch(int(self.plan.segments.batch_size[0])))


def show(runs: Sequence[PlannedRun], form: str = "table", records: str | None = None, out: str | None = None) -> None:
    """Prints the plans as a table with pictures, or as JSON, and writes the figure to `out`.

    `records` is a folder of runs: their speeds tell how long the plans would take. ValueError for a form or a kind of
    file that there is not, and for records of no use.
    """
    if form not in ("table", "json"):
        raise ValueError(f"format={form}: use table or json.")
    speeds = [seconds_per_step(records, run) if records else {} for run in runs]
    described = [describe(run, measured) for run, measured in zip(runs, speeds, strict=True)]
    for run, measured, numbers in zip(runs, speeds, described, strict=True):
        if records and numbers["seconds"] is None:
            batches = run.plan.segments.batch_size
            print(
                f"{run.label}: no time is estimated, it needs batches of {batches.min()} to {batches.max()}; records="
                f"{records} has {min(measured, default=0)} to {max(measured, default=0)}.",
                file=sys.stderr,
            )
    if out:
        from scaling.drawing import write

        write(figure(runs), Path(out))
    if form == "json":
        print(json.dumps(described if len(runs) > 1 else described[0], indent=1))
    else:
        _print(runs, described)


def describe(run: PlannedRun, measured: dict[int, float]) -> dict[str, Any]:
    """The plan in numbers. `measured`: batch size -> seconds per step; without it `seconds` are null."""
    plan, constant = run.plan, run.constant
    segments = plan.segments
    seconds, before = (_seconds(p, measured) for p in (plan, constant))
    rate = plan.lr(segments.tokens)
    return {
        "label": run.label,
        "parent": run.parent,
        "start_tokens": plan.start_tokens,
        "total_tokens": plan.total_tokens,
        "final_tokens": plan.final_tokens,
        "serial_steps": plan.serial_steps,
        "constant_batch_steps": constant.serial_steps,
        "steps_saved": 1 - plan.serial_steps / constant.serial_steps,
        "seconds": seconds,
        "constant_batch_seconds": before,
        "seconds_saved": None if seconds is None or before is None else 1 - seconds / before,
        "segments": [
            {"tokens": int(t), "steps": int(n), "batch_size": int(b), "lr": float(lr)}
            for t, n, b, lr in zip(segments.tokens, segments.steps, segments.batch_size, rate, strict=True)
        ],
    }


def seconds_per_step(records: str, run: PlannedRun) -> dict[int, float]:
    """Batch size -> median seconds per step, over completed runs of this N and sequence length below `records`.

    A logged row counts when all its steps had its batch: it is one step, or its batch is that of the row before. The
    records should come from the devices and the layout that are asked about.
    """
    length = run.plan.sequence_length
    runs = load_runs(records)
    same = runs[(runs["status"] == "completed") & (runs["N"] == run.N) & (runs["sequence_length"] == length)]
    if same.empty:
        raise ValueError(
            f"records={records} has no completed run with N={run.N} and sequence_length={length}: speeds of another "
            "model say nothing about this one."
        )
    curves = load_curves(records)
    curves = curves[curves["run_id"].isin(same["run_id"])].sort_values(["run_id", "tokens"])
    before = curves.groupby("run_id")[["batch_size", "step"]].shift()
    steady = curves[(curves["batch_size"] == before["batch_size"]) | (curves["step"] == before["step"] + 1)]
    each = steady["batch_size"] * length / steady["tokens_per_second"]
    return {int(b): float(s) for b, s in each.groupby(steady["batch_size"]).median().items()}


def _seconds(plan: Plan, measured: dict[int, float]) -> float | None:
    """Expected training seconds; None where a batch lies below those that were measured, or far above them.

    Between them seconds per step are interpolated. Above, up to twice the largest, they grow with the batch.
    """
    sizes = np.array(sorted(measured))
    batches = plan.segments.batch_size
    if not len(sizes) or batches.min() < sizes[0] or batches.max() > _BEYOND * sizes[-1]:
        return None
    per_step = np.interp(batches, sizes, [measured[int(size)] for size in sizes])
    return float((plan.segments.steps * per_step * np.maximum(batches / sizes[-1], 1)).sum())


def figure(runs: Sequence[PlannedRun]) -> dict[str, Any]:
    """Learning rate and batch size against tokens, one line per plan, as a Vega-Lite specification."""
    import altair as alt

    from scaling.drawing import COUNT_LABEL, Data, category, log_axis

    frames = []
    for run in runs:
        plan = run.plan
        tokens = np.unique(np.append(_evenly(plan, _POINTS), plan.segments.tokens))
        sizes = _batch_sizes(plan, tokens)
        frames.append(pd.DataFrame({"tokens": tokens, "lr": plan.lr(tokens), "batch_size": sizes, "plan": run.label}))
    data, table = Data(), pd.concat(frames)
    colour = category("plan", [run.label for run in runs]) if len(runs) > 1 else alt.value("#222222")
    across = alt.X("tokens:Q", title="training tokens", axis=alt.Axis(labelExpr=COUNT_LABEL, tickCount=6))
    rate = alt.Y("lr:Q", title="learning rate")
    batch = log_axis(alt.Y, "batch_size", "batch size (sequences)", table["batch_size"], COUNT_LABEL)
    panels = [
        data.chart(table)
        .mark_line(interpolate="step-after", strokeWidth=1.8)
        .encode(across, y, color=colour)
        .properties(width=420, height=260)
        for y in (rate, batch)
    ]
    return data.finish(alt.hconcat(*panels, spacing=28), legend="top")


def _evenly(plan: Plan, count: int) -> NDArray[np.int64]:
    """Token counts at equal distances over the plan."""
    return np.linspace(plan.start_tokens, plan.final_tokens - 1, count).astype(int)


def _batch_sizes(plan: Plan, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
    """Batch size of the steps under way after `tokens`."""
    return plan.segments.batch_size[np.searchsorted(plan.segments.tokens, tokens, side="right") - 1]


# -------------------------------------------------------------------------------------------------- terminal


def _print(runs: Sequence[PlannedRun], described: Sequence[dict[str, Any]]) -> None:
    table = Table()
    table.add_column("plan", overflow="fold")
    for name in ("steps", "saved", "batch", "rate: peak", "last"):
        table.add_column(name, justify="right", no_wrap=True)
    timed = any(numbers["seconds"] is not None for numbers in described)
    if timed:
        table.add_column("seconds", justify="right", no_wrap=True)
        table.add_column("saved", justify="right", no_wrap=True)
    table.add_column("learning rate, batch size", no_wrap=True)
    for run, numbers in zip(runs, described, strict=True):
        rates, batches = _pictures(run.plan)
        sizes = run.plan.segments.batch_size
        saved, seconds = numbers["seconds_saved"], numbers["seconds"]
        table.add_row(
            escape(run.label),
            f"{numbers['serial_steps']}",
            f"{numbers['steps_saved']:.1%}",
            f"{sizes[0]}" if sizes.min() == sizes.max() else f"{sizes.min()} to {sizes.max()}",
            f"{run.plan.peak_lr:.3g}",
            f"{run.plan.lr(run.plan.final_tokens - 1):.3g}",
            *([] if not timed else ["-", "-"] if seconds is None else [f"{seconds:.1f}", f"{saved:.1%}"]),
            rates if sizes.min() == sizes.max() else f"{rates}\n{batches}",
        )
    console().print(table)
    if any(run.parent for run in runs):
        print("Steps of a branch are those it makes itself, after its parent's tokens.")
    for numbers in described:
        over = numbers["final_tokens"] - numbers["total_tokens"]
        if over:
            print(f"{numbers['label']}: ends {over} tokens after its budget of {numbers['total_tokens']}.")
    if len(runs) == 1 and len(described[0]["segments"]) > 1:
        console().print(_segments(described[0]["segments"]))


def _segments(segments: Sequence[dict[str, Any]]) -> Table:
    table = Table("from token", "steps", "batch size", "learning rate", title="segments", title_justify="left")
    for column in table.columns:
        column.justify = "right"
    half = _LISTED // 2 if len(segments) > _LISTED else len(segments)
    for k, row in enumerate(segments):
        if k < half or k >= len(segments) - half:
            table.add_row(short(row["tokens"]), str(row["steps"]), str(row["batch_size"]), f"{row['lr']:.4g}")
        elif k == half:
            table.add_row(f"({len(segments) - 2 * half} more)", "", "", "")
    return table


def _pictures(plan: Plan) -> tuple[str, str]:
    """Rate and batch against tokens as rows of blocks, each from 0 to its own maximum."""
    tokens = _evenly(plan, _WIDTH)
    return tuple(  # type: ignore[return-value]
        "".join(_BARS[round(8 * value)] for value in values / values.max())
        for values in (plan.lr(tokens), _batch_sizes(plan, tokens))
    )
