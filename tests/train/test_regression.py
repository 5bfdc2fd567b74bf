"""Problems with a known answer in the trainer: the same loop, plan and records, and risks that theory gives."""

import json
import re

import numpy as np
import pytest

from conf.points import expand
from data.batches import sample_order
from data.generated import PowerLaw, Separable, normals
from data.prepare import open_prepared
from data.records import load_curves, load_runs
from scaling.theory import sgd_risk
from scaling.theory.check import check, problem_of
from scaling.theory.logistic import logistic_gd
from train.shape import GOES_WITH

LINEAR = [
    "model=linear", "data=power_law", "optimizer=sgd", "sequence_length=1", "clip_norm=0", "warmup_tokens=0",
    "model.replicas=4", "data.sources.rows.dimension=6", "total_tokens=120", "peak_lr=0.1", "ramp.batch_size=4",
    "launch.accelerator=cpu", "launch.threads=1",
]  # fmt: skip
TAIL = "+averages.tail={_target_:optim.averaging.Tail,start:0.5}"
LOGISTIC = [
    "model=logistic", "data=separable", "optimizer=sgd", "sequence_length=1", "clip_norm=0", "warmup_tokens=0",
    "schedule=constant", "total_tokens=1000", "peak_lr=20", "ramp.batch_size=50", "launch.accelerator=cpu",
]  # fmt: skip


@pytest.fixture
def points(hydra_conf, tmp_path):
    def points(*overrides: str, base=LINEAR, name="runs"):
        found = expand([[*base, f"launch.runs={tmp_path}/{name}", *overrides]])
        for point in found:
            point.folder.mkdir(parents=True, exist_ok=True)
        return found[0]

    return points


def described(point, **changed):
    """What the launcher writes beside a run."""
    (point.folder / "config.yaml").write_text(json.dumps(point.config | changed))


def by_hand(point, replicas=4):
    """Weights (replicas, d) of plain NumPy on the rows of the trainer's own sample order, one replica at a time."""
    plan, source = point.plan, PowerLaw(6, 1.5, 2.0, 0.1)
    prepared = open_prepared(point.config["data"], point.config["tokenizer"], point.folder)
    order = sample_order(prepared, 1, point.config["seed"], None)
    steps, weights = plan.steps(), np.zeros((replicas, 6))
    for before, batch, lr in zip(steps.tokens_before, steps.batch_size, steps.lr, strict=True):
        _, index = order.select(np.arange(before, before + batch))
        x, y = source.draw(index, replicas)
        for k in range(replicas):
            error = x[:, k] @ weights[k] - y[:, k]
            weights[k] -= lr / batch * error @ x[:, k]
    return weights


def test_every_replica_is_sgd_on_rows_of_its_own(points, life, weights):
    point = points("ramp=seesaw", "ramp.batch_size=4", "launch.micro_batch_size=3")
    status, run = life(point)
    expected = by_hand(point)
    assert status == "completed"
    np.testing.assert_allclose(weights(run)["weight"].reshape(4, 6), expected, rtol=2e-5, atol=1e-6)
    problem = PowerLaw(6, 1.5, 2.0, 0.1).problem
    risks = (expected - problem.target) ** 2 @ problem.eigenvalues
    row = load_curves(point.folder).iloc[-1]
    assert row["excess_risk"] == pytest.approx(risks.mean(), rel=1e-4)
    assert row["excess_risk_error"] == pytest.approx(risks.std(ddof=1) / 2, rel=1e-4)
    assert row["eval_loss"] == pytest.approx((risks.mean() + 0.1) / 2, rel=1e-4)


def test_layout_and_restart_change_no_row(points, life, pool, weights, averaged):
    _, whole = life(points(TAIL, name="whole"))
    parts = points(TAIL, name="parts")
    life(parts, steps=11)
    _, resumed = life(parts)
    np.testing.assert_array_equal(weights(resumed)["weight"], weights(whole)["weight"])
    np.testing.assert_array_equal(averaged(resumed)["tail"]["weight"], averaged(whole)["tail"]["weight"])
    spread = points("strategy=ddp", "launch.devices=2", name="spread")
    assert pool.train(spread, 2) == "completed"
    a, b = (load_curves(point.folder).iloc[-1]["excess_risk"] for point in (spread, parts))
    assert a == pytest.approx(b, rel=1e-5)


def test_logistic_regression_on_all_rows_is_gradient_descent(points, life):
    point = points(base=LOGISTIC)
    _, _run = life(point)
    problem = Separable(50, 10, 0.1, 0).problem
    expected = logistic_gd(problem, 20.0, 20)
    rows = load_curves(point.folder)
    assert rows["eval_loss"].iloc[-1] == pytest.approx(float(expected.losses[-1]), rel=1e-4)
    assert "excess_risk" not in rows


# ---------------------------------------------------------------------------------------------------- rows


def test_rows_follow_from_their_index_and_replicas_share_none():
    source = PowerLaw(5, 1.5, 2.0, 0.3)
    x, y = source.draw(np.array([7, 8, 2**39]), 3)
    again, _ = source.draw(np.array([8]), 3)
    np.testing.assert_array_equal(x[1], again[0])
    assert len({value for value in x.ravel()}) == x.size and x.shape == (3, 3, 5) and y.shape == (3, 3)


def test_drawn_numbers_are_standard_normal_and_independent():
    """Moments and correlations of 400,000 numbers; |z| < 5 for the one stream that there is."""
    z = normals(np.arange(40_000), 10)
    count = z.size
    for power, mean, spread in ((1, 0.0, 1.0), (2, 1.0, 2.0**0.5), (3, 0.0, 15.0**0.5), (4, 3.0, 96.0**0.5)):
        assert abs((z**power).mean() - mean) < 5 * spread / count**0.5, power
    correlations = np.corrcoef(np.hstack([z[:-1], z[1:]]).T)
    assert np.abs(correlations - np.eye(20)).max() < 5 / 40_000**0.5
    assert np.abs(np.corrcoef((np.hstack([z[:-1], z[1:]]) ** 2).T) - np.eye(20)).max() < 6 / 40_000**0.5


def test_an_epoch_of_separable_rows_has_each_row_once_in_every_replica():
    source = Separable(12, 4, 0.1, 0)
    x, _ = source.draw(np.arange(12)[::-1], 3)
    for k in range(3):
        assert {row.tobytes() for row in x[:, k]} == {row.tobytes() for row in source.problem.rows}


# ---------------------------------------------------------------------------------------------------- theory


def test_measured_risks_are_the_exact_ones_and_those_of_another_rate_are_not(points, life):
    point = points(
        "model.replicas=128", "total_tokens=1600", "peak_lr=0.12", "schedule=wsd", "optimizer.weight_decay=0.05",
        TAIL, "eval.every_tokens=8", "eval.growth=1.5",
    )  # fmt: skip
    life(point)
    described(point)
    runs, curves = load_runs(point.folder), load_curves(point.folder)
    found = check(runs, curves)
    assert found.agrees and len(found.points) > 10 and set(found.points["of"]) == {"weights", "tail"}
    exact = sgd_risk(problem_of(point.config), plan=point.plan, weight_decay=0.05)
    last = found.points[found.points["of"] == "weights"].iloc[-1]
    assert last["exact"] == pytest.approx(float(exact), rel=1e-12) and last["step"] == point.plan.serial_steps
    described(point, peak_lr=0.15)
    assert not check(runs, curves).agrees
    assert runs["excess_risk"].iloc[0] == last["measured"]
    for changed in ({"parent": {"run_id": "r0", "tokens": 4}}, {"unique_tokens": 100}, {"spike_guard": {"a": 1}}):
        described(point, **changed)
        with pytest.raises(ValueError, match=f"{point.run_id} is left out"):
            check(runs, curves)


def test_runs_of_which_no_exact_risk_is_known_are_named(points, life):
    point = points("optimizer=adamw", "optimizer.weight_decay=0.0")
    life(point)
    described(point)
    with pytest.raises(ValueError, match=re.escape("no exact risk is known for optim.adamw.AdamW")):
        check(load_runs(point.folder), load_curves(point.folder))


@pytest.mark.parametrize(("overrides", "message"), [
    (["sequence_length=2"], "sequence_length=2: a sample is one row"),
    (["clip_norm=1"], "clip_norm=1.*couple the replicas"),
    (["precision=bf16"], "precision=bf16"),
    (["strategy=zero2", "launch.devices=2"], "strategy=single or ddp"),
    (["data.sources.rows.a=1"], "a=1"),
    (["model.replicas=0"], "model.replicas=0"),
    (["model.dimension=5"], "model.dimension=5: rows have 6"),
    (["z_loss=1e-4"], "z_loss=0.0001"),
    (["spike_guard=standard"], "spike_guard=.*couple the replicas"),
    (["model.loss=hinge"], "model.loss='hinge'"),
    (["model.loss=logistic"], "model=logistic with data=separable"),
])  # fmt: skip
def test_what_does_not_fit_is_refused_before_anything_starts(hydra_conf, overrides, message):
    with pytest.raises(ValueError, match=message):
        expand([[*LINEAR, *overrides]])


@pytest.mark.parametrize(
    "overrides",
    [
        ["model=linear"],
        ["data=separable"],
        ["model=logistic", "data=stdlib"],
        ["model=linear", "data=separable"],
        ["model=logistic", "data=power_law"],
    ],
)
def test_problems_go_with_their_models(hydra_conf, overrides):
    with pytest.raises(ValueError, match=re.escape(GOES_WITH)):
        expand([[*overrides, "sequence_length=1", "clip_norm=0"]])


def test_the_dry_run_and_the_report_know_regressions(fulcrum, tmp_path):
    sweep = ["train", *LINEAR, "model.replicas=64", "total_tokens=400", "launch.experiment=check",
             "launch.report=[theory_check]",
             "eval.every_tokens=40"]  # fmt: skip
    described = fulcrum(*sweep, "dry_run=true")
    assert described.returncode == 0, described.stderr
    assert "N 6  N_total 384" in described.stdout and "memory" not in described.stdout
    assert fulcrum(*sweep).returncode == 0
    report = fulcrum("report", "runs=runs/check")
    assert report.returncode == 0, report.stderr
    page = (tmp_path / "runs/check/report/index.html").read_text()
    assert "logged points of 1 runs" in page and "unigram" not in page.split("<script")[0]
    numbers = json.loads((tmp_path / "runs/check/report/theory_check.json").read_text())
    assert numbers["largest_z"] < 4.5 and len(numbers["points"]) == 10
    (run,) = (path.parent.name for path in (tmp_path / "runs/check").glob("*/run.json"))
    exported = fulcrum("export", f"run={run}", "runs=runs/check", "out=weights")
    assert exported.returncode == 1 and "only transformers are exported" in exported.stderr


def test_one_replica_has_no_standard_error(points, life):
    point = points("model.replicas=1")
    life(point)
    text = (point.folder / "metrics.jsonl").read_text()
    assert "excess_risk" in text and "excess_risk_error" not in text and "NaN" not in text
