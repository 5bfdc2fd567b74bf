"""Records with planted laws of rate, batch and weight decay: the section must find exactly those."""

import json

import numpy as np
import pandas as pd
import pytest

from scaling.hyperparameters import columns, find, law_of, predicted, prepared, rate_of
from scaling.laws import PowerLaw
from scaling.reports.hyperparameters import hyperparameters
from scaling.reports.records import Records, Settings

SEQUENCE = 128
CELLS = [(50e3, 2e5), (50e3, 4e5), (50e3, 8e5), (150e3, 4e5), (400e3, 4e5)]
RATE = {"k": 0.02, "a_N": -0.4, "a_D": 0.2}
BATCH = {"k": 0.5, "a_D": 0.55}  # in tokens
SLOPE = 0.5  # of the best rate over the batch, away from the best batch
TAU = {"k": 1.2, "a_TPP": -0.5}


def best_batch(tokens):
    return BATCH["k"] * tokens ** BATCH["a_D"]


def best_rate(size, tokens, batch):
    own = RATE["k"] * size ** RATE["a_N"] * tokens ** RATE["a_D"]
    return own * (batch / best_batch(tokens)) ** SLOPE


def run(number, size, tokens, batch, rate, loss, seed=0, **more):
    row = {"run_id": f"r{number:05d}", "status": "completed", "stop_reason": "budget", "N": size, "seed": seed}
    row |= {"total_tokens": tokens, "D": tokens, "C": 6 * size * tokens, "sequence_length": SEQUENCE, "eval_loss": loss}
    row |= {"peak_lr": rate, "ramp._target_": "optim.ramps.ConstantBatch", "ramp.batch_size": batch / SEQUENCE}
    row |= {"schedule._target_": "optim.schedules.Linear", "optimizer.weight_decay": 0.1, "optimizer.timescale": None}
    return row | more


def surface(noise=0.0, cells=CELLS, rng=None):
    rng = rng or np.random.default_rng(0)
    rows = []
    for size, tokens in cells:
        middle = 2.0 ** np.round(np.log2(best_batch(tokens)))
        for batch in middle * 2.0 ** np.arange(-2, 2):
            for rate in best_rate(5e4, 4e5, batch) * (size / 5e4) ** -0.4 * 2.0 ** np.arange(-2, 2.0):
                u = np.log2(rate / best_rate(size, tokens, batch))
                v = np.log2(batch / best_batch(tokens))
                loss = 3.5 + 0.03 * u**2 + 0.02 * v**2 + noise * rng.standard_normal()
                rows.append(run(len(rows), size, tokens, batch, rate, loss))
    return pd.DataFrame(rows)


def weight_decay(noise=0.0, seeds=3, rng=None):
    rng = rng or np.random.default_rng(1)
    rows = []
    for size, tokens in CELLS[:3]:
        best = TAU["k"] * (tokens / size) ** TAU["a_TPP"]
        for batch in (512, 2048):
            for tau in 0.05 * 2.0 ** np.arange(6):
                for seed in range(seeds):
                    loss = 3.5 + 0.004 * np.log2(tau / best) ** 2 + noise * rng.standard_normal()
                    decay = {"optimizer.weight_decay": None, "optimizer.timescale": tau}
                    rows.append(run(5000 + len(rows), size, tokens, batch, 0.02, loss, seed, **decay))
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def records():
    rng = np.random.default_rng(3)
    return pd.concat([surface(0.003, rng=rng), weight_decay(0.001, rng=rng)], ignore_index=True)


def section(runs):
    return hyperparameters(Records(runs, pd.DataFrame({"run_id": []}), Settings()))


def test_planted_laws_are_found_exactly_where_there_is_no_noise():
    (part,) = find(prepared(pd.concat([surface(), weight_decay()], ignore_index=True))[0]).values()
    laws = part.laws
    assert laws["best_rate"].params == pytest.approx(RATE, rel=1e-4)
    assert laws["best_batch"].params == pytest.approx(BATCH, rel=1e-4)
    assert laws["timescale"].params == pytest.approx(TAU, rel=1e-4)
    assert laws["rate"].params["a_B"] == pytest.approx(SLOPE, abs=1e-4)
    assert laws["rate"].params["a_D"] == pytest.approx(RATE["a_D"] - SLOPE * BATCH["a_D"], abs=1e-4)


def test_with_noise_the_intervals_hold_the_planted_exponents():
    truth = {"best_rate": RATE, "best_batch": BATCH, "timescale": TAU}
    held = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        runs = pd.concat([surface(0.004, rng=rng), weight_decay(0.002, rng=rng)], ignore_index=True)
        (part,) = find(prepared(runs)[0]).values()
        for name, law in part.laws.items():
            if name in truth and not isinstance(law, str):
                held += [low <= truth[name][key] <= high for key, (low, high) in law.intervals.items()]
    assert len(held) > 30 and np.mean(held) > 0.8


def test_the_section_says_what_was_planted_and_what_papers_say(records):
    made = section(records)
    said = " ".join(made.answers)
    assert "the loss is least at a peak rate of" in said and "the root of the batch would be 0.5, which these" in said
    assert "published 0.571" in said and "published -0.713" in said and "recalled" in said
    assert "does not depend on the batch as far as these runs tell" in said
    assert {drawn.name for drawn in made.figures} >= {"hyperparameters_surfaces", "hyperparameters_decay"}
    json.dumps(made.numbers, allow_nan=False)


def test_numbers_predict_as_the_law_does(records):
    (part,) = find(prepared(records)[0]).values()
    law = part.laws["best_rate"]
    value, low, high = predicted(law.numbers(), {"N": 1e6, "D": 1e7})
    assert value == pytest.approx(float(law.law.predict(law.params, {"N": 1e6, "D": 1e7})))
    near = predicted(law.numbers(), {"N": 50e3, "D": 4e5})
    assert low < value < high and high / low > near[2] / near[1]  # wider far from the runs


def test_weight_decay_and_its_timescale_are_two_names_of_one_setting():
    runs = weight_decay(0.001)
    batch = runs["ramp.batch_size"] * SEQUENCE
    decay = batch / (runs["peak_lr"] * runs["optimizer.timescale"] * runs["D"])  # tau = B / (lr lambda D)
    other = runs.assign(**{"optimizer.weight_decay": decay, "optimizer.timescale": None})
    one, same = (next(iter(find(prepared(table)[0]).values())).laws["timescale"].params for table in (runs, other))
    assert one == pytest.approx(same, rel=1e-6)


def test_one_run_at_another_unit_of_sequences_changes_no_law(records):
    halved = records.assign(sequence_length=64, **{"ramp.batch_size": 2 * records["ramp.batch_size"]})
    assert section(halved).answers == section(records).answers


def test_the_order_of_the_rows_does_not_matter(records):
    one, other = (section(runs) for runs in (records, records.sample(frac=1, random_state=2)))
    assert one.answers == other.answers


def test_a_batch_optimum_beyond_the_grid_is_told_and_enters_no_law():
    runs = surface(0.001)
    away = np.log2(runs["ramp.batch_size"] * SEQUENCE / best_batch(runs["total_tokens"]))
    made = section(runs.assign(eval_loss=runs["eval_loss"] - 0.02 * away**2 + 0.02 * (away + 5) ** 2))
    said = " ".join(made.answers)
    assert (
        "The best batch is bracketed at 0 of 5 pairs of N and D." in said
        and "lower ramp.batch_size at N = 50k, D = 200k" in said
    )
    assert "no law of the best batch at its own optimum: 0 of 5 best values lie inside their grids" in said


def test_diverged_and_stopped_runs_are_counted_and_do_not_move_the_optimum(records):
    bad = records.copy()
    high = bad["peak_lr"] == bad["peak_lr"].max()
    bad.loc[high, ["status", "eval_loss"]] = ["diverged", np.nan]
    stopped = bad.index[~high][0]
    bad.loc[stopped, "stop_reason"] = "target"
    runs, notes = prepared(bad)
    assert any("1 run not used" in note for note in notes) and len(runs) == len(bad) - 1
    assert runs["eval_loss"].isna().sum() == high.sum()


def test_muP_and_the_standard_parametrization_are_fitted_apart():
    both = []
    for kind, factor in ((None, 1.0), ("mup", 8.0)):
        runs = surface(0.002, cells=CELLS[:3])
        own = {"model.parametrization": kind, "model.base_width": 256 if kind else None, "model.d_model": 32}
        runs = runs.assign(peak_lr=runs["peak_lr"] / factor, run_id=runs["run_id"] + str(kind), **own)
        both.append(runs)
    parts = find(prepared(pd.concat(both, ignore_index=True))[0])
    assert len(parts) == 2 and any("muP, base width 256" in name for name in parts)
    standard, mup = (parts[name] for name in sorted(parts, key=lambda name: "muP" in name))
    for one, other in zip(standard.surfaces, mup.surfaces, strict=True):
        assert rate_of(one)[0] / rate_of(other)[0] == pytest.approx(8, rel=0.05)


def test_muP_at_its_base_width_is_the_standard_parametrization():
    runs = surface(cells=CELLS[:1]).assign(**{"model.d_model": 32})
    kind = np.where(np.arange(len(runs)) % 2, "mup", None)
    runs = runs.assign(**{"model.parametrization": kind, "model.base_width": np.where(kind == "mup", 32.0, np.nan)})
    assert len(find(prepared(runs)[0])) == 1


def test_too_few_bracketed_values_give_no_law_and_say_so():
    table = pd.DataFrame({"D": [1e5, 2e5], "lr": [0.1, 0.2], "error": [0.1, 0.1], "usable": [True, True]})
    with pytest.raises(ValueError, match=r"2 of 2 best values lie inside their grids, and .* needs 3: run more"):
        law_of(PowerLaw(x=("D",), y="lr"), table)
    with pytest.raises(ValueError, match=r"one D\. Run another"):
        law_of(PowerLaw(x=("D",), y="lr"), pd.concat([table.assign(D=1e5)] * 2))


def test_scatter_beyond_their_own_errors_widens_the_interval():
    d = np.array([1e5, 2e5, 4e5, 8e5])
    lr = 0.01 * (d / 1e5) ** -0.3 * np.exp([0.3, -0.3, -0.3, 0.3])
    table = pd.DataFrame({"D": d, "lr": lr, "error": 0.05, "usable": True})
    law = law_of(PowerLaw(x=("D",), y="lr"), table)
    low, high = law.intervals["a_D"]
    assert law.scatter > 3 and low < -0.3 < high and high - low > 0.5


@pytest.mark.parametrize("off", [0.0, 0.001])
def test_sizes_and_tokens_that_grow_together_have_one_exponent_between_them(off):
    size = np.array([5e4, 1e5, 2e5, 4e5, 8e5])
    tokens = 20 * size * (1 + off * np.array([1, -1, 0, 1, -1]))
    rate = 0.02 * size**-0.4 * tokens**0.1 * np.exp([0.02, -0.01, 0.0, -0.02, 0.01])
    table = pd.DataFrame({"N": size, "D": tokens, "B": 1024.0, "lr": rate, "error": 0.03, "usable": True})
    assert columns(table, ("N", "D", "B")) == (("D",), ("N",))
    law = law_of(PowerLaw(x=("D",), y="lr"), table)
    low, high = law.intervals["a_D"]
    assert low < -0.3 < high and high - low < 0.2 and law.ranges["TPP"] == pytest.approx((20, 20), rel=0.01)
    with pytest.raises(ValueError, match="N goes along with D in these runs"):
        law_of(PowerLaw(x=("N", "D"), y="lr"), table)
    apart = table.assign(D=tokens * [1, 2, 1, 1, 0.5])
    assert columns(apart, ("N", "D", "B")) == (("N", "D"), ())


def test_a_sweep_along_compute_optimal_tokens_says_that_it_knows_one_exponent_alone():
    made = section(surface(0.002, cells=[(size, 8 * size) for size in (25e3, 50e3, 100e3, 200e3, 400e3)]))
    said = " ".join(made.answers)
    assert "N goes along with D in these runs" in said and "published 0.307" not in said and "nan" not in said
    laws = made.numbers["settings"][""]["laws"]
    assert laws["best_rate"]["x"] == ["D"] and laws["best_rate"]["along"].startswith("N goes along with D")


def test_model_settings_that_leave_N_as_it_is_are_told_apart():
    """Two optima of tied and untied models are not one flat one between them."""
    both = [surface(0.001, CELLS[:1]).assign(**{"model.tied": tied, "model.d_model": 32}) for tied in (True, False)]
    both[1] = both[1].assign(peak_lr=2 * both[1]["peak_lr"], run_id=both[1]["run_id"] + "b")
    runs, notes = prepared(pd.concat(both, ignore_index=True))
    tied, untied = (find(runs)[f"model.tied = {value}"].surfaces[0] for value in ("true", "false"))
    assert rate_of(untied)[0] / rate_of(tied)[0] == pytest.approx(2, rel=0.1)
    assert any("differ in model.tied" in note for note in notes)


def test_shapes_that_N_tells_are_no_settings():
    runs = surface()
    shape = {"model.d_model": runs["N"] // 1000, "model.n_heads": runs["N"] // 9000, "model.base_head_dim": None}
    assert list(find(prepared(runs.assign(**shape))[0])) == [""]


def test_runs_that_allow_nothing_are_told_so(records):
    made = section(records[records["peak_lr"] == records["peak_lr"].iloc[0]].head(1))
    assert made.numbers is None and "no three rates" in made.answers[0]
    made = section(records.assign(status="failed"))
    assert made.numbers is None and "no run of a constant batch completed" in made.answers[0]
