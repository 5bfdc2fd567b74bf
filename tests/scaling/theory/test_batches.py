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
    assert row["measured"] == pytest.approx(row["exact"], rel=0.05)  # straight lines between batches
    assert row["low"] < row["measured"] < row["high"] < 1.01 * row["measured"]
    assert (found.best["rates"] == 3).all() and not found.best["edge"].any()
    np.testing.assert_allclose(
        found.best["measured"], [best_risk(problem, b, BUDGET).value for b in found.best["batch"]]
    )
    assert found.curves.groupby("rows")["risk"].first().iloc[0] == pytest.approx(found.best["measured"].iloc[0])


def test_a_larger_error_makes_a_wider_interval_and_an_end_of_the_rates_is_said():
    _, configs, points = exact_runs((1, 16, 32, 64), (0.25, 0.5), 0.03)
    (row,) = batches(configs, points).critical.to_dict("records")
    assert row["high"] / row["low"] > 1.1
    assert batches(configs, points).best["edge"].all()


def test_batches_that_cost_nothing_yet_leave_it_open():
    _, configs, points = exact_runs((1, 2))
    (row,) = batches(configs, points).critical.to_dict("records")
    assert np.isnan(row["measured"]) and row["low"] == row["high"] == np.inf and row["exact"] > 2


def test_runs_that_theory_is_not_about_are_left_out_and_said():
    _, configs, points = exact_runs((1, 16))
    name = next(iter(configs))
    for change, why in (
        ({"averages": {"second": {"_target_": "optim.averaging.Tail", "start": 0.25}}}, "no average is Tail"),
        ({"warmup_tokens": 64}, "its rate or batch changes"),
        ({"schedule": {"_target_": "optim.schedules.Linear"}}, "its rate or batch changes"),
    ):
        with pytest.raises(ValueError, match="no budget was run at two batches"):
            batches({**configs, name: {**configs[name], **change}}, points)
        third = {**configs, "x": {**configs[name], **change}}
        (note,) = batches(third, points).notes
        assert note.startswith("x is left out") and why in note
    _, other, more = exact_runs((1, 16), (1.0,), 1e-4, "data.sources.rows.a=2.0")
    both = batches({**configs, **other}, pd.concat([points, more]))
    assert both.notes == ("2 runs of other problems or settings are left out.",)
