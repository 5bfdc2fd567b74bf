"""The muP part of a report: does the best peak rate stay when the model gets wider, and what does it cost where not?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from scaling.reports import figures_mup as figures
from scaling.reports.page import Cell, Constant, Figure, Section, escape, figure, interval, listing, paragraph, section
from scaling.reports.page import table as page_table
from scaling.reports.records import Records
from scaling.surface import AT_HIGHEST, AT_LOWEST, BRACKETED, FEW, FLAT, OPEN_ABOVE, OPEN_BELOW, Optimum
from scaling.transfer import LEVEL, MUP, STANDARD, Transfer, Widths, transfer
from scaling.wording import DASH, between, plain_value, short, signed, three

_TITLE = "Learning rate and width, with and without muP"
_HOW = (
    "At each width a quadratic in the logarithm of the peak rate is fitted, robustly, to the final losses near the "
    "lowest; the best rate is where it is least among the rates that were run, with a 90 % interval from the "
    "scatter of the runs about it. The drift is the slope of the logarithm of the best rate over that of the width, "
    "through all widths. What the narrowest model's best rate costs at another width is read off between that width's "
    "own runs, seed by seed, against its own best rate; the 95 % interval is over seeds, at these two rates. The "
    "narrowest model is the base of muP where base_width says so: then both parametrizations are the same there."
)
_NAMES = {STANDARD: "In the standard parametrization", MUP: "Under muP"}
_MISSING = {
    OPEN_BELOW: "lower rates", AT_LOWEST: "lower rates", OPEN_ABOVE: "higher rates", AT_HIGHEST: "higher rates",
    FLAT: "more seeds or rates further apart", FEW: "more rates",
}  # fmt: skip


def mup(records: Records) -> Section:
    """Best rate at every width, its drift in each parametrization, and what the narrowest model's rate costs."""
    try:
        found = transfer(records.runs)
    except ValueError as error:
        said = f"No rates were compared between widths: {escape(str(error))}"
        return Section([said], [section(_TITLE, paragraph(said))])
    wanted = sharpen(found)
    drawn = _figures(found, wanted[0] if wanted else "a finer grid around the optima, and more seeds.")
    blocks = [paragraph(_HOW), listing(found.notes), *map(figure, drawn), _table(found)]
    blocks += [paragraph("Cost: of the narrowest model's best rate against the width's own, in nats.")]
    blocks += [paragraph("What would sharpen it:"), listing(wanted)] if wanted else []
    answers = [answer for one in found.families for answer in (_drift(one), _cost(one)) if answer]
    numbers = {
        "how": _HOW,
        "families": [_numbers(one) for one in found.families],
        "notes": list(found.notes),
        "sharpen": wanted,
    }
    line = "; ".join(f"{figures.title(one)}: best rate x {2**one.drift:.3g} per doubling" for one in found.families)
    return Section(
        answers, [section(_TITLE, *blocks)], drawn, numbers, line, [_constant(one) for one in found.families]
    )


def _constant(one: Widths) -> Constant:
    law = f"rate over width, {figures.title(one)}"
    return Constant(law, "drift", one.drift, one.drift_low, one.drift_high, LEVEL, one.bracketed)


# ---------------------------------------------------------------------------------------------------- sentences


def _drift(one: Widths) -> str:
    """How far the best rate moves per doubling of the width, and whether that is a drift."""
    widths = list(one.optima)
    where = f" ({escape(one.setting)})" if one.setting else ""
    name = _NAMES.get(one.parametrization, escape(one.parametrization))
    said = f"<b>{name}</b>{where} the best peak rate changes by a factor of {2**one.drift:.2f}"
    if np.isfinite(one.drift_low):
        said += f" (90 % interval {between(2**one.drift_low, 2**one.drift_high)})"
    said += f" per doubling of the width, from {widths[0]:g} to {widths[-1]:g}: "
    if one.transfers is None:
        loose = [f"{width:g}" for width, at in one.optima.items() if at.verdict["peak_lr"] != BRACKETED]
        at = f" at width {', '.join(loose)}" if loose else ""
        return f"{said}the runs do not decide whether it stays, since they do not bracket it{at}."
    if one.transfers:
        return f"{said}no drift is seen beyond the interval."
    return f"{said}it does not stay."


def _cost(one: Widths) -> str:
    """What the narrowest model's rate costs the widest one."""
    (narrow, first), *_, (wide, last) = one.optima.items()
    cost, seeds = one.cost[wide], last.seeds
    rate = f"the rate that is best at width {narrow:g} ({three(first.best['peak_lr'])})"
    name = _NAMES.get(one.parametrization, one.parametrization)
    where = f"{name[0].lower()}{name[1:]} at width {wide:g}" + (f" ({one.setting})" if one.setting else "")
    if not cost.count:
        return escape(f"What {rate} costs {where} is not known: no seed has losses on both sides of it.")
    said = escape(f"{where[0].upper()}{where[1:]}, {rate} costs {signed(cost.mean)} nats against its own best")
    said += f" ({three(last.best['peak_lr'])})"
    if np.isfinite(cost.low):
        said += f" (95 % interval {between(cost.low, cost.high, signed)}, {cost.count} seeds)"
    else:
        said += f" ({cost.count} seed{'s' if cost.count > 1 else ''}: no interval)"
    lost = seeds - cost.count
    return f"{said}{f'; {lost} of {seeds} seeds have no loss there' if lost else ''}."


def sharpen(found: Transfer) -> list[str]:
    """Which runs would bracket the optima that are not; plain text."""
    sentences = []
    for one in found.families:
        for width, at in one.optima.items():
            if (verdict := at.verdict["peak_lr"]) != BRACKETED:
                sentences.append(f"{figures.title(one)}, width {width:g}: {_MISSING[verdict]} ({verdict}).")
    return sentences


# ---------------------------------------------------------------------------------------------------- table, figures


def _table(found: Transfer) -> str:
    header = ["parametrization", "width", "N", "runs", "diverged", "best rate", "90 % interval", "verdict"]
    header += ["loss there", "cost", "95 % interval"]
    lines = []
    for one in found.families:
        results, narrow = figures.of_family(found.results, one), min(one.optima)
        for width, at in one.optima.items():
            cost, best = one.cost[width], at.best["peak_lr"]
            size = float(results.loc[results["width"] == width, "N"].iloc[0])
            cells = [
                Cell(figures.title(one).removesuffix(" parametrization")),
                Cell(f"{width:g}", width),
                Cell(short(size), size),
            ]
            cells += [Cell(str(at.runs), at.runs), Cell(str(at.diverged), at.diverged), Cell(three(best), best)]
            cells += [interval(at.low["peak_lr"], at.high["peak_lr"]), Cell(at.verdict["peak_lr"])]
            cells += [Cell(f"{at.loss:.4f}", at.loss)]
            cells += [Cell(signed(cost.mean), cost.mean) if cost.count and width != narrow else Cell(DASH)]
            cells += [interval(cost.low, cost.high, signed) if width != narrow else Cell(DASH)]
            lines.append(cells)
    return page_table(header, lines, sortable=True)


def _numbers(one: Widths) -> dict[str, Any]:
    return {
        "parametrization": one.parametrization,
        "setting": one.setting,
        "drift": one.drift,
        "drift_low": plain_value(one.drift_low),
        "drift_high": plain_value(one.drift_high),
        "transfers": one.transfers,
        "widths": [_width_numbers(width, at, one) for width, at in one.optima.items()],
    }


def _width_numbers(width: float, at: Optimum, one: Widths) -> dict[str, Any]:
    cost = one.cost[width]
    return {
        "width": width,
        "best": at.best["peak_lr"],
        "low": plain_value(at.low["peak_lr"]),
        "high": plain_value(at.high["peak_lr"]),
        "verdict": at.verdict["peak_lr"],
        "loss": plain_value(at.loss),
        "runs": at.runs,
        "diverged": at.diverged,
        "cost": plain_value(cost.mean),
        "cost_low": plain_value(cost.low),
        "cost_high": plain_value(cost.high),
        "cost_seeds": cost.count,
    }


def _figures(found: Transfer, wanted: str) -> list[Figure]:
    """One figure of losses for each setting, and one of best rates."""
    drawn, settings = [], list(dict.fromkeys(one.setting for one in found.families))
    for k, setting in enumerate(settings):
        families = [one for one in found.families if one.setting == setting]
        results = pd.concat([figures.of_family(found.results, one) for one in families])
        number = f"_{k + 1}" if len(settings) > 1 else ""
        seeds = results["seed"].nunique()
        count = f"{len(results)} runs, {seeds} seed{'s' if seeds > 1 else ''}"
        count += f" ({escape(setting)})" if setting else ""
        drawn += [
            Figure(
                f"mup_rates{number}",
                figures.rates(families, results),
                f"Final held-out loss against the peak rate, a line for each width ({count}). Lines: means over seeds; "
                "small points: single seeds; diamonds: fitted optima with their 90 % intervals. Losses far above the "
                "optima are cut off, and runs that diverged are not drawn.",
                data=list(results["run_id"]),
                sharpen=wanted,
            ),
            Figure(
                f"mup_best_rate{number}",
                figures.best_rates(families),
                f"The best peak rate at every width with its 90 % interval ({count}). Dashed: the drift.",
                data=list(results["run_id"]),
                law="; ".join(_law(one) for one in families),
                sharpen=wanted,
            ),
        ]
    return drawn


def _law(one: Widths) -> str:
    ends = f" (90 % interval {between(one.drift_low, one.drift_high)})" if np.isfinite(one.drift_low) else ""
    return f"{figures.title(one)}: best rate ~ width^{one.drift:.2f}{ends}"
