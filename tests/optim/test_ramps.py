import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optim.plan import Plan
from optim.ramps import ConstantBatch, Seesaw, StepBatch, crossings
from optim.schedules import UBA, WSD, WSDS, Constant, Cosine, Linear, QuarterCosine, Rex, Step

LENGTH = 16
FALLING = [Cosine(0.1), Linear(), QuarterCosine(), Rex(), WSD(0.4), WSD(0.4, "exponential", 0.05), Step(0.5, 6)]
schedules = st.sampled_from(FALLING)


def constant_of(plan):
    return Plan(
        plan.total_tokens,
        plan.sequence_length,
        plan.peak_lr,
        plan.schedule,
        ConstantBatch(int(plan.steps().batch_size[0])),
        plan.warmup_tokens,
        plan.warmup_start,
    )


@st.composite
def ramps(draw):
    if draw(st.booleans()):
        thresholds = sorted(draw(st.sets(st.integers(1, 4000 * LENGTH - 1), max_size=4)))
        sizes = draw(st.lists(st.integers(1, 60), min_size=len(thresholds) + 1, max_size=len(thresholds) + 1))
        return StepBatch(thresholds, sizes, draw(st.sampled_from([0.0, 0.5, 1.0])))
    alpha = draw(st.floats(1.01, 3))
    lr_cut = draw(st.none() | st.floats(math.sqrt(alpha), alpha))
    batch = draw(st.integers(1, 20))
    return Seesaw(batch, alpha, lr_cut, max_batch_size=draw(st.none() | st.integers(batch, 100)))


@st.composite
def plans(draw):
    samples = draw(st.integers(4000, 5000))
    warmup = draw(st.integers(0, samples * LENGTH // 2))
    return Plan(samples * LENGTH, LENGTH, 0.1, draw(schedules), draw(ramps()), warmup, draw(st.floats(0, 1)))


def true_crossings(schedule, alpha):
    """By the definition, on a grid of four million points."""
    grid = np.linspace(0, 1, 2**22 + 1)
    lowest = np.minimum.accumulate(schedule(grid))
    levels = alpha ** -np.arange(1, np.floor(-np.log(lowest[-1]) / np.log(alpha) + 1e-12) + 1) * (1 + 1e-12)
    return grid[np.searchsorted(-lowest, -levels)]


# -------------------------------------------------------------------------------------------------- properties


@given(plans())
def test_all_plans_of_one_budget_see_the_same_samples(plan):
    steps = plan.steps()
    assert steps.batch_size.sum() * LENGTH == plan.total_tokens == plan.final_tokens
    np.testing.assert_array_equal(steps.tokens_before, np.append(0, np.cumsum(steps.batch_size)[:-1]) * LENGTH)
    assert (steps.batch_size > 0).all() and len(steps.lr) == plan.serial_steps


@given(plans(), st.data())
def test_a_plan_evaluated_from_any_token_is_the_tail_of_the_whole_plan(plan, data):
    """Also inside a step: there the step's own values hold, so the tail begins with the step that is under way."""
    steps = plan.steps()
    tokens = data.draw(st.integers(0, plan.total_tokens - 1))
    first = int(np.searchsorted(steps.tokens_before, tokens, side="right")) - 1
    assert plan.at(tokens) == (steps.lr[first], steps.batch_size[first])
    tokens = int(steps.tokens_before[first])
    for lr, batch_size in zip(steps.lr[first : first + 50], steps.batch_size[first : first + 50], strict=True):
        assert plan.at(tokens) == (lr, batch_size)
        tokens += int(batch_size) * LENGTH


@given(plans().filter(lambda plan: isinstance(plan.ramp, Seesaw)))
def test_seesaw_never_ramps_warmup_and_is_piecewise_constant_after_it(plan):
    steps, base = plan.steps(), constant_of(plan).steps()
    warm = steps.tokens_before < plan.warmup_tokens
    assert (steps.batch_size[warm] == plan.ramp.batch_size).all()
    np.testing.assert_array_equal(steps.lr[warm], base.lr[base.tokens_before < plan.warmup_tokens])
    multipliers = steps.lr[~warm] / plan.peak_lr
    if plan.ramp.max_batch_size is None:
        k = -np.log(multipliers) / np.log(plan.ramp.lr_cut)
        np.testing.assert_allclose(k, np.round(k), atol=1e-6)
    sizes = steps.batch_size[:-1]  # the last is cut to what is left
    assert (np.diff(sizes) >= 0).all() and (sizes <= (plan.ramp.max_batch_size or math.inf)).all()


@given(schedules, st.floats(1.01, 2.5), st.floats(0.5, 1), st.integers(4, 4096))
def test_at_every_cut_rate_over_root_batch_is_the_schedules_rate(schedule, alpha, share, batch):
    """Exactly before batches are rounded: growth is chosen as a power of the cut here, the batch left unrounded."""
    lr_cut = alpha**share
    ramp = Seesaw(batch, alpha, lr_cut)
    total = 10**9
    segments = ramp.segments(schedule, 0, total)[1:]
    for k, segment in enumerate(segments, 1):
        exact = batch * ramp.batch_growth**k
        assert segment.batch_size == min(round(exact), total)
        rate = segment.lr_scale / math.sqrt(exact / batch)
        assert rate == pytest.approx(alpha**-k, rel=1e-9)
        before, here = schedule((segment.tokens - 2) / total), schedule(segment.tokens / total)
        assert before * (1 + 1e-6) >= alpha**-k >= here * (1 - 1e-6)  # where the schedule falls through alpha^-k


@given(schedules, st.floats(1.05, 3), st.integers(1, 64), st.integers(1, 20))
def test_from_the_cap_on_the_rate_follows_the_schedule(schedule, alpha, batch, times):
    ramp = Seesaw(batch, alpha, max_batch_size=batch * times)
    for k, segment in enumerate(ramp.segments(schedule, 0, 10**9)[1:], 1):
        exact = batch * ramp.batch_growth**k
        if exact > batch * times * (1 + 1e-9):
            assert segment.batch_size == batch * times
            assert segment.lr_scale == pytest.approx(alpha**-k * math.sqrt(times))
        elif exact < batch * times * (1 - 1e-9):
            assert segment.lr_scale == pytest.approx(ramp.lr_cut**-k)


@pytest.mark.parametrize(
    ("schedule", "saved"),
    [
        (QuarterCosine(), 1 - 2 / math.pi),
        (Cosine(0.0), 1 / 2),
        (Linear(), 1 / 2),
        (Rex(), 2 * math.log(2) - 1),
        (WSD(0.4), 0.2),
        (WSD(0.4, "1-sqrt"), 2 * 0.4 / 3),
        (Cosine(0.1), 0.45),
    ],
    ids=repr,
)
def test_as_alpha_tends_to_1_the_saved_fraction_tends_to_1_minus_the_area(schedule, saved):
    """Lemma 1 of arXiv:2510.14717 for the quarter cosine; warm-up is not ramped and saves nothing."""
    total, warmup = 10**10, 10**9
    errors = []
    for alpha in (1.1, 1.01, 1.001):
        ramp = Plan(total, LENGTH, 1.0, schedule, Seesaw(1024, alpha), warmup)
        errors.append(abs(1 - ramp.serial_steps / constant_of(ramp).serial_steps - 0.9 * saved))
    assert errors[0] > errors[1] > errors[2] and errors[2] < 1e-3


def test_the_saving_at_finite_alpha_is_the_closed_form():
    """Linear decay, cuts of alpha, no warm-up: the ramp takes alpha/(alpha + 1) of the steps."""
    for alpha in (1.1, 2.0):
        plan = Plan(2**34, LENGTH, 1.0, Linear(), Seesaw(4096, alpha))
        assert plan.serial_steps / constant_of(plan).serial_steps == pytest.approx(alpha / (alpha + 1), rel=1e-3)


@given(st.floats(1.01, 3))
def test_crossings_of_a_schedule_that_rises_again_follow_its_running_minimum(alpha):
    falling, cycling = UBA(final=0.1), UBA(final=0.1, cycles=2)
    np.testing.assert_allclose(crossings(cycling, alpha, 1.0), crossings(falling, alpha, 1.0) / 2, atol=1e-9)


@pytest.mark.parametrize(
    "schedule",
    [UBA(final=0.1, cycles=50), WSDS([0.3, 0.6], 0.1, final=0.1), WSDS([0.3, 0.6], 0.002, final=0.1)],
    ids=repr,
)
def test_narrow_falls_are_not_missed(schedule):
    found, true = crossings(schedule, 1.1, 1.0), true_crossings(schedule, 1.1)
    assert len(found) == len(true) > 10
    np.testing.assert_allclose(found, true, atol=1e-6)


def test_cuts_lie_where_a_step_schedule_steps():
    plan = Plan(16000, LENGTH, 1.0, Step(0.5, 4), Seesaw(2, alpha=2), 0)
    steps = plan.steps()
    assert [s.tokens for s in plan.ramp.segments(plan.schedule, 0, 16000)] == [0, 4000, 8000, 12000]
    assert steps.batch_size[steps.tokens_before < 4000].tolist() == [2] * 125
    assert steps.batch_size[steps.tokens_before >= 4000][0] == 4


def test_several_cuts_may_fall_into_one_step():
    plan = Plan(1600, LENGTH, 1.0, WSD(0.1), Seesaw(10, alpha=1.1))
    steps = plan.steps()
    assert steps.batch_size.tolist()[:9] == [10] * 9
    assert steps.batch_size[9] == 10 and steps.lr[9] == 1.0  # begins where the decay does
    plan = Plan(1600, LENGTH, 1.0, WSD(0.15), Seesaw(10, alpha=1.1))
    assert plan.steps().lr[9] < 1.1**-1  # the decay began inside step 8


def test_step_batch_scales_the_scheduled_rate():
    plan = Plan(3200, LENGTH, 1.0, Constant(), StepBatch([800, 1600], [4, 16, 5], lr_exponent=0.5))
    steps = plan.steps()
    assert steps.batch_size.tolist() == [4] * 13 + [16] * 3 + [5] * 20
    np.testing.assert_allclose(steps.lr[[0, 13, -1]], [1, 2, math.sqrt(5 / 4)])


# ------------------------------------------------------------------------------------ the authors' published runs

# tokens, B0, cosine steps, Seesaw steps, Seesaw's final tokens (alexandrumeterez/seesaw, reproducibility/)
PUBLISHED = [
    (3.3e9, 128, 25178, 15524, 3300887552),
    (3.3e9, 256, 12589, 7756, 3300596736),
    (6.6e9, 512, 12589, 7752, None),
    (13.2e9, 1024, 12589, 7751, None),
    (3.3e9, 2048, 1574, 970, 3310052352),
]


@pytest.mark.parametrize(("tokens", "batch", "cosine_steps", "seesaw_steps", "final_tokens"), PUBLISHED)
def test_reference_rounding_gives_the_published_step_counts(tokens, batch, cosine_steps, seesaw_steps, final_tokens):
    def plan(ramp):
        return Plan(int(tokens), 1024, 3e-3, Cosine(0.1), ramp, warmup_tokens=int(tokens / 10), warmup_start=0.1)

    seesaw = plan(Seesaw(batch, 1 / 0.9090909, 1 / 0.953462, 1.1, rounding="reference"))
    assert plan(ConstantBatch(batch)).serial_steps == cosine_steps
    assert seesaw.serial_steps == seesaw_steps
    assert seesaw.final_tokens == seesaw.steps().batch_size.sum() * 1024
    assert final_tokens is None or seesaw.final_tokens == final_tokens
    assert not any(size % 32 == 1 for size in seesaw.steps().batch_size)
    # to the nearest integer, and ending on the budget, the plan hardly differs
    assert plan(Seesaw(batch)).serial_steps == pytest.approx(seesaw_steps, rel=2e-3)


@pytest.mark.parametrize(("rounding", "expected"), [("nearest", 380), ("reference", 379)])
def test_a_cut_holds_from_the_first_token_after_it_or_as_the_authors_round_it(rounding, expected):
    """Linear decay over 1000 tokens falls through 1.1^-5 at 379.08."""
    assert Seesaw(4, rounding=rounding).segments(Linear(), 0, 1000)[5].tokens == expected


# ------------------------------------------------------------------------------------------------------ factors


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        ({}, (1.1, math.sqrt(1.1), 1.1)),
        ({"alpha": 2.0}, (2, math.sqrt(2), 2)),
        ({"alpha": 2.0, "lr_cut": 2.0}, (2, 2, 1)),
        ({"alpha": 2.0, "batch_growth": 2.0}, (2, math.sqrt(2), 2)),
        ({"lr_cut": 1.08}, (1.1, 1.08, (1.1 / 1.08) ** 2)),
        ({"batch_growth": 1.05}, (1.1, 1.1 / math.sqrt(1.05), 1.05)),
        ({"lr_cut": 2.0, "batch_growth": 4.0}, (4, 2, 4)),
        ({"alpha": 3.0, "lr_cut": 2.0, "batch_growth": 4.0}, (3, 2, 4)),
    ],
)
def test_what_is_not_given_follows_from_the_rest(given_, expected):
    ramp = Seesaw(4, **given_)
    assert (ramp.alpha, ramp.lr_cut, ramp.batch_growth) == pytest.approx(expected)


def test_a_ramp_may_be_unstable_by_name_only():
    with pytest.raises(
        ValueError, match=r"ramp\.lr_cut=1 is below sqrt\(ramp\.batch_growth\)=2: .*Lemma 4.*lr_cut >= 2"
    ):
        Seesaw(4, lr_cut=1.0, batch_growth=4.0)
    assert Seesaw(4, lr_cut=1.0, batch_growth=4.0, allow_unstable=True).alpha == 2
    Seesaw(4, lr_cut=0.9999999 * 1.0488088481701515, batch_growth=1.1, alpha=1.1)  # rounded decimals pass


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Seesaw(0), r"ramp\.batch_size=0"),
        (lambda: Seesaw(4, alpha=1.0), r"ramp\.alpha=1\.0 must be more than 1"),
        (lambda: Seesaw(4, lr_cut=0.5), r"ramp\.lr_cut=0\.5 must be at least 1"),
        (lambda: Seesaw(4, lr_cut=1.2), r"ramp\.lr_cut=1\.2 alone is more than ramp\.alpha=1\.1"),
        (lambda: Seesaw(4, batch_growth=1.5), r"ramp\.batch_growth=1\.5 alone is more than ramp\.alpha=1\.1"),
        (lambda: Seesaw(4, lr_cut=1.0, batch_growth=1.0), "leave nothing to cut or grow"),
        (lambda: Seesaw(4, max_batch_size=3), r"ramp\.max_batch_size=3 is below ramp\.batch_size=4"),
        (lambda: Seesaw(4, rounding="up"), r"ramp\.rounding='up' is unknown"),
        (lambda: Seesaw(4, 1.1, 2.0, 4.0, max_batch_size=8), r"ramp\.max_batch_size=8 needs lr_cut .* = alpha"),
        (lambda: StepBatch([math.nan], [1, 2]), r"thresholds_in_tokens=\[nan\]: finite numbers"),
        (lambda: StepBatch([".nan"], [1, 2]), r"thresholds_in_tokens=\['\.nan'\]: finite numbers"),
        (lambda: StepBatch([100, 50], [1, 2, 3]), r"thresholds_in_tokens=\[100, 50\] must be positive and increasing"),
        (lambda: StepBatch([0], [1, 2]), "must be positive and increasing"),
        (lambda: StepBatch([100], [1]), r"ramp\.batch_sizes=\[1\] must be one more than"),
        (lambda: StepBatch([100], [1, 0]), r"ramp\.batch_sizes=0"),
        (lambda: StepBatch([100], [1, 2.5]), r"ramp\.batch_sizes=2\.5"),
    ],
)
def test_bad_settings_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("schedule", "ramp", "message"),
    [
        (Constant(), Seesaw(4), "the ramp would never grow"),
        (Cosine(0.95), Seesaw(4), "the ramp would never grow"),
        (Cosine(), StepBatch([1600], [2, 4]), r"thresholds_in_tokens ends at 1600, not before .*total_tokens=1600"),
        (
            Cosine(),
            StepBatch([160], [2, 1000]),
            r"grows from 2 to 1000 sequences at once, more than the 90 that are left.*ramp\.max_batch_size",
        ),
        (WSDS([400]), Seesaw(1), r"one step would take \d+% of the run\. Set ramp\.max_batch_size"),
        (Cosine(), Seesaw(2, alpha=1.0000001), "use a larger one"),
        (Cosine(), Seesaw(101), r"ramp\.batch_size=101 is more than the 100 sequences"),
    ],
)
def test_ramps_that_no_run_can_follow_are_refused(schedule, ramp, message):
    with pytest.raises(ValueError, match=message):
        Plan(1600, LENGTH, 1.0, schedule, ramp)
