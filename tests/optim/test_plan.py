import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optim.adamw import AdamW
from optim.plan import Plan
from optim.ramps import ConstantBatch
from optim.schedules import Constant, Cosine

LENGTH = 16


@st.composite
def plans(draw):
    samples = draw(st.integers(2, 500))
    batch = draw(st.integers(1, samples))
    warmup = draw(st.integers(0, samples * LENGTH - 1))
    return Plan(samples * LENGTH, LENGTH, 0.1, Cosine(0.1), ConstantBatch(batch), warmup, draw(st.floats(0, 1)))


@given(plans())
def test_every_plan_ends_exactly_on_its_budget(plan):
    steps = plan.steps()
    assert steps.batch_size.sum() * LENGTH == plan.total_tokens == plan.final_tokens
    assert (steps.batch_size > 0).all()
    assert len(steps.lr) == plan.serial_steps


@given(plans())
def test_a_plan_evaluated_from_any_step_equals_the_tail_of_the_whole_plan(plan):
    for tokens, batch_size, lr in zip(*plan.steps(), strict=True):
        point = plan.at(int(tokens))
        assert point.batch_size == batch_size
        assert point.lr == lr


@given(plans())
def test_the_rate_rises_through_warmup_and_never_passes_the_peak(plan):
    lr = plan.lr(np.arange(plan.total_tokens))
    assert (np.diff(lr[: plan.warmup_tokens]) >= 0).all()
    assert (np.diff(lr[plan.warmup_tokens :]) <= 0).all()
    assert lr.max() <= plan.peak_lr
    assert lr[plan.warmup_tokens] == plan.peak_lr


def test_cosine_has_its_textbook_values():
    np.testing.assert_allclose(Cosine(0.1)([0, 0.5, 1]), [1, 0.55, 0.1])
    np.testing.assert_array_equal(Constant()([0, 0.3]), [1, 1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"total_tokens": 100}, "total_tokens=100 is not a whole number of sequences.*use 96 or 112"),
        ({"peak_lr": 0.0}, "peak_lr=0.0"),
        ({"warmup_tokens": 160}, "warmup_tokens=160"),
        ({"warmup_start": 2.0}, "warmup_start=2.0"),
        ({"ramp": ConstantBatch(11)}, "ramp.batch_size=11 is more than the 10 sequences"),
    ],
)
def test_what_no_run_can_follow_is_refused(change, message):
    good = {"total_tokens": 160, "sequence_length": 16, "peak_lr": 0.1, "schedule": Cosine(), "ramp": ConstantBatch(2)}
    with pytest.raises(ValueError, match=message):
        Plan(**(good | change))


def test_bad_parts_are_refused():
    with pytest.raises(ValueError, match=r"ramp\.batch_size=0"):
        ConstantBatch(0)
    with pytest.raises(ValueError, match=r"schedule\.final=1.5"):
        Cosine(1.5)
    with pytest.raises(ValueError, match=r"optimizer\.beta2=1"):
        AdamW(beta2=1)
