"""Groups, decay as a timescale, and decay that ignores the schedule."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optim.adamw import AdamW
from optim.groups import hidden_matrices
from optim.lion import Lion
from optim.muon import Muon
from optim.normalized_sgd import NormalizedSGD
from optim.plan import Plan
from optim.ramps import ConstantBatch, Seesaw, StepBatch
from optim.schedules import Constant, Cosine
from optim.sgd import SGD
from optim.shampoo import Shampoo
from optim.soap import SOAP
from optim.swan import SWAN
from train.shape import Shape

ALL = [AdamW, SGD, NormalizedSGD, Lion, Muon, SWAN, Shampoo, SOAP]
MATRIX = [Muon, SWAN, Shampoo, SOAP]
SHAPES = Shape(d_model=16, n_layers=2, n_heads=2, d_ff=24, vocab_size=50, qk_norm=True).parameters()


def plan(steps=20, peak_lr=0.1):
    return Plan(steps * 64, 16, peak_lr, Cosine(0.0), ConstantBatch(4), warmup_tokens=128)


def parameters():
    draw = torch.Generator().manual_seed(0)
    return {name: torch.nn.Parameter(torch.randn(shape, generator=draw)) for name, shape in SHAPES.items()}


def shrinkage(settings, plan):
    """What each step multiplies every weight by; gradients are zero, so there is nothing else."""
    named = parameters()
    optimizer, factors = settings.build(named.items(), plan), []
    for lr in plan.steps().lr:
        before = {name: p.detach().clone() for name, p in named.items()}
        for p in named.values():
            p.grad = torch.zeros_like(p)
        for group in optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        optimizer.step()
        factors.append({name: (p.detach() / before[name]).double().mean().item() for name, p in named.items()})
    return {name: np.array([row[name] for row in factors]) for name in named}


@pytest.mark.parametrize("optimizer", ALL)
@pytest.mark.parametrize("follows", [None, False])
def test_decay_is_decoupled_and_spares_vectors(optimizer, follows):
    p = plan()
    measured = shrinkage(optimizer(weight_decay=0.3, decay_follows_schedule=follows), p)
    rate = p.steps().lr if follows is None else np.full(p.serial_steps, p.peak_lr)
    for name, factors in measured.items():
        expected = 1 - rate * 0.3 if len(SHAPES[name]) == 2 else np.ones_like(rate)
        np.testing.assert_allclose(factors, expected, rtol=0, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("optimizer", MATRIX)
def test_the_rest_has_a_rate_of_its_own_and_the_same_timescale(optimizer):
    p = plan()
    settings = optimizer(weight_decay=None, timescale=0.5, adamw_lr_scale=0.1, decay_follows_schedule=False)
    for name, factors in shrinkage(settings, p).items():
        if len(SHAPES[name]) == 2:
            np.testing.assert_allclose(factors, 1 - 1 / (0.5 * p.serial_steps), atol=1e-6)
    scaled = shrinkage(optimizer(weight_decay=0.3, adamw_lr_scale=0.1), p)
    np.testing.assert_allclose(scaled["head.weight"], 1 - 0.1 * p.steps().lr * 0.3, atol=1e-6)


@given(st.floats(0.01, 10), st.integers(2, 200), st.floats(1e-4, 0.1))
def test_the_timescale_of_a_constant_batch_is_1_over_rate_decay_and_steps(tau, steps, peak_lr):
    p = plan(max(steps, 3), peak_lr)
    if tau * p.serial_steps <= 1:
        with pytest.raises(ValueError, match=r"optimizer\.timescale=.*Use timescale >"):
            AdamW(weight_decay=None, timescale=tau).groups(SHAPES, p)
        return
    matrices, vectors = AdamW(weight_decay=None, timescale=tau).groups(SHAPES, p)
    assert 1 / (peak_lr * matrices.weight_decay * p.serial_steps) == pytest.approx(tau)
    assert vectors.weight_decay == 0


@pytest.mark.parametrize("ramp", [StepBatch([64 * 50], [4, 8]), Seesaw(4, alpha=2)])
def test_a_timescale_is_one_lambda_with_and_without_a_ramp(ramp):
    """tau = B/(rate * lambda * D) (arXiv:2505.13738), with the first batch: a ramp makes fewer steps."""
    constant = plan(100)
    ramped = Plan(constant.total_tokens, 16, 0.1, Cosine(0.0), ramp, warmup_tokens=128)
    assert ramped.serial_steps < constant.serial_steps
    decays = [AdamW(weight_decay=None, timescale=0.5).groups(SHAPES, p)[0].weight_decay for p in (constant, ramped)]
    assert decays == pytest.approx([64 / (0.1 * 0.5 * constant.total_tokens)] * 2)


def test_hidden_matrices_are_neither_embedding_nor_head_nor_vectors():
    hidden = hidden_matrices(SHAPES)
    assert len(hidden) == 2 * 7 and all(name.startswith("blocks.") for name in hidden)
    for optimizer in MATRIX:
        groups = optimizer().groups(SHAPES, plan())
        assert [group.optimizer for group in groups] == [optimizer.__name__, "AdamW", "AdamW"]
        assert sorted(name for group in groups for name in group.names) == sorted(SHAPES)
        assert groups[0].names == tuple(hidden) and groups[1].names == ("embedding.weight", "head.weight")


def test_a_model_without_hidden_matrices_needs_no_matrix_optimizer():
    with pytest.raises(ValueError, match=r"SWAN updates hidden matrices, this model has none: use optimizer=adamw"):
        SWAN().groups({"w": (8,)}, plan())
    assert [group.names for group in AdamW().groups({"w": (8,)}, plan())] == [("w",)]


@pytest.mark.parametrize(
    ("optimizer", "change", "message"),
    [
        *[(o, {"timescale": 0.2}, "weight_decay=.* and optimizer.timescale=0.2: give one") for o in ALL],
        (AdamW, {"weight_decay": None}, "weight_decay=None and optimizer.timescale=None: give one"),
        (AdamW, {"weight_decay": None, "timescale": 0.0}, "timescale=0.0 must be positive"),
        (AdamW, {"weight_decay": -0.1}, "weight_decay=-0.1 must not be negative"),
        (AdamW, {"beta2": 1}, r"optimizer\.beta2=1 must be in"),
        (SGD, {"momentum": 1.0}, "momentum=1.0 must be in"),
        (SGD, {"nesterov": True}, "nesterov=true needs optimizer.momentum > 0"),
        (NormalizedSGD, {"norm": "local"}, "norm='local' is unknown: use global or per_parameter"),
        (Lion, {"beta1": -1}, "beta1=-1"),
        (Muon, {"iterations": 0}, "iterations=0 must be positive"),
        (Muon, {"adjust_lr": "adamw"}, "adjust_lr='adamw' is unknown: use original, match_rms_adamw, none"),
        (Muon, {"coefficients": [1.5, -0.5]}, r"coefficients=\[1.5, -0.5\]: give three numbers"),
        (Muon, {"adamw_lr_scale": 0.0}, "adamw_lr_scale=0.0 must be positive"),
        (SWAN, {"tolerance": 0.5}, "tolerance=0.5 is not near convergence"),
        (SWAN, {"scale": 0.0}, "scale=0.0 must be positive"),
        (Shampoo, {"beta": 1.0}, "beta=1.0 must be in"),
        (Shampoo, {"refresh_every": 0}, "refresh_every=0 must be positive"),
        (SOAP, {"shampoo_beta": 1.0}, "shampoo_beta=1.0 must be in"),
    ],
)
def test_bad_settings_are_refused_by_name(optimizer, change, message):
    with pytest.raises(ValueError, match=message):
        optimizer(**change)


def test_a_decay_that_would_turn_weights_around_is_refused():
    with pytest.raises(ValueError, match=r"weight_decay=10\.0: a step at rate 0\.1 would .*weight_decay < 10"):
        AdamW(weight_decay=10.0).groups(SHAPES, plan())


def test_a_ramp_that_raises_the_rate_above_the_peak_is_held_to_its_largest_rate():
    ramp = StepBatch([64 * 100], [4, 400], lr_exponent=1)
    ramped = Plan(64 * 2000, 16, 0.01, Constant(), ramp, warmup_tokens=64 * 200)
    assert ramped.steps().lr.max() == pytest.approx(1.0)  # after warm-up; where the last segment starts it is 0.5
    with pytest.raises(ValueError, match=r"weight_decay=1\.5: a step at rate 1 would .*by -0\.5.*weight_decay < 1\."):
        AdamW(weight_decay=1.5).groups(SHAPES, ramped)
    with pytest.raises(ValueError, match=r"timescale=0\.04: a step at rate 1 would .*Use timescale > 0\.05,"):
        Muon(weight_decay=None, timescale=0.04).groups(SHAPES, ramped)
    AdamW(weight_decay=0.9).groups(SHAPES, ramped)
    AdamW(weight_decay=1.5, decay_follows_schedule=False).groups(SHAPES, ramped)  # every step at the peak rate
