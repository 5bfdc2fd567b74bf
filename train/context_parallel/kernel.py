"""Attention of some queries to some keys, with the log-sum-exp of the scores, and how such blocks are merged.

    q, k, v, what is seen --block--> out, lse (float32)      blocks of one row's keys --merge--> out, lse of all of them
    and backward: q, k, v, out and lse of ALL keys, gradient of out --block_backward--> dq, dk, dv of this block

torch's flash attention, one call a document, where it takes what is asked; else plain products, tile by tile. Either
way memory is linear in the number of queries and keys. A row that sees no key has out = 0, lse = -inf, and no gradient.

Shape suffixes: B batch, H query heads, G key/value heads, T queries, S keys, K size of a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from train.measure import warn_once

_TILE = 512  # queries and keys of a tile of plain products
_FLASH = torch.ops.aten._scaled_dot_product_flash_attention.default
_FLASH_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_backward.default
_FLASH_CPU = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_FLASH_CPU_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


class Seen(NamedTuple):
    """Which keys a block's queries see. `causal`: query i sees keys up to i (as many queries as keys). Documents
    (B, T) and (B, S), both or none, on the CPU: only those of its own; they rise along a sequence."""

    causal: bool = False
    q_documents: Tensor | None = None
    k_documents: Tensor | None = None


class Area(NamedTuple):
    """Sequences, queries and keys of which every query sees every key, up to its own where the block is causal."""

    sequences: slice
    queries: slice
    keys: slice


def merge(out: Tensor, lse: Tensor, block_out: Tensor, block_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over both sets of keys from that over each: out (B, H, T, K), lse (B, H, T), float32."""
    both = torch.logaddexp(lse, block_lse)
    share = torch.where(block_lse == -torch.inf, 0.0, torch.exp(block_lse - both))  # -inf - -inf would be nan
    return torch.lerp(out, block_out, share[..., None]), both


def block(q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, seen: Seen, scale: float) -> tuple[Tensor, Tensor]:
    """out (B, H, T, K) and lse (B, H, T), float32."""
    attend = _flash if has_flash(q_BHTK) else _plain
    if seen.q_documents is None:
        out, lse = attend(q_BHTK, k_BGSK, v_BGSK, seen.causal, scale)
        return out.float(), lse
    out = torch.zeros(q_BHTK.shape, dtype=torch.float32, device=q_BHTK.device)
    lse = torch.full(q_BHTK.shape[:3], -torch.inf, device=q_BHTK.device)
    for b, rows, keys in areas(seen):
        out[b, :, rows], lse[b, :, rows] = attend(
            q_BHTK[b, :, rows], k_BGSK[b, :, keys], v_BGSK[b, :, keys], seen.causal, scale
        )
    return out, lse


def block_backward(
    grad_BHTK: Tensor, q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, out_BHTK: Tensor, lse_BHT: Tensor, seen: Seen,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """dq, dk, dv, float32; `out` and `lse` are those over all keys, of this block and all others."""
    backward = _flash_backward if has_flash(q_BHTK) else _plain_backward
    if seen.q_documents is None:
        dq, dk, dv = backward(grad_BHTK, q_BHTK, k_BGSK, v_BGSK, out_BHTK, lse_BHT, seen.causal, scale)
        return dq.float(), dk.float(), dv.float()
    dq, dk, dv = (torch.zeros(x.shape, dtype=torch.float32, device=x.device) for x in (q_BHTK, k_BGSK, v_BGSK))
    for b, rows, keys in areas(seen):  # no two of them share a query, nor a key
        dq[b, :, rows], dk[b, :, keys], dv[b, :, keys] = backward(
            grad_BHTK[b, :, rows], q_BHTK[b, :, rows], k_BGSK[b, :, keys], v_BGSK[b, :, keys], out_BHTK[b, :, rows],
            lse_BHT[b, :, rows], seen.causal, scale,
        )  # fmt: skip
    return dq, dk, dv


def areas(seen: Seen) -> Iterator[Area]:
    """One for every document that has queries and keys in the block."""
    assert seen.q_documents is not None and seen.k_documents is not None
    for b, documents in enumerate(zip(seen.q_documents.numpy(), seen.k_documents.numpy(), strict=True)):
        (of_q, at_q), (of_k, at_k) = (_runs(ids) for ids in documents)
        _, q, k = np.intersect1d(of_q, of_k, assume_unique=True, return_indices=True)
        for rows, keys in zip(at_q[q].tolist(), at_k[k].tolist(), strict=True):
            yield Area(slice(b, b + 1), slice(*rows), slice(*keys))


def _runs(ids_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ids that rise -> the distinct ones (n,), and where each begins and ends (n, 2)."""
    starts = np.flatnonzero(np.diff(ids_T, prepend=ids_T[:1] - 1))
    return ids_T[starts], np.stack([starts, np.append(starts[1:], len(ids_T))], axis=1)


# ---------------------------------------------------------------------------------------------------- flash attention


def has_flash(q_BHTK: Tensor) -> bool:
    """Whether torch's flash attention takes such queries; where not, a warning says what is done in its place."""
    device, dtype, size = q_BHTK.device.type, q_BHTK.dtype, q_BHTK.shape[-1]
    if device == "cpu":
        return True
    fits = dtype in (torch.bfloat16, torch.float16) and size % 8 == 0 and size <= 256
    if device == "cuda" and fits and torch.cuda.get_device_capability(q_BHTK.device) >= (8, 0):
        return True
    warn_once(
        f"flash attention on {device} takes bf16 and heads of 8, 16 ... 256, on A100 or newer, not {dtype} and {size} "
        "on any: plain matrix products in its place, which are slower. Use precision=bf16 and such heads."
    )
    return False


def _flash(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    if q.device.type == "cpu":
        return _FLASH_CPU(q, k, v, 0.0, causal, scale=scale)
    return _FLASH(q, k, v, 0.0, causal, False, scale=scale)[:2]


def _flash_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    groups, lengths = q.shape[1] // k.shape[1], (q.shape[2], k.shape[2])
    k, v = (x.repeat_interleave(groups, 1) if groups > 1 else x for x in (k, v))
    if q.device.type == "cpu":
        dq, dk, dv = _FLASH_CPU_BACKWARD(grad.to(q.dtype), q, k, v, out, lse, 0.0, causal, scale=scale)
    else:
        no_dropout = torch.zeros(2, dtype=torch.uint64, device=q.device)
        dq, dk, dv = _FLASH_BACKWARD(
            grad.to(q.dtype), q, k, v, out, lse.contiguous(), None, None, *lengths, 0.0, causal, no_dropout, no_dropout,
            scale=scale,
        )  # fmt: skip
    return dq, _per_group(dk, groups), _per_group(dv, groups)


def _per_group(x_BHSK: Tensor, groups: int) -> Tensor:
    """Gradients of keys or values that `groups` query heads share."""
    return x_BHSK.float().unflatten(1, (-1, groups)).sum(2) if groups > 1 else x_BHSK


# ---------------------------------------------------------------------------------------------------- plain products


def _plain(q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    out = torch.zeros(q_BHTK.shape, dtype=torch.float32, device=q_BHTK.device)
    lse = torch.full(q_BHTK.shape[:3], -torch.inf, device=q_BHTK.device)
    for rows, keys, mask in _tiles(q_BHTK.shape[2], k_BGSK.shape[2], causal, q_BHTK.device):
        scores = _scores(q_BHTK[:, :, rows], k_BGSK[:, :, keys], mask, scale)
        tile_lse = scores.logsumexp(-1)
        weights = torch.exp(scores - tile_lse[..., None])
        tile_out = torch.einsum("bghts,bgsk->bghtk", weights, v_BGSK[:, :, keys].float()).flatten(1, 2)
        out[:, :, rows], lse[:, :, rows] = merge(out[:, :, rows], lse[:, :, rows], tile_out, tile_lse.flatten(1, 2))
    return out, lse


def _plain_backward(
    grad_BHTK: Tensor, q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, out_BHTK: Tensor, lse_BHT: Tensor, causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    dq, dk, dv = (torch.zeros(x.shape, dtype=torch.float32, device=x.device) for x in (q_BHTK, k_BGSK, v_BGSK))
    by_group = (k_BGSK.shape[1], -1)
    grad, q, lse = (x.float().unflatten(1, by_group) for x in (grad_BHTK, q_BHTK, lse_BHT))
    delta = (grad * out_BHTK.float().unflatten(1, by_group)).sum(-1)
    for rows, keys, mask in _tiles(q_BHTK.shape[2], k_BGSK.shape[2], causal, q_BHTK.device):
        k, v = k_BGSK[:, :, keys].float(), v_BGSK[:, :, keys].float()
        weights = torch.exp(_scores(q_BHTK[:, :, rows], k, mask, scale) - lse[:, :, :, rows, None])
        towards = torch.einsum("bghtk,bgsk->bghts", grad[:, :, :, rows], v)
        d_scores = weights * (towards - delta[:, :, :, rows, None]) * scale
        dq[:, :, rows] += torch.einsum("bghts,bgsk->bghtk", d_scores, k).flatten(1, 2)
        dk[:, :, keys] += torch.einsum("bghts,bghtk->bgsk", d_scores, q[:, :, :, rows])
        dv[:, :, keys] += torch.einsum("bghts,bghtk->bgsk", weights, grad[:, :, :, rows])
    return dq, dk, dv


def _tiles(T: int, S: int, causal: bool, device: torch.device) -> Iterator[tuple[slice, slice, Tensor | None]]:
    """(queries, keys, mask (t, s) or None where all is seen) of the tiles in which anything is seen."""
    for begin in range(0, T, _TILE):
        rows = slice(begin, min(begin + _TILE, T))
        for first in range(0, rows.stop if causal else S, _TILE):
            keys = slice(first, min(first + _TILE, S))
            mask = None
            if causal and keys.stop > rows.start + 1:
                row, key = (torch.arange(part.start, part.stop, device=device) for part in (rows, keys))
                mask = row[:, None] >= key
            yield rows, keys, mask


def _scores(q_BHtK: Tensor, k_BGsK: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """(B, G, H / G, t, s), float32, -inf where nothing is seen."""
    q = q_BHtK.unflatten(1, (k_BGsK.shape[1], -1)).float()
    scores = torch.einsum("bghtk,bgsk->bghts", q, k_BGsK.float()) * scale
    return scores if mask is None else scores.masked_fill(~mask, -torch.inf)
