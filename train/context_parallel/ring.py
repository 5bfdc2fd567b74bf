"""Ring attention: queries stay, keys and values travel, outputs are merged; in backward their gradients travel too.

    own q, k, v --hop by hop: block of the source's keys, merged--> out, lse; and back: k, v again, behind them dk, dv

Within a window of w ranks keys and values go round; before a window is worked on, what it began with is already on its
way to the next window (Double-Ring). So of a rank's ring - 1 transfers of keys and values ring / w - 1 cross windows.
Gradients are added up in float32 on ring hops of their own, the last of each window to the next one, and end at home.

It is one operator of torch, with out and lse as its results: what keeps these (activation checkpointing) need not run
it again, and what is compiled need not look into it.

Shape suffixes: B batch, H query heads, G key/value heads, T positions of this rank, K size of a head.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import _resolve_process_group

from train.context_parallel.kernel import Seen, block, block_backward, merge
from train.context_parallel.placement import neighbours, source


@dataclass(frozen=True)
class Ring:
    """A rank's ring. `keys`, `windows` and `gradients` name three process groups: what they carry overlaps."""

    ranks: tuple[int, ...] = (0,)
    """of the world, in the ring's order"""
    own: int = 0
    """place of this process in `ranks`"""
    window: int = 1
    """ranks of an inner ring"""
    keys: str = ""
    windows: str = ""
    gradients: str = ""


class Sending(NamedTuple):
    received: list[Tensor]
    requests: list[Any]

    def wait(self) -> list[Tensor]:
        for request in self.requests:
            request.wait()
        return self.received


def exchange(tensors: list[Tensor], to: int, from_: int, group: Any) -> Sending:
    """Starts sending `tensors` to rank `to` of the world, and receiving as many of their shapes from rank `from_`, by
    the process group of that name."""
    received, process_group = [torch.empty_like(tensor) for tensor in tensors], _resolve_process_group(group)
    operations = [dist.P2POp(dist.isend, tensor, to, process_group) for tensor in tensors]
    operations += [dist.P2POp(dist.irecv, tensor, from_, process_group) for tensor in received]
    return Sending(received, dist.batch_isend_irecv(operations))


def travelling(ring: Ring, k: Tensor, v: Tensor) -> Iterator[tuple[int, int, Tensor, Tensor]]:
    """(source, turn, k, v) of every hop; the next ones are on their way while a hop is worked on."""
    near, w = neighbours(len(ring.ranks), ring.window, ring.own), ring.window
    windows = len(ring.ranks) // w
    current = [k.contiguous(), v.contiguous()] if len(ring.ranks) > 1 else [k, v]
    for outer in range(windows):
        onwards = _send(ring, current, near.outer, ring.windows) if outer + 1 < windows else None
        for turn in range(w):
            coming = _send(ring, current, near.inner, ring.keys) if turn + 1 < w else None
            yield source(len(ring.ranks), w, ring.own, outer, turn), turn, current[0], current[1]
            if coming:
                current = coming.wait()
        if onwards:
            current = onwards.wait()


def _send(ring: Ring, tensors: list[Tensor], pair: tuple[int, int], group: str) -> Sending:
    return exchange(tensors, ring.ranks[pair[0]], ring.ranks[pair[1]], group)


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


def ring_attention(q: Tensor, k: Tensor, v: Tensor, documents: Tensor | None, ring: Ring, scale: float) -> Tensor:
    """Attention of this rank's queries to the keys of all ranks of the ring, causal, within documents if these are
    given: q (B, H, T, K), k and v (B, G, T, K), documents (ring, B, T) of all ranks or None. Out is as q."""
    groups = [ring.keys, ring.windows, ring.gradients]
    return _ring_attention(q, k, v, documents, list(ring.ranks), ring.own, ring.window, *groups, scale)[0]


# ---------------------------------------------------------------------------------------------------- the operator

_RING = "int[] ranks, int own, int window, str keys, str windows, str gradients, float scale"


@torch.library.custom_op(
    "fulcrum::ring_attention",
    mutates_args=(),
    schema=f"(Tensor q, Tensor k, Tensor v, Tensor? documents, {_RING}) -> (Tensor, Tensor)",
)
def _ring_attention(q: Tensor, k: Tensor, v: Tensor, documents: Tensor | None, *how: Any) -> tuple[Tensor, Tensor]:
    """(out, lse), lse (B, H, T) in float32."""
    ring, scale = _ring(*how)
    T = q.shape[2]
    for of, _, k_of, v_of in travelling(ring, k, v):
        rows, keys, seen = part(ring.own, of, T, _pair(documents, ring.own, of))
        found = block(q[:, :, rows], k_of[:, :, keys], v_of[:, :, keys], seen, scale)
        if of == ring.own:  # the first, of all rows
            out, lse = found
        else:
            out[:, :, rows], lse[:, :, rows] = merge(out[:, :, rows], lse[:, :, rows], *found)
    return _laid(out, q.dtype), lse.contiguous()


@torch.library.custom_op(
    "fulcrum::ring_attention_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor? documents, "
    f"{_RING}) -> (Tensor, Tensor, Tensor)",
)
def _ring_attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, documents: Tensor | None, *how: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """(dq, dk, dv)"""
    ring, scale = _ring(*how)
    near, w, T = neighbours(len(ring.ranks), ring.window, ring.own), ring.window, q.shape[2]
    coming: Sending | None = None
    for of, turn, k_of, v_of in travelling(ring, k, v):
        rows, keys, seen = part(ring.own, of, T, _pair(documents, ring.own, of))
        found = block_backward(
            grad[:, :, rows], q[:, :, rows], k_of[:, :, keys], v_of[:, :, keys], out[:, :, rows], lse[:, :, rows], seen,
            scale,
        )  # fmt: skip
        if coming is None:  # the rank's own keys, seen by all rows
            dq, dk, dv = found[0], found[1].contiguous(), found[2].contiguous()
        else:
            dk, dv = coming.wait()
            dq[:, :, rows] += found[0]
            dk[:, :, keys] += found[1]
            dv[:, :, keys] += found[2]
        del found  # or it would be held through the next block
        if len(ring.ranks) > 1:
            coming = _send(ring, [dk, dv], near.inner if turn + 1 < w else near.diagonal, ring.gradients)
    if coming is not None:
        dk, dv = coming.wait()
    return _laid(dq, q.dtype), _laid(dk, k.dtype), _laid(dv, v.dtype)


def _laid(x_BHTK: Tensor, dtype: torch.dtype) -> Tensor:
    """In memory as (B, T, H, K), which is what goes into and comes from matrix products."""
    return x_BHTK.to(dtype).transpose(1, 2).contiguous().transpose(1, 2)


def _laid_out_as(x_BHTK: Tensor) -> Tensor:
    B, H, T, K = x_BHTK.shape
    return x_BHTK.new_empty(B, T, H, K).transpose(1, 2)


def _ring(ranks: list[int], own: int, window: int, keys: str, windows: str, gradients: str, scale: float) -> Any:
    return Ring(tuple(ranks), own, window, keys, windows, gradients), scale


def _pair(documents: Tensor | None, own: int, of: int) -> tuple[Tensor, Tensor] | None:
    return None if documents is None else (documents[own], documents[of])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, documents, *ctx.how = inputs
    ctx.save_for_backward(q, k, v, *output, documents)


def _gradients(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    *saved, documents = ctx.saved_tensors
    return (*_ring_attention_backward(grad, *saved, documents, *ctx.how), None, *(None for _ in ctx.how))


_ring_attention.register_autograd(_gradients, setup_context=_keep)
_ring_attention.register_fake(lambda q, *_: (_laid_out_as(q), q.new_empty(q.shape[:3], dtype=torch.float32)))
_ring_attention_backward.register_fake(lambda grad, q, k, v, *_: (_laid_out_as(q), _laid_out_as(k), _laid_out_as(v)))
