"""Records with planted best rates: the section must find their drift, and say no more than the runs show."""

import json
import math

import numpy as np
import pandas as pd
import pytest

from data.records import load_runs
from scaling.reports.mup import mup
from scaling.reports.records import Records, Settings
from scaling.reports.write import write_report
from scaling.surface import AT_HIGHEST, BRACKETED
from scaling.transfer import MUP, STANDARD, transfer

WIDTHS, RATES, BEST = (32, 64, 128, 256), 2.0 ** np.arange(-9, -2), 2**-4.6
CURVATURE, NOISE = 0.05, 0.01
PLANTED = {STANDARD: -0.9, MUP: 0.0}


def planted_loss(width, rate, drift):
    """A parabola in log2(rate), whose lowest place moves by `drift` per doubling of the width."""
    steps = math.log2(width / WIDTHS[0])
    return 4.0 - 0.2 * steps + CURVATURE * (math.log2(rate / BEST) - drift * steps) ** 2


def table(planted=PLANTED, seeds=3, widths=WIDTHS, rates=RATES, noise=NOISE):
    draw, rows = np.random.default_rng(0), []
    for parametrization, drift in planted.items():
        for width in widths:
            for rate in rates:
                for seed in range(seeds):
                    loss = planted_loss(width, rate, drift) + noise * draw.standard_normal()
                    model = {"model.d_model": width, "model.n_heads": width // 16, "model.d_ff": 2 * width}
                    model["model.parametrization"] = None if parametrization == STANDARD else parametrization
                    row = {"run_id": f"r{len(rows)}", "N": 12 * width**2, "total_tokens": 10_000, "peak_lr": rate}
                    row |= model | {"seed": seed, "eval_loss": loss, "status": "completed", "stop_reason": "budget"}
                    row |= {"schedule._target_": "optim.schedules.Cosine", "ramp.batch_size": 4}
                    rows.append(row | {"ramp._target_": "optim.ramps.ConstantBatch", "optimizer.beta2": 0.99})
    return pd.DataFrame(rows)


def families(runs):
    return {one.parametrization: one for one in transfer(runs).families}


def section(runs):
    return mup(Records(runs, pd.DataFrame(), Settings()))


def test_planted_drifts_are_found_with_their_intervals():
    found = families(table())
    for name, planted in PLANTED.items():
        one = found[name]
        assert one.drift == pytest.approx(planted, abs=0.1)
        assert one.drift_low < planted < one.drift_high and one.drift_high - one.drift_low < 0.3
        assert one.bracketed and one.transfers == (name == MUP)
        for width, at in one.optima.items():
            best = BEST * 2 ** (planted * math.log2(width / 32))
            assert at.best["peak_lr"] == pytest.approx(best, rel=0.25)


def test_intervals_of_the_drift_cover_it_as_often_as_they_say():
    """Draws of different widths must not be the same draws: the interval would be too narrow."""
    covered = []
    for k in range(60):
        runs = table({MUP: 0.0}, seeds=1, noise=0.0)
        runs["eval_loss"] += 0.03 * np.random.default_rng(k).standard_normal(len(runs))
        one = families(runs)[MUP]
        covered.append(one.drift_low < 0 < one.drift_high)
    assert 0.8 < np.mean(covered) <= 1


def test_the_cost_of_the_narrow_rate_is_the_planted_one():
    found = families(table(noise=1e-6))
    assert found[STANDARD].cost[256].mean == pytest.approx(CURVATURE * (0.9 * 3) ** 2, rel=0.1)
    assert found[STANDARD].cost[32].mean == 0 and found[STANDARD].cost[32].count == 3
    assert abs(found[MUP].cost[256].mean) < 0.002


def test_the_page_says_what_stays_and_what_does_not():
    standard, cost, stays, free = section(table()).answers
    assert standard.startswith("<b>In the standard parametrization</b> the best peak rate changes by a factor of 0.5")
    assert standard.endswith("per doubling of the width, from 32 to 256: it does not stay.")
    assert "In the standard parametrization at width 256, the rate that is best at width 32 (0.0" in cost
    assert "costs +0.3" in cost and "3 seeds)" in cost
    assert stays.startswith("<b>Under muP</b>") and stays.endswith("no drift is seen beyond the interval.")
    assert free.startswith("Under muP at width 256, ")


def test_an_optimum_at_the_edge_is_no_answer():
    cut = table(rates=2.0 ** np.arange(-9.0, -5))  # the best rate lies above them
    one = families(cut)[MUP]
    assert {at.verdict["peak_lr"] for at in one.optima.values()} == {AT_HIGHEST} and one.transfers is None
    made = section(cut)
    assert (
        "the runs do not decide whether it stays, since they do not bracket it at width 32, 64, 128, 256"
        in " ".join(made.answers)
    )
    assert "muP, width 256: higher rates (at the highest tried)." in made.numbers["sharpen"]
    assert not any(constant.pinned for constant in made.constants if "muP" in constant.law)


def test_runs_that_diverged_are_counted_and_not_averaged():
    runs = table()
    high = (runs["peak_lr"] > BEST) & (runs["model.d_model"] == 256) & runs["model.parametrization"].isna()
    runs.loc[high, "status"] = "diverged"
    one = families(runs)[STANDARD]
    assert one.optima[256].diverged == high.sum() and one.optima[256].verdict["peak_lr"] == BRACKETED
    assert one.cost[256].count == 0  # the narrow model's rate lies between one that trained and one that diverged
    assert "is not known: no seed has losses on both sides of it" in section(runs).answers[1]


def test_runs_that_stopped_early_are_left_out_and_said():
    runs = table()
    runs.loc[0, "stop_reason"] = "hopeless"
    found = transfer(runs)
    assert len(found.results) == len(runs) - 1
    assert any(note.startswith("1 runs are left out") for note in found.notes)


def test_settings_are_never_mixed():
    runs = table()
    other = table(planted={MUP: 0.5}).assign(**{"optimizer.beta2": 0.95, "eval_loss": lambda x: x["eval_loss"] - 1})
    found = transfer(pd.concat([runs, other], ignore_index=True))
    drifts = {(one.parametrization, one.setting): one.drift for one in found.families}
    assert len(drifts) == 3 and any("optimizer.beta2" in note for note in found.notes)
    assert [drift for (_, setting), drift in drifts.items() if "0.95" in setting] == [pytest.approx(0.5, abs=0.1)]


def test_the_base_width_says_nothing_of_standard_runs():
    runs = table()
    runs["model.base_width"] = np.where(runs.index % 2, 32.0, np.nan)
    runs.loc[runs["model.parametrization"] == MUP, "model.base_width"] = 32.0
    assert len(transfer(runs).families) == 2


def test_the_order_of_the_rows_does_not_matter():
    runs = table()
    straight, shuffled = (section(rows) for rows in (runs, runs.sample(frac=1, random_state=1)))
    assert straight.numbers["families"] == shuffled.numbers["families"] and straight.answers == shuffled.answers


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda runs: runs[runs["model.d_model"] == 32], "no parametrization has completed runs at two widths"),
        (lambda runs: runs.drop(columns="model.d_model"), "how wide the models are"),
        (lambda runs: runs.assign(status="failed"), "no parametrization has completed runs at two widths"),
    ],
)
def test_without_widths_the_section_says_why(change, message):
    made = section(change(table()))
    assert message in made.answers[0] and made.numbers is None


def test_one_seed_gives_a_drift_and_no_interval_of_the_cost():
    made = section(table(seeds=1))
    assert "(1 seed: no interval)" in made.answers[1]
    assert made.numbers["families"][0]["widths"][-1]["cost_low"] is None


def test_the_report_has_the_section_its_figures_and_its_numbers(make_point, tmp_path):
    for parametrization, drift in PLANTED.items():
        for width in (32, 64):
            for rate in RATES[2:]:
                loss = planted_loss(width, float(rate), drift)
                config = {"seed": 0, "total_tokens": 1280, "sequence_length": 128, "peak_lr": float(rate)}
                config["schedule"] = {"_target_": "optim.schedules.Constant"}
                config["ramp"] = {"_target_": "optim.ramps.ConstantBatch", "batch_size": 10}
                config["model"] = {"d_model": width, "parametrization": None if parametrization == STANDARD else MUP}
                row = {"step": 1, "tokens": 1280, "batch_size": 10, "lr": 1.0, "loss": loss, "eval_loss": loss}
                make_point(tmp_path, config, [row], size=12 * width**2)
    assert load_runs(tmp_path)["model.d_model"].nunique() == 2
    report = write_report(tmp_path, sections=["mup"])
    assert "muP: best rate x" in report.line
    assert {path.stem for path in (tmp_path / "report/figures").glob("*.svg")} >= {"mup_rates", "mup_best_rate"}
    numbers = json.loads((tmp_path / "report/mup.json").read_text(), parse_constant=pytest.fail)
    assert [one["parametrization"] for one in numbers["families"]] == [STANDARD, MUP]
