"""Where a loss is lowest over one setting or two, and how surely: a robust quadratic in logarithms of the settings.

    runs --window--> those near the lowest loss --Huber--> quadratic --within what was tried--> the best values
                                            draws of its coefficients --the same way--> their intervals, open ends

A quadratic need not have a minimum, and a minimum need not lie where anything was tried. So the best value is that of
least fitted loss among the values that were tried: never an extrapolation. Where it lies at their end, or where its
interval reaches one, the verdict says so, because no run brackets it there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

BRACKETED, OPEN_BELOW, OPEN_ABOVE = "bracketed", "open below", "open above"
AT_LOWEST, AT_HIGHEST = "at the lowest tried", "at the highest tried"
FLAT, FEW = "not told apart", "too few values"
USABLE = (BRACKETED, OPEN_BELOW, OPEN_ABOVE)  # verdicts under which the best value lies inside what was tried

_WITHIN = 0.03  # runs whose loss exceeds the lowest by this share are not near the optimum
_HUBER = 1.345  # standard deviations from which on a residual counts linearly
_ROUNDS = 30  # of reweighting
_CUBIC = 5  # values of a setting from which on its quadratic is held against a cubic


@dataclass(frozen=True)
class Optimum:
    """The best values of one setting or two, in the settings' own units.

    `best`: of least fitted loss among the values tried. `low`, `high`: the interval, cut at the values tried (nan where
    the runs leave no residuals to judge by). `verdict`: BRACKETED; OPEN_BELOW or OPEN_ABOVE, where the interval reaches
    the lowest or highest value tried; AT_LOWEST or AT_HIGHEST, where the optimum itself lies there; FLAT, where the
    interval spans all that was tried; FEW, under three values (then `best` is that of the lowest mean loss).
    `loss`, `loss_low`, `loss_high`: fitted loss at the optimum. `rise`: by how much twice or half the best value of a
    setting exceeds it, the other one held. `noise`: standard deviation of one run about the surface, with `freedom`
    degrees: of the seeds about their mean, or of those means about the quadratic where that is more. `fitted`, `runs`,
    `diverged`: runs in the fit, with a loss, and without one. `seeds`: how many there are.
    `draws`: (draws, settings) of the optimum; no rows where there is no interval.
    """

    settings: tuple[str, ...]
    best: dict[str, float]
    low: dict[str, float]
    high: dict[str, float]
    verdict: dict[str, str]
    loss: float
    loss_low: float
    loss_high: float
    rise: dict[str, float]
    noise: float
    freedom: int
    fitted: int
    runs: int
    diverged: int
    seeds: int
    draws: np.ndarray
    coefficients: np.ndarray
    centre: np.ndarray

    def predict(self, table: pd.DataFrame) -> np.ndarray:
        """Fitted loss (rows,) at the settings of `table`, the mean over the seeds; nan where nothing was fitted."""
        return _terms(_logs(table, self.settings) - self.centre) @ self.coefficients

    def log_error(self, setting: str) -> float:
        """Standard error of log(best value): half the width of the central 68 % of the draws; nan without draws."""
        if not len(self.draws):
            return float("nan")
        low, high = np.percentile(np.log(self.draws[:, self.settings.index(setting)]), (15.87, 84.13))
        return float((high - low) / 2)


def optimum(
    runs: pd.DataFrame,
    settings: Sequence[str],
    loss: str = "eval_loss",
    noise: tuple[float, int] | None = None,
    level: float = 0.9,
    draws: int = 4000,
    seed: int = 0,
) -> Optimum:
    """Where `loss` is lowest over one or two `settings`, positive columns of `runs` (a row per run, equal in all else).

    A column `seed` is optional; an offset of each seed is fitted where every seed was run at three points or more. Runs
    without a finite loss (diverged) are counted and not fitted. `noise`: standard deviation of one run's loss and its
    degrees of freedom, from runs elsewhere; pooled with the residuals.

    The interval (`level`) holds percentiles of a parametric bootstrap: coefficients from the multivariate
    t-distribution of the weighted least squares, each with its own optimum among the values tried. What a quadratic
    misses is the same for every seed: so the noise is no less than the seeds' means leave about it, and seeds add no
    degrees of freedom to that. Where a setting has five values, a cubic term is fitted too, and by how much it tilts
    the quadratic at its optimum is drawn as an error, of either sign. A constant error of the loss (one held-out set)
    moves no optimum.
    ValueError for no run with a loss, and for a setting that is not positive.
    """
    names = tuple(settings)
    if not 1 <= len(names) <= 2:
        raise ValueError(f"settings={list(names)}: one or two columns.")
    for name in names:
        if not (pd.to_numeric(runs[name], errors="coerce") > 0).all():
            raise ValueError(f"{name} must be positive in every run: its logarithm is taken.")
    finite = np.isfinite(pd.to_numeric(runs[loss], errors="coerce"))
    table = runs[finite]
    if table.empty:
        raise ValueError(f"no run has a finite {loss}: there is nothing to find a minimum of.")
    z, y = _logs(table, names), table[loss].to_numpy(float)
    seeds = table["seed"].astype(str).to_numpy() if "seed" in table else np.full(len(y), "")
    places = np.round(z, 6)
    means = pd.Series(y).groupby([*places.T]).mean()
    lowest = np.atleast_1d(means.idxmin()).astype(float)
    counts = {"runs": len(y), "diverged": int((~finite).sum()), "seeds": len(set(seeds))}
    near = _near(places, lowest, means)
    centre, offsets = z[near].mean(axis=0), _offsets(seeds[near], places[near])
    design = np.hstack([_terms(z[near] - centre), offsets])
    values = [len(np.unique(places[near][:, k])) for k in range(len(names))]
    if min(values) < 3 or np.linalg.matrix_rank(design) < design.shape[1]:
        return _too_few(names, lowest, values, float(means.min()), int(near.sum()), centre, counts)

    beta, weight = _huber(design, y[near])
    terms = design.shape[1] - offsets.shape[1]
    sd, freedom = _noise(places[near], y[near] - design @ beta, weight, terms, offsets.shape[1], noise)
    box = z.min(axis=0) - centre, z.max(axis=0) - centre
    at, least = _lowest(beta[None, :terms], *box)
    drawn, drawn_loss = np.empty((0, len(names))), np.full(1, np.nan)
    if freedom > 0:
        rng = np.random.default_rng(seed)
        bread = np.linalg.inv(design.T @ (weight[:, None] * design))[:terms, :terms]
        scale = sd * np.sqrt(freedom / rng.chisquare(freedom, (draws, 1)))
        shift = rng.standard_normal((draws, terms)) @ np.linalg.cholesky(bread).T
        tilts = _tilts(z[near] - centre, design, y[near], weight, beta, at[0])
        shift = scale * shift + rng.standard_normal((draws, len(tilts))) @ tilts
        drawn, drawn_loss = _lowest(beta[:terms] + shift, *box)
    tails = [50 * (1 - level), 50 * (1 + level)]
    ends = np.percentile(drawn, tails, axis=0) if len(drawn) else np.full((2, len(names)), np.nan)
    verdicts = [_verdict(at[0, k], ends[:, k], box[0][k], box[1][k]) for k in range(len(names))]
    square = [terms - 1] if len(names) == 1 else [3, 5]
    loss_low, loss_high = np.percentile(drawn_loss, tails)

    def natural(logs: np.ndarray) -> dict[str, float]:
        return dict(zip(names, np.exp2(logs + centre).tolist(), strict=True))

    return Optimum(
        names, natural(at[0]), natural(ends[0]), natural(ends[1]), dict(zip(names, verdicts, strict=True)),
        float(least[0]), float(loss_low), float(loss_high),
        {name: float(beta[k]) for name, k in zip(names, square, strict=True)}, sd, freedom,
        int(near.sum()), **counts, draws=np.exp2(drawn + centre), coefficients=beta[:terms], centre=centre,
    )  # fmt: skip


def _logs(table: pd.DataFrame, names: Sequence[str]) -> np.ndarray:
    """(rows, settings): logarithms to base 2, so that one unit is a doubling."""
    return np.log2(table[list(names)].to_numpy(float))


def _terms(z: np.ndarray) -> np.ndarray:
    """(rows, terms) of the quadratic: 1, z, z^2 for one setting; 1, z1, z2, z1^2, z1 z2, z2^2 for two."""
    columns = [np.ones(len(z)), *z.T]
    columns += [z[:, j] * z[:, k] for j in range(z.shape[1]) for k in range(j, z.shape[1])]
    return np.stack(columns, axis=1)


def _near(places: np.ndarray, lowest: np.ndarray, means: pd.Series) -> np.ndarray:
    """(rows,) which runs are near the optimum: of about the lowest mean loss, or among the three values of every
    setting around it; and as many of the next best places as a quadratic with something left over needs."""
    within = means <= means.min() + _WITHIN * abs(means.min())
    index = np.array([np.atleast_1d(place) for place in means.index], float)
    beside = np.ones(len(index), bool)
    for k in range(places.shape[1]):
        values = np.unique(index[:, k])
        middle = np.clip(np.searchsorted(values, lowest[k]), 1, max(len(values) - 2, 1))
        beside &= np.abs(np.searchsorted(values, index[:, k]) - middle) <= 1
    kept = within.to_numpy() | beside
    wanted = min(2 + (3 if places.shape[1] == 1 else 6), len(index)) - int(kept.sum())
    for k in np.argsort(means.to_numpy(), kind="stable"):
        if wanted > 0 and not kept[k]:
            kept[k], wanted = True, wanted - 1
    keys = {tuple(place) for place in index[kept]}
    return np.array([tuple(place) in keys for place in places])


def _offsets(seeds: np.ndarray, places: np.ndarray) -> np.ndarray:
    """(rows, seeds - 1) indicators of every seed but the first, as differences from the mean seed; none where a seed
    has too few runs for its own."""
    names = np.unique(seeds)
    if len(names) == 1 or any(len(np.unique(places[seeds == name], axis=0)) < 3 for name in names):
        return np.empty((len(seeds), 0))
    return np.stack([(seeds == name) * 1.0 - (seeds == names[0]) for name in names[1:]], axis=1)


def _huber(design: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients and weights of the rows: least squares, reweighted so that large residuals count linearly."""
    weight = np.ones(len(y))
    spare = len(y) - design.shape[1]
    for _ in range(_ROUNDS):
        root = np.sqrt(weight)[:, None]
        beta = np.linalg.lstsq(root * design, root[:, 0] * y, rcond=None)[0]
        left = np.abs(y - design @ beta)
        scale = 1.4826 * np.median(left) * np.sqrt(len(y) / max(spare, 1))
        if spare < 3 or scale <= 1e-12 * np.abs(y).max():  # too few rows to tell an outlier
            break
        weight = np.minimum(1.0, _HUBER * scale / np.maximum(left, 1e-300))
    return beta, weight


def _noise(
    places: np.ndarray, left: np.ndarray, weight: np.ndarray, terms: int, offsets: int, known: tuple[float, int] | None
) -> tuple[float, int]:
    """Standard deviation of one run about the surface and its degrees of freedom, from residuals `left`.

    The larger of two: that of the runs of a place about their mean, and that of the means about the surface times the
    root of their number, `known` from elsewhere pooled with it. nan and 0 where there is neither.
    """
    _, place = np.unique(places, axis=0, return_inverse=True)
    total = np.bincount(place.ravel(), weight)
    means = np.bincount(place.ravel(), weight * left) / total
    misfit, free = float(total @ means**2), max(len(total) - terms, 0)
    if known is not None:
        misfit, free = misfit + known[1] * known[0] ** 2, free + known[1]
    spread, spare = float(weight @ (left - means[place.ravel()]) ** 2), max(len(left) - len(total) - offsets, 0)
    found = [(squares / count, count) for squares, count in ((misfit, free), (spread, spare)) if count > 0]
    variance, freedom = max(found, default=(np.nan, 0))
    return float(np.sqrt(variance)), freedom


def _tilts(
    z: np.ndarray, design: np.ndarray, y: np.ndarray, weight: np.ndarray, beta: np.ndarray, at: np.ndarray
) -> np.ndarray:
    """(settings of five values, terms): by how much a fit with a cubic term in the setting departs from the quadratic
    `beta`, to first order about the optimum `at`, as coefficients to add."""
    rows, root = [], np.sqrt(weight)[:, None]
    terms = len(_terms(at[None])[0])
    for k in range(z.shape[1]):
        wider = np.hstack([design, z[:, k : k + 1] ** 3])
        if len(np.unique(np.round(z[:, k], 6))) < _CUBIC or np.linalg.matrix_rank(wider) < wider.shape[1]:
            continue
        more = np.linalg.lstsq(root * wider, root[:, 0] * y, rcond=None)[0]
        around = at + 1e-4 * np.vstack([np.zeros(len(at)), np.eye(len(at)), -np.eye(len(at))])
        departs = _terms(around) @ (more[:terms] - beta[:terms]) + more[-1] * around[:, k] ** 3
        slopes = (departs[1 : len(at) + 1] - departs[len(at) + 1 :]) / 2e-4
        rows.append([departs[0] - slopes @ at, *slopes, *np.zeros(terms - 1 - len(at))])
    return np.array(rows).reshape(len(rows), terms)


def _lowest(beta: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each quadratic (draws, terms) is least in the box, (draws, settings), and its value (draws,)."""
    if beta.shape[1] == 3:
        places = _along(beta[:, 2], beta[:, 1], low[0], high[0])[:, :, None]
    else:
        _, b1, b2, h11, h12, h22 = beta.T
        found = []
        for end in (low[0], high[0]):
            other = _along(h22, b2 + h12 * end, low[1], high[1])
            found.append(np.stack([np.full_like(other, end), other], axis=2))
        for end in (low[1], high[1]):
            other = _along(h11, b1 + h12 * end, low[0], high[0])
            found.append(np.stack([other, np.full_like(other, end)], axis=2))
        determinant = 4 * h11 * h22 - h12**2
        safe = np.where(determinant > 0, determinant, 1.0)
        inner = np.stack([h12 * b2 - 2 * h22 * b1, h12 * b1 - 2 * h11 * b2], axis=1) / safe[:, None]
        inside = (determinant > 0) & (h11 > 0) & ((inner > low) & (inner < high)).all(axis=1)
        found.append(np.where(inside[:, None], inner, low)[:, None, :])  # else a corner, which is tried anyway
        places = np.concatenate(found, axis=1)
    draws, tried, k = places.shape
    values = np.einsum("dmt,dt->dm", _terms(places.reshape(-1, k)).reshape(draws, tried, -1), beta)
    which = values.argmin(axis=1)
    return places[np.arange(draws), which], values[np.arange(draws), which]


def _along(square: np.ndarray, slope: np.ndarray, low: float, high: float) -> np.ndarray:
    """(draws, 3): both ends of a segment, and the vertex between them where square z^2 + slope z has one."""
    vertex = np.clip(-slope / np.where(square > 0, 2 * square, np.inf), low, high)
    return np.stack([np.full_like(slope, low), np.full_like(slope, high), np.where(square > 0, vertex, low)], axis=1)


def _verdict(at: float, ends: np.ndarray, low: float, high: float) -> str:
    below, above = np.isclose([ends[0], ends[1]], [low, high], atol=1e-9)
    if below and above:
        return FLAT
    if np.isclose(at, low, atol=1e-9):
        return AT_LOWEST
    if np.isclose(at, high, atol=1e-9):
        return AT_HIGHEST
    return OPEN_BELOW if below else OPEN_ABOVE if above else BRACKETED


def _too_few(
    names: tuple[str, ...], lowest: np.ndarray, values: Sequence[int], loss: float, fitted: int, centre: np.ndarray,
    counts: dict[str, int],
) -> Optimum:  # fmt: skip
    unknown = dict.fromkeys(names, float("nan"))
    return Optimum(
        names, dict(zip(names, np.exp2(lowest).tolist(), strict=True)), unknown, unknown, dict.fromkeys(names, FEW),
        loss, float("nan"), float("nan"), unknown, float("nan"), 0, fitted, **counts,
        draws=np.empty((0, len(names))), coefficients=np.full(3 * len(names), np.nan), centre=centre,
    )  # fmt: skip
