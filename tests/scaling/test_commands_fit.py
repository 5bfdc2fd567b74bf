import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from hydra import compose, initialize_config_module

from conf.points import expand
from data.records import load_runs
from data.tokenizers import vocab_size_of
from fulcrum import open_keys
from scaling import keep, laws, next_runs
from scaling.allocate import allocate
from scaling.commands_fit import fit_command, predict_command
from scaling.commands_next import allocate_command, plan_next_command
from scaling.laws import Chinchilla
from train.shape import Shape

CONF = Path(__file__).resolve().parents[2] / "conf"
LAW_FILES = sorted(path.stem for path in (CONF / "law").glob("*.yaml"))
DOMAINS = {"domains": ["a", "b"], "groups": ["a", "b"]}
TRUTH = {"E": 1.9, "A": 60.0, "alpha": 0.38, "B": 180.0, "beta": 0.35}


def config(name, *overrides):
    """What the command sees: its arguments after `open_keys`, composed."""
    with initialize_config_module("conf", version_base="1.3"):
        return compose(name, open_keys(name.replace("_", "-"), list(overrides)))


def points(sizes=5, budgets=5) -> pd.DataFrame:
    n, d = (x.ravel() for x in np.meshgrid(np.geomspace(1e6, 1e9, sizes), np.geomspace(1e8, 1e11, budgets)))
    noise = np.exp(0.01 * np.random.default_rng(0).normal(size=n.size))
    return pd.DataFrame({"N": n, "D": d, "loss": Chinchilla().predict(TRUTH, {"N": n, "D": d}) * noise})


def train_again(run: pd.Series, name: str) -> pd.Series:
    """A simulated record as training of conf/model/<name> on bytes would have left it."""
    overrides = [f"model={name}", "data=stdlib", "tokenizer=bytes", "sequence_length=128", "ramp.batch_size=4"]
    vocabulary = vocab_size_of({"_target_": "data.tokenizers.Bytes"})
    shape = Shape(**next_runs.named_models()[name], vocab_size=vocabulary)
    cost = shape.flops_per_token(128)
    loss = Chinchilla().predict(TRUTH, {"N": shape.N, "D": run["D"]}) * run["noise"]
    known = {"N": shape.N, "N_total": shape.N, "flops_per_token": cost, "C": cost * run["D"], "eval_loss": loss}
    return pd.Series({**known, "D": run["D"], "overrides": [*overrides, f"total_tokens={run['D']:.4g}"],
                      "vocab_size": vocabulary, "sequence_length": 128, "status": "completed"})  # fmt: skip


@pytest.fixture(scope="module")
def table_fit(tmp_path_factory) -> Path:
    """fit.json of a table that counts C as 6 N D."""
    folder = tmp_path_factory.mktemp("table")
    points().to_csv(folder / "points.csv", index=False)
    options = [f"table={folder}/points.csv", f"out={folder}/fit.json", "bootstrap=60", "starts=16", "holdout=null"]
    fit_command(config("fit", *options))
    return folder / "fit.json"


@pytest.fixture(scope="module")
def runs_fit(tmp_path_factory) -> Path:
    """fit.json of runs whose overrides train again, in a folder where nothing was trained."""
    folder = tmp_path_factory.mktemp("records")
    noise = np.exp(0.005 * np.random.default_rng(0).normal(size=12))
    plan = [(name, ratio) for name in ("50k", "150k", "370k") for ratio in (8, 16, 32, 64)]
    rows = []
    for (name, ratio), factor in zip(plan, noise, strict=True):
        shape = Shape(**next_runs.named_models()[name], vocab_size=257)
        rows.append(train_again(pd.Series({"D": float(ratio * shape.N), "noise": factor}), name))
    table = pd.DataFrame(rows)
    table["D"] = table["D"].astype(float)
    table.to_json(folder / "runs.jsonl", orient="records", lines=True)
    options = [f"table={folder}/runs.jsonl", f"out={folder}/fit.json", "bootstrap=60", "starts=16", "holdout=null"]
    fit_command(config("fit", *options))
    return folder / "fit.json"


# --- arguments ---------------------------------------------------------------------------------------------------


def test_names_of_columns_and_parameters_need_no_plus():
    given = ["columns.S=sparsity", "fixed.alpha=0.3", "priors.E=[1,2]", "loss.width=1", "filter='N > 1'", "law=x"]
    assert open_keys("fit", given) == [f"++{text}" for text in given[:3]] + given[3:]
    assert open_keys("predict", ["fit=a", "N=1", "h_web=0.5"]) == ["fit=a", "++at.N=1", "++at.h_web=0.5"]
    assert open_keys("predict", ["loss=2", "hydra.verbose=true", "level=0.5"]) == [
        "++at.loss=2",
        "hydra.verbose=true",
        "level=0.5",
    ]
    assert open_keys("predict", ["--help", "+N=1"]) == ["--help", "+N=1"]
    assert open_keys("train", ["fixed.alpha=1"]) == ["fixed.alpha=1"]


def test_fixed_parameters_priors_and_columns_arrive_in_the_fit(tmp_path):
    points().assign(T=lambda t: t["D"]).drop(columns="D").to_csv(tmp_path / "t.csv", index=False)
    options = ["fixed.alpha=0.38", "priors.beta=[0.35,0.01]", "columns.D=T", "loss=student_t", "loss.df=7"]
    common = [f"table={tmp_path}/t.csv", f"out={tmp_path}/fit.json", "bootstrap=0", "starts=8", "holdout=null"]
    fit_command(config("fit", *common, *options))
    found, kept = keep.read(tmp_path / "fit.json")
    assert kept["params"]["alpha"] == 0.38 and kept["columns"]["D"] == "T" and kept["loss"] == "StudentT(df=7)"
    assert kept["priors"] == {"beta": {"mean": 0.35, "sd": 0.01}} and found.problem.fixed == {"alpha": 0.38}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["fixed.alfa=0.3"], r"fixed\.alfa: Chinchilla has the parameters E, A, alpha, B, beta"),
        (["fixed.alpha=abc"], r"fixed\.alpha=abc must be a number"),
        (["priors.alpha=0.3"], r"priors\.alpha=0\.3: give \[mean, standard deviation\]"),
        (["priors.alpha=[0.3,0]"], r"priors\.alpha: its standard deviation 0.* must be positive"),
        (["fixed.E=-1"], r"fixed\.E=-1.* must be a positive number: loss of an infinite model"),
        (["columns.X=N"], r"columns\.X: Chinchilla reads N, D, loss, C only"),
        (["columns.N=size"], r"no column 'size'.*columns\.N=<column>"),
        (["law=additive_mixture"], r"law\.domains is not given"),
        (["loss.width=-1"], r"must be positive: in log residuals"),
        (["starts=0"], r"starts=0 must be at least 1"),
        (["weights=w"], r"weights=w: the table has no such column"),
        (["bootstrap=1"], r"bootstrap=1 must be at least 2"),
        (["bootstrap=20", "resample=jackknife"], "jackknife.*pairs, residual, cluster"),
        (["filter='N > 1e12'"], "leaves none of the 25 rows"),
    ],
)
def test_wrong_options_of_fit_name_the_key_the_value_and_the_fix(tmp_path, options, words):
    points().to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(ValueError, match=words):
        fit_command(config("fit", f"table={tmp_path}/t.csv", f"out={tmp_path}/fit.json", "starts=4", *options))
    assert not (tmp_path / "fit.json").exists()


# --- predict -----------------------------------------------------------------------------------------------------


def test_predict_prints_every_combination_with_the_intervals_of_law_and_run(table_fit, tmp_path, capsys):
    predict_command(config("predict", f"fit={table_fit}", "N=[1e7,1e8]", "D=[1e9,1e10,1e11]", f"out={tmp_path}/p.csv"))
    printed, kept = capsys.readouterr().out, pd.read_csv(tmp_path / "p.csv")
    found, _ = keep.read(table_fit)
    assert len(kept) == 6 and list(kept) == ["N", "D", "loss", "low", "high", "run_low", "run_high"]
    expected = found.predict(kept[["N", "D"]], interval=0.9)
    np.testing.assert_allclose(kept[["loss", "low", "high"]], expected, rtol=1e-9)
    assert ((kept["run_low"] < kept["low"]) & (kept["low"] < kept["high"]) & (kept["high"] < kept["run_high"])).all()
    assert all(f"{value:#.5g}" in printed for value in kept["loss"]) and "90% of the law" in printed
    assert "Note" not in printed


@pytest.mark.parametrize(("at", "column"), [("N=1e12 D=1e10", "N"), ("N=1e8 D=1e13", "D"), ("N=1e5 D=1e10", "N")])
def test_predict_says_where_it_extrapolates(table_fit, capsys, at, column):
    predict_command(config("predict", f"fit={table_fit}", *at.split()))
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Note: ")]
    assert len(notes) == 1 and notes[0].startswith(f"Note: {column} was 1e+0")


def test_predict_reads_a_table_and_keeps_all_its_rows(table_fit, tmp_path, capsys):
    table = pd.DataFrame({"N": np.geomspace(1e6, 1e9, 60), "D": np.geomspace(1e8, 1e11, 60)})
    table.to_csv(tmp_path / "at.csv", index=False)
    predict_command(config("predict", f"fit={table_fit}", f"table={tmp_path}/at.csv", f"out={tmp_path}/p.csv"))
    assert re.search("(20 more|40 of 60) rows: give out=<file.csv>", capsys.readouterr().out)
    assert len(pd.read_csv(tmp_path / "p.csv")) == 60


def test_a_higher_level_gives_wider_intervals(table_fit, tmp_path):
    widths = []
    for level in ("0.5", "0.95"):
        out = f"out={tmp_path}/p.csv"
        predict_command(config("predict", f"fit={table_fit}", "N=1e9", "D=1e11", f"level={level}", out))
        row = pd.read_csv(tmp_path / "p.csv").iloc[0]
        widths.append(row["high"] - row["low"])
    assert widths[1] > 1.5 * widths[0] > 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["N=1e8"], r"Chinchilla predicts loss from N, D: give D=<number>, or table="),
        (["N=1e8", "D=1e9", "U=1e9"], r"U=1000000000\.0: Chinchilla reads N, D"),
        (["N=1e8", "D=1e9", "levl=0.5"], r"levl=0\.5: Chinchilla reads N, D"),
        (["N=1e8", "D=1e9", "level=90"], r"90 must lie between 0 and 1"),
    ],
)
def test_wrong_options_of_predict_are_refused(table_fit, options, words):
    with pytest.raises(ValueError, match=words):
        predict_command(config("predict", f"fit={table_fit}", *options))


@pytest.mark.parametrize(
    ("command", "name", "options"),
    [
        (predict_command, "predict", ["N=1e8", "D=1e9"]),
        (allocate_command, "allocate", ["C=1e20"]),
        (plan_next_command, "plan_next", ["budget=1e15"]),
    ],
)
def test_commands_on_a_fit_say_when_there_is_none(tmp_path, command, name, options):
    with pytest.raises(ValueError, match=r"fit=<\.\.\.> is needed, as in fit=fit\.json"):
        command(config(name, *options))
    with pytest.raises(ValueError, match=r"fit=.*no\.json: no such file"):
        command(config(name, *options, f"fit={tmp_path}/no.json"))


# --- allocate ----------------------------------------------------------------------------------------------------


def test_allocate_of_a_table_uses_6nd_and_says_so(table_fit, capsys):
    allocate_command(config("allocate", f"fit={table_fit}", "C=[1e18,1e21]"))
    printed = capsys.readouterr().out
    assert "Budgets are C = 6 N D." in printed and "1e+21" in printed.replace("1.0e21", "1e+21").replace(
        "1e21", "1e+21"
    )
    found, _ = keep.read(table_fit)
    best = allocate(found, [1e18, 1e21], None).table
    assert (6 * best["N"] * best["D"]).tolist() == pytest.approx([1e18, 1e21])
    assert all(f"{loss:.4f}" in printed for loss in best["loss"])


def test_allocate_of_records_uses_their_exact_flops_unless_told_otherwise(runs_fit, capsys):
    allocate_command(config("allocate", f"fit={runs_fit}", "C=1e14"))
    assert "Budgets are exact training FLOPs along the family that was run" in capsys.readouterr().out
    allocate_command(config("allocate", f"fit={runs_fit}", "C=1e14", "six_nd=true"))
    printed = capsys.readouterr().out
    assert "Budgets are C = 6 N D." in printed and "The fitted rows count C otherwise" in printed


def test_allocate_without_replicates_says_that_it_has_no_intervals(tmp_path, capsys):
    points().to_csv(tmp_path / "t.csv", index=False)
    fit_command(config("fit", f"table={tmp_path}/t.csv", f"out={tmp_path}/f.json", "bootstrap=0", "starts=8"))
    allocate_command(config("allocate", f"fit={tmp_path}/f.json", "C=1e20"))
    assert "No intervals: the fit has no bootstrap replicates" in capsys.readouterr().out


@pytest.mark.parametrize("budget", ["-1", "0", "[1e20,-3]"])
def test_budgets_that_are_none_are_refused(table_fit, budget):
    with pytest.raises(ValueError, match="must be positive training FLOPs"):
        allocate_command(config("allocate", f"fit={table_fit}", f"C={budget}"))


def test_allocate_and_plan_next_serve_laws_of_n_and_d_only(tmp_path):
    points().to_csv(tmp_path / "t.csv", index=False)
    fit_command(config("fit", "law=kaplan_data", f"table={tmp_path}/t.csv", f"out={tmp_path}/f.json", "bootstrap=0"))
    with pytest.raises(ValueError, match="predicts loss from D: best sizes need a law of the loss in N and D"):
        allocate_command(config("allocate", f"fit={tmp_path}/f.json", "C=1e20"))
    with pytest.raises(ValueError, match="predicts loss from D: best sizes need a law of the loss in N and D"):
        plan_next_command(config("plan_next", f"fit={tmp_path}/f.json", "budget=1e20"))


# --- plan-next ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def budget(runs_fit) -> float:
    return 3 * float(keep.read(runs_fit)[0].rows.table["C"].sum())


def test_plan_next_writes_points_that_training_accepts_within_the_budget(runs_fit, budget, tmp_path, capsys):
    out = tmp_path / "plans" / "next.yaml"
    plan_next_command(config("plan_next", f"fit={runs_fit}", f"budget={budget}", "most=5", f"out={out}"))
    printed = capsys.readouterr().out
    with initialize_config_module("conf", version_base="1.3"):
        runs = expand([[f"points={out}", f"launch.runs={tmp_path}/runs"]])
    assert 1 <= len(runs) <= 5 and len({run.run_id for run in runs}) == len(runs)
    assert sum(run.flops for run in runs) <= budget * 1.001  # tokens are written with four digits
    assert sum(run.flops for run in runs) == pytest.approx(
        float(re.search(r"runs, (\S+) FLOPs", out.read_text())[1]), rel=0.02
    )
    assert all(run.config["sequence_length"] == 128 for run in runs)
    assert f"Written to {out}: fulcrum train points={out}" in printed
    assert re.search(
        r"now \+-\d.*%, with these runs about \+-\d.*%. A uniform grid of as many runs would need \S+ times", printed
    )


def test_plan_next_chooses_among_the_named_models_only(runs_fit, budget, tmp_path):
    out = tmp_path / "next.yaml"
    plan_next_command(config("plan_next", f"fit={runs_fit}", f"budget={budget}", "models=[50k,1m]", f"out={out}"))
    used = {text for run in yaml.safe_load(out.read_text()) for text in run if text.startswith("model=")}
    assert used and used <= {"model=50k", "model=1m"}


def test_the_default_target_is_the_best_run_of_ten_times_the_largest_compute(runs_fit, budget, tmp_path, capsys):
    largest = 10 * float(keep.read(runs_fit)[0].rows.table["C"].max())
    for target in ([], [f"target.C={largest}"]):
        plan_next_command(config("plan_next", f"fit={runs_fit}", f"budget={budget}", f"out={tmp_path}/n.yaml", *target))
    first, second = re.findall(r"interval of the law at (N = \S+ D = \S+)", " ".join(capsys.readouterr().out.split()))
    assert first == second


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "budget=<...> is needed, as in budget=1e18"),
        (["budget=1"], "budget=1 FLOPs pays for no run of any size"),
        (["budget=-1e15"], "must be positive"),
        (["budget=1e15", "most=0"], "most=0 runs must be positive"),
        (["budget=1e15", "models=[2m]"], "models=2m: no such model"),
        (["budget=1e15", "target.N=1e8"], "give both target.N and target.D"),
        (["budget=1e15", "target.N=1e8", "target.D=1e9", "target.C=1e18"], "or target.C"),
    ],
)
def test_wrong_options_of_plan_next_are_refused_and_write_nothing(runs_fit, tmp_path, options, words):
    with pytest.raises(ValueError) as error:
        plan_next_command(config("plan_next", f"fit={runs_fit}", f"out={tmp_path}/next.yaml", *options))
    assert words in str(error.value) and not (tmp_path / "next.yaml").exists()


def test_plan_next_cannot_plan_from_a_table_that_says_nothing_of_models(table_fit):
    with pytest.raises(ValueError, match=r"this fit is of a table that does not say\. Fit recorded runs"):
        plan_next_command(config("plan_next", f"fit={table_fit}", "budget=1e20"))


def test_records_without_shapes_keep_none(runs_folder, tmp_path):
    fit_command(config("fit", f"runs={runs_folder}", f"out={tmp_path}/f.json", "bootstrap=0", "starts=8"))
    kept = json.loads((tmp_path / "f.json").read_text())
    assert [shape["N"] for shape in kept["state"]["shapes"]] == sorted(set(load_runs(runs_folder)["N"]))


# --- the real command --------------------------------------------------------------------------------------------


def test_the_console_command_predicts_and_plans_runs_that_train_accepts(fulcrum, runs_fit, budget, tmp_path):
    predicted = fulcrum("predict", f"fit={runs_fit}", "N=1e6", "D=[1e7,1e8]")
    assert predicted.returncode == 0, predicted.stderr
    assert "1e+06" in predicted.stdout and "of one run" in predicted.stdout
    planned = fulcrum("plan-next", f"fit={runs_fit}", f"budget={budget:.4g}", "most=3")
    assert planned.returncode == 0, planned.stderr
    assert re.search("by: fulcrum.* plan-next", (tmp_path / "next.yaml").read_text())
    tried = fulcrum("train", "points=next.yaml", "dry_run=true")
    assert tried.returncode == 0, tried.stderr
    assert len(yaml.safe_load((tmp_path / "next.yaml").read_text())) == 3 or "3 runs" not in planned.stdout
    assert not list(tmp_path.glob("runs/*/*/metrics.jsonl"))


def test_the_console_command_lists_the_laws(fulcrum):
    listed = fulcrum("fit", "--list")
    assert listed.returncode == 0 and all(f"law={name}" in listed.stdout for name in LAW_FILES)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["plan-next", "budget=1e15", "fit=no.json"], "fit=no.json: no such file"),
        (["train", "points=no.yaml", "dry_run=true"], "points=no.yaml: no such file"),
    ],
)
def test_a_mistake_on_the_console_is_one_message_without_a_traceback(fulcrum, arguments, words):
    result = fulcrum(*arguments)
    assert result.returncode == 1 and words in result.stderr and "Traceback" not in result.stderr


# --- one fit for every value of a column; mixtures ---------------------------------------------------------------


def test_each_value_of_a_column_gets_a_law_and_a_file_of_its_own(tmp_path, capsys):
    c = np.geomspace(1e18, 1e22, 12)
    truth = {"code": (9.0, -0.05), "math": (7.0, -0.03)}
    frames = [pd.DataFrame({"C": c, "loss": k * c**a, "skill": name}) for name, (k, a) in truth.items()]
    pd.concat(frames).to_csv(tmp_path / "skills.csv", index=False)
    common = [f"table={tmp_path}/skills.csv", f"out={tmp_path}/fits", "bootstrap=0", "starts=4"]
    fit_command(config("fit", "law=power_law", "each=skill", *common))
    printed = capsys.readouterr().out
    for name, (k, a) in truth.items():
        found, kept = keep.read(tmp_path / "fits" / f"{name}.json")
        assert found.params == pytest.approx({"k": k, "a_C": a}, rel=1e-6) and kept["skill"] == name
        assert name in printed
    with pytest.raises(ValueError, match="by=task: the table has no such column"):
        fit_command(config("fit", "law=power_law", "each=task", *common))


def test_allocate_gives_a_mixture_its_best_weights_with_intervals(tmp_path, capsys):
    law = laws.AdditiveMixture(("web", "code"))
    rng = np.random.default_rng(0)
    h = rng.uniform(0.1, 0.9, 60)
    table = pd.DataFrame({"h_web": h, "h_code": 1 - h, "N": np.exp(rng.uniform(15, 20, 60))})
    table["D"] = np.exp(rng.uniform(18, 23, 60))
    truth = dict(zip(law.names, (1.5, 1.0, 0.5, 1.0, 0.5, 100.0, 0.3, 300.0, 0.3), strict=True))
    table["loss"] = law.predict(truth, law.features(table)) * np.exp(0.001 * rng.standard_normal(60))
    table.to_csv(tmp_path / "mix.csv", index=False)
    options = ["law=additive_mixture", "law.domains=[web,code]", "bootstrap=20", "starts=16", "holdout=null"]
    fit_command(config("fit", *options, f"table={tmp_path}/mix.csv", f"out={tmp_path}/mix.json"))
    capsys.readouterr()
    allocate_command(config("allocate", f"fit={tmp_path}/mix.json", "N=1e9", "D=2e10"))
    line = next(text for text in capsys.readouterr().out.splitlines() if "web" in text)
    best, low, high = (float(x) for x in re.findall(r"\d\.\d+", line))
    # Two domains alike: half of each is best.
    assert best == pytest.approx(0.5, abs=0.1) and low <= best <= high
    with pytest.raises(ValueError, match=r"N=<...> is needed"):
        allocate_command(config("allocate", f"fit={tmp_path}/mix.json"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["N=-1", "D=1e9"], "N .column N. must be a positive number.*-1"),
        (["N=abc", "D=1e9"], "N .column N. must be a positive number.*'abc'"),
        (["table=nowhere.csv"], "table=nowhere.csv: no such file"),
    ],
)
def test_what_no_run_can_have_is_not_predicted(tmp_path, options, words):
    points().to_csv(tmp_path / "t.csv", index=False)
    common = [f"table={tmp_path}/t.csv", f"out={tmp_path}/fit.json", "bootstrap=0", "starts=8", "holdout=null"]
    fit_command(config("fit", *common))
    with pytest.raises(ValueError, match=words):
        predict_command(config("predict", f"fit={tmp_path}/fit.json", *options))


def test_a_law_whose_column_is_called_like_a_group_of_options_can_be_asked(tmp_path, capsys):
    loss = np.linspace(2.0, 4.0, 20)
    table = pd.DataFrame({"loss": loss, "error": 0.8 - 2.0 * np.exp(-1.0 * loss)})
    table.to_csv(tmp_path / "t.csv", index=False)
    common = [f"table={tmp_path}/t.csv", f"out={tmp_path}/fit.json", "bootstrap=0", "starts=16", "holdout=null"]
    fit_command(config("fit", "law=downstream_error", *common))
    capsys.readouterr()
    predict_command(config("predict", f"fit={tmp_path}/fit.json", "loss=3.0"))
    assert f"{0.8 - 2.0 * np.exp(-3.0):.4f}"[:6] in capsys.readouterr().out


def test_total_parameters_are_counted_as_such_all_the_way(runs_folder, tmp_path, capsys):
    options = [f"runs={runs_folder}", "columns.N=N_total", f"out={tmp_path}/fit.json", "bootstrap=0", "starts=8"]
    fit_command(config("fit", *options))
    found, kept = keep.read(tmp_path / "fit.json")
    assert "embedding and output head included" in kept["convention"]["N"]
    sizes = load_runs(runs_folder)["N_total"].unique()
    assert sorted(shape["N"] for shape in kept["state"]["shapes"]) == sorted(sizes)
    assert found.rows.table["N"].isin(sizes).all()


def test_a_law_of_something_else_has_no_best_size(tmp_path):
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"N": np.exp(rng.uniform(15, 20, 12)), "D": np.exp(rng.uniform(18, 23, 12))})
    table.assign(lr=lambda t: 2.0 * t["N"] ** -0.5 * t["D"] ** 0.1).to_csv(tmp_path / "t.csv", index=False)
    common = [f"table={tmp_path}/t.csv", f"out={tmp_path}/fit.json", "bootstrap=0", "starts=4", "holdout=null"]
    fit_command(config("fit", "law=step_law_rate", *common))
    with pytest.raises(ValueError, match=r"predicts lr from N, D: best sizes need a law of the loss"):
        allocate_command(config("allocate", f"fit={tmp_path}/fit.json", "C=1e20"))
