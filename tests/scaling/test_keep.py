import json

import numpy as np
import pandas as pd
import pytest

from scaling import keep, laws
from scaling.fit import Absolute, Huber, LeastSquares, Prior, StudentT, fit
from scaling.laws import AdditiveMixture, Chinchilla, DataConstrained, MultiPower, ParallelPowerLaw, PowerLaw
from scaling.laws.law import Law

CHINCHILLA = Chinchilla()
TRUTH = {"E": 1.7, "A": 400.0, "alpha": 0.34, "B": 900.0, "beta": 0.3}


def noisy(law, p, table, noise=0.01) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return table.assign(
        **{law.target: law.predict(p, law.features(table)) * np.exp(noise * rng.normal(size=len(table)))}
    )


def grid(sizes=6, budgets=6) -> pd.DataFrame:
    n, d = (x.ravel() for x in np.meshgrid(np.geomspace(1e6, 1e9, sizes), np.geomspace(1e8, 1e11, budgets)))
    return pd.DataFrame({"N": n, "D": d})


def points() -> pd.DataFrame:
    return noisy(CHINCHILLA, TRUTH, grid())


def chinchilla():
    return fit(CHINCHILLA, points(), starts=8)


def likelihood():
    return fit(CHINCHILLA, points(), StudentT(5.0), starts=8)


def lower_envelope():
    return fit(CHINCHILLA, points(), Huber(1e-2, above=0.5), starts=8)


def absolute():
    return fit(CHINCHILLA, points(), Absolute(), starts=4)


def fixed_and_priors():
    held = {"fixed": {"alpha": 0.34}, "priors": {"beta": Prior(0.3, 0.05), "E": Prior(1.6, 0.1)}}
    return fit(CHINCHILLA, points(), LeastSquares(), starts=8, **held)


def weighted_values():
    table = points().assign(w=np.linspace(0.2, 2.0, 36))
    return fit(CHINCHILLA, table, LeastSquares(), starts=8, weights="w", residuals="linear")


def data_constrained():
    law = DataConstrained(tied=True)
    table = grid().assign(U=lambda t: t["D"] / np.tile([1.0, 4.0, 30.0], 12))
    p = {"E": 1.7, "A": 400.0, "alpha": 0.34, "B": 2000.0, "R_D": 15.0, "R_N": 5.0}
    return fit(law, noisy(law, p, table, 0.003), starts=16)


def mixture():
    law = AdditiveMixture(("web", "code"))
    table = pd.concat([grid(4, 4).assign(h_web=h, h_code=1 - h) for h in (0.1, 0.3, 0.6, 0.9)], ignore_index=True)
    p = {"E": 1.2, "C_web": 2.0, "gamma_web": 0.4, "C_code": 1.5, "gamma_code": 0.7}
    return fit(law, noisy(law, p | {k: TRUTH[k] for k in ("A", "alpha", "B", "beta")}, table, 0.003), starts=8)


def parallel_tasks():
    law = ParallelPowerLaw(groups=("a", "b"), x="C", y="rate")
    table = pd.DataFrame({"task": ["a"] * 8 + ["b"] * 8, "C": np.tile(np.geomspace(1e15, 1e20, 8), 2)})
    return fit(law, noisy(law, {"k_a": 3.0, "k_b": 40.0, "a": -0.1}, table, 0.02), starts=8)


FITS = [
    chinchilla,
    likelihood,
    lower_envelope,
    absolute,
    fixed_and_priors,
    weighted_values,
    data_constrained,
    mixture,
    parallel_tasks,
]


def curve_fit():
    law = MultiPower(warmup_steps=100)
    step = np.linspace(100, 2000, 25).round()
    x = (step - 100) / 1900
    rates = [np.cos(1.4 * x), np.ones(25), np.where(x < 0.6, 1.0, 0.3), 1 - 0.9 * x]
    table = pd.concat(
        [pd.DataFrame({"run_id": f"c{k}", "step": step, "lr": 3e-4 * rate}) for k, rate in enumerate(rates)],
        ignore_index=True,
    )
    p = {"L0": 2.5, "A": 0.5, "alpha": 0.5, "B": 400.0, "C": 1.0, "beta": 0.6, "gamma": 0.5}
    return fit(law, noisy(law, p, table, 1e-3), starts=2)


def through_json(found):
    return keep.fit_from(json.loads(json.dumps(keep.numbers(found))))


@pytest.fixture(scope="module", params=[*FITS, curve_fit], ids=lambda make: make.__name__)
def pair(request):
    """A fit with replicates, and what is read back of it."""
    found = request.param().bootstrap(20)
    return found, through_json(found)


def test_a_fit_that_was_read_predicts_with_the_same_intervals(pair):
    found, back = pair
    assert back.law == found.law and back.params == found.params
    table = found.rows.table
    for of in ("law", "run"):
        for method in ("bootstrap", "delta"):
            one, other = (f.predict(table, 0.9, of, method).to_numpy() for f in (found, back))
            np.testing.assert_allclose(other, one, rtol=1e-9)


def test_a_fit_that_was_read_bootstraps_the_same_replicates(pair):
    found, back = pair
    assert back.bootstrap_kind == found.bootstrap_kind and back.intervals() == found.intervals()
    one, other = (f.bootstrap(10, seed=3).intervals() for f in (found, back))
    assert {k: pytest.approx(v, rel=1e-6) for k, v in one.items()} == other


def test_a_fit_that_was_read_has_the_same_profiles_and_errors(pair):
    found, back = pair
    assert back.standard_errors == pytest.approx(found.standard_errors, rel=1e-9)
    name = found.problem.free_parameters[0].name
    one, other = found.profile(name), back.profile(name)
    assert (other.low, other.high, other.threshold) == pytest.approx((one.low, one.high, one.threshold), rel=1e-6)
    np.testing.assert_allclose(other.table["objective"], one.table["objective"], rtol=1e-6, atol=1e-15)


def test_a_fit_that_was_read_says_the_same_of_itself(pair):
    found, back = pair
    for what in ("objective", "agreement", "minima", "converged", "gradient_norm", "starts", "seed", "at_bound"):
        assert getattr(back, what) == getattr(found, what), what
    assert back.rows.fingerprint == found.rows.fingerprint and back.rows.convention == found.rows.convention
    assert back.rows.notes == found.rows.notes and back.rows.excluded == found.rows.excluded
    assert back.problem.noise == found.problem.noise and back.problem.loss == found.problem.loss
    assert back.problem.priors == dict(found.problem.priors) and back.problem.fixed == dict(found.problem.fixed)
    assert back.r_squared == pytest.approx(found.r_squared) and back.unidentified == found.unidentified


@pytest.mark.parametrize("make", [*FITS, curve_fit], ids=lambda make: make.__name__)
def test_a_fit_that_was_read_holds_out_as_before(make):
    found = make()
    back = through_json(found)
    by = next(name for name in ("C", "step", found.law.inputs[-1].name) if name in found.rows.table)
    one, other = (f.holdout(by=by, fraction=0.15) for f in (found, back))
    assert other.above == one.above
    assert other.table["error"].tolist() == pytest.approx(one.table["error"].tolist(), rel=1e-6, abs=1e-12)


def test_a_fit_that_was_read_can_be_kept_again_word_for_word():
    once = json.loads(json.dumps(keep.numbers(chinchilla().bootstrap(10))))
    twice = json.loads(json.dumps(keep.numbers(keep.fit_from(once))))
    assert {k: v for k, v in twice.items() if k not in ("diagnosis", "warnings")} == {
        k: v for k, v in once.items() if k not in ("diagnosis", "warnings")
    }


def test_a_fit_without_replicates_has_none_when_read():
    back = through_json(chinchilla())
    assert back.free_replicates is None and keep.numbers(back)["interval"]["kind"] == "delta method"
    with pytest.raises(ValueError, match="no bootstrap replicates yet"):
        back.intervals()


def test_the_file_holds_the_version_the_data_and_the_choices():
    found = fixed_and_priors()
    kept = keep.numbers(found)
    assert kept["fixed"] == {"alpha": 0.34} and kept["priors"]["beta"] == {"mean": 0.3, "sd": 0.05}
    assert kept["data_hash"] == found.rows.fingerprint and kept["rows"] == 36 and kept["loss"] == "LeastSquares()"
    assert set(kept["versions"]) == {"fulcrum", "numpy", "scipy", "pandas"}
    assert kept["standard_errors"] == found.standard_errors and "alpha" not in kept["standard_errors"]


# --- broken files ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kept():
    return json.dumps(keep.numbers(chinchilla()))


def test_a_good_file_is_read(kept, tmp_path):
    (tmp_path / "fit.json").write_text(kept)
    found, content = keep.read(tmp_path / "fit.json")
    assert found.params == content["params"]


def test_a_missing_file_is_refused_with_where_to_get_one(tmp_path):
    with pytest.raises(ValueError, match=r"fit=.*none\.json: no such file\. `fulcrum fit` writes fit\.json"):
        keep.read(tmp_path / "none.json")
    with pytest.raises(ValueError, match="no such file"):
        keep.read(tmp_path)


def without(*names):
    def change(content):
        node = content
        for name in names[:-1]:
            node = node[name]
        del node[names[-1]]
        return content

    return change


@pytest.mark.parametrize(
    "change",
    [
        without("state"),
        without("params"),
        without("state", "law"),
        without("state", "table"),
        without("state", "table", "loss"),
        without("state", "table", "weight"),
        without("state", "free"),
        without("residuals"),
        lambda content: [content],
        lambda content: "fit",
        lambda content: content | {"state": None},
        lambda content: content | {"priors": {"E": {"middle": 1}}},
        lambda content: {"loss": 2.0},
    ],
)
def test_a_file_that_is_no_fit_is_refused_by_name(kept, tmp_path, change):
    path = tmp_path / "fit.json"
    path.write_text(json.dumps(change(json.loads(kept))))
    with pytest.raises(
        ValueError, match=r"fit=.*fit\.json is not a fit\.json of this version .*run `fulcrum fit` again"
    ):
        keep.read(path)


@pytest.mark.parametrize("text", ["", "{", "not json", "E,A\n1,2\n"])
def test_a_torn_or_foreign_file_is_refused_by_name(kept, tmp_path, text):
    path = tmp_path / "fit.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"fit=.*fit\.json is not a fit\.json"):
        keep.read(path)
    path.write_text(kept[: len(kept) // 2])
    with pytest.raises(ValueError, match=r"fit=.*fit\.json is not a fit\.json"):
        keep.read(path)


# --- laws and losses by name -------------------------------------------------------------------------------------


def every_law() -> list[type[Law]]:
    kinds = [kind for kind in vars(laws).values() if isinstance(kind, type) and issubclass(kind, Law)]
    return [kind for kind in kinds if isinstance(getattr(kind, "source", None), str)]


@pytest.mark.parametrize("kind", every_law(), ids=lambda kind: kind.__name__)
def test_every_law_is_made_again_from_what_it_says_of_itself(kind):
    fields = {"domains": ("a", "b")} if "Mixture" in kind.__name__ else {}
    law = kind(**fields)
    again = keep.law_from(json.loads(json.dumps(law.spec())))
    assert again == law and again.names == law.names and again.formula == law.formula


@pytest.mark.parametrize("loss", [Huber(0.02, 0.3), LeastSquares(), Absolute(1e-8), StudentT(7.0)])
def test_every_loss_is_made_again_from_its_fields(loss):
    spec = {"_target_": f"scaling.losses.{type(loss).__name__}", **vars(loss)}
    assert keep.loss_from(spec) == loss
    assert keep.loss_from(spec | {"_target_": type(loss).__name__}) == loss


def test_the_short_and_the_long_name_of_a_law_are_one():
    assert keep.law_from({"_target_": "PowerLaw", "x": ["N", "D"]}) == keep.law_from(
        {"_target_": "scaling.laws.PowerLaw", "x": ["N", "D"]}
    )
    assert keep.law_from({"_target_": "PowerLaw", "x": ["N", "D"]}) == PowerLaw(x=("N", "D"))


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"_target_": "scaling.laws.Chinchila"}, r"law\._target_=scaling\.laws\.Chinchila: no such law.*--list"),
        ({"_target_": "os.system"}, "no such law"),
        ({"_target_": "scaling.fit.fit"}, "no such law"),
        ({"_target_": "Reference"}, "no such law"),
        ({"_target_": "Chinchilla", "tied": True}, r"Chinchilla cannot be made from \{'tied': True\}"),
        ({"_target_": "AdditiveMixture"}, "AdditiveMixture cannot be made from no fields"),
        ({"_target_": "AdditiveMixture", "domains": ["web", "web"]}, "two or more different names"),
    ],
)
def test_a_law_that_does_not_exist_or_cannot_be_made_is_refused(spec, words):
    with pytest.raises(ValueError, match=words):
        keep.law_from(spec)


@pytest.mark.parametrize("name", ["Hubber", "scaling.losses.Loss", "has_scale", "builtins.eval"])
def test_a_loss_that_does_not_exist_is_refused_with_those_that_do(name):
    with pytest.raises(ValueError, match=rf"loss\._target_={name}: one of Huber, LeastSquares, Absolute, StudentT"):
        keep.loss_from({"_target_": name})
