"""Hybrid data parallelism beside a static mesh: how even the ranks are, and how much the rings send.

    python benchmarks/hybrid.py [--micro-batches 4] [--steps 4]         one core, under a minute

Documents: the Python standard library in a byte-level BPE of 32,768 tokens, packed into samples and cut at their ends
as in training (`data.batches`; epochs repeat), then a made-up stream of Pareto lengths (exponent 1.2, from 300 tokens).
A step has as many samples as fill so many micro-batches of `capacity` tokens on each of R ranks. The static mesh is
data x ring, its ring just long enough that a sample fits.

Counted, not timed: forward FLOPs of each rank (matrix products; attention's pairs under the document mask), with a
barrier after each micro-batch. slowest / mean: sum of the largest rank's FLOPs over that of the mean; 1 is perfect.
Shortest: rings as short as capacity allows, without the choice of longer ones. time: static / hybrid, sums of the
largest rank's. sent: keys and values that rings send, hybrid / static, by all ranks and by the one that sends most.
Not counted: waiting between a ring's hops (a static ring's are uneven under the mask), and what a wave costs besides.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import numpy as np

from data.batches import Batches, sample_order
from data.prepare import Prepared, default_cache, prepare
from data.tokens import Tokens
from train.context_parallel import hybrid
from train.shape import Shape

VOCABULARY = 32_768
SHAPES = {
    "7b": Shape(4096, 32, 32, 11_008, n_kv_heads=8, vocab_size=VOCABULARY),
    "85m": Shape(768, 12, 12, 2048, vocab_size=VOCABULARY),
}
LENGTHS = (4096, 16_384, 65_536)
POOLS = ((8, 4096), (8, 16_384), (64, 4096), (128, 8192))  # ranks, capacity
HEADER = """\
                     data                        waves     |      slowest / mean     |      |    sent    | schedule
sample ranks capacity x ring pieces longest hybrid static  | shortest hybrid  static | time |  all  most | CPU ms"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--micro-batches", type=float, default=4, help="of a step, if all are full")
    parser.add_argument("--steps", type=int, default=4, help="batches to sum over")
    arguments = parser.parse_args()
    source = {"stdlib": {"_target_": "data.sources.Stdlib"}}
    bpe = {"_target_": "data.tokenizers.BPE", "vocab_size": VOCABULARY, "sample_bytes": 1 << 24}
    prepared = prepare({"sources": source, "weights": None, "heldout": 0.05}, bpe, default_cache(), 1)
    assert isinstance(prepared.sources["stdlib"], Tokens)
    for model, shape in SHAPES.items():
        for name in ("the Python standard library", "made-up Pareto lengths"):
            print(f"\n{name}, model {model}\n{HEADER}")
            for length in LENGTHS:
                for ranks, capacity in POOLS:
                    if length > ranks * capacity:
                        continue
                    rows = int(arguments.micro_batches * ranks * capacity / length)
                    made_up = name.startswith("made-up")
                    batches = pareto(length, rows) if made_up else library(prepared, length, rows)
                    found = [step(next(batches), ranks, capacity, shape) for _ in range(arguments.steps)]
                    print(line(length, ranks, capacity, found), flush=True)


def library(prepared: Prepared, length: int, rows: int) -> Iterator[hybrid.Int]:
    """Document ids (rows, length) of one batch after another."""
    stream = Batches(prepared.sources, sample_order(prepared, length, 0, None), length, with_documents=True)
    for k in itertools.count():
        (batch,) = stream.micro_batches(k * rows, rows, 0, 1, rows)
        assert batch.documents is not None
        yield batch.documents


def pareto(length: int, rows: int) -> Iterator[hybrid.Int]:
    draw = np.random.default_rng(0)
    while True:
        ends = np.cumsum(300 * (1 + draw.pareto(1.2, rows * length // 300 + 1)))
        yield np.searchsorted(ends, np.arange(rows * length), side="right").reshape(rows, length)


class Step(NamedTuple):
    """One batch. FLOPs of the largest rank of each wave, summed; tokens sent by each rank."""

    pieces: int
    longest: int
    waves: tuple[int, int]
    """hybrid, static"""
    mean: float
    slowest: list[float]
    """hybrid with the shortest rings, hybrid, static"""
    sent: hybrid.Int
    sent_static: hybrid.Int
    seconds: float


def step(documents_BT: hybrid.Int, ranks: int, capacity: int, shape: Shape) -> Step:
    rows, length = documents_BT.shape
    cost, mesh = partial(hybrid.piece_flops, shape), hybrid.static_mesh(length, ranks, capacity)
    lengths = [piece.length for piece in hybrid.pieces(documents_BT)]
    began = time.process_time()
    waves = hybrid.schedule(lengths, ranks, capacity, cost)
    seconds = time.process_time() - began
    shortest = hybrid.packed(lengths, hybrid.fewest_ranks(lengths, ranks, capacity), ranks, capacity, cost).waves
    flops = [hybrid.work(found, lengths, ranks, cost) for found in (shortest, waves)]
    flops.append(hybrid.static_work(documents_BT, mesh, shape))
    mean = flops[2].sum() / ranks
    assert np.allclose([work_WR.sum() / ranks for work_WR in flops], mean)
    return Step(
        len(lengths),
        max(lengths),
        (len(waves), len(flops[2])),
        mean,
        [float(work_WR.max(1).sum()) for work_WR in flops],
        hybrid.sent(waves, lengths, ranks).sum(0),
        hybrid.static_sent(rows, length, mesh).sum(0),
        seconds,
    )


def line(length: int, ranks: int, capacity: int, steps: list[Step]) -> str:
    """Of the table: means and ratios of sums over steps."""
    mesh = hybrid.static_mesh(length, ranks, capacity)
    pieces = np.mean([found.pieces for found in steps])
    waves, waves_static = np.mean([found.waves for found in steps], axis=0)
    mean, slowest = sum(found.mean for found in steps), np.sum([found.slowest for found in steps], axis=0)
    sent, sent_static = (sum(of) for of in zip(*((found.sent, found.sent_static) for found in steps), strict=True))
    text = f"{length:6}{ranks:6}{capacity:9}{mesh.data:4} x{mesh.ring:3}{pieces:8.0f}"
    text += f"{max(found.longest for found in steps):8}{waves:7.2f}{waves_static:7.2f}  |"
    text += "".join(f"{ratio:8.3f}" for ratio in slowest / mean) + f" |{slowest[2] / slowest[1]:6.3f}"
    ratios = (sent.sum() / sent_static.sum(), sent.max() / sent_static.max()) if mesh.ring > 1 else ()
    rings = "".join(f"{ratio:6.2f}" for ratio in ratios) or " no rings   "
    return f"{text}|{rings}|{1000 * max(found.seconds for found in steps):8.1f}"


if __name__ == "__main__":
    main()
