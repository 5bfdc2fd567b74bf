import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.order import BLOCK, EvenlySpaced, SampleOrder, block_quotas, interleave, permute

sizes = st.integers(1, 3000)
weights = st.lists(st.floats(0.05, 1.0), min_size=1, max_size=6)


@given(sizes, st.integers(0, 10**9))
def test_permute_is_a_permutation(size, key):
    assert sorted(permute(np.arange(size), size, key)) == list(range(size))


def test_permutations_of_different_keys_look_independent():
    first, second = permute(np.arange(1000), 1000, 0), permute(np.arange(1000), 1000, 1)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.1
    assert abs(np.corrcoef(first, np.arange(1000))[0, 1]) < 0.1


@given(weights)
def test_every_block_holds_each_source_by_its_quota_and_ranks_count_up(weights):
    quotas = block_quotas(weights)
    assert sum(quotas) == BLOCK
    source, rank = interleave(np.arange(2 * BLOCK), quotas)
    for k, quota in enumerate(quotas):
        assert list(rank[source == k]) == list(range(2 * quota))
        assert np.count_nonzero(source[:BLOCK] == k) == quota


@given(weights, st.integers(1, 5000))
def test_any_prefix_holds_the_sources_in_proportion(weights, prefix):
    quotas = block_quotas(weights)
    source, _ = interleave(np.arange(prefix), quotas)
    levels = np.ceil(np.log2(len(quotas))) + 1
    for k, quota in enumerate(quotas):
        assert abs(np.count_nonzero(source == k) - prefix * quota / BLOCK) <= levels


@given(st.lists(st.integers(20, 200), min_size=1, max_size=4), st.integers(0, 5), st.data())
def test_each_epoch_of_each_source_is_a_permutation(sizes, seed, data):
    names = [f"s{k}" for k in range(len(sizes))]
    shares = data.draw(st.lists(st.floats(0.1, 1.0), min_size=len(sizes), max_size=len(sizes)))
    order = SampleOrder(dict(zip(names, sizes, strict=True)), dict(zip(names, shares, strict=True)), seed)
    source, sample = order.select(np.arange(1500))
    for k, size in enumerate(sizes):
        mine = sample[source == k]
        for epoch in range(len(mine) // size):
            assert sorted(mine[epoch * size : (epoch + 1) * size]) == list(range(size))


@given(st.lists(st.integers(20, 300), min_size=1, max_size=4))
def test_it_is_known_when_the_first_source_repeats(sizes):
    names = [f"s{k}" for k in range(len(sizes))]
    order = SampleOrder(dict(zip(names, sizes, strict=True)), dict.fromkeys(names, 1.0), 0)

    def repeats(samples):
        pairs = list(zip(*order.select(np.arange(samples)), strict=True))
        return len(set(pairs)) < len(pairs)

    slack = 2 * len(sizes)  # a source's share of a prefix is exact to within a slot for each split
    assert not repeats(max(1, order.samples_before_repeat - slack * len(sizes)))
    assert repeats(order.samples_before_repeat + slack * len(sizes))


def test_epochs_differ_and_seeds_differ():
    def first_epochs(seed):
        return SampleOrder({"a": 500}, {"a": 1}, seed).select(np.arange(1000))[1]

    assert list(first_epochs(0)[:500]) != list(first_epochs(0)[500:])
    assert list(first_epochs(0)) != list(first_epochs(1))


@given(st.integers(1, 400), st.integers(1, 400))
def test_unique_subsets_nest_and_repeat(small, large):
    small, large = sorted((small, large))

    def seen(unique):
        return SampleOrder({"a": 400}, {"a": 1}, 0, {"a": unique}).select(np.arange(2 * unique))[1]

    assert len(set(seen(small))) == small
    assert set(seen(small)) <= set(seen(large))


@given(st.integers(0, 10**12))
def test_an_index_is_computed_not_looked_up(index):
    order = SampleOrder({"a": 10**9, "b": 7}, {"a": 3, "b": 1}, 0)
    name, sample = order[index]
    source, samples = order.select(np.arange(index, index + 3))
    assert (order.names.index(name), sample) == (source[0], samples[0])


def test_a_source_that_is_too_small_is_named():
    with pytest.raises(ValueError, match="source 'a' has 10 samples, 11 were asked for"):
        SampleOrder({"a": 10}, {"a": 1}, 0, {"a": 11})
    with pytest.raises(ValueError, match=r"data\.weights"):
        SampleOrder({"a": 10}, {"b": 1}, 0)


@given(st.integers(1, 200), st.integers(0, 800))
def test_evaluation_windows_are_distinct_and_spread_over_the_held_out_set(count, more):
    size = count + more
    _, sample = EvenlySpaced("a", count, size).select(np.arange(count))
    assert sample[0] == 0 and sample[-1] < size
    gaps = np.diff(sample)
    assert len(set(sample)) == count and (count < 2 or gaps.max() - gaps.min() <= 1)
