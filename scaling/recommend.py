"""Rate, batch, weight decay and where to start a ramp, for a run of N parameters on D tokens: by laws side by side.

    published laws, <runs>/report/hyperparameters.json, cbs.json --advices--> an `Advice` each --disagreements--> ratios

A law is asked for what it tells and no more: a rate law that holds at its own best batch is not moved to another batch.
Where a law lacks a quantity the field is None. Weight decay follows from a best timescale at the advice's own rate and
batch. All batches are in tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from scaling.hyperparameters import predicted
from scaling.laws import (
    CriticalBatch,
    DeepSeekBatch,
    DeepSeekRate,
    OptimalTimescale,
    PowerLinesBatch,
    PowerLinesCriticalBatch,
    StepLawBatch,
    StepLawRate,
)
from scaling.laws.batch import timescale

Interval = tuple[float, float]
OWN = "own"
_POWER_LINES_SEQUENCE, _CRITICAL_SEQUENCE = 2048, 512  # tokens per sequence of the published constants
_ZHANG = (85e6, 1.2e9)  # parameters of the models behind the published critical batches
_START = 0.5  # a ramp starts at this share of the critical batch
_NEAR = 1.02  # ranges reach this factor further: N and D are rounded


@dataclass(frozen=True)
class Advice:
    """What one source says. `known_from`: own, or as of a `Reference`; a source of several says each. `extrapolates`
    names what lies outside the runs behind it ("" where that is unknown or nothing)."""

    source: str
    known_from: str
    batch: float | None = None
    batch_interval: Interval | None = None
    rate: float | None = None
    rate_interval: Interval | None = None
    timescale: float | None = None
    weight_decay: float | None = None
    critical: float | None = None
    extrapolates: str = ""
    notes: tuple[str, ...] = ()


def advices(
    size: float,
    tokens: float,
    hyperparameters: Mapping[str, Any] | None = None,
    cbs: Mapping[str, Any] | None = None,
    batch: float | None = None,
) -> list[Advice]:
    """The user's own laws first, where given, then the published ones. `batch` in tokens replaces each best batch."""
    if not (size > 0 and tokens > 0):
        raise ValueError(f"N={size:g} D={tokens:g}: parameters and tokens must be positive.")
    if batch is not None and not batch > 0:
        raise ValueError(f"batch={batch:g} must be positive: it is in tokens.")
    given = [] if hyperparameters is None else [_own(hyperparameters, size, tokens, batch)]
    given += [] if cbs is None else [_own_critical(cbs, size, tokens)]
    return [*given, *_published(size, tokens, batch)]


def disagreements(found: Sequence[Advice]) -> list[str]:
    """By what factor every source differs from the first that tells a quantity, where by half or more."""
    said = []
    for field in ("batch", "rate", "weight_decay", "critical"):
        words = {"weight_decay": "weight decay", "critical": "critical batch"}.get(field, field)
        known = [(one.source, getattr(one, field)) for one in found if getattr(one, field) is not None]
        for source, value in known[1:]:
            ratio = value / known[0][1]
            if max(ratio, 1 / ratio) >= 1.5:
                said.append(f"{words}: {source} has {ratio:.2g} times that of {known[0][0]}.")
    return said


def ramp(found: Sequence[Advice], sequence_length: int) -> tuple[str, str] | None:
    """Overrides of a Seesaw that starts at half the critical batch, and whose that is: the user's own, or else the
    smallest published one; None where nobody tells one. Its theory holds below the critical batch."""
    known = [(one.known_from != OWN, one.critical, one.source) for one in found if one.critical is not None]
    if not known:
        return None
    _, critical, source = min(known)
    first = max(1, round(_START * critical / sequence_length))
    return f"ramp=seesaw ramp.batch_size={first} schedule=cosine", source


def _own(numbers: Mapping[str, Any], size: float, tokens: float, batch: float | None) -> Advice:
    """By the laws of a report on hyperparameters, of the setting with the most surfaces."""
    laws = numbers["settings"][numbers["main"]]["laws"]
    known = {name: law for name, law in laws.items() if isinstance(law, Mapping)}
    notes = [f"no law of {name.replace('_', ' ')}: {law}" for name, law in laws.items() if isinstance(law, str)]
    place = {"N": size, "D": tokens, "TPP": tokens / size}
    advice, used = Advice("your runs", OWN, batch=batch), []
    if batch is None and "best_batch" in known:
        value, low, high = predicted(known["best_batch"], place)
        advice, used = replace(advice, batch=value, batch_interval=(low, high)), ["best_batch"]
    if advice.batch is not None and "rate" in known:
        place["B"] = advice.batch
    name = "rate" if "B" in place else "best_rate"
    if name in known and set(known[name]["x"]) <= set(place):
        value, low, high = predicted(known[name], place)
        advice = replace(advice, rate=value, rate_interval=(low, high))
        used.append(name)
    if "timescale" in known:
        advice = replace(advice, timescale=predicted(known["timescale"], place)[0])
        used.append("timescale")
    else:
        advice = replace(advice, timescale=_power_lines_timescale(place))
        notes.append("no law of the timescale: weight decay by Power Lines (recalled).")
    advice = _decayed(advice, tokens)
    beyond = {
        f"{column} (run: {low:.3g} to {high:.3g})"
        for law in used
        for column, (low, high) in known[law]["ranges"].items()
        if not low / _NEAR <= place[column] <= high * _NEAR
    }
    return replace(advice, extrapolates="; ".join(sorted(beyond)), notes=tuple(notes))


def _own_critical(numbers: Mapping[str, Any], size: float, tokens: float) -> Advice:
    """B* of the nearest cell that was measured, moved by the exponents that were fitted (0 where none was)."""
    cells = [cell for cell in numbers["cells"] if cell.get("critical")]
    if not cells:
        return Advice("your critical batch", OWN, notes=("no critical batch was measured.",))
    nearest = min(cells, key=lambda cell: np.hypot(np.log(size / cell["N"]), np.log(tokens / cell["D"])))
    exponents = [(numbers["law"].get(name) or {}).get("value") for name in ("a_N", "a_D")]
    moved = [
        ratio ** (a or 0.0) for ratio, a in zip((size / nearest["N"], tokens / nearest["D"]), exponents, strict=True)
    ]
    beyond = []
    for name, at in (("N", size), ("D", tokens)):
        low, high = min(cell[name] for cell in cells), max(cell[name] for cell in cells)
        if not low / _NEAR <= at <= high * _NEAR:
            beyond.append(f"{name} (run: {low:.3g} to {high:.3g})")
    flat = [f"no exponent of {name}: taken as 0." for name, a in zip("ND", exponents, strict=True) if a is None]
    critical = float(nearest["critical"] * moved[0] * moved[1])
    return Advice("your critical batch", OWN, critical=critical, extrapolates="; ".join(beyond), notes=tuple(flat))


def _published(size: float, tokens: float, batch: float | None) -> list[Advice]:
    place = {"N": size, "D": tokens, "C": 6 * size * tokens, "TPP": tokens / size}

    def at(law: Any) -> float:
        return float(law.predict(law.references[0].params, place))

    def known_from(*laws: Any) -> str:
        return ", ".join(dict.fromkeys(law.references[0].known_from for law in laws))

    tau = _power_lines_timescale(place)
    made = []
    for source, rate_law, batch_law in (
        ("Step Law, arXiv:2503.04715", StepLawRate(), StepLawBatch()),
        ("DeepSeek, arXiv:2401.02954", DeepSeekRate(), DeepSeekBatch()),
    ):
        notes = ["weight decay by Power Lines' timescale (recalled)."]
        notes += ["C taken as 6 N D, without attention."] if "C" in rate_law.x else []
        notes += [] if batch is None else ["it tells no rate for a batch that is given, only for its own best one."]
        advice = Advice(source, known_from(rate_law, batch_law), at(batch_law), rate=at(rate_law), timescale=tau)
        made.append(replace(_decayed(advice, tokens), notes=tuple(notes)))
    power_lines = Advice(
        "Power Lines, arXiv:2505.13738",
        known_from(OptimalTimescale(), PowerLinesBatch(), PowerLinesCriticalBatch()),
        at(PowerLinesBatch()) * _POWER_LINES_SEQUENCE if batch is None else batch,
        timescale=tau,
        critical=at(PowerLinesCriticalBatch()) * _POWER_LINES_SEQUENCE,
        notes=("it tells no rate, and weight decay needs one: batch / (timescale x rate x D).",),
    )
    low, high = _ZHANG
    zhang = Advice(
        "Zhang et al., arXiv:2410.21676",
        known_from(CriticalBatch()),
        critical=at(CriticalBatch()) * _CRITICAL_SEQUENCE,
        extrapolates="" if low / _NEAR <= size <= high * _NEAR else f"N (run: {low:.3g} to {high:.3g})",
        notes=("the critical batch at compute-optimal tokens for this N.",),
    )
    return [*made, power_lines, zhang]


def _power_lines_timescale(place: Mapping[str, float]) -> float:
    law = OptimalTimescale()
    return float(law.predict(law.references[0].params, place))


def _decayed(advice: Advice, tokens: float) -> Advice:
    """With the weight decay of the advice's timescale, where it has a rate and a batch."""
    if advice.rate is None or advice.batch is None:
        return advice
    return replace(advice, weight_decay=float(timescale(advice.batch, advice.rate, advice.timescale, tokens)))
