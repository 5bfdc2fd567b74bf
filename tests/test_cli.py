"""The console command as a newcomer meets it, and the whole path from a sweep to a report."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("command", ["train", "plan", "theory", "data", "fit", "export", "report", "runs"])
def test_each_command_explains_itself_with_examples(fulcrum, command):
    result = fulcrum(command, "--help")
    assert result.returncode == 0
    assert result.stdout.count(f"fulcrum {command}") >= 3, "a title and examples"


def test_fulcrum_alone_lists_its_commands(fulcrum):
    assert fulcrum("--help").returncode == 0
    result = fulcrum()
    assert result.returncode == 2
    for command in ("train", "plan", "theory", "data", "fit", "export", "report", "runs"):
        assert f"  {command}" in result.stdout
    assert "no command 'trian'" in fulcrum("trian").stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit"], "fit needs either runs="),
        (["fit", "runs=nowhere"], "nowhere"),
        (["report", "runs=nowhere"], "nowhere"),
        (["runs", "runs=nowhere"], "nowhere"),
        (["export", "run=nowhere", "out=x"], "nowhere"),
        (["data", "data=files", "data.sources.files.paths=[nowhere/*.txt]"], "nowhere"),
        (["train", "data=files", "data.sources.files.paths=[nowhere/*.txt]"], "nowhere"),
        (["train", "no_such_key=1"], "no_such_key"),
        (["data", "dry_run=true"], "`fulcrum data` has no dry run"),
        (["plan", "ramp=seesaw", "schedule=constant"], "the ramp would never grow"),
        (["plan", "ramp=seesaw", "records=nowhere"], "nowhere"),
    ],
)
def test_a_mistake_ends_in_one_clear_message(fulcrum, tmp_path, arguments, message):
    result = fulcrum(*arguments)
    assert result.returncode == 1
    assert message in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "runs").exists()


def test_plans_are_shown_without_training(fulcrum, tiny, tmp_path):
    ramps = fulcrum("plan", "-m", *tiny, "ramp=constant,seesaw", "total_tokens=1e6", "format=json")
    assert ramps.returncode == 0, ramps.stderr
    constant, seesaw = json.loads(ramps.stdout)
    assert constant["serial_steps"] == seesaw["constant_batch_steps"] > seesaw["serial_steps"]
    assert constant["label"] == "ramp=constant" and len(constant["segments"]) == 1
    single = fulcrum("plan", *tiny, "ramp=seesaw", "out=plan.svg")
    assert "from token" in single.stdout and (tmp_path / "plan.svg").exists()
    assert not (tmp_path / "runs").exists()


def test_exact_risks_of_plans_are_shown_without_training(fulcrum, tmp_path):
    """Sweeps over the plan and over the problem; a token is a row."""
    shown = fulcrum("theory", "-m", "ramp=constant,seesaw", "total_tokens=4e3", "format=json", "out=risk.svg")
    assert shown.returncode == 0, shown.stderr
    constant, seesaw = json.loads(shown.stdout)["plans"]
    assert constant["plan"] == "ramp=constant" and constant["rows"] == seesaw["rows"] == 4000
    assert seesaw["steps"] < constant["steps"] == 1000 and 0.5 < seesaw["risk"] / constant["risk"] < 2
    problems = fulcrum("theory", "-m", "problem.a=1.2,2", "problem.dimension=50", "total_tokens=4e3", "format=json")
    easy, hard = json.loads(problems.stdout)["plans"]
    assert easy["plan"] == "problem.a=1.2" and easy["risk"] != hard["risk"]
    assert (tmp_path / "risk.svg").exists() and not (tmp_path / "runs").exists()
    for refused, message in (
        (["parent.tokens=500"], "a branch has no plan of its own"),
        (["sequence_length=16"], "sequence_length=16: a token is a row"),
    ):
        result = fulcrum("theory", *refused)
        assert result.returncode == 1 and message in result.stderr and "Traceback" not in result.stderr
    unstable = fulcrum("theory", "peak_lr=3")
    assert unstable.returncode == 1 and "is unstable" in unstable.stderr and "Traceback" not in unstable.stderr


def test_every_schedule_and_ramp_makes_a_plan(fulcrum, tiny):
    schedules = sorted(path.stem for path in (ROOT / "conf/schedule").glob("*.yaml") if path.stem != "refined")
    result = fulcrum("plan", "-m", *tiny, f"schedule={','.join(schedules)}", "format=json")
    assert result.returncode == 0, result.stderr
    assert len(json.loads(result.stdout)) == len(schedules) > 10
    ramps = sorted(path.stem for path in (ROOT / "conf/ramp").glob("*.yaml"))
    sized = [o for o in tiny if not o.startswith("ramp.")]
    result = fulcrum("plan", "-m", *sized, f"ramp={','.join(ramps)}", "total_tokens=1e5", "format=json")
    assert result.returncode == 0, result.stderr
    assert len(json.loads(result.stdout)) == len(ramps)


def test_from_a_sweep_to_a_law_and_a_report(fulcrum, tiny, tmp_path):
    sweep = ["train", "-m", *tiny, "model.d_model=8,16,32", "total_tokens=6400,19200", "launch.experiment=path"]
    trained = fulcrum(*sweep)
    assert trained.returncode == 0, trained.stderr
    fitted = fulcrum("fit", "law=chinchilla", "runs=runs/path", "bootstrap=50")
    assert fitted.returncode == 0, fitted.stderr
    assert set(json.loads((tmp_path / "runs/path/fit.json").read_text())["params"]) == {"E", "A", "B", "alpha", "beta"}
    report = fulcrum("report", "runs=runs/path", "bootstrap=50")
    assert report.returncode == 0, report.stderr
    assert "Report: runs/path/report/index.html" in report.stdout
    assert "unigram" in (tmp_path / "runs/path/report/index.html").read_text()
    listed = fulcrum("runs", "runs=runs/path", "format=json", "columns=[run_id,N,D,eval_loss]")
    assert len(json.loads(listed.stdout)) == 6
    too_few = fulcrum("fit", "runs=runs/path", "filter='N < 3000'")
    assert too_few.returncode == 1 and "parameters" in too_few.stderr and "Traceback" not in too_few.stderr
