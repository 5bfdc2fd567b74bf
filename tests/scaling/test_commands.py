import json
import subprocess
import sys

import numpy as np
import pytest
import yaml
from hydra import compose, initialize_config_module

from data.files import read_json, write_json
from data.records import RunWriter, load_curves, load_runs, lock_run, write_summary
from fulcrum import open_keys
from scaling.commands import add_command, report_command, runs_command
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


# ---------------------------------------------------------------------------------------------------- runs add


def add(*arguments):
    add_command(config("runs_add", *open_keys("runs add", list(arguments))))


def test_downstream_errors_are_columns_that_their_law_is_fitted_to(make_runs, tmp_path, capsys):
    runs = make_runs(tmp_path / "runs")
    table = load_runs(runs)
    truth = 0.75 - 1.2 * np.exp(-0.55 * table["eval_loss"])
    for run_id, error in zip(table["run_id"], truth, strict=True):
        add(f"run={run_id}", f"runs={runs}", f"err.average={error}", "err.arc-easy=0.5", "err.mmlu.law=1")
    capsys.readouterr()
    known = load_runs(runs)
    assert known["err.average"].to_numpy() == pytest.approx(truth.to_numpy())
    assert (known["err.arc-easy"] == 0.5).all() and (known["err.mmlu.law"] == 1).all()
    runs_command(config("runs", f"runs={runs}"))
    assert "err.arc-easy" in capsys.readouterr().out
    options = ["law=downstream_error", f"runs={runs}", "columns.error=err.average", "bootstrap=0", "holdout=null"]
    fit_command(config("fit", *open_keys("fit", options)))
    params = json.loads((runs / "fit.json").read_text())["params"]
    assert params == pytest.approx({"eps": 0.75, "k": 1.2, "gamma": 0.55}, rel=1e-2)


def test_errors_are_added_to_what_a_run_has_and_stay_when_its_end_is_written_again(make_runs, tmp_path):
    runs = make_runs(tmp_path / "runs")
    folder = runs / "sweep" / "r00000000002"
    before = read_json(folder / "summary.json")
    add(f"run={folder}", "err.a=0.25")
    add("run=r00000000002", f"runs={runs}", "err.b=0", "err.a=0.5")
    errors = {"err.a": 0.5, "err.b": 0}
    assert read_json(folder / "summary.json") == before | errors
    write_summary(folder, {})
    assert read_json(folder / "summary.json") == errors, "how it ended is forgotten, the errors are not"
    RunWriter(folder, 10**9, {}).close("completed", "budget", {"loss": 2.0})
    assert read_json(folder / "summary.json") == {"status": "completed", "stop_reason": "budget", "loss": 2.0} | errors
    write_summary(other := runs / "sweep" / "r00000000003", {})
    assert not (other / "summary.json").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["err.a=0.4"], "needs run=<run_id or folder"),
        (["run=r00000000001"], "needs the error of a task"),
        (["run=r00000000001", "loss=0.4"], "loss=0.4: what can be added is err.<task>"),
        (["run=r00000000001", "err=0.4"], "err=0.4: what can be added is err.<task>"),
        (["run=r00000000001", "err.a=41"], "err.a=41: an error is a share from 0 to 1"),
        (["run=r00000000001", "err.a=-0.1"], "err.a=-0.1: an error"),
        (["run=r00000000001", "err.a=nan"], "err.a=nan: an error"),
        (["run=r00000000001", "err.a=true"], "err.a=True: an error"),
        (["run=r00000000001", "err.a=low"], "err.a=low: an error"),
        (["run=r00000000001", "err.a=null"], "err.a=None: an error"),
        (["run=r00000000091", "err.a=0.4"], "run=r00000000091: no such run below .*; nearest are r0000000000"),
        (["run=x", "err.a=0.4"], "run=x: no such run below .*; there are 12 runs"),
        (["run=r00000000003", "err.a=0.4"], "run=r00000000003 is diverged: .* Let it complete first"),
        (["run=r00000000007", "err.a=0.4"], "run=r00000000007 is unfinished"),
    ],
)
def test_errors_that_cannot_be_added_are_refused_and_nothing_is_written(make_runs, tmp_path, arguments, words):
    runs = make_runs(tmp_path / "runs", bad=True)
    before = {path: path.read_bytes() for path in runs.rglob("summary.json")}
    with pytest.raises(ValueError, match=words):
        add(f"runs={runs}", *arguments)
    assert {path: path.read_bytes() for path in runs.rglob("summary.json")} == before


def test_a_run_id_in_several_folders_and_a_run_that_is_being_written_are_refused(make_runs, tmp_path):
    runs = make_runs(tmp_path / "a" / "runs")
    make_runs(tmp_path / "b" / "runs")
    with pytest.raises(ValueError, match=r"run=r00000000001 lies in .*a/runs.* and .*b/runs.*: give one of"):
        add("run=r00000000001", f"runs={tmp_path}", "err.a=0.4")
    folder = runs / "sweep" / "r00000000001"
    code = "import sys, fulcrum; sys.argv[0] = 'fulcrum'; fulcrum.main()"
    command = [sys.executable, "-c", code, "runs", "add", f"run={folder}", "err.a-b=0.4"]
    with lock_run(folder):
        refused = subprocess.run(command, text=True, capture_output=True, cwd=tmp_path)
    assert refused.returncode == 1 and "is being written by process" in refused.stderr
    assert "err.a-b" not in read_json(folder / "summary.json")
    assert subprocess.run(command, text=True, capture_output=True, cwd=tmp_path).returncode == 0
    assert read_json(folder / "summary.json")["err.a-b"] == 0.4


# ---------------------------------------------------------------------------------------------------- branches


def with_branches(make_runs, folder):
    """The runs of make_runs, the last two of which go on from where the one before them ended."""
    runs = make_runs(folder)
    start = read_json(runs / "sweep/r00000000009/run.json")["total_tokens"]
    for name in ("r0000000000a", "r0000000000b"):
        path, branch = runs / "sweep" / name, {"run_id": "r00000000009", "tokens": start}
        write_json(path / "run.json", read_json(path / "run.json") | {"parent": branch})
        config = yaml.safe_load((path / "config.yaml").read_text()) | {"parent": branch}
        (path / "config.yaml").write_text(yaml.safe_dump(config))
    return runs, start


def test_a_branch_costs_its_own_tokens_and_a_law_sees_them_all(make_runs, tmp_path, capsys):
    plain = load_runs(make_runs(tmp_path / "plain"))
    assert (plain["own_tokens"] == plain["D"]).all() and (plain["own_flops"] == plain["C"]).all()
    runs, start = with_branches(make_runs, tmp_path / "runs")
    table = load_runs(runs).set_index("run_id")
    branches = table["parent"].notna()
    assert list(table.index[branches]) == ["r0000000000a", "r0000000000b"]
    assert (table["parent"][branches] == "r00000000009").all() and (table["parent.tokens"][branches] == start).all()
    assert (table["D"].to_numpy() == plain["D"].to_numpy()).all() and (
        table["C"].to_numpy() == plain["C"].to_numpy()
    ).all()
    assert (table["own_tokens"] == table["D"] - start * branches).all()
    assert (table["own_flops"] == table["own_tokens"] * table["flops_per_token"])[branches].all()
    runs_command(config("runs", f"runs={runs}"))
    printed = capsys.readouterr().out
    assert "parent" in printed and "own FLOPs" in printed and "own tokens" in printed
    runs_command(config("runs", f"runs={tmp_path / 'plain'}"))
    printed = capsys.readouterr().out
    assert "parent" not in printed and "own" not in printed


def test_a_report_sums_what_its_runs_cost_themselves(make_runs, tmp_path):
    runs, _ = with_branches(make_runs, tmp_path / "runs")
    table = load_runs(runs)
    spent = table["own_flops"].sum()
    assert spent < 0.9 * table["C"].sum()
    report_command(config("report", f"runs={runs}", "bootstrap=20", "starts=16"))
    page = (runs / "report/index.html").read_text()
    assert f"{spent:.2g} training FLOPs in all".replace("e+", "e") in page
    assert f"as many FLOPs as these runs together ({spent:.1e})".replace("e+", "e") in page
    assert "own FLOPs" in page and "r00000000009" in page


@pytest.mark.parametrize("every", [1, 3])
def test_a_law_along_curves_sees_what_came_before_a_branch(tmp_path, every):
    """Of a grandparent, too; also where the step at which it branched was not logged."""
    tokens = 0
    for name, parent, step_tokens in (("ra", None, 20), ("rb", ("ra", 140), 40), ("rc", ("rb", 300), 60)):
        (tmp_path / name).mkdir()
        tokens = parent[1] if parent else 0
        write_json(
            tmp_path / name / "run.json", {"parent": parent and dict(zip(("run_id", "tokens"), parent, strict=True))}
        )
        rows = [
            {"step": k, "tokens": tokens + k * step_tokens, "samples": (tokens + k * step_tokens) // 10,
             "batch_size": step_tokens // 10, "loss": 1.0}
            for k in range(1, 11)
        ]  # fmt: skip
        kept = [row for row in rows if row["step"] % every == 0]
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    own, whole = (load_curves(tmp_path, whole=whole).set_index("run_id") for whole in (False, True))
    assert own["step"].max() == 10 // every * every and own.loc["ra"].equals(whole.loc["ra"])
    at = whole.loc["rc"]
    assert at["tokens"].is_monotonic_increasing and len(at) == len(own.loc["rc"]) + {1: 7 + 4, 3: 2 + 1}[every]
    expected = [t / 20 if t <= 140 else 7 + (t - 140) / 40 if t <= 300 else 11 + (t - 300) / 60 for t in at["tokens"]]
    assert at["step"].tolist() == expected
    (tmp_path / "ra" / "metrics.jsonl").unlink()
    with pytest.raises(ValueError, match=r"rb is a branch of .*ra, which has no curve up to there"):
        load_curves(tmp_path, whole=True)
