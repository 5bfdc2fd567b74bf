"""Loss curves under a learning-rate schedule: the multi-power law and the annealing (momentum) law.

    rows (run_id, step, lr, loss) --features--> S1, and for every row the past changes of the rate --> loss

Both laws read the whole schedule up to a row. The rate of a row is that of the step that follows it and holds
until the next row, so rows should be dense where it changes; before the first row it rose linearly from 0 over
`warmup_steps`. The multi-power law joins neighbours of more than 256 changes. They are fitted on few
curves and asked about other schedules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.records import find_run
from scaling import jets
from scaling.laws.law import Column, Law, Parameter, Prior
from scaling.laws.terms import coefficient, exponent, floor
from scaling.recorded import plan_in

_WARMUP_PARTS = 16  # changes that stand for the warm-up
CHANGES = 256  # of a curve that a law looks at, at most


@dataclass(frozen=True)
class History:
    """The past of the rows of all curves. `area` (rows,): S1, the sum of the rate over all steps so far. For pairs of a
    row and a change of the rate before it, in the order of rows: `change` of the rate, `rate` after it, `gap` in area
    and `age` in steps since; `first` (rows,): where a row's pairs begin."""

    area: np.ndarray
    first: np.ndarray
    change: np.ndarray
    rate: np.ndarray
    gap: np.ndarray
    age: np.ndarray


@dataclass(frozen=True)
class Course:
    """What one curve did: from `nodes[k]` steps on (k,), rising, `speed[k]` is what a step adds to the area, and
    `level[k]` what changes are those of. `from_zero`: before the first node the level was 0, not the first one."""

    nodes: np.ndarray
    speed: np.ndarray
    level: np.ndarray
    from_zero: bool


def history(
    run: np.ndarray,
    step: np.ndarray,
    lr: np.ndarray,
    warmup_steps: float,
    most: int | None = None,
    level: np.ndarray | None = None,
) -> History:
    """The past of every row, for rows (rows,) in any order; steps of one `run` are one curve. The rate of a row holds
    until the next; before the first it rose, or was the first row's. At most `most` changes before any row: of more,
    neighbours are joined. `level` (rows,): what changes and rates are those of, where it is not the rate that the area
    sums up; it rises from 0, over the warm-up or at once."""
    from_zero, level = level is not None or warmup_steps > 0, lr if level is None else level
    ramp = (np.arange(_WARMUP_PARTS) + 0.5) / _WARMUP_PARTS if warmup_steps else np.zeros(0)
    risen = np.append(np.arange(len(ramp)) / _WARMUP_PARTS * warmup_steps, warmup_steps)
    order = np.lexsort((step, run))
    courses = {}
    for rows in np.split(order, np.flatnonzero(run[order][1:] != run[order][:-1]) + 1):
        if (np.diff(step[rows]) <= 0).any():
            raise ValueError(f"Curve {run[rows[0]]}: a step appears twice. Rows of one run_id are one curve.")
        speed, levels = (np.concatenate([ramp * x[rows[0]], x[rows[:1]], x[rows]]) for x in (lr, level))
        courses[run[rows[0]]] = Course(np.append(risen, step[rows]), speed, levels, from_zero)
    return history_along(courses, run, step, most)


def history_along(courses: Mapping[str, Course], run: np.ndarray, step: np.ndarray, most: int | None = None) -> History:
    """The past of every row after `step` (rows,) steps of the course of its `run` (rows,); what changes at a node acts
    after it."""
    areas, counts = np.zeros(len(step)), np.zeros(len(step), int)
    parts: dict[int, tuple[np.ndarray, ...]] = {}
    for name in dict.fromkeys(run.tolist()):
        course = courses[name]
        area = np.concatenate([[0.0], np.cumsum(np.diff(course.nodes) * course.speed[:-1])])
        change = np.diff(course.level, prepend=0.0 if course.from_zero else course.level[0])
        moved = np.flatnonzero(change)
        for row in np.flatnonzero(run == name).tolist():
            last = max(0, int(np.searchsorted(course.nodes, step[row])) - 1)
            areas[row] = area[last] + course.speed[last] * (step[row] - course.nodes[last])
            past = moved[: int(np.searchsorted(course.nodes[moved], step[row]))]
            history_of = (change[past], course.level[past], areas[row] - area[past], step[row] - course.nodes[past])
            kept = _joined(most, *history_of) if most and len(past) > most else history_of
            empty = np.zeros(0 if len(past) else 1)  # every row has a pair, also one without a past
            parts[row] = tuple(
                np.concatenate([values, empty + fill]) for values, fill in zip(kept, (0.0, 1.0, 0.0, 0.0), strict=True)
            )
            counts[row] = len(parts[row][0])
    joined = [np.concatenate([parts[row][i] for row in range(len(step))]) for i in range(4)]
    return History(areas, np.concatenate([[0], np.cumsum(counts)[:-1]]), *joined)


Dynamics = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Rates and batch sizes of steps -> what each adds to the area, and the level whose changes count."""


def planned(folder: str, run: np.ndarray, dynamics: Dynamics) -> dict[str, Course]:
    """The courses of recorded runs below `folder`, by their plans: every step of each."""
    courses = {}
    for name in dict.fromkeys(run.tolist()):
        plan = plan_in(find_run(name, Path(folder)))
        if plan.start_tokens:
            raise ValueError(
                f"run {name} is a branch, whose plan begins in mid-curve: leave it out (filter=...), or follow the "
                "rows (law.runs=null)."
            )
        steps = plan.steps()
        speed, level = dynamics(steps.lr, steps.batch_size.astype(np.float64))
        courses[name] = Course(np.arange(len(speed), dtype=np.float64), speed, level, from_zero=True)
    return courses


def _joined(most: int, change: np.ndarray, *others: np.ndarray) -> tuple[np.ndarray, ...]:
    """`most` changes for more: neighbours are summed, and lie at the mean of where they lay."""
    first = np.linspace(0, len(change), most, endpoint=False).astype(int)
    count = np.diff(first, append=len(change))
    return (np.add.reduceat(change, first), *(np.add.reduceat(values, first) / count for values in others))


@dataclass(frozen=True)
class MultiPower(Law):
    """L(t) = L0 + A S1^-alpha + B sum_k (lr_k - lr_{k-1}) [1 - (1 + C lr_k^-gamma (S1(t) - S1(k)))^-beta].

    S1 is the sum of the rate over all steps, warm-up included; the sum runs over all changes of the rate so far, those
    of the warm-up too. The rate's unit enters B, C and A: rates compare between runs of one setting only.
    Source: Luo et al. 2025 (arXiv:2503.12811).
    """

    warmup_steps: int = 0
    """Steps over which the rate rose linearly from 0 to that of a curve's first row, which is not earlier."""
    runs: str | None = None
    """Folder of the records whose plans tell the rate of every step; null: the rows do, and should be dense."""

    name = "Multi-power law"
    formula = "L(t) = L0 + A S1^-alpha + B sum_k (lr_k - lr_{k-1}) (1 - (1 + C lr_k^-gamma (S1(t) - S1(k)))^-beta)"
    source = "Luo et al. 2025, arXiv:2503.12811"
    inputs = (
        Column("run_id", "which curve a row belongs to", domain="label"),
        Column("step", "optimizer steps taken, warm-up included"),
        Column("lr", "learning rate at that step", domain="nonnegative"),
    )
    parameters = (
        floor("L0", meaning="loss of endless training"),
        coefficient("A", "size of the term in the sum of the rate", {"loss": 1, "S1": "alpha"}),
        exponent("alpha", "exponent of the sum of the rate", start=(0.1, 1.5)),
        Parameter(
            "B",
            "log",
            (1e-2, 1e6),
            (10.0, 3e3),
            "loss gained per unit of rate that is given up, in the end",
            {"loss": 1},
        ),
        Parameter("C", "log", (1e-6, 1e6), (1e-2, 1e2), "how fast that gain arrives"),
        exponent("beta", "exponent of its arrival", start=(0.1, 1.5)),
        exponent("gamma", "how much sooner it arrives at small rates", (-2.0, 5.0), (0.0, 1.0)),
    )
    linear = ("L0", "A", "B")
    # The simplest law of this family: the gain arrives with the area alone, and as 1/x. At its training optimum the law
    # follows what it misses in its few curves into exponents that predict other schedules worse.
    priors = (("gamma", Prior(0.0, 0.5)), ("beta", Prior(1.0, 0.5)))
    along_curves = True

    def features(self, table: Mapping[str, Any]) -> dict[str, Any]:
        past = _history(self, table, CHANGES)
        return {"S1": past.area, "first": past.first, "change": past.change, "rate": past.rate, "gap": past.gap}

    def predict(self, p: Mapping[str, Any], columns: Mapping[str, Any]) -> Any:
        """The loss of every row."""
        ready = 1.0 - (1.0 + p["C"] * columns["rate"] ** -p["gamma"] * columns["gap"]) ** -p["beta"]
        return p["L0"] + p["A"] * columns["S1"] ** -p["alpha"] + p["B"] * summed(columns, ready * columns["change"])


@dataclass(frozen=True)
class Annealing(Law):
    """L(t) = L0 + A S1^-alpha - C S2, with S2 the sum of m_i, m_i = lambda m_{i-1} + (lr_{i-1} - lr_i), after warm-up.

    Also called the momentum law: a drop of the rate is a force whose effect builds up over 1 / (1 - lambda) steps.
    Known defect: S2 grows for as long as the rate stays low, so steps at a rate of zero still lower the loss. Source:
    Tissue et al. 2024 (arXiv:2408.11029).
    """

    warmup_steps: int = 0
    """Steps over which the rate rose linearly from 0 to that of a curve's first row, which is not earlier."""
    forgetting: float = 0.999
    """lambda, per step."""

    name = "Annealing law"
    formula = "L(t) = L0 + A S1^-alpha - C S2"
    source = "Tissue et al. 2024, arXiv:2408.11029; lambda from its official code"
    inputs = MultiPower.inputs
    parameters = (
        *MultiPower.parameters[:3],
        coefficient("C", "loss gained per unit of annealing area", {"loss": 1}, start=(1e-3, 1e1)),
    )
    linear = ("L0", "A", "C")
    along_curves = True

    def __post_init__(self) -> None:
        if not 0 <= self.forgetting < 1:
            raise ValueError(f"forgetting={self.forgetting} must lie in [0, 1): lambda per step, as 0.999.")

    def features(self, table: Mapping[str, Any]) -> dict[str, Any]:
        past = _history(self, table)
        steps = np.asarray(table["step"], float)
        after = past.age < np.repeat(steps, np.diff(past.first, append=len(past.age))) - self.warmup_steps
        reached = (1.0 - self.forgetting**past.age) / (1.0 - self.forgetting)
        return {"S1": past.area, "S2": np.add.reduceat(-past.change * after * reached, past.first)}

    def predict(self, p: Mapping[str, Any], columns: Mapping[str, Any]) -> Any:
        """The loss of every row."""
        return p["L0"] + p["A"] * columns["S1"] ** -p["alpha"] - p["C"] * columns["S2"]


def summed(columns: Mapping[str, Any], pairs: Any) -> Any:
    """Sums over the past of every row."""
    value = pairs.value if isinstance(pairs, jets.Jet) else pairs
    shape = np.broadcast_shapes(np.shape(value), columns["change"].shape)
    return jets.linear(lambda x: np.add.reduceat(x, columns["first"], axis=-1), pairs, shape)


def columns_of_curves(law: Law, table: Mapping[str, Any], warmup_steps: int) -> dict[str, np.ndarray]:
    """The columns that a law of curves reads, run_id as text and numbers as floats. ValueError where one is missing, or
    a row lies within the warm-up."""
    missing = [name for name in law.columns if name not in table]
    if missing:
        raise ValueError(f"{law.name} reads whole curves: the table has no column {missing[0]!r}.")
    found = {name: np.asarray(table[name]).astype(str if name == "run_id" else float) for name in law.columns}
    if (found["step"] < warmup_steps).any():
        raise ValueError(
            f"warmup_steps={warmup_steps}: a row lies at step {found['step'].min():g}, before the end of the warm-up. "
            "Leave such rows out, or use a smaller warmup_steps with rows that cover the warm-up."
        )
    return found


def _history(law: MultiPower | Annealing, table: Mapping[str, Any], most: int | None = None) -> History:
    read = columns_of_curves(law, table, law.warmup_steps)
    if isinstance(law, MultiPower) and law.runs:
        return history_along(
            planned(law.runs, read["run_id"], lambda lr, _: (lr, lr)), read["run_id"], read["step"], most
        )
    return history(read["run_id"], read["step"], read["lr"], law.warmup_steps, most)
