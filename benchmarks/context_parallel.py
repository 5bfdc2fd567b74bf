"""Attention of one long sequence over several ranks: seconds and memory of every layout, others' beside ours, one run.

    python benchmarks/context_parallel.py                                  4 ranks of one thread on CPU, over gloo
    python benchmarks/context_parallel.py --lengths 16384 --dtype bf16
    python benchmarks/context_parallel.py --device cuda                    all GPUs of this node, over nccl

    q, k, v, gradient --each layout of attention_layouts.py--> out, dq, dk, dv of this rank --> error, memory, seconds

First what the cost model needs: seconds of a message to the next rank and FLOP/s of the attention kernel, all ranks at
once, printed as overrides for `fulcrum train dry_run=true`. Then for each length, without and with documents, forward
and backward together in every layout. A layout whose results are not those of one device in float32 is not timed, and
what does not run says why.

Layouts take turns. Seconds are medians, of the slowest rank; the first ratio is the median of ratios to one device, on
one thread: ranks that share cores gain no more than the number of cores, which is printed. Memory is what the peak of a
rank rises by during the call, of the rank where it rises most. Predicted are the cost model's seconds, which know no
merging, and the ratio of measured to them.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from attention_layouts import Inputs, Layout, Place, contexts, layouts, make_inputs, repeated, whole
from scipy.optimize import nnls
from torch import Tensor

from slurm.dry_run import in_bytes
from train.context_parallel.cost import BACKWARD, Machine, cost
from train.context_parallel.kernel import Seen, block, block_backward
from train.context_parallel.placement import Context
from train.shape import Shape

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}  # relative, against one device in float32
MESSAGES = [2**n for n in range(12, 25, 2)]  # bytes
DOCUMENTS = (1, 8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--ranks", type=int, help="default: 4 on CPU, all GPUs of this node")
    parser.add_argument("--lengths", type=int, nargs="+", help="tokens; default: 1k, 4k, 8k on CPU, 8k to 128k on GPUs")
    parser.add_argument("--dtype", choices=DTYPES, help="default: float32 on CPU, bf16 on GPUs")
    parser.add_argument("--heads", type=int, nargs=3, default=(4, 4, 64), metavar=("QUERY", "KEY", "SIZE"))
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    on_cpu = options.device == "cpu"
    options.ranks = options.ranks or (4 if on_cpu else torch.cuda.device_count())
    options.lengths = options.lengths or [2**n for n in ((10, 12, 13) if on_cpu else range(13, 18))]
    options.dtype = DTYPES[options.dtype or ("float32" if on_cpu else "bf16")]
    query, key, size = options.heads
    kind = f"{len(os.sched_getaffinity(0))} cores" if on_cpu else torch.cuda.get_device_name()
    print(f"{options.ranks} ranks on {kind}, {options.dtype}, {query} query and {key} key/value heads of {size}")
    with tempfile.TemporaryDirectory() as folder:
        arguments = (options, f"{folder}/store")
        torch.multiprocessing.start_processes(rank_main, arguments, options.ranks, start_method="spawn")


def rank_main(rank: int, options: argparse.Namespace, store: str) -> None:
    torch.set_num_threads(1)
    if options.device == "cuda":
        torch.cuda.set_device(rank)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(options.ranks)}
    backend = "gloo" if options.device == "cpu" else "nccl"
    world = {"rank": rank, "world_size": options.ranks, "init_method": f"file://{store}"}
    dist.init_process_group(backend, timeout=timedelta(minutes=3), **world)
    machine = measured_machine(options)
    found = layouts(options.ranks, options.device)
    for length in options.lengths:
        for documents in DOCUMENTS:
            inputs = make_inputs(length, documents, options.heads, options.device, options.dtype)
            table(inputs, found, machine, options)
    dist.destroy_process_group()


def say(*lines: str) -> None:
    if dist.get_rank() == 0:
        print(*lines, sep="\n", flush=True)


# ---------------------------------------------------------------------------------------------------- the machine


def measured_machine(options: argparse.Namespace) -> Machine:
    """Prints it, too."""
    say("", f"{'bytes to the next rank':>24}{'seconds':>12}{'bytes/s':>12}")
    seconds = [message_seconds(size, options) for size in MESSAGES]
    for size, took in zip(MESSAGES, seconds, strict=True):
        say(f"{in_bytes(size):>24}{took:12.2e}{size / took:12.2e}")
    latency, bandwidth = line_through(MESSAGES, seconds)
    flops = kernel_flops(max(options.lengths) // options.ranks, options)
    machine = Machine(options.ranks, bandwidth, bandwidth, latency, flops)
    say(" ".join(f"context.machine.{key}={value:.3g}" for key, value in asdict(machine).items()))
    say("  (network_bandwidth is that of this node; it matters where ranks that share a sequence are on several)")
    return machine


def message_seconds(size: int, options: argparse.Namespace) -> float:
    """All ranks send `size` bytes to the next one at once."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    sent = torch.zeros(size, dtype=torch.uint8, device=options.device)
    received = torch.empty_like(sent)

    def hop() -> None:
        operations = [dist.P2POp(dist.isend, sent, (rank + 1) % ranks)]
        operations += [dist.P2POp(dist.irecv, received, (rank - 1) % ranks)]
        for request in dist.batch_isend_irecv(operations):
            request.wait()

    return statistics.median(timed(hop, options.device) for _ in range(10 * options.repeats))


def line_through(sizes: list[int], seconds: list[float]) -> tuple[float, float]:
    """Latency and bytes/s: least squares of the relative errors of latency + size / bandwidth, neither negative."""
    rows = np.stack([np.ones(len(sizes)), np.array(sizes)], 1) / np.array(seconds)[:, None]
    (latency, per_byte), _ = nnls(rows, np.ones(len(sizes)))
    return latency, 1 / per_byte


def kernel_flops(length: int, options: argparse.Namespace) -> float:
    """FLOP/s of a rank: `length` queries that see as many keys, forward and backward, all ranks at once."""
    query, key, size = options.heads
    heads = (query, key, key, query)
    q, k, v, grad = (torch.randn(1, n, length, size, device=options.device).to(options.dtype) for n in heads)

    def both() -> None:
        out, lse = block(q, k, v, Seen(), size**-0.5)
        block_backward(grad, q, k, v, out, lse, Seen(), size**-0.5)

    both()
    seconds = statistics.median(timed(both, options.device) for _ in range(3 * options.repeats))
    return (1 + BACKWARD) * 4 * length**2 * query * size / seconds


# ---------------------------------------------------------------------------------------------------- the layouts


def table(inputs: Inputs, found: dict[str, Place], machine: Machine, options: argparse.Namespace) -> None:
    """Prints a line for every layout."""
    expected = reference(inputs)
    errors: dict[str, float] = {}
    memory: dict[str, float] = {}
    seconds: dict[str, list[float]] = defaultdict(list)
    failed: dict[str, str] = {}
    for turn in range(options.repeats + 1):
        for name, place in found.items():
            if name in failed:
                continue
            try:
                with place(inputs) as layout:
                    call = caller(layout, inputs)
                    if turn == 0:
                        errors[name] = error_of(call(), expected, layout, options)
                        memory[name] = over_ranks(added_memory(call, options.device), options.device)
                    else:
                        seconds[name].append(timed(call, options.device))
            except Exception as error:  # of others' code: whatever it is, it is the answer
                failed[name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    count, shapes, (base, *_) = len(inputs.bounds) - 1, contexts(options.ranks), seconds.values()
    title = f"{inputs.bounds[-1]:,} tokens, {count} document{'s' if count > 1 else ''}"
    say("", f"{title:40}{'seconds':>10}{'ratio':>8}{'memory':>10}{'error':>10}{'predicted':>11}{'ratio':>8}")
    for name in found:
        if name in failed:
            say(f"{name:40}  {failed[name][:200]}")
            continue
        took, ratio = statistics.median(seconds[name]), _ratio(seconds[name], base)
        line = f"{name:40}{took:10.4f}{ratio:8.2f}{in_bytes(memory[name]):>10}{errors[name]:10.1e}"
        if name in shapes and count == 1:
            model = predicted(shapes[name], machine, inputs.bounds[-1], options)
            line += f"{model:11.4f}{took / model:8.2f}"
        say(line)


def _ratio(own: list[float], base: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(own, base, strict=True))


def predicted(context: Context, machine: Machine, length: int, options: argparse.Namespace) -> float:
    """Seconds of the cost model, forward and backward."""
    query, key, size = options.heads
    shape = Shape(query * size, 1, query, 1, key, size)
    return cost(shape, context, machine, length, number_bytes=options.dtype.itemsize).both.total


def reference(inputs: Inputs) -> list[Tensor]:
    """out, dq, dk, dv of one device in float32, from the first rank."""
    q, k, v, grad = (x.float() for x in inputs.tensors)

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:  # torch may have no kernel for grouped queries in float32
        return whole(q, repeated(k, q.shape[2]), repeated(v, q.shape[2]), inputs.bounds)

    found = step(run, [q, k, v, grad]) if dist.get_rank() == 0 else [torch.empty_like(x) for x in (grad, q, k, v)]
    for tensor in found:
        dist.broadcast(tensor, 0)
    return found


def caller(layout: Layout, inputs: Inputs) -> Callable[[], list[Tensor]]:
    """Forward and backward of what this rank holds."""
    held = layout.held.to(inputs.tensors[0].device)
    tensors = [x[:, held].contiguous() for x in inputs.tensors]
    return lambda: step(layout.run, tensors) if len(held) else []


def step(run: Callable[..., Tensor], tensors: list[Tensor]) -> list[Tensor]:
    """out, dq, dk, dv"""
    *leaves, grad = tensors
    leaves = [x.detach().requires_grad_() for x in leaves]
    out = run(*leaves)
    return [x.contiguous() for x in (out.detach(), *torch.autograd.grad(out, leaves, grad))]


def error_of(found: list[Tensor], expected: list[Tensor], layout: Layout, options: argparse.Namespace) -> float:
    """The largest of out, dq, dk and dv: norm of the difference over all ranks by that of the reference."""
    squares = torch.zeros(4, 2, dtype=torch.float64, device=options.device)
    for i, (got, of) in enumerate(zip(found, expected, strict=False)):
        of = of[:, layout.held.to(options.device)].double()
        squares[i] = torch.stack([(got.double() - of).square().sum(), of.square().sum()])
    dist.all_reduce(squares)
    error = float((squares[:, 0] / squares[:, 1]).sqrt().max())
    if not error <= TOLERANCE[options.dtype]:
        raise ArithmeticError(f"not what one device gives: relative error {error:.1e}")
    return error


# ---------------------------------------------------------------------------------------------------- measuring


def timed(call: Callable[[], Any], device: str) -> float:
    """Seconds of the slowest rank; all begin together."""
    dist.barrier()
    if device == "cuda":
        torch.cuda.synchronize()
    begun = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return over_ranks(time.perf_counter() - begun, device)


def over_ranks(value: float, device: str) -> float:
    """The largest of all ranks."""
    tensor = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return float(tensor)


def added_memory(call: Callable[[], Any], device: str) -> float:
    """Bytes by which the peak of this process rises above what it holds before. On CPU resident memory, Linux only."""
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)  # freed memory that the process keeps would hide what the call takes
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = resident("VmRSS")
    dist.barrier()
    call()
    return resident("VmHWM") - before


def resident(key: str) -> int:
    """Bytes, of /proc/self/status."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
