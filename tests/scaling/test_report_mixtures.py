"""Mixtures simulated from a known law: the best weights come back with intervals, and checks enter no fit."""

import numpy as np
import pandas as pd
import pytest

from scaling.fit import Huber
from scaling.laws.mixtures import AdditiveMixture, optimal_weights
from scaling.mixing import best_weights, fit_target, mixed
from scaling.reports.mixtures import mixtures
from scaling.reports.page import Section
from scaling.reports.records import Records, Settings

DOMAINS = ("code", "prose", "maths")
LAW = AdditiveMixture(DOMAINS)
SETTINGS = Settings(starts=12, bootstrap=20)
SIMPLEX = [
    (1, 1, 1), (8, 1, 1), (1, 8, 1), (1, 1, 8), (9, 9, 2), (9, 2, 9), (2, 9, 9), (94, 3, 3), (3, 94, 3), (3, 3, 94)
]  # fmt: skip


def truth(target: int) -> dict[str, float]:
    """A domain is worth most for itself, and a little for the others."""
    p = {"E": 1.0 + 0.1 * target, "A": 20.0, "alpha": 0.3, "B": 60.0, "beta": 0.3}
    for number, domain in enumerate(DOMAINS):
        p |= {f"C_{domain}": 1.6 if number == target else 0.25, f"gamma_{domain}": 0.35}
    return p


def simulated(noise: float = 0.001, points=SIMPLEX, sizes=(5e4, 2e5), tokens=(1e5, 4e5), label=None) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = []
    for weights in points:
        for size in sizes:
            for budget in tokens:
                row = {"N": size, "D": budget, "C": 6 * size * budget, "seed": 0, "label": label}
                row |= {f"data.weights.{d}": w for d, w in zip(DOMAINS, weights, strict=True)}
                at = {f"h_{d}": w / sum(weights) for d, w in zip(DOMAINS, weights, strict=True)}
                for number, domain in enumerate(DOMAINS):
                    loss = float(LAW.predict(truth(number), at | {"N": size, "D": budget}))
                    row[f"eval_loss/{domain}"] = loss * np.exp(noise * rng.standard_normal())
                rows.append(row | {"eval_loss": 3.0, "run_id": f"{label or 'r'}{len(rows)}"})
    return pd.DataFrame(rows).assign(status="completed", stop_reason="budget")


def made(runs: pd.DataFrame) -> Section:
    return mixtures(Records(runs, pd.DataFrame({"run_id": []}), SETTINGS))


@pytest.fixture(scope="module")
def section() -> Section:
    checks = simulated(points=[(35, 35, 30)], label="check").iloc[:1]
    checks["eval_loss/code"] += 0.5  # far off: it must change no fit
    return made(pd.concat([simulated(), checks], ignore_index=True))


def said(section: Section) -> str:
    return " ".join([*section.answers, *section.blocks])


def test_shares_sum_to_one_and_the_mean_weighs_all_domains_alike():
    found = mixed(simulated())
    assert found.table[[f"h_{d}" for d in DOMAINS]].sum(axis=1).to_numpy() == pytest.approx(1.0)
    assert found.table["loss_mean"].to_numpy() == pytest.approx(
        found.table[[f"loss_{d}" for d in DOMAINS]].mean(axis=1).to_numpy()
    )


def test_weights_in_other_units_are_the_same_mixture():
    runs = simulated(noise=0.0)
    other = runs.copy()
    other[[f"data.weights.{d}" for d in DOMAINS]] *= 7.0
    assert mixed(runs).table.equals(mixed(other).table)


def test_the_best_weights_of_the_law_behind_the_runs_come_back(section):
    targets = section.numbers["targets"]
    for number, domain in enumerate(DOMAINS):
        best = optimal_weights(LAW, truth(number), 2e5, 4e5)
        for other in DOMAINS:
            found = targets[domain]["best_weights"][other]
            assert found["weight"] == pytest.approx(best[other], abs=0.1)
            assert found["low"] - 1e-9 <= found["weight"] <= found["high"] + 1e-9
    assert all(0.2 < targets["mean"]["best_weights"][domain]["weight"] < 0.5 for domain in DOMAINS)
    assert section.answers[0].startswith("For all sources alike")
    assert {figure.name for figure in section.figures} == {"mixtures_loss", "mixtures_mean", "mixtures_weights"}


def test_checks_enter_no_fit_and_are_held_against_the_law(section):
    clean = fit_target(LAW, mixed(simulated()), "code", Huber(1e-3), SETTINGS.starts, 0)
    assert clean.params == section.numbers["targets"]["code"]["params"]
    (check,) = section.numbers["checks"]
    assert "code 0.35, prose 0.35, maths 0.30" in check and "0 of 1 within" in check


def test_noise_widens_the_weights_and_the_page_says_what_is_open():
    calm, loud = (
        best_weights(fit_target(LAW, mixed(simulated(noise=noise)), "mean", Huber(1e-3), 12, 0).bootstrap(20), 2e5, 4e5)
        for noise in (0.0005, 0.05)
    )
    assert (loud["high"] - loud["low"]).max() > 3 * (calm["high"] - calm["low"]).max()
    two = simulated(noise=0.05).drop(columns=["data.weights.maths", "eval_loss/maths"])
    section = made(two)
    assert "is not pinned down" in said(section)
    assert section.numbers["checks"] == [] and "label=check" in section.answers[-1]


def test_one_size_and_one_budget_still_have_best_weights():
    runs = simulated(sizes=(2e5,), tokens=(4e5,), points=[*SIMPLEX, (2, 1, 1), (1, 2, 1), (1, 1, 2)], noise=0.0005)
    fitted = fit_target(LAW, mixed(runs), "code", Huber(1e-3), 32, 0)
    assert fitted.problem.fixed.keys() == {"A", "alpha", "B", "beta"}
    best = best_weights(fitted, 2e5, 4e5)["weight"]
    assert best["code"] == pytest.approx(optimal_weights(LAW, truth(0), 2e5, 4e5)["code"], abs=0.1)


def test_few_runs_have_no_law_but_the_measured_best():
    section = made(simulated(points=SIMPLEX[:4], sizes=(2e5,), tokens=(4e5,)))
    assert section.numbers["targets"] == {} and "No law of the loss on code" in said(section)
    assert any("Of the 4 mixtures that were run, the mean loss is lowest" in answer for answer in section.answers)


def test_runs_without_weights_or_of_one_source_are_refused_or_left_out():
    runs = simulated()
    runs.loc[3, "data.weights.code"] = np.nan
    assert "1 runs without data.weights" in mixed(runs).notes[0]
    with pytest.raises(ValueError, match="No run mixes two sources"):
        mixed(runs.drop(columns=[f"data.weights.{d}" for d in DOMAINS[1:]]))
    alone = made(runs.drop(columns=[f"data.weights.{d}" for d in DOMAINS]))
    assert alone.numbers is None and "No mixtures were compared" in said(alone)
