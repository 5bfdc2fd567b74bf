"""Every section of a report says why it has nothing to say: of runs that go on, and of runs none of which counts."""

import numpy as np
import pandas as pd
import pytest

from scaling.reports.opening import curves_section, runs_section
from scaling.reports.records import Records, Settings
from scaling.reports.write import SECTIONS

SETTINGS = Settings(starts=4, bootstrap=20)
NO_CURVES = pd.DataFrame({"run_id": [], "step": [], "tokens": [], "loss": []})  # as of write._load_curves
WIDTHS = np.array([32, 32, 56, 56])
LOSS = np.array([4.0, 3.9, 3.8, 3.9])
RUNS = pd.DataFrame({
    "run_id": list("abcd"), "seed": 0, "N": [5e4, 5e4, 1.5e5, 1.5e5], "sequence_length": 128, "total_tokens": 1e5,
    "peak_lr": [0.01, 0.02, 0.01, 0.02], "model.d_model": WIDTHS, "optimizer.weight_decay": 0.1,
    "ramp.batch_size": 4, "ramp._target_": "optim.ramps.ConstantBatch", "schedule._target_": "optim.schedules.Constant",
})  # fmt: skip
ENDED = RUNS.assign(
    status="completed", stop_reason="budget", D=1e5, C=1e10 * RUNS["N"], loss=LOSS, eval_loss=LOSS, unique_tokens=1e6
)
CURVES = pd.DataFrame({
    "run_id": np.repeat(list("abcd"), 2), "step": [1, 2] * 4, "tokens": [5e4, 1e5] * 4, "flops": [5e9, 1e10] * 4,
    "lr": 0.01, "batch_size": 4, "loss": 4.0, "eval_loss": 4.0,
})  # fmt: skip
CASES = {
    "unfinished": (RUNS.assign(status="unfinished", D=None, C=None), NO_CURVES),  # none has a summary
    "diverged": (ENDED.assign(status="diverged", stop_reason="non-finite loss", loss=np.nan, eval_loss=np.nan), CURVES),
    "hopeless": (ENDED.assign(stop_reason="hopeless"), CURVES),
    "no curves": (ENDED, NO_CURVES),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", SECTIONS)
def test_a_section_without_anything_to_compare_says_why(name, case):
    runs, curves = CASES[case]
    found = SECTIONS[name](Records(runs.copy(), curves.copy(), SETTINGS))
    assert found.answers
    if case != "no curves":
        assert not found.constants and not found.figures
    assert not any("nan" in answer.split() for answer in found.answers)


@pytest.mark.parametrize("case", CASES)
def test_the_runs_and_their_curves_are_always_shown(case):
    runs, curves = CASES[case]
    assert runs_section(runs.copy()).blocks
    assert curves_section(Records(runs.copy(), curves.copy(), SETTINGS), "" if len(curves) else "None.").blocks
