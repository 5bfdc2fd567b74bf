import dataclasses

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from optim.adamw import AdamW
from optim.plan import Plan
from optim.ramps import ConstantBatch, Seesaw, StepBatch
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


@st.composite
def ramped(draw):
    """Plans of 400 to 2000 sequences whose batch grows, by a few large or many small changes."""
    samples = draw(st.integers(400, 2000))
    at = sorted(draw(st.sets(st.integers(1, samples * LENGTH - 1), max_size=4)))
    sizes = draw(st.lists(st.integers(1, 9), min_size=len(at) + 1, max_size=len(at) + 1))
    rounding = draw(st.sampled_from(["nearest", "reference"]))
    ramp = draw(st.sampled_from([StepBatch(at, sizes, 0.5), Seesaw(sizes[0], alpha=1.3, rounding=rounding)]))
    return Plan(samples * LENGTH, LENGTH, 0.1, Cosine(0.1), ramp, draw(st.integers(0, 100 * LENGTH)))


@given(ramped(), st.floats(0, 1))
def test_a_plan_that_starts_where_another_is_makes_the_rest_of_its_steps(plan, share):
    steps = plan.steps()
    k = int(share * (plan.serial_steps - 2))  # a branch that had only a last, cut batch would be refused
    start = int(steps.tokens_before[k])
    assume(
        plan.at(start).batch_size == plan.segments.batch_size[np.searchsorted(plan.segments.tokens, start, "right") - 1]
    )
    rest = dataclasses.replace(plan, start_tokens=start)
    assert rest.serial_steps == plan.serial_steps - k and rest.final_tokens == plan.final_tokens
    for ours, whole in zip(rest.steps(), steps, strict=True):
        assert (ours == whole[k:]).all()
    assert rest.at(start) == plan.at(start)


@given(ramped(), st.integers(1, 300), st.integers(1, 8))
def test_a_plan_may_start_after_any_number_of_sequences(plan, sequences, batch):
    branch = dataclasses.replace(plan, start_tokens=sequences * LENGTH, ramp=ConstantBatch(batch))
    steps = branch.steps()
    assert steps.tokens_before[0] == sequences * LENGTH and branch.lr(steps.tokens_before).tolist() == steps.lr.tolist()
    assert steps.batch_size.sum() * LENGTH == plan.total_tokens - sequences * LENGTH
    assert (steps.batch_size[:-1] == batch).all()
    for step in (0, len(steps.lr) // 2, len(steps.lr) - 1):
        within = int(steps.tokens_before[step]) + LENGTH - 1
        assert branch.at(within) == (steps.lr[step], steps.batch_size[step])


@given(ramped(), st.floats(0, 1.2))
def test_the_boundary_by_some_tokens_is_the_end_of_the_last_whole_step(plan, share):
    steps = plan.steps()
    ends = np.append(steps.tokens_before, plan.final_tokens)
    tokens = share * plan.final_tokens
    assert plan.boundary(tokens) == ends[ends <= tokens].max()
    assert plan.boundary(plan.final_tokens) == plan.boundary(2 * plan.final_tokens) == plan.final_tokens


def test_a_plan_has_no_step_before_its_start_or_after_its_end():
    for start in (0, 48):
        plan = Plan(160, 16, 0.1, Cosine(), ConstantBatch(2), start_tokens=start)
        for tokens in (start - 1, 160):
            with pytest.raises(ValueError, match=f"no step after {tokens} tokens: it covers {start} to 160"):
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
        ({"start_tokens": 144}, "more than the 1 sequences of total_tokens=160 after parent.tokens=144"),
        ({"start_tokens": 160}, "parent.tokens=160 leaves nothing of total_tokens=160"),
        ({"start_tokens": 8}, "parent.tokens=8 must be whole sequences of sequence_length=16"),
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
