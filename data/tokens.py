"""Prepared tokens, read in place: the shards of one split as one long stream.

Layout of a folder, written by `data.prepare`:

    manifest.json             the only authority on which shards belong; written last
    <split>-<chunk>.bin       token ids, uint16 or uint32, little endian; every document ends with eos
    <split>-<chunk>.idx       int64: where in the shard each document starts
    chunk-<chunk>.json        what is in a finished chunk, so that an interrupted preparation goes on
"""

import bisect
import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

MANIFEST = "manifest.json"
REBUILD = "Run `fulcrum data` with the same data=... and tokenizer=... to rebuild it"
_MOST_MAPPED = 256  # every mapping holds a file descriptor, and 1024 is a common limit


class Tokens:
    """One split ('train' or 'heldout') of one prepared source, memory-mapped.

    Raises ValueError where the manifest or a shard is missing or truncated.
    """

    def __init__(self, folder: Path | str, split: str):
        self.folder, self.split = Path(folder), split
        self.manifest = read_manifest(self.folder)
        self.shards: list[dict[str, Any]] = self.manifest["splits"][split]["shards"]
        self.dtype = np.dtype(self.manifest["dtype"])
        self.fingerprint: str = self.manifest["splits"][split]["fingerprint"]
        self.text_bytes: int = sum(shard["text_bytes"] for shard in self.shards)
        self._token_starts = _cumulative(self.shards, "tokens")
        self._document_starts = _cumulative(self.shards, "documents")
        self.n_tokens, self.n_documents = self._token_starts[-1], self._document_starts[-1]
        for name, size, _ in _files(self.shards):
            path = self.folder / name
            found = path.stat().st_size if path.exists() else None
            if found != size:
                state = "is missing" if found is None else f"has {found} bytes instead of {size}"
                raise ValueError(f"{path} {state}. {REBUILD}")
        self._tokens = lru_cache(_MOST_MAPPED)(self._map_tokens)
        self._starts = lru_cache(_MOST_MAPPED)(self._map_starts)
        for shard in range(min(len(self.shards), _MOST_MAPPED)):
            self._tokens(shard)  # mapped now, a shard stays readable even if its file is replaced later

    def read(self, start: int, length: int) -> np.ndarray:
        """Tokens start..start+length as int64[length], across shard edges. Raises IndexError beyond the stream."""
        return self.windows(np.array([start]), length)[0]

    def windows(self, starts: np.ndarray, length: int) -> np.ndarray:
        """Tokens of B windows: int64[B] -> int64[B, length]. Raises IndexError beyond the stream."""
        self._check(starts, length)
        out = np.empty((len(starts), length), np.int64)
        for row, start in zip(out, starts.tolist(), strict=True):
            shard, filled = bisect.bisect_right(self._token_starts, start) - 1, 0
            while filled < length:
                offset = start + filled - self._token_starts[shard]
                piece = self._tokens(shard)[offset : offset + length - filled]
                row[filled : filled + len(piece)] = piece
                filled += len(piece)
                shard += 1
        return out

    def document_ids(self, starts: np.ndarray, length: int) -> np.ndarray:
        """Which document of the split each position belongs to (its eos included): int64[B] -> int64[B, length]."""
        self._check(starts, length)
        positions = starts.astype(np.int64)[:, None] + np.arange(length)
        shard_of = np.searchsorted(self._token_starts, positions, side="right") - 1
        ids = np.empty_like(positions)
        for shard in np.unique(shard_of).tolist():
            here = shard_of == shard
            inside = positions[here] - self._token_starts[shard]
            ids[here] = self._document_starts[shard] + np.searchsorted(self._starts(shard), inside, side="right") - 1
        return ids

    def verify(self) -> None:
        """Reads every shard and compares checksums. Raises ValueError that names the damaged files."""
        if bad := damaged(self.folder, self.shards):
            raise ValueError(f"{', '.join(str(path) for path in bad)}: the checksum does not match. {REBUILD}")

    def _check(self, starts: np.ndarray, length: int) -> None:
        if len(starts) and (starts.min() < 0 or length < 0 or starts.max() + length > self.n_tokens):
            raise IndexError(
                f"tokens {starts.min()}..{starts.max() + length} of the {self.split} split in {self.folder}, "
                f"which has {self.n_tokens}"
            )

    def _map_tokens(self, shard: int) -> np.ndarray:
        return np.memmap(self.folder / self.shards[shard]["file"], self.dtype, mode="r")

    def _map_starts(self, shard: int) -> np.ndarray:
        return np.memmap(self.folder / self.shards[shard]["index"], "<i8", mode="r")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a prepared folder. Raises ValueError where it is missing or damaged."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing: the data are not prepared. {REBUILD}") from error
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}). {REBUILD}") from error
    if not isinstance(manifest, dict):
        raise ValueError(f"{path} is damaged (not a mapping). {REBUILD}")
    return manifest


def damaged(folder: Path, shards: list[dict[str, Any]], threads: int = 4) -> list[Path]:
    """The files of these shards whose content is not what was written (or that are gone)."""

    def is_bad(path: Path, sha256: str) -> bool:
        try:
            with path.open("rb") as stream:
                return hashlib.file_digest(stream, "sha256").hexdigest() != sha256
        except FileNotFoundError:
            return True

    files = [(folder / name, sha256) for name, _, sha256 in _files(shards)]
    with ThreadPoolExecutor(threads) as pool:  # hashing releases the GIL
        bad = list(pool.map(lambda file: is_bad(*file), files))
    return [path for (path, _), is_damaged in zip(files, bad, strict=True) if is_damaged]


def _files(shards: list[dict[str, Any]]) -> Iterator[tuple[str, int, str]]:
    for shard in shards:
        yield shard["file"], shard["size"], shard["sha256"]
        yield shard["index"], 8 * shard["documents"], shard["index_sha256"]


def _cumulative(shards: list[dict[str, Any]], key: str) -> list[int]:
    totals = [0]
    for shard in shards:
        totals.append(totals[-1] + shard[key])
    return totals
