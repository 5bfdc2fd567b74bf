"""How far a fit's numbers may be from the truth: the bootstrap, and the covariance behind the delta method.

Both hold the noise of the rows, not the error of the law's form. With psi the slope of the loss, J the Jacobian
of the residuals and k the curvature of the loss averaged over the noise, an M-estimate has the covariance
A^-1 B A^-1, A = J'kJ, B = sum over runs of (J'psi)(J'psi)' (Huber and Ronchetti, Robust Statistics, 2nd ed.,
chapter 7.6; White 1980), which asks neither equal noise nor independent rows of one run. The curvature of Huber's loss
is 0 or 1, so k is smoothed with a kernel over the residuals.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from scipy import special

from scaling import jets
from scaling.losses import has_scale
from scaling.problem import Problem
from scaling.progress import track
from scaling.rows import Rows

if TYPE_CHECKING:
    from scaling.fit import Fit

_NODES = np.linspace(-6.0, 6.0, 241)
_DENSITY = np.exp(-0.5 * _NODES**2) / np.exp(-0.5 * _NODES**2).sum()
_BLOCK = 4096  # rows smoothed at once
CELLS = 2_000_000  # refits times rows, or draws times rows, held at once
KINDS = ("pairs", "residual", "cluster")
FEW_RUNS = 5  # below this, drawing runs says little about how runs differ
_FEW_ROWS = 20


# --- bootstrap ---------------------------------------------------------------------------------------------------


def bootstrap(fit: Fit, n: int, seed: int, kind: Literal["pairs", "residual", "cluster"] | None) -> dict[str, Any]:
    """The fields of a Fit that `n` refits fill."""
    if n < 2:
        raise ValueError(
            f"bootstrap={n} must be at least 2; 1000 gives 90 % intervals that hardly change with the seed."
        )
    codes = _runs(fit)
    runs = int(codes.max()) + 1
    kind = kind or default_kind(fit)
    one_of("resample", kind, KINDS)
    member, count = (codes, runs) if kind == "cluster" else (np.arange(len(codes)), len(codes))
    if count < 2:
        raise ValueError("resample=cluster draws runs, and this fit has one. Use resample=residual.")
    rng = np.random.default_rng(seed)
    # Each replicate has prior means of its own, drawn from the priors: else intervals were narrower than these.
    shifts = {name: rng.standard_normal(n) for name in fit.problem.priors}
    batch = max(1, CELLS // len(codes))
    replicates = []
    for part in track([slice(at, min(at + batch, n)) for at in range(0, n, batch)], "bootstrap"):
        size = part.stop - part.start
        weights = target = None
        if kind == "residual":
            target = _resampled_targets(fit, size, rng)
        else:
            weights = rng.multinomial(count, np.full(count, 1 / count), size=size)[:, member].astype(float)
        moved = {name: shift[part] for name, shift in shifts.items()}
        points = np.repeat(fit.free[None], size, axis=0)
        replicates.append(fit.problem.minimise(points, weights, target, shifts=moved).theta)
    return {"free_replicates": np.concatenate(replicates), "bootstrap_kind": kind}


def default_kind(fit: Fit) -> Literal["pairs", "residual", "cluster"]:
    """Runs where they have several rows and there are a few of them, else rows; residuals where either are too few to
    be drawn with replacement."""
    codes = _runs(fit)
    runs = int(codes.max()) + 1
    if runs < len(codes):
        return "cluster" if runs >= FEW_RUNS else "residual"
    return "pairs" if len(codes) >= _FEW_ROWS else "residual"


def _resampled_targets(fit: Fit, n: int, rng: np.random.Generator) -> np.ndarray:
    """(n, rows) targets: predictions plus residuals drawn anew, about the middle that the loss gives them."""
    problem = fit.problem
    residual = _residuals(fit)
    drawn = (noise_draws(fit, rng, (n, len(residual))) - _location(fit)) * _relative_error(problem)
    if problem.residuals == "log":
        return problem.target * np.exp(residual) * np.exp(-drawn)
    return problem.target + (residual - drawn) * problem.typical


def noise_draws(fit: Fit, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Residuals of unit weight drawn with replacement, inflated by sqrt(n / (n - p)) for the fitted parameters
    (Davison and Hinkley 1997, chapter 6.2), and smoothed by a kernel: fits by nearly absolute losses pass through some
    of their rows, and those residuals of zero are no noise."""
    residual = _unit_residuals(fit)
    rows, p = len(residual), len(law_free(fit))
    middle, spread, width = residual.mean(), residual.std(), _kernel_width(residual)
    smooth = residual[rng.integers(rows, size=shape)] - middle + width * rng.standard_normal(shape)
    # At the same variance where squares count; where only signs do, it is the density amid the noise that counts, and
    # the rows that the fit passes through have made that too high.
    squared = min(_moments(fit.problem, _residuals(fit))[1], 1.0)
    smooth *= (spread / np.hypot(spread, width)) ** squared if spread > 0 else 0.0
    return (middle + smooth) * np.sqrt(rows / max(rows - p, 1))


def _location(fit: Fit) -> float:
    """Where the loss itself puts the middle of the residuals of unit weight: 0 where the law has a free factor."""
    residual, scale = _unit_residuals(fit), _scale(fit)
    low, high = float(residual.min()), float(residual.max())
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if fit.problem.loss((residual - middle) / scale)[1].sum() > 0 else (low, middle)
    return 0.5 * (low + high)


def _relative_error(problem: Problem) -> np.ndarray:
    """(rows,): noise of each row relative to one of unit weight; none for rows of weight 0, which nobody looks at."""
    return np.where(problem.weights > 0, 1.0 / np.sqrt(np.maximum(problem.weights, 1e-300)), 0.0)


def _kernel_width(r: np.ndarray) -> float:
    """Silverman's rule: 1.06 sd n^(-1/5), with a robust standard deviation."""
    spread = float(min(r.std(), np.subtract(*np.percentile(r, (75, 25))) / 1.349) or r.std())
    return 1.06 * max(spread, 1e-300) * len(r) ** -0.2


def _runs(fit: Fit) -> np.ndarray:
    """(rows,) numbers of the runs, in the canonical order of their rows, whatever their names."""
    _, first, member = np.unique(fit.rows.table["group"].to_numpy(), return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[member]


# --- covariance --------------------------------------------------------------------------------------------------


def covariance(fit: Fit) -> np.ndarray:
    """(p, p) of the free coordinates, by the sandwich over runs."""
    inverse = np.linalg.pinv(bread(fit.problem, fit.free), rcond=1e-14, hermitian=True)
    return inverse @ _meat(fit) @ inverse


def standard_errors(fit: Fit) -> dict[str, float]:
    """Of the free parameters; relative for those that are fitted as logarithms. In the table's units."""
    raw = _raw_coordinates(fit)
    errors = np.sqrt(np.maximum(np.diag(raw @ covariance(fit) @ raw.T), 0.0))
    return dict(zip(law_free(fit), map(float, errors), strict=True))


def noise(problem: Problem, theta: np.ndarray, fitted: Rows) -> float:
    """Objective over minus log likelihood: mean psi^2 over mean curvature, n / (n - p) for the fitted parameters, times
    the rows per run, because rows of one run are one observation (a design effect with full correlation)."""
    per_run = len(fitted.table) / fitted.table["group"].nunique()
    if has_scale(problem.loss):
        return per_run
    r = np.asarray(problem.residual(theta[None]).value)[0]
    rows, p = int((problem.weights > 0).sum()), len(theta)
    if rows <= p:
        raise ValueError(
            f"{rows} rows for {p} free parameters say nothing about the noise that priors are weighed against: "
            "use loss=StudentT(), fix parameters, or add rows."
        )
    square, curvature = _moments(problem, r)
    return square / curvature * rows / (rows - p) * per_run


def _moments(problem: Problem, r: np.ndarray) -> tuple[float, float]:
    """Means over the rows that count of weight * psi^2 and of the loss's curvature."""
    counts = problem.weights > 0
    psi, curvature = problem.loss(r)[1][counts], _curvature(problem, r)[counts]
    return float(np.mean(problem.weights[counts] * psi**2)), max(float(curvature.mean()), 1e-300)


def _curvature(problem: Problem, r: np.ndarray) -> np.ndarray:
    """(rows,): E loss''(r + noise) with the noise of a kernel, by Stein's identity from the loss's slopes."""
    counts = problem.weights > 0
    width = _kernel_width((r * np.sqrt(problem.weights))[counts]) * np.where(counts, _relative_error(problem), 1.0)
    kernel = _NODES * _DENSITY
    parts = [
        problem.loss(r[rows, None] + width[rows, None] * _NODES)[1] @ kernel / width[rows]
        for rows in (slice(at, at + _BLOCK) for at in range(0, len(r), _BLOCK))
    ]
    return np.concatenate(parts)


def bread(problem: Problem, theta: np.ndarray) -> np.ndarray:
    """(p, p): the curvature of the objective, averaged over the noise."""
    if has_scale(problem.loss):
        return problem.objective(theta[None], np.zeros(1, int))[2][0]
    residual = problem.residual(theta[None])
    first = _dense(residual.grad, len(theta), len(problem.target))
    total = (first * problem.weights * _curvature(problem, np.asarray(residual.value)[0])) @ first.T
    for name, prior in problem.priors.items():
        total += problem.penalty(theta[None], name, prior)[2][0]
    return total


def _meat(fit: Fit) -> np.ndarray:
    """(p, p): the scores' outer products, summed over runs. Residuals are divided by 1 - leverage, as if each row were
    predicted without itself (HC3; MacKinnon and White 1985)."""
    problem, codes = fit.problem, _runs(fit)
    residual = problem.residual(fit.free[None])
    first, value = _dense(residual.grad, len(fit.free), len(codes)), np.asarray(residual.value)[0]
    if has_scale(problem.loss):
        scale = np.exp(fit.free[-1])
        psi = problem.loss(value / scale)[1]
        score = first * (psi / scale)
        score[-1] = 1.0 - psi * value / scale
    else:
        score = first * problem.loss(value)[1]
    weighted = first * np.sqrt(problem.weights)
    inverse = np.linalg.pinv(weighted @ weighted.T, rcond=1e-12, hermitian=True)
    leverage = np.einsum("pr,pq,qr->r", weighted, inverse, weighted)
    score = score * problem.weights / np.maximum(1.0 - leverage, 0.1)
    if not codes.any():  # a single run: nothing is known of how runs differ, so rows stand for runs
        codes = np.arange(len(codes))
    runs = int(codes.max()) + 1
    summed = np.stack([np.bincount(codes, row, runs) for row in score])
    meat = (summed @ summed.T) * (runs / max(runs - 1, 1))
    for name, prior in problem.priors.items():  # a prior's mean is as uncertain as it says
        meat += problem.noise * problem.penalty(fit.free[None], name, prior)[2][0]
    return meat


def _dense(grad: dict[int, Any], p: int, rows: int) -> np.ndarray:
    first = np.zeros((p, rows))
    for i, entry in grad.items():
        first[i] = np.broadcast_to(entry, (1, rows))[0]
    return first


def _raw_coordinates(fit: Fit) -> np.ndarray:
    """(law's free parameters, p): derivatives of raw parameters (logarithms of positive ones) in theta."""
    problem = fit.problem
    raw = fit.law.rescale(problem.centred(jets.variables(fit.free[None])), problem.scale)
    rows = []
    for parameter in problem.free_parameters:
        if parameter.name in raw:
            value = jets.log(raw[parameter.name]) if parameter.transform == "log" else raw[parameter.name]
            rows.append(_dense(value.grad, len(fit.free), 1)[:, 0])
    return np.stack(rows)


def jacobian(fit: Fit, table: pd.DataFrame | None) -> np.ndarray:
    """See `Fit.jacobian`."""
    columns = fit.law.features(fit.rows.table if table is None else table)
    return law_gradient(fit, columns)[: len(law_free(fit))].T


def law_gradient(fit: Fit, columns: dict[str, Any]) -> np.ndarray:
    """(p, rows): of the (log) prediction at raw `columns` in theta."""
    problem = fit.problem
    raw = fit.law.rescale(problem.centred(jets.variables(fit.free[None])), problem.scale)
    prediction = fit.law.predict(raw, columns)
    prediction = jets.log(prediction) if problem.residuals == "log" else prediction
    return _dense(prediction.grad, len(fit.free), np.size(prediction.value))


def _residuals(fit: Fit) -> np.ndarray:
    return np.asarray(fit.problem.residual(fit.free[None]).value)[0]


def _unit_residuals(fit: Fit) -> np.ndarray:
    """Of the rows that count, with the noise of a row of unit weight."""
    weights = fit.problem.weights
    return (_residuals(fit) * np.sqrt(weights))[weights > 0]


def _scale(fit: Fit) -> float:
    """The fitted scale of the residuals; 1 for losses that have none."""
    return float(np.exp(fit.free[-1])) if has_scale(fit.problem.loss) else 1.0


def row_variance(fit: Fit) -> float:
    """Variance of one row of unit weight as it enters estimates: mean psi^2 over the squared mean curvature of the
    loss, times n / (n - p). For least squares the residual variance."""
    scale = _scale(fit)
    square, curvature = _moments(fit.problem, _residuals(fit) / scale)
    rows = int((fit.problem.weights > 0).sum())
    return scale**2 * square / curvature**2 * rows / max(rows - len(law_free(fit)), 1)


def law_free(fit: Fit) -> list[str]:
    """Names of the law's parameters that were fitted."""
    return [name for name in fit.problem.names if name in fit.law.names]


def freedom(fit: Fit) -> int:
    counts = fit.problem.weights > 0
    rows, runs = int(counts.sum()), len(np.unique(_runs(fit)[counts]))
    return max(min(rows - len(law_free(fit)), (rows if runs == 1 else runs) - 1), 1)


def quantile(fit: Fit, level: float) -> float:
    """Standard errors to either side that enclose `level`, by Student's t with the fit's degrees of freedom."""
    percentiles(level)
    return float(special.stdtrit(freedom(fit), 0.5 + level / 2))


def one_of(option: str, given: str, known: tuple[str, ...]) -> None:
    if given not in known:
        raise ValueError(f"{option}={given!r}: one of {', '.join(known)}.")


def percentiles(level: float) -> tuple[float, float]:
    """The two percentiles that enclose `level`."""
    if not 0 < level < 1:
        raise ValueError(f"level={level} must lie between 0 and 1, as in 0.9 for 90 %.")
    return 50 * (1 - level), 50 * (1 + level)
