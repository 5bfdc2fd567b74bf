"""The critical batch size along one run, by branches of it (Merrill et al. 2025, arXiv:2505.23971).

    runs --same seed, same branch point--> loss of every batch minus that of the run's own batch
         --largest within the tolerance--> B*(tokens) --power law--> the ramp that keeps below it

A branch trains for a window of tokens at another batch, its rate scaled with the batch. The branch at the run's own
batch is what the others are held against. Batches are in sequences.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from data.descents import is_held_out
from scaling.naming import first_batch
from scaling.seeds import over_seeds
from scaling.settings import comparable, text

TOLERANCE = 0.02  # nats per token
DIVERGED = 10.0  # nats that a branch which diverged counts as worse


@dataclass(frozen=True)
class Branched:
    """`differences`: a row per rule, tokens and batch (rule, tokens, batch, difference, low, high, spread, seeds), of
    losses in nats against the run's own batch. `critical`: a row per rule and tokens (rule, tokens, critical, low,
    high, seeds; beyond: no batch that was run is too large). `laws`: rule -> (k, exponent, low, high) of B* = k
    tokens^exponent. `powers`: rule -> the power of the batch that the rate follows. `base`: the run's own batch;
    `window` in tokens; `notes`: what was left out."""

    differences: pd.DataFrame
    critical: pd.DataFrame
    laws: Mapping[str, tuple[float, float, float, float]]
    powers: Mapping[str, float]
    base: int
    window: float
    parents: tuple[str, ...]
    runs: pd.DataFrame
    notes: tuple[str, ...]


def branched(runs: pd.DataFrame, tolerance: float = TOLERANCE, draws: int = 1000, seed: int = 0) -> Branched:
    """Every branch against that of the run's own batch. ValueError where there is none to compare."""
    branches, notes = _branches(runs)
    own = branches[branches["times"] == 1].set_index(["parent", "tokens", "seed"])["loss"]
    others = branches[branches["times"] != 1]
    others = others.assign(difference=np.minimum(others["loss"] - _matched(others, own), DIVERGED))
    lost = int(others["difference"].isna().sum())
    if lost:
        notes.append(f"{lost} branches have no completed branch at the run's own batch beside them and are left out.")
    others = others.dropna(subset="difference")
    if others.empty:
        raise ValueError("no branch can be compared: add one at the run's own batch at every branch point.")
    base = int(branches.loc[branches["times"] == 1, "batch"].iloc[0])
    rows, found, generator = [], [], np.random.default_rng(seed)
    replicates: dict[str, list[np.ndarray]] = {}
    for (rule, tokens), group in others.groupby(["rule", "tokens"]):
        table = group.pivot_table(index="seed", columns="batch", values="difference").sort_index(axis=1)
        whole = table.dropna()
        for batch in table:
            one = over_seeds(table[batch])
            rows.append({"rule": rule, "tokens": tokens, "batch": batch, "difference": one.mean, "low": one.low,
                         "high": one.high, "spread": one.spread, "seeds": one.count})  # fmt: skip
        batches = np.array([base, *map(float, table.columns)])
        means = table.mean().to_numpy()
        star, beyond = largest_within(batches, np.concatenate([[0.0], means]), tolerance)
        count = len(whole)
        stars = np.full(draws, np.nan)
        if count > 1:
            drawn = whole.to_numpy()[generator.integers(count, size=(draws, count))].mean(axis=1)
            drawn = means + (drawn - whole.to_numpy().mean(axis=0)) * (count / (count - 1)) ** 0.5
            stars = np.array([largest_within(batches, np.concatenate([[0.0], one]), tolerance)[0] for one in drawn])
        low, high = np.percentile(stars, (5, 95))
        found.append({"rule": rule, "tokens": tokens, "critical": star, "low": low, "high": high, "beyond": beyond,
                      "largest": batches[-1], "seeds": count})  # fmt: skip
        replicates.setdefault(rule, []).append(stars)
    critical = pd.DataFrame(found)
    laws = {
        rule: law for rule, drawn in replicates.items()
        if (law := _law(critical[critical["rule"] == rule], np.array(drawn).T)) is not None
    }  # fmt: skip
    parents = tuple(sorted(branches["parent"].unique()))
    window = float((pd.to_numeric(branches["total_tokens"]) - branches["tokens"]).median())
    powers = {str(rule): round(float(power), 2) for rule, power in others.groupby("rule")["power"].median().items()}
    return Branched(pd.DataFrame(rows), critical, laws, powers, base, window, parents, branches, tuple(notes))


def largest_within(batches: np.ndarray, differences: np.ndarray, tolerance: float) -> tuple[float, bool]:
    """The largest batch whose difference is within the tolerance, and whether no batch is beyond it.

    Between it and the next the difference is taken as linear in log batch. The first batch is the run's own.
    """
    inside = np.flatnonzero(differences <= tolerance)
    last = int(inside[-1])
    if last == len(batches) - 1:
        return float(batches[-1]), True
    share = (tolerance - differences[last]) / (differences[last + 1] - differences[last])
    return float(batches[last] * (batches[last + 1] / batches[last]) ** share), False


def ramp(law: tuple[float, float, float, float], base: int, first: float, last: float) -> tuple[list[int], list[int]]:
    """Thresholds in tokens and batches in sequences: `base` doubled wherever B* = k tokens^exponent allows it.

    Thresholds lie between `first` and `last` tokens; what B* allows already at `first` begins there, unless it shrinks.
    """
    if law[1] < 0:
        return [], [base]
    k, exponent = law[:2]
    thresholds: list[int] = []
    batches = [base]
    for doublings in range(1, 31):
        batch = base * 2**doublings
        if k * first**exponent >= batch:
            at = first
        elif exponent <= 0 or np.log(batch / k) / exponent >= np.log(last):
            break
        else:
            at = (batch / k) ** (1 / exponent)
        if thresholds and round(at) <= thresholds[-1]:
            batches[-1] = batch  # allowed at once
            continue
        thresholds.append(round(at))
        batches.append(batch)
    return thresholds, batches


def _branches(runs: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Completed branches with parent, tokens (where they begin), times (their batch over the parent's), rule, loss."""
    if "parent" not in runs or runs["parent"].isna().all():
        raise ValueError("no run is a branch of another: give parent.tokens and parent.overrides.")
    runs = runs.assign(batch=first_batch(runs), tokens=pd.to_numeric(runs["parent.tokens"], errors="coerce"))
    for name in ("peak_lr", "seed"):
        runs[name] = pd.to_numeric(runs[name])
    above = runs.set_index("run_id")[["batch", "peak_lr"]]
    branches = runs[runs["parent"].isin(above.index)]
    losses = [name for name in map(str, branches) if is_held_out(name)]
    evaluated = branches.get("eval_loss", pd.Series(np.nan, branches.index)).notna()
    diverged = branches["status"].eq("diverged")
    good = branches["status"].eq("completed") & evaluated | diverged
    notes = [f"{diverged.sum()} branches diverged: their batches count as too large."] if diverged.any() else []
    notes += [f"{(~good).sum()} branches that did not complete are left out."] if (~good).any() else []
    _one_setting(runs[runs["run_id"].isin(branches["parent"])])
    branches = branches[good]
    if branches.empty:
        raise ValueError("no branch has completed with a held-out loss.")
    parent = above.loc[branches["parent"]]
    times = branches["batch"].to_numpy() / parent["batch"].to_numpy()
    rates = branches["peak_lr"].to_numpy() / parent["peak_lr"].to_numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        exponents = np.where(times == 1, np.nan, np.log(rates) / np.log(times))
    rules = [rule_name(e) for e in exponents]
    lowest = branches[losses].astype(float).min(axis=1) if losses else pd.Series(np.nan, branches.index)
    lowest = lowest.mask(branches["status"].eq("diverged"), np.inf)
    return branches.assign(times=times, rule=rules, power=exponents, loss=lowest), notes


def rule_name(exponent: float) -> str:
    """How the rate follows the batch, in words."""
    named = {0.0: "rate unchanged", 0.5: "rate with the root of the batch", 1.0: "rate in proportion to the batch"}
    for value, name in named.items():
        if abs(exponent - value) < 0.02:
            return name
    return f"rate with the batch to the power {exponent:.2g}"


def _one_setting(parents: pd.DataFrame) -> None:
    """ValueError where the runs that are branched off differ in more than their seed."""
    settings = comparable(parents).assign(batch=parents["batch"].map(text), peak_lr=parents["peak_lr"].map(text))
    differing = [name for name in settings if settings[name].nunique() > 1]
    if differing:
        listed = ", ".join(f"{name} ({', '.join(sorted(settings[name].unique()))})" for name in differing[:4])
        raise ValueError(
            f"the runs that are branched off differ in {listed}: give each setting a folder of its own "
            "(launch.experiment)."
        )


def _matched(others: pd.DataFrame, own: pd.Series) -> np.ndarray:
    own = own[np.isfinite(own)].groupby(level=[0, 1, 2]).mean()
    return own.reindex(pd.MultiIndex.from_frame(others[["parent", "tokens", "seed"]])).to_numpy()


def _law(critical: pd.DataFrame, replicates: np.ndarray) -> tuple[float, float, float, float] | None:
    """k, exponent and its 90 % interval of B* = k tokens^exponent, by least squares of logarithms; None below three
    branch points at which a batch was too large."""
    within = ~critical["beyond"].to_numpy()
    if within.sum() < 3:
        return None
    x = np.log(critical["tokens"].to_numpy(float)[within])
    logs = np.log(np.vstack([critical["critical"].to_numpy(float), replicates])[:, within])
    slopes = logs @ (x - x.mean()) / ((x - x.mean()) ** 2).sum()
    low, high = np.percentile(slopes[1:], (5, 95))
    return float(np.exp(logs[0].mean() - slopes[0] * x.mean())), float(slopes[0]), float(low), float(high)
