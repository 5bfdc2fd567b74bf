"""The expected excess risk of one-pass mini-batch SGD on a linear problem, exactly, under any schedule.

    problem, lr, batch_size | plan --stages of equal steps, or a recursion--> risk after the asked numbers of steps

For x with independent Gaussian coordinates the second moments of w - w* close on their diagonal, so one number per
eigenvalue is all the state there is. Long stretches of equal steps are jumped, others stepped in blocks; both agree
with the recursion to rounding. With a `tolerance`, few nodes stand for many eigenvalues.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from data.problems import Floats, LinearProblem
from optim.averaging import Average, Tail
from optim.plan import Plan
from scaling.theory.modes import Modes, binned_modes, exact_modes
from scaling.theory.recursion import blocked, plain
from scaling.theory.stability import check_stable
from scaling.theory.stages import Stage

_FIRST_BINS = 24
_ORDER = 8.0  # twice the bins divide the error by 16; less is assumed
_MOST_JUMPED = 4096  # modes whose eigenvectors are still computed


class Schedule(NamedTuple):
    """Rate and batch of every step (T,)."""

    lr: Floats
    batch_size: Floats
    row: int
    """what a row adds to the clock: 1, or a plan's sequence_length"""

    @property
    def constant(self) -> bool:
        """One number each, broadcast: T may be too large for an array."""
        return self.lr.strides == (0,) == self.batch_size.strides

    @property
    def seen(self) -> Floats:
        """The clock before the first and after every step (T + 1,)."""
        return np.append(0.0, np.cumsum(self.batch_size)) * self.row


def schedule_of(lr: ArrayLike | None, batch_size: ArrayLike | None, steps: int | None, plan: Plan | None) -> Schedule:
    """One entry per step, from numbers or arrays, or from a plan. ValueError where they do not fit each other."""
    if plan is not None:
        if lr is not None or batch_size is not None or steps is not None:
            raise ValueError("a plan gives lr, batch_size and steps: leave them out, or the plan.")
        planned = plan.steps()
        return Schedule(planned.lr, planned.batch_size.astype(np.float64), plan.sequence_length)
    if lr is None or batch_size is None:
        raise ValueError("give lr and batch_size, or a plan.")
    given = {"lr": np.asarray(lr, dtype=np.float64), "batch_size": np.asarray(batch_size, dtype=np.float64)}
    lengths = {name: values.size for name, values in given.items() if values.ndim}
    count = steps if steps is not None else max(lengths.values(), default=None)
    if count is None:
        raise ValueError("say how many steps are made: steps=..., or one lr or batch_size per step.")
    for name, values in given.items():
        if values.ndim > 1 or lengths.get(name, count) != count:
            raise ValueError(f"{name} has the shape {values.shape}: give a number, or one for each of {count} steps.")
    if count < 0:
        raise ValueError(f"steps={count} must be 0 or more.")
    rates, batches = (np.broadcast_to(values, (count,)) for values in given.values())
    return Schedule(rates, batches, 1)


def sgd_risk(
    problem: LinearProblem,
    lr: ArrayLike | None = None,
    batch_size: ArrayLike | None = None,
    steps: int | None = None,
    *,
    plan: Plan | None = None,
    at: ArrayLike | None = None,
    average: Average | None = None,
    weight_decay: float = 0.0,
    kurtosis: float = 3.0,
    tolerance: float = 0.0,
) -> Floats:
    """Excess risk after `at` steps (any shape; by default after all), in the shape of `at`.

    `lr` and `batch_size`: a number, or one per step; or a `plan`, which gives both, a sequence counting as a row.
    `average`: of optim.averaging, its clock being rows seen; nan before it begins. `weight_decay`: decoupled, times lr.
    `kurtosis`: E z^4 of the whitened coordinates, which are independent (Gaussian: 3). `tolerance`: relative error that
    is allowed; 0 keeps every eigenvalue. ValueError for an unstable step, naming the largest stable rate.

    Source: the recursion is exact for Gaussian rows (derivation in docs/theory.md); Seesaw, arXiv:2510.14717, uses it.
    """
    run = schedule_of(lr, batch_size, steps, plan)
    asked = asked_steps(at, len(run.lr))
    cut = plan is not None and len(run.lr) > 1 and run.batch_size[-1] < run.batch_size[-2]
    different = slice(1) if run.constant else slice(-1 if cut else None)  # a last batch that is cut is not repeated
    check_stable(problem, run.lr[different], run.batch_size[different], kurtosis, weight_decay)

    def curve(modes: Modes) -> Floats:
        return _curve(modes, run, asked.ravel(), average, weight_decay, kurtosis)

    found = curve(exact_modes(problem)) if tolerance <= 0 else _refined(problem, curve, tolerance)
    return found.reshape(asked.shape) + problem.approximation_error


def _curve(
    modes: Modes, run: Schedule, asked: np.ndarray, average: Average | None, weight_decay: float, kurtosis: float
) -> Floats:
    """Risks after `asked` steps (asked,)."""
    last = int(asked.max(initial=0))
    if average is not None:
        if isinstance(average, Tail) and run.constant and not weight_decay and _jumps(modes, len(run.lr)):
            return _tail_average(modes, run, asked, average, kurtosis)
        weights = average.weights(run.seen)[:last]
        return plain(modes, run.lr[:last], run.batch_size[:last], weights, weight_decay, kurtosis)[asked]
    if weight_decay:
        return plain(modes, run.lr[:last], run.batch_size[:last], None, weight_decay, kurtosis)[asked]
    risks, r = np.empty(len(asked)), modes.r
    for begin, end, equal in _stretches(run, last, _worth(modes)):
        here = (asked >= begin) & (asked <= end)
        if equal:
            states = Stage(modes, run.lr[begin], run.batch_size[begin], kurtosis).after(
                r, np.append(asked[here], end) - begin
            )
            risks[here], r = states[:-1].sum(-1), states[-1]
        else:
            every, r = blocked(modes, r, run.lr[begin:end], run.batch_size[begin:end], kurtosis)
            risks[here] = every[asked[here] - begin]
    return risks


def _tail_average(modes: Modes, run: Schedule, asked: np.ndarray, average: Tail, kurtosis: float) -> Floats:
    """In closed form, at constant steps: of the iterates after the last one that is not averaged."""
    stage = Stage(modes, run.lr[0], run.batch_size[0], kurtosis)
    row = run.batch_size[0] * run.row
    burn_in = min(round(average.start * row * len(run.lr)), row * len(run.lr) - 1)  # as Tail.weights counts it
    begins = int(burn_in // row)
    risks, begun = np.full(len(asked), np.nan), asked > begins
    first = stage.after(modes.r, np.array([begins + 1]))[0]
    risks[begun] = stage.mean_risk(first, asked[begun] - begins)
    return risks


def _refined(problem: LinearProblem, curve: Callable[[Modes], Floats], tolerance: float) -> Floats:
    """With twice as many bins, until what that changes leaves less than `tolerance` to be changed."""
    bins = _FIRST_BINS
    found = curve(binned_modes(problem, bins))
    while True:
        bins, coarse = 2 * bins, found
        found = curve(binned_modes(problem, bins))
        if problem.dimension <= 2 * bins or np.nanmax(np.abs(coarse / found - 1.0), initial=0.0) < _ORDER * tolerance:
            return found


def _jumps(modes: Modes, steps: int) -> bool:
    """Whether the mean of so many equal steps is had in closed form, which wants noise in every mode."""
    return steps > _worth(modes) and bool((modes.q > 0).all())


def _worth(modes: Modes) -> float:
    """Equal steps from which on the eigenvectors of one cost less than stepping (measured: benchmarks/theory.py)."""
    size = len(modes.r)
    return np.inf if size > _MOST_JUMPED else 100.0 + size**3 / (2000.0 + 4.0 * size)


def _stretches(run: Schedule, steps: int, worth: float) -> Iterator[tuple[int, int, bool]]:
    """(begin, end, equal) of stretches that fill the `steps`: equal ones of at least `worth`, and what lies between."""
    if run.constant:
        yield 0, steps, steps >= worth
        return
    change = np.flatnonzero((np.diff(run.lr[:steps]) != 0) | (np.diff(run.batch_size[:steps]) != 0)) + 1
    bounds = np.concatenate([[0], change, [steps]]).astype(int)
    begin, long = 0, np.flatnonzero(np.diff(bounds) >= worth)
    for start, end in zip(bounds[long].tolist(), bounds[long + 1].tolist(), strict=True):
        if start > begin:
            yield begin, start, False
        yield start, end, True
        begin = end
    if begin < steps or steps == 0:
        yield begin, steps, False


def asked_steps(at: ArrayLike | None, steps: int) -> np.ndarray:
    """`at` as whole numbers of steps, by default the last. ValueError beyond the run."""
    asked = np.asarray(steps if at is None else at)
    if not np.equal(np.mod(asked, 1), 0).all() or (asked < 0).any() or (asked > steps).any():
        bad = asked[(asked < 0) | (asked > steps) | (np.mod(asked, 1) != 0)].ravel()[0]
        raise ValueError(f"at={bad}: ask for whole numbers of steps from 0 to the run's {steps}.")
    return asked.astype(np.int64)
