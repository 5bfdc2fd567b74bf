import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.fit import fit
from scaling.laws.chinchilla import Chinchilla
from scaling.laws.moe import DenseSparse, FineGrainedMoE, JointMoE, MoESparsity

JOINT = {  # no coefficients are published: exponents of the usual size, E-hat as in Clark et al. 2022
    "a": 35.0, "alpha": -0.22, "gamma": 0.015, "delta": -0.4, "b": 1500.0, "beta": -0.35, "zeta": -0.008,
    "omega": 0.15, "c": 1.6, "E_start": 2.0, "E_max": 300.0,
}  # fmt: skip
SPARSITY = dict(MoESparsity().references[0].params)
MIXTURES, PRUNED = (dict(reference.params) for reference in DenseSparse().references)
GRANULAR = dict(FineGrainedMoE().references[0].params)


def grid(**axes):
    return pd.DataFrame({k: x.ravel() for k, x in zip(axes, np.meshgrid(*axes.values()), strict=True)})


SPARSE = grid(N=np.geomspace(1e8, 3e10, 6), D=np.geomspace(1e9, 3e11, 5), S=[0, 0.5, 0.75, 0.9, 0.95, 0.98])
GRAINS = grid(N=np.geomspace(1.3e8, 3.7e9, 6), D=np.geomspace(1.6e10, 1.3e11, 5), G=[1.0, 2, 4, 8, 16])
EXPERTS = grid(N=np.geomspace(1e8, 3e9, 5), D=np.geomspace(1e9, 1e11, 5), E=[1.0, 2, 4, 8, 32, 128, 512])
CASES = {
    "joint": (JointMoE(), JOINT, EXPERTS),
    "sparsity": (MoESparsity(), SPARSITY, SPARSE),
    "sparsity, positive lambda": (MoESparsity(), SPARSITY | {"lambda": 0.3, "delta": -0.2}, SPARSE),
    "mixtures": (DenseSparse(), MIXTURES, SPARSE),
    "pruned": (DenseSparse(), PRUNED, SPARSE),
    "granularity": (FineGrainedMoE(), GRANULAR, GRAINS),
}
sizes = st.floats(7, 12).map(lambda log: 10.0**log)
tokens = st.floats(8, 13).map(lambda log: 10.0**log)


@pytest.mark.parametrize("case", CASES)
def test_exact_points_give_the_parameters_back(case, recovers):
    recovers(*CASES[case], starts=32)


@pytest.mark.parametrize("case", CASES)
def test_units_change_parameters_as_the_law_says(case, respects_units):
    respects_units(*CASES[case])
    law = CASES[case][0]
    assert law.units == {"N", "D", "G", "loss"} & {*law.columns, "loss"}


@pytest.mark.parametrize(
    ("law", "p", "at", "loss"),
    [
        # Arithmetic on the coefficients of each paper's table, as secondary sources give them.
        (MoESparsity(), SPARSITY, {"N": 18.8e9, "D": 110.2e9, "S": 0.98}, 2.1693352660281358),
        (MoESparsity(), SPARSITY, {"N": 1e9, "D": 2e10, "S": 0.0}, 2.5656813083550216),
        (DenseSparse(), MIXTURES, {"N": 1e9, "D": 1e11, "S": 0.9}, 2.209944216155463),
        (DenseSparse(), PRUNED, {"N": 1e9, "D": 1e11, "S": 0.5}, 1.3370789726997454),
        (FineGrainedMoE(), GRANULAR, {"N": 1e9, "D": 2e10, "G": 8.0}, 3.1403931159948355),
    ],
)
def test_published_coefficients_give_this_loss(law, p, at, loss):
    assert law.predict(p, at) == pytest.approx(loss, rel=1e-12)


@given(sizes, tokens)
@settings(max_examples=20, deadline=None)
def test_without_sparsity_the_dense_and_sparse_law_is_the_chinchilla_law(size, data):
    dense = {"E": MIXTURES["e"], "A": MIXTURES["a"], "B": MIXTURES["b"]} | {k: MIXTURES[k] for k in ("alpha", "beta")}
    expected = Chinchilla().predict(dense, {"N": size, "D": data})
    assert DenseSparse().predict(MIXTURES, {"N": size, "D": data, "S": 0.0}) == pytest.approx(expected, rel=1e-12)


@given(sizes, tokens, st.floats(0.0, 0.99))
@settings(max_examples=20, deadline=None)
def test_active_parameters_of_no_extra_cost_act_as_the_whole_model(size, data, sparsity):
    # With c = 0 and gamma = 0 the term of size is a / (N / (1 - S))^alpha: that of all parameters.
    p = PRUNED | {"c": 0.0, "gamma": 0.0}
    sparse = DenseSparse().predict(p, {"N": size, "D": data, "S": sparsity})
    dense = DenseSparse().predict(p, {"N": size / (1 - sparsity), "D": data, "S": 0.0})
    assert sparse == pytest.approx(dense, rel=1e-9)


@given(sizes, tokens)
@settings(max_examples=20, deadline=None)
def test_the_joint_law_without_experts_terms_is_the_chinchilla_law(size, data):
    p = JOINT | {"gamma": 0.0, "delta": 0.0, "zeta": 0.0, "omega": 0.0}
    dense = {"E": p["c"], "A": p["a"], "alpha": -p["alpha"], "B": p["b"], "beta": -p["beta"]}
    expected = Chinchilla().predict(dense, {"N": size, "D": data})
    assert JointMoE().predict(p, {"N": size, "D": data, "E": 64.0}) == pytest.approx(expected, rel=1e-12)


@given(sizes, tokens)
@settings(max_examples=20, deadline=None)
def test_the_sparsity_law_without_its_terms_is_the_chinchilla_law(size, data):
    dense = {"E": SPARSITY["e"], "A": SPARSITY["a"], "B": SPARSITY["b"]} | {k: SPARSITY[k] for k in ("alpha", "beta")}
    expected = Chinchilla().predict(dense, {"N": size, "D": data})
    found = MoESparsity().predict(SPARSITY | {"c": 0.0, "d": 0.0}, {"N": size, "D": data, "S": 0.9})
    assert found == pytest.approx(expected, rel=1e-12)


@given(sizes, tokens)
@settings(max_examples=20, deadline=None)
def test_infinitely_fine_experts_follow_the_chinchilla_law(size, data):
    fine = {"E": GRANULAR["c"], "A": GRANULAR["a"], "B": GRANULAR["b"]} | {k: GRANULAR[k] for k in ("alpha", "beta")}
    expected = Chinchilla().predict(fine, {"N": size, "D": data})
    assert FineGrainedMoE().predict(GRANULAR, {"N": size, "D": data, "G": 1e30}) == pytest.approx(expected, rel=1e-9)


@given(st.sampled_from([name for name in CASES if "positive" not in name]), sizes, tokens, st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_more_parameters_and_more_data_lower_the_loss(case, size, data, place):
    law, p, _ = CASES[case]
    at = {"N": size, "D": data, "S": 0.98 * place, "E": 1 + 511 * place, "G": 1 + 15 * place}
    columns = {name: at[name] for name in law.columns}
    loss = law.predict(p, columns)
    assert loss > law.predict(p, columns | {"N": 2 * size})
    assert loss > law.predict(p, columns | {"D": 2 * data})


@given(sizes, tokens, st.floats(1, 15))
@settings(max_examples=20, deadline=None)
def test_finer_experts_lower_the_loss(size, data, grain):
    loss = [FineGrainedMoE().predict(GRANULAR, {"N": size, "D": data, "G": g}) for g in (grain, grain + 1)]
    assert loss[0] > loss[1]


@pytest.mark.parametrize("law", [MoESparsity(), DenseSparse()])
def test_a_model_without_active_parameters_is_refused(law):
    table = SPARSE.assign(loss=3.0, S=np.where(SPARSE.S > 0.97, 1.0, SPARSE.S))
    with pytest.raises(ValueError, match="S = 1 leaves no active parameter"):
        fit(law, table)


def test_less_than_one_expert_is_refused_by_the_joint_law():
    with pytest.raises(ValueError, match=r"E = 0\.5 is below 1"):
        fit(JointMoE(), EXPERTS.assign(loss=3.0, E=EXPERTS.E / 2))
