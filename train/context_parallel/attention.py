"""2D attention: some ranks of a group exchange slices of the sequence for heads, the others are a ring.

    (B, S / (hp cp), H, K) --all-to-all over hp--> (B, H / hp, S / cp, K) --ring over cp--> --all-to-all--> back

Where there are fewer key/value heads than ranks that share heads, each is given to as many ranks as attend to it.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import _resolve_process_group

from train.context_parallel.groups import Group
from train.context_parallel.ring import ring_attention


def to_heads(x_BTHK: Tensor, group: dist.ProcessGroup) -> Tensor:
    """(B, T, H, K), a slice of the sequence -> (B, H / hp, hp T, K), a share of the heads, all slices in order."""
    hp = group.size()
    if hp == 1:
        return x_BTHK.transpose(1, 2)
    shares = x_BTHK.unflatten(2, (hp, -1)).permute(2, 0, 1, 3, 4)  # (hp, B, T, h, K)
    return _all_to_all(shares, group.group_name).transpose(0, 1).flatten(1, 2).transpose(1, 2)


def to_slices(x_BHTK: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The way back: (B, H / hp, hp T, K) -> (B, T, H, K)."""
    hp = group.size()
    if hp == 1:
        return x_BHTK.transpose(1, 2)
    slices = x_BHTK.transpose(1, 2).unflatten(1, (hp, -1)).transpose(0, 1)  # (hp, B, T, h, K)
    return _all_to_all(slices, group.group_name).permute(1, 2, 0, 3, 4).flatten(2, 3)


def attention(
    q_BTHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor, documents: Tensor | None, group: Group, scale: float
) -> Tensor:
    """Causal attention (B, T, H, K) of this rank's slice to the whole sequence; `documents` (ring, B, S / ring) are
    those of all ranks of the ring, or None."""
    copies = max(1, group.context.head_parallel // k_BTGK.shape[2])
    if copies > 1:
        k_BTGK, v_BTGK = (x.repeat_interleave(copies, 2) for x in (k_BTGK, v_BTGK))
    q, k, v = (to_heads(x, group.heads) for x in (q_BTHK, k_BTGK, v_BTGK))
    return to_slices(ring_attention(q, k, v, documents, group.ring, scale), group.heads)


@torch.library.custom_op("fulcrum::all_to_all", mutates_args=(), schema="(Tensor parts, str group) -> Tensor")
def _all_to_all(parts: Tensor, group: Any) -> Tensor:
    """Of parts (hp, ...) part i goes to rank i of the group -> what came from rank i, at i; its gradient goes back."""
    out = parts.new_empty(parts.shape)
    dist.all_to_all_single(out, parts.contiguous(), group=_resolve_process_group(group))
    return out


def _keep(ctx: Any, inputs: tuple[Tensor, str], output: Tensor) -> None:
    ctx.group = inputs[1]


_all_to_all.register_autograd(lambda ctx, grad: (_all_to_all(grad, ctx.group), None), setup_context=_keep)
_all_to_all.register_fake(lambda parts, group: parts.new_empty(parts.shape))
