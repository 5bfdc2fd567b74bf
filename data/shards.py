"""From documents to token shards: chunks of text go to worker processes, each chunk becomes one shard per split.

A chunk is a run of whole documents, cut by the amount of text alone, so shards are the same for any number of
processes. It is named by the hash of its documents and of the tokenizer, so finished chunks are found again after a
kill or when the source has changed elsewhere. Memory is bounded by a few chunks per process.
"""

import hashlib
import json
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data import tokenizers
from data.files import write_atomic
from data.sources import Source
from data.tokens import damaged

SPLITS = ("train", "heldout")
# A chunk holds 1/64 of the text before it, within these bounds: small data still keep all processes busy,
# large data do not fall into too many files.
CHUNK_SHARE, SMALLEST_CHUNK, LARGEST_CHUNK = 64, 1 << 20, 1 << 25
_ENCODED_AT_ONCE = 1 << 19  # the tokenizer library needs some 100 bytes per token while it encodes


class Document(NamedTuple):
    """UTF-8 text, its hash, and the split that follows from the hash."""

    raw: bytes
    digest: bytes
    heldout: bool


class Chunk(NamedTuple):
    """A unit of work and of resumption."""

    number: int
    identity: str
    documents: list[tuple[bytes, bool]]
    """(UTF-8 text, whether it is held out)"""


def documents_of(source: Source, heldout: float) -> Iterator[Document]:
    """The documents that hold text."""
    for text in source.documents():
        if raw := text.encode("utf-8", "replace"):  # JSON can spell lone surrogates, which are no text
            digest = hashlib.blake2b(raw, digest_size=16).digest()
            # By content, so the split knows no file order and equal documents land on one side.
            yield Document(raw, digest, int.from_bytes(digest[:8], "big") < heldout * 2**64)


def chunks_of(source: Source, heldout: float, tokenizer: str) -> Iterator[Chunk]:
    """The source in chunks; `tokenizer` is its fingerprint."""
    documents: list[tuple[bytes, bool]] = []
    number = done = size = 0
    limit, identity = SMALLEST_CHUNK, hashlib.sha256(tokenizer.encode())
    for document in documents_of(source, heldout):
        documents.append((document.raw, document.heldout))
        identity.update(document.digest)
        size += len(document.raw)
        if size >= limit:
            yield Chunk(number, identity.hexdigest(), documents)
            number, done, size, documents = number + 1, done + size, 0, []
            limit = min(max(SMALLEST_CHUNK, done // CHUNK_SHARE), LARGEST_CHUNK)
            identity = hashlib.sha256(tokenizer.encode())
    if documents:
        yield Chunk(number, identity.hexdigest(), documents)


class Vocabulary(NamedTuple):
    """What tokenizing needs to know of a prepared tokenizer."""

    file: Path | None
    """tokenizer.json; None for bytes."""
    fingerprint: str
    vocab_size: int
    eos: int


class Finished(NamedTuple):
    number: int
    identity: str
    shards: dict[str, dict[str, Any]]
    """What the manifest says of the shard of each split; a split without documents has none."""


class ChunkWriter:
    """Writes a chunk's shards, unless they lie there whole; one per process, since it holds the tokenizer."""

    def __init__(self, folder: Path, vocabulary: Vocabulary, dtype: np.dtype):
        self.folder, self.vocabulary, self.dtype = folder, vocabulary, dtype

    def record(self, chunk: Chunk | Finished) -> Path:
        return self.folder / f"chunk-{chunk.number:05d}-{chunk.identity[:8]}.json"

    def __call__(self, chunk: Chunk) -> tuple[Finished, dict[str, np.ndarray]]:
        """Returns what is there now, and how often each token occurs in each split."""
        try:
            record = json.loads(self.record(chunk).read_bytes())
            if record["identity"] == chunk.identity and not damaged(self.folder, list(record["shards"].values()), 1):
                return Finished(chunk.number, chunk.identity, record["shards"]), self._counts(record["shards"])
        except (OSError, ValueError, LookupError, TypeError):
            pass  # absent or torn: written below
        shards = {}
        for split in SPLITS:
            texts = [raw for raw, heldout in chunk.documents if heldout == (split == "heldout")]
            if texts:
                shards[split] = self._write_shard(f"{split}-{chunk.number:05d}-{chunk.identity[:8]}", texts)
        write_atomic(self.record(chunk), canonical_json({"identity": chunk.identity, "shards": shards}))
        return Finished(chunk.number, chunk.identity, shards), self._counts(shards)

    def _write_shard(self, name: str, texts: list[bytes]) -> dict[str, Any]:
        if not hasattr(self, "tokenizer"):
            self.tokenizer = tokenizers.load(self.vocabulary.file)
        pieces: list[np.ndarray] = []
        starts, n_tokens = np.empty(len(texts), "<i8"), 0
        eos = np.array([self.vocabulary.eos], self.dtype)
        for batch in _batches(texts):
            for ids in self.tokenizer.encode_batch([raw.decode() for raw in batch]):
                starts[len(pieces) // 2] = n_tokens
                pieces += [ids.astype(self.dtype), eos]
                n_tokens += len(ids) + 1
        tokens = np.concatenate(pieces)
        write_atomic(self.folder / f"{name}.bin", tokens.data)
        write_atomic(self.folder / f"{name}.idx", starts.data)
        return {
            "file": f"{name}.bin",
            "index": f"{name}.idx",
            "documents": len(texts),
            "tokens": n_tokens,
            "text_bytes": sum(map(len, texts)),
            "size": tokens.nbytes,
            "sha256": hashlib.sha256(tokens.data).hexdigest(),
            "index_sha256": hashlib.sha256(starts.data).hexdigest(),
        }

    def _counts(self, shards: dict[str, dict[str, Any]]) -> dict[str, np.ndarray]:
        tokens = {split: np.fromfile(self.folder / shard["file"], self.dtype) for split, shard in shards.items()}
        return {split: np.bincount(ids, minlength=self.vocabulary.vocab_size) for split, ids in tokens.items()}


def _batches(texts: list[bytes]) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= _ENCODED_AT_ONCE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def write_chunks(
    writer: ChunkWriter, chunks: Iterator[Chunk], processes: int, advance: Callable[[int], None]
) -> tuple[list[Finished], dict[str, np.ndarray]]:
    """Writes all chunks; `advance` hears of text bytes done. Returns them in order, and token counts by split."""
    finished: list[Finished] = []
    counts = {split: np.zeros(writer.vocabulary.vocab_size, np.int64) for split in SPLITS}
    with _one_thread_per_tokenizer():
        for result, found in _map(writer, chunks, processes):
            finished.append(result)
            for split, count in found.items():
                counts[split] += count
            advance(sum(shard["text_bytes"] for shard in result.shards.values()))
    return sorted(finished), counts


def _map(
    writer: ChunkWriter, chunks: Iterator[Chunk], processes: int
) -> Iterator[tuple[Finished, dict[str, np.ndarray]]]:
    """The writer's results in any order; at most two chunks per process are in memory."""
    if processes == 1:
        yield from map(writer, chunks)
        return
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _start_worker, (writer,))
    pending: set[Future] = set()
    try:
        for chunk in chunks:
            pending.add(pool.submit(_work, chunk))
            if len(pending) >= 2 * processes:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        yield from (future.result() for future in pending)
    finally:
        pool.shutdown(cancel_futures=True)


_worker: ChunkWriter


def _start_worker(writer: ChunkWriter) -> None:
    global _worker
    _worker = writer
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent would leave its pool waiting for work that never comes."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(chunk: Chunk) -> tuple[Finished, dict[str, np.ndarray]]:
    return _worker(chunk)


def totals(name: str, finished: list[Finished], counts: dict[str, np.ndarray], heldout: float) -> dict[str, Any]:
    """The part of the manifest that follows from the shards. Raises ValueError where a split has no document."""
    splits: dict[str, Any] = {}
    for split in SPLITS:
        shards = [chunk.shards[split] for chunk in finished if split in chunk.shards]
        totals = {key: sum(shard[key] for shard in shards) for key in ("documents", "tokens", "text_bytes")}
        fingerprint = content_hash([[shard["sha256"], shard["index_sha256"]] for shard in shards])
        splits[split] = {**totals, "fingerprint": fingerprint, "shards": shards}
    documents = sum(split["documents"] for split in splits.values())
    if not documents:
        raise ValueError(f"data.sources.{name} has no documents, or only empty ones. Point it at some text")
    for split in SPLITS:
        if not splits[split]["documents"]:
            fix = "Raise" if split == "heldout" else "Lower"
            raise ValueError(
                f"data.sources.{name} has {documents} documents, and data.heldout={heldout} leaves the {split} split "
                f"without any. {fix} data.heldout, or add documents"
            )
    seen = counts["train"] + 1.0  # add-one smoothing: a held-out token may be new
    loss = -(counts["heldout"] @ np.log(seen / seen.sum())) / counts["heldout"].sum()
    return {"unigram_loss": float(loss), "splits": splits}


@contextmanager
def _one_thread_per_tokenizer() -> Iterator[None]:
    """P processes use P cores: the library would start a thread per core in each of them."""
    key = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(key)
    os.environ[key] = "false"
    try:
        yield
    finally:
        os.environ.pop(key)
        if before is not None:
            os.environ[key] = before


def canonical_json(value: Any, indent: int | None = None) -> bytes:
    return json.dumps(value, sort_keys=True, indent=indent, separators=None if indent else (",", ":")).encode()


def content_hash(value: Any) -> str:
    return hashlib.sha256(canonical_json(value)).hexdigest()
