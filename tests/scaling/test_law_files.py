import re
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from scaling import keep, laws
from scaling.commands_fit import list_laws
from scaling.laws.law import Law
from scaling.losses import Absolute, Huber, LeastSquares, StudentT

CONF = Path(__file__).resolve().parents[2] / "conf"
LAW_FILES = sorted(path.stem for path in (CONF / "law").glob("*.yaml"))
DOMAINS = {"domains": ["a", "b"], "groups": ["a", "b"]}
TRUTH = {"E": 1.9, "A": 60.0, "alpha": 0.38, "B": 180.0, "beta": 0.35}


def filled(spec: dict) -> dict:
    return {k: DOMAINS[k] if v == "???" else v for k, v in spec.items()}


@pytest.mark.parametrize("name", LAW_FILES)
def test_every_law_of_the_configuration_is_made_with_the_fields_it_lists(name):
    spec = yaml.safe_load((CONF / "law" / f"{name}.yaml").read_text())
    law = keep.law_from(filled(spec))
    assert isinstance(law, Law) and law.formula and law.source and law.parameters and law.inputs
    listed = {k: tuple(v) if isinstance(v, list) else v for k, v in filled(spec).items()}
    assert listed.items() <= law.spec().items()


def test_every_law_has_a_file():
    made = {
        type(keep.law_from(filled(yaml.safe_load((CONF / "law" / f"{n}.yaml").read_text())))).__name__
        for n in LAW_FILES
    }
    kinds = [k for k in vars(laws).values() if isinstance(k, type) and issubclass(k, Law)]
    assert made == {k.__name__ for k in kinds if isinstance(getattr(k, "source", None), str)}


@pytest.mark.parametrize(
    ("name", "loss"),
    [("huber", Huber()), ("least_squares", LeastSquares()), ("absolute", Absolute()), ("student_t", StudentT())],
)
def test_every_loss_of_the_configuration_is_the_loss_of_that_name_with_its_defaults(name, loss):
    assert keep.loss_from(OmegaConf.to_container(OmegaConf.load(CONF / "loss" / f"{name}.yaml"))) == loss
    assert len(list((CONF / "loss").glob("*.yaml"))) == 4


@pytest.fixture(scope="module")
def listing() -> dict[str, str]:
    """What `fulcrum fit --list` prints, by name of the law."""
    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()) as out:
        list_laws()
    blocks = re.split(r"^law=(?=\w)", out.getvalue(), flags=re.MULTILINE)[1:]
    return {block.split()[0]: block for block in blocks}


@pytest.mark.parametrize("name", LAW_FILES)
def test_the_list_shows_formula_columns_parameters_source_and_published_constants(listing, name):
    law = keep.law_from(filled(yaml.safe_load((CONF / "law" / f"{name}.yaml").read_text())))
    shown = listing[name]
    assert law.formula in shown and law.source in shown and law.name in shown
    assert ", ".join(law.names) in shown
    assert all(f"{column.name} ({column.meaning})" in shown for column in law.inputs)
    assert shown.count("RECALLED, not confirmed") == sum(r.known_from == "recalled" for r in law.references)
    for reference in law.references:
        assert all(f"{k} {v:.6g}" in shown for k, v in reference.params.items()) and reference.source in shown


def test_the_list_shows_every_law_once_and_marks_what_is_recalled(listing):
    assert list(listing) == LAW_FILES
    assert any("RECALLED" in block for block in listing.values())
    assert "RECALLED" not in listing["data_constrained"]  # its constants stand in the authors' code


def test_the_list_says_which_fields_must_be_given(listing):
    assert "law.domains=[...]" in listing["additive_mixture"] and "law.groups=[...]" in listing["parallel_power_law"]
    assert "law." not in listing["chinchilla"]
