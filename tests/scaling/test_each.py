import numpy as np
import pandas as pd
import pytest

from scaling.each import fit_each, summary
from scaling.laws.power import PowerLaw

BUDGETS = np.geomspace(1e18, 1e22, 6)
TRUTH = {"code": (0.06, 0.47), "knowledge": (0.09, 0.53)}  # k, a of the best size; the constants are made up
LAW = PowerLaw(("C",), "N")


def skills(noise=0.0):
    rng = np.random.default_rng(0)
    rows = [
        {"skill": skill, "C": c, "N": k * c**a * np.exp(noise * rng.standard_normal())}
        for c in BUDGETS
        for skill, (k, a) in TRUTH.items()
    ]
    return pd.DataFrame(rows)


def test_every_group_gets_the_law_of_its_own_rows():
    fits = fit_each(LAW, skills(), "skill", starts=4)
    assert list(fits) == ["code", "knowledge"]
    for skill, (k, a) in TRUTH.items():
        assert fits[skill].params == pytest.approx({"k": k, "a_C": a}, rel=1e-6)


def test_weights_go_with_their_rows():
    table = skills(0.1).sample(frac=1, random_state=1)
    weights = np.random.default_rng(2).uniform(0.1, 5.0, len(table))
    by_array = fit_each(LAW, table, "skill", weights=weights, starts=4)
    by_column = fit_each(LAW, table.assign(w=weights), "skill", weights="w", starts=4)
    alone = fit_each(LAW, table, "skill", starts=4)
    assert by_array["code"].params == by_column["code"].params != alone["code"].params


def test_the_group_that_cannot_be_fitted_is_named():
    table = skills()
    table.loc[table["skill"] == "code", "C"] = 1e20
    with pytest.raises(ValueError, match=r"skill=code: .*distinct settings"):
        fit_each(LAW, table, "skill")
    with pytest.raises(ValueError, match="by=task: the table has no such column"):
        fit_each(LAW, table, "task")
    table.loc[0, "skill"] = None
    with pytest.raises(ValueError, match="1 rows have no value"):
        fit_each(LAW, table, "skill")


def test_the_summary_has_a_row_per_group_and_intervals_where_there_are_any():
    fits = fit_each(LAW, skills(0.05), "skill", starts=4)
    assert "a_C_low" not in summary(fits)
    table = summary({name: found.bootstrap(50) for name, found in fits.items()})
    assert list(table.index) == ["code", "knowledge"] and (table["rows"] == 6).all()
    assert (table["a_C_low"] <= table["a_C"]).all() and (table["a_C"] <= table["a_C_high"]).all()
