"""The critical batch size, from runs at a constant rate that pass target losses on their way down.

    runs, curves --crossings--> tokens of every run to every target --best rate--> steps(N, D, B)
                 --hyperbola--> steps = a + b / B in every cell (N, D) --> B* --power law--> B* = k N^a_N D^a_D

A target is named by the tokens D that B0 needs for it, the smallest batch that every size has; each batch is at its own
best rate. B* is the batch whose steps exceed by 20 % what linear scaling from B0 would need (Zhang et al. 2024,
arXiv:2410.21676).
Intervals: seeds are drawn anew within every (N, B), the same in all cells, and rates chosen again each time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import log

import numpy as np
import pandas as pd

from data.descents import descent, loss_at, tokens_to
from scaling.laws import StepsToTarget
from scaling.naming import first_batch
from scaling.settings import apart, comparable
from scaling.wording import short

OVERHEAD = 0.2
_LAW = StepsToTarget()
_APART = 2**0.5  # between the targets' tokens
_LEAST_BATCHES = 4  # that reach a target, for a cell
_GRID = np.linspace(log(1e-3), log(1e3), 241)  # of log(b / a), around the batches' geometric mean


@dataclass(frozen=True)
class Critical:
    """`cells`: N, D, target, B0, a, b, critical, low, high, batches, scatter (rms of log steps), seeds.
    `steps`: a row per cell and batch (N, D, B, tokens, peak_lr, beta2, edge, seeds, spread). `law`: exponents of B* by
    name with 90 % intervals, and `ratio_law` those of b / a, which does not hold the 1.2 B0 of B*. `replicates` (n,
    cells). Batches and D in tokens. `notes`: what was left out."""

    cells: pd.DataFrame
    steps: pd.DataFrame
    replicates: np.ndarray
    law: dict[str, Exponent]
    ratio_law: dict[str, Exponent]
    notes: tuple[str, ...]
    runs: pd.DataFrame


@dataclass(frozen=True)
class Exponent:
    """An exponent, or the coefficient, with its 90 % interval (nan without seeds to draw)."""

    value: float
    low: float
    high: float


def critical(runs: pd.DataFrame, curves: pd.DataFrame, draws: int = 1000, seed: int = 0) -> Critical:
    """Cells, steps and laws of the runs. ValueError where there is not one cell."""
    runs, notes = _prepared(runs)
    known = curves[curves["run_id"].isin(runs["run_id"])].sort_values("tokens")
    descents = {run: descent(rows.to_dict("records")) for run, rows in known.groupby("run_id")}
    runs = runs[[len(descents.get(run, ())) > 1 for run in runs["run_id"]]]
    if runs.empty:
        raise ValueError("no run has two evaluations: set eval.every_tokens.")
    by_size = [set(group["B"]) for _, group in runs.groupby("N")]
    common = set.intersection(*by_size)
    if not common:
        raise ValueError(
            "the sizes have no batch in common, against which linear scaling could be held: run one for all."
        )
    reference = float(min(common))
    if any(min(batches) < reference for batches in by_size):
        notes.append(f"Batches below {reference:g} tokens were not run at every size: that one is B0 for all.")
    cells, rows, drawn, ratios = [], [], [], []
    for size, group in runs.groupby("N"):
        samples = Samples(group, descents, reference, draws, seed)
        targets = list(samples.targets())
        lost = samples.leave_out([target for _, target in targets])
        if lost:
            listed = ", ".join(f"{batch:g}" for batch in lost)
            notes.append(f"N = {short(size)}: no run with batches of {listed} tokens reached any target; left out.")
        if len(samples.batches) < _LEAST_BATCHES or reference not in samples.batches:
            count = len(samples.batches)
            notes.append(
                f"N = {short(size)}: targets were reached at {count} batch sizes; {_LEAST_BATCHES} are needed, and B0."
            )
            continue
        every = [(tokens, target, samples.cell(target)) for tokens, target in targets]
        missed = [short(tokens) for tokens, _, found in every if found is None]
        if missed:
            notes.append(
                f"N = {short(size)}: {len(missed)} of {len(every)} targets are left out (those of {', '.join(missed)} "
                "tokens): at some batch no rate reached them with all its seeds."
            )
        for tokens, target, found in every:
            if found is None:
                continue
            table, replicates = found
            a, b = hyperbola(table["B"].to_numpy(), table["steps"].to_numpy())
            many = hyperbola(table["B"].to_numpy(), replicates)
            star = float(_LAW.critical_batch({"a": a, "b": b}, reference, OVERHEAD))
            stars = _LAW.critical_batch({"a": many[0], "b": many[1]}, reference, OVERHEAD)
            stars = stars if samples.several else np.full(draws, np.nan)
            low, high = np.percentile(stars, (5, 95))
            scatter = np.log((a + b / table["B"]) / table["steps"])
            cells.append({
                "N": size, "D": tokens, "target": target, "B0": reference, "a": float(a), "b": float(b),
                "critical": star, "low": low, "high": high, "batches": len(table), "largest": table["B"].max(),
                "scatter": float(np.sqrt(np.mean(scatter**2))), "seeds": int(table["seeds"].min()),
            })  # fmt: skip
            rows.append(table.assign(N=size, D=tokens))
            drawn.append(stars)
            ratios.append(many[1] / many[0] if samples.several else stars)
    if not cells:
        why = " ".join(notes) or "no target loss is reached by every batch size."
        raise ValueError(f"no critical batch size can be read off these runs: {why}")
    found_cells, replicates = pd.DataFrame(cells), np.array(drawn).T
    law = power_law(found_cells, replicates)
    ratio_law = power_law(found_cells.assign(critical=found_cells["b"] / found_cells["a"]), np.array(ratios).T)
    steps = pd.concat(rows, ignore_index=True)
    return Critical(found_cells, steps, replicates, law, ratio_law, tuple(notes), runs)


# ---------------------------------------------------------------------------------------------------- one size


class Samples:
    """The runs of one size: batch (tokens) -> setting of rate and beta2 -> seeds, with the draws of seeds."""

    def __init__(
        self, runs: pd.DataFrame, descents: dict[str, np.ndarray], reference: float, draws: int, seed: int
    ) -> None:
        self.reference = reference
        self.by_batch: dict[float, list[tuple[pd.Series, list[np.ndarray]]]] = {}
        for batch, group in runs.groupby("B"):
            rates = group.sort_values("seed").groupby(["peak_lr", "beta2"], dropna=False)
            self.by_batch[float(batch)] = [(g.iloc[0], [descents[run] for run in g["run_id"]]) for _, g in rates]
        self.batches = sorted(self.by_batch)
        stops = pd.to_numeric(runs.get("stop_when.loss", pd.Series(dtype=float)), errors="coerce")
        self.floor = stops.max() if stops.notna().any() else -np.inf  # what lies below is where runs ended by chance
        generator = np.random.default_rng(seed)
        counts = {len(seeds) for rates in self.by_batch.values() for _, seeds in rates}
        self.several = max(counts) > 1
        self.drawn = {
            (batch, count): generator.integers(count, size=(draws, count))
            for batch in self.batches
            for count in sorted(counts)
        }
        self.normal = {batch: generator.standard_normal(draws) for batch in self.batches}

    def targets(self) -> Iterator[tuple[float, float]]:
        """(tokens, loss) of the reference batch at its best rate, a factor sqrt(2) apart; the tokens are round."""
        rates = self.by_batch[self.reference]
        ends = [min(d[-1, 0] for d in seeds) for _, seeds in rates]
        starts = [max(d[0, 0] for d in seeds) for _, seeds in rates]
        first, last = np.ceil(np.log(min(starts)) / log(_APART)), np.floor(np.log(max(ends)) / log(_APART))
        best = None
        for power in np.arange(first, last + 1):
            tokens = float(_APART**power)
            losses = np.array([np.mean([loss_at(d, tokens) for d in seeds]) for _, seeds in rates])
            if best is not None and np.isnan(losses[best]):  # it was there: others that go on would name it otherwise
                return
            if np.isfinite(losses).any() and np.nanmin(losses) >= self.floor:
                best = int(np.nanargmin(losses))
                yield tokens, float(losses[best])

    def cell(self, target: float) -> tuple[pd.DataFrame, np.ndarray] | None:
        """Steps of every batch that reached the target at its best rate, and the same for every draw (draws, batches).

        None where one batch did not: the largest are the last to be there, and without them the curve has no bend.
        """
        rows, replicates = [], []
        of_batch = {batch: self.options(batch, target) for batch in self.batches}
        if not all(of_batch.values()):
            return None
        spreads = [logs.var(ddof=1) for options in of_batch.values() for _, logs in options if len(logs) > 1]
        pooled = float(np.sqrt(np.mean(spreads))) if spreads else np.nan
        for batch, options in of_batch.items():
            means = [logs.mean() for _, logs in options]
            best = int(np.argmin(means))
            first, logs = options[best]
            rates = sorted({float(row["peak_lr"]) for row, _ in self.by_batch[batch]})
            edge = len(rates) > 1 and float(first["peak_lr"]) in (rates[0], rates[-1])
            rows.append({
                "B": batch, "tokens": float(np.exp(means[best])), "steps": float(np.exp(means[best])) / batch,
                "peak_lr": float(first["peak_lr"]), "beta2": first["beta2"], "edge": edge, "rates": len(rates),
                "seeds": len(logs), "spread": float(logs.std(ddof=1)) if len(logs) > 1 else np.nan,
            })  # fmt: skip
            replicates.append(np.exp(np.min([self._draw(batch, own, pooled) for _, own in options], axis=0)) / batch)
        return pd.DataFrame(rows), np.array(replicates).T

    def options(self, batch: float, target: float) -> list[tuple[pd.Series, np.ndarray]]:
        """Settings of rate and beta2 all of whose seeds reached the target, after their first evaluation: the first run
        and log tokens (seeds,)."""
        found = [(first, np.log([tokens_to(one, target) for one in seeds])) for first, seeds in self.by_batch[batch]]
        return [(first, logs) for first, logs in found if np.isfinite(logs).all()]

    def leave_out(self, targets: Sequence[float]) -> list[float]:
        """Forgets the batches that reached no target at all, and says which."""
        lost = [batch for batch in self.batches if not any(self.options(batch, target) for target in targets)]
        self.batches = [batch for batch in self.batches if batch not in lost]
        return lost

    def _draw(self, batch: float, logs: np.ndarray, pooled: float) -> np.ndarray:
        """Means over drawn seeds (draws,), as far from the mean as those of so few seeds should be; a single seed
        has the spread that the others have on average."""
        count = len(logs)
        if count == 1:
            return logs[0] + (pooled if np.isfinite(pooled) else 0.0) * self.normal[batch]
        means = logs[self.drawn[batch, count]].mean(axis=1)
        return logs.mean() + (means - logs.mean()) * (count / max(count - 1, 1)) ** 0.5


# ---------------------------------------------------------------------------------------------------- fits


def hyperbola(batches: np.ndarray, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """a, b (...,) of steps = a + b / batch by least squares of log steps (..., batches).

    For a given b / a the best a is a mean, which leaves one dimension: a grid, and Newton's method from its best place.
    The ratio stays within a thousand times the geometric mean of the batches to either side.
    """
    steps = np.asarray(steps, float)
    centre = np.exp(np.log(batches).mean())
    inverse = centre / np.asarray(batches, float)
    logs = np.log(steps)[..., None, :]

    def residuals(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # theta (..., k) -> (..., k, batches), and slope
        ratio = np.exp(theta)[..., None] * inverse
        left, slope = logs - np.log1p(ratio), ratio / (1 + ratio)
        return left - left.mean(-1, keepdims=True), slope - slope.mean(-1, keepdims=True)

    objective = (residuals(_GRID)[0] ** 2).sum(-1)
    theta = _GRID[np.argmin(objective, axis=-1)][..., None]
    step = _GRID[1] - _GRID[0]
    for _ in range(30):  # Gauss-Newton with a bounded step
        left, slope = residuals(theta)
        move = (left * slope).sum(-1) / np.maximum((slope**2).sum(-1), 1e-300)
        theta = np.clip(theta + np.clip(move, -step, step), _GRID[0], _GRID[-1])
    a = np.exp((logs[..., 0, :] - np.log1p(np.exp(theta) * inverse)).mean(-1))
    return a, a * np.exp(theta[..., 0]) * centre


def power_law(cells: pd.DataFrame, replicates: np.ndarray) -> dict[str, Exponent]:
    """Exponents of B* by least squares of logarithms over the cells, as far as these vary.

    a_D: growing D at fixed N (an intercept for every N); a_N: growing N at fixed D (one for every D); path: D in
    proportion to N, and k, in k N^a_N D^a_D fitted to all cells. Intervals from the replicates (n, cells).
    """
    logs = np.log(np.vstack([cells["critical"].to_numpy(), replicates]))
    size, tokens = (np.log(cells[name].to_numpy(float)) for name in ("N", "D"))

    def within(x: np.ndarray, groups: pd.Series) -> np.ndarray | None:
        centred = x - pd.Series(x).groupby(groups.to_numpy()).transform("mean").to_numpy()
        varied = (centred**2).sum()
        return logs @ centred / varied if varied > 1e-9 else None

    found: dict[str, np.ndarray] = {}
    by_tokens, by_size = within(tokens, cells["N"]), within(size, cells["D"].round())
    if by_tokens is not None:
        found["a_D"] = by_tokens
    if by_size is not None:
        found["a_N"] = by_size
    if cells["N"].nunique() > 1 and len(cells) > 3:
        design = np.column_stack([np.ones_like(size), size, tokens])
        if np.linalg.matrix_rank(design - [0, size.mean(), tokens.mean()]) == 3:
            k, of_size, of_tokens = np.linalg.pinv(design) @ logs.T
            found |= {"joint_N": of_size, "joint_D": of_tokens, "path": of_size + of_tokens, "k": np.exp(k)}
    return {name: _exponent(values) for name, values in found.items()}


def _exponent(values: np.ndarray) -> Exponent:
    low, high = np.percentile(values[1:], (5, 95))
    return Exponent(float(values[0]), float(low), float(high))


# ---------------------------------------------------------------------------------------------------- runs


def _prepared(runs: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Runs that count, with B in tokens and beta2; and what was left out. ValueError where settings differ."""
    runs = runs.assign(B=first_batch(runs) * pd.to_numeric(runs["sequence_length"]))
    runs["beta2"] = pd.to_numeric(runs.get("optimizer.beta2", np.nan), errors="coerce")
    for name in ("N", "peak_lr", "seed"):
        runs[name] = pd.to_numeric(runs[name])
    ended = runs["status"].isin(["completed", "diverged"])
    notes = [f"Left out for they did not end: {(~ended).sum()} of {len(runs)} runs."] if (~ended).any() else []
    runs = runs[ended & runs["B"].notna()]
    if runs.empty:
        raise ValueError("no run has ended.")
    of_batch = [name for name in comparable(runs) if name not in _FOLLOWS]
    labels, differing = apart(comparable(runs)[of_batch], [runs["N"], runs["B"]])
    if labels.nunique() > 1:
        raise ValueError(
            f"steps to a target are compared within one setting. {' '.join(differing)} Give each a folder of its own "
            "(launch.experiment)."
        )
    return runs, notes


# what follows the batch, or is chosen with the rate
_FOLLOWS = ("optimizer.beta2", "optimizer.adamw_beta2", "total_tokens", "warmup_tokens", "stop_when.loss",
            "stop_when.rivals", "stop_when.beaten_by", "eval.every_tokens", "eval.growth")  # fmt: skip
