"""The layouts that `context_parallel.py` measures: which positions of a sequence a rank holds, and attention of these.

    Inputs, the same on every rank --layout(inputs)--> with Layout(held, run): run(q, k, v of the held positions) -> out

Ours in every shape, torch's context parallelism, DeepSpeed's Ulysses and one device. A layout that cannot run raises.
"""

from __future__ import annotations

import importlib
import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from train.context_parallel.attention import attention
from train.context_parallel.groups import build_groups
from train.context_parallel.placement import Context, positions, zigzag


class Inputs(NamedTuple):
    """One sequence: q, k, v and the gradient of the output, (1, S, heads, size)."""

    tensors: tuple[Tensor, ...]
    documents: Tensor | None  # on the CPU
    """(1, S)"""
    bounds: list[int]
    """where documents begin, and S"""


class Layout(NamedTuple):
    held: Tensor
    """positions of this rank, none if it only waits"""
    run: Callable[[Tensor, Tensor, Tensor], Tensor]
    """q, k, v of these, (1, T, heads, size) -> out"""


CAUSAL_ONLY = "with torch's attention it takes no mask but the causal one"
Place = Callable[[Inputs], AbstractContextManager[Layout]]


def make_inputs(
    length: int, documents: int, heads: tuple[int, int, int], device: str, dtype: torch.dtype
) -> Inputs:  # fmt: skip
    """Of so many documents of random lengths; heads: of queries, of keys, their size."""
    generator = torch.Generator().manual_seed(length)
    query, key, size = heads
    tensors = tuple(
        torch.randn(1, length, n, size, generator=generator).to(device, dtype) for n in (query, key, key, query)
    )
    inner = torch.randperm(length - 1, generator=generator)[: documents - 1].sort().values + 1
    starts = torch.zeros(1, length, dtype=torch.int64)
    starts[0, inner] = 1
    return Inputs(tensors, starts.cumsum(1) if documents > 1 else None, [0, *inner.tolist(), length])


def contexts(ranks: int) -> dict[str, Context]:
    """Ours. Ring, heads, and of four or more ranks heads in pairs and windows of two."""
    found = {f"ring 1 x {ranks}": Context(1, ranks), f"heads {ranks} x 1 (Ulysses)": Context(ranks, 1)}
    if ranks >= 4 and ranks % 2 == 0:
        for placement in ("head_first", "context_first"):
            found[f"2D 2 x {ranks // 2}, {placement}"] = Context(2, ranks // 2, None, placement)
        found[f"Double-Ring 1 x {ranks}, windows of 2"] = Context(1, ranks, 2)
    return found


def layouts(ranks: int, device: str) -> dict[str, Place]:
    """All of them, one device first. Every rank calls it."""
    found: dict[str, Place] = {"one device": one_device}
    found |= {name: ours(context) for name, context in contexts(ranks).items()}
    found["DeepSpeed's Ulysses"] = deepspeed_ulysses
    found["torch's context_parallel"] = torch_context_parallel
    if device == "cpu":
        found["torch's ring, CPU kernel, all-gather"] = partial(torch_ring, "allgather")
        found["torch's ring, CPU kernel, all-to-all"] = partial(torch_ring, "alltoall")
    return found


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """torch's causal attention, (1, heads, S, size)."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])


def whole(q: Tensor, k: Tensor, v: Tensor, bounds: list[int]) -> Tensor:
    """`sdpa` of (1, S, heads, size), document by document."""
    sizes = [end - begin for begin, end in itertools.pairwise(bounds)]
    documents = zip(*(x.transpose(1, 2).split(sizes, 2) for x in (q, k, v)), strict=True)
    return torch.cat([sdpa(*document) for document in documents], 2).transpose(1, 2)


def repeated(x: Tensor, heads: int) -> Tensor:
    """Key/value heads (1, S, G, size) for as many query heads."""
    return x.repeat_interleave(heads // x.shape[2], 2)


def one_device(inputs: Inputs) -> AbstractContextManager[Layout]:
    length = inputs.bounds[-1] if dist.get_rank() == 0 else 0
    return nullcontext(Layout(torch.arange(length), partial(whole, bounds=inputs.bounds)))


def ours(context: Context) -> Place:
    group = build_groups(context)

    def place(inputs: Inputs) -> AbstractContextManager[Layout]:
        length, documents, scale = inputs.bounds[-1], None, inputs.tensors[0].shape[-1] ** -0.5
        if inputs.documents is not None:
            documents = inputs.documents[0, torch.from_numpy(zigzag(length, context.ring))][:, None]
        held = torch.from_numpy(positions(context, length, context.place(dist.get_rank())))
        return nullcontext(Layout(held, lambda q, k, v: attention(q, k, v, documents, group, scale)))

    return place


def deepspeed_ulysses(inputs: Inputs) -> AbstractContextManager[Layout]:
    """With torch's attention, document by document, between its exchanges."""
    os.environ.setdefault("DS_ACCELERATOR", inputs.tensors[0].device.type)  # it warns where it has to guess
    import deepspeed
    from deepspeed.sequence.layer import DistributedAttention

    # its reduction through shared memory, which nothing here uses, needs a compiler
    importlib.import_module("deepspeed.comm.torch").build_shm_op = lambda: None  # type: ignore[attr-defined]
    deepspeed.init_distributed(dist.get_backend(), auto_mpi_discovery=False, verbose=False)
    attend: Any = partial(whole, bounds=inputs.bounds)
    module = DistributedAttention(attend, _world(), scatter_idx=2, gather_idx=1)
    held = torch.arange(inputs.bounds[-1]).chunk(dist.get_world_size())[dist.get_rank()]
    return nullcontext(Layout(held, lambda q, k, v: module(q, k, v, 0)))


@contextmanager
def torch_context_parallel(inputs: Inputs) -> Iterator[Layout]:
    """It replaces torch's attention until it is left."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.experimental import context_parallel

    if inputs.documents is not None:
        raise NotImplementedError(CAUSAL_ONLY)
    ranks, device = dist.get_world_size(), inputs.tensors[0].device

    sharded = torch.zeros(2 * ranks, device=device)  # it wants something to shard
    with context_parallel(init_device_mesh(device.type, (ranks,)), buffers=[sharded], buffer_seq_dims=[0]):
        yield Layout(_zigzag_held(inputs), lambda *qkv: sdpa(*(x.transpose(1, 2) for x in qkv)).transpose(1, 2))


@contextmanager
def torch_ring(rotate: str, inputs: Inputs) -> Iterator[Layout]:
    """The loop inside torch's context_parallel, given the CPU's kernel, which context_parallel does not know."""
    from torch.distributed.tensor.experimental import _attention
    from torch.distributed.tensor.experimental._context_parallel import _attention as inner

    if inputs.documents is not None:
        raise NotImplementedError(CAUSAL_ONLY)
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
    flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default

    class Ring(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *qkv: Tensor) -> Tensor:
            q, k, v = qkv
            out, lse = inner._templated_ring_attention(_world(), 2, flash, q, k, v, is_causal=True)
            ctx.save_for_backward(q, k, v, out, lse)
            return out

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
            q, k, v, out, lse = ctx.saved_tensors
            return inner._templated_ring_attention_backward(
                _world(), 2, flash_backward, grads[0], "grad_out", q, k, v, out, lse, is_causal=True, dropout_p=0.0
            )

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return Ring.apply(*(repeated(x, q.shape[2]).transpose(1, 2) for x in (q, k, v))).transpose(1, 2)

    _attention.set_rotate_method(rotate)
    yield Layout(_zigzag_held(inputs), run)


def _zigzag_held(inputs: Inputs) -> Tensor:
    return torch.from_numpy(zigzag(inputs.bounds[-1], dist.get_world_size())[dist.get_rank()])


def _world() -> dist.ProcessGroup:
    world = dist.group.WORLD
    assert world is not None
    return world
