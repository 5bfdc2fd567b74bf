"""The cbs_branched part of a report: the largest harmless batch along one run, and the ramp that follows from it."""

from __future__ import annotations

from collections.abc import Mapping

import altair as alt
import numpy as np
import pandas as pd

from optim.plan import Plan
from optim.ramps import Seesaw
from optim.schedules import Cosine
from scaling.branched import DIVERGED, TOLERANCE, Branched, branched, ramp
from scaling.drawing import COUNT_LABEL, FAINT, INK, Data, Spec, category, log_axis, panel_title
from scaling.reports.page import (
    Cell,
    Constant,
    Figure,
    Section,
    escape,
    figure,
    interval,
    listing,
    paragraph,
    section,
    table,
)
from scaling.reports.records import Records
from scaling.wording import between, plain, short, signed

_TITLE = "Critical batch size along a run"
_LAW = ("k", "exponent", "low", "high")


def cbs_branched(records: Records) -> Section:
    """Losses of the branches, the largest batch within the tolerance, the ramp, beside Seesaw and the noise scale."""
    try:
        found = branched(records.runs, TOLERANCE, records.settings.bootstrap, records.settings.seed)
    except ValueError as error:
        said = f"No critical batch size was found: {escape(str(error))}"
        return Section([said], [section(_TITLE, paragraph(said))])
    length = int(pd.to_numeric(found.runs["sequence_length"]).iloc[0])
    above = records.runs[records.runs["run_id"].isin(found.parents)]
    budget = int(pd.to_numeric(above["total_tokens"]).max())
    noise = noise_scale(records.curves, found.parents, length)
    ramps = {rule: ramp(law, found.base, found.critical["tokens"].min(), budget) for rule, law in found.laws.items()}
    data = [*found.runs["run_id"], *found.parents]
    seeds = int(found.critical["seeds"].min())
    sharpen = "more seeds, and branch points (vars.share) beyond the last that has a bend"
    drawn = [
        Figure(
            "branched_differences", _differences(found),
            f"Loss of a branch minus that of the branch at the run's own batch of {found.base} sequences, after "
            f"{short(found.window)} tokens; means over {seeds} seeds with 95 % intervals. Dashed: the tolerance of "
            f"{TOLERANCE:g} nats.", data=data, sharpen=sharpen,
        ),
        Figure(
            "branched_critical", _along(found, ramps, noise, length, budget),
            "The largest batch within the tolerance, with 90 % intervals over seeds; its power law as a ramp; Seesaw "
            "on a cosine of the same budget; the gradient noise scale of the run, a diagnostic that need not agree.",
            data=data, law="; ".join(_law_text(rule, law) for rule, law in found.laws.items()), sharpen=sharpen,
        ),
    ]  # fmt: skip
    text = (
        f"At every branch point the same weights go on at several batch sizes for {short(found.window)} tokens. The "
        f"critical batch is the largest whose held-out loss ends within {TOLERANCE:g} nats of the run's own batch "
        "(Merrill et al. 2025, arXiv:2505.23971), the loss of the weights or of their average, whichever is lower. A "
        "window is short: what a larger batch costs later, or wins back, it does not show."
    )
    blocks = [section(_TITLE, paragraph(text), figure(drawn[0]), _table(found), listing(found.notes)),
              section("A ramp that follows", *_ramps(ramps, found.powers), figure(drawn[1]))]  # fmt: skip
    numbers = {
        "unit": "sequences", "sequence_length": length, "tolerance": TOLERANCE, "window": found.window,
        "critical": [plain(row) for row in found.critical.to_dict("records")],
        "differences": [plain(row) for row in found.differences.to_dict("records")],
        "laws": {rule: plain(dict(zip(_LAW, law, strict=True))) for rule, law in found.laws.items()},
        "ramps": {rule: overrides(*steps, found.powers[rule]) for rule, steps in ramps.items() if steps[0]},
        "noise_scale": [plain(row) for row in noise.to_dict("records")],
    }  # fmt: skip
    constants = [
        Constant(f"critical batch, {rule}", "exponent of tokens", *law[1:]) for rule, law in found.laws.items()
    ]
    return Section(_answers(found, ramps, noise), blocks, drawn, numbers, constants=constants)


def overrides(thresholds: list[int], batches: list[int], power: float) -> str:
    """The ramp as one types it; the rate follows the batch to the `power`."""
    listed = (",".join(map(str, values)) for values in (thresholds, batches))
    at, sizes = (f"[{values}]" for values in listed)
    return f"ramp=step ramp.thresholds_in_tokens={at} ramp.batch_sizes={sizes} ramp.lr_exponent={power:g}"


def noise_scale(curves: pd.DataFrame, parents: tuple[str, ...], length: int) -> pd.DataFrame:
    """tokens, noise (sequences): the gradient noise scale that the parents logged, a mean over seeds in bins."""
    if "noise_scale" not in curves:
        return pd.DataFrame({"tokens": [], "noise": []})
    rows = curves[curves["run_id"].isin(parents)].dropna(subset="noise_scale")
    rows = rows[rows["noise_scale"] > 0]
    if rows.empty:
        return pd.DataFrame({"tokens": [], "noise": []})
    bins = pd.cut(np.log(rows["tokens"]), 24, labels=False)
    means = rows.assign(noise=rows["noise_scale"] / length).groupby(bins)[["tokens", "noise"]].mean()
    return means.reset_index(drop=True)


def _law_text(rule: str, law: tuple[float, float, float, float]) -> str:
    k, exponent, low, high = law
    known = f" ({between(low, high, lambda x: f'{x:.2f}')})" if np.isfinite(low) else ""
    return f"B* = {k:.3g} tokens^{exponent:.2f}{known} sequences, {rule}"


def _answers(found: Branched, ramps: dict[str, tuple[list[int], list[int]]], noise: pd.DataFrame) -> list[str]:
    answers = []
    for rule, rows in found.critical.groupby("rule"):
        first, last = rows.iloc[0], rows.iloc[-1]
        words = [f"{_star(row)} after {short(row['tokens'])} tokens" for row in (first, last)[: len(rows)]]
        growth = ""
        if rule in found.laws:
            _, exponent, low, high = found.laws[str(rule)]
            known = f" ({between(low, high, lambda x: f'{x:.2f}')})" if np.isfinite(low) else ""
            growth = f": it grows as tokens<sup>{exponent:.2f}</sup>{known}"
        answers.append(
            f"{escape(str(rule)).capitalize()}: the largest batch that keeps within {TOLERANCE:g} nats is "
            f"{' and '.join(words)}{growth}."
        )
    for rule, (thresholds, batches) in ramps.items():
        if thresholds:
            answers.append(
                f"As a ramp ({escape(rule)}): <code>{escape(overrides(thresholds, batches, found.powers[rule]))}</code>"
            )
    if len(noise):
        at = found.critical.iloc[-1]
        near = noise.iloc[(noise["tokens"] - at["tokens"]).abs().argmin()]
        answers.append(
            f"The gradient noise scale of the run is {near['noise']:.3g} sequences after {short(near['tokens'])} "
            f"tokens, where the branches say {_star(at)}: it is a diagnostic, not a measure of the critical batch."
        )
    return answers


def _star(row: pd.Series) -> str:
    if row["beyond"]:
        return f"at least {row['critical']:.0f} sequences, the largest that was run,"
    interval = f" ({between(row['low'], row['high'])})" if np.isfinite(row["low"]) else ""
    return f"{row['critical']:.1f} sequences{interval}"


def _ramps(ramps: dict[str, tuple[list[int], list[int]]], powers: Mapping[str, float]) -> list[str]:
    said = [
        f"{escape(rule)}: <code>{escape(overrides(*steps, powers[rule]))}</code>" if steps[0]
        else f"{escape(rule)}: no doubling of the batch is allowed before the end of the budget."
        for rule, steps in ramps.items()
    ]  # fmt: skip
    if not said:
        return [paragraph("No law and no ramp: fewer than three branch points have a batch that is too large.")]
    text = (
        "The batch doubles wherever the power law of the critical batch allows it. The rate follows by "
        "the same rule; begin at the run's own batch and peak rate."
    )
    return [paragraph(text), *(paragraph(one) for one in said)]


def _table(found: Branched) -> str:
    rows = []
    for _, row in found.critical.iterrows():
        of = found.differences[
            (found.differences["rule"] == row["rule"]) & (found.differences["tokens"] == row["tokens"])
        ]
        worse = {
            k: signed(x) if x < DIVERGED / 4 else "diverged" for k, x in zip(of["batch"], of["difference"], strict=True)
        }
        listed = ", ".join(f"{batch:g}: {difference}" for batch, difference in worse.items())
        rows.append([
            Cell(row["rule"]), Cell(short(row["tokens"]), row["tokens"]),
            Cell(f"{'at least ' if row['beyond'] else ''}{row['critical']:.1f}", row["critical"]),
            interval(row["low"], row["high"]), Cell(f"{row['seeds']}", float(row["seeds"])),
            Cell(listed),
        ])  # fmt: skip
    return table(["rate", "tokens", "B* (sequences)", "90 %", "seeds", "batch: loss against the run's own"], rows)


def _differences(found: Branched) -> Spec:
    data, panels = Data(), []
    order = [short(tokens) for tokens in sorted(found.differences["tokens"].unique())]
    for rule, rows in found.differences.groupby("rule"):
        own = pd.DataFrame({"tokens": sorted(rows["tokens"].unique()), "batch": found.base, "difference": 0.0})
        rows = pd.concat([own, rows[["tokens", "batch", "difference", "low", "high"]]])
        rows = rows[rows["difference"] < 1]  # more is off every useful scale, as is what diverged
        rows = rows.assign(after=rows["tokens"].map(short)).drop(columns="tokens")
        colour = category("after", order, title="tokens before")
        x = log_axis(alt.X, "batch", "batch (sequences)", rows["batch"], COUNT_LABEL)
        y = alt.Y("difference:Q", title="loss minus that of the run's own batch (nats)")
        marks = data.chart(rows)
        layers = [
            marks.mark_line(strokeWidth=1.5).encode(x, y, colour),
            marks.mark_circle(size=40, opacity=1).encode(x, y, colour),
            data.chart(rows.dropna()).mark_rule(opacity=0.5).encode(x, alt.Y("low:Q"), alt.Y2("high:Q"), colour),
            data.chart(pd.DataFrame({"difference": [TOLERANCE]})).mark_rule(strokeDash=[5, 4], color=INK).encode(y),
        ]
        title = panel_title(str(rule))
        panels.append(alt.layer(*layers).properties(width=380, height=280, title=title))
    return data.finish(alt.hconcat(*panels, spacing=30))


def _along(
    found: Branched, ramps: dict[str, tuple[list[int], list[int]]], noise: pd.DataFrame, length: int, budget: int
) -> Spec:
    stars = found.critical.assign(what=found.critical["rule"].map(lambda rule: f"branches, {rule}"))
    begin = float(found.critical["tokens"].min()) / 2
    lines = [_seesaw(found.base, length, budget, begin)]
    for rule, (thresholds, batches) in ramps.items():
        at = [begin, *map(float, thresholds), float(budget)]
        lines.append(pd.DataFrame({"tokens": at, "batch": [*batches, batches[-1]], "what": f"ramp, {rule}"}))
    steps = pd.concat(lines, ignore_index=True)
    noise = noise[noise["tokens"] >= begin].rename(columns={"noise": "batch"}).assign(what="noise scale")
    names = [*stars["what"].unique(), *steps["what"].unique(), *noise["what"].unique()]
    colour = category("what", names)
    sizes = pd.concat(
        [stars["critical"], stars["low"].dropna(), stars["high"].dropna(), steps["batch"], noise["batch"]]
    )
    x = log_axis(alt.X, "tokens", "tokens", pd.concat([stars["tokens"], steps["tokens"]]), COUNT_LABEL)
    y = log_axis(alt.Y, "batch", "batch (sequences)", sizes, COUNT_LABEL)
    data = Data()
    marks = data.chart(stars.rename(columns={"critical": "batch"})[["tokens", "batch", "low", "high", "what"]])
    layers = [
        data.chart(steps).mark_line(interpolate="step-after", strokeWidth=1.6).encode(x, y, colour),
        data.chart(noise).mark_line(strokeDash=[3, 3], color=FAINT).encode(x, y, colour),
        marks.mark_rule(strokeWidth=1.4, opacity=0.6).encode(x, alt.Y("low:Q"), alt.Y2("high:Q"), colour),
        marks.mark_circle(size=60, opacity=1).encode(x, y, colour),
    ]
    return data.finish(alt.layer(*layers).properties(width=560, height=320))


def _seesaw(base: int, length: int, budget: int, begin: float) -> pd.DataFrame:
    """Seesaw's batches on a cosine of this budget, from the same first batch, after `begin` tokens."""
    steps = Plan(budget, length, 1.0, Cosine(), Seesaw(batch_size=base)).steps()
    table = pd.DataFrame({"tokens": steps.tokens_before, "batch": steps.batch_size})[:-1]  # the last batch is cut short
    table["tokens"] = table["tokens"].clip(lower=begin)
    table = table.drop_duplicates("tokens", keep="last")
    return table[table["batch"] != table["batch"].shift()].assign(what="Seesaw on a cosine")
