"""Budgets simulated from a known law: the section finds its best sizes, and says where the runs cannot tell."""

import numpy as np
import pandas as pd
import pytest

from scaling.allocate import allocate, family, growth
from scaling.fit import Huber, fit
from scaling.laws import Chinchilla
from scaling.reports.isoflop import isoflop
from scaling.reports.page import Section
from scaling.reports.records import Records, Settings

LAW = Chinchilla()
TRUTH = {"E": 1.8, "A": 480.0, "alpha": 0.35, "B": 2000.0, "beta": 0.37}
SIZES = np.array([0.8e6, 2e6, 5e6, 12e6, 30e6])
BUDGETS = np.array([1e15, 3e15, 9e15, 27e15])
SETTINGS = Settings(starts=64, bootstrap=60)


def cost(size):
    """FLOPs per token of a family with an embedding: what 6 N D leaves out."""
    return 6 * (size + 20 * size**0.5 * 100)


def records(noise: float = 0.001, sizes=SIZES, budgets=BUDGETS, seed: int = 0) -> Records:
    rng = np.random.default_rng(seed)
    n, c = (grid.ravel() for grid in np.meshgrid(sizes, budgets))
    runs = pd.DataFrame({"N": n, "C": c, "D": c / cost(n), "flops_per_token": cost(n)})
    runs["eval_loss"] = LAW.predict(TRUTH, runs) * np.exp(noise * rng.standard_normal(len(runs)))
    runs["run_id"] = [f"r{k:011x}" for k in range(len(runs))]
    runs = runs.assign(status="completed", stop_reason="budget", N_total=n)
    curves = []
    for _, run in runs.iterrows():
        tokens = run["D"] * np.geomspace(0.1, 1, 9)
        loss = LAW.predict(TRUTH, {"N": run["N"], "D": tokens})
        curve = {"run_id": run["run_id"], "tokens": tokens, "flops": tokens * cost(run["N"]), "eval_loss": loss}
        curves.append(pd.DataFrame(curve))
    return Records(runs, pd.concat(curves, ignore_index=True), SETTINGS)


@pytest.fixture(scope="module")
def made() -> Section:
    return isoflop(records())


def truth(budget: float) -> float:
    sizes = np.geomspace(1e5, 1e9, 200_001)
    return float(sizes[np.argmin(LAW.predict(TRUTH, {"N": sizes, "D": budget / cost(sizes)}))])


def said(made: Section) -> str:
    return " ".join([*made.answers, *made.blocks])


def test_every_approach_finds_the_best_size_of_the_law_behind_the_runs(made):
    found = made.numbers["approaches"]
    assert list(found) == [
        "1 (envelope of curves)", "2 (parabolas at each budget)", "3 (the law, exact FLOPs)", "3 (the law, C = 6 N D)"
    ]  # fmt: skip
    for budget, place in ((BUDGETS[-1], 0), (10 * BUDGETS[-1], 1)):
        best = {name: one["best"][place] for name, one in found.items()}
        assert all(row["C"] == pytest.approx(budget) for row in best.values())
        exact = best["3 (the law, exact FLOPs)"]
        assert exact["N_low"] < exact["N"] < exact["N_high"]
        assert exact["N"] == pytest.approx(truth(budget), rel=0.25)
        assert best["2 (parabolas at each budget)"]["N"] == pytest.approx(truth(budget), rel=0.5)


def test_the_minimum_of_every_budget_has_an_interval_that_holds_the_truth_within_the_bias():
    made = isoflop(records(noise=0.005))
    minima = made.numbers["minima"]
    assert len(minima) == len(BUDGETS)
    for row in minima:
        assert row["N_low"] < row["N"] < row["N_high"]
        assert row["N"] == pytest.approx(truth(row["C"]), rel=0.35)


def test_growth_is_the_closed_form_without_embeddings_and_less_certain_for_noise():
    table = records(noise=0.001).runs
    fitted = fit(LAW, table.assign(C=6 * table["N"] * table["D"]), Huber(1e-3), starts=64).bootstrap(60)
    p = fitted.params
    value, low, high = growth(fitted, 1e15, 1e16, None)["N"]
    assert value == pytest.approx(p["beta"] / (p["alpha"] + p["beta"]), rel=1e-6) and low < value < high
    along = growth(fitted, 1e15, 1e16, family(table))
    assert along["N"][0] + along["D"][0] > 1.05  # N D grows faster than the FLOPs: the embedding's share falls
    best = allocate(fitted, [1e15, 1e16], family(table)).table["N"]
    assert along["N"][0] == pytest.approx(np.log10(best.iloc[1] / best.iloc[0]))


def test_sizes_on_one_side_of_the_optimum_are_left_out_and_a_size_beyond_is_asked_for():
    small = SIZES[:3] * 0.3  # the best sizes lie above all of them at the larger budgets
    made = isoflop(records(sizes=small, noise=0.0005))
    text = said(made)
    assert "No budget has a best size" in text or "budgets are left out: the minimum lies outside" in text
    if made.numbers:
        assert "a size above" in made.answers[-1]


def test_without_budgets_in_common_the_section_says_why():
    made = isoflop(records(sizes=SIZES[:2]))
    assert made.numbers is None and "fewer than 3 sizes" in said(made)


def test_runs_that_did_not_end_do_not_count():
    whole = records()
    bad = whole.runs.copy()
    bad.loc[bad.index[3], ["status", "eval_loss"]] = ["diverged", np.nan]
    bad.loc[bad.index[7], ["stop_reason", "eval_loss"]] = ["target", 0.1]
    made = isoflop(Records(bad, whole.curves, SETTINGS))
    assert set(made.figures[0].data) == set(bad["run_id"]) - set(bad["run_id"].iloc[[3, 7]])
    assert min(row["loss"] for row in made.numbers["minima"]) > 1


def test_runs_without_curves_leave_approach_1_out():
    whole = records()
    made = isoflop(Records(whole.runs, pd.DataFrame({"run_id": []}), SETTINGS))
    assert "Approach 1 (envelope of curves): none." in said(made) and len(made.numbers["approaches"]) == 3


def test_the_page_says_what_disagrees(made):
    assert any("do not overlap" in answer or "All intervals of a overlap" in answer for answer in made.answers)
    assert any("4 budgets over a factor of 27.0" in answer for answer in made.answers)
