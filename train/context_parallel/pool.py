"""Hybrid data parallelism on processes: what each rank of the pool computes of a global batch, and how it attends.

    whole batch --shared--> this rank's micro-batches: a share of a long document and its ring, whole short ones behind
    model --spread_over_pool--> its blocks attend within rings that differ from micro-batch to micro-batch

The schedule (`train.context_parallel.hybrid`) follows from the batch alone, so every rank finds it by itself.
"""

from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from data.batches import IGNORED, Batch
from train.context_parallel.hybrid import Held, held, piece_flops, pieces, schedule
from train.context_parallel.ring import Ring, ring_attention
from train.model import Attention, Transformer
from train.shape import Shape


class Pool(NamedTuple):
    """All ranks of a run, any of which may be a ring in a micro-batch."""

    own: int
    size: int
    capacity: int
    """tokens of a rank's micro-batch"""
    groups: tuple[str, str, str]
    """of all ranks: for keys and values, between windows (there are none), for gradients"""


Placed = tuple[NDArray[np.int64], int, tuple[int, ...]]
"""Documents (1, n) of a rank's whole pieces, how many tokens of a share are before them, and the ranks of its ring. A
plain tuple: strategies look into what a model is called with"""


def build_pool(capacity: int, timeout: timedelta | None = None) -> Pool:
    """Every process calls it. `timeout`: how long a transfer waits for the other ranks."""
    keys, gradients = (dist.new_group(timeout=timeout) for _ in range(2))
    for group in (keys, gradients):
        dist.barrier(group)  # NCCL connects all ranks of a group or none: rings are of some
    return Pool(dist.get_rank(), dist.get_world_size(), capacity, (keys.group_name, "", gradients.group_name))


def shared(batch: Batch, pool: Pool, shape: Shape) -> Iterator[Batch]:
    """This rank's micro-batches of the whole `batch`, of one row each; every rank has as many. ValueError where a
    document is too long for the pool."""
    assert batch.documents is not None
    found = pieces(batch.documents)
    lengths = [piece.length for piece in found]
    for wave in schedule(lengths, pool.size, pool.capacity, partial(piece_flops, shape)):
        yield _micro_batch(batch, held(wave, pool.own, found))


def _micro_batch(batch: Batch, own: Held) -> Batch:
    if not len(own.rows):  # the others wait for this rank: one token that does not count
        nothing = np.zeros((1, 1), np.int64)
        return Batch(nothing, np.full((1, 1), IGNORED), (nothing, 0, ()), nothing[0])
    targets = np.where(own.pieces < 0, IGNORED, batch.targets[own.rows, own.positions])
    tokens, whole = batch.tokens[own.rows, own.positions], own.pieces[own.share :]
    return Batch(tokens[None], targets[None], (whole[None], own.share, own.ring), own.positions)


def spread_over_pool(model: Transformer, pool: Pool) -> None:
    """Lets `model` compute on micro-batches of `pool`, whose documents are `Placed`."""

    def attend(q_BTHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor, placed: Placed, scale: float | None) -> Tensor:
        documents, share, ranks = placed
        scale = q_BTHK.shape[-1] ** -0.5 if scale is None else scale
        q, k, v = (x.transpose(1, 2) for x in (q_BTHK, k_BTGK, v_BTGK))
        out = []
        if share:
            ring = Ring(ranks, ranks.index(pool.own), len(ranks), *pool.groups)
            out.append(ring_attention(q[:, :, :share], k[:, :, :share], v[:, :, :share], None, ring, scale))
        if share < q.shape[2]:
            alone = Ring((pool.own,))
            q, k, v = q[:, :, share:], k[:, :, share:], v[:, :, share:]
            out.append(ring_attention(q, k, v, torch.from_numpy(documents[None]), alone, scale))
        return torch.cat(out, 2).transpose(1, 2)

    model.mask = lambda placed: placed
    for module in model.modules():
        if isinstance(module, Attention):
            module.attend = attend
