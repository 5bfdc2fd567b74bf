"""Who holds what of a sequence, and who sends it to whom: rank by rank, without processes."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.batches import Batch
from train.context_parallel.apply import held
from train.context_parallel.placement import Context, Place, check_documents, neighbours, positions, source, zigzag
from train.context_parallel.ring import part
from train.run import Run


@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 3), st.sampled_from(["head_first", "context_first"]))
def test_every_position_has_one_place_and_every_rank_the_same_work(cp, hp, each, placement):
    context = Context(hp, cp, None, placement)
    length = 2 * cp * hp * each
    held = [positions(context, length, context.place(rank)) for rank in range(context.size)]
    assert sorted(np.concatenate(held)) == list(range(length))
    assert all((np.diff(own) > 0).all() for own in held)
    work = zigzag(length, cp).sum(1)
    assert (work == work[0]).all()
    assert [context.rank(context.place(rank)) for rank in range(context.size)] == list(range(context.size))


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.sampled_from(["head_first", "context_first"]))
def test_tokens_targets_positions_and_documents_of_a_rank_go_together(cp, hp, each, placement):
    context, length = Context(hp, cp, None, placement), 2 * cp * hp * each
    tokens = np.arange(2 * length).reshape(2, length)
    for rank in range(context.size):
        own = held(Batch(tokens, -tokens, tokens // 3), context, context.place(rank))
        assert (own.tokens == tokens[:, own.positions]).all() and (own.targets == -own.tokens).all()
        of_the_ring = own.documents[context.place(rank).ring].reshape(2, hp, -1)
        assert (of_the_ring[:, context.place(rank).head] == own.tokens // 3).all()
        assert sorted(own.documents.flat) == sorted((tokens // 3).flat)


@given(st.sampled_from([(1, 1), (2, 1), (2, 2), (4, 2), (6, 3), (8, 2), (8, 4), (6, 1)]))
def test_keys_arrive_where_they_are_worked_on_and_gradients_come_home(shape):
    """The hops of all ranks, played through: who sends what is who is said to have it next."""
    cp, w = shape
    near = [neighbours(cp, w, rank) for rank in range(cp)]
    for pairs in ([n.inner for n in near], [n.outer for n in near], [n.diagonal for n in near]):
        for rank, (to, _) in enumerate(pairs):
            assert pairs[to][1] == rank
    seen = [{source(cp, w, rank, o, t) for o in range(cp // w) for t in range(w)} for rank in range(cp)]
    assert all(sources == set(range(cp)) for sources in seen)
    gradients = list(range(cp))  # whose gradients each rank has
    for outer in range(cp // w):
        for turn in range(w):
            assert gradients == [source(cp, w, rank, outer, turn) for rank in range(cp)]
            moved = list(gradients)
            for rank in range(cp):
                moved[(near[rank].inner if turn + 1 < w else near[rank].diagonal)[0]] = gradients[rank]
            gradients = moved
    assert gradients == list(range(cp))


@pytest.mark.parametrize("cp", [1, 2, 4])
def test_parts_of_the_ring_see_what_a_causal_mask_shows(cp):
    held = torch.from_numpy(zigzag(48, cp))
    for own in range(cp):
        for of in range(cp):
            T = held.shape[1]
            shown = torch.zeros(T, T, dtype=torch.bool)
            rows, keys, seen = part(own, of, T, None)
            shown[rows, keys] = torch.ones(T, T).tril().bool() if seen.causal else True
            assert torch.equal(shown, held[own][:, None] >= held[of])


@pytest.mark.parametrize(("context", "message"), [
    ({"ring": 0}, "context.ring=0 must be at least 1"),
    ({"ring": 6, "window": 4}, r"context.window=4 does not divide context.ring=6: use one of \[1, 2, 3, 6\]"),
    ({"placement": "ring_first"}, "context.placement=ring_first"),
])  # fmt: skip
def test_contexts_that_cannot_be_are_refused(context, message):
    with pytest.raises(ValueError, match=message):
        Context(**context)


@pytest.mark.parametrize(("arguments", "message"), [
    ((100, 4, 4), "sequence_length=100 cannot be cut into .* = 8 equal parts: use 96 or 104"),
    ((96, 3, 3), r"head_parallel=2 does not divide model.n_heads=3: use one of \[1, 3\]"),
    ((96, 6, 3), "head_parallel=2 and model.n_kv_heads=3: one must divide"),
])  # fmt: skip
def test_what_does_not_fit_a_context_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Context(2, 2).check_model(*arguments)


def test_a_world_is_whole_groups():
    Context(2, 2).check_world(8)
    with pytest.raises(ValueError, match=r"launch.devices=6 is no multiple of context.ring=2 .*: use 4 or 8"):
        Context(2, 2).check_world(6)


def test_documents_that_fall_are_refused():
    check_documents(np.array([[0, 0, 1], [3, 3, 3]]))
    with pytest.raises(ValueError, match="row 1 falls from 4 to 2 at position 2"):
        check_documents(np.array([[0, 0, 1], [3, 4, 2]]))


def test_ranks_that_share_sequences_have_to_do_with_all_of_them():
    """Of a world of four ranks; a rank whose loss is not finite is named with its samples."""
    run = Run.__new__(Run)
    run.fabric, run.pool = SimpleNamespace(world_size=4), None
    for sharing, shares in ((None, [(10, 11), (11, 13), (13, 14), (14, 16)]), (Context(ring=2), [(10, 13), (13, 16)])):
        run.group = SimpleNamespace(context=sharing) if sharing else None
        found = [run.share(10, 6, rank) for rank in range(4)]
        assert [(share.start, share.stop) for share in found] == [
            share for share in shares for _ in range(4 // len(shares))
        ]
    run.pool = True
    assert {run.share(10, 6, rank) for rank in range(4)} == {range(10, 16)}


def test_ranks_of_one_place_in_the_ring_are_neighbours_when_heads_come_first():
    assert Context(2, 3).place(3) == Place(1, 1) and Context(2, 3, None, "context_first").place(3) == Place(0, 1)
