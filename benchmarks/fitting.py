"""The fitting engine against the field's recipe, on the points of Hoffmann et al. 2022, Figure 4; one thread.

    OMP_NUM_THREADS=1 python benchmarks/fitting.py <points.csv>          columns N, D, loss; about six minutes, most the peers'
    OMP_NUM_THREADS=1 python benchmarks/fitting.py <points.csv> quick    a tenth of the peers' starts and refits, times scaled

(a) the best of 4,500 starts: SciPy's L-BFGS-B with numerical gradients from the usual grid (a and b of 0 to 25, e of -1
    to 1, alpha and beta of 0 to 2; the sum of Huber(1e-3) on log residuals), against our fit from its 256 starts.
(b) 4,000 bootstrap refits from the optimum of all points: the same minimiser, which stops early, and BFGS, which
    arrives, against ours.
(c) how our time grows with the number of points and of parameters (power laws in more and more columns).
Objectives stand beside times: a fast fit that ends higher is no gain.
"""  # noqa: E501

import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import minimize
from scipy.special import logsumexp

from scaling.fit import Fit, LeastSquares, fit
from scaling.laws import Chinchilla, PowerLaw

WIDTH = 1e-3
STARTS, REFITS = 4500, 4000


def peer_objective(x: np.ndarray, n: np.ndarray, d: np.ndarray, y: np.ndarray) -> float:
    """x = a, b, e, alpha, beta; `n`, `d`, `y`: logarithms."""
    a, b, e, alpha, beta = x
    terms = np.stack([a - alpha * n, b - beta * d, np.full_like(n, e)])
    r = np.abs(logsumexp(terms, axis=0) - y)
    return float(np.where(r <= WIDTH, 0.5 * r * r, WIDTH * (r - 0.5 * WIDTH)).sum())


def peer_fit(start: Any, table: pd.DataFrame, method: str = "L-BFGS-B") -> float:
    """The objective where SciPy's minimiser ends, with its default tolerances."""
    logs = tuple(np.log(table[name].to_numpy()) for name in ("N", "D", "loss"))
    return float(minimize(peer_objective, start, args=logs, method=method).fun)


def timed(work: Callable[[], Any], rounds: int = 1) -> tuple[Any, float]:
    """The result, and the median of the seconds: what is short is done several times, beside what is long."""
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - started)
    return result, statistics.median(seconds)


def starts(table: pd.DataFrame, share: float) -> Fit:
    coefficients, exponents = np.arange(0, 30, 5.0), np.arange(0, 2.5, 0.5)
    grid = np.array(list(itertools.product(coefficients, coefficients, np.linspace(-1, 1, 5), exponents, exponents)))
    assert len(grid) == STARTS
    chosen = np.random.default_rng(0).permutation(STARTS)[: round(share * STARTS)]
    ends, theirs = timed(lambda: np.array([peer_fit(grid[k], table) for k in chosen]))
    ours, seconds = timed(lambda: fit(Chinchilla(), table), rounds=5)
    arrived = [f"{np.mean(ends <= ours.objective * (1 + near)):.1%}" for near in (1e-3, 1e-6)]
    print("(a) the best of many starts")
    print(f"  L-BFGS-B  {theirs / share:8.1f} s   best {ends.min():.9e}; {arrived[0]} of its starts end within 1e-3 of")
    print(f"                          our objective, {arrived[1]} within 1e-6")
    print(f"  ours      {seconds:8.2f} s   best {ours.objective:.9e}; {ours.agreement:.0%} of {ours.starts} starts")
    print(
        f"  ratio of times {theirs / share / seconds:.0f}; ours ends higher: {ours.objective > ends.min() * (1 + 1e-9)}"
    )
    return ours  # type: ignore[no-any-return]


def refits(table: pd.DataFrame, ours: Fit, share: float) -> None:
    p = ours.params
    optimum = [np.log(p["A"]), np.log(p["B"]), np.log(p["E"]), p["alpha"], p["beta"]]
    rng = np.random.default_rng(0)
    samples = [table.iloc[rng.integers(len(table), size=len(table))] for _ in range(round(share * REFITS))]
    # The same samples through our minimiser, as multiplicities of the rows: objectives that compare.
    rows = ours.rows.table.index
    counts = [np.bincount(rows.get_indexer(sample.index), minlength=len(rows)) for sample in samples]
    same = ours.problem.minimise(np.repeat(ours.free[None], len(samples), 0), np.stack(counts).astype(float)).value
    drawn, seconds = timed(lambda: ours.bootstrap(REFITS), rounds=5)
    low, high = drawn.intervals()["alpha"]
    print("(b) bootstrap refits; objectives on the same samples, relative to ours")
    print(f"  ours      {seconds:8.2f} s   alpha {low:.4f} to {high:.4f}")
    for method in ("L-BFGS-B", "BFGS"):
        ends, theirs = timed(lambda method=method: np.array([peer_fit(optimum, s, method) for s in samples]))
        excess = ends / same - 1
        print(
            f"  {method:<9} {theirs / share:8.1f} s   ratio {theirs / share / seconds:.0f}; ends higher by "
            f"{np.median(excess):.1e} (median), {excess.max():.1e} (worst); lower in {np.mean(excess < -1e-9):.1%}"
        )


def growth(ours: Fit) -> None:
    print("(c) growth, 256 starts")
    rng = np.random.default_rng(0)
    for count in (100, 1_000, 10_000, 100_000, 1_000_000):
        spans = {"N": (1e7, 1e10), "D": (1e9, 1e12)}
        table = pd.DataFrame({c: np.exp(rng.uniform(*np.log(ends), count)) for c, ends in spans.items()})
        table["loss"] = ours.law.predict(ours.params, table) * np.exp(0.005 * rng.standard_normal(count))
        found, seconds = timed(lambda table=table: fit(Chinchilla(), table))
        each = 1e6 * seconds / count
        print(f"  {count:>9} points     {seconds:8.2f} s {each:8.1f} us a point, alpha {found.params['alpha']:.4f}")
    for many in (1, 2, 4, 8):
        columns = tuple(f"x{i}" for i in range(many))
        table = pd.DataFrame({c: np.exp(rng.uniform(0, 5, 1000)) for c in columns})
        table["y"] = np.exp(0.1 * np.log(table).sum(axis=1) + 0.01 * rng.standard_normal(1000))
        law = PowerLaw(columns, "y")
        found, seconds = timed(lambda table=table, law=law: fit(law, table, LeastSquares()))
        print(f"  {many + 1:>9} parameters {seconds:8.2f} s, {found.agreement:.0%} of starts")


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[2:] not in ([], ["quick"]):
        sys.exit(__doc__)
    if os.environ.get("OMP_NUM_THREADS") != "1":
        print("OMP_NUM_THREADS is not 1: linear algebra may use several threads, on both sides.")
    table = pd.read_csv(sys.argv[1])
    share = 0.1 if sys.argv[2:] else 1.0
    print(f"{len(table)} points")
    ours = starts(table, share)
    refits(table, ours, share)
    growth(ours)


if __name__ == "__main__":
    main()
