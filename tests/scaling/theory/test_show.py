"""`fulcrum theory`: numbers, comparisons and the picture."""

import json

import numpy as np
import pytest

from data.problems import power_law
from optim.averaging import Tail
from optim.plan import Plan
from optim.ramps import ConstantBatch, Seesaw
from optim.schedules import Cosine
from scaling.theory import gd_risk, max_stable_lr, normalized_sgd_risk, sgd_risk
from scaling.theory.show import Followed, curve, show

PROBLEM = power_law(40, 1.5, 2.0, 0.1)
CONSTANT = Followed("constant", PROBLEM, Plan(4000, 1, 0.2, Cosine(), ConstantBatch(4)))
RAMP = Followed("ramp", PROBLEM, Plan(4000, 1, 0.2, Cosine(), Seesaw(batch_size=4)))


def told(capsys, runs, algorithms=("sgd",), **how):
    show(runs, algorithms, form="json", **how)
    return json.loads(capsys.readouterr().out)


def test_numbers_are_those_of_the_functions(capsys):
    found = told(capsys, [CONSTANT, RAMP], ("sgd", "gd", "normalized_sgd"))["plans"]
    assert [(row["plan"], row["algorithm"]) for row in found][:4] == [
        ("constant", "sgd"), ("constant", "gd"), ("constant", "normalized_sgd"), ("ramp", "sgd"),
    ]  # fmt: skip
    for row in found:
        run = {"constant": CONSTANT, "ramp": RAMP}[row["plan"]]
        expected = {
            "sgd": lambda plan: sgd_risk(PROBLEM, plan=plan),
            "gd": lambda plan: gd_risk(PROBLEM, plan.steps().lr),
            "normalized_sgd": lambda plan: normalized_sgd_risk(PROBLEM, plan=plan),
        }[row["algorithm"]](run.plan)
        assert row["risk"] == pytest.approx(float(expected), rel=1e-6)
        assert row["steps"] == run.plan.serial_steps and row["rows"] == 4000
    assert found[0]["bias"] + found[0]["variance"] == pytest.approx(found[0]["risk"], rel=1e-9)
    assert found[0]["max_stable_lr"] == pytest.approx(max_stable_lr(PROBLEM, 4))


def test_a_curve_ends_where_the_plan_does():
    table = curve(RAMP, "sgd", "sgd")
    assert table["step"].iloc[0] == 1 and table["step"].iloc[-1] == RAMP.plan.serial_steps
    assert table["rows"].iloc[-1] == 4000 and (np.diff(table["rows"]) > 0).all()
    assert table["risk"].iloc[-1] == pytest.approx(float(sgd_risk(PROBLEM, plan=RAMP.plan)), rel=1e-6)


def test_averages_of_sgd_have_lines_of_their_own(capsys, tmp_path):
    run = Followed("tail", PROBLEM, CONSTANT.plan, {"half": Tail(0.5)})
    found = told(capsys, [run], ("sgd", "gd"), out=str(tmp_path / "risk.svg"))["plans"]
    assert [row["algorithm"] for row in found] == ["sgd", "sgd, half", "gd"]
    assert found[1]["risk"] == pytest.approx(float(sgd_risk(PROBLEM, plan=run.plan, average=Tail(0.5))), rel=1e-6)
    assert found[1]["bias"] + found[1]["variance"] == pytest.approx(found[1]["risk"], rel=1e-9)
    assert found[1]["risk"] != pytest.approx(found[0]["risk"], rel=0.01)
    assert "sgd, half" in (tmp_path / "risk.svg").read_text()


def test_methods_are_compared_once_per_problem(capsys):
    other = Followed("other", power_law(40, 2.0, 1.5, 0.1), CONSTANT.plan)
    found = told(capsys, [CONSTANT, RAMP, other], rows=[50])["comparisons"]
    assert [(row["plan"], row["rows"]) for row in found] == [("constant", 50), ("other", 50)]
    for row in found:
        assert row["factors"][row["winner"]] == 1.0 and min(row["factors"].values()) == 1.0
        assert row["risks"][row["winner"]] == min(row["risks"].values())


def test_the_terminal_says_it_too(capsys, tmp_path):
    show([CONSTANT, RAMP], ["sgd"], rows=[50], out=str(tmp_path / "risk.svg"))
    text = capsys.readouterr().out
    assert "constant" in text and "stable below" in text and "gradient descent" in text
    assert "excess risk" in (tmp_path / "risk.svg").read_text()


@pytest.mark.parametrize(("algorithms", "form", "message"), [
    (["adam"], "table", "algorithms=.*adam.*use some of sgd"),
    ([], "table", "algorithms="),
    (["sgd"], "yaml", "format=yaml"),
])  # fmt: skip
def test_what_there_is_not_is_refused(algorithms, form, message):
    with pytest.raises(ValueError, match=message):
        show([CONSTANT], algorithms, form=form)
