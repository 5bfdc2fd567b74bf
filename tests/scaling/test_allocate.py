import numpy as np
import pandas as pd
import pytest

from data.records import load_runs
from scaling.allocate import Family, allocate, family
from scaling.fit import fit
from scaling.laws import Chinchilla


@pytest.fixture(scope="module")
def fitted(runs_folder):
    return fit(Chinchilla(), load_runs(runs_folder), starts=32).bootstrap(100)


def test_the_search_along_a_6nd_family_gives_the_closed_form(fitted):
    sizes = np.geomspace(1e4, 1e7, 5)
    budgets = np.geomspace(1e11, 1e15, 7)
    searched, closed = allocate(fitted, budgets, Family(sizes, 6 * sizes)), allocate(fitted, budgets, None)
    assert closed.convention == "C = 6 N D" and "exact" in searched.convention
    assert searched.table["N"].to_numpy() == pytest.approx(closed.table["N"].to_numpy(), rel=1e-6)
    assert searched.table["loss"].to_numpy() == pytest.approx(closed.table["loss"].to_numpy(), rel=1e-12)
    assert searched.table["N_low"].to_numpy() == pytest.approx(closed.table["N_low"].to_numpy(), rel=1e-3)


def test_no_other_size_of_the_family_is_better_at_the_same_budget(fitted, runs_folder):
    along = family(load_runs(runs_folder))
    best = allocate(fitted, [3e13], along).table.iloc[0]
    sizes = np.geomspace(1e3, 1e9, 20001)
    other = fitted.predict({"N": sizes, "D": 3e13 / along.flops_per_token(sizes)})["loss"]
    assert best["loss"] <= other.min() + 1e-12
    assert best["D"] * along.flops_per_token(best["N"]) == pytest.approx(3e13)
    assert best["N_low"] < best["N"] < best["N_high"]


def test_the_family_passes_through_its_runs_and_is_continued_as_a_power_law(runs_folder):
    runs = load_runs(runs_folder)
    along = family(runs)
    assert along.flops_per_token(runs["N"].to_numpy(float)) == pytest.approx(runs["flops_per_token"].to_numpy(float))
    end, step = along.sizes[-1], 1.0001
    inside = np.log(along.flops_per_token(end) / along.flops_per_token(end / step)) / np.log(step)
    beyond = np.log(along.flops_per_token(along.sizes[-1] * np.array([10.0, 100.0, 1000.0])))
    assert np.diff(beyond) / np.log(10) == pytest.approx([inside, inside], rel=1e-3)
    assert np.diff(beyond, 2) == pytest.approx([0.0], abs=1e-9)


def test_exact_flops_of_small_models_buy_far_fewer_tokens_than_6nd(fitted, runs_folder):
    exact, six = allocate(fitted, [1e11], family(load_runs(runs_folder))), allocate(fitted, [1e11], None)
    assert exact.table["D"][0] < 0.5 * six.table["D"][0]


def test_sizes_outside_the_runs_are_marked(fitted, runs_folder):
    found = allocate(fitted, [1e13, 1e19], family(load_runs(runs_folder)))
    assert found.table["extrapolated"].tolist() == [False, True] and "power law beyond" in found.convention


def test_tables_without_flops_per_token_have_no_family():
    assert family(pd.DataFrame({"N": [1.0], "D": [2.0]})) is None


def test_one_size_at_two_costs_is_mentioned():
    runs = pd.DataFrame({"N": [1e5, 1e5, 1e6], "flops_per_token": [1e6, 2e6, 8e6]})
    assert "median" in family(runs).notes[0]


def test_a_budget_that_is_not_positive_is_refused(fitted):
    with pytest.raises(ValueError, match="positive"):
        allocate(fitted, [1e12, 0.0], None)
