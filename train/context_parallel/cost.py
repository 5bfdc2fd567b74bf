"""Seconds of attention per layer under a layout of context parallelism, and the best layout. No torch.

    shape, layout, sequence --sent--> numbers per message --links of a machine--> seconds of a hop, of an all-to-all
    seconds of a hop's products and of its transfers --overlap--> forward and backward: compute, ring, all-to-all

The volumes are LoongTrain's (arXiv:2406.18485) with the key/value heads that `train.context_parallel.attention` sends;
the schedule is that of `train.context_parallel.ring`. Derived here, not in the paper: a rank has two links, inside its
node and between nodes, and what it sends at one time over one of them shares it; all ranks wait for the slowest. What
does not depend on the layout (projections, MLP, recomputation) is not part of it, nor are merging and document masks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from train.context_parallel.placement import CONTEXT_FIRST, HEAD_FIRST, Context, Place, neighbours
from train.shape import Shape

Float = NDArray[np.float64]
BACKWARD = 2.5  # five products against two: flash attention computes the scores again
GRADIENT_BYTES = 4  # gradients of keys and values are added up in float32


@dataclass(frozen=True)
class Machine:
    """What the ranks of a context group compute and send with."""

    ranks_per_node: int
    node_bandwidth: float
    """bytes per second that one rank sends to ranks of its node"""
    network_bandwidth: float
    """bytes per second that one rank sends to other nodes, while the others of its node do so too"""
    latency: float
    """seconds that a message takes beside its bytes"""
    flops: float
    """FLOP/s that the attention kernel reaches on what it computes: half of a square under a causal mask"""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value < 0 or (value == 0 and field.name != "latency"):
                raise ValueError(f"context.machine.{field.name}={value} must be positive.")


class Seconds(NamedTuple):
    """Of one layer, on every rank."""

    compute: float
    ring: float
    """that compute waits for keys, values and their gradients"""
    all_to_all: float

    @property
    def total(self) -> float:
        return sum(self)


class Cost(NamedTuple):
    context: Context
    forward: Seconds
    backward: Seconds

    @property
    def both(self) -> Seconds:
        return Seconds(*(there + back for there, back in zip(self.forward, self.backward, strict=True)))


def cost(
    shape: Shape, context: Context, machine: Machine, sequence_length: int, rows: int = 1, number_bytes: int = 2
) -> Cost:
    """Of `rows` sequences at once; `number_bytes` is 2 in bfloat16, 4 in float32."""
    one, where = sent(shape, context, sequence_length), paths(context, machine.ranks_per_node)

    def busy(leaves_node: bool, messages: int, numbers: float, bytes_each: int = number_bytes) -> Float:
        """Seconds (link inside the node, link between nodes) of messages that a rank sends one after another."""
        bandwidth = machine.network_bandwidth if leaves_node else machine.node_bandwidth
        seconds = messages * machine.latency + rows * numbers * bytes_each / bandwidth
        return np.array([0.0, seconds] if leaves_node else [seconds, 0.0])

    inner, outer = (busy(leaves, 2, one.hop) for leaves in (where.inner, where.outer))
    gradient, diagonal = (busy(leaves, 2, one.hop, GRADIENT_BYTES) for leaves in (where.inner, where.diagonal))
    peers = ((False, where.inside), (True, where.outside))
    inside, outside = (busy(leaves, 4 * ranks, ranks * one.peer) for leaves, ranks in peers)  # q, k, v, out
    all_to_all = float((inside + outside).max())

    pairs = rows * sequence_length * (sequence_length + 1) / 2
    compute = 4 * pairs * shape.n_heads * shape.d_head / context.size / machine.flops
    ring = _waits(context, compute / context.ring, inner, outer, np.zeros(2), np.zeros(2))
    back = _waits(context, BACKWARD * compute / context.ring, inner, outer, gradient, diagonal)
    return Cost(context, Seconds(compute, ring, all_to_all), Seconds(BACKWARD * compute, back, all_to_all))


def _waits(context: Context, compute: float, inner: Float, outer: Float, gradient: Float, diagonal: Float) -> float:
    """Seconds that a ring waits beside `compute` per hop, by what the transfers (2 links,) of a hop take.

    Keys and values of the next hop travel during a hop, those of the next window during a window, and the gradients of
    a hop during the one after it: after the last there is nothing to hide them.
    """
    if context.ring == 1:
        return 0.0
    w, windows, waits = context.inner, context.ring // context.inner, 0.0
    hops = np.zeros((w, 2))
    hops[:-1] += inner
    hops[1:] += gradient
    for window in range(windows):
        first, onwards = float(window > 0), float(window + 1 < windows)
        hops[0] = inner * (w > 1) + first * diagonal
        by_hop = np.maximum(hops.max(axis=1) - compute, 0).sum()
        waits += float(max(by_hop, (hops.sum(axis=0) + onwards * outer).max() - w * compute))
    return waits + float(diagonal.max())


# ---------------------------------------------------------------------------------------------------- what is sent


class Sent(NamedTuple):
    """Numbers of one sequence that a rank sends in a forward pass."""

    peer: float
    """to each of the hp - 1 ranks it shares heads with: their part of queries, keys and values, and of the output"""
    hop: float
    """in each of the cp - 1 hops: keys and values. In backward they travel again, and their gradients in cp hops"""


def sent(shape: Shape, context: Context, sequence_length: int) -> Sent:
    """A key/value head that several ranks attend to is sent to each: Hkv' = max(Hkv, hp * head_dim)."""
    tokens = sequence_length / context.size
    keys_and_values = 2 * max(shape.kv_heads, context.head_parallel) * shape.d_head
    queries_and_output = 2 * shape.n_heads * shape.d_head
    return Sent(tokens * (queries_and_output + keys_and_values) / context.head_parallel, tokens * keys_and_values)


class Paths(NamedTuple):
    """Where messages go, of the rank and the group where it is worst."""

    inner: bool
    """a hop within a window leaves the node"""
    outer: bool
    """one between windows does"""
    diagonal: bool
    """the last of a window's gradients does"""
    inside: int
    """most ranks of its own node that a rank shares heads with"""
    outside: int
    """most ranks of other nodes that a rank shares heads with"""


def paths(context: Context, ranks_per_node: int) -> Paths:
    """Ranks of a node and of a context group are neighbours in the world; groups are looked at until they lie alike."""
    heads, ring = range(context.head_parallel), range(context.ring)
    first = np.arange(0, math.lcm(context.size, ranks_per_node), context.size)
    ranks = np.array([[context.rank(Place(place, head)) for head in heads] for place in ring])
    nodes = (first[:, None, None] + ranks) // ranks_per_node  # (group, ring, head)
    to = np.array([[pair[0] for pair in neighbours(context.ring, context.inner, place)] for place in ring])  # (ring, 3)
    inner, outer, diagonal = ((nodes[:, to[:, kind]] != nodes).any() for kind in range(3))
    away = (nodes[..., None] != nodes[..., None, :]).sum(axis=-1)
    inside = (context.head_parallel - 1 - away).max()
    return Paths(bool(inner), bool(outer), bool(diagonal), int(inside), int(away.max()))


# ---------------------------------------------------------------------------------------------------- which is best


def layouts(shape: Shape, size: int) -> list[Context]:
    """All that differ, of `size` ranks: a window of one or of all is the plain ring."""
    heads, kv_heads = shape.n_heads, shape.kv_heads
    found = [
        _plain(Context(hp, size // hp, window, placement))
        for hp in _divisors(size)
        if heads % hp == 0 and (kv_heads % hp == 0 or hp % kv_heads == 0)
        for window in _divisors(size // hp)
        for placement in (HEAD_FIRST, CONTEXT_FIRST)
    ]
    return list(dict.fromkeys(found))


def ranked(
    shape: Shape, size: int, machine: Machine, sequence_length: int, rows: int = 1, number_bytes: int = 2
) -> list[Cost]:
    """Every layout of `size` ranks, the fastest first. ValueError where the sequence cannot be cut so."""
    Context(ring=size).check_model(sequence_length, shape.n_heads, shape.kv_heads)
    costs = [cost(shape, context, machine, sequence_length, rows, number_bytes) for context in layouts(shape, size)]
    return sorted(costs, key=_rounded)  # equal ones stay in the order of layouts()


def _rounded(one: Cost) -> float:
    return float(f"{one.both.total:.9g}")


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def describe(costs: list[Cost], chosen: Context, shown: int = 5) -> list[str]:
    """A line for each of the first layouts, of equal ones the first, and for the chosen one, which is marked."""
    lines = [f"  {'heads x ring':<40}{'ms a layer':>12}{'compute':>12}{'ring':>12}{'all-to-all':>12}"]
    first: dict[float, Context] = {}
    for one in costs:
        fastest_so = first.setdefault(_rounded(one), one.context) == one.context and len(first) <= shown
        own = one.context == _plain(chosen)
        if own or fastest_so:
            times = "".join(f"{1e3 * seconds:>12.4g}" for seconds in (one.both.total, *one.both))
            lines.append(f"{'*' if own else ' '} {one.context.name:<40}{times}")
    return lines


def _plain(context: Context) -> Context:
    """Of layouts that are the same the one in `layouts`: windows of one rank or of all are no windows."""
    hp, cp = context.head_parallel, context.ring
    window = None if context.inner in (1, cp) else context.window
    return Context(hp, cp, window, HEAD_FIRST if 1 in (hp, cp) else context.placement)
