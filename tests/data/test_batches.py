import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data.batches import IGNORED, Batches
from data.order import SampleOrder

LENGTH = 8


class Counting:
    """A stand-in for token shards in which token i is i, so that a window says where it came from."""

    def __init__(self, n_tokens):
        self.n_tokens = n_tokens

    def windows(self, starts, length):
        return starts[:, None] + np.arange(length)

    def document_ids(self, starts, length):
        return self.windows(starts, length) // 5


def make():
    order = SampleOrder({"a": 300, "b": 90}, {"a": 2, "b": 1}, 0)
    return Batches({"a": Counting(2401), "b": Counting(721)}, order, LENGTH, with_documents=True)


def stream(batches, batch_sizes, world_size, micro_batch_size):
    """The first token of every valid row, in the order of the global stream."""
    offset, seen = 0, []
    for size in batch_sizes:
        for rank in range(world_size):
            for batch in batches.micro_batches(offset, size, rank, world_size, micro_batch_size):
                assert batch.tokens.shape == batch.targets.shape == (micro_batch_size, LENGTH)
                seen += list(batch.tokens[batch.targets[:, 0] != IGNORED][:, 0])
        offset += size
    return seen


@given(st.lists(st.integers(1, 30), min_size=1, max_size=5), st.integers(1, 5), st.integers(1, 9))
def test_sample_stream_is_the_same_for_every_world_size_and_micro_batch_size(batch_sizes, world_size, micro_batch_size):
    batches = make()
    expected = stream(batches, [1] * sum(batch_sizes), 1, 1)
    assert stream(batches, batch_sizes, world_size, micro_batch_size) == expected


@given(st.integers(0, 500), st.integers(1, 20))
def test_sample_stream_is_the_same_from_any_restart_point(offset, size):
    batches = make()
    (whole,) = batches.micro_batches(0, 520, 0, 1, 520)
    (part,) = batches.micro_batches(offset, size, 0, 1, size)
    np.testing.assert_array_equal(part.tokens, whole.tokens[offset : offset + size])


@given(st.integers(1, 40), st.integers(1, 6), st.integers(1, 7))
def test_every_rank_runs_the_same_number_of_micro_batches(size, world_size, micro_batch_size):
    batches = make()
    counts = {len(list(batches.micro_batches(0, size, r, world_size, micro_batch_size))) for r in range(world_size)}
    assert len(counts) == 1


def test_targets_are_the_next_tokens_and_padding_is_ignored():
    (batch,) = make().micro_batches(0, 3, 0, 1, 5)
    np.testing.assert_array_equal(batch.targets[:3], batch.tokens[:3] + 1)
    assert (batch.targets[3:] == IGNORED).all()
    np.testing.assert_array_equal(batch.documents[:3], batch.tokens[:3] // 5)
