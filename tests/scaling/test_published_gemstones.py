from pathlib import Path

import pandas as pd
import pytest

from scaling.fit import fit
from scaling.laws.chinchilla import Chinchilla

PUBLISHED = Path(__file__).parents[3] / "shared" / "published" / "gemstones"
NAMES = {"params_active_precise": "N", "tokens": "D", "final_loss": "loss", "run_name": "run_id"}
# McLeish et al. 2025 (Gemstones), data of mcleish7/gemstone-scaling-laws: the optimum of Huber(1e-3) on log loss.
EXPONENTS = {"hot": (0.2929, 0.7130), "cool_end": (0.3004, 0.5802), "slim_chinchilla": (0.2140, 0.5260)}
ROWS = {"hot": 220, "cool_end": 199, "slim_chinchilla": 28}


def read(name: str) -> pd.DataFrame:
    path = PUBLISHED / f"wandb_df_for_fitting_{name}.jsonl"
    if not path.exists():
        pytest.skip(f"needs the published table {path.name}, which is not part of the repository")
    return pd.read_json(path, lines=True).rename(columns=NAMES)


@pytest.mark.parametrize("name", EXPONENTS)
def test_the_fit_reaches_the_known_optimum(name):
    table = read(name)
    found = fit(Chinchilla(), table, starts=64)
    assert len(found.rows.table) == ROWS[name] and found.converged
    assert (found.params["alpha"], found.params["beta"]) == pytest.approx(EXPONENTS[name], abs=1e-4)
    assert found.agreement > 0.9


def test_checkpoints_of_one_run_are_drawn_together():
    table = read("hot")
    runs, rows = (fit(Chinchilla(), t, starts=8) for t in (table, table.drop(columns="run_id")))
    runs, rows = runs.bootstrap(100), rows.bootstrap(100)
    assert (runs.bootstrap_kind, rows.bootstrap_kind) == ("cluster", "pairs")
    assert runs.rows.table["group"].nunique() == table["run_id"].nunique() < len(table)
    widths = [high - low for low, high in (f.intervals()["alpha"] for f in (runs, rows))]
    assert widths[0] > widths[1]  # a run's checkpoints err together
