from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from scaling.critical import OVERHEAD, hyperbola, power_law
from scaling.each import fit_each
from scaling.fit import Huber, LeastSquares, fit
from scaling.laws.batch import CriticalBatch, StepsToTarget

PUBLISHED = Path(__file__).parents[3] / "shared" / "published" / "cbs" / "steps_to_target.csv"
LAW = StepsToTarget()
# Zhang et al. 2024 (arXiv:2410.21676), from the data in hlzhang109/critical-batch-size, in sequences of 512 tokens.
CRITICAL = {"85M": 745.32, "151M-ablation": 955.16, "302M": 1393.73, "604M": 1888.52, "1.2B": 2533.41}


@pytest.fixture(scope="module")
def table():
    if not PUBLISHED.exists():
        pytest.skip(f"needs the published table {PUBLISHED.name}, which is not part of the repository")
    return pd.read_csv(PUBLISHED).rename(columns={"batch_size": "B", "steps_fit_cell5": "steps"})


@pytest.fixture(scope="module")
def critical(table):
    fits = fit_each(LAW, table, "model", loss=LeastSquares(), starts=16)
    sizes = table.groupby("model")["N_millions"].first()
    rows = {model: (sizes[model], LAW.critical_batch(found.params, 256)) for model, found in fits.items()}
    return pd.DataFrame.from_dict(rows, orient="index", columns=["N", "B"])


def test_the_published_critical_batch_sizes(critical):
    assert critical["B"].to_dict() == pytest.approx(CRITICAL, abs=1e-2)


def test_the_reports_own_code_finds_them_and_their_growth(table):
    found = {}
    for model, rows in table.groupby("model"):
        a, b = hyperbola(rows["B"].to_numpy(), rows["steps"].to_numpy())
        found[model] = float(LAW.critical_batch({"a": a, "b": b}, 256, OVERHEAD))
    assert found == pytest.approx(CRITICAL, abs=1e-2)
    sizes = table.groupby("model")["N_millions"].first()
    cells = pd.DataFrame({"N": sizes, "D": 20 * sizes, "critical": pd.Series(found)})
    replicates = cells["critical"].to_numpy()[None]
    assert power_law(cells.assign(D=1.0), replicates)["a_N"].value == pytest.approx(0.46828, abs=1e-4)
    assert "path" not in power_law(cells, replicates)  # D follows N: the table cannot tell the two apart


def test_the_published_exponent_in_model_size(critical):
    found = fit(CriticalBatch(), critical, LeastSquares(), starts=8).params
    assert found["a_N"] == pytest.approx(0.46828, abs=1e-4)
    assert found["k"] == pytest.approx(93.197, abs=5e-3)  # N in millions
    in_parameters = fit(CriticalBatch(), critical.assign(N=critical["N"] * 1e6), LeastSquares(), starts=8).params
    assert in_parameters == pytest.approx(dict(CriticalBatch().references[0].params), rel=1e-4)


def test_a_narrow_huber_loss_gives_another_critical_batch(table):
    # Steps are multiples of the evaluation interval: their noise is far wider than 1e-3, and Huber is then |r|.
    rows = table[table["model"] == "85M"]
    robust = LAW.critical_batch(fit(LAW, rows, Huber(1e-3), starts=16).params, 256)
    assert robust == pytest.approx(765.1, abs=0.1)
    wide = LAW.critical_batch(fit(LAW, rows, Huber(10.0), starts=16).params, 256)
    assert wide == pytest.approx(CRITICAL["85M"], abs=1e-2)


def test_steps_of_all_models_fall_short_of_perfect_scaling(table, critical):
    for model, rows in table.groupby("model"):
        steps = rows.set_index("B")["steps"]
        beyond = steps.index[steps.index > critical.loc[model, "B"]][0]
        assert steps[beyond] > 1.1 * steps[256] * 256 / beyond
        assert np.isclose(steps[128] * 128, steps[256] * 256, rtol=0.15)
