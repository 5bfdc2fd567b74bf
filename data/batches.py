"""Batches by sample index: which token windows a rank trains on, in which micro-batches.

Step s consumes samples range(offset, offset + batch_size) of the stream; rank r takes its contiguous share, cut into
micro-batches of one shape. Every rank runs the same number of them; rows that are left over are masked.

Shape suffixes: B rows of a micro-batch, T positions.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.order import EvenlySpaced, SampleOrder
from data.prepare import Prepared
from data.tokens import Tokens

IGNORED = -100  # target of a position that does not count


class Batch(NamedTuple):
    """int64 [B, T] each; `documents` is None unless attention is masked by document. Of sequences that several ranks
    share it is what their attention asks for (`train.context_parallel`), on the host."""

    tokens: NDArray[np.int64]
    targets: NDArray[np.int64]
    documents: Any
    positions: NDArray[np.int64] | None = None
    """[T] of the tokens in their sequences, where several ranks share these"""


def rank_share(offset: int, batch_size: int, rank: int, world_size: int) -> range:
    """The samples of one global batch that a rank takes; sizes differ by one at most."""
    return range(offset + batch_size * rank // world_size, offset + batch_size * (rank + 1) // world_size)


def micro_batch_count(batch_size: int, world_size: int, micro_batch_size: int) -> int:
    """Micro-batches that every rank runs: enough for the largest share."""
    return math.ceil(math.ceil(batch_size / world_size) / micro_batch_size)


class Batches:
    """Micro-batches of a stream of samples; a sample is `sequence_length` tokens and the one after them."""

    def __init__(
        self,
        sources: Mapping[str, Tokens],
        order: SampleOrder | EvenlySpaced,
        sequence_length: int,
        with_documents: bool,
    ) -> None:
        self.sources = [sources[name] for name in order.names]
        self.order = order
        self.sequence_length = sequence_length
        self.with_documents = with_documents

    def micro_batches(
        self, offset: int, batch_size: int, rank: int, world_size: int, micro_batch_size: int
    ) -> Iterator[Batch]:
        """The micro-batches of this rank for the step that consumes `batch_size` samples from `offset` on."""
        share = rank_share(offset, batch_size, rank, world_size)
        for i in range(micro_batch_count(batch_size, world_size, micro_batch_size)):
            yield self.batch(share[i * micro_batch_size : (i + 1) * micro_batch_size], micro_batch_size)

    def batch(self, samples: range, rows: int) -> Batch:
        """These samples, and rows that do not count up to `rows`."""
        source, sample = self.order.select(np.array(samples, dtype=np.int64))
        used = np.zeros((rows, self.sequence_length + 1), dtype=np.int64)
        documents = np.zeros((rows, self.sequence_length), dtype=np.int64) if self.with_documents else None
        for k, tokens in enumerate(self.sources):
            mine = np.flatnonzero(source == k)
            starts = sample[mine] * self.sequence_length
            used[mine] = tokens.windows(starts, self.sequence_length + 1)
            if documents is not None:
                documents[mine] = tokens.document_ids(starts, self.sequence_length)
        targets = used[:, 1:].copy()
        targets[len(samples) :] = IGNORED
        return Batch(used[:, :-1], targets, documents)


def sample_count(tokens: Tokens, sequence_length: int) -> int:
    """Whole samples in a source: each needs its last token's successor."""
    return (tokens.n_tokens - 1) // sequence_length


def sample_order(prepared: Prepared, sequence_length: int, seed: int, unique_tokens: int | None) -> SampleOrder:
    """The stream of training samples. `unique_tokens` are shared between the sources by weight; null: all there are.

    ValueError where a source has fewer.
    """
    sizes = {name: sample_count(tokens, sequence_length) for name, tokens in prepared.sources.items()}
    if unique_tokens is None:
        return SampleOrder(sizes, prepared.weights, seed)
    total = sum(prepared.weights.values())
    unique = {name: int(unique_tokens * prepared.weights[name] / total) // sequence_length for name in sizes}
    for name, samples in unique.items():
        if not 1 <= samples <= sizes[name]:
            raise ValueError(
                f"unique_tokens={unique_tokens} asks for {samples} sequences of data.sources.{name}, which has "
                f"{sizes[name]} of {sequence_length} tokens: it can give {sequence_length} to "
                f"{sizes[name] * sequence_length} tokens."
            )
    return SampleOrder(sizes, prepared.weights, seed, unique)
