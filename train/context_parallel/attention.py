"""2D attention: some ranks of a group exchange slices of the sequence for heads, the others are a ring.

    (B, S / (hp cp), H, K) --all-to-all over hp--> (B, H / hp, S / cp, K) --ring over cp--> --all-to-all--> back

Where there are fewer key/value heads than ranks that share heads, each is given to as many ranks as attend to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from train.context_parallel.ring import Ring, RingAttention


@dataclass(frozen=True)
class Group:
    """What this process is in its context group. `heads`: the ranks with the same place in the ring."""

    ring: Ring
    heads: dist.ProcessGroup | None = None


def all_to_all(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """x (hp, ...), of which part i goes to rank i of the group -> what came from rank i, at i."""
    out = torch.empty_like(x)
    dist.all_to_all_single(out, x, group=group)
    return out


class Exchange(torch.autograd.Function):
    """`all_to_all`, whose gradient is itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        return all_to_all(x.contiguous(), group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return all_to_all(gradients[0].contiguous(), ctx.group), None


def to_heads(x_BTHK: Tensor, hp: int, group: dist.ProcessGroup | None) -> Tensor:
    """(B, T, H, K), a slice of the sequence -> (B, H / hp, hp T, K), a share of the heads of all slices in order."""
    if hp == 1:
        return x_BTHK.transpose(1, 2)
    parts = x_BTHK.unflatten(2, (hp, -1)).permute(2, 0, 3, 1, 4)  # (hp, B, h, T, K)
    return Exchange.apply(parts, group).permute(1, 2, 0, 3, 4).flatten(2, 3)


def to_slices(x_BHTK: Tensor, hp: int, group: dist.ProcessGroup | None) -> Tensor:
    """The way back: (B, H / hp, hp T, K) -> (B, T, H, K)."""
    if hp == 1:
        return x_BHTK.transpose(1, 2)
    parts = x_BHTK.unflatten(2, (hp, -1)).permute(2, 0, 1, 3, 4)  # (hp, B, h, T, K)
    return Exchange.apply(parts, group).permute(1, 3, 0, 2, 4).flatten(2, 3)


def attention(
    q_BTHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor, documents: Tensor | None, group: Group, scale: float
) -> Tensor:
    """Causal attention (B, T, H, K) of this rank's slice to the whole sequence; `documents` (ring, B, S / ring) are
    those of all ranks of the ring, or None."""
    hp = group.ring.context.head_parallel
    copies = max(1, hp // k_BTGK.shape[2])
    if copies > 1:
        k_BTGK, v_BTGK = (x.repeat_interleave(copies, 2) for x in (k_BTGK, v_BTGK))
    q, k, v = (to_heads(x, hp, group.heads) for x in (q_BTHK, k_BTGK, v_BTGK))
    return to_slices(RingAttention.apply(q, k, v, documents, group.ring, scale), hp, group.heads)
