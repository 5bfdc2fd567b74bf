"""The process groups of context parallelism: world = data x context group, a group = ring x heads."""

from __future__ import annotations

import torch.distributed as dist

from train.context_parallel.attention import Group
from train.context_parallel.placement import Context, Place
from train.context_parallel.ring import Ring


def build_groups(context: Context) -> Group:
    """This process in its context group; every process calls it. ValueError where the world is no multiple of a group.

    Groups are neighbours in the world: rank = data * context.size + rank in the group.
    """
    world, own = dist.get_world_size(), dist.get_rank()
    if world % context.size:
        whole = -(-world // context.size) * context.size
        raise ValueError(
            f"context.ring={context.ring} times context.head_parallel={context.head_parallel} is {context.size} ranks, "
            f"of which a world of {world} is no multiple: use launch.devices={whole}."
        )
    place, keys, windows, gradients, heads = context.place(own % context.size), None, None, None, None
    for first in range(0, world, context.size):
        for head in range(context.head_parallel):
            ranks = [first + context.rank(Place(ring, head)) for ring in range(context.ring)]
            made = [dist.new_group(ranks) for _ in range(3)]
            if own in ranks:
                keys, windows, gradients = made
        for ring in range(context.ring):
            ranks = [first + context.rank(Place(ring, head)) for head in range(context.head_parallel)]
            made = [dist.new_group(ranks)]
            if own in ranks:
                (heads,) = made
    return Group(Ring(context, place.ring, keys, windows, gradients), heads)
