"""The best learning rate, batch size and weight decay of recorded runs, and their laws over N, D and batch.

    runs --prepared--> equal in all but rate, batch and weight decay
         --lines-----> best rate at each batch      --law--> lr = k N^a_N D^a_D B^a_B
         --surfaces--> best rate and batch together --law--> Step Law: lr = k N^a_N D^a_D, B = k D^a_D
         --decays----> best timescale of the decay  --law--> Power Lines: tau = k TPP^a_TPP

A batch B is in tokens throughout. Every best value carries its interval into the law as a weight; a value that lies at
an end of what was tried is no optimum and enters none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from scaling.fit import LeastSquares, fit
from scaling.laws import OptimalTimescale, PowerLaw, StepLawBatch, StepLawRate
from scaling.laws.batch import timescale
from scaling.naming import CONSTANT_BATCH, first_batch, ramp_names, schedule_names
from scaling.settings import apart, comparable, counted, why_not
from scaling.surface import USABLE, Optimum, optimum

LEVEL = 0.9
_STANDARD = "standard"
_VALUES = 3  # values of a setting from which on its optimum is looked for
_BORROWED = 4  # degrees of freedom that the scatter of all lines counts for in one of them
_LEAST_ERROR = 0.02  # of a logarithm: no optimum is known better than the quadratic is right
_OWN = ("optimizer.weight_decay", "optimizer.timescale", "model.parametrization", "model.base_width")  # have columns
_SHAPE = ("d_model", "n_layers", "n_heads", "n_kv_heads", "d_ff", "head_dim")  # of the model: what N tells
_ALONG = 0.1  # a column that keeps less of its spread beside the others goes along with them


@dataclass(frozen=True)
class FittedLaw:
    """A power law through best values, in logarithms.

    `law` and `params` as of a fit; `intervals` of its exponents (90 %, Student's t with `freedom` degrees; the errors
    of the points are enlarged `scatter` times where they scatter about the law by more). `covariance` of (log k,
    exponents). `ranges`: least and largest value of each column, also of those that the law has not. `points` entered,
    `left_out` did not. `along`: columns of the runs that go along with those of the law, and are in no law by
    themselves: the exponents hold along that line.
    """

    law: PowerLaw
    params: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    covariance: np.ndarray
    freedom: int
    scatter: float
    ranges: dict[str, tuple[float, float]]
    points: int
    left_out: int
    along: tuple[str, ...] = ()

    @property
    def told_along(self) -> str:
        """What cannot be told apart, as a sentence; "" where all can."""
        if not self.along:
            return ""
        names, others = " and ".join(self.along), " and ".join(self.law.x)
        goes = "goes" if len(self.along) == 1 else "go"
        return (
            f"{names} {goes} along with {others} in these runs: the exponents hold along that line, not for each alone."
        )

    def numbers(self) -> dict[str, Any]:
        """As JSON has it; `predicted` reads it."""
        return {
            "law": type(self.law).__name__, "x": list(self.law.x), "y": self.law.y, "params": self.params,
            "intervals": self.intervals, "covariance": self.covariance.tolist(), "freedom": self.freedom,
            "scatter": self.scatter, "ranges": self.ranges, "points": self.points, "left_out": self.left_out,
            "along": self.told_along,
        }  # fmt: skip


@dataclass(frozen=True)
class Best:
    """One best value, or two: `where` names N, D, setting and what else was held (batch in tokens, decay)."""

    where: dict[str, Any]
    found: Optimum
    runs: pd.DataFrame


@dataclass(frozen=True)
class Found:
    """The best values of one setting (or of all), and the laws through them by name, or why there is none."""

    lines: list[Best]
    surfaces: list[Best]
    decays: list[Best]
    laws: dict[str, FittedLaw | str]


def find(runs: pd.DataFrame) -> dict[str, Found]:
    """Best values and laws of every setting; `runs` as prepared. Empty where no setting of a run has three values."""
    many = [lines(runs), surfaces(runs), decays(runs)]
    settings = sorted({one.where["setting"] for found in many for one in found})
    return {
        name: _with_laws(*([one for one in found if one.where["setting"] == name] for found in many))
        for name in settings
    }


def _with_laws(lines: list[Best], surfaces: list[Best], decays: list[Best]) -> Found:
    makers: dict[str, tuple[Callable[[Sequence[Best]], FittedLaw], list[Best]]] = {
        "rate": (rate_law, lines),
        "best_rate": (best_rate_law, surfaces),
        "best_batch": (best_batch_law, surfaces),
        "timescale": (timescale_law, decays),
    }
    laws: dict[str, FittedLaw | str] = {}
    for name, (make, found) in makers.items():
        if found:
            try:
                laws[name] = make(found)
            except ValueError as error:
                laws[name] = str(error)
    return Found(lines, surfaces, decays, laws)


def prepared(runs: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Runs of constant batch with columns D, batch (tokens), sequences, tau, decay, setting, and notes on the others.

    `D` is the budget in tokens, `decay` what was asked for ("lambda = 0.1", "tau = 0.2"); `setting` names all else in
    which runs of equal N and D differ. Diverged runs stay, without a loss. ValueError where no run is left.
    """
    settings = comparable(runs)
    told = [*_OWN, *(f"model.{name}" for name in _SHAPE)]
    settings = settings.drop(columns=told, errors="ignore")
    settings = settings.assign(schedule=schedule_names(runs), parametrization=_parametrization(runs))
    if "model.base_head_dim" in settings:  # says nothing of a standard run
        settings.loc[settings["parametrization"] == _STANDARD, "model.base_head_dim"] = "null"
    number = {name: pd.to_numeric(runs.get(name), errors="coerce") for name in ("peak_lr", "eval_loss", "N")}
    sequences, length = first_batch(runs), pd.to_numeric(runs["sequence_length"])
    runs = runs.assign(**number, D=pd.to_numeric(runs["total_tokens"]), sequences=sequences, batch=sequences * length)
    decay, tau = (
        pd.to_numeric(runs.get(f"optimizer.{name}", pd.Series(np.nan, runs.index)), errors="coerce")
        for name in ("weight_decay", "timescale")
    )
    own = timescale(runs["batch"], runs["peak_lr"], decay.where(decay > 0), runs["D"])
    named = decay.map(lambda x: f"lambda = {x:g}").where(tau.isna(), tau.map(lambda x: f"tau = {x:g}"))
    runs = runs.assign(tau=tau.fillna(own), decay=named)
    enters = counted(runs)
    diverged = runs["status"] == "diverged"
    runs["eval_loss"] = runs["eval_loss"].where(enters)
    constant = ramp_names(runs) == CONSTANT_BATCH
    lost = runs[constant & ~enters & ~diverged]
    notes = [
        f"{len(group)} run{'s' if len(group) > 1 else ''} not used: {why_not(status)}."
        for status, group in lost.groupby("status")
    ]
    if (~constant).any():
        notes.append(f"{int((~constant).sum())} runs whose batch grows are not used.")
    kept = constant & (enters | diverged) & runs["batch"].notna() & (runs["peak_lr"] > 0)
    if not (kept & enters).any():
        raise ValueError("no run of a constant batch completed with a held-out loss.")
    labels, differing = apart(settings[kept], [runs.loc[kept, name] for name in ("N", "D")])
    return runs[kept].assign(setting=labels), notes + differing


def lines(runs: pd.DataFrame) -> list[Best]:
    """The best rate at each batch, wherever three rates were run; `runs` as prepared.

    A line of few runs knows its own scatter badly, so all lines lend it theirs, for a few degrees of freedom.
    """
    held, settings = ["setting", "N", "D", "decay", "batch"], ["peak_lr"]
    alone = [one.found for one in _each(runs, held, settings, None) if one.found.freedom > 0]
    freedom = sum(found.freedom for found in alone)
    if not freedom:
        return _each(runs, held, settings, None)
    noise = float(np.sqrt(sum(found.freedom * found.noise**2 for found in alone) / freedom))
    return _each(runs, held, settings, (noise, min(freedom, _BORROWED)))


def surfaces(runs: pd.DataFrame) -> list[Best]:
    """The best rate and batch together, wherever three of both were run. `relative` is the rate over batch^power, with
    the power at which the rates of the grid agree best, so that the values tried are a rectangle."""
    found = []
    for best in _groups(runs, ["setting", "N", "D", "decay"], ["peak_lr", "batch"]):
        power = min((0.0, 0.5, 1.0), key=lambda p: len(_distinct(best[1]["peak_lr"] / best[1]["batch"] ** p)))
        group = best[1].assign(relative=best[1]["peak_lr"] / best[1]["batch"] ** power)
        if len(_distinct(group["relative"])) >= _VALUES:
            found.append(Best(best[0] | {"power": power}, optimum(group, ["relative", "batch"], level=LEVEL), group))
    return found


def decays(runs: pd.DataFrame) -> list[Best]:
    """The best timescale tau = B / (lr weight_decay D), wherever three were run at one batch and rate."""
    return _each(runs[runs["tau"].notna()], ["setting", "N", "D", "batch", "peak_lr"], ["tau"], None)


def rate_of(best: Best) -> tuple[float, float, float, float]:
    """Best peak rate of a surface, its interval, and the standard error of its logarithm."""
    found, power = best.found, best.where["power"]
    middle = found.best["relative"] * found.best["batch"] ** power
    if not len(found.draws):
        return middle, np.nan, np.nan, np.nan
    drawn = found.draws[:, 0] * found.draws[:, 1] ** power
    low, high = np.percentile(drawn, (50 * (1 - LEVEL), 50 * (1 + LEVEL)))
    one, other = np.percentile(np.log(drawn), (15.87, 84.13))
    return middle, float(low), float(high), float((other - one) / 2)


def rate_law(found: Sequence[Best]) -> FittedLaw:
    """lr = k N^a_N D^a_D B^a_B through the best rates of `lines`, over those columns that vary by themselves."""
    table = best_rates(found)
    x, along = columns(table, ("N", "D", "B"))
    return replace(law_of(PowerLaw(x=x or ("D",), y="lr"), table), along=along)


def best_rates(found: Sequence[Best]) -> pd.DataFrame:
    """The best rates of `lines` as `law_of` wants them: N, D, B, lr, error, usable."""
    rows = [
        {"N": one.where["N"], "D": one.where["D"], "B": one.where["batch"], "lr": one.found.best["peak_lr"],
         "error": one.found.log_error("peak_lr"), "usable": one.found.verdict["peak_lr"] in USABLE}
        for one in found
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["N", "D", "B", "lr", "error", "usable"])


def best_rate_law(found: Sequence[Best]) -> FittedLaw:
    """Step Law's rate through the best rates of `surfaces`, each at its own best batch."""
    rows = []
    for one in found:
        rate, *_, error = rate_of(one)
        usable = one.found.verdict["relative"] in USABLE
        rows.append({"N": one.where["N"], "D": one.where["D"], "lr": rate, "error": error, "usable": usable})
    table = pd.DataFrame(rows, columns=["N", "D", "lr", "error", "usable"])
    x, along = columns(table, ("N", "D"))
    law = law_of(StepLawRate() if x == ("N", "D") else PowerLaw(x=x or ("D",), y="lr"), table)
    return replace(law, along=along)


def best_batch_law(found: Sequence[Best]) -> FittedLaw:
    """Step Law's batch in tokens, B = k D^a_D, through the best batches of `surfaces`."""
    rows = [
        {"N": one.where["N"], "D": one.where["D"], "B": one.found.best["batch"],
         "error": one.found.log_error("batch"), "usable": one.found.verdict["batch"] in USABLE}
        for one in found
    ]  # fmt: skip
    return law_of(StepLawBatch(), pd.DataFrame(rows, columns=["N", "D", "B", "error", "usable"]))


def columns(table: pd.DataFrame, names: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Which of `names` vary over the usable rows by themselves, and which only along with those: of two that go
    together D stays rather than B, and B rather than N. In logarithms; five sizes at D = 20 N vary in D alone."""
    rows = table[table["usable"] & np.isfinite(table["error"])]
    varied = [name for name in names if rows[name].nunique() > 1]
    kept: list[str] = []
    for name in sorted(varied, key="DBN".index):
        if _spread_beside(rows, name, kept) > _ALONG:
            kept.append(name)
    return tuple(name for name in varied if name in kept), tuple(name for name in varied if name not in kept)


def _spread_beside(rows: pd.DataFrame, name: str, others: Sequence[str]) -> float:
    """The share of the spread of log(name) that is left when `others` are known."""
    logs = np.log(rows[[*others, name]].to_numpy(float))
    logs = logs - logs.mean(axis=0)
    left = logs[:, -1] - logs[:, :-1] @ np.linalg.lstsq(logs[:, :-1], logs[:, -1], rcond=None)[0]
    return float(np.sqrt((left**2).sum() / (logs[:, -1] ** 2).sum()))


def timescale_law(found: Sequence[Best]) -> FittedLaw:
    """Power Lines' best timescale over tokens per parameter through the best ones of `decays`."""
    rows = [
        {"TPP": one.where["D"] / one.where["N"], "tau": one.found.best["tau"], "error": one.found.log_error("tau"),
         "usable": one.found.verdict["tau"] in USABLE}
        for one in found
    ]  # fmt: skip
    return law_of(OptimalTimescale(), pd.DataFrame(rows, columns=["TPP", "tau", "error", "usable"]))


def law_of(law: PowerLaw, table: pd.DataFrame) -> FittedLaw:
    """`law` through the usable rows of `table`, each with the `error` of its logarithm.

    ValueError where fewer points than parameters plus one are usable, or a column has one value or goes along with the
    others: no exponent of its own can be told then.
    """
    rows = table[table["usable"] & np.isfinite(table["error"])]
    wanted, y = len(law.parameters) + 1, law.y
    if len(rows) < wanted:
        fix = "widen the grids of the others" if len(rows) < len(table) else "run more of them"
        raise ValueError(
            f"{len(rows)} of {len(table)} best values lie inside their grids, and {law.formula} needs {wanted}: {fix}."
        )
    for name in law.x:
        if rows[name].nunique() < 2:
            raise ValueError(f"{law.formula}: every best value inside its grid has one {name}. Run another.")
        others = [other for other in law.x if other != name]
        if _spread_beside(rows, name, others) <= _ALONG:
            raise ValueError(
                f"{law.formula}: {name} goes along with {' and '.join(others)} in these runs, so their exponents are "
                f"not told apart. Run another {name} with the rest unchanged."
            )
    error = np.maximum(rows["error"].to_numpy(float), _LEAST_ERROR)
    data = rows.assign(weight=error**-2).drop(columns=["error", "usable"])
    params = fit(law, data, loss=LeastSquares(), starts=8, weights="weight").params
    design = np.column_stack([np.ones(len(rows)), *(np.log(rows[name]) for name in law.x)]) / error[:, None]
    left = np.log(law.predict(params, rows) / rows[y]) / error
    freedom = len(rows) - design.shape[1]
    scatter = max(1.0, float(np.sqrt(left @ left / freedom)))
    covariance = np.linalg.inv(design.T @ design) * scatter**2
    reach = stdtrit(freedom, (1 + LEVEL) / 2) * np.sqrt(np.diag(covariance))
    exponents = [f"a_{name}" for name in law.x]
    intervals = {
        name: (params[name] - float(r), params[name] + float(r)) for name, r in zip(exponents, reach[1:], strict=True)
    }
    if {"N", "D"} <= set(rows):
        rows = rows.assign(TPP=rows["D"] / rows["N"])
    ranges = {
        name: (float(rows[name].min()), float(rows[name].max()))
        for name in ("N", "D", "B", "TPP")
        if name in rows and name != y
    }
    return FittedLaw(
        law, params, intervals, covariance, freedom, scatter, ranges, len(rows), len(table) - len(rows)
    )  # fmt: skip


def predicted(numbers: Mapping[str, Any], columns: Mapping[str, float]) -> tuple[float, float, float]:
    """Value of a law as `FittedLaw.numbers` tells it, at `columns`, with the law's interval."""
    names = numbers["x"]
    place = np.array([1.0, *(np.log(columns[name]) for name in names)])
    params = numbers["params"]
    middle = np.log(params["k"]) + sum(params[f"a_{name}"] * at for name, at in zip(names, place[1:], strict=True))
    spread = np.sqrt(place @ np.array(numbers["covariance"]) @ place)
    reach = stdtrit(numbers["freedom"], (1 + LEVEL) / 2) * spread
    low, value, high = (float(np.exp(middle + side * reach)) for side in (-1, 0, 1))
    return value, low, high


def _each(
    runs: pd.DataFrame, held: Sequence[str], settings: Sequence[str], noise: tuple[float, int] | None
) -> list[Best]:
    return [
        Best(where, optimum(group, settings, noise=noise, level=LEVEL), group)
        for where, group in _groups(runs, held, settings)
    ]


def _groups(
    runs: pd.DataFrame, held: Sequence[str], settings: Sequence[str]
) -> list[tuple[dict[str, Any], pd.DataFrame]]:
    """Runs of equal `held` with at least three values of each of `settings` that have a loss."""
    found = []
    for key, group in runs.groupby(list(held), dropna=False):
        done = group[group["eval_loss"].notna()]
        if len(done) and min(len(_distinct(done[name])) for name in settings) >= _VALUES:
            found.append((dict(zip(held, key, strict=True)), group))
    return found


def _distinct(values: pd.Series) -> np.ndarray:
    """Distinct positive values, but for rounding."""
    return np.unique(np.round(np.log2(values.to_numpy(float)), 3))


def _parametrization(runs: pd.DataFrame) -> pd.Series:
    """ "standard", also of muP at its base width, which is the same; else "muP, base width 256"."""
    kind = runs.get("model.parametrization", pd.Series(None, runs.index, dtype=object))
    base = pd.to_numeric(runs.get("model.base_width", pd.Series(np.nan, runs.index)), errors="coerce")
    width = pd.to_numeric(runs.get("model.d_model", pd.Series(np.nan, runs.index)), errors="coerce")
    named = base.map(lambda x: f"muP, base width {x:g}")
    return named.where((kind == "mup") & (base != width), _STANDARD)
