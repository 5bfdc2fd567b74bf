"""`fulcrum theory`: exact risk curves of plans on a power-law problem, as a table, a picture or JSON.

[Followed(label, problem, plan)], algorithms --show--> terminal or JSON; a file with risk against rows and steps
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.markup import escape
from rich.table import Table

from data.problems import Floats, LinearProblem
from optim.averaging import Average
from optim.plan import Plan
from scaling.terminal import console
from scaling.theory.compare import Comparison, compare
from scaling.theory.descent import gd_risk
from scaling.theory.normalized import normalized_sgd_risk
from scaling.theory.sgd import sgd_risk
from scaling.theory.stability import max_stable_lr

ALGORITHMS = ("sgd", "normalized_sgd", "gd")
METHODS = {"gd": "gradient descent", "ridge": "ridge", "sgd": "SGD", "averaged_sgd": "SGD, second half averaged"}
_COLUMNS = {
    "algorithm": "algorithm", "steps": "steps", "rows": "rows", "risk": "risk", "bias": "bias", "variance": "variance",
    "peak_lr": "peak rate", "max_stable_lr": "stable below",
}  # fmt: skip
_POINTS = 160  # of a curve
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Followed:
    """A plan on a problem, `label` tells it from the others; of SGD its `averages` by name are shown too."""

    label: str
    problem: LinearProblem
    plan: Plan
    averages: Mapping[str, Average] = field(default_factory=dict)

    def shown(self, algorithms: Sequence[str]) -> list[tuple[str, str, Average | None]]:
        """(title, algorithm, average) of every line."""
        lines: list[tuple[str, str, Average | None]] = []
        for algorithm in algorithms:
            lines.append((algorithm, algorithm, None))
            if algorithm == "sgd":
                lines += [(f"sgd, {name}", algorithm, average) for name, average in self.averages.items()]
        return lines


def show(
    runs: Sequence[Followed],
    algorithms: Sequence[str],
    rows: Sequence[int] = (),
    form: str = "table",
    out: str | None = None,
) -> None:
    """Prints the final risk of every plan under every algorithm, and comparisons of methods on so many `rows`; writes
    the picture to `out`. ValueError for an algorithm or a form that there is not, and for a plan that is unstable."""
    if form not in ("table", "json"):
        raise ValueError(f"format={form}: use table or json.")
    if not algorithms or set(algorithms) - set(ALGORITHMS):
        raise ValueError(f"algorithms={list(algorithms)}: use some of {', '.join(ALGORITHMS)}.")
    described = [describe(run, *line) for run in runs for line in run.shown(algorithms)]
    problems = list({_key(run.problem): run for run in reversed(runs)}.values())[::-1]  # plans often share one
    several = len(problems) > 1
    compared = [
        Compared(run.label if several else "", int(count), compare(run.problem, int(count)))
        for run in problems
        for count in rows
    ]
    if out:
        from scaling.drawing import write

        curves = pd.concat([curve(run, *line) for run in runs for line in run.shown(algorithms)], ignore_index=True)
        write(figure(curves, list(dict.fromkeys(curves["algorithm"]))), Path(out))
    if form == "json":
        print(json.dumps({"plans": described, "comparisons": [one.numbers() for one in compared]}, indent=1))
        return
    _print_plans(described)
    if compared:
        _print_comparisons(compared)


@dataclass(frozen=True)
class Compared:
    """Methods on so many rows of the problem of one plan."""

    label: str
    rows: int
    found: Comparison

    def numbers(self) -> dict[str, Any]:
        return {
            "plan": self.label,
            "rows": self.rows,
            "winner": self.found.winner,
            "risks": {name: tuned.risk for name, tuned in self.found.tuned.items()},
            "factors": {name: self.found.factor(name, self.found.winner) for name in self.found.tuned},
            "gd_over_ridge_matched": [float(self.found.matched.min()), float(self.found.matched.max())],
        }


def _key(problem: LinearProblem) -> tuple[bytes, bytes, float]:
    return problem.eigenvalues.tobytes(), problem.target.tobytes(), problem.noise_variance


def risks(problem: LinearProblem, plan: Plan, algorithm: str, at: np.ndarray, average: Average | None) -> Floats:
    """Excess risk after `at` steps of the plan, a sequence counting as a row."""
    if algorithm == "sgd":
        return sgd_risk(problem, plan=plan, at=at, average=average, tolerance=_TOLERANCE)
    if algorithm == "normalized_sgd":
        return normalized_sgd_risk(problem, plan=plan, at=at)
    return gd_risk(problem, plan.steps().lr, at=at)


def curve(run: Followed, title: str, algorithm: str, average: Average | None = None) -> pd.DataFrame:
    """Columns plan, algorithm, step, rows, risk."""
    batches = run.plan.steps().batch_size
    at = np.unique(
        np.concatenate([spaced(1, len(batches), _POINTS) for spaced in (np.geomspace, np.linspace)]).astype(int)
    )
    found = risks(run.problem, run.plan, algorithm, at, average)
    seen = np.cumsum(batches)[at - 1]
    return pd.DataFrame({"plan": run.label, "algorithm": title, "step": at, "rows": seen, "risk": found})


def describe(run: Followed, title: str, algorithm: str, average: Average | None = None) -> dict[str, Any]:
    """Numbers of one plan under one algorithm; bias and variance are SGD's, whose risk is their sum."""
    plan, problem, last = run.plan, run.problem, np.array(run.plan.serial_steps)
    parts: dict[str, float | None] = {"bias": None, "variance": None, "max_stable_lr": None}
    if algorithm == "sgd":
        first = float(plan.segments.batch_size[0])
        parts = {
            "bias": float(risks(problem.bias(), plan, algorithm, last, average)),
            "variance": float(risks(problem.variance(), plan, algorithm, last, average)),
            "max_stable_lr": max_stable_lr(problem, first),
        }
    return {
        "plan": run.label,
        "algorithm": title,
        "steps": plan.serial_steps,
        "rows": plan.total_samples,
        "risk": float(risks(problem, plan, algorithm, last, average)),
        "peak_lr": plan.peak_lr,
        **parts,
    }


def figure(table: pd.DataFrame, algorithms: list[str]) -> dict[str, Any]:
    """Risk against rows and against steps, one line per plan and algorithm."""
    import altair as alt

    from scaling.drawing import COUNT_LABEL, Data, category, log_axis

    data, plans = Data(), list(dict.fromkeys(table["plan"]))
    table = table[np.isfinite(table["risk"]) & (table["risk"] > 0)]
    colour = category("plan", plans) if len(plans) > 1 else alt.value("#222222")
    dash = alt.StrokeDash("algorithm:N", sort=algorithms, title=None) if len(algorithms) > 1 else alt.Undefined
    up = log_axis(alt.Y, "risk", "excess risk", table["risk"], "format(datum.value, '~g')")
    panels = [
        data.chart(table)
        .mark_line(strokeWidth=1.8)
        .encode(log_axis(alt.X, name, title, table[name], COUNT_LABEL), up, color=colour, strokeDash=dash)
        .properties(width=420, height=300)
        for name, title in (("rows", "rows seen"), ("step", "steps"))
    ]
    return data.finish(alt.hconcat(*panels, spacing=28), legend="top")


# ---------------------------------------------------------------------------------------------------- terminal


def _print_plans(described: Sequence[dict[str, Any]]) -> None:
    table = Table()
    table.add_column("plan", overflow="fold")
    for name in _COLUMNS.values():
        table.add_column(name, justify="right", no_wrap=True)
    for row in described:
        table.add_row(escape(row["plan"]), *(_cell(row[key]) for key in _COLUMNS))
    console().print(table)


def _print_comparisons(compared: Sequence[Compared]) -> None:
    table = Table(title="Tuned, on the same rows: expected risk, and times the best of them", title_justify="left")
    table.add_column("rows", justify="right")
    for name in [*METHODS.values(), "descent / ridge, matched"]:
        table.add_column(name, justify="right", no_wrap=True)
    for one in compared:
        found = one.found
        cells = [f"{found.tuned[name].risk:.4g}  x{found.factor(name, found.winner):.2f}" for name in METHODS]
        matched = f"{found.matched.min():.2f} to {found.matched.max():.2f}"
        table.add_row(f"{one.rows} {escape(one.label)}".strip(), *cells, matched)
    console().print(table)


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
