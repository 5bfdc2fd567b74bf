"""Exact risk curves: how much faster than the plain recursion, and what is lost on the way.

    python benchmarks/theory.py          one core, about a minute and a half

Each row: CPU seconds of the plain recursion (measured on as many steps as fit a second, and scaled), of `sgd_risk`,
their ratio, and the largest relative difference where both were computed. The last row is the goal: a million
eigenvalues, a million steps of a cosine, at most 5 seconds at 1e-4.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from optim.averaging import Tail
from scaling.theory import power_law, sgd_risk
from scaling.theory.modes import Modes, binned_modes, exact_modes
from scaling.theory.recursion import blocked, plain

_CHECKED = 2000  # steps over which both are computed


def main() -> None:
    print(f"{'':56}{'recursion':>11}{'sgd_risk':>10}{'ratio':>10}{'difference':>12}")
    for dimension, steps in ((100, 10**5), (300, 10**6), (1000, 10**7)):
        row(f"constant rate, d = {dimension}, {steps:,} steps", dimension, steps, constant)
    row("constant rate, mean of the second half, d = 300, 10^6", 300, 10**6, constant, average=Tail(0.5))
    for dimension, steps in ((100, 10**5), (300, 10**5)):
        row(f"cosine, every step another, d = {dimension}, {steps:,} steps", dimension, steps, cosine)
    for dimension in (10**4, 10**6):
        row(f"cosine, d = {dimension:,}, 10^5 steps, tolerance 1e-4", dimension, 10**5, cosine, tolerance=1e-4)
    goal()


def constant(steps: int) -> Any:
    return 0.1


def cosine(steps: int) -> Any:
    return 0.1 * (1 + np.cos(np.pi * np.arange(steps) / steps))


def row(name: str, dimension: int, steps: int, rates: Callable[[int], Any], **how: Any) -> None:
    problem = power_law(dimension, 1.5, 2.0, 0.1)
    fast, _ = timed(lambda: sgd_risk(problem, rates(steps), 4, steps, **how))
    modes, average = exact_modes(problem), how.get("average")
    checked = max(10, min(_CHECKED, 2 * 10**8 // dimension))
    lr, batch = np.broadcast_to(rates(checked), (checked,)), np.full(checked, 4.0)
    weights = average.weights(np.arange(checked + 1) * 4.0) if average else None
    slow, expected = timed(lambda: plain(modes, lr, batch, weights))
    at = np.unique(np.geomspace(max(1, 0.6 * checked), checked, 5).astype(int))
    found = sgd_risk(problem, rates(checked), 4, checked, at=at, **how)
    off = float(np.max(np.abs(found / expected[at] - 1)))
    show(name, slow / checked * steps, fast, off)


def goal() -> None:
    """Against 128 bins, whose own error is below a thousandth of the tolerance."""
    problem, steps = power_law(10**6, 1.5, 2.0, 0.1), 10**6
    at = np.unique(np.geomspace(1, steps, 60).astype(int))
    fast, found = timed(lambda: sgd_risk(problem, cosine(steps), 4, steps, at=at, tolerance=1e-4))
    fine: Modes = binned_modes(problem, 128)
    slow, _ = timed(lambda: plain(exact_modes(problem), cosine(steps)[:20], np.full(20, 4.0)))
    expected, _ = blocked(fine, fine.r, cosine(steps), np.full(steps, 4.0))
    off = float(np.max(np.abs(found / expected[at] - 1)))
    show("cosine, d = 10^6, 10^6 steps, tolerance 1e-4 (the goal)", slow / 20 * steps, fast, off)


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    begun = time.process_time()
    result = run()
    return time.process_time() - begun, result


def show(name: str, slow: float, fast: float, off: float) -> None:
    print(f"{name:56}{slow:10.2f}s{fast:9.2f}s{slow / fast:10,.0f}{off:12.1e}", flush=True)


if __name__ == "__main__":
    main()
