import json

import pytest
from hydra import compose, initialize_config_module

from data.records import load_runs
from scaling.commands import report_command, runs_command
from scaling.commands_fit import fit_command


def config(name, *overrides):
    with initialize_config_module("conf", version_base="1.3"):
        return compose(name, list(overrides))


def test_fit_prints_the_law_and_keeps_it_beside_the_runs(make_runs, tmp_path, capsys):
    runs = make_runs(tmp_path / "runs", bad=True)
    fit_command(config("fit", f"runs={runs}", "bootstrap=50", "starts=32"))
    printed = capsys.readouterr().out
    kept = json.loads((runs / "fit.json").read_text())
    assert "90 % interval" in printed and "1 diverged, 1 unfinished" in printed and "held out" not in printed
    assert kept["holdout"]["rows"] == 2 and kept["source_file"] == str(runs)
    assert f"{kept['params']['E']:.5g}" in printed


def test_fit_reads_any_table_with_a_column_map(make_runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    load_runs(make_runs(tmp_path / "runs"))[["N", "D", "eval_loss"]].set_axis(["p", "t", "l"], axis=1).to_csv("t.csv")
    fit_command(
        config("fit", "table=t.csv", "columns.N=p", "columns.D=t", "columns.loss=l", "bootstrap=0", "holdout=null")
    )
    kept = json.loads((tmp_path / "fit.json").read_text())
    assert kept["columns"] == {"N": "p", "D": "t", "loss": "l"} and kept["convention"]["C"] == "6 N D"
    assert "delta method" in capsys.readouterr().out


@pytest.mark.parametrize("given", [[], ["runs=a", "table=b.csv"]])
def test_fit_wants_runs_or_a_table(given):
    with pytest.raises(ValueError, match="either runs=<folder of runs> or table="):
        fit_command(config("fit", *given))


def test_runs_are_filtered_sorted_and_printed_for_other_programs(runs_folder, capsys):
    options = ["filter='N > 1e5 and `model.d_model` < 192'", "sort=-eval_loss", "columns=[run_id,N,eval_loss]"]
    runs_command(config("runs", f"runs={runs_folder}", *options, "format=json"))
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 6 and list(rows[0]) == ["run_id", "N", "eval_loss"]
    assert rows == sorted(rows, key=lambda row: -row["eval_loss"])
    runs_command(config("runs", f"runs={runs_folder}", "format=csv"))
    assert len(capsys.readouterr().out.splitlines()) == 13


def test_the_table_of_runs_cuts_nothing_off(runs_folder, capsys):
    runs_command(config("runs", f"runs={runs_folder}"))
    printed = capsys.readouterr().out
    assert "held-out loss" in printed and "peak_lr" in printed and "model.d_model" not in printed  # N says it already
    assert "\N{HORIZONTAL ELLIPSIS}" not in printed


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["filter='nonsense > 1'"], "cannot be evaluated .*columns are"),
        (["filter='N > 1e12'"], "leaves none of the 12 rows"),
        (["sort=size"], "sort=size: no such column"),
        (["columns=[size]"], "columns=size: no such column"),
        (["format=xml"], "format=xml: one of table, csv, json"),
    ],
)
def test_wrong_options_of_runs_are_refused(runs_folder, options, words):
    with pytest.raises(ValueError, match=words):
        runs_command(config("runs", f"runs={runs_folder}", *options))


def test_report_prints_the_law_and_where_the_page_is(runs_folder, tmp_path, capsys):
    report_command(config("report", f"runs={runs_folder}", f"out={tmp_path}", "bootstrap=20", "starts=16"))
    law, where = capsys.readouterr().out.splitlines()
    assert law.startswith("L = ") and "90 % intervals" in law
    assert where == f"Report: {tmp_path / 'index.html'}" and (tmp_path / "index.html").exists()
