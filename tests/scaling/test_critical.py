"""Critical batch sizes, recovered from simulated descents, and their section of a report."""

import re

import numpy as np
import pandas as pd
import pytest

from scaling.critical import OVERHEAD, Exponent, critical, hyperbola, power_law
from scaling.fit import LeastSquares, fit
from scaling.laws import StepsToTarget
from scaling.reports.cbs import _published, cbs
from scaling.reports.records import Records, Settings

LENGTH, SIZES, BATCHES = 128, (2e4, 5e4, 1.5e5), (2, 4, 8, 16, 32, 64, 128)
A_N, A_D = 0.1, 0.5


def critical_ratio(size, tokens):
    """b / a in tokens of the simulated runs, which is what B* - 1.2 B0 is a fifth of."""
    return 4000 * (size / 5e4) ** A_N * (tokens / 2e5) ** A_D


def simulated(seeds=3, noise=0.0, random=0, rates=(0.5, 1, 2), sizes=SIZES, batches=BATCHES, offset=5, stop=None):
    """Runs and curves: a batch of B needs D (1 + B / ratio(N, D)) tokens for what an infinitesimal one has after D; a
    rate a factor r off the best needs more. Noise (relative) of a run's tokens."""
    draw = np.random.default_rng(random)
    ideal = np.geomspace(1e4, 2e6, 400)
    runs, rows = [], []
    for size in sizes:
        losses = 2.5 + (size / 5e4) ** -0.2 * (ideal / 1e5) ** -0.3
        for batch in batches:
            for rate in rates:
                for seed in range(seeds):
                    run_id = f"r{size:g}-{batch}-{rate}-{seed}"
                    worse = 1 + 0.1 * np.log2(rate) ** 2
                    needed = ideal * (1 + batch * LENGTH / critical_ratio(size, ideal)) * worse
                    needed = needed * np.exp(noise * draw.standard_normal())
                    at = 3e4 * 1.2 ** np.arange(24)
                    loss = np.interp(np.log(at), np.log(needed), losses)
                    last = int((loss > stop).sum()) + 1 if stop else len(at)
                    at, loss = at[:last], loss[:last]
                    runs.append({
                        "run_id": run_id, "N": size, "ramp.batch_size": batch, "ramp._target_": "ConstantBatch",
                        "sequence_length": LENGTH, "peak_lr": 0.01 * rate * batch**0.3, "optimizer.beta2": 0.99,
                        "seed": seed, "status": "completed", "total_tokens": 2e6, "stop_when.loss": stop,
                    })  # fmt: skip
                    rows.append(pd.DataFrame({"run_id": run_id, "tokens": at, "eval_loss": loss + 0.05,
                                              "eval_loss_average": loss}))  # fmt: skip
    return pd.DataFrame(runs), pd.concat(rows, ignore_index=True)


def test_the_cells_are_those_that_the_runs_were_made_from():
    found = critical(*simulated(), draws=50)
    cells = found.cells[found.cells["D"].between(6e4, 4e5)]
    assert len(cells) > 10 and set(cells["N"]) == set(SIZES)
    for _, cell in cells.iterrows():
        smallest = cell["b"] + cell["a"] * cell["B0"]  # the tokens of the smallest batch are what names the target
        assert smallest == pytest.approx(cell["D"], rel=0.01)
        assert cell["b"] / cell["a"] == pytest.approx(critical_ratio(cell["N"], cell["b"]), rel=0.05)
        assert cell["critical"] == pytest.approx(OVERHEAD * cell["b"] / cell["a"] + (1 + OVERHEAD) * cell["B0"])
        assert cell["low"] == pytest.approx(cell["high"])  # seeds that agree leave nothing open


def test_growth_with_tokens_and_with_size_is_told_apart():
    """The 1.2 B0 that every cell has in common makes the exponents of B* a little smaller than those of b / a."""
    found = critical(*simulated(batches=(1, 2, 4, 8, 16, 32, 64)), draws=50)
    law, ratio = found.law, found.ratio_law
    assert ratio["a_D"].value == pytest.approx(A_D, abs=0.05) and ratio["a_N"].value == pytest.approx(A_N, abs=0.02)
    assert law["a_D"].value == pytest.approx(A_D, abs=0.12) and law["joint_D"].value == pytest.approx(A_D, abs=0.12)
    assert law["a_N"].value == pytest.approx(A_N, abs=0.05) and law["joint_N"].value == pytest.approx(A_N, abs=0.05)
    assert law["path"].value == pytest.approx(law["joint_N"].value + law["joint_D"].value)


def test_noise_widens_the_intervals_and_they_hold_the_truth():
    quiet, loud = (critical(*simulated(noise=noise, rates=(1,)), draws=400) for noise in (0.02, 0.08))
    width = [np.log(found.cells["high"] / found.cells["low"]).median() for found in (quiet, loud)]
    assert width[1] > 2.5 * width[0]
    exact = critical(*simulated(rates=(1,)), draws=2).cells.set_index(["N", "D"])["critical"]
    both = loud.cells.set_index(["N", "D"]).join(exact, rsuffix="_exact", how="inner")
    assert both["critical_exact"].between(both["low"], both["high"]).mean() > 0.6


def test_the_best_rate_is_chosen_at_every_batch_and_an_edge_is_named():
    steps = critical(*simulated(), draws=20).steps
    assert not steps["edge"].any() and (steps["rates"] == 3).all()
    lowest = critical(*simulated(rates=(1, 2, 4)), draws=20).steps
    assert lowest["edge"].all()


def test_a_single_seed_has_no_interval():
    found = critical(*simulated(seeds=1), draws=20)
    assert found.cells[["low", "high"]].isna().all(axis=None) and np.isnan(found.law["a_D"].low)


def test_runs_that_were_stopped_count_for_the_targets_that_they_passed():
    whole, stopped = critical(*simulated(), draws=20).cells, critical(*simulated(stop=3.2), draws=20).cells
    assert 0 < len(stopped) < len(whole)
    both = whole.merge(stopped, on=["N", "D"], suffixes=("", "_stopped"))
    assert len(both) == len(stopped)
    np.testing.assert_allclose(both["critical"], both["critical_stopped"], rtol=1e-9)


def test_one_b0_serves_all_sizes_and_a_missing_batch_changes_little():
    runs, curves = simulated(seeds=1)
    whole = critical(runs, curves, draws=5)
    lacking = ~((runs["N"] == max(SIZES)) & (runs["ramp.batch_size"] == min(BATCHES)))
    found = critical(runs[lacking], curves, draws=5)
    assert set(found.cells["B0"]) == {4 * LENGTH} and any("B0 for all" in note for note in found.notes)
    assert found.ratio_law["a_N"].value == pytest.approx(whole.ratio_law["a_N"].value, abs=0.01)


def test_targets_that_a_batch_did_not_reach_are_counted():
    runs, curves = simulated()
    short = runs[(runs["ramp.batch_size"] == max(BATCHES)) & (runs["seed"] == 0)]["run_id"]
    found = critical(runs, curves[~(curves["run_id"].isin(short) & (curves["tokens"] > 4e5))], draws=20)
    assert 0 < len(found.cells) < len(critical(runs, curves, draws=5).cells)
    assert sum("targets are left out" in note for note in found.notes) == len(SIZES)


def test_a_batch_with_one_seed_is_as_uncertain_as_the_others():
    runs, curves = simulated(noise=0.05, rates=(1,), sizes=(5e4,))
    several = critical(runs, curves, draws=400).cells
    one = critical(runs[(runs["ramp.batch_size"] == min(BATCHES)) | (runs["seed"] == 0)], curves, draws=400).cells
    widths = [np.log(cells["high"] / cells["low"]).median() for cells in (several, one)]
    assert widths[1] > widths[0]


def test_the_order_of_the_rows_does_not_matter():
    runs, curves = simulated(noise=0.05)
    mixed = critical(runs.sample(frac=1, random_state=1), curves.sort_values(["tokens", "run_id"]), draws=50)
    pd.testing.assert_frame_equal(critical(runs, curves, draws=50).cells, mixed.cells)


@pytest.mark.parametrize("change", ["few batches", "none ended", "settings", "no evaluations"])
def test_what_cannot_be_compared_is_refused_in_words(change):
    runs, curves = simulated(batches=(2, 4, 8)) if change == "few batches" else simulated()
    if change == "none ended":
        runs["status"] = "failed"
    if change == "settings":
        runs["optimizer.weight_decay"] = np.where(runs["seed"] == 0, 0.0, 0.1)
    if change == "no evaluations":
        curves[["eval_loss", "eval_loss_average"]] = np.nan
    words = {"few batches": "3 batch sizes; 4 are needed", "none ended": "no run has ended", "settings": "weight_decay",
             "no evaluations": "eval.every_tokens"}  # fmt: skip
    with pytest.raises(ValueError, match=words[change]):
        critical(runs, curves, draws=10)


def test_the_hyperbola_is_the_engines_fit():
    draw = np.random.default_rng(1)
    batches = np.array([2, 4, 8, 16, 64, 256.0])
    steps = (300 + 40000 / batches) * np.exp(0.1 * draw.standard_normal((5, 6)))
    a, b = hyperbola(batches, steps)
    for k in range(5):
        engine = fit(StepsToTarget(), pd.DataFrame({"B": batches, "steps": steps[k]}), LeastSquares(), starts=32)
        assert (a[k], b[k]) == (
            pytest.approx(engine.params["a"], rel=1e-5),
            pytest.approx(engine.params["b"], rel=1e-5),
        )


def test_a_cell_alone_has_no_exponents():
    cells = pd.DataFrame({"N": [1e5], "D": [1e6], "critical": [1e4]})
    assert power_law(cells, np.full((10, 1), 1e4)) == {}


# ---------------------------------------------------------------------------------------------------- the report

SETTINGS = Settings(bootstrap=200)


def text(html: str) -> str:
    return re.sub(r"<[^>]*>", "", html)


@pytest.fixture(scope="module")
def part():
    return cbs(Records(*simulated(noise=0.03), SETTINGS))


def test_the_answers_name_what_the_batch_grows_with(part):
    first = text(part.answers[0])
    law = part.numbers["ratio_law"]
    assert f"D{law['a_D']['value']:.2f}" in first and f"N{law['a_N']['value']:.2f}" in first
    assert "It grows with the tokens more than with the size." in first
    assert "189 runs" in part.answers[-1]


def test_each_size_has_its_largest_target_in_words(part):
    cells = {(c["N"], c["D"]): c for c in part.numbers["cells"]}
    for size in (2e4, 5e4, 1.5e5):
        hardest = cells[max(key for key in cells if key[0] == size)]
        assert hardest["low"] < hardest["critical"] < hardest["high"]
        assert any(f"{hardest['a']:.0f} steps" in answer for answer in part.answers)


def test_every_figure_states_its_data_and_the_law_its_intervals(part):
    assert all(len(drawn.data) == 189 for drawn in part.figures)
    assert "90 % intervals" in part.figures[1].law and part.line == part.figures[1].law
    assert {constant.name for constant in part.constants} >= {"a_D", "a_N", "path", "k"}


def test_stopped_runs_and_rates_at_an_end_are_counted():
    runs, curves = simulated(rates=(1, 2))
    runs["stop_reason"] = np.where(runs["seed"] == 0, "target", "hopeless")
    said = [text(answer) for answer in cbs(Records(runs, curves, SETTINGS)).answers]
    assert any("42 stopped at the target loss, 84 gave up" in answer for answer in said)
    assert any("the best rate is an end of those that were run" in answer for answer in said)


def test_runs_that_allow_no_cell_say_why():
    part = cbs(Records(*simulated(batches=(2, 4)), SETTINGS))
    assert "4 are needed" in part.answers[0] and not part.figures


def test_a_single_size_speaks_of_tokens_alone():
    part = cbs(Records(*simulated(sizes=(5e4,), noise=0.03), SETTINGS))
    assert text(part.answers[0]).startswith("At one size the batch that needs twice the data") and part.line == ""


def test_one_seed_decides_nothing():
    part = cbs(Records(*simulated(seeds=1), SETTINGS))
    assert "With one seed there is no telling" in part.answers[0]


def test_a_published_exponent_lies_inside_the_interval_or_outside_where_there_is_one():
    texts = [_published("a_D", Exponent(0.4, *ends)).text for ends in ((0.3, 0.5), (0.3, 0.45), (np.nan, np.nan))]
    assert ["inside" in one for one in texts] == [True, False, False]
    assert ["outside" in one for one in texts] == [False, True, False]
