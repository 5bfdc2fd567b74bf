"""The process groups of context parallelism: world = data x context group, a group = ring x heads.

torch's DeviceMesh would make one group of a dimension, with a timeout of its own; a ring needs three that overlap.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch.distributed as dist

from train.context_parallel.placement import HEAD_FIRST, Context, Place
from train.context_parallel.ring import Ring


@dataclass(frozen=True)
class Group:
    """What this process is in its context group."""

    context: Context
    place: Place
    ring: Ring
    heads: dist.ProcessGroup
    """ranks with the same place in the ring"""
    every: dist.ProcessGroup
    """all ranks that hold a part of the same sequences"""


def build_groups(context: Context, timeout: timedelta | None = None) -> Group:
    """This process in its context group; every process calls it. ValueError where the world is no multiple of a group.

    Groups are neighbours in the world: rank = data * context.size + rank in the group. `timeout`: how long a transfer
    waits for the other ranks.
    """
    world, own = dist.get_world_size(), dist.get_rank()
    context.check_world(world)
    mesh = np.arange(world).reshape(
        -1, *((context.ring, context.head_parallel)[:: 1 if context.placement == HEAD_FIRST else -1])
    )
    mesh = mesh if context.placement == HEAD_FIRST else mesh.transpose(0, 2, 1)  # [data, ring, heads]

    def groups(lists: np.ndarray) -> dist.ProcessGroup:
        return dist.new_subgroups_by_enumeration(lists.tolist(), timeout=timeout)[0]

    rings, heads = mesh.transpose(0, 2, 1).reshape(-1, context.ring), mesh.reshape(-1, context.head_parallel)
    keys, windows, gradients = (groups(rings).group_name for _ in range(3))
    place = context.place(own % context.size)
    (ranks,) = (ring for ring in rings.tolist() if own in ring)
    ring = Ring(tuple(ranks), place.ring, context.inner, keys, windows, gradients)
    return Group(context, place, ring, groups(heads), groups(mesh.reshape(-1, context.size)))
