"""Rate, batch, weight decay and where to start a ramp, for a run of N parameters on D tokens: by laws side by side.

    published laws, <runs>/report/hyperparameters.json, cbs.json --advices--> an `Advice` each --disagreements--> ratios
                                                                                               --ramp--> where to start

A law is asked for what it tells and no more: a rate law that holds at its own best batch is not moved to another batch.
Where a law lacks a quantity the field is None. Weight decay follows from a best timescale at the advice's own rate and
batch. All batches are in tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
from scaling.wording import between, short

Interval = tuple[float, float]
OWN = "own"
UNKNOWN, NOTHING = "unknown", "nothing"
_POWER_LINES_SEQUENCE, _CRITICAL_SEQUENCE = 2048, 512  # tokens per sequence of the published constants
_ZHANG = (85e6, 1.2e9)  # parameters of the models behind the published critical batches
_COLUMNS = {"TPP": "D / N"}
_START = 0.5  # a ramp starts at this share of the critical batch
_OPTIMAL_TPP = (10.0, 40.0)  # tokens per parameter that still are near the compute-optimal 20
_NEAR = 1.02  # ranges reach this factor further: N and D are rounded


@dataclass(frozen=True)
class Advice:
    """What one source says. `known_from`: own, or as of a `Reference`; a source of several says each. `batch_given`:
    the batch is the user's, no law's. `extrapolates` names what lies outside the runs behind it, or NOTHING, or
    UNKNOWN where the source does not tell (or we do not know) which runs those are."""

    source: str
    known_from: str
    batch: float | None = None
    batch_interval: Interval | None = None
    rate: float | None = None
    rate_interval: Interval | None = None
    timescale: float | None = None
    weight_decay: float | None = None
    critical: float | None = None
    critical_interval: Interval | None = None
    batch_given: bool = False
    extrapolates: str = UNKNOWN
    notes: tuple[str, ...] = ()


def advices(
    size: float,
    tokens: float,
    hyperparameters: Mapping[str, Any] | None = None,
    cbs: Mapping[str, Any] | None = None,
    batch: float | None = None,
) -> list[Advice]:
    """The user's own laws first, where given, then the published ones. A `batch` in tokens replaces the best
    batch of the own rate law; published laws tell no rate at another batch than their own."""
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
        known = [one for one in found if getattr(one, field) is not None and not (field == "batch" and one.batch_given)]
        for one in known[1:]:
            ratio = getattr(one, field) / getattr(known[0], field)
            at = " (at another batch)" if field in ("rate", "weight_decay") and one.batch != known[0].batch else ""
            if max(ratio, 1 / ratio) >= 1.5:
                said.append(f"{words}: {one.source} has {ratio:.2g} times that of {known[0].source}{at}.")
    return said


def ramp(found: Sequence[Advice], sequence_length: int, batch: float | None = None) -> tuple[str, str] | None:
    """Overrides of a Seesaw, and in words where it starts: at `batch` tokens where given, else at half the critical
    batch: the user's own, or else the smallest published one. None where nobody tells one. Its theory holds below the
    critical batch."""
    known = [one for one in found if one.critical is not None]
    if not known:
        return None
    least = min(known, key=lambda one: (one.known_from != OWN, one.critical))
    critical = float(least.critical or 0)
    start = _START * critical if batch is None else batch
    told = f"{short(critical)} tokens"
    told += f", {between(*least.critical_interval, short)}" if least.critical_interval else ", no interval"
    if least.extrapolates == UNKNOWN:
        told += "; from which runs is not known here"
    elif least.extrapolates != NOTHING:
        told += f"; extrapolated in {least.extrapolates}: measure it nearer before you rely on it"
    if batch is None:
        why = f"half the critical batch of {least.source} ({told})"
    else:
        beyond = "above it, where its theory does not hold" if batch > critical else "below it"
        why = f"the batch that was given, {beyond}: critical batch of {least.source} ({told})"
    first = max(1, round(start / sequence_length))
    return f"ramp=seesaw ramp.batch_size={first} schedule=cosine", why


def _own(numbers: Mapping[str, Any], size: float, tokens: float, batch: float | None) -> Advice:
    """By the laws of a report on hyperparameters, of the setting with the most surfaces."""
    laws = numbers["settings"][numbers["main"]]["laws"]
    known = {name: law for name, law in laws.items() if isinstance(law, Mapping)}
    notes = [f"no law of {name.replace('_', ' ')}: {law}" for name, law in laws.items() if isinstance(law, str)]
    place = {"N": size, "D": tokens, "TPP": tokens / size}
    advice, used = Advice("your runs", OWN, batch=batch, batch_given=batch is not None), []
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
    notes += [f"law of {law.replace('_', ' ')}: {known[law]['along']}" for law in used if known[law].get("along")]
    ranges = [(name, ends) for law in used for name, ends in known[law]["ranges"].items()]
    return replace(advice, extrapolates=_beyond(place, ranges) if used else UNKNOWN, notes=tuple(notes))


def _beyond(place: Mapping[str, float], ranges: Iterable[tuple[str, Interval]]) -> str:
    """Columns of `place` outside their ranges, with these; NOTHING where none is."""
    found = {
        f"{_COLUMNS.get(name, name)} (run: {low:.3g} to {high:.3g})"
        for name, (low, high) in ranges
        if not low / _NEAR <= place[name] <= high * _NEAR
    }
    return "; ".join(sorted(found)) or NOTHING


def _own_critical(numbers: Mapping[str, Any], size: float, tokens: float) -> Advice:
    """B* of the nearest cell that was measured, moved by the exponents that were fitted (0 where none was).

    B* = o b / a + (1 + o) B0, with overhead o, and B0 does not grow: so where the report tells exponents of b / a,
    these move its first term alone. The interval adds those of the cell and of each exponent as if independent.
    """
    cells = [cell for cell in numbers["cells"] if cell.get("critical")]
    if not cells:
        return Advice("your critical batch", OWN, notes=("no critical batch was measured.",))
    nearest = min(cells, key=lambda cell: np.hypot(np.log(size / cell["N"]), np.log(tokens / cell["D"])))
    law = numbers.get("ratio_law")
    floor = 0.0 if law is None else (1 + numbers["overhead"]) * nearest["B0"]
    law = numbers["law"] if law is None else law
    ratio = nearest["critical"] - floor
    moved, notes = 0.0, []
    errors = [_log_sides(ratio, nearest.get("low"), nearest.get("high"), floor)]
    for name, distance in (("N", np.log(size / nearest["N"])), ("D", np.log(tokens / nearest["D"]))):
        one = law.get(f"a_{name}")
        if one is None:
            notes.append(f"no exponent of {name}: taken as 0.")
        moved += one["value"] * distance if one else 0.0
        if abs(distance) < np.log(_NEAR):  # measured there: no exponent is needed
            continue
        if one is None or one["low"] is None:
            errors.append(None)
            continue
        sides = [(one[end] - one["value"]) * distance for end in ("low", "high")]
        errors.append((max(0.0, -min(sides)), max(0.0, max(sides))))
    known = [each for each in errors if each is not None]
    ends = None
    if len(known) == len(errors):
        down, up = (float(np.hypot.reduce(side)) for side in zip(*known, strict=True))
        ends = (floor + ratio * float(np.exp(moved - down)), floor + ratio * float(np.exp(moved + up)))
    else:
        notes.append("no interval: one seed, or an exponent that was not fitted.")
    ranges = [(name, (min(cell[name] for cell in cells), max(cell[name] for cell in cells))) for name in "ND"]
    return Advice(
        "your critical batch",
        OWN,
        critical=float(floor + ratio * np.exp(moved)),
        critical_interval=ends,
        extrapolates=_beyond({"N": size, "D": tokens}, ranges),
        notes=tuple(notes),
    )


def _log_sides(value: float, low: float | None, high: float | None, floor: float) -> Interval | None:
    """How far an interval reaches below and above `value`, in logarithms and above `floor`; infinite below that."""
    if low is None or high is None:
        return None
    return (float(np.log(value / (low - floor))) if low > floor else np.inf, float(np.log((high - floor) / value)))


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
        at(PowerLinesBatch()) * _POWER_LINES_SEQUENCE,
        timescale=tau,
        critical=at(PowerLinesCriticalBatch()) * _POWER_LINES_SEQUENCE,
        notes=("it tells no rate, and weight decay needs one: batch / (timescale x rate x D).",),
    )
    outside = [] if (of_size := _beyond(place, [("N", _ZHANG)])) == NOTHING else [of_size]
    outside += [] if _OPTIMAL_TPP[0] <= tokens / size <= _OPTIMAL_TPP[1] else ["D / N (run: about 20)"]
    zhang = Advice(
        "Zhang et al., arXiv:2410.21676",
        known_from(CriticalBatch()),
        critical=at(CriticalBatch()) * _CRITICAL_SEQUENCE,
        extrapolates="; ".join(outside) or NOTHING,
        notes=(
            "the critical batch at compute-optimal tokens for this N, whatever D is; the paper has it grow with D.",
        ),
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
