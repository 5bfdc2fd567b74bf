"""Records with planted differences between ramps and the constant batch: the section must find exactly those."""

import json
import re

import numpy as np
import pandas as pd
import pytest

from data.records import load_curves, load_runs
from scaling.compare_ramps import compare, ranges
from scaling.naming import ramp_names
from scaling.reports.figures_optim import ramp_losses
from scaling.reports.records import Records, Settings
from scaling.reports.seesaw import seesaw
from scaling.reports.write import write_report

BUDGET, SEQUENCE, SEED_NOISE = 128 * 960, 128, 0.004
CONSTANT = {"_target_": "optim.ramps.ConstantBatch"}
SEESAW = {"_target_": "optim.ramps.Seesaw", "alpha": 2.0, "lr_cut": None, "batch_growth": None}
NAIVE = {"_target_": "optim.ramps.Seesaw", "alpha": 2.0, "lr_cut": 1.0, "batch_growth": 4.0, "allow_unstable": True}
PLANTED = {4: 0.0005, 8: 0.003, 16: 0.02, 32: 0.05}  # Seesaw minus constant: agreement ends between 8 and 16


def point(ramp, first, seed, loss, peak_lr=1e-3):
    """Configuration and rows of a run; ramps take the batch times 4 in the second half of the tokens."""
    config = {"seed": seed, "total_tokens": BUDGET, "sequence_length": SEQUENCE, "peak_lr": peak_lr}
    config |= {"schedule": {"_target_": "optim.schedules.Cosine", "final": 0.1}, "ramp": ramp | {"batch_size": first}}
    rows, tokens = [], 0
    while tokens < BUDGET:
        batch = first * 4 if ramp is not CONSTANT and 2 * tokens >= BUDGET else first
        tokens += batch * SEQUENCE
        row = {"step": len(rows) + 1, "tokens": tokens, "batch_size": batch, "lr": peak_lr}
        rows.append(row | {"loss": loss + 1 - tokens / BUDGET})
    rows[len(rows) // 2]["eval_loss"] = loss + 0.5
    rows[-1]["eval_loss"] = loss
    return config, rows


def write(
    folder, make_point, seeds=3, planted=PLANTED, ramps=(CONSTANT, SEESAW), status=lambda ramp, first, seed: None
):
    for first, difference in planted.items():
        for seed in range(seeds):
            for ramp in ramps:
                loss = 3.0 + 0.01 * np.log2(first) + SEED_NOISE * (seed - 1)
                if ramp is not CONSTANT:  # the spread of the paired difference is a tenth of the seeds'
                    loss += difference * (10 if ramp is NAIVE else 1) + 0.1 * SEED_NOISE * (seed - 1)
                config, rows = point(ramp, first, seed, float(loss))
                make_point(folder, config, rows, status(ramp, first, seed) or "completed")
    return folder


@pytest.fixture(scope="module")
def runs(make_point, tmp_path_factory):
    return load_runs(write(tmp_path_factory.mktemp("seesaw"), make_point))


@pytest.fixture(scope="module")
def curves(runs):
    return load_curves(str(runs["folder"].iloc[0]).rsplit("/", 2)[0])


def section(runs, curves):
    return seesaw(Records(runs, curves, Settings()))


def said(section):
    return " ".join([*section.answers, *section.blocks])


def test_planted_differences_spreads_and_steps_are_found(runs):
    rows = compare(runs).rows.set_index("B0")
    assert list(rows.index) == [4, 8, 16, 32] and (rows["pairs"] == 3).all()
    assert rows["difference"].to_numpy() == pytest.approx(list(PLANTED.values()), abs=1e-12)
    assert rows["difference_spread"].to_numpy() == pytest.approx(0.1 * SEED_NOISE)
    assert rows["difference_error"].to_numpy() == pytest.approx(0.1 * SEED_NOISE / 3**0.5)
    # the 0.975 quantile of Student's t with 2 degrees of freedom is 4.3027
    reach = (rows["difference_high"] - rows["difference"]).to_numpy()
    assert reach == pytest.approx(4.3027 * 0.1 * SEED_NOISE / 3**0.5, rel=1e-4)
    assert rows["baseline_spread"].to_numpy() == pytest.approx(SEED_NOISE)
    assert rows.loc[4, "baseline_steps"] == 240 and rows.loc[4, "steps"] == 120 + 30
    assert rows["steps_saved"].iloc[0] == pytest.approx(1 - 150 / 240)


def test_the_page_says_where_agreement_ends_and_no_more(runs, curves):
    (answer,) = section(runs, curves).answers
    assert "saves 37 to 38 % of the serial steps of Cosine" in answer
    said = "It ends at the loss of the constant batch within the seed spread at B0 = 4 and 8; from B0 = 16 on it ends "
    assert said + "higher (by 0.02 to 0.05 nats)." in answer, answer
    assert "critical" not in answer


def test_figures_name_their_runs_and_say_which_runs_would_decide_more(runs, curves):
    difference, losses, plan = section(runs, curves).figures
    assert difference.sharpen == "Seesaw from first batches between 8 and 16."
    assert sorted(difference.data) == sorted(losses.data) == sorted(runs["run_id"]) and len(plan.data) == 2
    few = section(runs[(runs["seed"] < 2) | (runs["ramp.batch_size"] != 4)], curves).figures[0]
    assert few.sharpen == "3 seeds at B0 = 4." and len(few.data) == len(runs) - 2


def test_a_ramp_that_ends_lower_is_told_from_one_that_ends_higher(make_point, tmp_path):
    folder = write(tmp_path, make_point, planted={4: -0.05, 8: 0.0005, 16: 0.05})
    made = section(load_runs(folder), load_curves(folder))
    (found,) = made.numbers["ranges"]
    assert [row["verdict"] for row in made.numbers["comparisons"]] == ["ends lower", "agrees", "ends higher"]
    assert (found["ends_lower"], found["agrees"], found["ends_higher"]) == ([4], [8], [16])
    assert (found["free_up_to"], found["ends_higher_from"]) == (8, 16)
    assert "at B0 = 16 it ends higher (by 0.05 nats)" in made.answers[0]
    lower = "At B0 = 4 it ends lower (by 0.05 nats): possibly the constant batch was not at its best there"
    assert lower in made.answers[0]


def test_a_difference_beyond_the_spread_with_zero_in_its_interval_is_undecided(runs):
    wide = runs.copy()
    ramp = (wide["ramp._target_"] == SEESAW["_target_"]) & (wide["ramp.batch_size"] == 4)
    wide.loc[ramp, "eval_loss"] += 0.02 * (wide["seed"] - 1) + 0.0145  # mean 0.015, its interval +-0.05
    row = compare(wide).rows.set_index("B0").loc[4]
    assert row["difference"] > row["baseline_spread"] and row["difference_low"] < 0 < row["difference_high"]
    assert row["verdict"] == "undecided"


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("heldout_fingerprint", ("aaaa", "bbbb")),
        ("eval.tokens", (1024, 2048)),
        ("data_fingerprint", ("cccc", "dddd")),
        ("tokenizer_fingerprint", ("eeee", "ffff")),
        ("optimizer.beta2", (0.95, 0.99)),
    ],
)
def test_losses_of_different_settings_are_never_paired_nor_mixed(runs, name, values):
    one, other = runs.assign(**{name: values[0]}), runs.assign(**{name: values[1]}, eval_loss=runs["eval_loss"] + 1)
    constant = runs["ramp._target_"] == CONSTANT["_target_"]
    with pytest.raises(ValueError, match=f"no ramp run has a constant-batch run.*{name}"):
        compare(pd.concat([one[constant], other[~constant]], ignore_index=True))
    both = compare(pd.concat([one, other], ignore_index=True))
    assert len(both.rows) == 2 * len(PLANTED) and both.rows["setting"].nunique() == 2
    assert sorted(both.rows["difference"]) == pytest.approx(sorted([*PLANTED.values()] * 2), abs=1e-12)
    assert f"The runs differ in {name} ({values[0]}, {values[1]})" in both.notes[0]


def test_a_setting_is_labelled_by_what_was_chosen_and_the_note_has_all_of_it(runs):
    one = runs.assign(**{"eval.tokens": 1024, "optimizer.beta1": 0.8, "optimizer._target_": "optim.adamw.AdamW"})
    other = runs.assign(**{"eval.tokens": 2048, "optimizer.beta1": 0.9, "optimizer._target_": "optim.lion.Lion"})
    found = compare(pd.concat([one, other], ignore_index=True))
    assert set(found.rows["setting"]) == {"optimizer = AdamW", "optimizer = Lion"}
    assert "optimizer._target_ (AdamW, Lion), optimizer.beta1 (0.8, 0.9), eval.tokens (1024, 2048)" in found.notes[0]


def test_what_follows_the_first_batch_makes_no_other_setting(runs):
    found = compare(runs.assign(**{"optimizer.beta2": 1 - runs["ramp.batch_size"] / 1000}))
    assert set(found.rows["setting"]) == {""} and not found.notes


def test_held_out_losses_are_the_curves_where_they_are_measured_often(runs, curves):
    named = runs.assign(ramp=ramp_names(runs), B0=runs["ramp.batch_size"], counts=True)
    seldom = json.dumps(ramp_losses(named, curves))
    assert "held-out" not in seldom
    often = curves.assign(eval_loss=(curves["loss"] + 7).where(curves.groupby("run_id").cumcount() % 4 == 0))
    drawn = ramp_losses(named, often)
    assert "held-out loss (nats per token)" in json.dumps(drawn)
    assert min(row["loss"] for data in drawn["datasets"].values() for row in data) > 7  # no training loss


def test_a_small_difference_that_is_no_accident_is_not_hidden(runs, curves):
    (answer,) = section(runs, curves).answers
    assert "Within the spread, yet not zero by its interval: B0 = 8: +0.0030" in answer
    assert "B0 = 4: +0.0005" not in answer  # its interval has zero in it


def test_the_order_of_the_rows_does_not_matter(runs, curves):
    straight, shuffled = (section(table, curves) for table in (runs, runs.sample(frac=1, random_state=3)))
    assert straight.numbers == shuffled.numbers and straight.answers == shuffled.answers


def test_runs_that_differ_in_something_else_are_no_pair(runs):
    other = runs.copy()
    other.loc[(other["ramp.batch_size"] == 4) & (other["ramp._target_"] == CONSTANT["_target_"]), "peak_lr"] = 2e-3
    found = compare(other)
    assert sorted(found.rows["B0"]) == [8, 16, 32]
    assert any("Seesaw at B0 = 4" in note and "has no baseline" in note for note in found.notes)


def test_without_any_baseline_the_section_says_why(runs, curves):
    alone = section(runs[runs["ramp._target_"] != CONSTANT["_target_"]], curves)
    assert alone.numbers is None and "no run has a constant batch" in said(alone)
    alone = section(runs[runs["ramp._target_"] == CONSTANT["_target_"]], curves)
    assert alone.numbers is None and "no ramp to compare" in said(alone)


def test_one_seed_gives_a_difference_but_no_spread_and_no_verdict(runs, curves):
    one = section(runs[runs["seed"] == 0], curves)
    rows = one.numbers["comparisons"]
    assert {row["verdict"] for row in rows} == {"too few seeds"}
    assert all(row["difference_spread"] is None and row["baseline_spread"] is None for row in rows)
    assert rows[2]["difference"] == pytest.approx(0.02 - 0.1 * SEED_NOISE)
    assert "is not decided: that takes 3 seeds" in one.answers[0] and "no spread" in one.answers[0]


def test_diverged_runs_are_listed_and_never_averaged(make_point, tmp_path):
    def status(ramp, first, seed):
        return "diverged" if ramp is NAIVE and (first == 8 or seed == 0) else None

    planted = {4: 0.0, 8: 0.0}
    folder = write(tmp_path, make_point, planted=planted, ramps=(CONSTANT, SEESAW, NAIVE), status=status)
    made = section(load_runs(folder), load_curves(folder))
    rows = {(row["ramp"], row["B0"]): row for row in made.numbers["comparisons"]}
    partly, wholly = rows["naive ramp (batch x4)", 4], rows["naive ramp (batch x4)", 8]
    assert partly["verdict"] == wholly["verdict"] == "diverged" and (partly["pairs"], wholly["pairs"]) == (2, 0)
    assert partly["difference"] == pytest.approx(0.05 * SEED_NOISE) and wholly["difference"] is None
    assert rows["Seesaw", 4]["verdict"] == rows["Seesaw", 8]["verdict"] == "agrees"
    naive = made.answers[1]
    assert (
        "From B0 = 4 on it diverges." in naive and "1 of 3 runs diverged" in naive and "3 of 3 runs diverged" in naive
    )
    assert "3 runs of naive ramp (batch x4) at B0 = 8 (seed 0, 1, 2) not averaged: diverged." in said(made)


def test_of_several_peak_rates_the_best_of_the_constant_batch_is_shown(make_point, tmp_path):
    for seed in range(3):
        for ramp in (CONSTANT, SEESAW):
            for peak_lr, loss in ((1e-3, 3.0), (2e-3, 2.9)):
                gain = 0.2 if ramp is SEESAW and peak_lr == 1e-3 else 0.0  # Seesaw is best at the other rate
                make_point(tmp_path, *point(ramp, 8, seed, loss + 0.001 * seed - gain, peak_lr))
    found = compare(load_runs(tmp_path))
    assert found.rows["peak_lr"].tolist() == [2e-3] and "0.001, 0.002" in found.notes[-1]
    assert found.rows["difference"].iloc[0] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("verdicts", "up_to", "from_"),
    [
        (["agrees", "agrees"], 4, None),
        (["ends higher", "diverged"], None, 2),
        (["agrees", "ends higher", "agrees", "diverged"], 2, 16),
        (["ends higher", "agrees"], None, None),
        (["agrees", "too few seeds", "ends higher"], 2, 8),
        (["ends lower", "agrees", "undecided", "ends higher"], 4, 16),
        (["ends higher", "ends lower"], None, None),
    ],
)
def test_ranges_say_no_more_than_the_verdicts(runs, verdicts, up_to, from_):
    rows = compare(runs).rows.iloc[: len(verdicts)].assign(verdict=verdicts, B0=2.0 ** np.arange(1, len(verdicts) + 1))
    (found,) = ranges(rows.sample(frac=1, random_state=0))
    assert (found.free_up_to, found.higher_from) == (up_to, from_)


def test_ramps_have_names_that_tell_them_apart(runs):
    one = runs[runs["ramp.batch_size"] == 4].iloc[:4].copy()
    one["ramp._target_"] = SEESAW["_target_"]
    one["ramp.alpha"] = [2.0, 1.1, 2.0, 2.0]
    one["ramp.lr_cut"] = [None, None, 1.0, 1.25]
    one["ramp.batch_growth"] = [None, None, 4.0, None]
    assert list(ramp_names(one)) == [
        "Seesaw, alpha 2", "Seesaw, alpha 1.1", "naive ramp (batch x4)", "ramp (rate /1.25, batch x2.56)"
    ]  # fmt: skip


def test_the_report_has_the_sections_their_figures_and_their_numbers(make_point, tmp_path):
    planted = {4: 0.0, 8: 0.05}
    folder = write(tmp_path, make_point, seeds=2, planted=planted)  # two seeds: no intervals
    (tmp_path / "report").mkdir()
    (tmp_path / "report/fit.json").write_text("{}")  # of an earlier report
    report = write_report(folder, sections=["seesaw", "schedules"], command="fulcrum report")
    text = report.path.read_text()
    assert "serial steps" in text and "Learning-rate schedules" in text and "coloured by ramp" in text
    drawn = {path.stem for path in (tmp_path / "report/figures").glob("*.svg")}
    assert drawn >= {"curves", "seesaw_difference", "seesaw_loss", "seesaw_plan", "schedules_rank"}
    charts = re.findall(r'data-chart="(\w+)">(.*?)</script>', text)
    assert {name for name, _ in charts} == drawn  # a browser reads them as JSON, which has no NaN
    assert all(json.loads(chart, parse_constant=pytest.fail) for _, chart in charts)
    numbers = json.loads((tmp_path / "report/seesaw.json").read_text(), parse_constant=pytest.fail)
    assert numbers["command"] == "fulcrum report" and numbers["ranges"][0]["too_few_seeds"] == [4, 8]
    ranked = json.loads((tmp_path / "report/schedules.json").read_text())["schedules"]
    assert {row["schedule"] for row in ranked} >= {"Cosine, B0 = 4", "Cosine, Seesaw, B0 = 8"}
    assert not (tmp_path / "report/fit.json").exists()
