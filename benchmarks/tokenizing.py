"""Preparing data against the tokenizer library alone.

    python benchmarks/tokenizing.py [--megabytes 80] [--processes 2] [--vocab-size 1024] [--repeats 3]

Ratio = throughput of `data.prepare.prepare` into a fresh cache (start of the processes, reading, hashing, splitting,
encoding, writing with fsync, checksums, manifest) / throughput of the same number of processes that do nothing but
call `tokenizers` on the same text, already in their memory, started by a common signal. Two peers: `encode_batch`,
and `encode_batch_fast`, which leaves out offsets and is what `data.tokenizers` calls: the harder one counts. The text
is the standard library's, each copy with its lines in another order; all use one BPE, trained beforehand. They take
turns, and the best of each counts, since other work on the machine only ever slows. Goal: 0.80 or more.
"""

import argparse
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

from data.prepare import prepare
from data.sources import Files, Stdlib
from data.tokenizers import BPE

BATCH = 1 << 20  # bytes of text per call of the library


def write_text(path: Path, size: int) -> int:
    """Writes at least `size` bytes of text as JSON lines; returns how many."""
    documents, draw, written = list(Stdlib().documents()), random.Random(0), 0
    with path.open("w") as stream:
        while True:
            for document in documents:
                print(json.dumps({"text": document}), file=stream)
                written += len(document.encode())
                if written >= size:
                    return written
            for i, document in enumerate(documents):
                lines = document.splitlines(keepends=True)
                draw.shuffle(lines)
                documents[i] = "".join(lines)


def batches(path: Path) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for document in Files(str(path)).documents():
        batch.append(document)
        size += len(document)
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    yield batch


def encode_only(call: str, path: Path, tokenizer: Path, rank: int, processes: int, start: Barrier, times: Any) -> None:
    from tokenizers import Tokenizer

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    library = Tokenizer.from_file(str(tokenizer))
    library.encode_special_tokens = True
    encode = getattr(library, call)
    mine = list(islice(batches(path), rank, None, processes))
    start.wait()
    began = time.monotonic()
    for batch in mine:
        encode(batch, add_special_tokens=False)
    times.put((began, time.monotonic()))


def library_seconds(call: str, path: Path, tokenizer: Path, processes: int) -> float:
    context = multiprocessing.get_context("spawn")
    start, times = context.Barrier(processes), context.Queue()
    workers = [
        context.Process(target=encode_only, args=(call, path, tokenizer, rank, processes, start, times))
        for rank in range(processes)
    ]
    for worker in workers:
        worker.start()
    spans = [times.get() for _ in workers]
    for worker in workers:
        worker.join()
    return max(end for _, end in spans) - min(began for began, _ in spans)


def prepare_seconds(path: Path, tokenizer: Path, processes: int) -> float:
    source = {"_target_": "data.sources.Files", "paths": str(path)}
    file = {"_target_": "data.tokenizers.File", "path": str(tokenizer)}
    with tempfile.TemporaryDirectory(dir=path.parent) as cache:
        began = time.monotonic()
        prepare({"sources": {"text": source}, "heldout": 0.02}, file, Path(cache), processes)
        return time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=80)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--vocab-size", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        text, tokenizer = Path(folder) / "text.jsonl", Path(folder) / "tokenizer.json"
        size = write_text(text, int(asked.megabytes * 1e6)) / 1e6
        tokenizer.write_text(BPE(asked.vocab_size).make(islice(Files(str(text)).documents(), 600)))
        sides: dict[str, Callable[[], float]] = {
            call: partial(library_seconds, call, text, tokenizer, asked.processes)
            for call in ("encode_batch", "encode_batch_fast")
        }
        sides["prepare"] = partial(prepare_seconds, text, tokenizer, asked.processes)
        speeds: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(asked.repeats):
            for name, seconds in sides.items():
                speeds[name].append(size / seconds())
                print(f"{name}: {speeds[name][-1]:.2f} MB/s", file=sys.stderr)
    best = {name: max(values) for name, values in speeds.items()}
    print(f"{size:.0f} MB, {asked.processes} processes, vocabulary {asked.vocab_size}, best of {asked.repeats}, MB/s:")
    print(", ".join(f"{name} {speed:.2f}" for name, speed in best.items()))
    print(f"ratio to encode_batch {best['prepare'] / best['encode_batch']:.3f}")
    print(f"ratio to encode_batch_fast {best['prepare'] / best['encode_batch_fast']:.3f} (goal 0.80)")


if __name__ == "__main__":
    main()
