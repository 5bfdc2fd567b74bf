"""What merging costs: the block kernel over causal attention whose keys are cut, beside one call of torch's attention.

    python benchmarks/context_blocks.py                                    1k to 8k tokens in float32, one thread
    python benchmarks/context_blocks.py --device cuda                      8k to 128k tokens in bf16, one GPU

Keys in n blocks are 2 n - 1 calls of the kernel: each block before its own queries, and before all later ones. A ring
of n ranks merges as often, so this is what it loses to its smaller calls before anything is sent. All take turns;
seconds are medians after a warm-up, ratios medians of ratios to torch; the error is that of the gradients against
torch's, and memory what forward and backward add on a GPU.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from slurm.dry_run import in_bytes
from train.context_parallel.kernel import Seen, block, block_backward, merge

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
BLOCKS = (2, 4, 8, 16)
Calls = tuple[Callable[[], Any], Callable[[], list[Tensor]]]  # forward; forward and backward


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--lengths", type=int, nargs="+", help="tokens; default: 1k to 8k on CPU, 8k to 128k on a GPU")
    parser.add_argument("--dtype", choices=DTYPES, help="default: float32 on CPU, bf16 on a GPU")
    parser.add_argument("--heads", type=int, nargs=3, default=(4, 4, 64), metavar=("QUERY", "KEY", "SIZE"))
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    on_cpu = options.device == "cpu"
    lengths = options.lengths or [2**n for n in (range(10, 14) if on_cpu else range(13, 18))]
    dtype = DTYPES[options.dtype or ("float32" if on_cpu else "bf16")]
    query, key, size = options.heads
    kind = "one thread" if on_cpu else torch.cuda.get_device_name()
    print(f"{kind}, {dtype}, {query} query and {key} key/value heads of {size}")
    print(f"{'':30}{'forward':>10}{'ratio':>8}{'and backward':>14}{'ratio':>8}{'memory':>10}{'error':>10}")
    for length in lengths:
        heads = (query, key, key, query)
        tensors = [torch.randn(1, n, length, size, device=options.device).to(dtype) for n in heads]
        calls: dict[str, Calls] = {"torch, one call": (partial(whole, *tensors[:3]), partial(whole_backward, *tensors))}
        for n in BLOCKS:
            calls[f"{n} blocks"] = (partial(cut, n, *tensors[:3]), partial(cut_backward, n, *tensors))
        took: dict[str, list[list[float]]] = {name: [] for name in calls}
        for _ in range(options.repeats + 1):
            for name, both in calls.items():
                took[name].append([timed(call, options.device) for call in both])
        expected, (base, *_) = whole_backward(*tensors), (np.array(rows[1:]) for rows in took.values())
        for name, (_, backward) in calls.items():
            seconds = np.array(took[name][1:])  # (repeats, 2), without the first: the warm-up
            (forward, both), (ratio, ratio_both) = np.median(seconds, 0), np.median(seconds / base, 0)
            memory, error = added_memory(backward, options.device), off(backward(), expected)
            times = f"{forward:10.4f}{ratio:8.2f}{both:14.4f}{ratio_both:8.2f}"
            print(f"{f'{length:,} tokens, {name}':30}{times}{in_bytes(memory):>10}{error:10.1e}", flush=True)


def whole(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with torch.no_grad():
        return _sdpa(q, k, v)


def whole_backward(q: Tensor, k: Tensor, v: Tensor, grad: Tensor) -> list[Tensor]:
    """dq, dk, dv of torch's attention."""
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    return list(torch.autograd.grad(_sdpa(*leaves), leaves, grad))


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])


def cut(blocks: int, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """out and log-sum-exp of the same, its keys in so many blocks."""
    out = torch.zeros(q.shape, dtype=torch.float32, device=q.device)
    lse = torch.full(q.shape[:3], -torch.inf, device=q.device)
    for rows, keys, seen in _parts(q.shape[2], blocks):
        found = block(q[:, :, rows], k[:, :, keys], v[:, :, keys], seen, q.shape[-1] ** -0.5)
        out[:, :, rows], lse[:, :, rows] = merge(out[:, :, rows], lse[:, :, rows], *found)
    return out.to(q.dtype), lse


def cut_backward(blocks: int, q: Tensor, k: Tensor, v: Tensor, grad: Tensor) -> list[Tensor]:
    out, lse = cut(blocks, q, k, v)
    totals = [torch.zeros(x.shape, dtype=torch.float32, device=x.device) for x in (q, k, v)]
    for rows, keys, seen in _parts(q.shape[2], blocks):
        found = block_backward(
            grad[:, :, rows], q[:, :, rows], k[:, :, keys], v[:, :, keys], out[:, :, rows], lse[:, :, rows], seen,
            q.shape[-1] ** -0.5,
        )  # fmt: skip
        for total, place, gradient in zip(totals, (rows, keys, keys), found, strict=True):
            total[:, :, place] += gradient
    return [total.to(q.dtype) for total in totals]


def _parts(length: int, blocks: int) -> list[tuple[slice, slice, Seen]]:
    """(queries, keys, what is seen) of every call: together each query sees the keys up to itself, once."""
    cuts = [slice(i * length // blocks, (i + 1) * length // blocks) for i in range(blocks)]
    own = [(keys, keys, Seen(True)) for keys in cuts]
    return own + [(slice(keys.stop, length), keys, Seen()) for keys in cuts[:-1]]


def timed(call: Callable[[], Any], device: str) -> float:
    _synchronize(device)
    begun = time.perf_counter()
    call()
    _synchronize(device)
    return time.perf_counter() - begun


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def added_memory(call: Callable[[], Any], device: str) -> float:
    """Bytes; 0 on CPU, where torch does not count them."""
    if device == "cpu":
        return 0
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return torch.cuda.max_memory_allocated() - before


def off(found: list[Tensor], expected: list[Tensor]) -> float:
    """Largest relative error of the three gradients."""
    return max(float((a.float() - b.float()).norm() / b.float().norm()) for a, b in zip(found, expected, strict=True))


if __name__ == "__main__":
    main()
