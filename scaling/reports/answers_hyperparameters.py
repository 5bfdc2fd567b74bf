"""The sentences of the hyperparameter part of a report: what was found, beside what papers say, and what is missing."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from scaling import hyperparameters as found_by
from scaling.hyperparameters import Best, FittedLaw, Found, rate_of
from scaling.laws import OptimalTimescale, PowerLaw, StepLawBatch, StepLawRate
from scaling.reports.page import escape
from scaling.surface import AT_HIGHEST, AT_LOWEST, BRACKETED, FEW, OPEN_ABOVE, OPEN_BELOW, USABLE
from scaling.wording import DASH, between, short

_FEW_FREEDOM = 4  # degrees of freedom under which a law is said to hang on few points
_NAMED = 4  # places that a wish for more runs names


def answers(parts: Mapping[str, Found], main: str) -> list[str]:
    part, answers = parts[main], []
    if part.surfaces:
        answers.append(_surface_answer(part.surfaces))
    answers += [
        said
        for said in (
            _rate_answer(part.laws.get("rate"), len(part.lines)),
            _step_law_answer(part.laws, len(part.surfaces)),
            _decay_answer(part),
            _horizon_answer(parts),
        )
        if said
    ]
    return answers


def _surface_answer(surfaces: Sequence[Best]) -> str:
    """The best rate and batch of the cell in the middle, and how many cells are bracketed."""
    order = sorted(surfaces, key=lambda one: (one.where["N"], one.where["D"]))
    one = next((one for one in order if one.found.verdict["batch"] == BRACKETED), order[len(order) // 2])
    rate, low, high, _ = rate_of(one)
    closed = sum(other.found.verdict["batch"] == BRACKETED for other in surfaces)
    return (
        f"At N = {short(one.where['N'])} on {short(one.where['D'])} tokens the loss is least at a peak rate of "
        f"<b>{rate:.3g}</b> ({between(low, high) if np.isfinite(low) else 'no interval'}) and batches of "
        f"<b>{short(one.found.best['batch'])} tokens</b> ({_interval(one, 'batch', short)}; "
        f"{one.found.verdict['batch']}), from {one.found.fitted} runs. The best batch is bracketed at "
        f"{closed} of {len(surfaces)} pairs of N and D."
    )


def _rate_answer(law: FittedLaw | str | None, count: int) -> str:
    if law is None:
        return ""
    if isinstance(law, str):
        return f"No law of the best rate over N, D and batch: {escape(law)}"
    words = {"N": "size", "D": "tokens", "B": "batch"}
    grows = ", ".join(
        f"{words[name]}^<b>{law.params[f'a_{name}']:.2f}</b> ({between(*law.intervals[f'a_{name}'])})"
        for name in law.law.x
    )
    said = f"The best rate at a given batch goes as {_raised(grows)}, from {law.points} of {count} lines of runs"
    if "B" in law.law.x:
        low, high = law.intervals["a_B"]
        fits = "which these runs allow" if low <= 0.5 <= high else "which these runs do not follow"
        said += f"; the root of the batch would be 0.5, {fits}"
    if "D" in law.law.x and not law.along:
        low, high = law.intervals["a_D"]
        sign = "falls" if high < 0 else "rises" if low > 0 else "may rise or fall"
        said += f"; at a fixed batch it {sign} with the tokens (token horizons, arXiv:2409.19913: it falls)"
    return said + "." + _few(law) + (f" {law.told_along}" if law.along else "")


def _step_law_answer(laws: Mapping[str, FittedLaw | str], count: int) -> str:
    if not count:
        return ""
    if isinstance(laws["best_rate"], str) and isinstance(laws["best_batch"], str):
        return f"Rate and batch together have no law yet: {escape(laws['best_batch'])}"
    said = []
    for name, law, published in (
        ("rate", laws["best_rate"], StepLawRate()),
        ("batch", laws["best_batch"], StepLawBatch()),
    ):
        if isinstance(law, str):
            said.append(f"no law of the best {name} at its own optimum: {escape(law)}")
            continue
        said.append(f"the best {name} goes as {_compared(law, published)}{_few(law)}")
    whole = "; ".join(one.rstrip(".") for one in said)
    return f"Rate and batch chosen together (Step Law, arXiv:2503.04715, as reviews quote it): {whole}."


def _compared(law: FittedLaw, published: PowerLaw) -> str:
    """D^0.4 (0.1 to 0.7; published 0.571, inside)."""
    reference = published.references[0].params
    said = []
    for name in law.law.x:
        key = f"a_{name}"
        low, high = law.intervals[key]
        known = None if law.along else reference.get(key)  # published exponents are those of N and of D alone
        beside = "" if known is None else f"; published {known:g}, {'inside' if low <= known <= high else 'outside'}"
        said.append(f"{name}^<b>{law.params[key]:.2f}</b> ({between(low, high)}{beside})")
    return _raised(" ".join(said)) + (f" ({law.told_along.rstrip('.')})" if law.along else "")


def _decay_answer(part: Found) -> str:
    if not part.decays:
        return ""
    each = [one for one in part.decays if one.found.verdict["tau"] in USABLE]
    law = part.laws["timescale"]
    said = f"Weight decay: {len(each)} of {len(part.decays)} lines bracket a best timescale tau to one side at least"
    if each:
        values = [one.found.best["tau"] for one in each]
        worth = [one.found.rise["tau"] for one in each]
        said += (
            f", {between(min(values), max(values))} of the run (twice or half of it costs "
            f"{between(min(worth), max(worth), lambda x: f'{x:.4f}')} nats)"
        )
    if isinstance(law, str):
        return f"{said}. No law over tokens per parameter: {escape(law)}"
    reference = OptimalTimescale().references[0]
    low, high = law.intervals["a_TPP"]
    inside = "inside" if low <= reference.params["a_TPP"] <= high else "outside"
    return (
        f"{said}. It goes as TPP<sup><b>{law.params['a_TPP']:.2f}</b></sup> ({between(low, high)}) over tokens per "
        f"parameter; Power Lines (arXiv:2505.13738, recalled) has {reference.params['a_TPP']:g}, {inside}.{_few(law)}"
        + _batches(each)
    )


def _batches(decays: Sequence[Best]) -> str:
    """Whether the best timescale depends on the batch: ratios at equal N and D, with the error of their mean."""
    logs, errors = [], []
    places = sorted({(one.where["N"], one.where["D"]) for one in decays})
    for place in places:
        here = sorted(
            (one for one in decays if (one.where["N"], one.where["D"]) == place), key=lambda one: one.where["batch"]
        )
        if len(here) > 1 and here[-1].where["batch"] > here[0].where["batch"]:
            first, last = here[0].found, here[-1].found
            logs.append(np.log(last.best["tau"] / first.best["tau"]))
            errors.append(np.hypot(first.log_error("tau"), last.log_error("tau")))
    if not logs:
        return ""
    weight = np.array(errors) ** -2.0
    mean, error = float(weight @ logs / weight.sum()), float(weight.sum() ** -0.5)
    low, high = np.exp(mean - 1.645 * error), np.exp(mean + 1.645 * error)
    verdict = (
        "so it does not depend on the batch as far as these runs tell" if low <= 1 <= high else "so it depends on it"
    )
    return (
        f" From the smallest to the largest batch the best tau changes by a factor of {np.exp(mean):.2f} "
        f"({between(low, high)}), {verdict}."
    )


def _horizon_answer(parts: Mapping[str, Found]) -> str:
    """How the best rate moves with D alone, for every setting in which enough horizons were run at one N and batch."""
    said = []
    for name, part in parts.items():
        found = horizon_law(part.lines)
        if found is not None:
            law, lines = found
            said.append(
                f"D^<b>{law.params['a_D']:.2f}</b> ({between(*law.intervals['a_D'])}; {escape(name) or 'all runs'}, "
                f"{law.points} horizons at batches of {short(lines[0].where['batch'])} tokens{_few(law)})"
            )
    if not said:
        return ""
    return (
        f"Over token horizons alone, at one size and batch, the best rate goes as {_raised('; as '.join(said))}. "
        "Reviews quote -0.32 (arXiv:2409.19913) and, weakly, about -0.5 (arXiv:2410.05838)."
    )


def horizon_law(lines: Sequence[Best]) -> tuple[FittedLaw, list[Best]] | None:
    """lr = k D^a_D at the N and batch with the most bracketed horizons, and their lines; None where too few are."""
    groups: dict[tuple[Any, ...], list[Best]] = {}
    for one in lines:
        groups.setdefault(tuple(one.where[name] for name in ("N", "batch", "decay")), []).append(one)
    best = None
    for group in groups.values():
        try:
            law = found_by.law_of(PowerLaw(x=("D",), y="lr"), found_by.best_rates(group))
        except ValueError:  # fewer horizons than the law needs: the tables show them
            continue
        if best is None or law.points > best[0].points:
            best = law, group
    return best


def _few(law: FittedLaw) -> str:
    if law.freedom >= _FEW_FREEDOM:
        return ""
    points = f"{law.points} points leave {law.freedom} degree{'s' if law.freedom > 1 else ''} of freedom"
    return f" ({points}: read the interval, not the number)"


def _raised(text: str) -> str:
    """x^<b>0.5</b> with the exponent raised."""
    return re.sub(r"\^<b>([^<]*)</b>", r"<sup><b>\1</b></sup>", text)


def sharpen(whole: Found) -> list[str]:
    """Which runs to add, most wanted first: grids whose optimum lies at an edge, flat ones, laws with few points."""
    words = {"relative": "peak_lr", "peak_lr": "peak_lr", "batch": "ramp.batch_size", "tau": "optimizer.timescale"}
    ways = {AT_LOWEST: "lower", OPEN_BELOW: "lower", AT_HIGHEST: "higher", OPEN_ABOVE: "higher"}
    wanted: dict[tuple[str, str], list[str]] = {}
    for one in [*whole.surfaces, *whole.decays, *([] if whole.surfaces else whole.lines)]:
        for name, verdict in one.found.verdict.items():
            way = ways.get(verdict, "three values at least of" if verdict == FEW else "more seeds over")
            if verdict != BRACKETED:
                wanted.setdefault((way, words[name]), []).append(_place(one))
    order = sorted(wanted.items(), key=lambda item: (item[0][0] not in ("lower", "higher"), -len(item[1]), item[0]))
    said = []
    for (way, name), places in order:
        named = list(dict.fromkeys(places))
        more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
        why = (
            "the optimum or its interval reaches that end of the grid" if way in ("lower", "higher") else "flat so far"
        )
        said.append(f"{way} {name} at {'; '.join(named[:_NAMED])}{more}: {why}.")
    sizes = {one.where["N"] for one in whole.surfaces}
    if 0 < len(sizes) < 3:
        said.append(f"surfaces at more sizes (model=...): {len(sizes)} so far.")
    return said


def _place(one: Best) -> str:
    """N = 51k, D = 400k, B = 512."""
    batch = f", B = {short(one.where['batch'])}" if "batch" in one.where else ""
    return f"N = {short(one.where['N'])}, D = {short(one.where['D'])}{batch}"


def _interval(one: Best, name: str, shown: Callable[[float], str]) -> str:
    low, high = one.found.low[name], one.found.high[name]
    return between(low, high, shown) if np.isfinite(low) else DASH


def law_line(law: FittedLaw) -> str:
    intervals = ", ".join(f"{name} {between(*ends)}" for name, ends in law.intervals.items())
    return f"{law.law.written(law.params)}  (90 % intervals: {intervals})"
