"""Ring attention: queries stay, keys and values travel, outputs are merged; in backward their gradients travel too.

    own q, k, v --hop by hop: block of the source's keys, merged--> out, lse; and back: k, v again, behind them dk, dv

Within a window of w ranks keys and values go round; before a window is worked on, what it began with is already on its
way to the next window (Double-Ring). So of a rank's ring - 1 transfers of keys and values ring / w - 1 cross windows.
Gradients are added up in float32 on ring hops of their own, the last of each window to the next one, and end at home.

Shape suffixes: B batch, H query heads, G key/value heads, T positions of this rank, K size of a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from train.context_parallel.kernel import Seen, block, block_backward, merge
from train.context_parallel.placement import Context, neighbours, source


@dataclass(frozen=True)
class Ring:
    """A rank's ring. Three groups of the same ranks: what they carry overlaps."""

    context: Context
    rank: int
    """of this process in the ring"""
    keys: dist.ProcessGroup | None = None
    windows: dist.ProcessGroup | None = None
    gradients: dist.ProcessGroup | None = None


class Sending(NamedTuple):
    received: list[Tensor]
    requests: list[Any]

    def wait(self) -> list[Tensor]:
        for request in self.requests:
            request.wait()
        return self.received


def exchange(tensors: list[Tensor], pair: tuple[int, int], group: dist.ProcessGroup | None) -> Sending:
    """Starts sending `tensors` to rank pair[0] of the group, and receiving as many of their shapes from pair[1]."""
    assert group is not None
    to, from_ = (dist.get_global_rank(group, rank) for rank in pair)
    received = [torch.empty_like(tensor) for tensor in tensors]
    operations = [dist.P2POp(dist.isend, tensor, to, group) for tensor in tensors]
    operations += [dist.P2POp(dist.irecv, tensor, from_, group) for tensor in received]
    return Sending(received, dist.batch_isend_irecv(operations))


def travelling(ring: Ring, k: Tensor, v: Tensor) -> Iterator[tuple[int, int, Tensor, Tensor]]:
    """(source, turn, k, v) of every hop; the next ones are on their way while a hop is worked on."""
    context, near = ring.context, neighbours(ring.context, ring.rank)
    w, windows = context.inner, context.ring // context.inner
    first = [k.contiguous(), v.contiguous()]
    for outer in range(windows):
        onwards = exchange(first, near.outer, ring.windows) if outer + 1 < windows else None
        current = first
        for turn in range(w):
            coming = exchange(current, near.inner, ring.keys) if turn + 1 < w else None
            yield source(context, ring.rank, outer, turn), turn, current[0], current[1]
            if coming:
                current = coming.wait()
        if onwards:
            first = onwards.wait()


class Part(NamedTuple):
    """What of a rank's queries sees what of a hop's keys, and which of these."""

    queries: slice
    keys: slice
    seen: Seen


def part(own: int, of: int, T: int, documents: tuple[Tensor, Tensor] | None) -> Part:
    """Rank `own` of a zigzag ring before the keys of rank `of`, of which each holds T positions, as two halves.

    Its own: causal. An earlier rank's first half lies before all of the queries and its second half behind them; all of
    a later rank's keys lie behind the first half of the queries and before the second one.
    """
    every, half = slice(0, T), T // 2
    queries, keys = (every, every) if of == own else (every, slice(0, half)) if of < own else (slice(half, T), every)
    if documents is None:
        return Part(queries, keys, Seen(of == own))
    return Part(queries, keys, Seen(of == own, documents[0][:, queries], documents[1][:, keys]))


class RingAttention(torch.autograd.Function):
    """Attention of this rank's queries to the keys of all ranks of the ring, causal, within documents if these are
    given: q (B, H, T, K), k and v (B, G, T, K), documents (ring, B, T) of all ranks or None. Out is as q."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, documents: Tensor | None, ring: Ring, scale: float
    ) -> Tensor:  # fmt: skip
        T = q.shape[2]
        out = torch.zeros(q.shape, dtype=torch.float32, device=q.device)
        lse = torch.full(q.shape[:3], -torch.inf, device=q.device)
        for of, _, k_of, v_of in travelling(ring, k, v):
            rows, keys, seen = part(ring.rank, of, T, _pair(documents, ring.rank, of))
            found = block(q[:, :, rows], k_of[:, :, keys], v_of[:, :, keys], seen, scale)
            out[:, :, rows], lse[:, :, rows] = merge(out[:, :, rows], lse[:, :, rows], *found)
        out = out.to(q.dtype)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.documents, ctx.ring, ctx.scale = documents, ring, scale
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        (grad,), ring, T = gradients, ctx.ring, q.shape[2]
        near, w = neighbours(ring.context, ring.rank), ring.context.inner
        dq = torch.zeros(q.shape, dtype=torch.float32, device=q.device)
        coming: Sending | None = None
        for of, turn, k_of, v_of in travelling(ring, k, v):
            rows, keys, seen = part(ring.rank, of, T, _pair(ctx.documents, ring.rank, of))
            found = block_backward(
                grad[:, :, rows], q[:, :, rows], k_of[:, :, keys], v_of[:, :, keys], out[:, :, rows], lse[:, :, rows],
                seen, ctx.scale,
            )  # fmt: skip
            dq[:, :, rows] += found[0]
            if coming is None:
                dk, dv = (torch.zeros(x.shape, dtype=torch.float32, device=x.device) for x in (k, v))
            else:
                dk, dv = coming.wait()
            dk[:, :, keys] += found[1]
            dv[:, :, keys] += found[2]
            if ring.context.ring > 1:
                coming = exchange([dk, dv], near.inner if turn + 1 < w else near.diagonal, ring.gradients)
        if coming is not None:
            dk, dv = coming.wait()
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None, None, None


def _pair(documents: Tensor | None, own: int, of: int) -> tuple[Tensor, Tensor] | None:
    return None if documents is None else (documents[own], documents[of])
