"""Rates and decay of a wider model under muP, rule by rule."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optim.adamw import AdamW
from optim.groups import STANDARD
from optim.lion import Lion
from optim.muon import Muon
from optim.mup import Growth, rate_factor
from optim.normalized_sgd import NormalizedSGD
from optim.plan import Plan
from optim.ramps import ConstantBatch
from optim.schedules import Constant
from optim.sgd import SGD
from optim.shampoo import Shampoo
from optim.soap import SOAP
from optim.swan import SWAN
from train.shape import Shape

SHAPES = Shape(d_model=32, n_layers=2, n_heads=2, d_ff=48, vocab_size=50, qk_norm=True).parameters()
PLAN = Plan(6400, 32, 0.01, Constant(), ConstantBatch(2))
WIDE = Growth(width=4, head=2)
# of one hidden matrix, embedding, head, the last norm's gain, a gain of a head's size; heads are 2 times as large
RATES = {
    AdamW(): (1 / 4, 1, 1, 1, 1),
    Lion(): (1 / 4, 1, 1, 1, 1),
    SGD(): (1, 4, 4, 4, 2),
    NormalizedSGD(): (1, 4, 4, 4, 2),
    NormalizedSGD(norm="per_parameter"): (1, 2, 2, 2, math.sqrt(2)),
    Muon(adjust_lr="original"): (1, 1, 1, 1, 1),
    Muon(adjust_lr="none"): (1, 1, 1, 1, 1),
    Muon(): (1 / 2, 1, 1, 1, 1),
    Shampoo(): (1 / 2, 1, 1, 1, 1),
    Shampoo(adjust_lr="original"): (1, 1, 1, 1, 1),
    SWAN(): (1 / 2, 1, 1, 1, 1),
}
NAMED = ("blocks.0.mlp.up", "embedding", "head", "norm", "blocks.1.attention.q_norm")


def by_name(settings, growth):
    return {name: group for group in settings.groups(SHAPES, PLAN, growth) for name in group.names}


@pytest.mark.parametrize(("settings", "rates"), RATES.items(), ids=lambda x: getattr(type(x), "__name__", ""))
def test_rates_follow_the_width_as_the_rule_needs(settings, rates):
    groups = by_name(settings, WIDE)
    assert [groups[f"{name}.weight"].lr_scale for name in NAMED] == pytest.approx(rates)
    assert groups.keys() == SHAPES.keys()


@pytest.mark.parametrize("settings", [*RATES, SOAP()], ids=lambda x: type(x).__name__)
def test_at_the_base_width_groups_are_those_of_the_standard_parametrization(settings):
    assert settings.groups(SHAPES, PLAN, Growth(1.0, 1.0)) == settings.groups(SHAPES, PLAN)
    assert Growth(1, 1) == STANDARD


def test_the_rate_that_muon_scales_itself_for_adamw_is_kept():
    groups = by_name(Muon(adamw_lr_scale=0.3), WIDE)
    assert groups["head.weight"].lr_scale == 0.3 and groups["blocks.0.mlp.up.weight"].lr_scale == 0.5


@pytest.mark.parametrize("settings", [AdamW(weight_decay=0.2), SGD(weight_decay=0.2), Muon(weight_decay=0.2)])
@pytest.mark.parametrize("follows", [None, False])
def test_a_step_shrinks_a_matrix_by_as_much_at_every_width(settings, follows):
    settings = type(settings)(weight_decay=0.2, decay_follows_schedule=follows)
    for name, group in by_name(settings, WIDE).items():
        rate = PLAN.peak_lr * group.lr_scale if follows is None else group.decay_lr
        assert rate * group.weight_decay == pytest.approx(0.01 * 0.2 if len(SHAPES[name]) == 2 else 0)


def test_a_timescale_is_the_same_at_every_width():
    narrow, wide = (by_name(AdamW(weight_decay=None, timescale=0.5), growth) for growth in (STANDARD, WIDE))
    for name in SHAPES:
        shrinks = [groups[name].lr_scale * groups[name].weight_decay for groups in (narrow, wide)]
        assert shrinks[0] == pytest.approx(shrinks[1])


def test_a_rule_without_known_rates_is_refused_where_the_width_grows():
    with pytest.raises(ValueError, match=r"model\.parametrization=mup: optimizer SOAP has no rate"):
        SOAP().groups(SHAPES, PLAN, WIDE)


@given(st.floats(0.25, 64), st.floats(0.25, 64))
def test_rates_of_two_steps_of_growth_multiply(first, second):
    for settings in RATES:
        assert settings.mup is not None
        for name, shape in SHAPES.items():
            factors = [rate_factor(settings.mup, Growth(m, m), name, shape) for m in (first, second, first * second)]
            assert factors[0] * factors[1] == pytest.approx(factors[2])
