"""What `fulcrum recommend` says must be what the laws say, with units, provenance and where it extrapolates."""

import json

import numpy as np
import pandas as pd
import pytest
from hydra import compose, initialize_config_module

from scaling.commands_recommend import recommend_command
from scaling.hyperparameters import law_of
from scaling.laws import OptimalTimescale, PowerLaw, StepLawBatch
from scaling.recommend import NOTHING, UNKNOWN, advices, disagreements, ramp

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


@pytest.fixture(scope="module")
def cells():
    """As a report with exponents of b / a has them: B* = 0.2 b / a + 1.2 B0."""
    rows = [
        {"N": n, "D": d, "B0": 500.0, "critical": 600 + 0.2 * r, "low": 200 + 0.2 * r, "high": 1600 + 0.2 * r}
        for n, d, r in ((1e5, 1e6, 5000.0), (1e5, 4e6, 10000.0), (2e5, 4e6, 15000.0))
    ]
    rows[-1] |= {"low": 2600.0, "high": 4600.0}
    law = {"a_N": {"value": 0.1, "low": -0.1, "high": 0.4}, "a_D": {"value": 0.5, "low": 0.4, "high": 0.7}}
    bent = {name: {"value": 9.0, "low": 9.0, "high": 9.0} for name in law}
    return {"overhead": 0.2, "cells": rows, "law": bent, "ratio_law": law}


def by_source(found):
    return {one.source.split(",")[0]: one for one in found}


def test_own_laws_give_rate_batch_and_weight_decay(own):
    mine = advices(N, D, own)[0]
    batch = 0.5 * D**0.55
    rate = 0.05 * N**-0.3 * D**-0.1 * batch**0.5
    tau = 1.2 * (D / N) ** -0.5
    assert (mine.batch, mine.rate, mine.timescale) == pytest.approx((batch, rate, tau), rel=1e-4)
    assert mine.weight_decay == pytest.approx(batch / (rate * tau * D), rel=1e-4)
    assert mine.rate_interval[0] < mine.rate < mine.rate_interval[1] and mine.extrapolates == NOTHING
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
    assert (
        overrides == "ramp=seesaw ramp.batch_size=16 schedule=cosine"
        and "half the critical batch of your critical batch" in source
    )
    published = advices(1e9, 2e10)
    start = int(ramp(published, 2048)[0].split("batch_size=")[1].split()[0])
    assert start * 2048 < min(one.critical for one in published if one.critical)


def test_the_growth_of_b_over_a_moves_the_critical_batch_and_its_first_batch_stays(cells):
    """B* = 0.2 b / a + 1.2 B0, whose B0 is the same for every size and target."""
    mine = advices(4e5, 16e6, cbs=cells)[0]
    assert mine.critical == pytest.approx(0.2 * 15000 * 2**0.1 * 4**0.5 + 1.2 * 500)
    low, high = mine.critical_interval
    down = ((0.2 * np.log(2)) ** 2 + (0.1 * np.log(4)) ** 2 + np.log(3000 / 2000) ** 2) ** 0.5
    assert low == pytest.approx(600 + 3000 * 2**0.1 * 4**0.5 * np.exp(-down))
    assert low < mine.critical < high and mine.notes == ()
    near = advices(2e5, 4e6, cbs=cells)[0]
    assert near.critical_interval == pytest.approx((2600, 4600)) and near.extrapolates == NOTHING
    far = advices(1e9, 2e10, cbs=cells)[0].critical_interval
    assert far[1] / far[0] > 10 * high / low  # wider far from the runs


def test_without_seeds_or_an_exponent_the_critical_batch_has_no_interval(cells, cbs):
    alone = cells["ratio_law"] | {"a_N": {"value": 0.1, "low": None, "high": None}}
    for numbers in (cbs, cells | {"ratio_law": alone}):
        mine = advices(1e9, 2e10, cbs=numbers)[0]
        assert mine.critical_interval is None and "no interval" in " ".join(mine.notes)


def test_an_exponent_is_not_asked_for_where_the_cell_itself_was_measured(cells):
    none = {name: {"value": 0.1, "low": None, "high": None} for name in ("a_N", "a_D")}
    assert advices(2e5, 4e6, cbs=cells | {"ratio_law": none})[0].critical_interval == pytest.approx((2600, 4600))


def test_the_line_of_the_ramp_tells_its_interval_and_how_far_it_is_extrapolated(cells):
    _, why = ramp(advices(1e9, 2e10, cbs=cells), 2048)
    assert " to " in why and "extrapolated in D (run: 1e+06 to 4e+06); N (run: 1e+05 to 2e+05)" in why
    assert "measure it nearer" in why
    _, near = ramp(advices(2e5, 4e6, cbs=cells), 128)
    assert "2.6k to 4.6k" in near and "extrapolated" not in near
    _, published = ramp(advices(1e9, 2e10), 2048)
    assert "no interval" in published


def test_what_published_laws_were_fitted_to_is_unknown_and_never_blank(own, cells):
    for where in ((1e6, 2e7), (1e9, 2e10), (7e10, 1.4e12)):
        found = by_source(advices(*where, own, cells))
        assert {found[name].extrapolates for name in ("Step Law", "DeepSeek", "Power Lines")} == {UNKNOWN}
        assert all(one.extrapolates for one in found.values())


def test_the_critical_batch_of_a_size_alone_is_marked_where_tokens_are_far_from_optimal():
    zhang = [by_source(advices(1e9, tokens))["Zhang et al."] for tokens in (2e10, 1e12, 1e9)]
    assert zhang[0].extrapolates == NOTHING
    assert all("D / N (run: about 20)" in one.extrapolates for one in zhang[1:])


def test_a_batch_that_is_given_is_nobodys_best_one(own):
    plain, given = (by_source(advices(1e9, 2e10, own, batch=batch)) for batch in (None, 65536))
    for name in ("Step Law", "DeepSeek", "Power Lines"):
        assert given[name].batch == plain[name].batch != 65536 and not given[name].batch_given
    assert given["your runs"].batch_given
    assert not any(said.startswith("batch") and "your runs" in said for said in disagreements(list(given.values())))


def test_the_ramp_starts_at_the_batch_that_is_given(cells):
    overrides, why = ramp(advices(2e5, 4e6, cbs=cells, batch=1280), 128, 1280)
    assert "ramp.batch_size=10 " in overrides and "the batch that was given, below it" in why
    assert "above it, where its theory does not hold" in ramp(advices(2e5, 4e6, cbs=cells), 128, 1e6)[1]


def test_the_ramp_of_branches_of_the_own_run_is_printed(tmp_path, capsys):
    text = "ramp=step ramp.thresholds_in_tokens=[4000,9000] ramp.batch_sizes=[4,8,16] ramp.lr_exponent=0.5"
    told = {"sequence_length": 128, "critical": [{"tokens": 2e5}, {"tokens": 4e5}], "ramps": {"by the root": text}}
    options = [f"N={N}", f"D={D}", f"runs={written(tmp_path / 'a/report', cbs_branched=told)}"]
    recommend_command(config(*options))
    printed = capsys.readouterr().out
    assert (
        f"by the root (in sequences of 128 tokens and for its own budget, measured to 400k tokens): {text}" in printed
    )
    recommend_command(config(*options, "format=json"))
    assert json.loads(capsys.readouterr().out)["own_ramps"] == {"by the root": text}
    written(tmp_path / "a/report", cbs_branched=told | {"ramps": {}})
    recommend_command(config(*options))
    assert "Your branches give no ramp" in capsys.readouterr().out


def test_disagreements_are_ratios_to_the_first_source(own):
    found = advices(N, D, own)
    said = disagreements(found)
    step = by_source(found)["Step Law"]
    ratio = f"{step.rate / found[0].rate:.2g}"
    assert any(
        s.startswith("rate: Step Law") and f"has {ratio} times that of your runs (at another batch)." in s for s in said
    )


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


def written(folder, **numbers):
    folder.mkdir(parents=True, exist_ok=True)
    for name, told in numbers.items():
        (folder / f"{name}.json").write_text(json.dumps(told))
    return folder


def sources(capsys, *options):
    recommend_command(config(f"N={N}", f"D={D}", "format=json", *options))
    return [one["source"] for one in json.loads(capsys.readouterr().out)["advice"] if one["known_from"] == "own"]


def test_the_folder_of_a_report_of_several_experiments_serves_as_well(own, cbs, tmp_path, capsys):
    both = ["your runs", "your critical batch"]
    written(tmp_path / "joint/hyperparameters", hyperparameters=own)  # fulcrum report runs=[...] out=joint
    written(tmp_path / "joint/cbs", cbs=cbs)
    assert sources(capsys, f"runs={tmp_path / 'joint'}") == both
    assert sources(capsys, f"runs={tmp_path / 'joint/cbs'}") == both[1:]
    written(tmp_path / "runs/a/report", hyperparameters=own)
    written(tmp_path / "runs/b/report", cbs=cbs)
    assert sources(capsys, f"runs=[{tmp_path / 'runs/a'},{tmp_path / 'runs/b'}]") == both
    assert sources(capsys, f"runs={tmp_path / 'runs'}") == both


def test_two_files_of_one_kind_are_refused_and_named(own, tmp_path):
    one, other = (written(tmp_path / name / "report", hyperparameters=own) for name in "ab")
    for options in ([f"runs=[{one},{other}]"], [f"runs={one}", f"fit={other / 'hyperparameters.json'}"]):
        with pytest.raises(ValueError, match=f"two files of hyperparameters.json: {one}.* and {other}"):
            recommend_command(config(f"N={N}", f"D={D}", *options))
    recommend_command(config(f"N={N}", f"D={D}", f"runs=[{one},{one}]"))  # one file, named twice


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["D=1e9"], "N=<...> is needed"),
        (["N=1e9", "D=0"], "D=0 must be a positive number, as 2e10"),
        (["N=many", "D=1e9"], "N=many must be a positive number"),
        (["N=1e9", "D=1e9", "batch=-1"], "batch=-1 must be a positive number"),
        (["N=1e9", "D=1e9", "format=xml"], "format=xml: one of table, json"),
        (["N=1e9", "D=1e9", "runs=nowhere"], "runs=nowhere: no hyperparameters.json, cbs.json or cbs_branched.json"),
        (["N=1e9", "D=1e9", "fit=nowhere.json"], "fit=nowhere.json: no such file"),
        (
            ["N=1e9", "D=1e9", "fit=pyproject.toml"],
            "fit=pyproject.toml: one of hyperparameters.json, cbs.json or cbs_bran",
        ),
    ],
)
def test_wrong_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words.replace(".", r"\.")):
        recommend_command(config(*options))
