"""The critical batch of runs, on runs whose measured risks are exact."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.points import expand
from optim.averaging import Tail
from scaling.theory.batches import OVERHEAD, batches, crossing
from scaling.theory.check import exact_risk, problem_of
from scaling.theory.critical import best_risk, critical_batch_size_at

pytestmark = pytest.mark.usefixtures("hydra_conf")
BUDGET = 512
LINEAR = ["model=linear", "data=power_law", "data.sources.rows.dimension=20", "data.sources.rows.noise_variance=1.0",
          "optimizer=sgd", "optimizer.weight_decay=0", "sequence_length=1", "clip_norm=0", "warmup_tokens=0",
          "schedule=constant", f"total_tokens={BUDGET}", "+averages.second._target_=optim.averaging.Tail",
          "+averages.second.start=0.5"]  # fmt: skip


@given(st.floats(0.05, 3.0), st.floats(0.01, 10.0))
@settings(max_examples=50, deadline=None)
def test_a_power_of_the_batch_is_crossed_where_it_is(slope, scale):
    batch = np.geomspace(2.0, 256.0, 8)
    expected = 2.0 * (1 + OVERHEAD) ** (1 / slope)
    assert crossing(batch, scale * batch**slope) == pytest.approx(expected, rel=1e-4)
    assert np.isnan(crossing(batch, np.full(8, scale))) and np.isnan(crossing(batch, scale / batch))


def exact_runs(batch_sizes, shares=(1.0,), error=1e-4, *more):
    problem = problem_of(expand([[*LINEAR, "peak_lr=0.1", "ramp.batch_size=1", *more]])[0].config)
    rates = {batch: best_risk(problem, batch, BUDGET).lr for batch in batch_sizes}
    points = expand([
        [*LINEAR, f"peak_lr={share * rates[batch]}", f"ramp.batch_size={batch}", *more]
        for batch in batch_sizes for share in shares
    ])  # fmt: skip
    rows = []
    for point in points:
        risk = float(exact_risk(point.config, np.array([point.plan.serial_steps]), Tail(0.5))[0])
        rows.append({"run_id": point.run_id, "of": "second", "tokens": point.plan.final_tokens, "measured": risk,
                     "error": error * risk, "exact": risk})  # fmt: skip
    return problem, {point.run_id: point.config for point in points}, pd.DataFrame(rows)


def test_exact_risks_give_the_exact_critical_batch():
    problem, configs, points = exact_runs((1, 4, 8, 16, 32, 64), (0.7, 1.0, 1.1))
    found = batches(configs, points)
    (row,) = found.critical.to_dict("records")
    assert row["exact"] == pytest.approx(critical_batch_size_at(problem, BUDGET, OVERHEAD, 1))
    assert row["measured"] == row["same"] == pytest.approx(row["exact"], rel=0.05)  # a curve through six batches
    assert row["low"] < row["measured"] < row["high"] < 1.01 * row["measured"]
    assert (found.best["rates"] == 3).all() and not found.best["edge"].any() and row["bracketed"]
    (note,) = found.notes
    assert note.startswith("Batches share seeds")
    np.testing.assert_allclose(
        found.best["measured"], [best_risk(problem, b, BUDGET).value for b in found.best["batch"]]
    )
    assert found.curves.groupby("rows")["risk"].first().iloc[0] == pytest.approx(found.best["measured"].iloc[0])


def test_a_larger_error_makes_a_wider_interval_and_an_end_of_the_rates_is_said():
    _, configs, points = exact_runs((1, 16, 32, 64), (0.25, 0.5, 0.75), 0.03)
    found = batches(configs, points)
    (row,) = found.critical.to_dict("records")
    assert row["high"] / row["low"] > 1.1
    assert found.best["edge"].all() and not row["bracketed"]
    assert row["same"] == row["measured"] != pytest.approx(row["exact"], rel=0.05)


def test_seeds_are_averaged_and_are_no_rates():
    _, configs, points = exact_runs((1, 16, 32, 64), (1.0,), 1e-3)
    measured, twice = [], {}
    for k, sign in ((1, 1.1), (2, 0.9)):
        twice |= {f"{run}{k}": {**config, "seed": 10 * k + n} for n, (run, config) in enumerate(configs.items())}
        own = points.assign(run_id=points["run_id"] + str(k), measured=points["exact"] * sign)
        measured.append(own)
    found = batches(twice, pd.concat(measured))
    assert (found.best["rates"] == 1).all() and not found.notes
    np.testing.assert_allclose(found.best["measured"], found.best["exact"])
    alone = batches(configs, points).best
    np.testing.assert_allclose(found.best["error"], alone["error"] / 2**0.5)


def test_batches_that_cost_nothing_yet_leave_it_open():
    _, configs, points = exact_runs((1, 2))
    (row,) = batches(configs, points).critical.to_dict("records")
    assert np.isnan(row["measured"]) and row["low"] == row["high"] == np.inf and row["exact"] > 2


def test_runs_that_theory_is_not_about_are_left_out_and_said():
    _, configs, points = exact_runs((1, 16))
    name = next(iter(configs))
    for change, why in (
        ({"averages": {"second": {"_target_": "optim.averaging.Tail", "start": 0.25}}}, "no average of it is"),
        ({"warmup_tokens": 64}, "it has a warm-up"),
        ({"optimizer": {**configs[name]["optimizer"], "weight_decay": 0.1}}, "it has weight decay"),
        ({"total_tokens": 500, "ramp": {**configs[name]["ramp"], "batch_size": 16}}, "no multiple of its batch"),
        ({"total_tokens": 1024}, "it did not reach its budget"),
        ({"schedule": {"_target_": "optim.schedules.Linear"}}, "its rate or batch changes"),
    ):
        with pytest.raises(ValueError, match="no budget was run at two batches"):
            batches({**configs, name: {**configs[name], **change}}, points)
        third = {**configs, "x": {**configs[name], **change}}
        tokens = 500 if "multiple" in why else BUDGET
        seen = pd.concat([points, points[points["run_id"] == name].assign(run_id="x", tokens=tokens)])
        note = batches(third, seen).notes[0]
        assert note.startswith("x is left out") and why in note
    _, other, more = exact_runs((1, 16), (1.0,), 1e-4, "data.sources.rows.a=2.0")
    both = batches({**configs, **other}, pd.concat([points, more]))
    assert both.notes[0].startswith("2 runs of other problems or settings")
    alone = points.assign(run_id=["y", "z"], tokens=[256, 128])
    lone = {run: {**configs[name], "total_tokens": rows} for run, rows in (("y", 256), ("z", 128))}
    assert "alone at a budget" in batches({**configs, **lone}, pd.concat([points, alone])).notes[0]
