"""Runs that end at a target loss, or when a rival was there first: no law of final losses sees their last loss."""

import numpy as np
import pandas as pd
import pytest

from scaling import next_runs
from scaling.fit import fit
from scaling.laws import Chinchilla, StepsToTarget
from scaling.reports.approaches import approaches
from scaling.reports.chinchilla import chinchilla
from scaling.reports.records import Records, Settings
from scaling.rows import prepare
from scaling.settings import counted, stopped

LAW = Chinchilla()
TRUTH = {"E": 1.7, "A": 400.0, "alpha": 0.34, "B": 900.0, "beta": 0.3}


def records(early=("target", "hopeless", "target")) -> pd.DataFrame:
    """25 completed runs on the law, and one more at each of `early` whose last loss lies far above it."""
    n, d = (x.ravel() for x in np.meshgrid(np.geomspace(1e6, 1e9, 5), np.geomspace(1e8, 1e11, 5)))
    noise = np.exp(0.01 * np.random.default_rng(0).standard_normal(25))
    runs = pd.DataFrame({"N": n, "D": d, "eval_loss": LAW.predict(TRUTH, {"N": n, "D": d}) * noise})
    runs = runs.assign(C=6 * n * d, status="completed", stop_reason="budget")
    more = runs.iloc[: len(early)].assign(eval_loss=9.0, stop_reason=list(early))
    runs = pd.concat([more, runs], ignore_index=True)
    return runs.assign(run_id=[f"r{k}" for k in range(len(runs))])


def test_runs_that_stopped_early_change_no_fit_and_are_counted():
    clean, mixed = (fit(LAW, records(early), starts=16) for early in ((), ("target", "hopeless", "target")))
    assert mixed.params == clean.params and mixed.objective == clean.objective
    assert mixed.rows.excluded == {"target": 2, "hopeless": 1} and clean.rows.excluded == {}
    said = "3 runs stopped before the budget (2 at the target loss and 1 because a rival was there first): not fitted"
    assert any(note.startswith(said) for note in mixed.warnings)
    assert not any("did not complete" in note for note in mixed.warnings)


def test_a_run_that_diverged_is_no_run_that_stopped_early():
    runs = records(("target",))
    runs.loc[3, "status"] = "diverged"
    runs.loc[4, ["status", "stop_reason"]] = ["preempted", "target"]  # its last life says how it ended
    rows = prepare(LAW, runs)
    assert rows.excluded == {"target": 1, "diverged": 1, "preempted": 1}
    assert [note.split(" ")[0] for note in rows.notes[:2]] == ["2", "1"]


def test_where_too_few_runs_are_left_the_error_says_what_was_left_out():
    runs = records().iloc[:6]
    with pytest.raises(ValueError, match=r"3 more stopped before their budget\)"):
        prepare(LAW, runs)
    runs.loc[0, "status"] = "failed"
    with pytest.raises(ValueError, match=r"3 more did not complete or stopped before their budget\)"):
        prepare(LAW, runs)


def test_a_law_of_the_steps_to_a_target_is_fitted_to_the_runs_that_reached_it():
    sizes = np.array([8.0, 16, 32, 64, 128])
    runs = pd.DataFrame({"batch_size": sizes, "steps": 100 + 6400 / sizes, "status": "completed"})
    rows = prepare(StepsToTarget(), runs.assign(stop_reason="target"), columns={"B": "batch_size"})
    assert len(rows.table) == 5 and rows.excluded == {}


def test_a_column_of_that_name_in_anybodys_table_is_no_record():
    runs = records().drop(columns="status").iloc[3:].assign(stop_reason="target")
    assert prepare(LAW, runs).excluded == {} and not stopped(runs).notna().any()


def test_what_counts_for_a_mean_is_what_a_fit_takes():
    runs = records()
    assert list(runs.index[counted(runs)]) == sorted(prepare(LAW, runs).table.index)


def test_the_parabolas_of_a_report_leave_them_out_too():
    wide = pd.concat([records(()), records(()).assign(D=lambda t: t["D"] * 2, C=lambda t: t["C"] * 2)])
    runs = wide.assign(eval_loss=LAW.predict(TRUTH, wide), run_id=[f"r{k}" for k in range(len(wide))])
    more = runs.assign(eval_loss=9.0, stop_reason="target")
    fitted = fit(LAW, runs, starts=8).bootstrap(20)
    clean, mixed = (
        approaches(Records(table, pd.DataFrame({"run_id": []}), Settings(bootstrap=20)), fitted)[1]["exponents"]
        for table in (runs, pd.concat([runs, more]))
    )
    assert mixed == clean and len(clean) == 2


def test_the_report_of_a_sweep_in_which_all_stopped_says_why_there_is_no_law():
    runs = records().assign(stop_reason="target")
    (answer,) = chinchilla(Records(runs, pd.DataFrame(), Settings(starts=8, bootstrap=20))).answers
    assert "28 more stopped before their budget" in answer


def test_a_run_planned_next_goes_to_its_budget():
    runs = records(()).assign(flops_per_token=6e6, vocab_size=100, sequence_length=64)
    runs["overrides"] = [["model=50k", "stop_when.loss=3.2", "seed=1", "peak_lr=0.01"]] * len(runs)
    assert all(shape["overrides"] == ["model=50k", "peak_lr=0.01"] for shape in next_runs.shapes(runs))
