"""Curves of unseen schedules and ramps, predicted from two: on records whose curves are a law's own."""

import json

import numpy as np
import pandas as pd
import pytest

from conf.points import expand
from data.files import write_json
from data.records import COMPLETED, RunWriter, load_curves, load_runs
from scaling.curve_transfer import transfer
from scaling.laws import MultiPower, SGDRisk
from scaling.reports.curve_transfer import curve_transfer
from scaling.reports.records import Records, Settings

TRUTH = {"L0": 3.0, "A": 4.0, "alpha": 0.4, "noise": 20.0, "K": 30.0, "beta": 0.9}
PLANS = [["schedule=constant"], ["schedule=cosine"], ["schedule=wsd"], ["schedule=cosine", "ramp=seesaw"]]

pytestmark = pytest.mark.usefixtures("hydra_conf")


def record(points, noise=0.0):
    """Runs whose held-out losses are the law of SGD's risk, along their own plans; returns their folder."""
    generator = np.random.default_rng(0)
    folder = points[0].folder.parent
    for point in points:
        point.folder.mkdir(parents=True)
        (point.folder / "config.yaml").write_text(json.dumps(point.config))
        write_json(point.folder / "run.json", {"run_id": point.run_id, "N": 500, "sequence_length": 32})
    for point in points:
        steps = point.plan.steps()
        at = np.unique(np.linspace(1, len(steps.lr), 40).astype(int))
        law = SGDRisk(runs=str(folder))
        loss = law.predict(TRUTH, law.features({"run_id": np.full(len(at), point.run_id), "step": at}))
        loss = loss * (1 + noise * generator.standard_normal(len(at)))
        tokens = np.append(steps.tokens_before[1:], point.plan.final_tokens)[at - 1]
        writer = RunWriter(point.folder, 0, {})
        for k, step in enumerate(at.tolist()):
            row = {"step": step, "tokens": int(tokens[k]), "lr": float(steps.lr[step - 1]), "loss": float(loss[k]),
                   "batch_size": int(steps.batch_size[step - 1]), "eval_loss": float(loss[k])}  # fmt: skip
            writer.log(row)
        writer.close(COMPLETED, "budget", {"tokens": int(tokens[-1]), "eval_loss": float(loss[-1])})
    return folder


@pytest.fixture
def recorded(tiny):
    def recorded(plans=PLANS, noise=0.0, *more):
        return record(expand([[*tiny, "total_tokens=64000", *plan, *more] for plan in plans]), noise)

    return recorded


def test_curves_of_the_law_itself_are_predicted_on_unseen_schedules_and_ramps(recorded):
    folder = recorded()
    found = transfer(load_runs(folder), load_curves(folder), starts=4)
    errors = found.errors.set_index(["law", "plan"])
    assert set(errors.index.get_level_values("plan")) == {"Constant", "Cosine", "WSD linear", "Cosine, Seesaw"}
    assert errors["fitted"].groupby("plan").first().to_dict() == {
        "Constant": True, "Cosine": True, "WSD linear": False, "Cosine, Seesaw": False,
    }  # fmt: skip
    own = errors.loc["SGD risk"]
    assert (own["mean"] < 1e-3).all()  # the prior on beta pulls a little
    # a law without batches takes the ramp for a schedule of the rate
    assert errors.loc[("Multi-power law", "Cosine, Seesaw"), "mean"] > 10 * own.loc["Cosine, Seesaw", "mean"]


def test_the_plan_of_a_record_is_what_dense_rows_say(recorded):
    folder = recorded([["schedule=cosine", "ramp=seesaw"]])
    (run_id,) = load_runs(folder)["run_id"]
    (point_config,) = [json.loads((folder / run_id / "config.yaml").read_text())]
    from optim.plan import plan_of

    steps = plan_of(point_config).steps()
    rows = pd.DataFrame(
        {"run_id": run_id, "step": np.arange(len(steps.lr)), "lr": steps.lr, "batch_size": steps.batch_size}
    )
    followed, dense = SGDRisk(runs=str(folder)), SGDRisk()
    expected = followed.predict(TRUTH, followed.features(rows))
    np.testing.assert_allclose(dense.predict(TRUTH, dense.features(rows)), expected, rtol=1e-12)
    other, dense_other = MultiPower(runs=str(folder)), MultiPower()
    some = {"L0": 3, "A": 1, "alpha": 0.5, "B": 9, "C": 2, "beta": 0.5, "gamma": 0.3}
    later = rows[rows["step"] > 60]
    read = other.features(later)  # few rows of a run, and yet its whole past
    every = dense_other.predict(some, dense_other.features(rows))
    np.testing.assert_allclose(other.predict(some, read), every[61:], rtol=1e-3)


def test_the_section_says_errors_and_laws(recorded):
    folder = recorded(PLANS, 1e-3)
    runs, curves = load_runs(folder), load_curves(folder)
    section = curve_transfer(Records(runs, curves, Settings(bootstrap=0, starts=4)))
    assert "batch ramps (Cosine, Seesaw)" in " ".join(section.answers) and "SGD risk by <b>" in section.answers[0]
    assert section.numbers["fitted_to"] == ["Constant", "Cosine"] and len(section.numbers["errors"]) == 8
    assert {one.law for one in section.constants} == {"SGD risk", "Multi-power law"}


@pytest.mark.parametrize(("plans", "message"), [
    ([["schedule=constant"], ["schedule=wsd"]], "schedule=cosine was not run"),
    ([["schedule=constant"], ["schedule=cosine"]], "a schedule or ramp to predict was not run"),
    ([["schedule=constant"], ["schedule=cosine"], ["schedule=wsd", "optimizer.beta2=0.5"]], "within one setting"),
])  # fmt: skip
def test_what_cannot_be_predicted_is_said(recorded, plans, message):
    folder = recorded(plans)
    with pytest.raises(ValueError, match=message):
        transfer(load_runs(folder), load_curves(folder))
    section = curve_transfer(Records(load_runs(folder), load_curves(folder), Settings()))
    assert "No curve was predicted" in section.answers[0]
