"""The sections of theory beside runs, on records whose measured risks are exact."""

import json

import numpy as np
import pandas as pd
import pytest
from hydra import compose

from conf.points import expand
from data.problems import power_law
from optim.averaging import Tail
from scaling.reports.records import Records, Settings
from scaling.reports.theory_cbs import theory_cbs
from scaling.reports.theory_seesaw import theory_seesaw
from scaling.theory.check import exact_risk, problem_of
from scaling.theory.critical import best_risk, critical_batch_size_at
from scaling.theory.stability import check_stable

LINEAR = ["model=linear", "data=power_law", "data.sources.rows.dimension=20", "data.sources.rows.noise_variance=1.0",
          "optimizer=sgd", "sequence_length=1", "clip_norm=0", "warmup_tokens=0",
          "+averages.tail._target_=optim.averaging.Tail", "+averages.tail.start=0.5"]  # fmt: skip

pytestmark = pytest.mark.usefixtures("hydra_conf")


def recorded(folder, overrides):
    """Records whose excess risks are the exact ones, of the weights and of the second half's mean."""
    rows, curves = [], []
    for point in expand([[*LINEAR, f"launch.runs={folder}", *one] for one in overrides]):
        point.folder.mkdir(parents=True)
        (point.folder / "config.yaml").write_text(json.dumps(point.config))
        steps = point.plan.steps()
        at = np.unique(np.linspace(1, len(steps.lr), 5).astype(int))
        tokens = np.append(steps.tokens_before[1:], point.plan.final_tokens)[at - 1]
        own, mean = exact_risk(point.config, at), exact_risk(point.config, at, Tail(0.5))
        curves.append(pd.DataFrame({
            "run_id": point.run_id, "step": at, "tokens": tokens, "loss": own, "eval_loss": own, "excess_risk": own,
            "excess_risk_error": 0.01 * own, "excess_risk_tail": mean, "excess_risk_error_tail": 0.01 * mean,
        }))  # fmt: skip
        rows.append({
            "run_id": point.run_id, "folder": str(point.folder), "status": "completed", "N": 20, "seed": 0,
            "model.replicas": 256, "total_tokens": point.plan.final_tokens, "peak_lr": point.config["peak_lr"],
            **{f"ramp.{name}": value for name, value in point.config["ramp"].items()},
            **{f"schedule.{name}": value for name, value in point.config["schedule"].items()},
        })  # fmt: skip
    return Records(pd.DataFrame(rows), pd.concat(curves, ignore_index=True), Settings(bootstrap=0))


def test_ramps_are_shown_beside_the_exact_constant_batch(tmp_path):
    base = ["schedule=cosine", "peak_lr=0.1", "total_tokens=4000", "ramp.batch_size=4"]
    section = theory_seesaw(recorded(tmp_path, [base, [*base, "ramp=seesaw"], [*base, "ramp=grow"]]))
    assert [one.name for one in section.figures] == ["theory_seesaw_runs", "theory_seesaw_line", "theory_seesaw_batch"]
    last = section.answers[-1]
    assert "Runs, at the end" in last and "Seesaw 1." in last and "batch for rate" in last and "Cosine 1" not in last
    assert len(section.numbers["line"]) == 66 and {row["run"] for row in section.numbers["runs"]} == {
        "Cosine", "Cosine, Seesaw", "Cosine, batch for rate",
    }  # fmt: skip


def test_without_ramps_theory_stands_alone_and_with_few_rows_it_says_so(tmp_path):
    base = ["schedule=cosine", "peak_lr=0.1", "ramp.batch_size=4"]
    alone = theory_seesaw(recorded(tmp_path / "a", [[*base, "total_tokens=4000"]]))
    assert len(alone.figures) == 2 and not alone.numbers["runs"]
    few = theory_seesaw(recorded(tmp_path / "b", [[*base, "total_tokens=80"]]))
    assert not few.figures and "80 rows are too few" in few.answers[0]


def test_seeds_and_problems_are_told_apart(tmp_path):
    base = ["schedule=cosine", "peak_lr=0.1", "total_tokens=4000", "ramp.batch_size=4", "ramp=seesaw"]
    runs = [[*base[:-1]], base, [*base, "seed=1"], [*base, "data.sources.rows.a=2.0"]]
    section = theory_seesaw(recorded(tmp_path, runs))
    names = {row["run"] for row in section.numbers["runs"]}
    assert len(names) == 3 and sum("Seesaw" in name for name in names) == 2
    assert any("several problems" in note for note in section.numbers["notes"])


def test_what_disagrees_is_said(tmp_path):
    problem = power_law(20, 1.5, 2.0, 1.0)
    runs = [
        ["schedule=constant", "total_tokens=256", f"ramp.batch_size={batch}",
         f"peak_lr={best_risk(problem, batch, 256).lr}"] for batch in (1, 8, 16, 32)
    ]  # fmt: skip
    records = recorded(tmp_path, runs)
    records.curves["excess_risk_tail"] *= 1.3
    section = theory_cbs(records)
    assert "risks do not agree" in section.answers[-1]
    assert section.numbers["critical"][0]["measured"] == pytest.approx(section.numbers["critical"][0]["same"])


def test_the_experiment_has_stable_rates_and_whole_batches():
    """theory_cbs as it stands: every batch at the largest share and the least budget."""
    experiment = compose("config", ["experiment=theory_cbs"], return_hydra_config=True)
    sweep = {name: str(values).split(",") for name, values in experiment.hydra.sweeper.params.items()}
    share, budgets = max(map(float, sweep["vars.share"])), sweep["total_tokens"]
    points = expand([
        ["experiment=theory_cbs", f"vars.batch={batch}", f"vars.share={share}", f"total_tokens={budgets[0]}"]
        for batch in sweep["vars.batch"]
    ])  # fmt: skip
    assert all(int(float(budget)) % int(batch) == 0 for budget in budgets for batch in sweep["vars.batch"])
    for point in points:
        check_stable(problem_of(point.config), np.array([point.plan.peak_lr]), point.plan.segments.batch_size[:1])
        assert point.config["seed"] == point.config["ramp"]["batch_size"]


def test_the_critical_batch_of_runs_stands_beside_the_exact_one(tmp_path):
    problem, sizes = power_law(20, 1.5, 2.0, 1.0), (1, 8, 16, 32)
    runs = [
        ["schedule=constant", f"total_tokens={budget}", f"ramp.batch_size={batch}",
         f"peak_lr={best_risk(problem, batch, budget).lr}"]
        for budget in (256, 512) for batch in sizes
    ]  # fmt: skip
    section = theory_cbs(recorded(tmp_path, runs))
    found = section.numbers["critical"]
    assert [row["rows"] for row in found] == [256, 512]
    for row in found:
        assert row["exact"] == pytest.approx(critical_batch_size_at(problem, row["rows"], 0.2, 1))
        assert row["measured"] == pytest.approx(row["exact"], rel=0.06)
    assert "The critical batch of the regression is" in section.answers[0] and "risks agree" in section.answers[-1]
    assert [one.name for one in section.figures] == ["theory_cbs_risk", "theory_cbs"]


def test_what_the_batches_do_not_reach_is_said(tmp_path):
    runs = [["schedule=constant", "total_tokens=512", f"ramp.batch_size={batch}", "peak_lr=0.1"] for batch in (1, 2)]
    section = theory_cbs(recorded(tmp_path / "a", runs))  # one rate is not the best one
    assert "(its rates are not bracketed; exact" in section.answers[0] and "At 2 of 2 batches" in section.answers[1]
    tuned = [
        ["schedule=constant", "total_tokens=512", f"ramp.batch_size={batch}", f"peak_lr={lr}"]
        for batch, rates in ((1, (0.1, 0.15, 0.2)), (2, (0.2, 0.25, 0.3))) for lr in rates
    ]  # fmt: skip
    section = theory_cbs(recorded(tmp_path / "c", tuned))
    assert "After 512 rows no batch" in section.answers[0] and len(section.figures) == 2
    nothing = theory_cbs(recorded(tmp_path / "b", runs[:1]))
    assert "no budget was run at two batches" in nothing.answers[0]
