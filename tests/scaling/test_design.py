from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from data.records import load_runs
from scaling import next_runs, uncertainty
from scaling.design import Design, _State, candidates, plan_next
from scaling.fit import LeastSquares, StudentT, fit
from scaling.laws import Chinchilla
from train.shape import Shape

LAW = Chinchilla()
TRUTH = {"E": 1.9, "A": 60.0, "alpha": 0.38, "B": 180.0, "beta": 0.35}
NOISE = 0.005
SIZES = pd.DataFrame({"N": np.geomspace(5e4, 2e7, 10)}).assign(flops_per_token=lambda t: 6 * t["N"] + 1e5)
TARGET = pd.DataFrame({"N": [3e8], "D": [6e9]})


def cost(runs: pd.DataFrame) -> pd.DataFrame:
    return runs.assign(C=runs["D"] * (6 * runs["N"] + 1e5))


def simulated(runs: pd.DataFrame, seed: int) -> pd.DataFrame:
    noise = np.exp(NOISE * np.random.default_rng(seed).normal(size=len(runs)))
    return runs.assign(loss=LAW.predict(TRUTH, runs) * noise)


def pilot(seed: int) -> pd.DataFrame:
    n, ratio = (x.ravel() for x in np.meshgrid(np.geomspace(5e4, 1e6, 4), [8, 20, 50]))
    return simulated(cost(pd.DataFrame({"N": n, "D": n * ratio})), seed)


@pytest.fixture(scope="module")
def fitted():
    return fit(LAW, pilot(10), starts=32).bootstrap(100)


@pytest.fixture(scope="module")
def spent(fitted):
    return float(fitted.rows.table["C"].sum())


# --- candidates --------------------------------------------------------------------------------------------------


def test_candidates_stay_near_what_was_run_and_within_the_budget(fitted, spent):
    pool = candidates(fitted, SIZES, 10 * spent)
    ratio = pool["D"] / pool["N"]
    assert ratio.min() * (1 + 1e-9) >= 4 and ratio.max() <= 100 * (1 + 1e-9)  # a factor of 2 beyond 8 to 50
    assert pool["D"].min() >= fitted.rows.table["D"].min() * (1 - 1e-9)
    assert pool["C"].max() <= 10 * spent * (1 + 1e-9)
    assert pool["C"].tolist() == pytest.approx((pool["D"] * pool["flops_per_token"]).tolist())
    assert set(pool["N"]) <= set(SIZES["N"]) and not pool.duplicated(["N", "D"]).any()


def test_what_belongs_to_a_size_stays_with_its_candidates(fitted, spent):
    named = SIZES.assign(overrides=[[f"model={k}"] for k in range(len(SIZES))])
    pool = candidates(fitted, named, spent)
    by_size = dict(zip(named["N"], named["overrides"], strict=True))
    assert all(by_size[run["N"]] == run["overrides"] for _, run in pool.iterrows())


# --- the chosen design -------------------------------------------------------------------------------------------


@given(st.floats(0.3, 30.0), st.integers(1, 12))
@settings(max_examples=6)
def test_a_design_keeps_to_budget_and_count_and_runs_nothing_twice(fitted, spent, times, most):
    found = plan_next(fitted, SIZES, times * spent, TARGET, most)
    assert found.flops <= times * spent * (1 + 1e-9) and 1 <= len(found.runs) <= most
    assert not found.runs.duplicated(["N", "D"]).any()
    assert found.flops == pytest.approx((found.runs["D"] * (6 * found.runs["N"] + 1e5)).sum())
    assert found.after < found.before


def test_more_budget_and_more_runs_never_hurt(fitted, spent):
    by_budget = [plan_next(fitted, SIZES, times * spent, TARGET, 6).after for times in (0.5, 2.0, 8.0, 32.0)]
    by_count = [plan_next(fitted, SIZES, 8 * spent, TARGET, most).after for most in (1, 2, 4, 8)]
    for after in (by_budget, by_count):  # a thousandth for the exchange, which ends in a local optimum
        assert all(later <= earlier * 1.001 for earlier, later in pairwise(after))
        assert after[-1] < 0.8 * after[0]


def test_the_design_is_better_than_random_designs_of_the_same_cost(fitted, spent):
    budget = 5 * spent
    found = plan_next(fitted, SIZES, budget, TARGET, 4)
    pool = candidates(fitted, SIZES, budget)
    rng = np.random.default_rng(0)
    for _ in range(30):
        rest, runs = pool.sample(frac=1, random_state=rng.integers(2**31)), []
        for index, run in rest.iterrows():
            if len(runs) < 4 and pool.loc[runs, "C"].sum() + run["C"] <= budget:
                runs.append(index)
        assert after_these(fitted, pool.loc[runs]) >= found.after * (1 - 1e-9)


def after_these(fitted, runs: pd.DataFrame) -> float:
    """The half-width that plan_next would promise for these runs."""
    promised = _State(fitted, runs, TARGET).value(np.ones(len(runs), bool))
    return float(uncertainty.quantile(fitted, 0.9) * np.exp(0.5 * promised))


def test_the_interval_before_is_that_of_the_fit(fitted, spent):
    found = plan_next(fitted, SIZES, spent, TARGET, 3)
    one = fitted.predict(TARGET, 0.9, method="delta").iloc[0]
    width = 0.5 * np.log(one["high"] / one["low"])
    assert width / 3 < found.before < 3 * width  # averaged over replicates, and with equal noise in all rows


def test_a_wider_level_asks_for_the_same_runs_and_promises_a_wider_interval(fitted, spent):
    narrow, wide = (plan_next(fitted, SIZES, 5 * spent, TARGET, 4, level) for level in (0.5, 0.99))
    pd.testing.assert_frame_equal(narrow.runs, wide.runs)
    assert wide.before / narrow.before == pytest.approx(wide.after / narrow.after) and wide.after > 2 * narrow.after


def test_a_target_within_the_runs_asks_for_cheaper_runs_than_one_far_beyond(fitted, spent):
    near = pd.DataFrame({"N": [2e5], "D": [4e6]})
    assert plan_next(fitted, SIZES, 5 * spent, near, 4).before < plan_next(fitted, SIZES, 5 * spent, TARGET, 4).before


@pytest.mark.parametrize("settings_", [{}, {"loss": StudentT()}, {"fixed": {"alpha": 0.38}}])
def test_designs_are_made_for_fits_without_replicates_with_a_scale_and_with_fixed_parameters(settings_):
    found = plan_next(fit(LAW, pilot(1), starts=16, **settings_), SIZES.head(6), 1e15, TARGET, 3)
    assert found.after < found.before and len(found.runs) <= 3


# --- against a uniform grid --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [10, 11, 12])
@pytest.mark.parametrize("times", [3, 10])
def test_a_uniform_grid_is_predicted_to_need_twice_the_flops(seed, times):
    table = pilot(seed)
    found = plan_next(fit(LAW, table, starts=16).bootstrap(100), SIZES, times * table["C"].sum(), TARGET)
    assert 2 * found.flops <= found.uniform_flops < 20 * found.flops


def uniform_grid(flops: float, table: pd.DataFrame) -> pd.DataFrame:
    """4 sizes times 4 ratios, over the range that candidates have, from the smallest size up: `flops` together."""
    ratio = table["D"] / table["N"]

    def grid(top: float) -> pd.DataFrame:
        ratios = np.geomspace(ratio.min() / 2, 2 * ratio.max(), 4)
        n, r = (x.ravel() for x in np.meshgrid(np.geomspace(5e4, top, 4), ratios))
        return cost(pd.DataFrame({"N": n, "D": np.maximum(n * r, table["D"].min())}))

    tops = np.geomspace(1e5, 1e9, 1000)
    return grid(tops[np.argmin([abs(np.log(grid(top)["C"].sum() / flops)) for top in tops])])


def test_simulated_runs_of_the_design_tell_as_much_as_a_uniform_grid_of_twice_their_flops():
    ratios = []
    for seed in (10, 11, 12):
        table = pilot(seed)
        found = plan_next(fit(LAW, table, starts=16).bootstrap(100), SIZES, 3 * table["C"].sum(), TARGET)
        uniform = uniform_grid(2 * found.flops, table)
        assert uniform["C"].sum() == pytest.approx(2 * found.flops, rel=0.02)
        width = []
        for runs in (found.runs[["N", "D", "C"]], uniform):
            widths = []
            for repeat in range(10):
                rows = pd.concat([table, simulated(runs, 1000 + repeat)], ignore_index=True)
                interval = fit(LAW, rows, LeastSquares(), starts=2).predict(TARGET, 0.9, method="delta").iloc[0]
                widths.append(np.log(interval["high"] / interval["low"]))
            width.append(np.median(widths))
        ratios.append(width[1] / width[0])
    assert np.exp(np.log(ratios).mean()) >= 1.0, ratios


# --- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "most", "words"),
    [
        (0.0, 4, "budget=0 FLOPs and most=4 runs must be positive"),
        (-1e15, 4, "must be positive"),
        (float("nan"), 4, "budget=nan FLOPs"),
        (1e15, 0, "most=0 runs must be positive"),
        (1.0, 4, "budget=1 FLOPs pays for no run of any size.*the cheapest costs"),
    ],
)
def test_a_budget_that_pays_for_nothing_is_refused(fitted, budget, most, words):
    with pytest.raises(ValueError, match=words):
        plan_next(fitted, SIZES, budget, TARGET, most)


# --- from records to points --------------------------------------------------------------------------------------


def records() -> pd.DataFrame:
    """Runs of conf/model's 50k and 370k as `load_runs` gives them."""
    rows = []
    for name, fields in next_runs.named_models().items():
        if name in ("50k", "370k"):
            shape = Shape(**fields, vocab_size=1024)
            for seed in (0, 1):
                overrides = [
                    "experiment=quickstart",
                    f"model={name}",
                    "total_tokens=2e5",
                    f"seed={seed}",
                    "peak_lr=1e-2",
                ]
                rows.append({"N": shape.N, "flops_per_token": shape.flops_per_token(128), "overrides": overrides})
    return pd.DataFrame(rows).assign(vocab_size=1024, sequence_length=128)


def test_a_size_that_was_run_is_trained_again_by_its_overrides_without_its_own_length_and_seed():
    small, large = next_runs.shapes(records())
    assert small["overrides"] == ["experiment=quickstart", "model=50k", "peak_lr=1e-2"]
    assert small["N"] < large["N"] and large["overrides"][1] == "model=370k"
    assert {"vocab_size": 1024, "sequence_length": 128}.items() <= small.items()
    assert small["flops_per_token"] == records()["flops_per_token"].min()


@pytest.mark.parametrize("column", ["overrides", "flops_per_token", "vocab_size", "N"])
def test_tables_that_do_not_say_how_models_are_made_have_no_shapes(column):
    assert next_runs.shapes(records().drop(columns=column)) == []
    with pytest.raises(ValueError, match="this fit is of a table that does not say"):
        next_runs.sizes([])


def test_sizes_are_those_that_were_run_and_named_ones_up_to_ten_times_the_largest():
    found = next_runs.sizes(next_runs.shapes(records()))
    largest = max(records()["N"])
    assert found["N"].is_monotonic_increasing and set(records()["N"]) <= set(found["N"])
    assert min(records()["N"]) == found["N"].min() and found["N"].max() <= 10 * largest
    models = [next(text for text in overrides if text.startswith("model=")) for overrides in found["overrides"]]
    assert models == ["model=50k", "model=150k", "model=370k", "model=tiny", "model=1m"]
    assert all("peak_lr=1e-2" in overrides and "seed=0" not in overrides for overrides in found["overrides"])


def test_models_beyond_ten_times_the_largest_run_are_no_candidates():
    largest = next_runs.shapes(records())[-1] | {"N": 1e7}
    found = next_runs.sizes([largest])["N"]
    assert found.max() <= 1e8 < 2 * Shape(**next_runs.named_models()["85m"], vocab_size=1024).N
    assert len(found) == 1 + sum(
        1e7 <= Shape(**fields, vocab_size=1024).N <= 1e8 for fields in next_runs.named_models().values()
    )


def test_a_size_costs_what_its_shape_costs():
    found = next_runs.sizes(next_runs.shapes(records()), ["1m"])
    shape = Shape(**next_runs.named_models()["1m"], vocab_size=1024)
    assert found[["N", "flops_per_token"]].to_numpy().tolist() == [[shape.N, shape.flops_per_token(128)]]


def test_a_model_that_has_no_name_is_refused_with_those_that_have():
    with pytest.raises(ValueError, match=r"models=2m: no such model; there are .*150k, .*tiny"):
        next_runs.sizes(next_runs.shapes(records()), ["1m", "2m"])


def test_every_named_model_is_a_shape():
    named = next_runs.named_models()
    assert {"50k", "1m", "85m", "1.2b"} <= set(named) and "transformer" not in named
    for name, fields in named.items():
        assert Shape(**fields, vocab_size=1024).N > 0, name
    assert 0.8e6 < Shape(**named["1m"], vocab_size=1024).N < 1.2e6


def test_the_points_file_is_a_list_of_overrides_with_the_command_that_made_it():
    runs = pd.DataFrame({"N": [5e4, 1e6], "D": [1234567.0, 2e7], "C": [1e12, 2e14]})
    runs["overrides"] = [["model=50k"], ["model=1m", "peak_lr=${div:0.75,${model.d_model}}"]]
    text = next_runs.points_file(Design(runs, 0.1, 0.05, 1e16), "fulcrum plan-next budget=1e15")
    assert yaml.safe_load(text) == [
        ["model=50k", "total_tokens=1.235e+06"],
        ["model=1m", "peak_lr=${div:0.75,${model.d_model}}", "total_tokens=2e+07"],
    ]
    assert text.startswith("# 2 runs, 2.01e+14 FLOPs together, by: fulcrum plan-next budget=1e15\n")


def test_records_of_training_say_how_their_models_are_made(runs_folder):
    runs = load_runs(runs_folder)
    shapes = next_runs.shapes(runs)
    assert [shape["N"] for shape in shapes] == sorted(set(runs["N"]))
    assert all(shape["overrides"] == [] for shape in shapes)
