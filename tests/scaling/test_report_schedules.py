"""Records with a planted ranking of schedules: the section must find it, its spreads, its averages and its edges."""

import numpy as np
import pandas as pd
import pytest

from data.records import load_curves, load_runs
from scaling.compare_schedules import rank
from scaling.naming import schedule_names
from scaling.reports.records import Records, Settings
from scaling.reports.schedules import schedules

SEQUENCE, BATCH = 128, 8
BUDGETS = [SEQUENCE * BATCH * steps for steps in (10, 20, 40)]
RATES, NOISE = (1e-3, 2e-3, 4e-3), 0.002
OF = "optim.schedules."
# Schedule -> planted loss above the best at its best rate. Cosine's seeds differ from the others' by more than its own.
EXCESS = {"Linear": 0.0, "Cosine": 0.001, "WSD": 0.01, "Constant": 0.1}
CONFIG = {name: {"_target_": OF + name} for name in EXCESS} | {"WSD": {"_target_": OF + "WSD", "shape": "1-sqrt"}}
WSDS = {"_target_": OF + "WSDS", "budgets": [BUDGETS[0] + 100, BUDGETS[1]], "shape": "linear"}  # not whole sequences


def best_loss(budget):
    return 3.0 - 0.1 * np.log2(budget / BUDGETS[0])


def point(schedule, budget, peak_lr, seed, losses):
    """Configuration and rows of a run; `losses`: tokens -> held-out values logged there."""
    config = {"seed": seed, "total_tokens": budget, "sequence_length": SEQUENCE, "peak_lr": peak_lr}
    config |= {"schedule": schedule, "ramp": {"_target_": "optim.ramps.ConstantBatch", "batch_size": BATCH}}
    rows = []
    for step in range(1, budget // SEQUENCE // BATCH + 1):
        tokens = step * SEQUENCE * BATCH
        row = {"step": step, "tokens": tokens, "batch_size": BATCH, "lr": peak_lr, "loss": 4 - tokens / BUDGETS[-1]}
        rows.append(row | losses.get(tokens, {}))
    return config, rows


def final(name, budget, peak_lr, seed):
    """The planted final loss: best at the middle rate; seeds differ by NOISE, those of Cosine also by half of it."""
    noise = NOISE * (seed - 1) + (NOISE / 2 * (1, -2, 1)[seed] if name == "Cosine" else 0)
    return best_loss(budget) + EXCESS[name] + 0.03 * np.log2(peak_lr / 2e-3) ** 2 + noise


def write(folder, make_point, seeds=3, rates=RATES, budgets=BUDGETS):
    for name, schedule in CONFIG.items():
        for budget in budgets:
            for peak_lr in rates:
                for seed in range(seeds):
                    loss = float(final(name, budget, peak_lr, seed))
                    gain = 0.07 if name == "Constant" else -0.02  # averages help the schedule that does not decay
                    values = {"eval_loss": loss, "eval_loss_short": loss - gain, "eval_loss_long": loss - gain + 0.01}
                    make_point(folder, *point(schedule, budget, peak_lr, seed, {budget: values}))
    return folder


def read(folder):
    return load_runs(folder), load_curves(folder)


@pytest.fixture(scope="module")
def records(make_point, tmp_path_factory):
    return read(write(tmp_path_factory.mktemp("schedules"), make_point))


def section(runs, curves):
    return schedules(Records(runs, curves, Settings()))


def test_the_planted_ranking_is_found_at_the_planted_rate(records):
    found = rank(*records)
    for _, at in found.rows.groupby("total_tokens"):
        assert list(at["schedule"]) == ["Linear", "Cosine", "WSD 1-sqrt", "Constant"]
        assert at["excess"].to_numpy() == pytest.approx(list(EXCESS.values()), abs=1e-12)
    assert (found.rows["peak_lr"] == 2e-3).all() and found.rows["edge"].isna().all()
    assert found.rows.loc[found.rows["schedule"] != "Cosine", "spread"].to_numpy() == pytest.approx(NOISE)
    assert list(found.overall["schedule"]) == ["Linear", "Cosine", "WSD 1-sqrt", "Constant"]
    assert found.overall["excess"].to_numpy() == pytest.approx(list(EXCESS.values()), abs=1e-12)


def test_what_the_seeds_do_not_tell_apart_is_said(records):
    answer = section(*records).answers[0]
    assert "<b>Linear</b> ends lowest of 4: 3.0000 (seed spread 0.0020, 3 seeds)" in answer
    assert "Not told apart from it by the seeds: Cosine (+0.0010)." in answer
    assert "The nearest that is told apart is WSD 1-sqrt, 0.0100 above it" in answer
    assert "The best is the lowest of several means" in " ".join(section(*records).blocks)


def test_two_seeds_tell_nothing_apart(records):
    runs, curves = records
    made = section(runs[runs["seed"] < 2], curves)
    assert {row["told_apart"] for row in made.numbers["schedules"]} == {None}
    assert "with fewer than 3 seeds nothing is told apart" in made.answers[0]


def test_a_verdict_is_that_of_the_interval_of_the_paired_excess(records):
    runs, curves = records
    at = (runs["schedule._target_"] == OF + "Linear") | (runs["schedule._target_"] == OF + "WSD")
    loud = runs.assign(eval_loss=runs["eval_loss"] + at * 0.05 * (runs["seed"] - 1))  # common to both, so it cancels
    first = rank(loud, curves).rows
    first = first[first["total_tokens"] == BUDGETS[0]].set_index("schedule")
    assert first.loc["WSD 1-sqrt", "excess"] < first.loc["WSD 1-sqrt", "spread"]
    assert first["told_apart"].to_dict() == {"Linear": None, "Cosine": False, "WSD 1-sqrt": True, "Constant": False}


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("optimizer.beta2", (0.95, 0.99)),
        ("heldout_fingerprint", ("aaaa", "bbbb")),
        ("data_fingerprint", ("cccc", "dddd")),
        ("tokenizer_fingerprint", ("eeee", "ffff")),
        ("eval.tokens", (1024, 2048)),
        ("sequence_length", (128, 256)),
        ("model.qk_norm", (False, True)),
        ("data.heldout", (0.05, 0.1)),
    ],
)
def test_runs_of_another_setting_are_ranked_apart(records, name, values):
    runs, curves = records
    alone = rank(runs, curves).rows
    one, other = runs.assign(**{name: values[0]}), runs.assign(**{name: values[1]}, eval_loss=runs["eval_loss"] + 1)
    found = rank(pd.concat([one, other], ignore_index=True), curves)
    shown = [str(value).lower() for value in values]
    assert set(found.rows["setting"]) == {f"{name} = {value}" for value in shown}
    for value, more in zip(shown, (0, 1), strict=True):
        rows = found.rows[found.rows["setting"] == f"{name} = {value}"]
        assert list(rows["schedule"]) == list(alone["schedule"]) and list(rows["rank"]) == list(alone["rank"])
        assert rows["loss"].to_numpy() == pytest.approx(alone["loss"].to_numpy() + more)
        assert (rows["seeds"] == 3).all()
    assert f"The runs differ in {name} ({shown[0]}, {shown[1]})" in found.notes[0]
    made = section(pd.concat([one, other], ignore_index=True), curves)
    assert len(made.answers[0].split("ends lowest")) == 2 and f"{name} = {shown[0]}" in made.answers[0]


def test_what_follows_the_budget_is_no_setting_and_another_share_of_it_is(records):
    runs, curves = records
    tenth = runs.assign(warmup_tokens=(runs["total_tokens"] / 10).round())
    assert set(rank(tenth, curves).rows["setting"]) == {""}
    fifth = tenth.assign(warmup_tokens=tenth["total_tokens"] / 5)
    both = rank(pd.concat([tenth, fifth], ignore_index=True), curves)
    assert set(both.rows["setting"]) == {f"warmup_tokens = {share} of the budget" for share in (0.1, 0.2)}
    assert len(both.overall) == 4  # at every budget of both


def test_how_a_run_is_evaluated_launched_and_averaged_is_no_setting(records):
    runs, curves = records
    wsd = runs["schedule._target_"] == OF + "WSD"
    other = {"eval.every_tokens": 1e3, "launch.devices": 2, "vars.share": 0.5, "averages.short.kind": "ema"}
    found = rank(runs.assign(**{name: np.where(wsd, value, None) for name, value in other.items()}), curves)
    assert set(found.rows["setting"]) == {""} and not found.notes
    assert found.rows.groupby("total_tokens")["schedule"].nunique().tolist() == [4, 4, 4]


def test_schedules_of_different_batches_are_named_apart(records):
    runs, curves = records
    cosine = runs["schedule._target_"] == OF + "Cosine"
    batches = runs["ramp.batch_size"].where(~cosine, 2 * BATCH)
    named = set(rank(runs.assign(**{"ramp.batch_size": batches}), curves).rows["schedule"])
    assert {"Cosine, B0 = 16", "Linear, B0 = 8"} <= named


def test_the_order_of_the_rows_does_not_matter(records):
    runs, curves = records
    straight, shuffled = section(runs, curves), section(runs.sample(frac=1, random_state=5), curves)
    assert straight.numbers == shuffled.numbers and straight.answers == shuffled.answers


def test_an_average_is_shown_where_it_is_lower_and_as_the_best_of_several(records):
    rows = rank(*records).rows
    constant = rows[rows["schedule"] == "Constant"]
    assert (constant["average"] == "short").all() and (constant["average_candidates"] == 2 * len(RATES)).all()
    assert (constant["loss"] - constant["average_loss"]).to_numpy() == pytest.approx(0.07)
    assert rows.loc[rows["schedule"] != "Constant", "average"].isna().all()
    made = section(*records)
    assert any("In 3 of 12 cases an average of the weights ends below" in answer for answer in made.answers)
    assert "chosen on the same held-out set" in " ".join(made.blocks)


def test_an_average_below_every_last_iterate_is_among_the_answers(records):
    runs, curves = records
    runs = runs.assign(eval_loss_long=runs["eval_loss"] - 0.5 * (runs["schedule._target_"] == OF + "Cosine"))
    assert "an average of weights: 2.5010, long of Cosine (the best of 6)" in section(runs, curves).answers[0]
    assert "Lower than any last iterate" not in section(*records).answers[0]


def test_without_averages_nothing_is_said_of_them(records):
    runs, curves = records
    made = section(runs.drop(columns=["eval_loss_short", "eval_loss_long"]), curves)
    assert "average of the weights" not in " ".join([*made.answers, *made.blocks])
    assert {row["average"] for row in made.numbers["schedules"]} == {None}


def test_a_best_rate_at_the_end_of_the_grid_is_said(records):
    runs, curves = records
    made = section(runs[runs["peak_lr"] <= 2e-3], curves)
    assert {row["edge"] for row in made.numbers["schedules"]} == {"highest"}
    assert any("12 of 12 cases the best peak rate lies at an end" in answer for answer in made.answers)
    diverged = runs.assign(status=np.where(runs["peak_lr"] > 2e-3, "diverged", runs["status"]))
    made = section(diverged, curves)  # a rate above it was tried: the best is inside the grid
    assert {row["edge"] for row in made.numbers["schedules"]} == {None}
    assert {row["peak_lr"] for row in made.numbers["schedules"]} == {2e-3}
    assert "3 runs of Constant at 20k tokens (peak rate 0.004) not averaged: diverged." in " ".join(made.blocks)
    assert "higher peak rates for" not in made.figures[0].sharpen


def test_figures_name_their_runs_and_say_which_runs_would_decide_more(records):
    runs, curves = records
    ranks, losses = section(runs, curves).figures
    assert ranks.sharpen == "more seeds of the best and of Cosine, which they do not tell apart."
    best = runs[runs["peak_lr"] == 2e-3]
    assert sorted(set(ranks.data)) == sorted(best["run_id"])
    assert set(losses.data) == set(best.loc[best["total_tokens"] == BUDGETS[-1], "run_id"])
    ends = section(runs[runs["peak_lr"] <= 2e-3], curves).figures[0].sharpen
    assert ends.startswith("higher peak rates for Constant, Cosine, Linear, WSD 1-sqrt; more seeds of")


def test_rates_with_fewer_seeds_are_not_chosen(records):
    runs, curves = records
    lucky = (runs["peak_lr"] == 4e-3) & (runs["seed"] == 0)
    partial = runs[(runs["peak_lr"] < 4e-3) | lucky].copy()
    partial.loc[lucky, "eval_loss"] = 1.0  # far better, on one seed
    rows = rank(partial, curves).rows
    assert (rows["peak_lr"] == 2e-3).all() and (rows["seeds"] == 3).all()


def test_one_seed_has_no_spread_and_tells_nothing_apart(records):
    runs, curves = records
    made = section(runs[runs["seed"] == 0], curves)
    assert all(row["spread"] is None and row["told_apart"] is None for row in made.numbers["schedules"])
    assert "one seed: no spread" in made.answers[0] and "nothing is told apart" in made.answers[0]


def test_wsd_s_is_read_off_its_one_run_at_every_budget(make_point, tmp_path):
    write(tmp_path, make_point, seeds=2)
    planted = {budget: best_loss(budget) + 0.005 * (k + 1) for k, budget in enumerate(BUDGETS)}
    for peak_lr in RATES:
        for seed in range(2):
            worse = 0.03 * np.log2(peak_lr / 2e-3) ** 2
            # at the first budget another rate is best: one run has one rate all the same
            at = {b: loss + worse - (0.2 if b == BUDGETS[0] and peak_lr == 4e-3 else 0) for b, loss in planted.items()}
            losses = {b: {"eval_loss": float(loss), "eval_loss_short": float(loss) + 1} for b, loss in at.items()}
            make_point(tmp_path, *point(WSDS, BUDGETS[-1], peak_lr, seed, losses))
    runs, curves = read(tmp_path)
    runs = runs.assign(warmup_tokens=runs["total_tokens"] / 10)  # a share of the budget, as of the others
    single = runs["schedule._target_"] == WSDS["_target_"]
    runs["eval.every_tokens"] = np.where(single, BUDGETS[0], runs["total_tokens"])
    made = section(runs, curves)
    assert {row["setting"] for row in made.numbers["schedules"]} == {""}
    rows = [row for row in made.numbers["schedules"] if row["schedule"] == "WSD-S linear"]
    assert [row["total_tokens"] for row in rows] == BUDGETS and {row["peak_lr"] for row in rows} == {2e-3}
    assert [row["loss"] for row in rows] == pytest.approx(list(planted.values()))
    assert "WSD-S linear is one run" in " ".join(made.blocks) and "costs 41k tokens per seed" in " ".join(made.blocks)
    missing = section(runs, curves[curves["tokens"] != BUDGETS[0]])
    assert "has no evaluation at 10k tokens" in " ".join(missing.blocks)
    assert len([row for row in missing.numbers["schedules"] if row["schedule"] == "WSD-S linear"]) == 2


def test_without_completed_runs_the_section_says_why(records):
    runs, curves = records
    made = section(runs.assign(status="failed"), curves)
    assert made.numbers is None and "no run of a schedule was completed" in made.answers[0]


def test_names_hold_what_differs_at_one_budget_only():
    schedule = [{"_target_": OF + "Cosine", "final": x} for x in (0.0, 0.1)]
    schedule += [{"_target_": OF + "InverseSqrt", "scale": x} for x in (1e4, 2e4)]  # follows the budget
    schedule += [{"_target_": OF + "WSD", "shape": "linear"}, {"_target_": OF + "WSDS", "budgets": [1.0]}]
    load = [{f"schedule.{key}": value for key, value in one.items()} for one in schedule]
    runs = pd.DataFrame(load).assign(N=1, total_tokens=[10, 10, 10, 20, 10, 10])
    assert list(schedule_names(runs)) == [
        "Cosine, final 0", "Cosine, final 0.1", "Inverse sqrt", "Inverse sqrt", "WSD linear", "WSD-S"
    ]  # fmt: skip
