"""Which rank of a context group holds which tokens of a sequence, and who its neighbours are. Pure functions.

    S positions --2 cp chunks, rank r of the ring holds r and 2 cp - 1 - r--> S / cp --hp slices--> S / (hp cp)

The zigzag gives every rank of the ring the same work under the causal mask. Positions of a rank rise, so attention
among themselves is causal in their own order. Slices are of what a ring rank holds: the all-to-all that turns slices
into heads puts them back together in order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Int = NDArray[np.int64]
HEAD_FIRST, CONTEXT_FIRST = "head_first", "context_first"


class Place(NamedTuple):
    """A rank's coordinates within its context group."""

    ring: int
    head: int


@dataclass(frozen=True)
class Context:
    """How a sequence lies over a group of `ring` times `head_parallel` ranks."""

    head_parallel: int = 1
    """ranks that hold the same part of the ring and a share of the heads each"""
    ring: int = 1
    """ranks among which keys and values travel"""
    window: int | None = None
    """ranks of an inner ring; null: one ring of all"""
    placement: str = HEAD_FIRST
    """head_first: ranks that exchange heads are neighbours; context_first: those of a ring are"""
    capacity: int | None = None
    """hybrid data parallelism: tokens of a rank's micro-batch; null: every rank has the same part of a sequence"""

    def __post_init__(self) -> None:
        for key in ("head_parallel", "ring"):
            if getattr(self, key) < 1:
                raise ValueError(f"context.{key}={getattr(self, key)} must be at least 1.")
        if self.window is not None and (self.window < 1 or self.ring % self.window):
            fits = [w for w in range(1, self.ring + 1) if self.ring % w == 0]
            raise ValueError(
                f"context.window={self.window} does not divide context.ring={self.ring}: use one of {fits}."
            )
        if self.capacity is not None and (self.capacity < 2 or self.size > 1):
            raise ValueError(
                f"context.capacity={self.capacity} with context.ring={self.ring} and context.head_parallel="
                f"{self.head_parallel}: documents choose their own rings of a pool of all ranks; use 2 tokens or more "
                "and leave the others at 1."
            )
        if self.placement not in (HEAD_FIRST, CONTEXT_FIRST):
            raise ValueError(f"context.placement={self.placement}: use {HEAD_FIRST} or {CONTEXT_FIRST}.")

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Context:
        """From the key `context` of a configuration, of which the rest does not place anything."""
        return cls(**{field.name: settings[field.name] for field in fields(cls)})

    @property
    def size(self) -> int:
        """Ranks of a group."""
        return self.head_parallel * self.ring

    @property
    def name(self) -> str | None:
        """As `2 x 32, windows of 4, head_first`: head_parallel x ring; None where every rank has whole sequences."""
        if self.capacity is not None:
            return f"pool with {self.capacity} tokens a rank"
        windows = f", windows of {self.window}" if 1 < self.inner < self.ring else ""
        placement = f", {self.placement}" if 1 not in (self.head_parallel, self.ring) else ""
        return f"{self.head_parallel} x {self.ring}{windows}{placement}" if self.size > 1 else None

    @property
    def inner(self) -> int:
        """Ranks of an inner ring."""
        return self.ring if self.window is None else self.window

    def place(self, rank: int) -> Place:
        """Where `rank` of the group stands."""
        if self.placement == HEAD_FIRST:
            return Place(rank // self.head_parallel, rank % self.head_parallel)
        return Place(rank % self.ring, rank // self.ring)

    def rank(self, place: Place) -> int:
        if self.placement == HEAD_FIRST:
            return place.ring * self.head_parallel + place.head
        return place.head * self.ring + place.ring

    def check_world(self, world_size: int) -> None:
        """ValueError where a world does not consist of such groups."""
        if world_size % self.size:
            below = world_size // self.size * self.size
            near = f"{below} or {below + self.size}" if below else str(self.size)
            raise ValueError(
                f"launch.devices={world_size} is no multiple of context.ring={self.ring} times "
                f"context.head_parallel={self.head_parallel}: use {near}."
            )

    def check_model(self, sequence_length: int, heads: int, kv_heads: int) -> None:
        """ValueError where a sequence or the heads of a model cannot be shared so."""
        if heads % self.head_parallel:
            raise ValueError(
                f"context.head_parallel={self.head_parallel} does not divide model.n_heads={heads}: use one of "
                f"{[n for n in range(1, heads + 1) if heads % n == 0]}."
            )
        if kv_heads % self.head_parallel and self.head_parallel % kv_heads:
            raise ValueError(
                f"context.head_parallel={self.head_parallel} and model.n_kv_heads={kv_heads}: one must divide the "
                "other."
            )
        parts = 2 * self.size
        if self.size > 1 and sequence_length % parts:
            below = sequence_length // parts * parts
            near = f"{below} or {below + parts}" if below else str(parts)
            raise ValueError(
                f"sequence_length={sequence_length} cannot be cut into 2 * context.ring * context.head_parallel = "
                f"{parts} equal parts: use {near}."
            )


def zigzag(sequence_length: int, ring: int) -> Int:
    """Positions (ring, S / ring) of every rank of a ring."""
    chunks = np.arange(sequence_length, dtype=np.int64).reshape(2 * ring, -1)
    rank = np.arange(ring)
    return np.concatenate([chunks[rank], chunks[2 * ring - 1 - rank]], axis=1)


def positions(context: Context, sequence_length: int, place: Place) -> Int:
    """Positions (S / (hp cp),) that a rank holds between attentions."""
    held = zigzag(sequence_length, context.ring)[place.ring]
    return held.reshape(context.head_parallel, -1)[place.head]


def check_documents(documents_BT: Int) -> None:
    """ValueError where document ids do not rise along a row, as attention takes them to do."""
    falls = np.argwhere(np.diff(documents_BT, axis=1) < 0)
    if len(falls):
        row, before = falls[0].tolist()
        raise ValueError(
            f"documents with non-monotone ids: row {row} falls from {documents_BT[row, before]} to "
            f"{documents_BT[row, before + 1]} at position {before + 1}. Number the documents of a row in their order."
        )


class Neighbours(NamedTuple):
    """Ranks of the ring that one rank sends to and receives from: (to, from) pairs."""

    inner: tuple[int, int]
    """within the window"""
    outer: tuple[int, int]
    """at the same place of the next window, and of the one before"""
    diagonal: tuple[int, int]
    """both at once: where gradients go when a window is done"""


def neighbours(ring: int, w: int, ring_rank: int) -> Neighbours:
    """Of a rank in a ring of `ring`, in windows of `w`."""
    windows = ring // w
    window, place = divmod(ring_rank, w)

    def at(windows_on: int, places_on: int) -> int:
        return (window + windows_on) % windows * w + (place + places_on) % w

    return Neighbours((at(0, 1), at(0, -1)), (at(1, 0), at(-1, 0)), (at(1, 1), at(-1, -1)))


def source(ring: int, w: int, ring_rank: int, outer: int, turn: int) -> int:
    """Whose keys and values `ring_rank` has in turn `turn` of an inner ring, after `outer` moves between windows."""
    windows = ring // w
    window, place = divmod(ring_rank, w)
    return (window - outer) % windows * w + (place - turn) % w
