"""Budgets of FLOPs instead of tokens, and the experiments that compare sizes, also at the scale of GPUs."""

import math

import pytest
from hydra import compose
from omegaconf import OmegaConf

from conf.points import expand

pytestmark = pytest.mark.usefixtures("hydra_conf")


def test_tokens_for_gives_every_size_the_same_flops(tiny):
    budget = [*tiny, "total_tokens=${tokens_for:1e10}"]
    points = expand([[*budget, f"model.d_model={width}", "model.n_heads=2"] for width in (16, 32, 64)])
    assert [point.flops for point in points] == pytest.approx([1e10] * 3, rel=0.01)
    tokens = [point.plan.total_tokens for point in points]
    assert tokens == sorted(tokens, reverse=True) and len(set(tokens)) == 3
    (longer,) = expand([[*budget, "sequence_length=128"]])
    assert longer.flops == pytest.approx(1e10, rel=0.01)  # attention over longer sequences costs more a token


@pytest.mark.parametrize("scale", ["150m", "300m", "600m"])
@pytest.mark.parametrize(
    ("experiment", "own"),
    [
        ("isoflop", ["model=300m"]),
        ("data_repetition", ["model=300m", "vars.distinct=0.015625"]),
        ("mixtures_web", ["model=300m", "data=web", "data.weights={c4:1,fineweb_edu:1,wikipedia:2}"]),
    ],
)
def test_experiments_are_ready_for_gpus_by_one_override(experiment, own, scale):
    (point,) = expand([[f"experiment={experiment}", f"scale={scale}", *own]])
    assert point.shape.N > 2e8 and point.config["precision"] == "bf16"
    if experiment == "data_repetition":
        assert point.config["unique_tokens"] * 64 == pytest.approx(point.plan.total_tokens, rel=0.01)
    if experiment == "isoflop":
        assert point.flops > 1e18


SCALES = ["85m", "150m", "300m", "600m", "1.2b"]
C4 = 365e6 * 430  # tokens: its documents, of at least so many tokens each


def swept(experiment, scale, key):
    """What a sweep over `key` runs."""
    config = compose("config", [f"experiment={experiment}", f"scale={scale}"], return_hydra_config=True)
    return str(OmegaConf.select(config, "hydra.sweeper.params").get(key)).split(",")


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(
    ("experiment", "longest"),
    [("cbs", "vars.times"), ("hyperparameters", "vars.share"), ("isoflop", None), ("mup", None)],
)
def test_no_run_at_scale_sees_a_text_twice(experiment, longest, scale):
    own = [f"{longest}={max(swept(experiment, scale, longest), key=float)}"] if longest else []
    if experiment in ("cbs", "isoflop"):
        own.append(f"model={swept(experiment, scale, 'model')[0]}")
    (point,) = expand([[f"experiment={experiment}", f"scale={scale}", *own]])
    there = min(point.config["data"]["sources"]["c4"]["documents"] * 430, C4)
    assert point.plan.total_tokens < there * (1 - point.config["data"]["heldout"])


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("experiment", ["isoflop", "isoflop_small"])
def test_the_best_size_of_every_budget_lies_inside_the_sizes(experiment, scale):
    sizes, shares = (swept(experiment, scale, key) for key in ("model", "vars.share"))
    ends = expand([[f"experiment={experiment}", f"scale={scale}", f"model={size}"] for size in (sizes[0], sizes[-1])])
    low, high = (point.shape.N for point in ends)
    for share in shares:
        at_20 = math.sqrt(float(share) * ends[0].flops / 120)  # 20 tokens per parameter, C = 6 N D
        assert 1.4 * low < at_20 < high / 1.4


def test_a_scale_leaves_what_an_experiment_computes():
    cbs, small = ["experiment=cbs", "scale=150m"], ["experiment=seesaw"]
    points = expand([[*cbs, "vars.times=1"], [*cbs, "vars.times=64"], small, [*small, "scale=150m"]])
    betas = [point.config["optimizer"]["beta2"] for point in points]
    assert betas == pytest.approx([0.99, 1 - 0.01 * 64**0.4, 0.99, 0.95])


@pytest.mark.parametrize("name", ["muon", "lion", "sgd"])
def test_an_experiment_takes_any_optimizer(name):
    (point,) = expand([["experiment=seesaw", f"optimizer={name}"]])
    assert point.config["optimizer"].get("adamw_beta2", 0.99) == 0.99


def test_what_an_optimizer_or_the_data_lacks_is_said_with_the_fix():
    with pytest.raises(ValueError, match=r"leave it out, as stop_when\.rivals=\[peak_lr\]"):
        expand([["experiment=cbs", "optimizer=muon"]])
    assert expand([["experiment=cbs", "optimizer=muon", "stop_when.rivals=[peak_lr]"]])
    with pytest.raises(ValueError, match="experiment=mixtures_web"):
        expand([["experiment=mixtures", "scale=150m", "data.weights={python:1,headers:1,prose:1}"]])


def test_run_ids_of_the_experiments_at_quickstart_scale_stay():
    asked = {
        "cbs": ["vars.times=8", "vars.tune=2"],
        "hyperparameters": ["vars.share=2.5", "vars.batches=4", "vars.times=0.7"],
        "isoflop": ["model=12k"],
        "seesaw": ["ramp=naive", "vars.times=8"],
    }
    points = expand([[f"experiment={name}", *own] for name, own in asked.items()])
    assert [point.run_id for point in points] == ["rc49d2b63057", "ra6e7bc93d43", "r1ae4a556f2b", "r8ef50fedad9"]
