"""How far cutting the rate and growing the batch are one thing: recorded ramps beside exact curves, and theory alone.

points of runs --over the exact risk of the run without a ramp--> measured and exact ratios
a problem --along the line between decay and ramp, at several rates and first batches--> ratios of final risks
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from data.problems import Floats, LinearProblem
from optim.plan import plan_of
from scaling.recorded import first_batch_in, problem_and_plan
from scaling.theory.check import exact_curve
from scaling.theory.seesaw import Phases, handed_over, noise_share
from scaling.theory.stability import max_stable_lr

SHARES = tuple(np.linspace(0.0, 1.0, 11).tolist())
RATES = (0.01, 0.1, 0.5)  # of the largest stable one; for normalized SGD, of what that is where gradients are noise
CUT = 2.0  # of a phase
_MOST_PHASES, _PHASES_BY_BATCH = 5, 3
_LEAST_STEPS = 4  # of the last phase of the steepest ramp
_MOST_STEPS = 10_000  # of a decay: each is a step in Python
_POINTS = 150  # of a curve
_CONSTANT = "optim.ramps.ConstantBatch"


def over_constant(configs: Mapping[str, Mapping[str, Any]], points: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Of runs (run_id -> configuration) that differ in their ramp alone, one of them having a constant batch: exact
    curves (run_id, tokens, ratio, ramp: whether it has one) and measured points (the same and error), both over the
    exact risk that the weights have after as many tokens at a constant batch. `points` as `check` has them."""
    families: dict[tuple[str, int], dict[str, Mapping[str, Any]]] = {}
    for run, config in configs.items():
        families.setdefault((problem_and_plan(config, "ramp"), first_batch_in(config)), {})[run] = config
    curves, measured = [], []
    for family in families.values():
        constant = [config for config in family.values() if config["ramp"]["_target_"] == _CONSTANT]
        if not constant or len(constant) == len(family):
            continue
        baseline = exact_curve(constant[0], np.arange(plan_of(constant[0]).serial_steps + 1))
        for run, config in family.items():
            ramp = config not in constant
            curve = exact_curve(config, np.unique(np.linspace(1, plan_of(config).serial_steps, _POINTS).astype(int)))
            ratio = curve["exact"] / _between(curve["tokens"], baseline)
            curves.append(pd.DataFrame({"run_id": run, "tokens": curve["tokens"], "ratio": ratio, "ramp": ramp}))
            own = points[(points["run_id"] == run) & (points["of"] == "weights")]
            below = _between(own["tokens"], baseline)
            over = {"ratio": own["measured"] / below, "error": own["error"] / below, "ramp": ramp}
            measured.append(own[["run_id", "tokens"]].assign(**over))
    if not curves:
        return pd.DataFrame(), pd.DataFrame()
    return pd.concat(curves, ignore_index=True), pd.concat(measured, ignore_index=True)


def _between(tokens: pd.Series, curve: pd.DataFrame) -> Floats:
    """The risk of a curve after so many tokens."""
    return np.exp(np.interp(tokens, curve["tokens"], np.log(curve["exact"])))


def decay_of(
    problem: LinearProblem, share: float, batch_size: float, rows: float, phases: int, normalized: bool
) -> Phases:
    """A rate that is halved from phase to phase of equal rows. `share` of the largest stable rate; for normalized SGD,
    which has none, of what it would be if gradients were the noise of the answers alone."""
    unit = (problem.noise_variance * problem.eigenvalues.sum() / batch_size) ** 0.5 if normalized else 1.0
    lr = share * max_stable_lr(problem, batch_size) * unit
    return Phases(lr, batch_size, (rows / phases,) * phases, CUT, 1.0)


def along_line(
    problem: LinearProblem, batch_size: float, rows: float, shares: Sequence[float] = SHARES
) -> pd.DataFrame:
    """Final risks of ramps over that of the decay, at equal rows: a row per algorithm, rate (a share of the largest
    stable one) and share of the cut that the batch makes, with lr_cut, batch_growth, phases, steps, saved (share of
    them) and ratio. At most five phases, as many as leave the steepest ramp a few steps in its last one, and at most
    10,000 steps. Without noise there is no line of normalized SGD. ValueError where rows are not enough for two phases.
    """
    rows, phases = min(rows, _MOST_STEPS * batch_size), _MOST_PHASES
    while phases > 1 and not _enough(rows, phases, batch_size, CUT**2):
        phases -= 1
    if phases < 2:
        raise ValueError(f"{rows:g} rows are too few for two phases of a first batch of {batch_size:g}.")
    rows_of = []
    for normalized, algorithm in ((False, "SGD"), (True, "normalized SGD"))[: 1 + (problem.noise_variance > 0)]:
        for rate in RATES:
            decay = decay_of(problem, rate, batch_size, rows, phases, normalized)
            reference, steps = decay.risks(problem, normalized)[-1], decay.steps.sum()
            for share in shares:
                ramp = handed_over(decay, share, normalized)
                rows_of.append({
                    "algorithm": algorithm, "rate": rate, "share": share, "lr_cut": ramp.lr_cut,
                    "batch_growth": ramp.batch_growth, "phases": phases, "steps": int(ramp.steps.sum()), "rows": rows,
                    "saved": 1.0 - ramp.steps.sum() / steps,
                    "ratio": float(ramp.risks(problem, normalized)[-1] / reference),
                })  # fmt: skip
    return pd.DataFrame(rows_of)


def by_first_batch(problem: LinearProblem, rows: float) -> pd.DataFrame:
    """Seesaw over the decay for normalized SGD, in three phases, from first batches of 1, 2, 4, ... rows on (from more
    where that would be over 10,000 steps) as long as there are rows for that: batch, rate (as in `along_line`), ratio,
    and `noise`, the share of E|g|^2 that is noise of the answers when the decay ends. Empty without noise."""
    found: list[dict[str, float]] = []
    batch = 2 ** max(0, int(np.ceil(np.log2(rows / _MOST_STEPS))))
    while problem.noise_variance > 0 and _enough(rows, _PHASES_BY_BATCH, batch, CUT):
        for rate in RATES:
            decay = decay_of(problem, rate, batch, rows, _PHASES_BY_BATCH, normalized=True)
            ramp = handed_over(decay, 0.5, normalized=True)
            ratio = ramp.risks(problem, normalized=True)[-1] / decay.risks(problem, normalized=True)[-1]
            noise = float(noise_share(problem, decay)[-1])
            found.append({"batch": batch, "rate": rate, "ratio": float(ratio), "noise": noise})
        batch *= 2
    return pd.DataFrame(found)


def _enough(rows: float, phases: int, batch_size: float, growth: float) -> bool:
    """Whether so many phases leave a ramp a few steps in its last one."""
    return rows / phases >= _LEAST_STEPS * batch_size * growth ** (phases - 1)
