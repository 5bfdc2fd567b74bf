"""The console command as a newcomer meets it, and the whole path from a sweep to a report."""

import json

import pytest


@pytest.mark.parametrize("command", ["train", "data", "fit", "report", "runs"])
def test_each_command_explains_itself_with_examples(fulcrum, command):
    result = fulcrum(command, "--help")
    assert result.returncode == 0
    assert result.stdout.count(f"fulcrum {command}") >= 3, "a title and examples"


def test_fulcrum_alone_lists_its_commands(fulcrum):
    assert fulcrum("--help").returncode == 0
    result = fulcrum()
    assert result.returncode == 2
    for command in ("train", "data", "fit", "report", "runs"):
        assert f"  {command}" in result.stdout
    assert "no command 'trian'" in fulcrum("trian").stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit"], "fit needs either runs="),
        (["fit", "runs=nowhere"], "nowhere"),
        (["report", "runs=nowhere"], "nowhere"),
        (["runs", "runs=nowhere"], "nowhere"),
        (["data", "data=files", "data.sources.files.paths=[nowhere/*.txt]"], "nowhere"),
        (["train", "data=files", "data.sources.files.paths=[nowhere/*.txt]"], "nowhere"),
        (["train", "no_such_key=1"], "no_such_key"),
    ],
)
def test_a_mistake_ends_in_one_clear_message(fulcrum, tmp_path, arguments, message):
    result = fulcrum(*arguments)
    assert result.returncode == 1
    assert message in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "runs").exists()


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
