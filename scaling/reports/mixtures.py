"""The mixtures part of a report: loss on every source against its share, the mixture law, and its best weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from scaling.fit import Fit, Huber
from scaling.laws.mixtures import AdditiveMixture, JointMixture
from scaling.mixing import CHECK, MEAN, Mixed, best_weights, fit_target, mixed, told
from scaling.reports import figures_mixtures
from scaling.reports.page import (
    Cell,
    Constant,
    Figure,
    Section,
    escape,
    figure,
    interval,
    listing,
    math,
    paragraph,
    section,
    table,
)
from scaling.reports.records import Records
from scaling.reports.tables import constants_of
from scaling.wording import between, hundredth, plain, short

_TITLE = "Mixtures of sources"
_WIDE = 0.2  # a 90 % interval of a weight that is wider leaves it open
_TEXT = (
    "h is a source's share of the training tokens. Every run is evaluated on the same held-out text of every "
    "source; the mean weighs the sources alike, whatever they were trained with. The law is the additive one of "
    "Shukor et al. 2025 (the shape of its term in h is recalled, not checked against the paper), fitted to the "
    "losses on each target on its own: L = E + 1 / sum_i C_i h_i^gamma_i + A / N^alpha + B / D^beta. With few "
    "sizes and budgets E, A, alpha, B and beta stand in for each other; the best weights hang on C and gamma "
    "alone. Intervals are 90 %, by bootstrap over runs: they hold the noise of these runs, not the error of the "
    "law's shape."
)


@dataclass(frozen=True)
class _Target:
    """The law of one target, its best weights at the largest N and D, and the loss it predicts there."""

    name: str
    fitted: Fit
    best: pd.DataFrame
    loss: tuple[float, float, float]

    @property
    def open(self) -> list[str]:
        """The domains whose best weight the runs leave open."""
        return [str(d) for d, row in self.best.iterrows() if row["high"] - row["low"] > _WIDE]


def mixtures(records: Records) -> Section:
    """Loss against weight, a law for each source and for their mean, best weights with intervals, and their check."""
    try:
        found = mixed(records.runs)
    except ValueError as error:
        said = f"No mixtures were compared: {escape(str(error))}"
        return Section([said], [section(_TITLE, paragraph(said))])
    targets, notes = [], list(found.notes)
    at = (float(found.table["N"].max()), float(found.table["D"].max()))
    for name in found.targets:
        try:
            targets.append(_target(records, found, name, at))
        except ValueError as error:
            notes.append(f"No law of the loss on {name}: {error}")
    joint, said_of_joint = _joint(records, found, targets, at)
    checks = _checks(found, targets)
    sharpen = _sharpen(found, targets, checks)
    law = "; ".join(f"{one.name}: {_written(one.fitted)}" for one in targets)
    about: dict[str, Any] = {"data": list(found.table["run_id"]), "law": law, "sharpen": sharpen}
    laws = {one.name: one.fitted for one in targets}
    drawn = [
        Figure(
            "mixtures_loss",
            figures_mixtures.losses(found, laws),
            f"Held-out loss on each source against its share of the training tokens ({len(found.fitted)} runs at "
            f"{found.fitted['N'].nunique()} sizes and {found.fitted['D'].nunique()} budgets). Lines: the law, with the "
            "other sources in equal shares; points off the lines have other shares of those.",
            **about,
        ),
        Figure(
            "mixtures_mean",
            figures_mixtures.means(found),
            "Mean held-out loss over the sources of every mixture, each in its own size and budget; the lowest on top "
            f"by mean over these. Diamonds: {CHECK} runs, which entered no fit.",
            **about,
        ),
    ]
    if targets:
        drawn.append(
            Figure(
                "mixtures_weights",
                figures_mixtures.weights({one.name: one.best for one in targets}),
                f"Best weights by the law for each target, at N = {short(at[0])} and D = {short(at[1])}, with 90 % "
                "intervals.",
                **about,
            )
        )
    blocks = [paragraph(escape(_TEXT)), _weights_table(targets), *(figure(one) for one in drawn)]
    blocks += [_law_table(targets), *([paragraph(escape(said_of_joint))] if said_of_joint else []), listing(notes)]
    numbers = {
        "runs": [plain(row) for row in found.table.to_dict("records")],
        "targets": {one.name: _numbers(one) for one in targets},
        "joint": joint,
        "checks": checks,
        "notes": notes,
    }
    constants: list[Constant] = [
        constant
        for one in targets
        for constant in constants_of(one.fitted, f"loss on {one.name}, {one.fitted.law.name}")
    ]
    answers = [*_answers(found, targets, at), *checks, *([escape(said_of_joint)] if said_of_joint else [])]
    answers.append(f"What would sharpen it: {escape(sharpen)}")
    return Section(answers, [section(_TITLE, *blocks)], drawn, numbers, "", constants)


def _target(records: Records, found: Mixed, name: str, at: tuple[float, float]) -> _Target:
    settings = records.settings
    law = AdditiveMixture(found.domains)
    fitted = fit_target(law, found, name, Huber(settings.huber), settings.starts, settings.seed)
    fitted = fitted.bootstrap(settings.bootstrap, settings.seed)
    best = best_weights(fitted, *at)
    there = {f"h_{domain}": row["weight"] for domain, row in best.iterrows()} | {"N": at[0], "D": at[1]}
    loss = fitted.predict(pd.DataFrame([there]), interval=0.9).iloc[0]
    return _Target(name, fitted, best, (float(loss["loss"]), float(loss["low"]), float(loss["high"])))


def _joint(
    records: Records, found: Mixed, targets: list[_Target], at: tuple[float, float]
) -> tuple[dict[str, Any] | None, str]:
    """Whether the law in which weights and scale interact tells more of the mean: numbers, and a sentence."""
    additive = next((one.fitted for one in targets if one.name == MEAN), None)
    if additive is None:
        return None, ""
    settings, law, runs = records.settings, JointMixture(found.domains), len(additive.rows.table)
    if runs <= len(law.names):
        return (
            None,
            f"{runs} runs are too few for the joint law, which would tell whether best weights move with scale.",
        )
    other = fit_target(law, found, MEAN, Huber(settings.huber), settings.starts, settings.seed)
    least = (float(found.table["N"].min()), float(found.table["D"].min()))
    there = {scale: best_weights(other, *place)["weight"] for scale, place in (("small", least), ("large", at))}
    terms = {"additive": len(additive.problem.names), "joint": len(other.problem.names)}
    numbers = {
        "residual_rms": {"additive": additive.residual_rms, "joint": other.residual_rms},
        "parameters": terms,
        "best": {scale: weights.to_dict() for scale, weights in there.items()},
    }
    return numbers, (
        f"The joint law, whose best weights may move with scale, misses the mean losses by {other.residual_rms:.2%} "
        f"(rms, {terms['joint']} parameters) against {additive.residual_rms:.2%} of the additive one "
        f"({terms['additive']}), for {runs} runs. Its best weights for the mean are "
        f"{told(there['small'])} at the smallest scale that was run and {told(there['large'])} at the largest."
    )


# ---------------------------------------------------------------------------------------------------- sentences


def _answers(found: Mixed, targets: list[_Target], at: tuple[float, float]) -> list[str]:
    rows = found.fitted
    answers: list[str] = []
    for one in targets:
        listed = ", ".join(
            f"{escape(str(domain))} <b>{row['weight']:.2f}</b> ({between(row['low'], row['high'], hundredth)})"
            for domain, row in one.best.iterrows()
        )
        what = "all sources alike (their mean loss)" if one.name == MEAN else f"{escape(one.name)} alone"
        value, low, high = one.loss
        said = (
            f"For {what}, the law's best weights at N = {short(at[0])} and {short(at[1])} tokens are {listed}, for a "
            f"loss of {value:.3f} ({low:.3f} to {high:.3f})."
        )
        if one.open:
            said += f" The weight of {escape(' and '.join(one.open))} is not pinned down."
        answers.insert(0 if one.name == MEAN else len(answers), said)
    places = rows.groupby(["N", "D"])
    shares = [f"h_{domain}" for domain in found.domains]
    means = rows.groupby([*shares, "N", "D"])[f"loss_{MEAN}"].mean().reset_index()
    best = means.loc[means.groupby(["N", "D"])[f"loss_{MEAN}"].idxmin(), shares]
    same = best.drop_duplicates()
    listed = "; ".join(
        told(pd.Series({domain: row[f"h_{domain}"] for domain in found.domains})) for _, row in same.iterrows()
    )
    spread = places[f"loss_{MEAN}"].agg(lambda x: x.max() - x.min())
    places_run = f"{len(places)} pairs of size and budget" if len(places) > 1 else "one size and budget"
    answers.append(
        f"Of the {rows[shares].drop_duplicates().shape[0]} mixtures that were run, the mean loss is lowest for "
        f"{escape(listed)} ({places_run}); the worst mixture lies up to {spread.max():.2f} nats above the best."
    )
    return answers


def _checks(found: Mixed, targets: list[_Target]) -> list[str]:
    """What the runs at a predicted optimum say, which entered no fit."""
    law = next((one.fitted for one in targets if one.name == MEAN), None)
    said = []
    rows = found.table[found.table["label"] == CHECK]
    shares = [f"h_{domain}" for domain in found.domains]
    for (size, tokens, *_), group in rows.groupby(["N", "D", *shares]):
        beside = found.fitted[(found.fitted["N"] == size) & (found.fitted["D"] == tokens)]
        if law is None or beside.empty:
            continue
        predicted = law.predict(group, interval=0.9, of="run")
        measured, expected = float(group[f"loss_{MEAN}"].mean()), float(predicted["loss"].mean())
        weights = pd.Series({domain: float(group[f"h_{domain}"].mean()) for domain in found.domains})
        inside = group[f"loss_{MEAN}"].between(predicted["low"], predicted["high"]).sum()
        best = float(beside.groupby(shares)[f"loss_{MEAN}"].mean().min())
        said.append(
            f"Checked by {len(group)} run{'s' if len(group) > 1 else ''} at {escape(told(weights))} (N = "
            f"{short(float(str(size)))}, {short(float(str(tokens)))} tokens), not fitted: mean loss {measured:.4f} "
            f"against {expected:.4f} predicted ({inside} of {len(group)} within the law's 90 % interval for a run), "
            f"and {measured - best:+.4f} beside the best mixture of the sweep there."
        )
    return said


def _sharpen(found: Mixed, targets: list[_Target], checks: list[str]) -> str:
    advice = []
    unsure = sorted({domain for one in targets for domain in one.open})
    if unsure:
        advice.append(f"more mixtures that move {' and '.join(unsure)} alone, and a second seed of each")
    if found.fitted[["N", "D"]].nunique().min() < 3:
        advice.append("a third size and a third budget tell E from the terms in N and D, and whether weights move")
    if not checks and targets:
        best = next((one.best["weight"] for one in targets if one.name == MEAN), targets[-1].best["weight"])
        weights = ",".join(f"{domain}:{max(weight, 0.01):.2f}" for domain, weight in best.items())
        advice.append(f"a run at the predicted best: 'data.weights={{{weights}}}' label={CHECK}")
    return ("; ".join(advice) or "seeds of the mixtures near the best one") + "."


def _written(fitted: Fit) -> str:
    p, fixed = fitted.params, fitted.problem.fixed  # a term in N or D that no run varies is held at nothing
    assert isinstance(fitted.law, AdditiveMixture)
    terms = " + ".join(f"{p[f'C_{d}']:.3g} h_{d}^{p[f'gamma_{d}']:.2g}" for d in fitted.law.domains)
    scale = {"A": f"{p['A']:.3g} / N^{p['alpha']:.2g}", "B": f"{p['B']:.3g} / D^{p['beta']:.2g}"}
    shown = [f"L = {p['E']:.3g} + 1 / ({terms})", *(term for name, term in scale.items() if name not in fixed)]
    return " + ".join(shown)


# ---------------------------------------------------------------------------------------------------- tables


def _weights_table(targets: list[_Target]) -> str:
    if not targets:
        return ""
    header = ["target"]
    for domain in targets[0].best.index:
        header += [f"weight of {domain}", "90 %"]
    header += ["predicted loss", "90 %", "law misses its runs by (%, rms)", "at worst"]
    rows = []
    for one in targets:
        cells = [Cell("all alike (mean)" if one.name == MEAN else one.name)]
        for _, row in one.best.iterrows():
            cells += [Cell(f"{row['weight']:.3f}", row["weight"]), interval(row["low"], row["high"], hundredth)]
        value, low, high = one.loss
        cells += [Cell(f"{value:.4f}", value), interval(low, high, lambda x: f"{x:.3f}")]
        cells += [Cell(f"{100 * value:.2f}", value) for value in (one.fitted.residual_rms, one.fitted.residual_max)]
        rows.append(cells)
    return table(header, rows)


def _law_table(targets: list[_Target]) -> str:
    rows = []
    for one in targets:
        ends, doubts = one.fitted.intervals(), one.fitted.unidentified
        for name, (low, high) in ends.items():
            doubt = "not pinned down" if name in doubts else ""
            value = one.fitted.params[name]
            rows.append([Cell(one.name), Cell(name), Cell(f"{value:.4g}", value), interval(low, high), Cell(doubt)])
    return table(["target", "parameter", "value", "90 % interval", ""], rows, sortable=True) if rows else ""


def _numbers(one: _Target) -> dict[str, Any]:
    return {
        "law": math(_written(one.fitted)),
        "params": one.fitted.params,
        "intervals": one.fitted.intervals(),
        "not_pinned_down": one.fitted.unidentified,
        "residual_rms": one.fitted.residual_rms,
        "best_weights": one.best.to_dict("index"),
        "loss": dict(zip(("value", "low", "high"), one.loss, strict=True)),
    }
