import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optim.averaging import EWA, GrowingWindow, HalfLife, Tail


def averaged(average, tokens, iterates):
    """By the recursion, from iterates[0], the initial weights."""
    value = iterates[0]
    for weight, iterate in zip(average.weights(tokens), iterates[1:], strict=True):
        value = value + weight * (iterate - value)
    return value


def decayed(decays):
    """What every iterate counts at the end, the initial weights first, where step t keeps decays[t] of the average."""
    kept = np.cumprod(np.append(1.0, decays[::-1]))[::-1]  # kept[t]: what steps t+1 ... T leave
    return np.append(kept[0], (1 - decays) * kept[1:])


@st.composite
def runs(draw):
    """Tokens seen before the first step and after every step of ragged sizes, and an iterate for each."""
    sizes = draw(st.lists(st.integers(1, 2000), min_size=1, max_size=40))
    iterates = draw(st.lists(st.floats(-1, 1), min_size=len(sizes) + 1, max_size=len(sizes) + 1))
    return np.cumsum([0, *sizes]), np.array(iterates)


ANY = st.one_of(
    st.builds(HalfLife, st.floats(1, 1e6)),
    st.builds(EWA, st.floats(0.01, 0.9999)),
    st.builds(GrowingWindow, st.floats(0.1, 200)),
    st.builds(Tail, st.floats(0, 1, exclude_max=True)),
)


@given(runs(), st.floats(1, 1e6))
def test_a_half_life_is_the_weighted_sum_of_iterates_by_the_tokens_since(run, half_life):
    tokens, iterates = run
    counts = decayed(2 ** (-np.diff(tokens) / half_life))[1:]
    expected = counts @ iterates[1:] / counts.sum()
    assert averaged(HalfLife(half_life), tokens, iterates) == pytest.approx(expected, rel=1e-8, abs=1e-8)


@given(runs(), st.floats(0.01, 0.9999))
def test_ewa_is_the_corrected_average_of_the_paper(run, tau):
    tokens, iterates = run
    m = 0.0
    for w in iterates[1:]:
        m = tau * m + (1 - tau) * w
    expected = m / (1 - tau ** (len(iterates) - 1))
    assert averaged(EWA(tau), tokens, iterates) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(runs(), st.floats(0.1, 200))
def test_a_growing_window_decays_step_t_by_gamma_over_t_plus_one_half_lives(run, gamma):
    tokens, iterates = run
    counts = decayed(0.5 ** (gamma / (np.arange(1, len(iterates)) + 1)))
    assert averaged(GrowingWindow(gamma), tokens, iterates) == pytest.approx(counts @ iterates, rel=1e-9, abs=1e-9)


def test_the_half_life_of_a_growing_window_is_a_share_of_the_run():
    counts = decayed(1 - GrowingWindow(25).weights(np.arange(10_001)))
    assert counts[-400:].sum() == pytest.approx(0.5, abs=0.02)  # 4 % of 10,000 steps
    assert counts[0] < 1e-50


@given(runs(), st.floats(0, 1, exclude_max=True))
def test_a_tail_is_the_arithmetic_mean_of_its_iterates(run, start):
    tokens, iterates = run
    counted = iterates[1:][tokens[1:] > min(round(start * tokens[-1]), tokens[-1] - 1)]
    assert averaged(Tail(start), tokens, iterates) == pytest.approx(np.mean(counted), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(("start", "first"), [(0.0, 1), (0.8, 9), (0.29, 3), (0.99, 10)])
def test_a_tail_begins_with_the_first_step_past_its_start(start, first):
    weights = Tail(start).weights(np.arange(11) * 1000)
    np.testing.assert_array_equal(weights[: first - 1], 0)
    np.testing.assert_allclose(weights[first - 1 :], 1 / np.arange(1, 12 - first))


@given(runs(), st.floats(10, 1e5), st.data())
def test_a_half_life_does_not_depend_on_how_the_tokens_are_cut_into_steps(run, half_life, data):
    """Iterates that stay the same over a span count the same in one step or in many: a ramp changes nothing."""
    tokens, iterates = run
    extra = np.array(data.draw(st.lists(st.integers(1, int(tokens[-1])), max_size=30)), dtype=np.int64)
    finer = np.union1d(tokens, extra)
    repeated = iterates[np.searchsorted(tokens, finer)]
    whole, cut = averaged(HalfLife(half_life), tokens, iterates), averaged(HalfLife(half_life), finer, repeated)
    assert cut == pytest.approx(whole, rel=1e-8, abs=1e-8)


@given(runs(), ANY)
def test_the_average_of_weights_that_do_not_change_is_those_weights(run, average):
    tokens, iterates = run
    assert averaged(average, tokens, np.full_like(iterates, 0.7)) == pytest.approx(0.7, abs=1e-12)


@given(runs(), ANY)
def test_every_step_weighs_between_none_and_all(run, average):
    weights = average.weights(run[0])
    assert weights.shape == (len(run[0]) - 1,)
    assert (weights >= 0).all() and (weights <= 1).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HalfLife(0), "tokens=0 must be positive"),
        (lambda: EWA(1.0), r"decay=1.0 must be in \(0, 1\)"),
        (lambda: GrowingWindow(-1), "gamma=-1 must be positive"),
        (lambda: Tail(1.0), r"start=1.0 must be in \[0, 1\)"),
    ],
)
def test_settings_that_average_nothing_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
