"""Hybrid data parallelism, rank by rank without processes: who holds what, and how even it is."""

import re
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.batches import rank_share
from train.context_parallel.hybrid import (
    Assigned,
    Mesh,
    Piece,
    even_ranks,
    fewest_ranks,
    held,
    imbalance,
    packed,
    piece_flops,
    pieces,
    schedule,
    sent,
    share_tokens,
    static_mesh,
    static_sent,
    static_work,
    work,
)
from train.context_parallel.placement import zigzag
from train.shape import Shape

SHAPE = Shape(d_model=4, n_layers=2, n_heads=2, d_ff=8, vocab_size=1)
cost = partial(piece_flops, SHAPE)


@st.composite
def batches(draw):
    """Documents (B, T), ranks, and a capacity that holds any piece of such rows."""
    rows, length, ranks = draw(st.integers(1, 5)), draw(st.integers(1, 60)), draw(st.integers(1, 9))
    starts = draw(st.lists(st.integers(0, rows * length - 1), max_size=25))
    steps = np.zeros(rows * length, np.int64)
    steps[starts] = 3
    documents = steps.cumsum().reshape(rows, length)
    fits = length if ranks == 1 else share_tokens(length, ranks)
    return documents, ranks, max(2, fits) + draw(st.integers(0, 40))


def waves_of(batch):
    documents, ranks, capacity = batch
    found = pieces(documents)
    lengths = [piece.length for piece in found]
    return found, lengths, schedule(lengths, ranks, capacity, cost)


@st.composite
def tails(draw):
    """Pareto lengths, as of documents, up to what half of the ranks hold; ranks; capacity."""
    ranks, capacity = draw(st.sampled_from([2, 4, 8, 32])), 64
    random = np.random.default_rng(draw(st.integers(0, 10**6)))
    lengths = (random.pareto(1.2, ranks * draw(st.integers(1, 24))) + 1) * capacity / 8
    return np.minimum(lengths, ranks * capacity // 2).astype(int).tolist(), ranks, capacity


@given(batches())
def test_pieces_are_the_runs_of_one_document(batch):
    documents = batch[0]
    expected = []
    for row, ids in enumerate(documents):
        start = 0
        for stop in range(1, len(ids) + 1):
            if stop == len(ids) or ids[stop] != ids[start]:
                expected.append(Piece(row, start, stop))
                start = stop
    assert pieces(documents) == expected


def test_document_ids_that_fall_are_an_error_that_says_where():
    with pytest.raises(ValueError, match="non-monotone ids: row 1 falls from 7 to 2 at position 3"):
        pieces(np.array([[0, 0, 1, 2], [5, 6, 7, 2]]))


@given(batches())
def test_every_token_is_held_once_over_ranks_and_waves(batch):
    documents, ranks, _ = batch
    found, _, waves = waves_of(batch)
    count = np.zeros(documents.shape, int)
    for wave in waves:
        for rank in range(ranks):
            mine = held(wave, rank, found)
            real = mine.pieces >= 0
            np.add.at(count, (mine.rows[real], mine.positions[real]), 1)
            for row, position, piece in zip(mine.rows[real], mine.positions[real], mine.pieces[real], strict=True):
                assert found[piece].row == row and found[piece].start <= position < found[piece].stop
    assert (count == 1).all()


@given(batches())
def test_no_rank_holds_more_than_capacity_or_two_shares_in_a_wave(batch):
    _, ranks, capacity = batch
    found, _, waves = waves_of(batch)
    for wave in waves:
        in_rings = [rank for one in wave if len(one.ranks) > 1 for rank in one.ranks]
        assert len(set(in_rings)) == len(in_rings)
        assert all(len(held(wave, rank, found).rows) <= capacity for rank in range(ranks))


@given(batches())
def test_a_share_is_the_ranks_chunks_of_the_zigzag_with_padding_behind_the_piece(batch):
    found, _, waves = waves_of(batch)
    for wave in waves:
        for i, on in wave:
            if len(on) == 1:
                continue
            mine = [held(wave, rank, found) for rank in on]
            assert {one.ring for one in mine} == {on}
            (share,) = {one.share for one in mine}
            own = zigzag(share * len(on), len(on))
            for place, one in enumerate(mine):
                padding = own[place] >= found[i].length
                expected = np.where(padding, found[i].stop - 1, found[i].start + own[place])
                np.testing.assert_array_equal(one.positions[:share], expected)
                np.testing.assert_array_equal(one.pieces[:share], np.where(padding, -1, i))


@given(batches())
def test_whole_pieces_follow_the_share_in_their_order(batch):
    found, _, waves = waves_of(batch)
    for wave in waves:
        for rank in range(batch[1]):
            mine = held(wave, rank, found)
            whole = sorted(one.piece for one in wave if one.ranks == (rank,))
            expected = [(found[i].row, p, i) for i in whole for p in range(found[i].start, found[i].stop)]
            behind = zip(mine.rows[mine.share :], mine.positions[mine.share :], mine.pieces[mine.share :], strict=True)
            assert list(behind) == expected
            assert bool(mine.ring) == bool(mine.share)


def test_a_rank_with_nothing_to_do_holds_no_tokens():
    mine = held([Assigned(0, (0,))], 1, [Piece(0, 0, 4)])
    assert len(mine.rows) == len(mine.positions) == len(mine.pieces) == mine.share == 0 and mine.ring == ()


@given(st.integers(1, 400), st.integers(2, 40))
def test_a_piece_has_the_fewest_ranks_whose_shares_fit(length, capacity):
    (found,) = fewest_ranks([length], 1000, capacity)
    assert found == next(n for n in range(1, 1000) if share_tokens(length, n) <= capacity)
    if capacity % 2 == 0:
        assert found == -(-length // capacity)


@given(tails())
def test_pieces_that_fit_stay_whole_and_others_have_longer_rings_only_to_cost_no_more_than_other_tokens(tail):
    lengths, ranks, capacity = tail
    fewest = fewest_ranks(lengths, ranks, capacity)
    average = capacity * sum(map(cost, lengths)) / sum(lengths)
    for length, few, even in zip(lengths, fewest, even_ranks(lengths, fewest, ranks, capacity, cost), strict=True):
        assert (even == 1) == (length <= capacity)
        assert few <= even <= ranks
        assert even == few or cost(length) / (even - 1) > average
        assert even in (1, ranks) or cost(length) / even <= average


@given(tails())
def test_the_schedule_takes_no_longer_than_that_of_the_shortest_rings(tail):
    lengths, ranks, capacity = tail
    shortest = packed(lengths, fewest_ranks(lengths, ranks, capacity), ranks, capacity, cost)
    rounding = len(lengths)  # shares are scheduled in whole FLOPs
    flops = work(schedule(lengths, ranks, capacity, cost), lengths, ranks, cost)
    assert flops.max(1).sum() <= shortest.flops + rounding


def test_a_costly_document_gets_a_longer_ring_where_that_saves_time():
    lengths = [128] + [8] * 48
    (wave,) = schedule(lengths, 8, 64, cost)
    assert fewest_ranks(lengths, 8, 64)[0] == 2 < len(wave[0].ranks)


def test_a_whole_piece_goes_to_the_least_loaded_rank():
    assert schedule([20, 4, 3], 3, 16, cost) == [[(0, (0, 1)), (1, (2,)), (2, (2,))]]


def test_a_whole_piece_goes_where_the_step_grows_least():
    """The last token would make the first wave longer, but not the second: there a rank has less to do than another."""
    first, second = schedule([9, 9, 8, 5, 1], 2, 10, cost)
    assert first == [(0, (0,)), (1, (1,))] and second == [(2, (0,)), (3, (1,)), (4, (1,))]


def test_every_rank_finds_the_same_schedule():
    """Equal pieces go by index, and a second call finds what the first one did."""
    waves = schedule([40, 3, 17, 3, 8, 9, 1], 4, 16, cost)
    assert waves == schedule([40, 3, 17, 3, 8, 9, 1], 4, 16, cost)
    assert waves == [
        [(0, (0, 1, 2)), (1, (3,)), (3, (3,)), (5, (3,)), (6, (3,))],
        [(2, (0, 1)), (4, (2,))],
    ]


@given(tails())
def test_time_lies_between_the_bounds(tail):
    """Never below an even share of all. On heavy tails at most twice the larger of that and the costliest share of the
    shortest rings; from 8 pieces a rank on, within 1.3 of it."""
    lengths, ranks, capacity = tail
    flops = work(schedule(lengths, ranks, capacity, cost), lengths, ranks, cost)
    even, time = sum(map(cost, lengths)) / ranks, flops.max(1).sum()
    assert flops.sum() == pytest.approx(even * ranks)
    assert imbalance(flops) == pytest.approx(time / even)
    shortest = fewest_ranks(lengths, ranks, capacity)
    costliest = max(cost(length) / n for length, n in zip(lengths, shortest, strict=True))
    assert even * (1 - 1e-9) <= time <= (1.3 if len(lengths) >= 8 * ranks else 2) * max(even, costliest)


@given(batches(), st.integers(1, 100))
def test_a_capacity_that_is_too_small_is_an_error_that_names_the_smallest_that_fits(batch, more):
    _, ranks, capacity = batch
    length = ranks * capacity + more
    with pytest.raises(ValueError, match=f"context.capacity={capacity} .* document of {length} tokens") as error:
        schedule([1, length], ranks, capacity, cost)
    (fits,) = map(int, re.findall(r"context.capacity >= (\d+)", str(error.value)))
    assert schedule([1, length], ranks, fits, cost)
    with pytest.raises(ValueError):
        schedule([1, length], ranks, fits - 1, cost)


def test_an_empty_batch_has_no_waves():
    assert schedule([], 4, 16, cost) == []


@given(st.integers(1, 500))
def test_the_flops_of_a_piece_are_those_of_training_on_it(length):
    assert 3 * piece_flops(SHAPE, length) == pytest.approx(length * SHAPE.flops_per_token(length), rel=1e-12)


@given(batches())
def test_rings_send_their_shares_once_less_than_they_have_ranks(batch):
    found, lengths, waves = waves_of(batch)
    tokens = sent(waves, lengths, batch[1])
    for w, wave in enumerate(waves):
        for rank in range(batch[1]):
            mine = held(wave, rank, found)
            assert tokens[w, rank] == mine.share * max(0, len(mine.ring) - 1)


@given(st.integers(1, 7), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.randoms())
def test_a_static_mesh_does_the_pairs_that_its_ranks_see(rows, data, ring, each, micro, random):
    T = 2 * ring * each
    documents = np.cumsum([[random.random() < 0.2 for _ in range(T)] for _ in range(rows)], axis=1)
    mesh = Mesh(data, ring, micro)
    flops, tokens = static_work(documents, mesh, SHAPE), static_sent(rows, T, mesh)
    expected, hops = np.zeros_like(flops), np.zeros_like(tokens)
    for d in range(data):
        for k, row in enumerate(rank_share(0, rows, d, data)):
            mask = (documents[row][:, None] == documents[row]) & np.tri(T, dtype=bool)
            for r, own in enumerate(zigzag(T, ring)):
                expected[k // micro, d * ring + r] += SHAPE.forward_flops(len(own), int(mask[own].sum()))
                hops[k // micro, d * ring + r] += (ring - 1) * len(own)
    np.testing.assert_allclose(flops, expected)
    np.testing.assert_array_equal(tokens, hops)


def test_where_each_row_is_one_document_hybrid_and_static_are_the_same():
    documents = np.arange(8)[:, None] + np.zeros((8, 64), int)
    mesh = static_mesh(64, 16, 16)
    assert mesh == Mesh(4, 4, 1)
    lengths = [piece.length for piece in pieces(documents)]
    waves = schedule(lengths, 16, 16, cost)
    np.testing.assert_allclose(work(waves, lengths, 16, cost), static_work(documents, mesh, SHAPE))
    np.testing.assert_array_equal(sent(waves, lengths, 16), static_sent(8, 64, mesh))


def test_a_static_mesh_takes_the_shortest_ring_and_as_many_rows_as_fit():
    assert static_mesh(4096, 8, 16384) == Mesh(8, 1, 4)
    assert static_mesh(4096, 8, 3000) == Mesh(4, 2, 1)
    with pytest.raises(ValueError, match=r"context.capacity=100 .* context.capacity >= 512"):
        static_mesh(4096, 8, 100)
