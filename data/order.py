"""The order of samples, as a pure function of the sample index: O(1) memory, nothing shuffled ahead of time.

    order = SampleOrder({"web": 10_000, "code": 2_000}, {"web": 3, "code": 1}, seed=0)
    order[i]             -> (source, sample) of the i-th sample of the stream
    order.select(array)  -> the same for many at once

Two pure steps. `interleave` gives slot i to a source and says how many slots that source had before: in every block of
65,536 slots source k owns n_k (largest remainder of its weight), spread evenly over the block, so any prefix of the
stream holds the sources in proportion. `permute` then shuffles inside the source: its t-th slot is sample
P_epoch(t mod U) of epoch t // U, a Feistel permutation keyed by (seed, source, epoch). With `unique` samples, the U
that repeat are the first U of one fixed permutation of the whole source, so subsets nest and are random.

Every epoch of a source is exactly a permutation of its samples, whatever the other sources are.
"""

import hashlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

BLOCK = 65_536
ROUNDS = 6

Int = NDArray[np.int64]


def permute(index: Int, size: int, *key: object) -> Int:
    """A pseudo-random permutation of range(size), keyed by `key`, evaluated at `index` (int64, any shape).

    A balanced Feistel network over the next even number of bits, walked until the value falls into range(size); the
    walk takes under 4 turns on average.
    """
    if size < 1:
        raise ValueError(f"cannot permute {size} samples.")
    half = max(1, -(-(size - 1).bit_length() // 2))
    mask = np.uint64((1 << half) - 1)
    shift = np.uint64(half)
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8 * ROUNDS).digest()
    round_keys = np.frombuffer(digest, dtype="<u8").astype(np.uint64)
    out = np.array(index, dtype=np.uint64)
    outside = np.ones(out.shape, dtype=bool)
    while outside.any():
        value = out[outside]
        left, right = value >> shift, value & mask
        for round_key in round_keys:
            left, right = right, left ^ (mixed(right ^ round_key) & mask)
        out[outside] = (left << shift) | right
        outside = out >= np.uint64(size)
    return out.astype(np.int64)


def mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of SplitMix64: a bijection of 64-bit words in which every input bit moves every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def block_quotas(weights: list[float]) -> list[int]:
    """Slots of each source in a block of 65,536: largest remainder, at least one each."""
    shares = np.asarray(weights, dtype=np.float64) / np.sum(weights) * BLOCK
    quotas = np.floor(shares).astype(int)
    for k in np.argsort(quotas - shares, kind="stable")[: BLOCK - quotas.sum()]:
        quotas[k] += 1
    if (quotas < 1).any():
        raise ValueError(f"data.weights={list(weights)}: each needs at least 1/{BLOCK} of the sum.")
    return [int(q) for q in quotas]


def interleave(index: Int, quotas: list[int]) -> tuple[Int, Int]:
    """(source, how many earlier slots that source had) of each slot.

    The sources are split in halves again and again; at each split, of i slots floor(i * a / q) go left (a of every q),
    which is exact in integers and as even as can be.
    """
    source, rank = np.zeros_like(index), index.copy()
    if len(quotas) == 1:
        return source, rank
    middle = len(quotas) // 2
    left_quota, quota = sum(quotas[:middle]), sum(quotas)
    before = rank * left_quota // quota
    goes_left = (rank + 1) * left_quota // quota > before
    for side, part, first in ((goes_left, quotas[:middle], 0), (~goes_left, quotas[middle:], middle)):
        inner = before[side] if first == 0 else rank[side] - before[side]
        inner_source, inner_rank = interleave(inner, part)
        source[side] = inner_source + first
        rank[side] = inner_rank
    return source, rank


class SampleOrder:
    """The stream of (source, sample) pairs. `sources` maps names to numbers of samples."""

    def __init__(
        self,
        sources: Mapping[str, int],
        weights: Mapping[str, float],
        seed: int,
        unique: Mapping[str, int] | None = None,
    ) -> None:
        """`unique[name]`: only that many samples of the source are used, and repeated. ValueError if it has fewer."""
        self.names = list(sources)
        self.sizes = [sources[name] for name in self.names]
        self.seed = seed
        self.unique = [(unique or {}).get(name, sources[name]) for name in self.names]
        for name, used, size in zip(self.names, self.unique, self.sizes, strict=True):
            if not 1 <= used <= size:
                raise ValueError(
                    f"source {name!r} has {size} samples, {used} were asked for: use between 1 and {size}."
                )
        if set(weights) != set(self.names):
            raise ValueError(
                f"data.weights names {sorted(weights)}, the sources are {sorted(self.names)}: name each once."
            )
        self.quotas = block_quotas([weights[name] for name in self.names])

    @property
    def samples_before_repeat(self) -> int:
        """Samples of the stream after which the first source to run out begins to repeat."""
        return min(used * BLOCK // quota for used, quota in zip(self.unique, self.quotas, strict=True))

    def select(self, index: Int) -> tuple[Int, Int]:
        """(source number, sample) of each stream position in `index`, int64 [n]."""
        source, rank = interleave(np.asarray(index, dtype=np.int64), self.quotas)
        sample = np.empty_like(rank)
        for k, (name, used, size) in enumerate(zip(self.names, self.unique, self.sizes, strict=True)):
            mine = source == k
            epochs, within = np.divmod(rank[mine], used)
            picked = np.empty_like(within)
            for epoch in np.unique(epochs):
                here = epochs == epoch
                picked[here] = permute(within[here], used, self.seed, name, int(epoch))
            sample[mine] = permute(picked, size, "unique", name) if used < size else picked
        return source, sample

    def __getitem__(self, index: int) -> tuple[str, int]:
        source, sample = self.select(np.array([index]))
        return self.names[int(source[0])], int(sample[0])


class EvenlySpaced:
    """`count` of the `size` samples of one source, evenly spaced over it: for evaluation, the same ones each time."""

    def __init__(self, name: str, count: int, size: int) -> None:
        self.names, self.count, self.size = [name], count, size

    def select(self, index: Int) -> tuple[Int, Int]:
        return np.zeros_like(index), index * self.size // self.count
