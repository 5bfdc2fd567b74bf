"""The best model size for a budget without a law of the loss: approaches 1 and 2 of Hoffmann et al. 2022.

    training curves --envelope--> (C, N, D) of the best run at each C      (approach 1)
    points at a few budgets --parabolas--> (C, N, D) at each minimum       (approach 2)
                                    --frontier--> N = k C^a and D = k C^a, as fits with intervals

Approach 2 is biased: a loss is no parabola in log N, so the minimum and with it the exponent depend on how wide the
sizes are spread and on which side of the optimum they lie. Report it beside a fitted law (approach 3), never alone. In
one simulation study its exponents were off by 4.8 % on average, those of approach 3 from a grid of starts by 1.3 %.
Approach 1 takes a point within a run for the end of a shorter run, which a decaying learning rate makes wrong, and it
knows the best size only as finely as sizes were trained.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from scaling.fit import Fit, fit
from scaling.laws.power import PowerLaw
from scaling.losses import LeastSquares

_SIZES = 3  # a parabola needs three; a minimum of an envelope needs one on either side


@dataclass(frozen=True)
class Optima:
    """`table`: a row per budget C with the best N and D. Approach 1: also `loss` and `run_id`, the best run. Approach
    2: also `loss` at the minimum, `curvature` (half the second derivative of the loss in log N), `N_error` (standard
    error of log N; NaN where no budget has more than three sizes) and `sizes`. `refused`: why other budgets have no
    row, counted. `budgets`: how many there were. Of approach 2 also `points`, the rows with the `budget` that they
    share and whether they `entered` its parabola, and `freedom`, the degrees of freedom of the errors' noise."""

    table: pd.DataFrame
    refused: dict[str, int]
    budgets: int
    points: pd.DataFrame | None = None
    freedom: int = 0

    @property
    def notes(self) -> list[str]:
        """What has to be said about the budgets without a row."""
        return [f"{count} of {self.budgets} budgets are left out: {why}." for why, count in self.refused.items()]


def envelope(curves: pd.DataFrame, budgets: int = 200) -> Optima:
    """Approach 1: the run of least loss at each of `budgets` log-spaced C, from the columns run_id, N, D, C and loss.

    A row is a point of a training curve; between points log loss and log D are straight in log C, outside them a run
    does not count. Smooth noisy curves first: the least of many noisy losses is too low. A budget is refused where
    fewer than three sizes reach it or the best is the smallest or largest of them, where the optimum may lie beyond.
    """
    _wanted(curves, ("run_id", "N", "D", "C", "loss"))
    if budgets < 2:
        raise ValueError(f"budgets={budgets} must be at least 2.")
    at = np.linspace(np.log(curves["C"].min()), np.log(curves["C"].max()), budgets)
    names, sizes, losses, tokens = [], [], [], []
    for name, curve in curves.sort_values("C").groupby("run_id", sort=True):
        if curve["N"].nunique() > 1:
            raise ValueError(f"run_id={name} has {curve['N'].nunique()} sizes N: a curve is one run.")
        x = np.log(curve["C"].to_numpy(float))
        names.append(name)
        sizes.append(float(curve["N"].iloc[0]))
        losses.append(np.interp(at, x, np.log(curve["loss"].to_numpy(float)), left=np.inf, right=np.inf))
        tokens.append(np.interp(at, x, np.log(curve["D"].to_numpy(float))))
    size, loss = np.array(sizes), np.array(losses)
    rows, refused = [], dict.fromkeys(("fewer than 3 sizes reach them", "the best size is the smallest or largest"), 0)
    few, edge = refused
    for k, log_c in enumerate(at):
        reached = size[np.isfinite(loss[:, k])]
        best = int(np.argmin(loss[:, k]))
        if len(np.unique(reached)) < _SIZES:
            refused[few] += 1
        elif size[best] in (reached.min(), reached.max()):
            refused[edge] += 1
        else:
            values = (np.exp(log_c), size[best], np.exp(tokens[best][k]), np.exp(loss[best, k]), names[best])
            rows.append(dict(zip(("C", "N", "D", "loss", "run_id"), values, strict=True)))
    return _optima(rows, refused, budgets)


def parabolas(points: pd.DataFrame, tolerance: float = 0.05, width: float = 10.0) -> Optima:
    """Approach 2: the minimum of a parabola in log N through the losses at each budget; columns C, N, loss, maybe D.

    Rows whose C differ by less than `tolerance` (relative) from the next share a budget, their geometric mean; of
    those, the ones within a factor `width` of the size of least loss enter, because far from it the loss is no parabola
    (sizes over a factor of up to 1000 put 3 of 11 minima outside the sizes in data of arXiv:2406.19146). D follows
    from C = 6 N D where the table has none, else from the sizes next to the optimum. The errors share one noise,
    estimated from all budgets with more than three sizes; it includes how far the losses are from parabolas. A budget
    is refused with fewer than three sizes, without a minimum, or with a minimum outside its sizes. Biased: see the
    module's docstring.
    """
    _wanted(points, ("C", "N", "loss"))
    if not width > 1:
        raise ValueError(f"width={width} must be above 1: the factor around the size of least loss.")
    budgets = _budgets(points, tolerance)
    few, flat, outside = "fewer than 3 sizes", "the parabola has no minimum", "the minimum lies outside the sizes"
    refused = dict.fromkeys((few, flat, outside), 0)
    rows, points_of, squares, spare = [], [], 0.0, 0
    for group in budgets:
        flops = float(np.exp(np.log(group["C"]).mean()))
        away = np.abs(np.log(group["N"] / group.loc[group["loss"].idxmin(), "N"]))
        near = away <= np.log(width) + 1e-9
        points_of.append(group.assign(budget=flops, entered=near))
        group = group[near]
        if group["N"].nunique() < _SIZES:
            refused[few] += 1
            continue
        x, y = np.log(group["N"].to_numpy(float)), group["loss"].to_numpy(float)
        middle = x.mean()
        design = np.vander(x - middle, 3)
        (a, b, c), *_ = np.linalg.lstsq(design, y)
        squares, spare = squares + float(((design @ [a, b, c] - y) ** 2).sum()), spare + len(x) - 3
        best = middle - b / (2 * a) if a > 0 else np.inf
        if not a > 0:
            refused[flat] += 1
        elif not x.min() <= best <= x.max():
            refused[outside] += 1
        else:
            slope = np.array([b / (2 * a * a), -1 / (2 * a), 0.0])  # of the minimum in (a, b, c)
            unit_error = float(np.sqrt(slope @ np.linalg.inv(design.T @ design) @ slope))
            rows.append({
                "C": flops, "N": np.exp(best), "D": _tokens(group, best, flops), "loss": c - b * b / (4 * a),
                "curvature": a, "N_error": unit_error, "sizes": group["N"].nunique(),
            })  # fmt: skip
    found = _optima(rows, refused, len(budgets))
    found.table["N_error"] *= np.sqrt(squares / spare) if spare else np.nan
    return replace(found, points=pd.concat(points_of), freedom=spare)


def frontier(optima: pd.DataFrame, replicates: int = 1000, seed: int = 0, errors: str = "N_error") -> dict[str, Fit]:
    """N = k C^a_C and D = k C^a_C through the optima, by least squares on logarithms, with bootstrap intervals.

    `optima` has the columns C, N and D. Rows weigh 1 / error^2 where column `errors` (of log N; that of log D at a
    fixed C is the same) is known and positive throughout, else alike. Rows of one run_id, the steps of an envelope,
    are drawn together. The intervals hold the scatter of the optima, not the bias of the approach.
    """
    weights = None
    if errors in optima and (optima[errors] > 0).all():
        weights = 1.0 / optima[errors].to_numpy(float) ** 2
    return {
        name: fit(PowerLaw(("C",), name), optima, LeastSquares(), starts=8, weights=weights).bootstrap(replicates, seed)
        for name in ("N", "D")
        if name in optima
    }


def _budgets(points: pd.DataFrame, tolerance: float) -> list[pd.DataFrame]:
    if not tolerance > 0:
        raise ValueError(f"tolerance={tolerance} must be positive: the relative difference of C within a budget.")
    ordered = points.sort_values("C", ignore_index=True)
    log_c = np.log(ordered["C"].to_numpy(float))
    number = np.concatenate([[0], np.cumsum(np.diff(log_c) > np.log1p(tolerance))])
    groups = [group for _, group in ordered.groupby(number)]
    for group in groups:
        low, high = group["C"].min(), group["C"].max()
        if high > low * (1 + tolerance) ** 2:
            raise ValueError(
                f"The budgets from C={low:.4g} to {high:.4g} run into each other at tolerance={tolerance}: rows are "
                "grouped where C hardly differs. Use a smaller tolerance, or points at a few budgets."
            )
    return groups


def _tokens(group: pd.DataFrame, log_size: float, flops: float) -> float:
    if "D" not in group:
        return float(flops / (6 * np.exp(log_size)))
    mean = np.log(group[["N", "D"]].astype(float)).groupby("N")["D"].mean()
    return float(np.exp(np.interp(log_size, mean.index, mean)))


def _optima(rows: list[dict], refused: dict[str, int], budgets: int) -> Optima:
    found = Optima(pd.DataFrame(rows), {why: count for why, count in refused.items() if count}, budgets)
    if not rows:
        raise ValueError(f"No budget has an optimum. {' '.join(found.notes)} Train more sizes per budget.")
    return found


def _wanted(table: pd.DataFrame, names: tuple[str, ...]) -> None:
    missing = [name for name in names if name not in table]
    if missing:
        raise ValueError(f"The table has no column {missing[0]}; it has {', '.join(map(str, table))}. Rename yours.")
    for name in names:
        if name != "run_id" and not (table[name] > 0).all():
            raise ValueError(f"Column {name} must be positive in every row; remove the others.")
