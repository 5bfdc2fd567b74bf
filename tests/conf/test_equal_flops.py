"""Budgets of FLOPs instead of tokens, and the experiments that compare sizes, also at the scale of GPUs."""

import pytest

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
