"""Attention of some queries to some keys, with the log-sum-exp of the scores, and how such blocks are merged.

    q, k, v, what is seen --block--> out, lse (float32)      blocks of one row's keys --merge--> out, lse of all of them
    and backward: q, k, v, out and lse of ALL keys, gradient of out --block_backward--> dq, dk, dv of this block

torch's flash attention where it gives the log-sum-exp and takes what is asked, else plain products, tile by tile:
memory is linear in the number of queries and keys. A row that sees no key has out = 0, lse = -inf, and no gradient.

Shape suffixes: B batch, H query heads, G key/value heads, T queries, S keys, K size of a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

_TILE = 512  # queries and keys of a tile of plain products, or of a mask
_FLASH_CPU = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_FLASH_CPU_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


class Seen(NamedTuple):
    """Which keys a block's queries see. `causal`: query i sees keys up to i (as many queries as keys). Documents
    (B, T) and (B, S), both or none: only those of its own; they rise along a sequence."""

    causal: bool = False
    q_documents: Tensor | None = None
    k_documents: Tensor | None = None


def merge(out: Tensor, lse: Tensor, block_out: Tensor, block_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over both sets of keys from that over each: out (B, H, T, K), lse (B, H, T), float32."""
    both = torch.logaddexp(lse, block_lse)
    share = torch.where(block_lse == -torch.inf, 0.0, torch.exp(block_lse - both))  # -inf - -inf would be nan
    return torch.lerp(out, block_out, share[..., None]), both


def block(q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, seen: Seen, scale: float) -> tuple[Tensor, Tensor]:
    """out (B, H, T, K) and lse (B, H, T), float32."""
    if seen.q_documents is None and _has_flash(q_BHTK):
        out, lse = _FLASH_CPU(q_BHTK, k_BGSK, v_BGSK, 0.0, seen.causal, scale=scale)
        return out.float(), lse
    B, H, T, _ = q_BHTK.shape
    out = torch.zeros(q_BHTK.shape, dtype=torch.float32, device=q_BHTK.device)
    lse = torch.full((B, H, T), -torch.inf, device=q_BHTK.device)
    for rows, keys, mask in _tiles(q_BHTK, k_BGSK, seen):
        found = _tile(q_BHTK[:, :, rows], k_BGSK[:, :, keys], v_BGSK[:, :, keys], mask, scale)
        out[:, :, rows], lse[:, :, rows] = merge(out[:, :, rows], lse[:, :, rows], *found)
    return out, lse


def block_backward(
    grad_BHTK: Tensor, q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, out_BHTK: Tensor, lse_BHT: Tensor, seen: Seen,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """dq, dk, dv, float32; `out` and `lse` are those over all keys, of this block and all others."""
    if seen.q_documents is None and _has_flash(q_BHTK):
        groups = q_BHTK.shape[1] // k_BGSK.shape[1]
        k, v = (x.repeat_interleave(groups, 1) if groups > 1 else x for x in (k_BGSK, v_BGSK))
        dq, dk, dv = _FLASH_CPU_BACKWARD(
            grad_BHTK.to(q_BHTK.dtype), q_BHTK, k, v, out_BHTK.to(q_BHTK.dtype), lse_BHT, 0.0, seen.causal, scale=scale
        )
        return dq.float(), _per_group(dk.float(), groups), _per_group(dv.float(), groups)
    dq, dk, dv = (torch.zeros(x.shape, dtype=torch.float32, device=x.device) for x in (q_BHTK, k_BGSK, v_BGSK))
    grad = grad_BHTK.float()
    delta_BHT = (grad * out_BHTK.float()).sum(-1)
    for rows, keys, mask in _tiles(q_BHTK, k_BGSK, seen):
        part = _tile_backward(
            grad[:, :, rows], q_BHTK[:, :, rows], k_BGSK[:, :, keys], v_BGSK[:, :, keys], delta_BHT[:, :, rows],
            lse_BHT[:, :, rows], mask, scale,
        )  # fmt: skip
        for total, place, found in ((dq, rows, part[0]), (dk, keys, part[1]), (dv, keys, part[2])):
            total[:, :, place] += found
    return dq, dk, dv


def _has_flash(q_BHTK: Tensor) -> bool:
    return q_BHTK.device.type == "cpu"


def _tiles(q_BHTK: Tensor, k_BGSK: Tensor, seen: Seen) -> Iterator[tuple[slice, slice, Tensor | None]]:
    """(queries, keys, mask (B, 1, t, s) or None where all is seen) of the tiles in which anything is seen."""
    T, S, device = q_BHTK.shape[2], k_BGSK.shape[2], q_BHTK.device
    for begin in range(0, T, _TILE):
        rows = slice(begin, min(begin + _TILE, T))
        for first in range(0, rows.stop if seen.causal else S, _TILE):
            keys = slice(first, min(first + _TILE, S))
            mask = None
            if seen.causal and keys.stop > rows.start + 1:
                mask = torch.arange(rows.start, rows.stop, device=device)[:, None] >= torch.arange(
                    keys.start, keys.stop, device=device
                )
                mask = mask[None, None]
            if seen.q_documents is not None and seen.k_documents is not None:
                q_docs, k_docs = seen.q_documents[:, rows], seen.k_documents[:, keys]
                if not ((q_docs[:, -1] >= k_docs[:, 0]) & (k_docs[:, -1] >= q_docs[:, 0])).any():
                    continue  # they rise: these ranges do not meet
                same = (q_docs[:, :, None] == k_docs[:, None, :])[:, None]
                mask = same if mask is None else mask & same
            yield rows, keys, mask


def _scores(q_BHtK: Tensor, k_BGsK: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """(B, G, H / G, t, s), float32, -inf where nothing is seen."""
    q = q_BHtK.unflatten(1, (k_BGsK.shape[1], -1)).float()
    scores = torch.einsum("bghtk,bgsk->bghts", q, k_BGsK.float()) * scale
    return scores if mask is None else scores.masked_fill(~mask[:, :, None], -torch.inf)


def _tile(q_BHtK: Tensor, k_BGsK: Tensor, v_BGsK: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    scores = _scores(q_BHtK, k_BGsK, mask, scale)
    lse = scores.logsumexp(-1)
    weights = torch.exp(scores - lse.masked_fill(lse == -torch.inf, 0.0)[..., None])
    return torch.einsum("bghts,bgsk->bghtk", weights, v_BGsK.float()).flatten(1, 2), lse.flatten(1, 2)


def _tile_backward(
    grad_BHtK: Tensor, q_BHtK: Tensor, k_BGsK: Tensor, v_BGsK: Tensor, delta_BHt: Tensor, lse_BHt: Tensor,
    mask: Tensor | None, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    by_group = (k_BGsK.shape[1], -1)
    grad, q, delta, lse = (x.unflatten(1, by_group) for x in (grad_BHtK, q_BHtK.float(), delta_BHt, lse_BHt))
    scores = _scores(q_BHtK, k_BGsK, mask, scale)
    weights = torch.exp(scores - lse.masked_fill(lse == -torch.inf, torch.inf)[..., None])
    towards = torch.einsum("bghtk,bgsk->bghts", grad, v_BGsK.float())
    d_scores = weights * (towards - delta[..., None]) * scale
    dq = torch.einsum("bghts,bgsk->bghtk", d_scores, k_BGsK.float()).flatten(1, 2)
    dk = torch.einsum("bghts,bghtk->bgsk", d_scores, q)
    return dq, dk, torch.einsum("bghts,bghtk->bgsk", weights, grad)


def _per_group(x_BHSK: Tensor, groups: int) -> Tensor:
    """Gradients of keys or values that `groups` query heads share."""
    return x_BHSK.unflatten(1, (-1, groups)).sum(2) if groups > 1 else x_BHSK
