import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optim.adamw import AdamW
from optim.plan import Plan
from optim.ramps import ConstantBatch
from optim.schedules import Cosine

LENGTH = 16


@st.composite
def plans(draw):
    samples = draw(st.integers(2, 500))
    batch = draw(st.integers(1, samples))
    warmup = draw(st.integers(0, samples * LENGTH - 1))
    return Plan(samples * LENGTH, LENGTH, 0.1, Cosine(0.1), ConstantBatch(batch), warmup, draw(st.floats(0, 1)))


@given(plans())
def test_the_rate_rises_through_warmup_and_never_passes_the_peak(plan):
    steps = plan.steps()
    warm = steps.tokens_before < plan.warmup_tokens
    assert (np.diff(steps.lr[warm]) >= 0).all()
    assert (np.diff(steps.lr[~warm]) <= 0).all()
    assert steps.lr.max() <= plan.peak_lr
    assert steps.lr[0] == (plan.peak_lr * plan.warmup_start if plan.warmup_tokens else plan.peak_lr)


@given(plans(), st.integers(1, LENGTH - 1))
def test_a_budget_that_ends_within_a_sequence_takes_the_whole_of_it(plan, more):
    longer = Plan(plan.total_tokens + more, LENGTH, 0.1, plan.schedule, plan.ramp, plan.warmup_tokens)
    assert longer.final_tokens == plan.total_tokens + LENGTH == longer.steps().batch_size.sum() * LENGTH


def test_a_plan_has_no_step_after_its_end():
    plan = Plan(160, 16, 0.1, Cosine(), ConstantBatch(2))
    for tokens in (-1, 160):
        with pytest.raises(ValueError, match=f"no step after {tokens} tokens: it covers 0 to 160"):
            plan.at(tokens)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"total_tokens": 15}, "total_tokens=15 is not one sequence of sequence_length=16"),
        ({"schedule": lambda x: 0.5 - np.asarray(x)}, "multipliers that are negative"),
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
    with pytest.raises(ValueError, match=r"optimizer\.beta2=1"):
        AdamW(beta2=1)
