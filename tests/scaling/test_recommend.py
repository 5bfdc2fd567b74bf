"""What `fulcrum recommend` says must be what the laws say, with units, provenance and where it extrapolates."""

import json

import pandas as pd
import pytest
from hydra import compose, initialize_config_module

from scaling.commands_recommend import recommend_command
from scaling.hyperparameters import law_of
from scaling.laws import OptimalTimescale, PowerLaw, StepLawBatch
from scaling.recommend import advices, disagreements, ramp

N, D = 2e5, 4e6


def config(*overrides):
    with initialize_config_module("conf", version_base="1.3"):
        return compose("recommend", list(overrides))


def fitted(law, x, params):
    """A law through points without noise, as a report keeps it."""
    table = pd.DataFrame(x).assign(error=0.05, usable=True)
    return law_of(law, table.assign(**{law.y: law.predict(params, table)})).numbers()


@pytest.fixture(scope="module")
def own():
    n, d = [1e5, 1e5, 2e5, 4e5, 4e5], [1e6, 4e6, 4e6, 4e6, 8e6]
    b = [1024, 4096, 2048, 8192, 2048]
    laws = {
        "rate": fitted(PowerLaw(x=("N", "D", "B"), y="lr"), {"N": n, "D": d, "B": b},
                       {"k": 0.05, "a_N": -0.3, "a_D": -0.1, "a_B": 0.5}),
        "best_batch": fitted(StepLawBatch(), {"D": d}, {"k": 0.5, "a_D": 0.55}),
        "best_rate": "3 of 5 best values are bracketed.",
        "timescale": fitted(OptimalTimescale(), {"TPP": [5, 10, 20, 40]}, {"k": 1.2, "a_TPP": -0.5}),
    }  # fmt: skip
    return {"settings": {"": {"laws": laws}}, "main": "", "sequence_length": 128}


@pytest.fixture(scope="module")
def cbs():
    cells = [{"N": 1e5, "D": 1e6, "critical": 2000.0}, {"N": 1e5, "D": 4e6, "critical": 4000.0}]
    return {"cells": cells, "law": {"a_D": {"value": 0.5, "low": 0.3, "high": 0.7}}}


def by_source(found):
    return {one.source.split(",")[0]: one for one in found}


def test_own_laws_give_rate_batch_and_weight_decay(own):
    mine = advices(N, D, own)[0]
    batch = 0.5 * D**0.55
    rate = 0.05 * N**-0.3 * D**-0.1 * batch**0.5
    tau = 1.2 * (D / N) ** -0.5
    assert (mine.batch, mine.rate, mine.timescale) == pytest.approx((batch, rate, tau), rel=1e-4)
    assert mine.weight_decay == pytest.approx(batch / (rate * tau * D), rel=1e-4)
    assert mine.rate_interval[0] < mine.rate < mine.rate_interval[1] and mine.extrapolates == ""
    assert any("no law of best rate: 3 of 5" in note for note in mine.notes)


def test_a_batch_that_is_given_moves_rate_and_weight_decay_by_the_own_law(own):
    one, other = (advices(N, D, own, batch=batch)[0] for batch in (1024, 4096))
    assert other.rate / one.rate == pytest.approx(2, rel=1e-3)
    assert other.weight_decay / one.weight_decay == pytest.approx(2, rel=1e-3)
    assert other.batch == 4096 and other.batch_interval is None


def test_outside_the_runs_it_says_so(own):
    assert "N (run: 1e+05 to 4e+05)" in advices(1e9, D, own)[0].extrapolates
    assert "D (run: 1e+06 to 8e+06)" in advices(N, 1e9, own)[0].extrapolates
    assert "B" in advices(N, D, own, batch=1e6)[0].extrapolates


def test_published_laws_are_as_their_constants_say_and_carry_their_provenance():
    found = by_source(advices(1e9, 2e10))
    step = found["Step Law"]  # arXiv:2503.04715 as two reviews quote it
    assert step.rate == pytest.approx(1.79 * 1e9**-0.713 * 2e10**0.307) and step.known_from == "secondary"
    assert step.batch == pytest.approx(0.58 * 2e10**0.571)
    lines = found["Power Lines"]
    assert lines.critical == pytest.approx(2048 * 0.0471 * 2e10**0.462) and lines.known_from == "recalled"
    assert lines.rate is None and lines.weight_decay is None
    assert found["DeepSeek"].known_from == "recalled" and found["Zhang et al."].known_from == "refit"
    assert found["Zhang et al."].critical == pytest.approx(512 * 93.197 * 1e3**0.46828)
    assert "85" in by_source(advices(1e11, 2e12))["Zhang et al."].extrapolates.replace("8.5", "85")


def test_own_critical_batch_is_moved_from_the_nearest_cell(cbs):
    mine = advices(N, 16e6, cbs=cbs)[0]
    assert mine.critical == pytest.approx(4000 * 4**0.5)  # N has no exponent here, D has 0.5
    assert "no exponent of N" in mine.notes[0] and "D (run: 1e+06 to 4e+06)" in mine.extrapolates


def test_the_ramp_starts_below_the_own_critical_batch_first(own, cbs):
    overrides, source = ramp(advices(1e5, 4e6, own, cbs), 128)
    assert overrides == "ramp=seesaw ramp.batch_size=16 schedule=cosine" and source == "your critical batch"
    published = advices(1e9, 2e10)
    start = int(ramp(published, 2048)[0].split("batch_size=")[1].split()[0])
    assert start * 2048 < min(one.critical for one in published if one.critical)


def test_disagreements_are_ratios_to_the_first_source(own):
    found = advices(N, D, own)
    said = disagreements(found)
    step = by_source(found)["Step Law"]
    ratio = f"{step.rate / found[0].rate:.2g}"
    assert any(s.startswith("rate: Step Law") and f"has {ratio} times that of your runs" in s for s in said)


def test_the_command_reads_reports_and_prints_both_forms(own, cbs, tmp_path, capsys):
    report = tmp_path / "sweep/report"
    report.mkdir(parents=True)
    (report / "hyperparameters.json").write_text(json.dumps(own))
    (report / "cbs.json").write_text(json.dumps(cbs))
    where = [f"N={N}", f"D={D}", "sequence_length=128"]
    recommend_command(config(*where, f"runs={tmp_path / 'sweep'}", "format=json"))
    told = json.loads(capsys.readouterr().out)
    assert [one["source"] for one in told["advice"]][:2] == ["your runs", "your critical batch"]
    assert told["ramp"].startswith("ramp=seesaw") and told["advice"][0]["known_from"] == "own"
    recommend_command(config(*where, f"fit={report / 'hyperparameters.json'}"))
    printed = capsys.readouterr().out
    assert "your runs" in printed and "recalled" in printed and "sequences" in printed and "No laws" not in printed
    recommend_command(config(*where))
    assert "No laws of your own" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["D=1e9"], "N=<...> is needed"),
        (["N=1e9", "D=0"], "D=0 must be a positive number, as 2e10"),
        (["N=many", "D=1e9"], "N=many must be a positive number"),
        (["N=1e9", "D=1e9", "batch=-1"], "batch=-1 must be a positive number"),
        (["N=1e9", "D=1e9", "format=xml"], "format=xml: one of table, json"),
        (["N=1e9", "D=1e9", "runs=nowhere"], "runs=nowhere: no hyperparameters.json or cbs.json"),
        (["N=1e9", "D=1e9", "fit=nowhere.json"], "fit=nowhere.json: no such file"),
        (["N=1e9", "D=1e9", "fit=pyproject.toml"], "fit=pyproject.toml: one of hyperparameters.json, cbs.json"),
    ],
)
def test_wrong_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words.replace(".", r"\.")):
        recommend_command(config(*options))
