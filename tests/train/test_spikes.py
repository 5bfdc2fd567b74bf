import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.spikes import LEAST, SpikeGuard


def losses(seed, steps):
    return (3 + 0.05 * np.random.default_rng(seed).standard_normal(steps)).tolist()


@given(st.integers(0, 1000))
def test_ordinary_noise_is_no_spike_and_seven_sigma_are(seed):
    guard = SpikeGuard(window_tokens=1e9)
    values = losses(seed, 200)
    assert not any(guard.is_spike(i, loss, 1.0 + loss / 10) for i, loss in enumerate(values))
    threshold = np.mean(values) + 6 * np.std(values)
    assert not SpikeGuard.is_spike(_copy(guard), 200, threshold - 1e-9, None)
    assert SpikeGuard.is_spike(_copy(guard), 200, threshold + 1e-9, None)


def _copy(guard):
    copy = SpikeGuard(guard.window_tokens, guard.sigmas)
    copy.load_state_dict(json.loads(json.dumps(guard.state_dict())))  # as the checkpoint's manifest does
    return copy


def test_the_gradient_norm_alone_can_be_a_spike_where_it_is_known():
    guard = SpikeGuard(window_tokens=1e9)
    for i, loss in enumerate(losses(0, 50)):
        assert not guard.is_spike(i, loss, loss)
    assert not _copy(guard).is_spike(50, 3.0, None)
    assert _copy(guard).is_spike(50, 3.0, 30.0)


def test_too_few_steps_are_no_measure():
    guard = SpikeGuard(window_tokens=1e9)
    for i in range(LEAST):
        assert not guard.is_spike(i, [1.0, 1.1][i % 2] * 4.0**i, None)
    guard = SpikeGuard(window_tokens=1e9)
    for i in range(LEAST):
        guard.is_spike(i, [1.0, 1.1][i % 2], None)
    assert guard.is_spike(LEAST, 10.0, None)


def test_the_window_is_in_tokens_and_learns_a_loss_that_has_risen_for_good():
    guard = SpikeGuard(window_tokens=200)
    for tokens in range(0, 1000, 5):
        guard.is_spike(tokens, 3.0 + 0.01 * (tokens % 2), None)
    assert len(guard.history) == 41  # the newest, and what is at most 200 tokens before it
    skipped = sum(guard.is_spike(tokens, 4.0 + 0.01 * (tokens % 2), None) for tokens in range(1000, 1400, 5))
    assert 1 <= skipped <= 3


@given(st.integers(0, 100), st.integers(1, 60))
def test_a_guard_from_a_checkpoint_goes_on_as_the_one_that_was_not_interrupted(seed, cut):
    values = losses(seed, 60)
    values[40] += 3
    whole = SpikeGuard(window_tokens=35)
    expected = [whole.is_spike(i, loss, loss) for i, loss in enumerate(values)]
    first = SpikeGuard(window_tokens=35)
    seen = [first.is_spike(i, loss, loss) for i, loss in enumerate(values[:cut])]
    second = _copy(first)
    assert seen + [second.is_spike(cut + i, loss, loss) for i, loss in enumerate(values[cut:])] == expected


@pytest.mark.parametrize("key", ["window_tokens", "sigmas"])
def test_settings_that_make_no_sense_are_refused_by_name(key):
    with pytest.raises(ValueError, match=f"spike_guard.{key}=-1 must be positive"):
        SpikeGuard(**({"window_tokens": 1.0} | {key: -1}))
