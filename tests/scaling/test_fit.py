import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from data.records import load_runs
from scaling import jets
from scaling.fit import Huber, fit
from scaling.keep import numbers
from scaling.laws import Chinchilla

PUBLISHED = Path(__file__).parents[3] / "shared" / "published" / "kyo_takano_chinchilla" / "df.csv"
LAW = Chinchilla()


def points(sizes=5, budgets=5, noise=0.0, seed=0, **truth) -> pd.DataFrame:
    p = {"E": 1.7, "A": 400.0, "alpha": 0.34, "B": 900.0, "beta": 0.3} | truth
    rng = np.random.default_rng(seed)
    n, d = (x.ravel() for x in np.meshgrid(np.geomspace(1e6, 1e9, sizes), np.geomspace(1e8, 1e11, budgets)))
    loss = LAW.predict(p, {"N": n, "D": d}) * np.exp(noise * rng.standard_normal(len(n)))
    return pd.DataFrame({"N": n, "D": d, "loss": loss})


@pytest.fixture(scope="module")
def published():
    if not PUBLISHED.exists():
        pytest.skip(f"needs the published table {PUBLISHED.name}, which is not part of the repository")
    return pd.read_csv(PUBLISHED)


def test_the_published_chinchilla_points_give_the_published_fit(published):
    found = fit(LAW, published)
    # 234 points of Hoffmann et al. 2022, Figure 4, as refitted from them by kyo-takano/chinchilla's table.
    assert found.params == pytest.approx(
        {"E": 1.7839, "A": 442.2, "alpha": 0.3426, "B": 1272, "beta": 0.3420}, rel=2e-4
    )
    assert found.objective == pytest.approx(8.40093e-4, rel=1e-5)
    assert found.agreement > 0.95
    assert len(found.minima) == 1 and found.converged and found.gradient_norm < 1e-5


def test_no_start_of_scipy_bfgs_with_exact_gradient_finds_a_better_objective(published):
    table = published.sample(80, random_state=1)
    found = fit(LAW, table, starts=32)
    n, d, y = (np.log(table[c].to_numpy()) for c in ("N", "D", "loss"))
    loss = Huber()

    def objective(x):
        a, alpha, b, beta, e = (v for v in jets.variables(x[None]))
        residual = jets.log(jets.exp(a - alpha * n) + jets.exp(b - beta * d) + jets.exp(e)) - y
        value, slope, _ = loss(residual.value)
        return 1e3 * value.sum(), 1e3 * np.array([(slope * residual.grad[i]).sum() for i in range(5)])

    options = {"maxiter": 5000, "maxfun": 20000, "ftol": 1e-15, "gtol": 1e-10}
    ends = [
        minimize(objective, [a, 0.5, b, 0.5, 0.5], jac=True, method="L-BFGS-B", options=options).fun / 1e3
        for a in (3, 8)
        for b in (3, 8)
    ]
    assert found.objective <= min(ends) * (1 + 1e-9)


@given(st.floats(0.5, 3.0), st.floats(0.15, 0.8), st.floats(0.15, 0.8), st.floats(0.05, 0.5), st.floats(0.05, 0.5))
@settings(max_examples=10, deadline=None)
def test_noise_free_points_give_back_the_law(e, alpha, beta, share_n, share_d):
    a, b = e * share_n * (3e7**alpha), e * share_d * (3e9**beta)
    truth = {"E": e, "A": a, "alpha": alpha, "B": b, "beta": beta}
    found = fit(LAW, points(**truth), starts=16)
    assert found.params == pytest.approx(truth, rel=1e-6)


def test_order_of_rows_and_run_names_do_not_matter():
    table = points(noise=0.02).assign(run_id=[f"r{k}" for k in range(25)])
    shuffled = table.sample(frac=1, random_state=5)
    shuffled["run_id"] = [f"q{k}" for k in range(25)]
    one, other = fit(LAW, table, starts=16).bootstrap(20), fit(LAW, shuffled, starts=16).bootstrap(20)
    assert one.params == other.params
    assert one.intervals() == other.intervals()
    assert one.rows.fingerprint == other.rows.fingerprint


@given(st.floats(1e-9, 1e9), st.floats(1e-9, 1e9), st.floats(1e-3, 1e3))
@settings(max_examples=8, deadline=None)
def test_units_change_the_coefficients_and_nothing_else(n, d, loss):
    table = points(noise=0.02)
    one = fit(LAW, table, starts=16)
    other = fit(LAW, table.assign(N=table["N"] * n, D=table["D"] * d, loss=table["loss"] * loss), starts=16)
    moved = LAW.rescale(one.params, {"N": n, "D": d, "loss": loss})
    assert other.params == pytest.approx(moved, rel=1e-5)
    assert other.objective == pytest.approx(one.objective, rel=1e-8)


def test_one_wild_run_moves_the_robust_fit_little():
    table = points(noise=0.002)
    table.loc[7, "loss"] *= 1.5
    assert fit(LAW, table, starts=32).params["alpha"] == pytest.approx(0.34, abs=0.03)
    assert abs(fit(LAW, table, loss=Huber(10.0), starts=32).params["alpha"] - 0.34) > 0.03


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    hits = 0
    for seed in range(25):
        low, high = fit(LAW, points(noise=0.02, seed=seed), starts=8).bootstrap(200).intervals(0.9)["alpha"]
        hits += low <= 0.34 <= high
    assert 17 <= hits <= 25  # 22.5 expected; percentile intervals of 25 points are somewhat narrow


def test_rows_of_one_run_are_drawn_together():
    table = points(noise=0.02)
    twice = pd.concat([table, table], ignore_index=True).assign(run_id=[f"r{k % 25}" for k in range(50)])
    alone, together = fit(LAW, table, starts=8).bootstrap(400), fit(LAW, twice, starts=8).bootstrap(400)
    width = lambda f: np.subtract(*f.intervals()["beta"][::-1])  # noqa: E731
    assert width(together) == pytest.approx(width(alone), rel=1e-3)


def test_held_out_runs_are_the_largest_and_are_predicted_from_the_others():
    table = points(noise=0.0)
    held = fit(LAW, table, starts=16).holdout(fraction=0.2)
    c = 6 * table["N"] * table["D"]
    assert len(held.table) >= 5 and held.above < c[held.table.index].min()
    assert held.worst < 1e-6
    table.loc[c.idxmax(), "loss"] *= 1.1
    held = fit(LAW, table, starts=16).holdout(fraction=0.04)
    assert held.table["error"].tolist() == pytest.approx([1 / 1.1 - 1], abs=1e-6)


def test_what_the_data_cannot_tell_is_said():
    few = fit(LAW, points(noise=0.03, sizes=3, budgets=2), starts=32).bootstrap(200)
    assert {"E", "B", "beta"} <= set(few.unidentified)  # two values of D give one difference for three parameters
    assert not fit(LAW, points(noise=0.001), starts=32).bootstrap(200).unidentified
    assert any("D takes 2 values" in w for w in few.warnings)
    line = points(noise=0.01)
    line = line[np.isclose(line["D"] / line["N"], 100)]
    line = pd.concat([line.assign(N=line["N"] * k, D=line["D"] * k) for k in (1, 1.5)])
    line["loss"] = LAW.predict({"E": 1.7, "A": 400.0, "alpha": 0.34, "B": 900.0, "beta": 0.3}, line)
    assert any("rise together" in w for w in fit(LAW, line, starts=32).warnings)


def test_a_term_without_effect_ends_at_a_bound_and_is_reported():
    flat = points(noise=0.0, A=1e-12)
    found = fit(LAW, flat, starts=32).bootstrap(50)
    assert {"A", "alpha"} & set(found.unidentified)


def test_prediction_intervals_hold_the_law_and_widen_beyond_the_data():
    found = fit(LAW, points(noise=0.02), starts=16).bootstrap(200)
    inside, beyond = (found.predict({"N": [n], "D": [d]}, interval=0.9).iloc[0] for n, d in ((3e7, 3e9), (1e12, 1e14)))
    assert inside["low"] < inside["loss"] < inside["high"]
    assert (beyond["high"] - beyond["low"]) / beyond["loss"] > 3 * (inside["high"] - inside["low"]) / inside["loss"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.head(4), "5 parameters .* 4 rows at 4 distinct settings"),
        (lambda t: pd.concat([t.head(4)] * 3), "12 rows at 4 distinct settings"),
        (lambda t: t.assign(N=1e6), "N is 1e.06 in all .* A and alpha"),
        (lambda t: t.assign(loss=-t["loss"]), "loss .* must be a positive number in every row; 25 of 25"),
        (lambda t: t.assign(D=t["D"].where(t.index != 3)), "D .*1 of 25 are not, the first is row 3"),
        (lambda t: t.drop(columns="N"), "no column 'N'.*columns.N=<column>"),
        (lambda t: t.assign(tokenizer_fingerprint=["a"] * 10 + ["b"] * 15), r"different tokenizers.*b \(15 runs\), a"),
        (lambda t: t.assign(heldout_fingerprint=["a"] * 10 + ["b"] * 15), "different held-out sets"),
        (lambda t: t.assign(status=["completed"] * 4 + ["failed"] * 21), "21 more did not complete"),
    ],
)
def test_bad_tables_are_refused_with_the_reason(change, words):
    with pytest.raises(ValueError, match=words):
        fit(LAW, change(points(noise=0.01)))


def test_bits_per_byte_compare_across_tokenizers():
    table = points().assign(tokenizer_fingerprint=["a"] * 10 + ["b"] * 15)
    table["eval_bits_per_byte"] = table["loss"] / 2
    assert fit(LAW, table, starts=8, columns={"loss": "eval_bits_per_byte"}).params["E"] == pytest.approx(
        0.85, rel=1e-6
    )


def test_runs_that_did_not_complete_are_left_out_and_counted():
    table = points(noise=0.01).assign(status="completed")
    table.loc[3, ["status", "loss"]] = ["diverged", np.nan]
    found = fit(LAW, table, starts=8)
    assert found.rows.excluded == {"diverged": 1} and len(found.rows.table) == 24
    assert any("1 diverged" in w for w in found.warnings)


def test_repeated_data_early_stops_and_copies_are_mentioned():
    table = points(noise=0.01)
    table = table.assign(unique_tokens=table["D"] / 2, stop_reason=["target"] + ["budget"] * 24)
    said = " ".join(fit(LAW, pd.concat([table, table.tail(1)]), starts=8).warnings)
    assert "more than once (up to 2.0 times)" in said and "1 runs stopped early" in said and "1 rows are exact" in said


def test_records_bring_their_own_convention(runs_folder):
    found = fit(LAW, load_runs(runs_folder), starts=16)
    assert found.rows.columns["loss"] == "eval_loss"
    assert "without embedding" in found.rows.convention["N"] and "exact" in found.rows.convention["C"]


def test_a_fit_survives_json():
    found = fit(LAW, points(noise=0.01), starts=8).bootstrap(20)
    back = json.loads(json.dumps(numbers(found)))
    assert back["params"] == found.params and back["interval"]["E"] == list(found.intervals()["E"])
    assert back["versions"]["numpy"] == np.__version__ and len(back["data_hash"]) == 16


def test_scaling_imports_without_torch():
    code = "import sys, scaling.commands, scaling.reports.write, scaling.allocate; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
