"""Hybrid data parallelism, after ByteScale (arXiv:2502.21231): the documents of a batch over one pool of ranks.

    documents of a batch --pieces--> runs of one document --schedule--> waves of (piece, ranks)
    a wave and a rank --held--> the tokens that the rank computes in it, a share of a ring first, whole pieces behind

Under the document mask a piece sees only itself, so it may be computed anywhere. One longer than `capacity` tokens goes
to ceil(length / capacity) ranks or more, a zigzag ring of just these; the others stay whole. A wave is one micro-batch
of all ranks, and ends when its slowest rank does (sharded parameters are gathered together): a step takes the sum over
waves of the largest rank's FLOPs, so what matters is balance within a wave, attention's quadratic part included.

Everything is in integers and ties go by index: each rank computes the whole schedule alone, and all find the same.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.batches import micro_batch_count, rank_share
from train.context_parallel.placement import check_documents, zigzag
from train.shape import Shape

Int = NDArray[np.int64]
Cost = Callable[[int], int]


class Piece(NamedTuple):
    """Positions start..stop of a row of a batch: a document, or what the row has of it."""

    row: int
    start: int
    stop: int

    @property
    def length(self) -> int:
        return self.stop - self.start


class Assigned(NamedTuple):
    """A piece (its index) and the ranks that compute it, in the order of their ring."""

    piece: int
    ranks: tuple[int, ...]


Wave = list[Assigned]  # pieces of several ranks first, then by index


class Held(NamedTuple):
    """A rank's tokens in a wave, int64 (n,) each. n may be 0."""

    rows: Int
    positions: Int
    """within the row. Padding points to the last token of its piece"""
    pieces: Int
    """index of the piece, rising behind the share; -1: padding, always behind all tokens of its ring"""
    ring: tuple[int, ...]
    """ranks among which keys and values of the share travel, this one among them; (): there is no share"""
    share: int
    """how many tokens at the front are this rank's zigzag share, padding included: causal, of one document"""


def pieces(documents_BT: Int) -> list[Piece]:
    """Maximal runs of one document id, row by row. ValueError where ids do not rise along a row."""
    check_documents(documents_BT)
    found = []
    for row, steps in enumerate(np.diff(documents_BT, axis=1)):
        edges = [0, *(np.flatnonzero(steps) + 1).tolist(), documents_BT.shape[1]]
        found += [Piece(row, start, stop) for start, stop in itertools.pairwise(edges)]
    return found


def piece_flops(shape: Shape, length: int) -> int:
    """FLOPs of a forward pass over a piece: matrices in proportion to its length, attention to its causal pairs."""
    return shape.forward_flops(length, length * (length + 1) // 2)


def share_tokens(length: int, ranks: int) -> int:
    """Tokens of a piece that each of `ranks` holds: two chunks of the zigzag, padded to one size."""
    return length if ranks == 1 else -(-length // (2 * ranks)) * 2


def schedule(lengths: Sequence[int], ranks: int, capacity: int, cost: Cost) -> list[Wave]:
    """The waves of a batch: in each, a rank holds at most `capacity` tokens and at most one share of a ring.

    `cost(length)`: FLOPs of a piece, rising. Rings are as short as they can be, or longer where attention makes a share
    cost more than other ranks' tokens: whichever takes less time. ValueError where a piece does not fit all ranks.
    """
    fewest = fewest_ranks(lengths, ranks, capacity)
    even = even_ranks(lengths, fewest, ranks, capacity, cost)
    found = [packed(lengths, needed, ranks, capacity, cost) for needed in (fewest, even)]
    return min(found, key=lambda packing: packing.flops).waves


def fewest_ranks(lengths: Sequence[int], ranks: int, capacity: int) -> list[int]:
    """Ranks of each piece, the fewest whose shares fit: ceil(length / capacity), but shares of a ring are even."""
    needed = [1 if n <= capacity else -(-n // max(1, capacity // 2 * 2)) for n in lengths]
    longest = max(lengths, default=0)
    if capacity < 2 or max(needed, default=1) > ranks:
        raise ValueError(
            f"context.capacity={capacity} tokens on each of {ranks} ranks cannot hold a document of {longest} tokens: "
            f"use context.capacity >= {max(2, share_tokens(longest, ranks))} or more ranks."
        )
    return needed


def even_ranks(lengths: Sequence[int], fewest: list[int], ranks: int, capacity: int, cost: Cost) -> list[int]:
    """The same, but more where a share would cost more than `capacity` tokens do on average, in pieces with a ring."""
    tokens, flops = sum(lengths), sum(map(cost, lengths))
    return [
        n if n == 1 else max(n, min(ranks, -(-cost(length) * tokens // (capacity * flops))))
        for length, n in zip(lengths, fewest, strict=True)
    ]


class Packing(NamedTuple):
    waves: list[Wave]
    flops: int
    """of the largest rank, summed over waves"""


def packed(lengths: Sequence[int], needed: list[int], ranks: int, capacity: int, cost: Cost) -> Packing:
    """The waves of pieces on `needed` ranks each, as few waves as this finds room in.

    Rings first fit, the costliest shares first, so that those of a wave cost about the same. Then whole pieces, longest
    first, each on the rank where it makes the step the least longer.
    """
    share = [share_tokens(length, n) for length, n in zip(lengths, needed, strict=True)]
    flops = [-(-cost(length) // n) for length, n in zip(lengths, needed, strict=True)]
    costly = sorted((-flops[i], i) for i, n in enumerate(needed) if n > 1)
    longest = sorted((-length, i) for i, length in enumerate(lengths) if needed[i] == 1)
    rings = _rings([i for _, i in costly], needed, ranks)
    tokens = sum(n * each for n, each in zip(needed, share, strict=True))
    for count in itertools.count(max(len(rings), -(-tokens // (ranks * capacity)))):
        shares = [*rings, *[[]] * (count - len(rings))]
        waves = [_Filling(ring, share, flops, ranks, capacity) for ring in shares]
        if all(_add(waves, i, -minus, flops[i]) for minus, i in longest):
            break
    done = [ring + sorted(wave.whole) for ring, wave in zip(shares, waves, strict=True)]
    return Packing(done, sum(wave.level for wave in waves))


def _rings(spread: list[int], needed: list[int], ranks: int) -> list[Wave]:
    """First fit, in order; ranks of a ring are neighbours."""
    waves: list[Wave] = []
    taken: list[int] = []
    for i in spread:
        at = next((w for w, n in enumerate(taken) if n + needed[i] <= ranks), len(waves))
        if at == len(waves):
            waves.append([])
            taken.append(0)
        waves[at].append(Assigned(i, tuple(range(taken[at], taken[at] + needed[i]))))
        taken[at] += needed[i]
    return waves


def _add(waves: list[_Filling], piece: int, tokens: int, flops: int) -> bool:
    """A whole piece to the first wave whose level it raises least; False where there is no room."""
    best, least_growth = None, 0
    for wave in waves:
        if (load := wave.least(tokens)) is None:
            continue
        growth = max(0, load + flops - wave.level)
        if best is None or growth < least_growth:
            best, least_growth = wave, growth
        if growth == 0:
            break
    if best is not None:
        best.add(piece, tokens, flops)
    return best is not None


class _Filling:
    """A wave with its rings, to which whole pieces are added, the longest first."""

    def __init__(self, rings: Wave, share: list[int], flops: list[int], ranks: int, capacity: int) -> None:
        self.whole: Wave = []
        self.load, self.room = [0] * ranks, [capacity] * ranks
        for piece, on in rings:
            for rank in on:
                self.load[rank] += flops[piece]
                self.room[rank] -= share[piece]
        self.level = max(self.load)
        self.usable = sorted((load, rank) for rank, load in enumerate(self.load))  # heap: may have room
        self.tight: list[tuple[int, int]] = []  # heap of (-room, rank): had not when last asked

    def least(self, tokens: int) -> int | None:
        """The load of the least loaded rank with room for so many; None where there is none."""
        while self.tight and -self.tight[0][0] >= tokens:
            rank = heapq.heappop(self.tight)[1]
            heapq.heappush(self.usable, (self.load[rank], rank))
        while self.usable and self.room[self.usable[0][1]] < tokens:
            rank = heapq.heappop(self.usable)[1]
            heapq.heappush(self.tight, (-self.room[rank], rank))
        return self.usable[0][0] if self.usable else None

    def add(self, piece: int, tokens: int, flops: int) -> None:
        """To the rank that `least` found."""
        rank = self.usable[0][1]
        self.load[rank] += flops
        self.room[rank] -= tokens
        self.level = max(self.level, self.load[rank])
        heapq.heapreplace(self.usable, (self.load[rank], rank))
        self.whole.append(Assigned(piece, (rank,)))


def held(wave: Wave, rank: int, pieces: Sequence[Piece]) -> Held:
    """What a rank computes in a wave."""
    rows, positions, index = ([np.empty(0, np.int64)] for _ in range(3))
    ring: tuple[int, ...] = ()
    share = 0
    for i, on in wave:
        if rank not in on:
            continue
        row, start, stop = piece = pieces[i]
        n = share_tokens(piece.length, len(on))
        own = zigzag(n * len(on), len(on))[on.index(rank)] if len(on) > 1 else np.arange(n, dtype=np.int64)
        if len(on) > 1:
            ring, share = on, n
        rows.append(np.full(n, row, np.int64))
        positions.append(np.minimum(start + own, stop - 1))
        index.append(np.where(start + own < stop, i, -1))
    return Held(np.concatenate(rows), np.concatenate(positions), np.concatenate(index), ring, share)


# What a schedule costs, and what a mesh of data x context ranks would: arrays (waves, ranks).


def imbalance(work_WR: NDArray[np.float64]) -> float:
    """Time of a step with a barrier after each wave / time if every wave were shared evenly: 1 is perfect."""
    return float(work_WR.max(1).sum() / work_WR.mean(1).sum())


def work(waves: list[Wave], lengths: Sequence[int], ranks: int, cost: Cost) -> NDArray[np.float64]:
    """FLOPs of each rank in each wave, forward."""
    flops = np.zeros((len(waves), ranks))
    for w, wave in enumerate(waves):
        for i, on in wave:
            flops[w, list(on)] += cost(lengths[i]) / len(on)
    return flops


def sent(waves: list[Wave], lengths: Sequence[int], ranks: int) -> Int:
    """Tokens whose keys and values each rank sends in each wave, forward: 2 * kv_heads * head_dim elements each, in
    every layer."""
    tokens = np.zeros((len(waves), ranks), np.int64)
    for w, wave in enumerate(waves):
        for i, on in wave:
            tokens[w, list(on)] += (len(on) - 1) * share_tokens(lengths[i], len(on))
    return tokens


class Mesh(NamedTuple):
    """data x ring ranks: rows go to data ranks as `data.batches` shares them, a row's tokens to a zigzag ring."""

    data: int
    ring: int
    rows: int
    """of a micro-batch of one data rank"""


def static_mesh(sequence_length: int, ranks: int, capacity: int) -> Mesh:
    """The mesh of the shortest ring on which a row fits `capacity` tokens a rank, and as many rows as do."""
    rings = [n for n in range(1, ranks + 1) if ranks % n == 0 and sequence_length % (2 * n) == 0]
    ring = next((n for n in rings if sequence_length <= n * capacity), None)
    if ring is None:
        raise ValueError(
            f"context.capacity={capacity} tokens on each of {ranks} ranks do not hold a row of {sequence_length}: use "
            f"context.capacity >= {sequence_length // max(rings, default=1)}."
        )
    return Mesh(ranks // ring, ring, capacity * ring // sequence_length)


def static_work(documents_BT: Int, mesh: Mesh, shape: Shape) -> NDArray[np.float64]:
    """FLOPs of each rank in each micro-batch, forward: every pair that a rank's queries see under the document mask."""
    B, T = documents_BT.shape
    position = np.arange(T)
    starts = np.diff(documents_BT, axis=1, prepend=documents_BT[:, :1] - 1) != 0
    seen = position - np.maximum.accumulate(np.where(starts, position, 0), axis=1) + 1
    pairs_BR = seen[:, zigzag(T, mesh.ring)].sum(2)
    flops = np.zeros((micro_batch_count(B, mesh.data, mesh.rows), mesh.data, mesh.ring))
    for data in range(mesh.data):
        for k, row in enumerate(rank_share(0, B, data, mesh.data)):
            flops[k // mesh.rows, data] += [shape.forward_flops(T // mesh.ring, int(n)) for n in pairs_BR[row]]
    return flops.reshape(len(flops), -1)


def static_sent(rows: int, sequence_length: int, mesh: Mesh) -> Int:
    """Tokens whose keys and values each rank sends in each micro-batch: all of its own, ring - 1 times."""
    tokens = np.zeros((micro_batch_count(rows, mesh.data, mesh.rows), mesh.data, mesh.ring), np.int64)
    for data in range(mesh.data):
        for k in range(len(rank_share(0, rows, data, mesh.data))):
            tokens[k // mesh.rows, data] += (mesh.ring - 1) * sequence_length // mesh.ring
    return tokens.reshape(len(tokens), -1)
