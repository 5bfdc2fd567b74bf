"""Critical batches from branches of one run, recovered from simulated records; their ramp and their section."""

import numpy as np
import pandas as pd
import pytest

from conf.points import expand
from scaling.branched import TOLERANCE, branched, largest_within, ramp, rule_name
from scaling.reports.cbs_branched import cbs_branched, overrides
from scaling.reports.records import Records, Settings

BASE, LENGTH, PLACES, TIMES = 4, 128, (5e4, 1e5, 2e5, 4e5), (1, 2, 4, 8, 16)


def true_critical(tokens):
    return 12 * (tokens / 1e5) ** 0.5


def simulated(noise=0.0, seeds=3, exponents=(0.5,), times=TIMES):
    """Parents and branches whose loss rises by the tolerance per factor of two, from half the true B* on."""
    draw, rows = np.random.default_rng(0), []
    common = {"sequence_length": LENGTH, "N": 5e4, "status": "completed", "ramp._target_": "ConstantBatch"}
    for seed in range(seeds):
        rows.append(common | {"run_id": f"p{seed}", "seed": seed, "ramp.batch_size": BASE, "peak_lr": 0.01,
                              "total_tokens": 5e5, "eval_loss": 3.5})  # fmt: skip
        for place in PLACES:
            for exponent in exponents:
                for k in times if exponent == exponents[0] else times[1:]:
                    over = max(0.0, np.log2(k * BASE / (true_critical(place) / 2)))
                    rows.append(common | {
                        "run_id": f"b{seed}-{place:g}-{k}-{exponent}", "parent": f"p{seed}", "parent.tokens": place,
                        "seed": seed, "ramp.batch_size": BASE * k, "peak_lr": 0.01 * k**exponent,
                        "total_tokens": place + 5e4, "eval_loss": 4 + 0.1 * seed + TOLERANCE * over
                        + noise * draw.standard_normal(), "eval_loss_average": 9.0,
                    })  # fmt: skip
    return pd.DataFrame(rows)


def test_the_largest_batch_within_the_tolerance_is_found_at_every_place():
    found = branched(simulated(), draws=50)
    for _, row in found.critical.iterrows():
        shift = max(0.0, np.log2(2 * BASE / true_critical(row["tokens"])))  # the run's own batch may cost something too
        assert row["critical"] == pytest.approx(true_critical(row["tokens"]) * 2**shift, rel=0.1)
    assert found.base == BASE and found.window == 5e4 and not found.notes


def test_its_growth_becomes_a_ramp_that_a_plan_can_follow(hydra_conf, tiny):
    found = branched(simulated(), draws=20)
    k, exponent, *_ = law = found.laws["rate with the root of the batch"]
    assert exponent == pytest.approx(0.5, abs=0.1)
    thresholds, batches = ramp(law, BASE, 5e4, 8e5)
    assert batches == [BASE * 2**i for i in range(len(batches))] and len(batches) == len(thresholds) + 1 > 2
    for at, batch in zip(thresholds, batches[1:], strict=True):
        assert batch <= k * at**exponent * 1.001
    text = overrides(thresholds, batches, found.powers["rate with the root of the batch"])
    own = [one for one in tiny if not one.startswith(("ramp.", "total_tokens"))]
    (point,) = expand([[*own, *text.split(), "total_tokens=800000", "schedule=constant"]])
    assert point.plan.at(thresholds[-1] + 50_000).batch_size == batches[-1]
    assert point.plan.at(thresholds[-1] + 50_000).lr == pytest.approx(point.plan.peak_lr * (batches[-1] / BASE) ** 0.5)


@pytest.mark.parametrize(("k", "exponent"), [(1e-3, 0.0), (1e-9, 0.5), (1.0, -0.3)])
def test_a_law_that_allows_no_larger_batch_makes_no_ramp(k, exponent):
    assert ramp((k, exponent, 0, 0), 4, 1e5, 1e6) == ([], [4])


def test_what_is_allowed_at_once_begins_at_the_first_place():
    thresholds, batches = ramp((40.0, 0.0, 0, 0), 4, 1e5, 1e6)
    assert thresholds == [100_000] and batches == [4, 32]


@pytest.mark.parametrize(
    ("differences", "expected"),
    [([0, 0.01, 0.03], (8 * 2**0.5, False)), ([0, 0.04, 0.08], (4 * 2**0.5, False)), ([0, 0.0, -0.1], (16, True)),
     ([0, 0.03, 0.01], (16, True))],
)  # fmt: skip
def test_between_batches_the_difference_is_linear_in_log_batch(differences, expected):
    star, beyond = largest_within(np.array([4, 8, 16.0]), np.array(differences), 0.02)
    assert (star, beyond) == (pytest.approx(expected[0]), expected[1])


def test_noise_gives_intervals_that_a_single_seed_has_not():
    noisy = branched(simulated(noise=0.005), draws=300).critical
    assert (noisy["low"] < noisy["critical"]).all() and (noisy["critical"] < noisy["high"]).all()
    assert branched(simulated(seeds=1), draws=20).critical[["low", "high"]].isna().all(axis=None)


def test_rules_of_the_rate_are_told_apart_and_share_the_control():
    found = branched(simulated(exponents=(0.5, 1.0)), draws=20)
    assert set(found.critical["rule"]) == {"rate with the root of the batch", "rate in proportion to the batch"}
    assert rule_name(0.0) == "rate unchanged" and "0.33" in rule_name(1 / 3)


def test_a_place_without_the_runs_own_batch_is_left_out_in_words():
    runs = simulated()
    lost = (runs["parent.tokens"] == 1e5) & (runs["ramp.batch_size"] == BASE)
    found = branched(runs[~lost], draws=20)
    assert 1e5 not in set(found.critical["tokens"]) and "12 branches have no completed branch" in found.notes[0]


def test_a_batch_that_diverged_is_too_large_and_never_the_largest_harmless_one():
    runs = simulated()
    runs.loc[runs["parent"].notna() & (runs["ramp.batch_size"] >= 32), "status"] = "diverged"
    found = branched(runs, draws=20)
    assert not found.critical["beyond"].any() and (found.critical["critical"] < 32).all()
    assert "24 branches diverged" in found.notes[0]
    assert "diverged" in str(cbs_branched(Records(runs, pd.DataFrame(), Settings(bootstrap=10))).blocks)


def test_runs_of_two_settings_are_not_averaged():
    other = simulated().assign(N=1.5e5, **{"model.d_model": 64})
    other[["run_id", "parent"]] = "q" + other[["run_id", "parent"]]
    with pytest.raises(ValueError, match=r"differ in model\.d_model"):
        branched(pd.concat([simulated().assign(**{"model.d_model": 32}), other]), draws=10)


def test_a_nearly_flat_law_does_not_overflow():
    assert ramp((8 / 1e5**0.0005, 0.0005, 0, 0), 4, 1e5, 1e6) == ([100_000], [4, 8])


@pytest.mark.parametrize(("change", "words"), [("parent", "no run is a branch"), ("status", "no branch has completed"),
                                               ("own", "at the run's own batch")])  # fmt: skip
def test_what_cannot_be_compared_is_refused_in_words(change, words):
    runs = simulated()
    if change == "parent":
        runs["parent"] = None
    if change == "status":
        runs["status"] = "failed"
    if change == "own":
        runs = runs[runs["parent"].isna() | (runs["ramp.batch_size"] != BASE)]
    with pytest.raises(ValueError, match=words):
        branched(runs, draws=10)


def test_the_section_gives_batches_ramp_and_noise_scale():
    curves = pd.DataFrame({"run_id": np.repeat(["p0", "p1", "p2"], 40), "tokens": np.tile(np.linspace(1e4, 5e5, 40), 3),
                           "noise_scale": 2000.0})  # fmt: skip
    part = cbs_branched(Records(simulated(noise=0.002), curves, Settings(bootstrap=100)))
    assert "root of the batch" in part.answers[0] and "tokens<sup>0." in part.answers[0]
    assert any("ramp=step ramp.thresholds_in_tokens=[" in answer for answer in part.answers)
    assert any("15.6 sequences" in answer for answer in part.answers)  # 2000 tokens of 128
    assert len(part.figures) == 2 and part.numbers["ramps"]


def test_the_section_without_branches_says_why():
    part = cbs_branched(Records(simulated().drop(columns=["parent"]), pd.DataFrame(), Settings(bootstrap=10)))
    assert "no run is a branch" in part.answers[0] and not part.figures
